package autobatcher

import (
	"cmp"
	"math"
	"net/http"

	"github.com/autobatcher/autobatcher/internal/accounts"
	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/background"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/callheader"
	"github.com/autobatcher/autobatcher/internal/endpoint"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/requestbody"
	"github.com/autobatcher/autobatcher/internal/turnaround"
)

// A router decides how requests are answered.
type router struct {
	opts       *Options
	accounts   *accounts.Set
	endpoints  *endpoint.Table
	newBackend func(*accounts.Lane) backend.Backend // for one batch
	meter      *price.Meter                         // the cost of all lines
	turnaround turnaround.Book
}

// route decides how a request is answered, without the network. Exactly one
// result is set: a call to be batched, a request to be passed through, or the
// reason why the request can be neither. route closes the request's body unless
// it returns the request.
func (r *router) route(req *http.Request) (*call, *http.Request, error) {
	o, err := callheader.Parse(req.Header)
	if err != nil {
		requestbody.Close(req)
		return nil, nil, err
	}
	o.Mode = cmp.Or(o.Mode, lane.Mode(r.opts.Mode))
	if req.Method != http.MethodPost || req.URL == nil || o.Mode == lane.Realtime {
		return nil, callheader.Strip(req), nil
	}
	at := r.endpoints.Of(req.URL)
	batched, err := at.Batches(req, r.opts.Logger)
	switch {
	case err != nil:
		requestbody.Close(req)
		return nil, nil, err
	case !batched:
		return nil, callheader.Strip(req), nil
	}
	raw, body, err := requestbody.Snapshot(req, at.MaxBody)
	if err != nil {
		return nil, nil, err
	}
	c := &call{Request: request{at: at, deadline: o.Deadline, caller: caller.Of(req.Context())}}
	member, value, err := r.readBody(c, body)
	switch {
	case err != nil:
		return nil, nil, err
	case member != "" && c.Request.caller.BatchOnly:
		return nil, nil, endpoint.Closed(member, value)
	case member != "":
		at.PassesThrough(r.opts.Logger, member, member+": "+value)
		return nil, requestbody.Restore(callheader.Strip(req), raw), nil
	}
	mark := background.MarkOf(req.Context())
	if asks := c.Request.background || background.PrefersAsync(req.Header); mark == nil && asks && r.opts.KeepFor > 0 {
		return nil, nil, &background.Asked{Body: body, Model: c.Request.model, Async: !c.Request.background}
	}
	if c.Request.window, err = at.Accept(int(c.Request.inputs), o.Window); err != nil {
		return nil, nil, err
	}
	r.identify(c, req, raw, mark)
	r.chooseLane(&c.Request, req, o.Mode)
	if mark == nil && r.opts.escalates(at.Flex) {
		c.Request.raw = raw
	}
	return c, nil, nil
}

// readBody reads what the body asks for, makes the body of the line, and plans what
// the call may cost. It returns the member of the body for which the call passes
// through, if there is one, and the value of the member: the provider answers at once,
// or at a price that the caller chose.
func (r *router) readBody(c *call, body []byte) (member, value string, err error) {
	q := &c.Request
	asked := requestbody.Call{NoModel: q.at.NoModel}
	if err := asked.Parse(body, q.at.Deployment); err != nil {
		return "", "", err
	}
	q.model, q.stream, q.usage = asked.Model, asked.Stream, asked.Usage
	if q.at.Inputs {
		q.inputs, q.stream = int32(min(asked.Inputs(), math.MaxInt32)), false // embeddings cannot be streamed
	}
	c.Body, c.URL = asked.Body, q.at.LineURL
	member, value = q.at.Realtime(&asked)
	if asked.Background && q.at.Background {
		q.background = !q.stream // a stream is held until the batch has ended, as any other
		if c.Body, err = line.Without(c.Body, "background"); err != nil {
			return "", "", reply.InvalidBody("background", "the request body has a background that cannot be removed: "+err.Error())
		}
		if r.opts.KeepFor <= 0 {
			member, value = "background", "true"
		}
	}
	if member == "" && r.meter.Budget() != nil {
		err = r.plan(c, &asked)
	}
	if member == "" && err == nil {
		c.Body, q.key.group, err = q.at.Split(c.Body, q.model)
	}
	return member, value, err
}

// identify decides which calls may share a batch with the call, and by which
// fingerprint a retry of the call is known, or, in the background, who knows the id.
func (r *router) identify(c *call, req *http.Request, raw []byte, mark *background.Mark) {
	q := &c.Request
	q.key = key{account: r.accounts.Of(req, q.at.Upstream, q.at.Profile), window: q.window, group: q.key.group}
	if mark != nil {
		q.key.background, c.ByID, c.Sent, raw = true, true, mark.Sent, []byte(mark.ID)
	}
	r.accounts.AppendFingerprint(c.Fingerprint[:0], q.key.account, q.caller.ID, q.at.Suffix, raw)
	q.legacy = r.accounts.LegacyFingerprint(q.key.account, q.caller.ID, q.at.Suffix, raw)
}

// backgroundKey is how an answer is known that a caller asks for by an id: the fingerprint
// is that of identify.
func (r *router) backgroundKey(req *http.Request, id []byte) background.Key {
	at := r.endpoints.Of(req.URL)
	a := r.accounts.Of(req, at.Upstream, at.Profile)
	k := background.Key{Account: a.Hash}
	r.accounts.AppendFingerprint(k.Fingerprint[:0], a, caller.Of(req.Context()).ID, at.Suffix, id)
	return k
}
