package autobatcher

import (
	"net/http"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/turnaround"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// Mode says how calls are answered.
type Mode string

// The modes. In a lane that the provider does not have for a call, the call is sent in
// a batch.
const (
	ModeBatch    = Mode(lane.Batch)    // in batches
	ModeFlex     = Mode(lane.Flex)     // at once, at the provider's flex tier
	ModeAuto     = Mode(lane.Auto)     // in a batch, unless the batch would miss the call's deadline, would hold a single call, or did not answer: then at the flex tier
	ModeRealtime = Mode(lane.Realtime) // at once, at full price
)

// FlexFallback says what becomes of a call that the provider has no room for at its
// flex tier, for two minutes. Such a call is not billed.
type FlexFallback string

// The fallbacks.
const (
	FallbackBatch    FlexFallback = "batch"    // the call is sent in a batch
	FallbackRealtime FlexFallback = "realtime" // the call is sent in real time, within Options.EscalateLimit
	FallbackFail     FlexFallback = "fail"     // the call gets 503, which SDKs retry
)

// chooseLane decides in which lane a call is sent.
func (r *router) chooseLane(q *request, req *http.Request, mode lane.Mode) {
	q.mode = mode
	if mode == lane.Batch || !q.at.Flex {
		return
	}
	choice := lane.Choice{
		Mode: mode, Kind: turnaround.Kind{Provider: q.at.Profile.Name, Model: q.model, Window: q.window},
		Deadline: timeLeft(req, q), Wait: r.opts.BatchWindow,
	}
	if choice.Flex(&r.turnaround) {
		q.key.window = provider.FlexWindow
	}
}

// escalates reports whether a call may be sent in real time, now or after the call has
// moved to the flex tier.
func (o *Options) escalates(q *request) bool {
	return o.Escalate != EscalateNever || o.FlexFallback == FallbackRealtime && (q.key.window == provider.FlexWindow || q.climbs())
}

// prefersFlex reports whether the batch has a single call, which may be sent at the
// flex tier.
func (b *batch) prefersFlex() bool {
	if n, _ := b.queue.Size(); n != 1 || b.history.attempts > 0 {
		return false
	}
	calls := b.queue.Calls()
	return len(calls) == 1 && calls[0].Request.climbs() // the caller may have left meanwhile
}

// climbs reports whether the call goes on at the flex tier if it is alone in its batch, or
// if the batch does not answer.
func (q *request) climbs() bool {
	return q.mode == lane.Auto && q.key.window != provider.FlexWindow && q.at.Flex
}

// move sends calls in the other lane: from a batch at the flex tier, and back. A call
// does not move twice.
func (b *batch) move(calls []*call) {
	b.requeue(calls, 0, func(queued []*call) (rest []*queue) {
		var closing []*call
		for _, c := range queued {
			q := &c.Request
			if q.key.window == provider.FlexWindow {
				q.key.window = q.window
			} else {
				q.key.window = provider.FlexWindow
			}
			q.mode = lane.Batch
			if !b.t.collector.Add(c) {
				closing = append(closing, c)
			}
		}
		return b.t.collector.Group(closing)
	})
}

// flexEnd says why a flex call of another process has no answer at the provider: the
// other process cancelled the response, or held the call open and has, or had, the
// answer. nil: the provider may have the answer.
func flexEnd(known *journal.Batch) error {
	switch {
	case known.Window != provider.FlexWindow || known.BatchID == "":
		return nil
	case known.State == journal.Ended && known.Status == "cancelled":
		return errAbsent
	case !strings.HasSuffix(known.Endpoint, "/responses"):
		return backend.ErrUnsure
	}
	return nil
}

// timeLeft is how long the caller can wait for the answer; 0 if there is no deadline.
func timeLeft(req *http.Request, q *request) time.Duration {
	left := q.deadline
	if at, ok := req.Context().Deadline(); ok && (left == 0 || time.Until(at) < left) {
		left = max(time.Until(at), 1)
	}
	return left
}
