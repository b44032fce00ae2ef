package autobatcher

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/retry"
)

const (
	// closeGrace is how long Close waits for creates that are under way and for
	// updates of the journal.
	closeGrace = 5 * time.Second

	// readGrace is how long Close and Shutdown wait for callers that are reading
	// their answers, for batches that have just ended, and for the event handler.
	readGrace = 2 * time.Second

	// cancelGrace bounds the cancelling in Close. Kubernetes gives a process 30 s
	// to end.
	cancelGrace = 8 * time.Second

	// readInterval is how often Close looks whether the last answers were read.
	readInterval = 10 * time.Millisecond

	// cancelsAtOnce is how many batches Close cancels at the same time.
	cancelsAtOnce = 8
)

// NoMoreCalls says that no more calls are coming, and that the calls which wait are to be
// sent now: within a tenth of a second, instead of at the end of their window. The calls
// of goroutines that were just started may enter before or after NoMoreCalls. Calls that
// come later all the same are sent a tenth of a second later. NoMoreCalls does not wait.
func (t *Transport) NoMoreCalls() { t.collector.Hurry() }

// Flush sends the calls that are queued at this moment, and leaves the windows of later
// calls as they are; see [Transport.NoMoreCalls] for a program that makes no more calls.
// Flush returns when every batch was created or refused, with nil or the errors (the
// callers are answered in any case), or with the error of ctx. Batches that wait for room
// at the provider, or whose calls are resubmitted, count too.
func (t *Transport) Flush(ctx context.Context) error {
	t.collector.SealAll()
	var errs []error
	seen := make(map[*batch]bool)
	for first, more := true, true; more; first = false {
		more = false
		for _, b := range t.allBatches() {
			// Later passes follow calls that are resubmitted, and no calls that came later.
			if seen[b] || !b.queue.IsFull() || !first && b.history.attempts == 0 {
				continue
			}
			select {
			case <-b.submitted:
				errs = append(errs, b.submitErr)
			case <-ctx.Done():
				return retry.ContextError(ctx)
			}
			seen[b], more = true, true // its calls may be in a new batch now
		}
	}
	return errors.Join(errs...)
}

// Shutdown ends the Transport gracefully: it takes no new calls, sends what is
// queued, waits until every call is answered, and closes. If ctx ends first, it
// closes at once and returns the error of ctx.
func (t *Transport) Shutdown(ctx context.Context) error {
	t.registry.Close()
	t.background.Release()
	t.collector.SealAll()
	var err error
	select {
	case <-t.registry.Drained(): // Close lets the last answers be read
	case <-ctx.Done():
		err = retry.ContextError(ctx)
	}
	return errors.Join(err, t.Close())
}

// Close ends the Transport at once: calls that are waiting get an error that
// wraps ErrClosed. With Options.CancelOnClose it first asks the provider to
// cancel batches that run, for at most eight seconds; otherwise they run on.
// Close returns when the event handler has returned for all events, or two
// seconds later. The error is always nil.
func (t *Transport) Close() error {
	t.closing.Do(t.close)
	return nil
}

// close does the work of Close. The order of its steps, and so of the events, is
// part of the contract: first the queued calls fail, then the batches are
// cancelled, then the calls of the batches fail.
func (t *Transport) close() {
	t.finishEnded()
	t.registry.Close()
	t.background.Close()
	t.collector.End()
	t.mu.Lock()
	t.ending = true
	t.mu.Unlock()
	t.emitClosing()
	t.stop(ErrClosed)
	defer t.stopJournal()
	t.work.Wait() // no batch changes its phase from here on
	defer t.session.Leave()
	t.session.Renew()
	t.session.Flush(t.journalCtx)

	var active []*batch // a batch may have been created meanwhile
	for _, b := range t.allBatches() {
		if b.id() == "" {
			b.end(outcomeClosed, nil)
		} else {
			active = append(active, b)
		}
	}
	if t.opts.CancelOnClose {
		t.cancelAll(active)
	}
	for _, b := range active {
		b.end(outcomeClosed, nil)
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	t.session.Flush(ctx) // what callers have read since
	delivered, cancel := context.WithTimeout(context.Background(), readGrace)
	defer cancel()
	t.events.Wait(delivered)
}

// finishEnded lets the batches finish that have ended at the provider, and lets
// callers read the answers that they were given.
func (t *Transport) finishEnded() {
	ctx, cancel := context.WithTimeout(context.Background(), readGrace)
	defer cancel()
	for _, b := range t.allBatches() {
		if b.lines.Ending() {
			select {
			case <-b.done:
			case <-ctx.Done():
			}
		}
	}
	for t.session.Reading() > 0 && retry.Sleep(ctx, readInterval) == nil {
		continue
	}
}

// emitClosing reports that the Transport closes.
func (t *Transport) emitClosing() {
	e := Event{Name: ClientClosing, Time: time.Now(), CancelOnClose: t.opts.CancelOnClose, ActiveBatchIDs: []string{}}
	for _, b := range t.allBatches() {
		id, calls, _ := b.lines.Census(b.queue.Calls(), false)
		if id != "" {
			e.ActiveBatchIDs = append(e.ActiveBatchIDs, id)
		} else {
			e.PendingRequests += calls
		}
	}
	t.events.Emit(e)
}

// cancelAll cancels batches at the provider, a few at a time. A batch that has
// ended at the provider is not cancelled: its results are paid for.
func (t *Transport) cancelAll(batches []*batch) {
	ctx, cancel := context.WithTimeout(context.Background(), cancelGrace)
	defer cancel()
	slots := make(chan struct{}, cancelsAtOnce)
	var wg sync.WaitGroup
	for _, b := range batches {
		if b.status.Phase == backend.Ended || b.record.Kept(t.journalCtx) {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer b.recoverPanic()
			b.record.ReleaseAll(ctx)
			if b.lines.BeginCancel(false) && b.record.Abandon(ctx) {
				b.cancel(ctx, nil)
			}
		})
	}
	wg.Wait()
}

// allBatches are the batches that have not ended, in the order in which they were
// opened.
func (t *Transport) allBatches() []*batch {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Keys(t.batches), func(a, b *batch) int { return cmp.Compare(a.seq, b.seq) })
}
