// Package flexapi implements backend.Backend for single calls at a provider's flex
// tier: the call is sent at once, costs about as much as a line of a batch, and is
// answered when the provider has room.
//
// Each batch of this Backend has one line. A call to the Responses API runs in the
// background, where the provider allows that: the provider names the response at
// once, the Backend polls the response, and the journal knows its id. Every other
// call is a request that is held open until the provider answers.
//
// The Handle of a call has the custom id of its line as FileID, and the id of the
// response as BatchID.
package flexapi

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/retry"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

const (
	// callTimeout ends a request that the provider answers at once.
	callTimeout = time.Minute

	// maxAnswer bounds the bytes of an answer.
	maxAnswer = 64 << 20

	// maxError bounds the bytes of an error response.
	maxError = 64 << 10

	// refusedTimeout is how long a call that the provider has no room for is sent
	// again before Create gives up.
	refusedTimeout = 2 * time.Minute
)

// A Client is a backend.Backend for one call. All methods may be called
// concurrently, except for Create.
type Client struct {
	base    *url.URL
	via     http.RoundTripper
	profile *provider.Profile
	models  *Models
	log     *slog.Logger

	held *line.Result // the answer to a request that was held open; written by Create

	deleting, deleted atomic.Bool // the response was, or is, deleted in place of being cancelled
}

var _ backend.Backend = (*Client)(nil)

// New returns a Client of base, a URL that ends before "/chat/completions", with the
// query of each request. via sets the credential of each request, and sends the request
// through a Transport. models are those of the account.
func New(base *url.URL, via http.RoundTripper, p *provider.Profile, models *Models, log *slog.Logger) *Client {
	return &Client{base: base, via: via, profile: p, models: models, log: log}
}

// Prepare names the call by its line. Nothing is sent.
func (c *Client) Prepare(_ context.Context, f line.File, _ backend.Params) (backend.Handle, error) {
	return backend.Handle{FileID: f.At(0).ID}, nil
}

// refusalPolicy says how often a call is sent for which the provider has no room.
// The provider executes and bills no such call.
func (c *Client) refusalPolicy() retry.Policy {
	return retry.Policy{
		Classify: func(err error) (retry.Class, time.Duration) {
			var failed *backend.Error
			if !errors.As(err, &failed) || !c.refused(failed) && !errors.Is(err, errNotSent) {
				return retry.Stopped, -1
			}
			return retry.Transient, failed.RetryAfter
		},
		Budget: map[retry.Class]time.Duration{retry.Transient: refusedTimeout},
	}
}

// refused reports that the provider has no room for the call at the flex tier. A 429 may
// speak of a quota instead, which does not pass.
func (c *Client) refused(e *backend.Error) bool {
	return e.RateLimited() || e.Status != http.StatusTooManyRequests && slices.Contains(c.profile.FlexRefusals, e.Status)
}

// Create sends the call, again while the provider has no room, and never after the
// provider may have executed the call. The error wraps backend.ErrNoCapacity if the
// provider had no room for two minutes, backend.ErrNoTier if the model has no flex
// tier, and backend.ErrUnsure if the provider may have executed the call.
func (c *Client) Create(ctx context.Context, f line.File, h backend.Handle, p backend.Params) (backend.Handle, backend.Status, error) {
	l := f.At(0)
	suffix := strings.TrimPrefix(l.URL, c.profile.LinePrefix)
	send := c.hold
	if c.profile.FlexBackground && suffix == "/responses" && gjson.GetBytes(l.Body, "store").Type != gjson.False {
		send = c.start
	}
	model := strings.Join(p.Models, " ") // of the only line
	attempts := c.refusalPolicy().Start()
	for {
		if !c.models.HasFlex(model) { // another call may have learned of the refusal meanwhile
			return h, backend.Status{}, fmt.Errorf("%w: %w", backend.ErrNoTier, remembered(http.MethodPost+" "+suffix, model))
		}
		s, err := send(ctx, suffix, l)
		if err == nil {
			return s.Handle, s, nil
		}
		var failed *backend.Error
		wait, again := attempts.Next(err)
		switch {
		case !errors.As(err, &failed): // nothing was sent
			return h, backend.Status{}, err
		case ctx.Err() != nil, failed.Err != nil && !errors.Is(err, errNotSent):
			return h, backend.Status{}, fmt.Errorf("%w: %w", backend.ErrUnsure, err)
		case tierRefusal(failed) != notOfTier:
			if tierRefusal(failed) == ofModelTier {
				c.models.refuse(model)
			}
			return h, backend.Status{}, fmt.Errorf("%w: %w", backend.ErrNoTier, err)
		case !again && c.refused(failed):
			return h, backend.Status{}, fmt.Errorf("%w: %w", backend.ErrNoCapacity, err)
		case !again:
			return h, backend.Status{}, err
		}
		c.log.Debug("the provider has no room at the flex tier; trying again", "error", err, "in", wait)
		if err := p.Wait(ctx, wait); err != nil {
			return h, backend.Status{}, err
		}
	}
}

// hold sends a call and waits for the answer.
func (c *Client) hold(ctx context.Context, suffix string, l *line.Line) (backend.Status, error) {
	began := time.Now()
	res, err := c.post(ctx, c.profile.FlexTimeout+callTimeout, suffix, l, false)
	if err != nil {
		return backend.Status{}, err
	}
	s := c.keep(l, res)
	s.Took = time.Since(began)
	return s, nil
}

// keep keeps the answer of a call as the call's result.
func (c *Client) keep(l *line.Line, res *response) backend.Status {
	request := res.header.Get("X-Request-Id")
	id := cmp.Or(gjson.GetBytes(res.body, "id").String(), request, l.ID)
	c.held = &line.Result{ID: l.ID, Status: res.status, RequestID: request, Body: res.body}
	return ended(backend.Handle{FileID: l.ID, BatchID: id}, "completed", res.status < 300)
}

// start starts a call in the background.
func (c *Client) start(ctx context.Context, suffix string, l *line.Line) (backend.Status, error) {
	res, err := c.post(ctx, callTimeout, suffix, l, true)
	switch {
	case err != nil:
		return backend.Status{}, err
	case res.status >= 300:
		return c.keep(l, res), nil
	}
	return parseResponse(res.body, backend.Handle{FileID: l.ID})
}

// post sends a call. A refusal for want of room, or of the tier, is an error, and so is a
// redirect, which would lose the body, and an answer that does not say whether the provider has executed
// the call.
func (c *Client) post(ctx context.Context, timeout time.Duration, suffix string, l *line.Line, background bool) (*response, error) {
	body, err := line.Set(l.Body, "service_tier", c.profile.FlexTier)
	if err == nil && background {
		body, err = line.Set(body, "background", true)
	}
	if err != nil {
		return nil, err
	}
	op := http.MethodPost + " " + suffix
	res, err := c.do(ctx, timeout, http.MethodPost, suffix, body)
	if err != nil {
		return nil, err
	}
	failed := res.failure(op)
	if failed.NameRedirect(c.base); c.refused(failed) || tierRefusal(failed) != notOfTier || failed.Redirected() {
		return nil, failed
	}
	if retry.MayHaveRun(res.status) || res.status >= 500 && !gjson.GetBytes(res.body, "error").Exists() || res.status < 300 && !line.Valid(res.body) { // the answer of a gateway
		return nil, backend.NoAnswer(op, fmt.Errorf("%d %s: %.80q", res.status, http.StatusText(res.status), res.body))
	}
	return res, nil
}

// ended is the status of a call that has ended.
func ended(h backend.Handle, word string, answered bool) backend.Status {
	s := backend.Status{Handle: h, Phase: backend.Ended, Word: word, Sources: []string{h.BatchID}, Counts: backend.Counts{Total: 1, Completed: 1}}
	if !answered {
		s.Counts = backend.Counts{Total: 1, Failed: 1}
	}
	return s
}

// parseResponse reads the state of a response that runs in the background.
func parseResponse(body []byte, h backend.Handle) (backend.Status, error) {
	o := gjson.ParseBytes(body)
	h.BatchID = cmp.Or(o.Get("id").String(), h.BatchID)
	if !line.Valid(body) || h.BatchID == "" {
		return backend.Status{}, backend.NoAnswer("POST /responses", fmt.Errorf("not a response: %.80q", body))
	}
	switch word := o.Get("status").String(); word {
	case "queued", "in_progress", "":
		return backend.Status{Handle: h, Phase: backend.Running, Word: "in_progress", Counts: backend.Counts{Total: 1}}, nil
	case "cancelled":
		return ended(h, word, false), nil
	default:
		return ended(h, "completed", word == "completed" || word == "incomplete"), nil
	}
}

// Gone says why a batch that the journal knows from another process is a flex call
// without an answer at the provider: the other process cancelled the response
// (backend.ErrAbsent), or held the call open and has, or had, the answer
// (backend.ErrUnsure). Nil: the provider may have the answer, or the batch is no flex call.
func Gone(known *journal.Batch) error {
	switch {
	case known.Window != provider.FlexWindow || known.BatchID == "":
		return nil
	case known.State == journal.Ended && known.Status == "cancelled":
		return backend.ErrAbsent
	case !strings.HasSuffix(known.Endpoint, "/responses"):
		return backend.ErrUnsure
	}
	return nil
}

// Find cannot find a call: no provider lists the calls of an account.
func (c *Client) Find(_ context.Context, h backend.Handle, _ time.Time) (backend.Handle, backend.Existence, error) {
	return h, backend.Unsure, errors.New("the process that sent the call at the flex tier ended before the provider answered")
}

// Status asks for the state of a response that runs in the background. Of several
// calls Status says backend.ErrNotListed: there is no request for several.
func (c *Client) Status(ctx context.Context, hs []backend.Handle) ([]backend.Status, error) {
	if len(hs) == 1 {
		s, err := c.status(ctx, hs[0])
		return []backend.Status{s}, err
	}
	states := make([]backend.Status, len(hs))
	for i, h := range hs {
		states[i] = backend.Status{Handle: h, Err: backend.ErrNotListed}
	}
	return states, nil
}

// status is Status for one call.
func (c *Client) status(ctx context.Context, h backend.Handle) (backend.Status, error) {
	if c.held != nil {
		return ended(h, "completed", c.held.Status < 300), nil
	}
	if c.deleted.Load() {
		return ended(h, "cancelled", false), nil
	}
	body, err := c.get(ctx, h)
	if err != nil {
		return backend.Status{}, err
	}
	return parseResponse(body, h)
}

// get reads a response that runs in the background.
func (c *Client) get(ctx context.Context, h backend.Handle) ([]byte, error) {
	path := "/responses/" + url.PathEscape(h.BatchID)
	res, err := c.do(ctx, callTimeout, http.MethodGet, path, nil)
	switch {
	case err != nil:
		return nil, err
	case res.status >= 300:
		return nil, res.failure("GET " + path)
	case !line.Valid(res.body): // the page of a gateway
		return nil, backend.NoAnswer("GET "+path, fmt.Errorf("not a response: %.80q", res.body))
	}
	return res.body, nil
}

// Results returns the answer of the call.
func (c *Client) Results(ctx context.Context, h backend.Handle, _ string, from backend.Position) (*backend.Stream, error) {
	if from.Line > 0 {
		return &backend.Stream{Lines: &answer{at: from}, From: from}, nil
	}
	if c.held != nil {
		return &backend.Stream{Lines: &answer{result: c.held}}, nil
	}
	if c.deleted.Load() {
		cancelled := resultOf(h, []byte(`{"status":"cancelled"}`))
		return &backend.Stream{Lines: &answer{result: &cancelled}}, nil
	}
	body, err := c.get(ctx, h)
	if err != nil {
		return nil, err
	}
	r := resultOf(h, body)
	return &backend.Stream{Lines: &answer{result: &r}}, nil
}

// resultOf is the result of a response that has ended. A response that failed has
// the status that the provider would have answered with in the foreground.
func resultOf(h backend.Handle, body []byte) line.Result {
	o := gjson.ParseBytes(body)
	r := line.Result{ID: h.FileID, Status: http.StatusOK, Body: body}
	failure := o.Get("error")
	switch o.Get("status").String() {
	case "completed", "incomplete":
		return r
	case "cancelled":
		return line.Result{ID: h.FileID, Code: "batch_cancelled", Message: "the response was cancelled"}
	}
	code := failure.Get("code").String()
	if status, err := strconv.Atoi(code); err == nil && status >= 400 && status < 600 { // at Doubleword
		r.Status = status
	} else {
		r.Status = statusOf(code)
	}
	if failure.IsObject() { // with a code and a message only: package reply makes the error that SDKs expect
		r.Body, r.Code, r.Message = nil, code, failure.Get("message").String()
	}
	return r
}

// statusOf is the status of an error code of a response that failed.
func statusOf(code string) int {
	switch code {
	case "rate_limit_exceeded":
		return http.StatusTooManyRequests
	case "server_error", "":
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

// An answer is the results of one call.
type answer struct {
	result *line.Result
	at     backend.Position
}

func (a *answer) Next() (line.Result, error) {
	if a.result == nil {
		return line.Result{}, io.EOF
	}
	r := *a.result
	a.result = nil
	a.at.Line++
	return r, nil
}

func (a *answer) Position() backend.Position { return a.at }
func (a *answer) Close() error               { return nil }

// Cancel cancels a response that runs in the background. Where responses cannot be
// cancelled, as at Doubleword, Cancel deletes the response, unless it has ended.
func (c *Client) Cancel(ctx context.Context, h backend.Handle) error {
	if c.held != nil {
		return backend.ErrEnded
	}
	path := "/responses/" + url.PathEscape(h.BatchID) + "/cancel"
	res, err := c.do(ctx, callTimeout, http.MethodPost, path, nil)
	switch {
	case err != nil:
		return err
	case res.status == http.StatusNotFound, res.status == http.StatusMethodNotAllowed:
		return c.withdraw(ctx, h)
	case res.status >= 300:
		return res.failure("POST " + path)
	}
	if s, err := parseResponse(res.body, h); err == nil && s.Phase == backend.Ended && s.Word != "cancelled" {
		return backend.ErrEnded
	}
	return nil
}

// withdraw deletes a response that has not ended. A second attempt which finds no
// response has deleted it with the first.
func (c *Client) withdraw(ctx context.Context, h backend.Handle) error {
	again := c.deleting.Load()
	s, err := c.status(ctx, h)
	switch {
	case err == nil && s.Phase == backend.Ended:
		return backend.ErrEnded
	case err == nil:
		c.deleting.Store(true)
		err = c.delete(ctx, h)
	}
	if err == nil || again && notFound(err) {
		c.deleted.Store(true)
		return nil
	}
	return err
}

// notFound reports that the provider does not know the response.
func notFound(err error) bool {
	var failed *backend.Error
	return errors.As(err, &failed) && failed.Status == http.StatusNotFound
}

// Cleanup deletes a response that ran in the background. There is no input to
// delete.
func (c *Client) Cleanup(ctx context.Context, h backend.Handle, sources []string) error {
	if len(sources) == 0 || c.held != nil {
		return nil
	}
	if err := c.delete(ctx, h); !notFound(err) {
		return err
	}
	return nil
}

func (c *Client) delete(ctx context.Context, h backend.Handle) error {
	path := "/responses/" + url.PathEscape(h.BatchID)
	res, err := c.do(ctx, callTimeout, http.MethodDelete, path, nil)
	switch {
	case err != nil:
		return err
	case res.status >= 300:
		return res.failure("DELETE " + path)
	}
	return nil
}

// A response is an HTTP response in memory.
type response struct {
	status int
	header http.Header
	body   []byte
}

// failure is the error of a response that is no success.
func (r *response) failure(op string) *backend.Error {
	return &backend.Error{
		Op: op, Status: r.status, Header: r.header, Body: r.body[:min(len(r.body), maxError)],
		RetryAfter: backend.RetryAfter(r.header, time.Now()),
	}
}

// do sends a request and reads the response of any status.
func (c *Client) do(ctx context.Context, timeout time.Duration, method, path string, body []byte) (*response, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	u := backend.WithPath(c.base, strings.TrimSuffix(c.base.EscapedPath(), "/")+path)
	op := method + " " + path
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", backend.UserAgent)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.via.RoundTrip(req)
	if err != nil {
		return nil, backend.NoAnswer(op, err)
	}
	defer res.Body.Close()
	answered := &response{status: res.StatusCode, header: res.Header}
	limited := &io.LimitedReader{R: res.Body, N: maxAnswer + 1}
	if answered.body, err = io.ReadAll(limited); err != nil {
		return nil, backend.NoAnswer(op, err)
	}
	if limited.N == 0 {
		return nil, backend.NoAnswer(op, fmt.Errorf("the answer has more than %d bytes", maxAnswer))
	}
	return answered, nil
}
