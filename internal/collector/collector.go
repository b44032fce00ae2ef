// Package collector decides which calls are collected together, and sent in one
// batch.
package collector

import (
	"context"
	"sync"
	"time"
)

// A Collector owns the queues: which calls are in a queue, and whether the queue
// takes more. Calls with equal keys K share a queue. A Collector is safe for
// concurrent use; describe and start are called with its lock held.
type Collector[K comparable, C any] struct {
	describe func(C) Entry[K, C]
	start    func(*Queue[K, C]) bool // starts the batch of a new queue

	hurry   func()        // closes hurried, once
	hurried chan struct{} // closed when no more calls are coming

	mu    sync.Mutex
	open  map[K]*Queue[K, C] // the queues that collect calls
	early map[K]struct{}     // the keys whose next queue is patient
	ended bool               // takes no calls
}

// An Entry describes a call.
type Entry[K comparable, C any] struct {
	Key    *K // Add sets the key to that of the queue, so that equal keys are kept once
	Slot   *Slot[K, C]
	Bytes  int64 // of the call's line, with its line break
	Inputs int   // embedding inputs
	Limits Limits
}

// Limits bound one batch. A batch is sent when it reaches a limit, and a call that
// would exceed a limit opens the next batch. Zero: no limit.
type Limits struct {
	Calls  int
	Bytes  int64
	Inputs int
}

// A Slot is the place of a call in a queue. The zero Slot is that of a call which
// is not queued. The Collector guards the fields.
type Slot[K comparable, C any] struct {
	queue    *Queue[K, C]
	position int
	dropped  bool // the call left before it was queued
}

// A Queue is the calls of a batch that were not sent yet.
type Queue[K comparable, C any] struct {
	Key    K
	First  C // the call that opened the queue
	Opened time.Time

	// patient says that the queue waits its whole window, since the queue before was
	// sealed early a short while ago: the calls come in a slow but steady stream, and
	// would become many small batches.
	patient bool

	collector *Collector[K, C]
	full      chan struct{} // closed when the queue takes no more calls

	// Guarded by collector.mu.
	calls  []waiting[C]
	count  int // of the calls that have not left
	bytes  int64
	inputs int
	sealed bool
	early  bool   // the queue was sealed, or will be, before its window ends for want of calls
	empty  func() // called once when the last call has left; nil: not called
}

// waiting is a call in a queue; gone says that the call has left.
type waiting[C any] struct {
	call C
	gone bool
}

// New returns a Collector. start runs the batch of a new queue, and returns false
// if no batch can be started any more.
func New[K comparable, C any](describe func(C) Entry[K, C], start func(*Queue[K, C]) bool) *Collector[K, C] {
	hurried := make(chan struct{})
	return &Collector[K, C]{
		describe: describe, start: start, open: make(map[K]*Queue[K, C]), early: make(map[K]struct{}),
		hurry: sync.OnceFunc(func() { close(hurried) }), hurried: hurried,
	}
}

// Add puts a call into the queue that collects calls with its key. It returns
// false if the Collector takes no more calls.
func (c *Collector[K, C]) Add(call C) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.describe(call)
	switch {
	case c.ended:
		return false
	case e.Slot.dropped:
		return true
	}
	q := c.open[*e.Key]
	if q != nil && !q.fitsLocked(&e) {
		q.sealLocked()
		q = nil
	}
	if q == nil {
		q = c.newQueue(call, &e)
		if !c.start(q) {
			return false
		}
		c.open[*e.Key] = q
	}
	q.addLocked(call, &e)
	*e.Key = q.Key
	if full := e.Limits; q.count >= full.Calls && full.Calls > 0 || q.bytes >= full.Bytes && full.Bytes > 0 {
		q.sealLocked()
	}
	return true
}

func (c *Collector[K, C]) newQueue(first C, e *Entry[K, C]) *Queue[K, C] {
	_, patient := c.early[*e.Key]
	return &Queue[K, C]{
		Key: *e.Key, First: first, Opened: time.Now(), patient: patient,
		collector: c, full: make(chan struct{}),
	}
}

// Recovered returns a queue without calls, for a batch that was sent before.
func (c *Collector[K, C]) Recovered(k K) *Queue[K, C] {
	q := &Queue[K, C]{Key: k, Opened: time.Now(), collector: c, full: make(chan struct{})}
	q.Seal()
	return q
}

// Group returns queues for calls that are resubmitted together: a queue for each
// key. The queues take no more calls.
func (c *Collector[K, C]) Group(calls []C) []*Queue[K, C] {
	c.mu.Lock()
	defer c.mu.Unlock()
	queues := make(map[K]*Queue[K, C])
	var order []*Queue[K, C]
	for _, call := range calls {
		e := c.describe(call)
		q := queues[*e.Key]
		if q == nil {
			q = c.newQueue(call, &e)
			queues[*e.Key] = q
			order = append(order, q)
		}
		q.addLocked(call, &e)
	}
	for _, q := range order {
		q.sealLocked()
	}
	return order
}

// lastWindow is how long a queue collects calls, at the most, when no more calls are
// coming: the last calls may be on their way to the Collector.
const lastWindow = 100 * time.Millisecond

// Hurry says that no more calls are coming: from now on, the window of a queue ends within
// lastWindow.
func (c *Collector[K, C]) Hurry() { c.hurry() }

// SealAll ends the collecting of all queues, and returns the queues that it ended.
func (c *Collector[K, C]) SealAll() (sealed []*Queue[K, C]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range c.open {
		sealed = append(sealed, q)
	}
	for _, q := range sealed {
		q.sealLocked()
	}
	return sealed
}

// End makes the Collector take no more calls.
func (c *Collector[K, C]) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
}

// Drop takes a call out of its queue: its caller has left, or the call has a line
// of an earlier call. With the last call the queue ends, so that the next call's
// window is its own. A call that is not queued yet never will be.
func (c *Collector[K, C]) Drop(call C) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.describe(call)
	q := e.Slot.queue
	switch {
	case q == nil:
		e.Slot.dropped = true
		return
	case q.calls == nil || q.calls[e.Slot.position].gone:
		return // the batch has taken its calls
	}
	q.calls[e.Slot.position].gone = true
	q.count--
	q.bytes -= e.Bytes
	q.inputs -= e.Inputs
	if q.count == 0 {
		q.sealLocked()
		if q.empty != nil {
			q.empty()
		}
	}
}

// fitsLocked reports whether the call may join without breaking a limit.
func (q *Queue[K, C]) fitsLocked(e *Entry[K, C]) bool {
	l := e.Limits
	return q.count == 0 ||
		(l.Bytes == 0 || q.bytes+e.Bytes <= l.Bytes) && (l.Inputs == 0 || q.inputs+e.Inputs <= l.Inputs)
}

func (q *Queue[K, C]) addLocked(call C, e *Entry[K, C]) {
	*e.Slot = Slot[K, C]{queue: q, position: len(q.calls)}
	q.calls = append(q.calls, waiting[C]{call: call})
	q.count++
	q.bytes += e.Bytes
	q.inputs += e.Inputs
}

// Full is closed when the queue takes no more calls.
func (q *Queue[K, C]) Full() <-chan struct{} { return q.full }

// IsFull reports whether the queue takes no more calls.
func (q *Queue[K, C]) IsFull() bool {
	q.collector.mu.Lock()
	defer q.collector.mu.Unlock()
	return q.sealed
}

// OnEmpty has f called when the last call leaves the queue before Take. f must not
// block.
func (q *Queue[K, C]) OnEmpty(f func()) {
	q.collector.mu.Lock()
	defer q.collector.mu.Unlock()
	if q.empty = f; q.count == 0 {
		f()
	}
}

// Take ends the collecting, takes the calls out of the queue and returns them.
func (q *Queue[K, C]) Take() []C {
	q.collector.mu.Lock()
	defer q.collector.mu.Unlock()
	q.sealLocked()
	calls := q.callsLocked()
	q.calls, q.count = nil, 0
	return calls
}

// Calls returns the calls in the queue.
func (q *Queue[K, C]) Calls() []C {
	q.collector.mu.Lock()
	defer q.collector.mu.Unlock()
	return q.callsLocked()
}

func (q *Queue[K, C]) callsLocked() []C {
	calls := make([]C, 0, q.count)
	for _, w := range q.calls {
		if !w.gone {
			calls = append(calls, w.call)
		}
	}
	return calls
}

// Size is the number of calls in the queue, and of bytes in their lines.
func (q *Queue[K, C]) Size() (calls int, bytes int64) {
	q.collector.mu.Lock()
	defer q.collector.mu.Unlock()
	return q.count, q.bytes
}

// Seal makes the queue take no more calls.
func (q *Queue[K, C]) Seal() {
	q.collector.mu.Lock()
	defer q.collector.mu.Unlock()
	q.sealLocked()
}

// quietTicks is how often, within the time in which no call may come, Wait looks
// whether calls have come.
const quietTicks = 4

// Wait waits until the queue is full, until its window ends, or until no call has come
// for the time quiet, and a quarter of quiet longer at the most. If quiet is not positive,
// or if the queue is patient, the queue waits its whole window. After Hurry the window
// ends soon. Calls may join until the batch takes its calls, unless the queue is full, or
// has become quiet. The error is the cause of ctx.
func (q *Queue[K, C]) Wait(ctx context.Context, window, quiet time.Duration) error {
	end := time.NewTimer(window)
	defer end.Stop()
	var ticks <-chan time.Time
	if quiet >= quietTicks && quiet < window && !q.patient {
		ticker := time.NewTicker(quiet / quietTicks)
		defer ticker.Stop()
		ticks = ticker.C
	}
	hurried := q.collector.hurried
	for seen, unchanged := 0, 0; ; {
		select {
		case <-q.full:
			return nil
		case <-end.C:
			return nil
		case <-hurried:
			hurried = nil
			q.noteEarly()
			end.Reset(min(window-time.Since(q.Opened), lastWindow))
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticks:
			if now := q.added(); now != seen {
				seen, unchanged = now, 0
			} else if unchanged++; unchanged == quietTicks {
				q.sealEarly(window)
				return nil
			}
		}
	}
}

// added is the number of calls that have joined the queue.
func (q *Queue[K, C]) added() int {
	q.collector.mu.Lock()
	defer q.collector.mu.Unlock()
	return len(q.calls)
}

// sealEarly makes the queue take no more calls before its window ends. The queue after
// it, if it opens within a window of the opening of this queue, is patient.
func (q *Queue[K, C]) sealEarly(window time.Duration) {
	c := q.collector
	c.mu.Lock()
	defer c.mu.Unlock()
	c.early[q.Key] = struct{}{}
	q.early = true
	time.AfterFunc(window-time.Since(q.Opened), func() { c.forgetEarly(q.Key) })
	q.sealLocked()
}

func (q *Queue[K, C]) noteEarly() {
	q.collector.mu.Lock()
	defer q.collector.mu.Unlock()
	q.early = true
}

// Early reports whether the queue did not wait its whole window, although it had room:
// no call had come for a while, or no more calls are coming.
func (q *Queue[K, C]) Early() bool {
	q.collector.mu.Lock()
	defer q.collector.mu.Unlock()
	return q.early
}

// forgetEarly makes the next queue with the key impatient again. A key may refer to
// much memory, and is not kept for longer than a window.
func (c *Collector[K, C]) forgetEarly(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.early, k)
}

func (q *Queue[K, C]) sealLocked() {
	if q.sealed {
		return
	}
	q.sealed = true
	close(q.full)
	if q.collector.open[q.Key] == q {
		delete(q.collector.open, q.Key)
	}
}
