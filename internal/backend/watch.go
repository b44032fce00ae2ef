package backend

import (
	"context"
	"slices"
	"time"
)

const (
	// trustAfter is how many batches that ended in succession must have been announced
	// by Wake before polls become rare.
	trustAfter = 3

	// maxEarly is how many ids of unknown batches a StatusCache remembers: the
	// provider may announce the end of a batch before the answer to its create arrives.
	maxEarly = 16
)

// A Watch is the polling of one batch. Only the goroutine that polls the batch may use
// a Watch.
type Watch struct {
	cache  *StatusCache
	handle Handle
	woken  chan struct{} // has room for one signal

	// The mutex of cache guards these fields.
	waited    bool // Interval was called before the end, so that the batch had not ended when the watch began
	announced bool // Wake was called for the batch
	ended     bool // Look returned the end of the batch
}

// Watch begins to watch a batch: the batch is included in the requests for all batches,
// and Wake knows the batch, until Done is called.
func (c *StatusCache) Watch(h Handle) *Watch {
	w := &Watch{cache: c, handle: h, woken: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watches[w] = struct{}{}
	if slices.Contains(c.early, h.BatchID) {
		w.wakeLocked()
	}
	return w
}

// Done ends the watch. Done must be called once.
func (w *Watch) Done() {
	c := w.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.watches, w)
	if w.ended && (w.waited || w.announced) {
		c.ended = append(c.ended, w)
		c.ended = c.ended[max(0, len(c.ended)-trustAfter):]
	}
}

// Wake says that the provider has announced the end of a batch. A batch that is watched
// is polled at once. Wake reports whether the batch is watched.
func (c *StatusCache) Wake(batchID string) (watched bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.watches {
		if w.handle.BatchID == batchID {
			w.wakeLocked()
			watched = true
		}
	}
	for _, w := range c.ended { // a poll came before the announcement
		w.announced = w.announced || w.handle.BatchID == batchID
	}
	if !watched {
		c.early = append(c.early, batchID)
		c.early = c.early[max(0, len(c.early)-maxEarly):]
	}
	return watched
}

// wakeLocked requires the lock of the StatusCache.
func (w *Watch) wakeLocked() {
	w.announced = true
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

// Woken receives when the batch is to be polled at once.
func (w *Watch) Woken() <-chan struct{} { return w.woken }

// Soon reports whether so few batches run that a young batch may be polled sooner. Of more
// batches, one request asks for all.
func (w *Watch) Soon() bool {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	return len(w.cache.watches) < manyBatches
}

// Interval returns the time until the next poll of the batch, where normal is the time
// without webhooks. The time is longer while each of the last trustAfter batches that
// ended was announced. The end of a batch that was announced may be visible a little
// later, so that the batch is polled as often as normally.
func (w *Watch) Interval(normal time.Duration) time.Duration {
	c := w.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	w.waited = w.waited || !w.ended
	unannounced := func(w *Watch) bool { return !w.announced }
	if w.announced || len(c.ended) < trustAfter || slices.ContainsFunc(c.ended, unannounced) {
		return normal
	}
	return max(normal, c.slowest)
}

// Look returns the state of the batch, at most maxAge old. The state of a batch that
// was announced is new. Look asks for a batch alone if the provider's list does not show
// the batch. The error is that of Backend.Status.
func (w *Watch) Look(ctx context.Context, b Backend, maxAge time.Duration) (s Status, err error) {
	if w.takeAnnounced() {
		s, err = lookAlone(ctx, b, w.handle)
	} else {
		s, err = w.cache.look(ctx, b, w.handle, maxAge)
	}
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	w.ended = w.ended || err == nil && s.Phase == Ended
	return s, err
}

// takeAnnounced reports whether the batch was announced. The poll that follows is the
// one that Woken asked for.
func (w *Watch) takeAnnounced() bool {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	select {
	case <-w.woken:
	default:
	}
	return w.announced
}
