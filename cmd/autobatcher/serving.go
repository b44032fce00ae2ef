package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// listen opens a listener whose connections are kept alive by TCP.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	return config.Listen(ctx, "tcp", address)
}

// reachable is the address by which a listener is reached from this machine.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr.String()
	}
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(tcp.Port))
}

// untilStopped serves until a signal comes or ctx ends. Then it calls shutdown,
// which must bring the running requests to their end, and closes the server.
func untilStopped(ctx context.Context, p process, log *slog.Logger, server *http.Server, l net.Listener, shutdown func()) error {
	signals, ignore := p.notify(stopSignals...)
	defer ignore()
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		shutdown()
		return err
	case s := <-signals:
		log.Info("shutting down; the same signal again ends at once", "signal", s.String())
	case <-ctx.Done():
		log.Info("shutting down")
	}
	done := make(chan struct{})
	defer close(done)
	go p.forceOn(signals, done, log)
	shutdown()
	return stop(server)
}

// stopPatience is for the answers that are still being written.
const stopPatience = 5 * time.Second

// stop closes the server once its answers are out, or when patience ends.
func stop(server *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	err := server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return server.Close()
	}
	return err
}
