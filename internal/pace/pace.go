// Package pace holds back what a provider would refuse for coming too fast or
// being too much: batches created within an hour, tokens enqueued at a time.
// Nothing in it knows what it counts, or touches the network.
package pace

import (
	"context"
	"slices"
	"sync"
	"time"
)

// An Hourly allows a number of events in any hour. It is safe for concurrent
// use.
type Hourly struct {
	mu    sync.Mutex
	limit int
	times []time.Time // of the last events, oldest first; at most limit
}

// NewHourly returns an Hourly of limit events; zero or less means no limit.
func NewHourly(limit int) *Hourly { return &Hourly{limit: limit} }

// Take counts an event that happens now and returns true, or returns false and
// how long to wait where there were too many within the last hour.
func (h *Hourly) Take() (wait time.Duration, ok bool) {
	if h.limit <= 0 {
		return 0, true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	for len(h.times) > 0 && now.Sub(h.times[0]) >= time.Hour {
		h.times = h.times[1:]
	}
	if len(h.times) >= h.limit {
		return time.Hour - now.Sub(h.times[0]), false
	}
	h.times = append(h.times, now)
	return 0, true
}

// Wait waits until an event may happen, and counts it. It returns the cause of
// ctx's end if that comes first.
func (h *Hourly) Wait(ctx context.Context) error {
	for {
		wait, ok := h.Take()
		if ok {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// A Gate lets batches in, first come, first served, as long as their tokens
// together stay within a limit that the provider does not tell in advance, so
// it is learned: the gate is wide open until the first refusal. It is safe for
// concurrent use.
type Gate struct {
	mu      sync.Mutex
	limit   int64 // 0: none learned
	learned time.Time
	used    int64
	queue   []*ticket
}

// A ticket is a place in the queue; in is closed when its batch may enter.
type ticket struct {
	tokens int64
	in     chan struct{}
}

// NewGate returns a Gate without a limit.
func NewGate() *Gate { return &Gate{} }

// Enter waits until there is room for tokens, and takes it. A lone batch is
// always let in, for who else could tell whether the limit still holds. It
// returns the cause of ctx's end if that comes first.
func (g *Gate) Enter(ctx context.Context, tokens int64) error {
	t := &ticket{tokens: tokens, in: make(chan struct{})}
	g.mu.Lock()
	g.queue = append(g.queue, t)
	g.admit()
	g.mu.Unlock()
	select {
	case <-t.in:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.queue, t); i >= 0 {
		g.queue = slices.Delete(g.queue, i, i+1)
	} else {
		g.used -= tokens // it was let in this very moment
	}
	g.admit()
	return context.Cause(ctx)
}

// admit lets those in for whom there is room, in order. The caller holds mu.
func (g *Gate) admit() {
	limit := g.current()
	for len(g.queue) > 0 {
		head := g.queue[0]
		if limit > 0 && g.used > 0 && g.used+head.tokens > limit {
			return
		}
		g.used += head.tokens
		g.queue = g.queue[1:]
		close(head.in)
	}
}

// Leave gives back the room that tokens took.
func (g *Gate) Leave(tokens int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used -= tokens
	g.admit()
}

// fewTokens is less than any provider's limit; a gate does not learn a lower one.
const fewTokens = 20_000

// Refused tells the gate that a batch of tokens, which is in, was too much.
// told is the limit the provider named, 0 where it named none. It reports
// whether the batch was alone: then others, whom nobody here knows, fill the
// provider's queue, or tokens are counted too low here.
func (g *Gate) Refused(tokens, told int64) (alone bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	alone = g.used <= tokens
	learned := g.used - 1
	if alone {
		learned = max(tokens*3/4, fewTokens)
	}
	if told > 0 {
		learned = told
	}
	g.limit, g.learned = max(learned, 1), time.Now()
	g.admit()
	return alone
}

// Limit is what was learned, 0 without any. It doubles with every hour in which
// nothing was refused: what filled the provider's queue may have gone.
func (g *Gate) Limit() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.current()
}

func (g *Gate) current() int64 {
	if g.limit == 0 {
		return 0
	}
	hours := int(time.Since(g.learned) / time.Hour)
	if hours > 30 {
		return 0 // nothing of it is left
	}
	return g.limit << hours
}

// A Set is one value per name. It is safe for concurrent use, and bounded:
// beyond a thousand names it forgets all of them.
type Set[T any] struct {
	mu     sync.Mutex
	values map[string]T
}

const maxNames = 1000

// Of returns the value of that name, which is made when first asked for.
func (s *Set[T]) Of(name string, first func() T) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.values[name]
	if !ok {
		if s.values == nil || len(s.values) >= maxNames {
			s.values = map[string]T{}
		}
		v = first()
		s.values[name] = v
	}
	return v
}
