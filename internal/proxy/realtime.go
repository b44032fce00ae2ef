package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/provider"
)

// LimitRealtime returns base for Options.Base of the Transport, with limits for what is
// answered in real time: requests that pass through, and held calls that the Transport
// sends in real time (escalated calls, calls with a service tier, and calls that the
// provider does not batch). Such held calls count as requests that pass through: with
// Options.MaxPassedThrough such requests, a further call gets 503, and a call that waits
// for its batch is not escalated. A request whose response does not begin within answerTimeout gets 504.
//
// Calls at the flex tier hold a connection to the provider until the answer. At most
// maxFlex such calls are sent at the same time. A further call waits for flexWait, and
// then gets 429, as from a provider without room at the flex tier. 0 means no limit.
func LimitRealtime(base http.RoundTripper, maxFlex int) http.RoundTripper {
	l := realtimeLimit{RoundTripper: base}
	if maxFlex > 0 {
		l.flex = make(chan struct{}, maxFlex)
	}
	return l
}

type realtimeLimit struct {
	http.RoundTripper
	flex chan struct{} // has a token for each call at the flex tier; nil: no limit
}

// RoundTrip implements http.RoundTripper.
func (l realtimeLimit) RoundTrip(r *http.Request) (*http.Response, error) {
	switch c := caller.ObserverOf(r.Context()).(type) {
	case *heldCall:
		if !c.passage.begin() {
			if r.Body != nil {
				_ = r.Body.Close()
			}
			return failTooManyPassed.response(r), nil
		}
		c.place.release() // the call does not wait to be sent
		return l.awaitAnswer(r, c.p.watchResponse)
	case *heldBytes: // passes through
		return l.awaitAnswer(r, func(*http.Response, func()) {})
	}
	if l.flex != nil && isFlex(r) {
		return l.sendFlex(r)
	}
	return l.RoundTripper.RoundTrip(r) // a request of the Transport's own
}

// flexEndpoints are the calls that providers answer at a flex tier.
var flexEndpoints = provider.OpenAI().FlexEndpoints

// isFlex reports whether a request of the Transport's own is a call: those that make
// and follow batches go to other paths.
func isFlex(r *http.Request) bool {
	return r.Method == http.MethodPost && slices.ContainsFunc(flexEndpoints, func(suffix string) bool { return strings.HasSuffix(r.URL.Path, suffix) })
}

// flexWait is how long a call at the flex tier waits for a connection before the call
// counts as refused. The timeouts of the Transport's requests are longer.
const flexWait = 30 * time.Second

var failNoFlexRoom = failure{
	status: http.StatusTooManyRequests, code: "too_many_calls_at_flex_tier",
	message: "calls at the flex tier use all connections to the provider that they may use; raise the limit on open files, or send calls in batches",
}

// sendFlex sends a call at the flex tier when there is room for the call.
func (l realtimeLimit) sendFlex(r *http.Request) (*http.Response, error) {
	timer := time.NewTimer(flexWait)
	defer timer.Stop()
	select {
	case l.flex <- struct{}{}:
	case <-r.Context().Done():
		_ = r.Body.Close() // of bytes in memory
		return nil, r.Context().Err()
	case <-timer.C:
		_ = r.Body.Close()
		return failNoFlexRoom.response(r), nil
	}
	leave := sync.OnceFunc(func() { <-l.flex })
	res, err := l.RoundTripper.RoundTrip(r)
	if err != nil {
		leave()
		return nil, err
	}
	res.Body = &closedBody{res.Body, leave}
	return res, nil
}

// A closedBody is a response body with a function that runs at Close.
type closedBody struct {
	io.ReadCloser
	closed func()
}

// Close implements io.Closer.
func (b *closedBody) Close() error {
	defer b.closed()
	return b.ReadCloser.Close()
}

// answerTimeout is how long the upstream may take from the last byte of a request to the
// header of the response. Without streaming, the header comes with the whole answer,
// which takes some models many minutes.
const answerTimeout = time.Hour

var (
	errNoAnswer = errors.New("the upstream did not answer in time")

	failNoAnswer = failure{
		status: http.StatusGatewayTimeout, code: "upstream_timeout", noRetry: true,
		message: fmt.Sprintf("the provider did not begin to answer within %v; the call may be paid for", answerTimeout),
	}
)

// awaitAnswer sends r, and gives up when no response begins for answerTimeout. watch
// gets the response, and what cancels the request.
func (l realtimeLimit) awaitAnswer(r *http.Request, watch func(*http.Response, func())) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context()) // ends with the context of r, which ends with the request
	timer := time.AfterFunc(answerTimeout, func() { cancel(errNoAnswer) })
	watched := r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		watched.Body = &sentBody{r.Body, timer}
	}
	res, err := l.RoundTripper.RoundTrip(watched)
	timer.Stop()
	gaveUp := errors.Is(context.Cause(ctx), errNoAnswer)
	switch {
	case err != nil:
	case gaveUp:
		_ = res.Body.Close()
	default:
		watch(res, func() { cancel(errStalled) })
	}
	if gaveUp {
		return failNoAnswer.response(r), nil
	}
	return res, err
}

// A sentBody is a request body that restarts a timer whenever bytes are read.
type sentBody struct {
	io.ReadCloser
	timer *time.Timer
}

// Read implements io.Reader.
func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 && b.timer.Stop() { // not when the response has begun before
		b.timer.Reset(answerTimeout)
	}
	return n, err
}

// CloseIdleConnections closes those of the base, as http.Client expects.
func (l realtimeLimit) CloseIdleConnections() {
	if base, ok := l.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// A passState says whether a held call counts in Proxy.passing.
type passState = int32

const (
	notPassing    passState = iota
	passChosen              // the call is sent in real time
	passEscalated           // the call has waited, and is sent in real time
	passEnded               // the call has ended, and counts no more
)

// A passage decides whether a held call may be sent in real time, and counts the call in
// Proxy.passing meanwhile. The Transport keeps the caller with the line when the client has
// left, for up to a day: a passage has no reference to the call and its request.
type passage struct {
	caller caller.Caller
	p      *Proxy
	waited atomic.Bool  // for a batch, or for the flex tier
	state  atomic.Int32 // a passState
}

func (p *Proxy) newPassage(c *caller.Caller) *passage {
	s := &passage{caller: *c, p: p}
	s.caller.Realtime = s.begin
	return s
}

// begin reports whether the call may be sent in real time, and then counts the call until
// end. The Transport asks before the call leaves its batch, also in goroutines that
// outlive the call.
func (s *passage) begin() bool {
	if state := s.state.Load(); state != notPassing {
		return state != passEnded // asked again
	}
	if !s.p.beginPassing() {
		return false
	}
	begun := passChosen
	if s.waited.Load() {
		begun = passEscalated
	}
	s.p.passLane(begun).waiting.Add(1)
	if !s.state.CompareAndSwap(notPassing, begun) {
		s.p.passed(begun)
	}
	return s.state.Load() != passEnded
}

// end runs at the end of the call.
func (s *passage) end() {
	if begun := s.state.Swap(passEnded); s.p.passLane(begun) != nil {
		s.p.passed(begun)
	}
}

// passed undoes the counting of a call that counts no more.
func (p *Proxy) passed(begun passState) {
	p.passing.Add(-1)
	p.passLane(begun).waiting.Add(-1)
}

// beginPassing counts a request that passes through in Proxy.passing, or counts a
// refusal and returns false at the limit.
func (p *Proxy) beginPassing() bool {
	if n := p.passing.Add(1); p.opts.MaxPassedThrough > 0 && n > int64(p.opts.MaxPassedThrough) {
		p.passing.Add(-1)
		p.refusals.WithLabelValues(refusedPassThrough).Inc()
		return false
	}
	return true
}

// response returns the failure as the response to a request of the proxy.
func (f failure) response(r *http.Request) *http.Response {
	body := f.body()
	header := http.Header{"Content-Type": {"application/json"}, "Content-Length": {strconv.Itoa(len(body))}}
	if f.retryAfter != "" {
		header.Set("Retry-After", f.retryAfter)
	}
	if f.noRetry {
		header.Set("X-Should-Retry", "false")
	}
	return &http.Response{
		Status: strconv.Itoa(f.status) + " " + http.StatusText(f.status), StatusCode: f.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}
}
