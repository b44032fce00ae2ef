package autobatcher

import (
	"context"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

const (
	// overdueTimeout is how long a batch may run past its completion window. OpenAI
	// expires a batch then; Doubleword continues to work.
	overdueTimeout = 24 * time.Hour

	// failedTimeout is how long a batch is polled, at least, whose polls fail: an
	// overdue batch that an earlier process left may have ended long ago.
	failedTimeout = 24 * time.Hour

	// cancellingTimeout bounds the status "cancelling": OpenAI says up to ten
	// minutes, and a Doubleword batch can keep the status for ever.
	cancellingTimeout = 20 * time.Minute
)

// poll polls the batch until the batch has ended or is overdue, reads the results
// that exist already, and cancels the batch when no caller waits any more. The
// error says why the batch was given up.
func (b *batch) poll() error {
	watch := b.lane.Statuses.Watch(b.status.Handle)
	defer watch.Done()
	attempts := backend.PollPolicy.Start()
	interval := func() time.Duration {
		return backend.PollInterval(time.Since(b.created), b.t.opts.PollInterval, b.key.account.Profile.MinPoll, b.queue.Early() && watch.Soon())
	}
	var wait time.Duration // 0 if the batch has run for a while, or if the create was its answer
	if b.recovered == "" && b.status.Phase != backend.Ended {
		wait = watch.Interval(interval())
	}
	limit := b.created.Add(provider.WindowLength(b.key.window) + overdueTimeout)
	began := time.Now()
	for {
		if err := b.pause(wait, watch.Woken(), b.cancelIfIdle); err != nil {
			return err
		}
		status, err := watch.Look(b.t.ctx, b.backend, interval())
		wait = watch.Interval(interval())
		if err == nil {
			attempts.Next(nil)
			if b.observe(status); b.finished() {
				return nil
			}
			b.readPartial()
		} else if failed, again := attempts.Next(err); again {
			wait = max(min(wait, backend.MaxPollInterval), failed)
		} else {
			return err
		}
		if b.overdue = time.Now().After(limit) && (err == nil || time.Since(began) > failedTimeout); b.overdue {
			return nil
		}
	}
}

// pause waits for d or for wake, which may be nil, and calls idle when no caller has
// waited for too long. An error of idle ends the pause.
func (b *batch) pause(d time.Duration, wake <-chan struct{}, idle func() error) error {
	if d <= 0 {
		return context.Cause(b.t.ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return nil
		case <-wake:
			return nil
		case <-b.idle:
			if err := idle(); err != nil {
				return err
			}
		case <-b.t.ctx.Done():
			return context.Cause(b.t.ctx)
		}
	}
}

// observe notes what the provider says of the batch, and reports a change.
func (b *batch) observe(status backend.Status) {
	before := b.status
	status.Handle = before.Handle
	b.status = status
	b.results.SetSources(status.Handle, status.Sources)
	if status.Phase == backend.Cancelling && b.cancelled.IsZero() {
		b.cancelled = time.Now()
		b.lines.BeginCancel(false)
	}
	if !b.observed && b.recovered != "" && status.Phase == backend.Ended {
		b.lines.Stale()
	}
	if !b.observed || before.Word != status.Word || before.Counts != status.Counts {
		b.observed = true
		b.emit(BatchProgress, nil)
	}
}

// finished reports whether nothing more is to be expected of the batch.
func (b *batch) finished() bool {
	return b.status.Phase == backend.Ended ||
		b.status.Phase == backend.Cancelling && time.Since(b.cancelled) > cancellingTimeout
}

// cancelIfIdle cancels a batch that no caller waits for, here or at another
// replica. The error is nil: the batch is polled until it has ended.
func (b *batch) cancelIfIdle() error {
	if b.decideCancel() {
		b.t.opts.Logger.Info("no caller waits for the batch; cancelling it", "batch", b.id())
		b.cancel(b.t.ctx, b.decideCancel)
	}
	return nil
}

// decideCancel reports whether no caller waits for the batch, anywhere. From a yes
// on, no call takes over a line.
func (b *batch) decideCancel() bool {
	if known, err := b.record.Look(b.t.ctx); err == nil && known.Delivered == known.Lines && !b.lines.Dismissed() {
		return false // other replicas have delivered the rest
	}
	if b.record.Kept(b.t.journalCtx) || !b.lines.BeginCancel(true) {
		return false
	}
	if !b.record.Abandon(b.t.journalCtx) {
		b.lines.CancelFailed() // callers of another replica wait, and may leave, or the journal fails
		return false
	}
	return true
}

// cancel asks the provider to cancel the batch, and reports the result. The lines are
// marked as being cancelled already. decide is as in backend.Cancel.
func (b *batch) cancel(ctx context.Context, decide func() bool) {
	b.emit(BatchCancelRequested, nil)
	err := backend.Cancel(ctx, b.backend, b.status.Handle, b.undoCancel, decide)
	if err == nil {
		b.emit(BatchCancelledUpstream, nil)
		return
	}
	b.t.opts.Logger.Warn("not cancelled", "batch", b.id(), "error", err)
	b.emit(BatchCancelFailed, err)
}

// undoCancel has the lines of a batch taken over again, which runs and is paid
// for.
func (b *batch) undoCancel() {
	b.lines.CancelFailed()
	if known, err := b.record.Look(b.t.journalCtx); err != nil || known.State != journal.Ended {
		b.record.Running(b.t.journalCtx, b.id())
	}
}
