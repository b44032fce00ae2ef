package autobatcher

import (
	"errors"
	"net/http"
	"time"

	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/failure"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/realtime"
	"github.com/autobatcher/autobatcher/internal/retry"
	"github.com/autobatcher/autobatcher/internal/turnaround"
	"github.com/autobatcher/autobatcher/provider"
)

// deadlineNear is why a call is sent in real time that its batch may answer yet.
const deadlineNear = "its deadline is near"

// An escalator sends calls in a lane that is faster than their batch: at the flex tier
// first, where there is time, or in real time, once and within the budget.
type escalator struct {
	t      *Transport
	budget *realtime.Budget
}

// untilUrgent is how long a call can wait for its batch before it must be sent in real
// time to meet its deadline, and before it must be sent at the flex tier; 0 if it never
// must. A call goes to the flex tier in mode auto only. No call in the background goes: nobody
// waits for the answer, which no batch would keep.
func (e *escalator) untilUrgent(req *http.Request, c *call) (urgent, flex time.Duration) {
	left := lane.TimeLeft(req.Context(), c.Request.deadline)
	if e.t.opts.Escalate != EscalateDeadline || left == 0 || c.Request.key.background {
		return 0, 0
	}
	urgent = max(left-e.t.opts.EscalateMargin, 1)
	e.t.registry.InRealtime(c, func(r *request) {
		if r.climbs(false) {
			kind := turnaround.Kind{Provider: r.at.Profile.Name, Model: r.model, Window: provider.FlexWindow}
			flex = lane.UntilFlex(&e.t.router.turnaround, kind, r.at.Profile.FlexTimeout, urgent)
		}
	})
	return urgent, flex
}

// climb sends a call at the flex tier that its batch may not answer in time, and returns
// the call and the waiter that the caller waits with from now on: those of before, if the
// call may not climb. The line of the batch stays, and may yet answer the caller, or a retry.
func (e *escalator) climb(req *http.Request, c *call, w *waiter) (*call, *waiter) {
	next := e.t.registry.Fork(c, func(r *request) (request, bool) {
		k := r.key
		k.window = provider.FlexWindow
		return request{
			key: k, at: r.at, caller: r.caller, model: r.model, raw: r.raw, deadline: r.deadline, mode: lane.Realtime,
			window: r.window, inputs: r.inputs, stream: r.stream, usage: r.usage,
		}, r.climbs(false)
	})
	if next == nil {
		return c, w
	}
	next.Freed = caller.Hold(req.Context())
	waiting, err := e.t.enter(next)
	if err != nil { // the budget has no room, or the Transport is closing
		return c, w
	}
	if !e.t.registry.Follow(w, waiting) { // the batch has answered, or the flex tier has failed for an earlier try
		e.t.disconnect(req, next, waiting)
		return c, w
	}
	c.Request.raw = nil
	_, id := e.t.registry.NameOf(c)
	e.t.opts.Logger.Info("call sent in another lane", "reason", deadlineNear, "custom_id", id)
	return next, waiting
}

// climbed is the Receiver of an answer to a call that has climbed: its line in the batch is
// of no use to a retry once the caller has read the answer.
type climbed struct {
	*answer
	t       *Transport
	earlier *call
}

// Delivered implements reply.Receiver.
func (c climbed) Delivered() {
	if c.answer.Delivered(); c.FromLine() {
		c.t.registry.Dismiss(c.earlier)
	}
}

// allow reports whether a call, whose line may be a flex call, may be sent in real time for
// that reason, and takes the call from the budget. The call that is sent must end spending.
// A call in the background is never sent.
func (e *escalator) allow(c *call, reason string, flex bool) (spending *price.RealtimeCall, ok bool) {
	var asked price.Call
	usd := e.t.registry.InRealtime(c, func(r *request) { asked = priced(r) })
	if !e.t.opts.escalates(flex) || c.Request.key.background || e.t.ctx.Err() != nil {
		return nil, false
	}
	return e.budget.Take(c.Request.caller, asked, usd, reason)
}

// escalate sends a call in real time whose deadline is near. Its line is of no
// use to a retry once the caller has read the answer.
func (e *escalator) escalate(req *http.Request, c *call, w *waiter, began time.Time, spending *price.RealtimeCall) (*http.Response, error) {
	if found := e.t.registry.Leave(w, true); found != nil {
		spending.End(false)
		return e.t.answer(req, c, found, began)
	}
	return e.send(req, c, deadlineNear, began, spending, func(served, _ bool) {
		if served {
			e.t.registry.Dismiss(c)
			e.t.registry.Dismiss(c.Earlier)
		}
	})
}

// send sends the call as its caller made the call, once, for that reason. Its deadline
// still holds, counted from when the call began. ended is called once: served says that the
// caller has read a successful answer, left that the caller disconnected before it read
// an answer. After a failure, the line may have a better answer for a retry. The caller
// counts as waiting until then.
func (e *escalator) send(req *http.Request, c *call, reason string, began time.Time, spending *price.RealtimeCall, ended func(served, left bool)) (*http.Response, error) {
	sent := realtime.Call{
		Request: req, Body: c.Request.raw, Scan: spending.Scan,
		Announce: func() {
			batchID, customID := e.t.registry.NameOf(c)
			e.t.opts.Logger.Info("call escalated", "reason", reason, "batch", batchID, "custom_id", customID)
			e.t.events.Emit(Event{Name: CallEscalated, Time: time.Now(), BatchID: batchID, Endpoint: c.URL, CustomID: customID, Models: caller.NamesOf([]*call{c}, asked).Models, Error: reason})
		},
		End: func(o realtime.Outcome) {
			spending.End(o.Paid)
			ended(o.Served, o.Left)
			e.t.registry.CallerLeft()
		},
	}
	if c.Request.deadline > 0 {
		sent.Deadline = began.Add(c.Request.deadline)
	}
	res, err := sent.Send(e.t.opts.Base)
	switch {
	case err == nil:
		return res, nil
	case req.Context().Err() != nil:
		return nil, retry.ContextError(req.Context())
	case errors.Is(err, realtime.ErrDeadline):
		return failedAnswer(failure.LateInRealtime(c.Request.deadline)).Response(req), nil
	}
	return failedAnswer(failure.Realtime(err)).Response(req), nil
}
