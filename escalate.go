package autobatcher

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/ratelimit"
	"github.com/autobatcher/autobatcher/internal/realtime"
	"github.com/autobatcher/autobatcher/internal/retry"
)

// deadlineNear is why a call is sent in real time that its batch may answer yet.
const deadlineNear = "its deadline is near"

// An escalator sends calls in real time, once and at full price, within the budget
// of Options.EscalateLimit. Callers with names of their own have budgets of their
// own, so that no caller can use up the budget of another.
type escalator struct {
	t      *Transport
	budget *ratelimit.Hourlies
}

func newEscalator(t *Transport, limit int) *escalator {
	return &escalator{t: t, budget: ratelimit.NewHourlies(limit)}
}

// untilUrgent is how long a call can wait for its batch before it must be sent in
// real time to meet its deadline; 0 if it never must.
func (e *escalator) untilUrgent(req *http.Request, c *call) time.Duration {
	if e.t.opts.Escalate != EscalateDeadline {
		return 0
	}
	left := timeLeft(req, &c.Request)
	if left == 0 {
		return 0
	}
	return max(left-e.t.opts.EscalateMargin, 1)
}

// allow reports whether a call may be sent in real time for that reason, and takes the
// call from the budgets. The call that is sent must end spending.
func (e *escalator) allow(c *call, reason string) (spending *price.RealtimeCall, ok bool) {
	usd, request := e.t.registry.InRealtime(c)
	if !e.t.opts.escalates(&request) || e.t.ctx.Err() != nil {
		return nil, false
	}
	by := c.Request.caller
	spending, err := e.t.router.meter.Begin(priced(&request), usd)
	if err == nil {
		if wait, ok := e.budget.Take(by.Budget); !ok {
			err = fmt.Errorf("the hour's budget is used up; again in %v", wait)
		} else if by.Realtime != nil && !by.Realtime() {
			err = errors.New("too many requests are sent in real time already")
		}
	}
	if err != nil {
		spending.End(false)
		e.t.opts.Logger.Warn("call not escalated: "+err.Error(), "caller", by.Name, "reason", reason)
		return nil, false
	}
	return spending, true
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
			e.t.emit(Event{Name: CallEscalated, BatchID: batchID, Endpoint: c.URL, CustomID: customID, Models: []string{c.Request.model}, Error: reason})
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
		return failure(http.StatusFailedDependency, CodeDeadlineExceeded,
			fmt.Sprintf("the call was sent in real time, and not answered within its deadline of %v", c.Request.deadline)).Response(req), nil
	}
	return failure(http.StatusBadGateway, CodeRealtimeFailed, "the call was sent in real time, and failed: "+err.Error()).Response(req), nil
}
