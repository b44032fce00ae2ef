package dashboard

import (
	"time"

	"github.com/autobatcher/autobatcher"
)

// A history holds the latest samples, at most historySamples+1 samples.
type history struct {
	step     time.Duration // interval between samples
	next     time.Time     // when the next sample is due
	total    int64         // calls answered until the last sample
	times    []int64       // in Unix milliseconds
	waiting  []int         // calls queued or running at the time of the sample
	answered []int64       // calls answered since the previous sample
}

// A chart is a history in the form that the page reads.
type chart struct {
	Step     int64   `json:"step"`  // in milliseconds
	Total    int64   `json:"total"` // calls answered until the last sample
	Times    []int64 `json:"times"`
	Waiting  []int   `json:"waiting"`
	Answered []int64 `json:"answered"`
}

// due reports whether the next sample is due at now.
func (h *history) due(now time.Time) bool { return !now.Before(h.next) }

// add takes a sample. After a pause of the process, for example the sleep of a
// laptop, add does not make up for missed samples.
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

// push appends to a list and removes the oldest value of a full list. A full list
// has one value more than historySamples, for the start of the chart's line.
func push[T any](list []T, value T) []T {
	if len(list) > historySamples {
		copy(list, list[1:])
		list = list[:historySamples]
	}
	return append(list, value)
}
