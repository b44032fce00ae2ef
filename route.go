package autobatcher

import (
	"cmp"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"

	"github.com/autobatcher/autobatcher/internal/accounts"
	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/callheader"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/profiles"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/requestbody"
	"github.com/autobatcher/autobatcher/internal/turnaround"
	"github.com/autobatcher/autobatcher/provider"
)

// A router decides how requests are answered.
type router struct {
	opts       *Options
	accounts   *accounts.Set
	profiles   profiles.Cache
	newBackend func(*key) backend.Backend
	meter      *price.Meter // the cost of all lines
	turnaround turnaround.Book
}

// newBackend returns the Backend of a batch.
func newBackend(k *key) backend.Backend { return k.lane().Backend() }

// route decides how a request is answered, without the network. Exactly one
// result is set: a call to be batched, a request to be passed through, or the
// reason why the request can be neither. route closes the request's body unless
// it returns the request.
func (r *router) route(req *http.Request) (*call, *http.Request, error) {
	o, err := callheader.Parse(req.Header)
	if err != nil {
		closeBody(req)
		return nil, nil, err
	}
	mode := cmp.Or(o.Mode, lane.Mode(r.opts.Mode))
	if req.Method != http.MethodPost || req.URL == nil || mode == lane.Realtime {
		return nil, callheader.Strip(req), nil
	}
	path := req.URL.EscapedPath()
	profile := r.profileFor(req.URL, path)
	suffix := profile.Suffix(path)
	switch {
	case suffix == "":
		return nil, callheader.Strip(req), nil
	case profile.Refusal != "":
		closeBody(req)
		return nil, nil, &reply.RequestError{Status: http.StatusBadRequest, Code: CodeBatchUnsupported, Message: profile.Refusal + " (Or send this call with the header Autobatcher-Mode: realtime.)"}
	}
	raw, body, err := requestbody.Snapshot(req, lineLimit(profile))
	if err != nil {
		return nil, nil, err
	}
	c := &call{Request: request{profile: profile, suffix: suffix, deadline: o.Deadline}}
	member, value, err := r.readBody(c, body, path)
	switch {
	case err != nil:
		return nil, nil, err
	case member != "" && caller.Of(req.Context()).BatchOnly:
		return nil, nil, &reply.RequestError{Status: http.StatusBadRequest, Code: member + "_closed", Message: member + ": " + value + " would not be answered at the price of a batch, which the operator of this server does not allow; leave the member out"}
	case member != "":
		r.opts.Logger.Debug("call passes through", "reason", member+": "+value)
		return nil, requestbody.Restore(callheader.Strip(req), raw), nil
	}
	if err := r.checkLimits(c); err != nil {
		return nil, nil, err
	}
	c.Request.caller = caller.Of(req.Context())
	if c.Request.key.window, err = r.windowFor(profile, o.Window); err != nil {
		return nil, nil, err
	}
	r.identify(c, req, strings.TrimSuffix(path, suffix), raw)
	r.chooseLane(c, req, mode)
	if r.opts.escalates(&c.Request.key) {
		c.Request.raw = raw
	}
	return c, nil, nil
}

// checkLimits refuses a call that no batch of the provider can hold.
func (r *router) checkLimits(c *call) error {
	if limit := c.Request.profile.MaxInputs; limit > 0 && int(c.Request.inputs) > limit {
		return reply.InvalidBody("input", fmt.Sprintf("input has %d items; a batch file may hold %d", c.Request.inputs, limit))
	}
	if err := c.Request.profile.CheckMetadata(r.opts.Metadata); err != nil {
		return &reply.RequestError{Status: http.StatusBadRequest, Code: "invalid_metadata", Message: err.Error()}
	}
	return nil
}

// profileFor returns the profile of the provider that a URL belongs to.
func (r *router) profileFor(u *url.URL, path string) *provider.Profile {
	if r.opts.Provider != nil {
		return r.opts.Provider
	}
	return r.profiles.Of(u, path)
}

func (r *router) windowFor(p *provider.Profile, window string) (string, error) {
	if window == "" {
		window = r.opts.CompletionWindow
	}
	if window == "" {
		return p.DefaultWindow, nil
	}
	if err := p.CheckWindow(window); err != nil {
		return "", &reply.RequestError{Status: http.StatusBadRequest, Code: "invalid_completion_window", Message: err.Error()}
	}
	return window, nil
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

// maxBody bounds a body where the provider names no limit: the largest file
// that OpenAI takes.
const maxBody = 200_000_000

// lineLimit is how large a body may be to fit on a line of a file.
func lineLimit(p *provider.Profile) int64 {
	limit := int64(maxBody)
	if p.MaxBytes > 0 {
		limit = min(limit, p.MaxBytes-lineOverhead)
	}
	if p.MaxLineBytes > 0 {
		limit = min(limit, p.MaxLineBytes)
	}
	return limit
}

// lineOverhead is more than what stands on a line beside the body.
const lineOverhead = 256

// readBody reads what the body asks for, makes the body of the line, and plans what
// the call may cost. It returns the member of the body for which the call passes
// through, if there is one, and the value of the member: the provider answers at once,
// or at a price that the caller chose.
func (r *router) readBody(c *call, body []byte, path string) (member, value string, err error) {
	q := &c.Request
	deployment, _ := q.profile.Deployment(path)
	asked, err := requestbody.Parse(body, deployment)
	if err != nil {
		return "", "", err
	}
	q.model, q.stream, q.usage = asked.Model, asked.Stream, asked.Usage
	if q.suffix == "/embeddings" {
		q.inputs, q.stream = int32(min(asked.Inputs(), math.MaxInt32)), false // embeddings cannot be streamed
	}
	c.Body, c.URL = asked.Body, q.profile.LineURL(q.suffix)
	switch {
	case asked.Background:
		return "background", "true", nil
	case asked.Tier != "":
		return "service_tier", asked.Tier, nil
	}
	return "", "", r.plan(c, &asked)
}

// identify decides which calls may share a batch with the call, and by which
// fingerprint a retry of the call is known.
func (r *router) identify(c *call, req *http.Request, base string, raw []byte) {
	a := r.accounts.Of(req, base, c.Request.profile)
	c.Request.key.account = a
	if c.Request.profile.OneEndpoint {
		c.Request.key.group = c.Request.suffix
	}
	if c.Request.profile.OneModel {
		c.Request.key.group += " " + c.Request.model
	}
	id := c.Request.caller.ID
	r.accounts.AppendFingerprint(c.Fingerprint[:0], a, id, c.Request.suffix, raw)
	c.Request.legacy = r.accounts.LegacyFingerprint(a, id, c.Request.suffix, raw)
}
