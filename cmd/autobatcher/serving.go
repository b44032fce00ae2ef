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

// A service is a server and what belongs to its beginning and its end.
type service struct {
	server   *http.Server
	listener net.Listener
	log      *slog.Logger
	announce func() // says where it listens
	shutdown func() // brings the running requests to their end
}

// untilStopped serves until a signal comes or ctx ends.
func (s service) untilStopped(ctx context.Context, p process) error {
	// Before anybody is told that it runs, it can be told to stop.
	signals, ignore := p.notify(stopSignals...)
	defer ignore()
	failed := make(chan error, 1)
	go func() { failed <- s.server.Serve(s.listener) }()
	s.announce()
	select {
	case err := <-failed:
		s.shutdown()
		return err
	case sig := <-signals:
		s.log.Info("shutting down; another signal ends at once", "signal", sig.String())
	case <-ctx.Done():
		s.log.Info("shutting down")
	}
	done := make(chan struct{})
	defer close(done)
	go p.forceOn(signals, done, s.log)
	s.shutdown()
	return stop(s.server)
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
