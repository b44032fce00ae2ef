package autobatcher

import (
	"errors"
	"net/http"

	"github.com/autobatcher/autobatcher/internal/callheader"
	"github.com/autobatcher/autobatcher/internal/failure"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/results"
	"github.com/autobatcher/autobatcher/internal/triage"
	"github.com/autobatcher/autobatcher/provider"
)

// readPartial reads the results of a running batch that exist already.
func (b *batch) readPartial() {
	if err := b.results.ReadNew(b.t.ctx, b.deliver); err != nil {
		b.t.opts.Logger.Debug("partial results not read", "batch", b.id(), "error", err)
	}
	b.resubmitFailed()
}

// readResults reads the results of a batch that has ended, whatever its status,
// until each line has an answer or no more results are to be expected. A call
// that takes over a line meanwhile has the results read again.
func (b *batch) readResults() error {
	b.lines.Ended()
	if b.grant != nil {
		b.grant.Leave() // nothing of the batch is enqueued any more
	}
	if b.status.Word == "failed" {
		_ = b.results.ReadAll(b.t.ctx, false, b.lines.Count, b.deliver) // Verdict says how it went
		if b.t.ctx.Err() == nil && b.results.Verdict() <= results.Missing && b.plan(triage.Failed(&b.status, b.results.Answered())) {
			return errRejected
		}
	}
	if (b.key.window == provider.FlexWindow || b.key.background && reports(b)) && b.lines.Count() == 0 {
		b.readPartial() // the answers of calls whose callers have left
	}
	batch := results.Ended{
		Status: b.status, LateResults: b.key.account.Profile.LateResults,
		Waiting: b.lines.Count, Deliver: b.deliver,
	}
	for closed := false; !closed; {
		if err := b.results.ReadEnded(b.t.ctx, &batch); err != nil {
			return err
		}
		b.status = batch.Status
		_, closed = b.lines.Close(true)
	}
	switch {
	case b.overdue:
		return failure.ErrOverdue
	case b.results.Verdict() > results.Missing:
		return errUnread
	}
	return nil
}

// deliver gives a result to the call that waits for the result, and reports
// whether the result is an answer. A result that no call waits for is ignored.
func (b *batch) deliver(r *line.Result) (answered bool) {
	c, flex, reported := b.lines.Find(r.ID), b.key.window == provider.FlexWindow, b.key.background && reports(b)
	switch {
	case c == nil:
		cost := ""
		if r.Answered() && r.Status < 300 { // paid for; an earlier process may have counted the lines of its batch in its total
			unclaimed := price.Call{Profile: b.key.account.Profile, Payer: b.key.account.Name, Model: b.names.Model(), Flex: flex}
			cost = b.t.router.meter.BookUnclaimed(&b.bill, r.ID, unclaimed, r.Body, b.recovered == "" || reported)
		}
		if (flex || b.key.background) && r.Answered() { // the provider may not give the answer a second time, or another question comes soon
			a := &answer{Answer: reply.FromResult(r), Flex: flex, Counted: b.key.background}
			a.Cost = cost
			b.t.registry.KeepReleased(b.lines, r.ID, a, reported)
		}
	case r.Transient() && b.lines.RetryLater(c, b.t.opts.Resubmits):
		b.failed = append(b.failed, c)
	case r.Answered():
		a, cost := reply.FromResult(r), priced(&c.Request)
		cost.Flex = flex // the line may be that of an earlier call in another lane
		switch {
		case a.Status >= 300:
		case reports(b):
			a.Cost = b.t.router.meter.Book(&b.bill, r.ID, cost, a.Body)
		default:
			a.Cost = b.t.router.meter.BookUnclaimed(&b.bill, r.ID, cost, a.Body, false)
		}
		b.t.registry.Complete(c, &answer{Answer: a, Counted: !reports(b)})
	case r.Malformed:
		b.t.registry.Complete(c, failedAnswer(failure.LineUnreadable(about(b))))
	case b.lines.RetryLater(c, b.t.opts.Resubmits):
		b.failed = append(b.failed, c)
	default:
		b.giveUp(c, failedAnswer(failure.Line(about(b), r)))
	}
	return r.Answered() || r.Malformed
}

// respond makes the caller's response of an answer.
func (t *Transport) respond(req *http.Request, c *call, a *answer) (*http.Response, error) {
	if a.Err != nil {
		return nil, a.Err
	}
	own := a.Answer // a kept answer may be given to several callers in turn
	var res *http.Response
	if c.Request.stream && a.Status < 300 {
		res = own.Stream(req, c.Request.at.Stream, c.Request.usage)
	} else {
		res = own.Response(req)
	}
	if a.Flex {
		res.Header.Set(callheader.Mode, string(ModeFlex))
	}
	if body, ok := res.Body.(*reply.Body); ok {
		body.Receiver = a
		if c.Earlier != nil && a.Flex && a.Status < 300 {
			body.Receiver = climbed{a, t, c.Earlier}
		}
	}
	return res, nil
}

// refuse answers a request that cannot be batched. Only an error that is no
// refusal, such as a body that breaks off, is a Go error.
func refuse(req *http.Request, err error) (*http.Response, error) {
	var r *reply.RequestError
	if !errors.As(err, &r) {
		return nil, err
	}
	return r.Response(req), nil
}
