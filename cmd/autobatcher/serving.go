package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/autobatcher/autobatcher/internal/proxy"
)

// listen opens a TCP listener, whose connections use keep-alive.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	host, port, _ := net.SplitHostPort(address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("another program listens on port %s of %s, perhaps another autobatcher; give another --port, or --port 0 for any free port", port, quoteEmpty(host))
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("this user may not listen on port %s; give a --port of at least 1024", port)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("--host %s is not an address of this machine", quoteEmpty(host))
	}
	return l, err
}

// reachable returns the address at which this machine can reach a listener.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr.String()
	}
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(tcp.Port))
}

// A service is an HTTP server with functions for its start and its end.
type service struct {
	server   *http.Server
	listener net.Listener
	log      *slog.Logger
	announce func()          // reports the address
	shutdown func()          // ends the running requests
	running  func() []string // the ids of running batches
}

// untilStopped serves until a signal arrives or ctx ends.
func (s service) untilStopped(ctx context.Context, p process) error {
	// A client that reads the announcement may send a signal at once.
	caught, ignore := p.notify(stopSignals...)
	defer ignore()
	signals := &signalQueue{caught: caught}
	failed := make(chan error, 1)
	go func() { failed <- s.server.Serve(s.listener) }()
	s.announce()
	select {
	case err := <-failed:
		s.shutdown()
		return err
	case sig := <-signals.caught:
		signals.received()
		s.log.Info("shutting down; a second signal, at least a second later, ends the process at once", "signal", sig.String())
	case <-ctx.Done():
		s.log.Info("shutting down")
	}
	done := make(chan struct{})
	defer close(done)
	go p.forceOn(signals, done, s.running, s.log)
	return stop(s.server, s.shutdown)
}

// newServer returns an HTTP server that logs to log.
func newServer(h http.Handler, log *slog.Logger) *http.Server {
	server := proxy.NewServer(h)
	server.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	return server
}

const (
	// endTimeout limits the whole shutdown, except for flushTimeout. Kubernetes
	// kills a process after 30 s.
	endTimeout = 28 * time.Second

	// writeTimeout limits how long stop waits for answers that are being written,
	// after the running requests were ended.
	writeTimeout = 5 * time.Second
)

// errEndTimeout is the error of stop if shutdown did not return in time.
var errEndTimeout = errors.New("the shutdown did not finish in time")

// stop calls shutdown, which ends the running requests, and closes the server when
// all answers are written. stop returns after endTimeout at the latest.
func stop(server *http.Server, shutdown func()) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		shutdown()
	}()
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	select {
	case <-ended:
	case <-ctx.Done():
		return errors.Join(errEndTimeout, server.Close())
	}
	ctx, cancel = context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return server.Close()
	}
	return err
}
