package autobatcher

import (
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/failure"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/triage"
)

// A resubmission says which calls are resubmitted when a batch ends.
type resubmission int

const (
	resubmitNone       resubmission = iota
	resubmitAll                     // nothing was paid for
	resubmitUnanswered              // as often as Options.Resubmits says
	resubmitPlanned                 // by the plan for a rejected input
	resubmitMoved                   // in another lane; nothing was paid for
)

// resubmitRest resubmits calls of a batch that ends, and returns the calls that
// are to be answered.
func (b *batch) resubmitRest(kind resubmission, rest []*call, err error) (left []*call) {
	b.resubmitFailed()
	var refused *backend.Error
	switch {
	case kind == resubmitAll:
		b.resubmit(rest, 0)
		return nil
	case kind == resubmitMoved:
		b.move(rest, ModeBatch)
		return nil
	case kind == resubmitPlanned && (errors.Is(err, errRejected) || !errors.Is(err, backend.ErrUnsure) && errors.As(err, &refused) && refused.Err == nil && b.plan(triage.Refused(refused))):
		b.carryOut()
		return nil
	case kind == resubmitUnanswered && (b.status.Word != "failed" || len(b.status.Problems) == 0): // an input that was refused would be refused again
		for _, c := range rest {
			if b.lines.RetryLater(c, b.t.opts.Resubmits) {
				b.failed = append(b.failed, c)
			} else {
				left = append(left, c)
			}
		}
		b.resubmitFailed()
		return left
	}
	return rest
}

// resubmit sends calls in new batches after a delay: calls with equal keys share a
// batch. A call without a caller is dropped.
func (b *batch) resubmit(calls []*call, delay time.Duration) {
	b.requeue(calls, delay, b.t.collector.Group)
}

// requeue makes calls queued calls again. group puts the calls into queues, and returns
// the queues that have no batch yet.
func (b *batch) requeue(calls []*call, delay time.Duration, group func([]*call) []*queue) {
	calls = slices.DeleteFunc(calls, func(c *call) bool {
		if c.Recalled { // has no body
			b.t.registry.Complete(c, failedAnswer(failure.Orphaned(about(b))))
		}
		return c.Recalled
	})
	if len(calls) == 0 {
		return
	}
	var queues []*queue
	b.t.registry.Requeue(calls, func(queued []*call) { queues = group(queued) })
	for _, q := range queues {
		next := b.t.newBatch(q, collecting)
		next.history = history{attempts: b.history.attempts + 1, delay: delay, guesses: b.history.guesses}
		b.t.startBatch(next, true)
	}
}

// resubmitFailed resubmits the calls whose lines failed without an answer.
func (b *batch) resubmitFailed() {
	failed := b.failed
	b.failed = nil
	b.resubmit(failed, 0)
}

// plan makes the plan for a rejection, and reports whether there is a remedy. The
// limiter learns from a batch that was too much for the provider's queue.
func (b *batch) plan(r triage.Rejection) bool {
	calls, lines := b.lines.ByPlace(b.size)
	b.size = len(calls) // the size of a batch that another process began may not have been known
	in := triage.Input{Rejection: r, Attempts: b.history.attempts, Lines: make([]triage.Line, len(calls))}
	for i, c := range calls {
		if c != nil {
			in.Lines[i] = triage.Line{Waiting: true, Model: c.Request.model, Bytes: lines[i].Size(), Strict: !line.HasLoneSurrogate(lines[i].Body)}
			in.Tokens += int64(lines[i].Size()) / bytesPerToken
		}
	}
	limiter := b.lane.Limiter
	if limit, refused := triage.TokenRefusal(r); refused && b.grant != nil {
		in.Alone = b.grant.Refused(limit)
		in.TokenLimit = limiter.TokenLimit(b.key.group)
		b.t.opts.Logger.Warn("the provider has too many tokens enqueued; the batch will be sent again",
			"batch", b.id(), "tokens", in.Tokens, "limit", in.TokenLimit)
	}
	if b.history.guesses == nil {
		b.history.guesses = new(atomic.Int64)
		b.history.guesses.Store(triage.MaxGuesses)
	}
	in.Guesses = int(b.history.guesses.Load())
	b.remedy = triage.Decide(in)
	b.history.guesses.Add(-int64(b.remedy.Guesses))
	return b.remedy.Sorted
}

// carryOut answers the calls at fault and resubmits the others in the groups of
// the plan. A call that took over a line since the plan was made is resubmitted,
// too.
func (b *batch) carryOut() {
	calls, _ := b.lines.ByPlace(b.size)
	for _, a := range b.remedy.Answers {
		c := calls[a.Place]
		calls[a.Place] = nil
		switch {
		case c == nil:
		case a.Status == http.StatusFailedDependency && b.lines.RetryLater(c, b.t.opts.Resubmits):
			b.failed = append(b.failed, c) // the fault may be the provider's
		default:
			b.t.registry.Complete(c, failedAnswer(failure.LineRefused(a)))
		}
	}
	for _, places := range b.remedy.Groups {
		var group []*call
		for _, place := range places {
			if c := calls[place]; c != nil {
				group = append(group, c)
				calls[place] = nil
			}
		}
		b.resubmit(group, b.remedy.Delay)
	}
	b.resubmit(slices.DeleteFunc(calls, func(c *call) bool { return c == nil }), b.remedy.Delay)
	b.resubmitFailed()
}
