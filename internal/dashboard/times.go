package dashboard

import (
	"cmp"
	"slices"

	"github.com/autobatcher/autobatcher"
)

// A times is how long batches, or calls at the flex tier, with calls of a model took.
type times struct {
	Model    string `json:"model"`
	Provider string `json:"provider"`
	Window   string `json:"window"` // completion window; "flex" for calls at the flex tier
	Count    int    `json:"count"`
	Median   int64  `json:"median"` // milliseconds
	P90      int64  `json:"p90"`    // milliseconds
}

// maxTimes bounds the number of times that the page shows: those with the most batches.
const maxTimes = 50

func newTimes(all []autobatcher.TurnaroundStats) []times {
	shown := make([]times, 0, len(all))
	for _, t := range all {
		shown = append(shown, times{clip(t.Model), t.Provider, clip(t.Window), t.Count, t.Median.Milliseconds(), t.P90.Milliseconds()})
	}
	slices.SortStableFunc(shown, func(x, y times) int { return cmp.Compare(y.Count, x.Count) })
	return shown[:min(len(shown), maxTimes)]
}
