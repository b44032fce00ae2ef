package autobatcher

import (
	"net/http"

	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/turnaround"
	"github.com/autobatcher/autobatcher/provider"
)

// Mode says how calls are answered.
type Mode string

// The modes. In a lane that the provider does not have for an endpoint, the call is sent in
// a batch; for a model, the call follows FlexFallback.
const (
	ModeBatch    = Mode(lane.Batch)    // in batches
	ModeFlex     = Mode(lane.Flex)     // at once, at the provider's flex tier
	ModeAuto     = Mode(lane.Auto)     // in a batch, unless the batch would miss the call's deadline, would hold a single call, or did not answer: then at the flex tier
	ModeRealtime = Mode(lane.Realtime) // at once, at full price
)

// FlexFallback says what becomes of a call that the provider has no room for at its
// flex tier, for two minutes, or whose model has no flex tier. Such a call is not billed.
type FlexFallback string

// The fallbacks.
const (
	FallbackBatch    FlexFallback = "batch"    // the call is sent in a batch
	FallbackRealtime FlexFallback = "realtime" // the call is sent in real time, within Options.EscalateLimit
	FallbackFail     FlexFallback = "fail"     // the call gets 503, which SDKs retry, or the provider's refusal of its model
)

// chooseLane decides in which lane a call is sent: a call in the background is in no hurry.
func (r *router) chooseLane(q *request, req *http.Request, mode lane.Mode) {
	if q.mode = mode; q.key.background {
		q.mode = lane.Batch
	}
	if q.mode == lane.Batch || !q.at.Flex || r.opts.FlexFallback == FallbackBatch && !q.key.account.HasFlex(q.model) {
		return
	}
	choice := lane.Choice{
		Mode: mode, Kind: turnaround.Kind{Provider: q.at.Profile.Name, Model: q.model, Window: q.window},
		Deadline: lane.TimeLeft(req.Context(), q.deadline), Wait: r.opts.BatchWindow,
	}
	if choice.Flex(&r.turnaround) {
		q.key.window = provider.FlexWindow
	}
}

// escalates reports whether a call may be sent in real time. flex says that the call is
// sent at the flex tier, or may move there.
func (o *Options) escalates(flex bool) bool {
	return o.Escalate != EscalateNever || flex && o.FlexFallback == FallbackRealtime
}

// prefersFlex reports whether the batch has a single call, which may be sent at the
// flex tier.
func (b *batch) prefersFlex() bool {
	calls := b.queue.Calls()
	return b.history.attempts == 0 && len(calls) == 1 && calls[0].Request.climbs(false)
}

// flex reports whether the calls are sent at the flex tier.
func (k *key) flex() bool { return k.window == provider.FlexWindow }

// climbs reports whether the call goes on at the flex tier if it is alone in its batch, or
// if the batch does not answer. refused says that the call may be refused there for its model.
func (q *request) climbs(refused bool) bool {
	return q.mode == lane.Auto && !q.key.flex() && q.at.Flex && (refused || q.key.account.HasFlex(q.model))
}

// move sends calls in the other lane: from a batch at the flex tier, and back. next is the
// mode of the calls from then on: a call in mode auto moves to the flex tier once.
func (b *batch) move(calls []*call, next Mode) {
	b.requeue(calls, 0, func(queued []*call) (rest []*queue) {
		var closing []*call
		for _, c := range queued {
			q := &c.Request
			if q.key.window = provider.FlexWindow; b.key.flex() { // the line may have been that of an earlier call in another lane
				q.key.window = q.window
			}
			q.mode = lane.Mode(next)
			if !b.t.collector.Add(c) {
				closing = append(closing, c)
			}
		}
		return b.t.collector.Group(closing)
	})
}
