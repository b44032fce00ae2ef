// Package eventqueue calls an event handler in a goroutine of its own.
package eventqueue

import (
	"context"
	"sync"
)

// A Queue calls the event handler, one event at a time and in the order in
// which the events happened, in a goroutine of its own: a handler that is slow,
// exits its goroutine or calls the Transport delays no answer. The goroutine
// lives only while there are events. While [MaxPending] events wait, further events
// are dropped.
type Queue[E any] struct {
	handler  func(E)
	panicked func(event E, p any) // called when the handler panicked
	full     func()               // called when an event is dropped for the first time since the queue was empty

	mu      sync.Mutex
	pending []E
	dropped bool          // an event was dropped since the queue was empty
	busy    bool          // a goroutine delivers events
	idle    chan struct{} // closed when the goroutine has delivered all events; nil while not busy
}

// New returns a queue of events for handler; nil: events are dropped. panicked is
// called in place of a handler that panicked, and full when an event is dropped for the
// first time since the queue was empty.
func New[E any](handler func(E), panicked func(event E, p any), full func()) *Queue[E] {
	return &Queue[E]{handler: handler, panicked: panicked, full: full}
}

// MaxPending is the number of events that may wait for a slow handler.
const MaxPending = 10_000

// Emit has the handler called. It never blocks.
func (q *Queue[E]) Emit(e E) {
	if q.handler == nil {
		return
	}
	if q.add(e) {
		q.full()
	}
}

// add adds an event, and reports whether the event was dropped as the first since the
// queue was empty.
func (q *Queue[E]) add(e E) (first bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) >= MaxPending {
		first = !q.dropped
		q.dropped = true
		return first
	}
	q.pending = append(q.pending, e)
	if !q.busy {
		q.busy, q.idle = true, make(chan struct{})
		go q.deliver()
	}
	return false
}

// deliver calls the handler until no event is left. A handler that exits the
// goroutine costs only the goroutine: another one goes on.
func (q *Queue[E]) deliver() {
	finished := false
	defer func() {
		if !finished {
			go q.deliver()
		}
	}()
	for {
		q.mu.Lock()
		if len(q.pending) == 0 {
			q.pending, q.busy, q.dropped = nil, false, false
			close(q.idle)
			q.mu.Unlock()
			finished = true
			return
		}
		e := q.pending[0]
		q.pending = q.pending[1:]
		q.mu.Unlock()
		q.call(e)
	}
}

func (q *Queue[E]) call(e E) {
	defer func() {
		if p := recover(); p != nil {
			q.panicked(e, p)
		}
	}()
	q.handler(e)
}

// Wait waits until the handler has returned for all events, or ctx ends.
func (q *Queue[E]) Wait(ctx context.Context) {
	q.mu.Lock()
	idle, busy := q.idle, q.busy
	q.mu.Unlock()
	if busy {
		select {
		case <-idle:
		case <-ctx.Done():
		}
	}
}
