package main

import (
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

// notify catches signals until stop is called.
func notify(signals ...os.Signal) (caught <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 8)
	signal.Notify(c, signals...)
	return c, func() { signal.Stop(c) }
}

// stopSignals shut a server down.
var stopSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

// exitCode returns the exit code that a shell reports for a process that the signal
// ended.
func exitCode(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return exitSignal + int(n)
	}
	return exitFailure
}

// repeatTime is how long a further signal counts as a repetition of the first: the
// program timeout signals its child, and then the process group of its child.
const repeatTime = time.Second

// A signalQueue receives signals, one goroutine at a time.
type signalQueue struct {
	caught <-chan os.Signal
	last   time.Time // when the last signal before the shutdown was received
	stop   os.Signal // the last of stopSignals that the child was sent
	sent   time.Time // when the child was sent stop
}

// received records that a signal was received just now.
func (q *signalQueue) received() { q.last = time.Now() }

// repeated reports whether a signal repeats the last of stopSignals, and is not to be
// passed on to the child: the program that signals twice has signalled the process group,
// and with the group the child. Of two signals many programs take the second as the order
// to end at once, without their cleanup.
func (q *signalQueue) repeated(s os.Signal) bool {
	if s == q.stop && time.Since(q.sent) < repeatTime {
		return true
	}
	if slices.Contains(stopSignals, s) {
		q.stop, q.sent = s, time.Now()
	}
	return false
}

// forceOn ends the process at once if a second signal arrives before done is
// closed, which marks the end of the shutdown. running returns the ids of the
// batches that run on without the rest of the shutdown.
func (p process) forceOn(q *signalQueue, done <-chan struct{}, running func() []string, log *slog.Logger) {
	for {
		select {
		case <-done:
			return
		case s := <-q.caught:
			if q.last.IsZero() { // Ctrl-C has ended the program of run before run noticed the signal
				q.received()
				continue
			}
			if time.Since(q.last) < repeatTime {
				continue
			}
			if ids := running(); len(ids) > 0 {
				log.Warn("second signal: ending at once; batches run on at the provider and are paid for", "signal", s.String(), "batches", ids)
			} else {
				log.Warn("second signal: ending at once; no batch is running", "signal", s.String())
			}
			p.flush()
			p.exit(exitCode(s))
			return
		}
	}
}
