package main

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// notify begins to catch signals.
func notify(signals ...os.Signal) (caught <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 8)
	signal.Notify(c, signals...)
	return c, func() { signal.Stop(c) }
}

// stopSignals ask a server to end.
var stopSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

// exitCode is what a shell says of a process that the signal ended.
func exitCode(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return exitSignal + int(n)
	}
	return exitFailure
}

// forceOn ends the process at once if another signal comes before the end of
// an orderly shutdown.
func (p process) forceOn(signals <-chan os.Signal, done <-chan struct{}, log *slog.Logger) {
	select {
	case <-done:
	case s := <-signals:
		log.Warn("ending at once", "signal", s.String())
		p.exit(exitCode(s))
	}
}
