package backend

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// manyBatches is the number of batches for which a single request is cheaper
	// than a request for each batch.
	manyBatches = 10

	// listPause is how long a StatusCache asks for each batch alone after a request
	// for all batches failed.
	listPause = 10 * time.Minute

	// minListTime is the least time that a request for all batches may take.
	minListTime = 10 * time.Second
)

// A StatusCache asks for the states of the batches of an account. With many
// batches, a StatusCache asks for all states at once and shares the answer. A
// StatusCache is safe for concurrent use.
type StatusCache struct {
	turn chan struct{} // holds a token while no request for all batches is under way

	// The holder of the token of turn owns these fields.
	seen   map[string]Status // by batch id
	at     time.Time         // when seen was read
	failed time.Time         // when the last request for all batches failed

	slowest time.Duration // the interval of polls while webhooks arrive; 0: webhooks slow no polls

	mu      sync.Mutex
	watches map[*Watch]struct{}
	ended   []*Watch // the last trustAfter watches whose batches have ended, the newest last
	early   []string // ids of unknown batches that Wake was called with, the newest last
}

// NewStatusCache returns an empty StatusCache. While webhooks arrive, batches are polled
// only every slowest; with 0 as often as without webhooks.
func NewStatusCache(slowest time.Duration) *StatusCache {
	c := &StatusCache{turn: make(chan struct{}, 1), slowest: slowest, watches: make(map[*Watch]struct{})}
	c.turn <- struct{}{}
	return c
}

// handles returns the batches that are watched, each once.
func (c *StatusCache) handles() []Handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	hs := make(map[string]Handle, len(c.watches))
	for w := range c.watches {
		hs[w.handle.BatchID] = w.handle
	}
	return slices.Collect(maps.Values(hs))
}

// look returns the state of a batch, at most maxAge old. look asks for a batch
// alone if the provider's list does not show the batch. The error is that of
// Backend.Status.
func (c *StatusCache) look(ctx context.Context, b Backend, h Handle, maxAge time.Duration) (Status, error) {
	if s, ok := c.shared(ctx, b, h, maxAge); ok {
		return s, nil
	}
	return lookAlone(ctx, b, h)
}

// lookAlone asks for the state of one batch.
func lookAlone(ctx context.Context, b Backend, h Handle) (Status, error) {
	states, err := b.Status(ctx, []Handle{h})
	if err != nil {
		return Status{}, err
	}
	return states[0], states[0].Err
}

// shared returns the state of a batch from a fresh answer for all batches, and
// asks for all batches if no answer is fresh. It reports false if the caller has
// to ask for the batch alone.
func (c *StatusCache) shared(ctx context.Context, b Backend, h Handle, maxAge time.Duration) (Status, bool) {
	ctx, cancel := context.WithTimeout(ctx, max(maxAge, minListTime))
	defer cancel()
	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-ctx.Done():
		return Status{}, false
	}
	if (c.seen == nil || time.Since(c.at) >= maxAge) && !c.refresh(ctx, b) {
		return Status{}, false
	}
	s, ok := c.seen[h.BatchID]
	return s, ok
}

// refresh asks for all watched batches. Its caller holds the token of turn.
func (c *StatusCache) refresh(ctx context.Context, b Backend) bool {
	hs := c.handles()
	if len(hs) < manyBatches || time.Since(c.failed) < listPause {
		return false
	}
	states, err := b.Status(ctx, hs)
	if err != nil {
		c.failed = time.Now()
		return false
	}
	c.at, c.seen = time.Now(), make(map[string]Status, len(states))
	for _, s := range states {
		if s.Err == nil {
			c.seen[s.Handle.BatchID] = s
		}
	}
	return true
}
