package proxy

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
)

// LimitRealtime returns base for Options.Base of the Transport. Held calls that the
// Transport sends in real time (escalated calls, "background": true, and calls that the
// provider does not batch) then count as requests that pass through: with
// Options.MaxPassedThrough such requests, a further call gets 503, and a call that waits
// for its batch is not escalated.
func LimitRealtime(base http.RoundTripper) http.RoundTripper { return realtimeLimit{base} }

type realtimeLimit struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (l realtimeLimit) RoundTrip(r *http.Request) (*http.Response, error) {
	if c, held := r.Context().Value(heldKey{}).(*heldCall); held && !c.passThrough() {
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

// heldKey is the key of the heldCall in the context of its request.
type heldKey struct{}

func (c *heldCall) withHeld(ctx context.Context) context.Context {
	return context.WithValue(ctx, heldKey{}, c)
}

// A passState says whether a held call counts in Proxy.passing.
type passState = int32

const (
	notPassing passState = iota
	passing              // the call is sent in real time
	passEnded            // the call has ended, and counts no more
)

// passThrough reports whether the call may be sent in real time, and then counts the
// call until endPassThrough. The Transport asks before the call leaves its batch, also
// in goroutines that outlive the call.
func (c *heldCall) passThrough() bool {
	if state := c.passing.Load(); state != notPassing {
		return state == passing // asked again
	}
	if !c.p.beginPassing() {
		return false
	}
	if !c.passing.CompareAndSwap(notPassing, passing) {
		c.p.passing.Add(-1)
	}
	return c.passing.Load() == passing
}

// endPassThrough runs at the end of the call.
func (c *heldCall) endPassThrough() {
	if c.passing.Swap(passEnded) == passing {
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
