package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// A batchList knows the batches of this process from their events. The zero value
// is ready to use. All methods may be called concurrently.
type batchList struct {
	mu        sync.Mutex
	submitted int64
	resumed   int64 // batches of an earlier process
	flex      flexCalls
	order     []string // ids, in the order of their first events
	last      map[string]autobatcher.Event
	took      []time.Duration // by the last maxTook completed batches
}

// flexCalls counts the calls at the provider's flex tier, whose events are those of
// batches of one call.
type flexCalls struct {
	sent    int64
	running map[string]bool // by the id at the provider
}

func (f *flexCalls) onEvent(e autobatcher.Event) {
	switch e.Name {
	case autobatcher.BatchSubmitted, autobatcher.BatchResumed:
		if e.Name == autobatcher.BatchSubmitted {
			f.sent++
		}
		if f.running == nil {
			f.running = map[string]bool{}
		}
		f.running[e.BatchID] = true
	case autobatcher.BatchCompleted, autobatcher.BatchTerminal, autobatcher.BatchCancelledUpstream:
		delete(f.running, e.BatchID)
	}
}

// maxTook is the number of batches from which the duration of further batches is
// estimated.
const maxTook = 100

// onEvent records an event.
func (l *batchList) onEvent(e autobatcher.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.CompletionWindow == provider.FlexWindow || l.flex.running[e.BatchID] {
		l.flex.onEvent(e)
		return
	}
	switch e.Name {
	case autobatcher.BatchSubmitted:
		l.submitted++
	case autobatcher.BatchResumed:
		l.resumed++
	}
	if e.BatchID == "" || e.Name == autobatcher.CallEscalated || e.Name == autobatcher.BatchCost {
		return // says nothing about the state of the batch
	}
	if l.last == nil {
		l.last = map[string]autobatcher.Event{}
	}
	if _, known := l.last[e.BatchID]; !known {
		l.order = append(l.order, e.BatchID)
	}
	l.last[e.BatchID] = e
	if e.Name == autobatcher.BatchCompleted {
		l.learnLocked(e.Elapsed)
	}
}

// learn records how long a completed batch of an earlier process took.
func (l *batchList) learn(took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.learnLocked(took)
}

// learnLocked records how long a completed batch took. The caller holds l.mu.
func (l *batchList) learnLocked(took time.Duration) {
	l.took = append(l.took, took)
	l.took = l.took[max(len(l.took)-maxTook, 0):]
}

// learnTimeout limits how long the start of a command waits for the times of earlier
// batches.
const learnTimeout = 2 * time.Second

// learn reads from the journal how long the completed batches of earlier processes took, for
// the estimates of the progress and of the page: batches of the same API and with the
// same completion window.
func (b *backend) learn(ctx context.Context, upstream, window string) {
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	all, err := b.journal.Batches(ctx, journal.Filter{})
	if err != nil {
		b.log.Debug("the times of earlier batches are not known", "error", err)
		return
	}
	slices.SortFunc(all, func(x, y journal.Batch) int { return x.Ended.Compare(y.Ended) })
	for _, known := range all {
		if took := known.Ended.Sub(known.Created); known.Status == "completed" && known.Upstream == upstream && known.Window == window && took > 0 {
			b.batches.learn(took)
			b.page.Learn(known.Endpoint, took)
		}
	}
}

// left estimates how long the running batches will still take: as long as half of the
// earlier batches took or, without earlier batches, as the provider's counts say. 0: not
// known.
func (l *batchList) left(now time.Time) (longest time.Duration) {
	ids := l.running()
	l.mu.Lock()
	defer l.mu.Unlock()
	took := slices.Sorted(slices.Values(l.took))
	for _, id := range ids {
		e := l.last[id]
		elapsed := e.Elapsed + now.Sub(e.Time)
		done := e.Counts.Completed + e.Counts.Failed
		switch {
		case len(took) > 0:
			longest = max(longest, took[len(took)/2]-elapsed)
		case done > 0:
			rest := float64(e.Elapsed) * float64(e.Counts.Total-done) / float64(done)
			longest = max(longest, time.Duration(rest)-now.Sub(e.Time))
		}
	}
	return longest
}

// isFlex reports whether a running batch is a call at the flex tier.
func (l *batchList) isFlex(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flex.running[id]
}

// flexCount returns how many calls this process has sent at the flex tier, and how
// many of the calls, and of those of an earlier process, still run.
func (l *batchList) flexCount() (sent, running int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flex.sent, int64(len(l.flex.running))
}

// count returns how many batches this process has submitted, without calls at the flex
// tier.
func (l *batchList) count() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.submitted
}

// resumedCount returns how many batches of an earlier process this process watches or
// has watched, without calls at the flex tier.
func (l *batchList) resumedCount() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.resumed
}

// running returns the ids of the batches that have neither ended nor been cancelled.
// A batch whose cancellation is not confirmed is among them.
func (l *batchList) running() []string {
	return l.ids(autobatcher.BatchSubmitted, autobatcher.BatchResumed, autobatcher.BatchProgress,
		autobatcher.BatchCancelRequested, autobatcher.BatchCancelFailed)
}

// untouched returns those of the running batches that nobody tried to cancel.
func (l *batchList) untouched() []string {
	return l.ids(autobatcher.BatchSubmitted, autobatcher.BatchResumed, autobatcher.BatchProgress)
}

// cancelled returns the ids of the batches that the provider agreed to cancel.
func (l *batchList) cancelled() []string { return l.ids(autobatcher.BatchCancelledUpstream) }

// done returns how many lines of the running batches the provider reports as
// finished.
func (l *batchList) done() (n int64) {
	ids := l.running()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		n += int64(l.last[id].Counts.Completed + l.last[id].Counts.Failed)
	}
	return n
}

// ids returns the ids of the batches whose last event has one of the names.
func (l *batchList) ids(names ...autobatcher.EventName) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []string
	for _, id := range l.order {
		if slices.Contains(names, l.last[id].Name) {
			ids = append(ids, id)
		}
	}
	return ids
}

// remains describes the batches that the end of run has cancelled or left running,
// and what the same command does about their calls; "" without such batches.
func (b *backend) remains(keep bool) string {
	var text strings.Builder
	if cancelled := b.batches.cancelled(); len(cancelled) > 0 {
		fmt.Fprintf(&text, "autobatcher: cancelled %s. Lines that had finished are paid for. The same command makes the calls again, in new batches.",
			listBatches(cancelled))
		if b.journal != nil {
			text.WriteString(" With --keep-active-batches-on-close, the batches run on, and the same command picks up the results.")
		}
		text.WriteByte('\n')
	}
	if _, flex := b.batches.flexCount(); flex > 0 && b.sandbox == nil {
		fmt.Fprintf(&text, "autobatcher: %s at the flex tier may still run and cost.", count(flex, "call", "calls"))
		if b.journal != nil {
			text.WriteString(" The same command picks up the answers of calls that run in the background.")
		}
		text.WriteByte('\n')
	}
	running := b.runningBatches()
	if kept := b.batches.untouched(); !keep && b.journal != nil && len(running) > 0 && len(kept) > 0 {
		running = slices.DeleteFunc(running, func(id string) bool { return slices.Contains(kept, id) })
		fmt.Fprintf(&text, "autobatcher: left running: %s with calls in the background. Their ids get the answers from any process that has the same journal and key.\n", listBatches(kept))
	}
	switch {
	case len(running) == 0:
	case keep && b.journal != nil:
		fmt.Fprintf(&text, "autobatcher: left running, and paid for: %s. The same command picks up the results, instead of paying again.\n", listBatches(running))
	case keep:
		fmt.Fprintf(&text, "autobatcher: left running, and paid for: %s. Without a journal, the same command makes the calls again; the provider's list of batches has the results.\n", listBatches(running))
	default:
		fmt.Fprintf(&text, "autobatcher: could not cancel %s. The provider's list of batches says whether they still run and cost.\n", listBatches(running))
	}
	return text.String()
}

// listBatches counts batches and lists the ids.
func listBatches(ids []string) string {
	return fmt.Sprintf("%s (%s)", count(int64(len(ids)), "batch", "batches"), printableLine(strings.Join(ids, ", ")))
}
