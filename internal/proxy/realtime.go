package proxy

import (
	"bytes"
	"io"
	"net/http"
	"strconv"

	"github.com/autobatcher/autobatcher/internal/caller"
)

// LimitRealtime returns base for Options.Base of the Transport. Held calls that the
// Transport sends in real time (escalated calls, "background": true, and calls that the
// provider does not batch) then count as requests that pass through: with
// Options.MaxPassedThrough such requests, a further call gets 503.
func LimitRealtime(base http.RoundTripper) http.RoundTripper { return realtimeLimit{base} }

type realtimeLimit struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (l realtimeLimit) RoundTrip(r *http.Request) (*http.Response, error) {
	if c, held := caller.ObserverOf(r.Context()).(*heldCall); held && !c.passThrough() {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return failTooManyPassed.response(r), nil
	}
	return l.RoundTripper.RoundTrip(r)
}

// CloseIdleConnections closes those of the base, as http.Client expects.
func (l realtimeLimit) CloseIdleConnections() {
	if base, ok := l.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// passThrough reports whether the call may be sent in real time, and then counts the
// call until endPassThrough.
func (c *heldCall) passThrough() bool {
	if c.passing.Load() {
		return true // sent again
	}
	if !c.p.beginPassing() {
		return false
	}
	if c.passing.Swap(true) {
		c.p.passing.Add(-1)
	}
	return true
}

// endPassThrough runs at the end of the call.
func (c *heldCall) endPassThrough() {
	if c.passing.Load() {
		c.p.passing.Add(-1)
	}
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
	return &http.Response{
		Status: strconv.Itoa(f.status) + " " + http.StatusText(f.status), StatusCode: f.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{
			"Content-Type": {"application/json"}, "Content-Length": {strconv.Itoa(len(body))}, "Retry-After": {f.retryAfter},
		},
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}
}
