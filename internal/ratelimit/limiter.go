// Package ratelimit holds batches back while a provider would refuse more
// enqueued tokens, or more creations of batches within the hour. The package does not use the network.
package ratelimit

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// A Limiter holds back the batches of one account. A batch first waits for
// room for its tokens, in the queue of its group (the batches of one model and
// endpoint), and then for a slot, in the queue of the account: the provider
// allows a number of creations within any hour. Both queues are first come,
// first served. A batch without room holds no slot, since a slot must not wait
// for a model with a full queue at the provider.
//
// A Limiter is safe for concurrent use, and holds the lock for short computations
// only.
type Limiter struct {
	mu     sync.Mutex
	hour   window            // guarded by mu
	queue  []*Grant          // for slots; guarded by mu
	timer  *time.Timer       // runs until the oldest creation is an hour old, while a Grant waits; guarded by mu
	groups map[string]*group // in use, or with a learned limit; guarded by mu
}

// New returns a Limiter that allows a number of creations within any hour; zero
// or less means no limit.
func New(creationsPerHour int) *Limiter {
	return &Limiter{hour: window{limit: creationsPerHour}, groups: make(map[string]*group)}
}

// Acquire waits until group has room for tokens and the hour has a slot, and
// takes both. A single batch of a group always has room.
// Negative tokens count as zero. The caller must call Leave on the Grant. If ctx
// ends first, Acquire takes nothing and returns the cause.
func (l *Limiter) Acquire(ctx context.Context, group string, tokens int64) (*Grant, error) {
	g := &Grant{limiter: l, name: group, tokens: min(max(tokens, 0), maxTokens), ready: make(chan struct{})}
	l.mu.Lock()
	g.group = l.groupLocked(group)
	g.group.queue = append(g.group.queue, g)
	l.admitLocked(g.group)
	ready := g.ready
	l.mu.Unlock()
	if err := wait(ctx, ready); err != nil {
		g.Leave()
		return nil, err
	}
	return g, nil
}

// wait waits until ready is closed, or returns the cause of the end of ctx. If
// both have happened, the end of ctx decides.
func wait(ctx context.Context, ready <-chan struct{}) error {
	select {
	case <-ready:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// TokenLimit returns the learned limit on enqueued tokens of group, 0 if no limit
// is known. The limit is at most a sixteenth of the largest int64: the product of
// the limit and the bytes of a token does not overflow.
func (l *Limiter) TokenLimit(group string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.groups[group]; g != nil {
		return g.current(time.Now())
	}
	return 0
}

// Idle reports whether a new Limiter would behave in the same way: no batch
// waits or holds anything, no creation happened within the last hour and no
// limit is known.
func (l *Limiter) Idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.forgetLocked(now)
	l.hour.expire(now)
	return len(l.groups) == 0 && len(l.queue) == 0 && l.hour.held == 0 && len(l.hour.used) == 0
}

// groupLocked returns the group called name, and makes the group if necessary. The caller holds mu.
func (l *Limiter) groupLocked(name string) *group {
	g := l.groups[name]
	if g == nil {
		g = &group{}
		l.groups[name] = g
	}
	return g
}

// forgetLocked deletes the idle groups. The caller holds mu.
func (l *Limiter) forgetLocked(now time.Time) {
	for name, g := range l.groups {
		if g.idle(now) {
			delete(l.groups, name)
		}
	}
}

// admitLocked moves batches from the queue of gr to the queue for slots, as long
// as the group has room. The caller holds mu.
func (l *Limiter) admitLocked(gr *group) {
	now := time.Now()
	for len(gr.queue) > 0 && gr.admits(gr.queue[0].tokens, now) {
		head := gr.queue[0]
		gr.queue = gr.queue[1:]
		gr.inside++
		gr.used += head.tokens
		head.room = true
		l.queue = append(l.queue, head)
	}
	l.watchGroupLocked(gr, now)
	l.serveLocked()
}

// watchGroupLocked starts the timer that admits waiting batches when the limit
// of gr has doubled. The caller holds mu.
func (l *Limiter) watchGroupLocked(gr *group, now time.Time) {
	gr.stop()
	if delay, ok := gr.grows(now); ok && len(gr.queue) > 0 {
		gr.timer = time.AfterFunc(delay, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.admitLocked(gr)
		})
	}
}

// serveLocked hands the free slots to the head of the queue. The caller holds
// mu.
func (l *Limiter) serveLocked() {
	now := time.Now()
	for len(l.queue) > 0 && !l.hour.full(now) {
		head := l.queue[0]
		l.queue = l.queue[1:]
		l.hour.held++
		head.slot = slotHeld
		close(head.ready)
	}
	l.watchHourLocked(now)
}

// watchHourLocked starts the timer that serves the queue when the oldest
// creation is an hour old. The caller holds mu.
func (l *Limiter) watchHourLocked(now time.Time) {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if delay, ok := l.hour.wait(now); ok && len(l.queue) > 0 {
		l.timer = time.AfterFunc(delay, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.serveLocked()
		})
	}
}

// A slotState says what became of the slot of a Grant.
type slotState int

const (
	slotNone slotState = iota // waiting for a slot, or the slot was returned
	slotHeld
	slotUsed
)

// A Grant is the room and the slot of one batch. A Grant is safe for concurrent
// use, except for two calls of NextSlot at a time.
type Grant struct {
	limiter *Limiter
	name    string
	group   *group
	tokens  int64

	// Guarded by the lock of the Limiter.
	room  bool // the tokens count in the group
	left  bool // Leave was called
	slot  slotState
	ready chan struct{} // closed when the slot is held, or the Grant has left
}

// errLeft is returned by NextSlot of a Grant that was given up.
var errLeft = errors.New("ratelimit: the batch has left the limiter")

// returnLocked gives a slot back for which no create was sent: the next batch in the
// queue gets the slot at once.
func (g *Grant) returnLocked() {
	if g.slot == slotHeld {
		g.slot = slotNone
		g.limiter.hour.held--
		g.limiter.serveLocked()
	}
}

// Used reports that the create is being sent: the slot is used and counts for
// an hour from now. Used does nothing without a slot.
func (g *Grant) Used() {
	g.limiter.mu.Lock()
	defer g.limiter.mu.Unlock()
	if g.slot == slotHeld {
		g.slot = slotUsed
		g.limiter.hour.held--
		g.limiter.hour.spend(time.Now())
		g.limiter.watchHourLocked(time.Now())
	}
}

// NextSlot waits for another slot, for another create of the same batch, at the
// end of the queue of the account. NextSlot returns at once if the Grant still
// holds a slot. If ctx ends first, NextSlot returns the cause; the Grant keeps
// its room.
func (g *Grant) NextSlot(ctx context.Context) error {
	ready, err := g.enqueue()
	if err != nil {
		return err
	}
	if err := wait(ctx, ready); err != nil {
		g.stopWaiting()
		return err
	}
	g.limiter.mu.Lock()
	defer g.limiter.mu.Unlock()
	if g.left {
		return errLeft
	}
	return nil
}

// enqueue enters the queue for slots, unless the Grant holds a slot.
func (g *Grant) enqueue() (ready <-chan struct{}, err error) {
	l := g.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if g.left {
		return nil, errLeft
	}
	if g.slot != slotHeld {
		g.slot, g.ready = slotNone, make(chan struct{})
		l.queue = append(l.queue, g)
		l.serveLocked()
	}
	return g.ready, nil
}

// stopWaiting leaves the queue for slots, and returns a slot of the last moment.
func (g *Grant) stopWaiting() {
	l := g.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	g.dequeueLocked()
	g.returnLocked()
}

func (g *Grant) dequeueLocked() {
	l := g.limiter
	if i := slices.Index(l.queue, g); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
		close(g.ready)
		l.watchHourLocked(time.Now())
	}
}

// Refused records a refusal by the provider for too many enqueued tokens. named is
// the limit in the provider's message; zero or less means no named limit. Refused
// returns whether the batch was the only batch of its group: then batches of other
// programs fill the provider's queue, or the tokens are underestimated here. The caller
// calls Refused before Leave.
func (g *Grant) Refused(named int64) (alone bool) {
	l := g.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	gr := l.groupLocked(g.name)
	others, otherTokens := gr.inside, gr.used
	if g.room {
		others, otherTokens = others-1, otherTokens-g.tokens
	}
	now := time.Now()
	gr.learn(named, g.tokens, otherTokens, others == 0, now)
	l.forgetLocked(now)
	l.admitLocked(gr)
	return others == 0
}

// Leave frees the room of the tokens, and the slot if no create was sent.
// Further calls of Leave do nothing.
func (g *Grant) Leave() {
	l := g.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if g.left {
		return
	}
	g.left = true
	g.dequeueLocked()
	g.returnLocked()
	g.leaveGroupLocked()
}

// leaveGroupLocked frees the room of the tokens, or the place in the queue for
// room.
func (g *Grant) leaveGroupLocked() {
	gr := g.group
	if g.room {
		g.room = false
		gr.inside--
		gr.used -= g.tokens
	} else {
		gr.remove(g)
	}
	g.limiter.admitLocked(gr)
	if gr.idle(time.Now()) && g.limiter.groups[g.name] == gr {
		delete(g.limiter.groups, g.name)
	}
}
