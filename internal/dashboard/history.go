package dashboard

import (
	"time"

	"github.com/autobatcher/autobatcher"
)

// A history is what the chart is drawn from: a sample each step, for as long
// as there is room.
type history struct {
	step     time.Duration
	next     time.Time // when the next sample is due
	total    int64     // calls answered by the last sample
	times    []int64   // Unix milliseconds
	waiting  []int     // calls queued or running at that time
	answered []int64   // calls answered since the sample before
}

// A chart is a history as the page reads it.
type chart struct {
	Step     int64   `json:"step"`  // milliseconds
	Total    int64   `json:"total"` // calls answered by the last sample, since the start
	Times    []int64 `json:"times"`
	Waiting  []int   `json:"waiting"`
	Answered []int64 `json:"answered"`
}

// due reports whether it is time for a sample.
func (h *history) due(now time.Time) bool { return !now.Before(h.next) }

// add takes a sample. After a pause, as when a laptop slept, it goes on from
// now.
func (h *history) add(now time.Time, stats autobatcher.Stats) {
	if h.next = h.next.Add(h.step); !h.next.After(now) {
		h.next = now.Add(h.step)
	}
	h.times = push(h.times, now.UnixMilli())
	h.waiting = push(h.waiting, stats.Queued+stats.Running)
	h.answered = push(h.answered, stats.Answered-h.total)
	h.total = stats.Answered
}

func (h *history) chart() chart {
	return chart{h.step.Milliseconds(), h.total, h.times, h.waiting, h.answered}
}

// push appends to a list that holds one history's worth, and the one point
// before that the line comes from.
func push[T any](list []T, value T) []T {
	if len(list) > points {
		copy(list, list[1:])
		list = list[:points]
	}
	return append(list, value)
}
