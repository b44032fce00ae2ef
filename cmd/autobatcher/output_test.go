package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A gate is a stream whose reader has stopped until the gate is opened.
type gate struct {
	open chan struct{}
	lockedBuffer
}

func (g *gate) Write(b []byte) (int, error) {
	<-g.open
	return g.lockedBuffer.Write(b)
}

// Writes to a stream whose reader has stopped must return at once; what does not fit
// into the queue is dropped, counted, and reported when the reader reads again.
func TestOutputWithStoppedReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		o := newOutput("stdout", g)
		var log lockedBuffer
		o.log.Store(slog.New(slog.NewTextHandler(&log, nil)))
		record := []byte(strings.Repeat("x", 64<<10-1) + "\n")
		for range 100 {
			_, _ = o.Write(record)
		}
		const fits = maxOutput / (64 << 10)
		if got := o.dropped.Load(); got != 100-fits {
			t.Errorf("%d records were dropped, want %d", got, 100-fits)
		}
		close(g.open)
		synctest.Wait()
		if got := strings.Count(g.String(), "\n"); got != fits {
			t.Errorf("%d records were written, want %d", got, fits)
		}
		if want := fmt.Sprintf("stream=stdout records=%d", 100-fits); !strings.Contains(log.String(), want) {
			t.Errorf("the log does not contain %q: %s", want, log.String())
		}
		if _, err := o.Write([]byte("again\n")); err != nil {
			t.Error(err)
		}
		o.flush(t.Context())
		if !strings.HasSuffix(g.String(), "\nagain\n") {
			t.Error("the output does not go on")
		}
		o.close()
	})
}

// The end of the process must not wait for a reader that has stopped.
func TestFlushWithStoppedReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		var out bytes.Buffer
		p, flush := process{stdout: g, stderr: &out}.queued()
		fmt.Fprintln(p.stdout, "event")
		fmt.Fprintln(p.stderr, "log")
		start := time.Now()
		flush()
		if got := time.Since(start); got > flushTimeout {
			t.Errorf("flush took %v", got)
		}
		synctest.Wait()
		if out.String() != "log\n" {
			t.Errorf("stderr has %q", out.String())
		}
		close(g.open)
	})
}

// A stream that fails must neither block nor panic, and its records count as dropped.
func TestOutputOfClosedStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		r.Close()
		o := newOutput("stdout", w)
		defer o.close()
		_, _ = o.Write([]byte("event\n"))
		synctest.Wait()
		if got := o.dropped.Load(); got != 1 {
			t.Errorf("%d records were dropped, want 1", got)
		}
	})
}
