package ratelimit

import (
	"math"
	"slices"
	"time"
)

const (
	// maxLimit caps a learned limit: the product of the limit and the bytes of a
	// token must not overflow.
	maxLimit = math.MaxInt64 / 16

	// maxTokens caps the tokens of one batch, far above the tokens of the
	// largest input file: the sum over all batches must not overflow.
	maxTokens = 1 << 40

	// minLearned is below the limit of every provider. The refusal of a
	// single batch teaches no lower limit, unless the provider names the limit.
	minLearned = 20_000

	// memory is how many hours a learned limit lasts.
	memory = 30
)

// A group holds the batches that share a limit on enqueued tokens. The group
// learns the limit from refusals: a provider does not announce the limit. The
// caller provides the lock.
type group struct {
	limit   int64 // 0: none learned
	learned time.Time
	used    int64    // tokens of the batches inside
	inside  int      // batches with room
	queue   []*Grant // batches waiting for room
	timer   *time.Timer
}

// current returns the present limit, 0 without a limit. The limit doubles
// with every hour without a refusal, since the provider's
// queue may have emptied.
func (g *group) current(now time.Time) int64 {
	if g.limit == 0 {
		return 0
	}
	hours := int(now.Sub(g.learned) / time.Hour)
	if hours > memory {
		return 0
	}
	if g.limit > maxLimit>>hours {
		return maxLimit
	}
	return g.limit << hours
}

// admits reports whether the group has room for tokens. A single batch
// always has room: only the provider can tell whether the limit still holds.
func (g *group) admits(tokens int64, now time.Time) bool {
	limit := g.current(now)
	return limit == 0 || g.inside == 0 || g.used+tokens <= limit
}

// grows returns the time until the limit doubles; false without a limit.
func (g *group) grows(now time.Time) (time.Duration, bool) {
	if g.current(now) == 0 {
		return 0, false
	}
	return time.Hour - now.Sub(g.learned)%time.Hour, true
}

// learn sets the limit after the refusal of a batch with tokens, beside other
// batches with otherTokens. A named limit of zero or less means
// no named limit.
func (g *group) learn(named, tokens, otherTokens int64, alone bool, now time.Time) {
	learned := otherTokens + tokens - 1
	if alone {
		learned = max(tokens*3/4, minLearned)
	}
	if named > 0 {
		learned = named
	}
	g.limit, g.learned = min(max(learned, 1), maxLimit), now
}

// remove takes a waiting Grant out of the queue.
func (g *group) remove(grant *Grant) {
	if i := slices.Index(g.queue, grant); i >= 0 {
		g.queue = slices.Delete(g.queue, i, i+1)
	}
}

// idle reports whether the group can be forgotten.
func (g *group) idle(now time.Time) bool {
	return g.inside == 0 && len(g.queue) == 0 && g.current(now) == 0
}

// stop ends the timer of the group.
func (g *group) stop() {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
}
