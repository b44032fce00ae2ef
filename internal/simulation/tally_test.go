package simulation

import (
	"encoding/json"
	"maps"
	"sync"
)

// A tally counts what happened in simulations. The zero tally is ready for use.
type tally struct {
	mu sync.Mutex
	n  map[count]int64
}

// A count names a number in a tally.
type count string

const (
	countSeeds      count = "schedules"
	countSeconds    count = "simulated seconds"
	countCalls      count = "calls"
	countTries      count = "tries"
	countAnswered   count = "calls answered"
	countEscalated  count = "calls sent in real time"
	countClimbed    count = "calls that climbed to the flex tier"
	countFlushes    count = "flushes"
	countErrored    count = "calls that ended in an error"
	countGaveUp     count = "calls given up"
	countStarts     count = "processes started"
	countCrashes    count = "processes crashed"
	countCloses     count = "processes closed"
	countShutdowns  count = "processes shut down"
	countBatches    count = "batches"
	countExecuted   count = "lines executed"
	countTakenOver  count = "calls answered by another process's line"
	countCancelled  count = "lines of cancelled batches"
	countSpoilt     count = "lines lost by the provider"
	countDuplicates count = "lines paid for twice"
	countLosses     count = "paid results lost"
	countBackground count = "calls in the background"
	countByID       count = "answers got by an id"
	countWoken      count = "polls asked for by webhooks"
)

func (t *tally) add(what count, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = make(map[count]int64)
	}
	t.n[what] += n
}

func (t *tally) addTo(sum *tally) {
	t.mu.Lock()
	n := maps.Clone(t.n)
	t.mu.Unlock()
	for what, n := range n {
		sum.add(what, n)
	}
}

// String is the tally as a JSON object. The machine adds tallies up.
func (t *tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text, _ := json.Marshal(t.n) // a map of numbers has no unsupported value
	return string(text)
}
