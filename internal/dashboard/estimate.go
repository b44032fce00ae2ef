package dashboard

import (
	"fmt"
	"slices"
	"time"

	"github.com/autobatcher/autobatcher/provider"
)

const (
	// leastShare is the share of lines that must end while the page looks, before
	// the counts say when the batch will end.
	leastShare = 0.05

	// maxTurnarounds is the number of completed batches whose median is the estimate
	// for a batch without progress.
	maxTurnarounds = 20
)

// observe notes when the counts of a batch began to change, and estimates the end
// from the counts. The first counts are compared with the creation of the batch.
// Estimates change with events only, so that a page without news is not sent again.
func (t *record) observe(now time.Time) {
	if t.Finished || t.Status != "in_progress" {
		t.Estimate, t.Basis = 0, ""
		return
	}
	from, fromDone := t.began, t.beganDone
	if t.began.IsZero() {
		from, fromDone = time.UnixMilli(t.Created), 0
		t.began, t.beganDone = now, t.done()
	}
	done := t.done() - fromDone
	if float64(done) < max(1, leastShare*float64(t.Total)) || !now.After(from) {
		return
	}
	rest := float64(max(t.Total-t.done(), 0)) / float64(done) * float64(now.Sub(from))
	t.Estimate, t.Basis = t.withinWindow(float64(now.UnixMilli())+rest/float64(time.Millisecond)), "from the progress so far"
}

// withinWindow limits an estimate to the time when the provider ends the batch.
func (t *batch) withinWindow(at float64) int64 {
	limit := t.Created + provider.WindowLength(t.Window).Milliseconds()
	if at > float64(limit) {
		return limit
	}
	return int64(at)
}

// estimated returns the batch with an estimate from the turnaround of completed
// batches, unless the progress says more, or the batch already takes longer.
func (b *board) estimated(t batch, now time.Time) batch {
	if t.Finished || t.Estimate > 0 || t.Status == "cancelling" {
		return t
	}
	median, n := b.turnaround(t.Endpoint)
	if at := t.Created + median; n > 0 && at > now.UnixMilli() {
		t.Estimate, t.Basis = t.withinWindow(float64(at)), fmt.Sprintf("median of the last %d completed", n)
		if n == 1 {
			t.Basis = "as long as the last completed"
		}
	}
	return t
}

// turnaround returns the median time of the latest completed batches of an endpoint,
// in milliseconds, and the number of these batches.
func (b *board) turnaround(endpoint string) (median int64, n int) {
	times := b.turnarounds[endpoint]
	if len(times) == 0 {
		return 0, 0
	}
	return slices.Sorted(slices.Values(times))[len(times)/2], len(times)
}

// noteTurnaround records the time that a completed batch took, in milliseconds. Batches
// of few endpoints are recorded: the names of endpoints come from callers.
func (b *board) noteTurnaround(endpoint string, took int64) {
	times, known := b.turnarounds[endpoint]
	if took <= 0 || !known && len(b.turnarounds) >= maxModels {
		return
	}
	if len(times) == maxTurnarounds {
		times = slices.Delete(times, 0, 1)
	}
	b.turnarounds[endpoint] = append(times, took)
}
