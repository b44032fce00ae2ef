package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxOutput is how many bytes an output holds for a reader that has stopped.
	maxOutput = 4 << 20

	// flushTimeout limits how long the end of the process waits for a reader of
	// stdout and stderr.
	flushTimeout = time.Second

	// failureInterval is the minimum time between two messages about a stream whose
	// writes fail.
	failureInterval = time.Minute
)

// errDropped is the error of a record that was dropped because the queue is full.
var errDropped = errors.New("the reader has stopped, and the queue is full")

// An output is an io.Writer that never blocks: each Write is a record, which a
// goroutine writes to the stream. If the reader of the stream has stopped (a
// terminal after Ctrl-S, a log collector that hangs), records are queued, and
// beyond maxOutput dropped and counted. All methods may be called concurrently.
type output struct {
	name    string // "stdout" or "stderr"
	stream  io.Writer
	log     atomic.Pointer[slog.Logger] // gets a message when the reader reads again; nil: no message
	dropped atomic.Int64                // since the start

	mu         sync.Mutex
	records    []record
	size       int       // bytes in records and in the write that is under way
	unreported int64     // records dropped since the last message
	reported   time.Time // when the last message was logged
	failure    error     // of the last write
	closed     bool
	wake       chan struct{} // has room for one token
}

// A record is a piece of output, or, if written is not nil, a request to report that
// all records before it were written.
type record struct {
	data    []byte
	written chan struct{}
}

// newOutput returns an output whose goroutine ends after close.
func newOutput(name string, stream io.Writer) *output {
	o := &output{name: name, stream: stream, wake: make(chan struct{}, 1)}
	go o.run()
	return o
}

// Write queues a copy of b. The error is errDropped if the queue is full. A record
// that is larger than the queue is accepted if the queue is empty.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	full := o.closed || o.size > 0 && o.size+len(b) > maxOutput
	if full {
		o.unreported++
	} else {
		o.size += len(b)
		o.records = append(o.records, record{data: append([]byte(nil), b...)})
	}
	o.mu.Unlock()
	if full {
		o.dropped.Add(1)
		return 0, errDropped
	}
	o.signal()
	return len(b), nil
}

func (o *output) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run writes records until the output is closed and the queue is empty.
func (o *output) run() {
	for range o.wake {
		for {
			records, closed := o.take()
			if len(records) == 0 {
				if closed {
					return
				}
				break
			}
			for _, r := range records {
				o.write(r)
			}
			o.reportDropped()
		}
	}
}

func (o *output) take() (records []record, closed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	records, o.records = o.records, nil
	return records, o.closed
}

func (o *output) write(r record) {
	if r.written != nil {
		close(r.written)
		return
	}
	_, err := o.stream.Write(r.data)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.size -= len(r.data)
	if o.failure = err; err != nil {
		o.unreported++
		o.dropped.Add(1)
	}
}

// reportDropped logs how many records were dropped since the last message. A
// message about stderr comes after the gap. While writes fail, as after the reader
// has closed a pipe, there is one message in failureInterval.
func (o *output) reportDropped() {
	log := o.log.Load()
	if log == nil {
		return
	}
	o.mu.Lock()
	n, err := o.unreported, o.failure
	if n == 0 || err != nil && time.Since(o.reported) < failureInterval {
		o.mu.Unlock()
		return
	}
	o.unreported, o.reported = 0, time.Now()
	o.mu.Unlock()
	if err != nil {
		log.Error("output could not be written", "stream", o.name, "records", n, "error", err)
		return
	}
	log.Warn("output was lost: the reader of the stream had stopped or was too slow", "stream", o.name, "records", n)
}

// flush waits until all records of the past are written, or until ctx ends.
func (o *output) flush(ctx context.Context) {
	r := record{written: make(chan struct{})}
	o.mu.Lock()
	ended := o.closed && len(o.records) == 0
	if !ended {
		o.records = append(o.records, r)
	}
	o.mu.Unlock()
	if ended {
		return
	}
	o.signal()
	select {
	case <-r.written:
	case <-ctx.Done():
	}
}

// close ends the goroutine when the queue is empty. Later records are dropped.
func (o *output) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.signal()
}

// queued returns a process whose stdout and stderr are outputs, and a function that
// flushes and closes the outputs.
func (p process) queued() (process, func()) {
	p.stdout, p.stderr = newOutput("stdout", p.stdout), newOutput("stderr", p.stderr)
	return p, func() {
		p.flush()
		for _, o := range p.outputs() {
			o.close()
		}
	}
}

// outputs returns those of stdout and stderr that are outputs.
func (p process) outputs() (all []*output) {
	for _, w := range []io.Writer{p.stdout, p.stderr} {
		if o, ok := w.(*output); ok {
			all = append(all, o)
		}
	}
	return all
}

// flush waits until what was written so far has reached the streams, for at most
// flushTimeout.
func (p process) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	for _, o := range p.outputs() {
		o.flush(ctx)
	}
}

// streamOf returns the stream of an output, and any other writer itself.
func streamOf(w io.Writer) io.Writer {
	if o, ok := w.(*output); ok {
		return o.stream
	}
	return w
}

// fileOf returns the file that w writes to, or nil.
func fileOf(w io.Writer) *os.File {
	f, _ := streamOf(w).(*os.File)
	return f
}

// registerOutputs adds the number of dropped records to the metrics.
func (p process) registerOutputs(metrics *prometheus.Registry) {
	for _, o := range p.outputs() {
		metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name:        "autobatcher_output_dropped_total",
			Help:        "Events (stdout) and log records (stderr) that were dropped because the reader had stopped.",
			ConstLabels: prometheus.Labels{"stream": o.name},
		}, func() float64 { return float64(o.dropped.Load()) }))
	}
}
