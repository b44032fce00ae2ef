// Package realtime sends a call as its caller made it: at once, and at full price.
package realtime

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/autobatcher/autobatcher/internal/callheader"
	"github.com/autobatcher/autobatcher/internal/requestbody"
)

// A Call is a call that is sent in real time, once.
type Call struct {
	Request  *http.Request // as the caller made it
	Body     []byte        // of Request, which was read
	Deadline time.Time     // zero: none
	Announce func()        // is called before the call is sent
	Scan     func([]byte)  // is called with the bytes of the answer that the caller has read

	// End is called once: when Send returns without a response, or else when the
	// caller has read or closed the body of the response.
	End func(Outcome)
}

// An Outcome is how a call ended.
type Outcome struct {
	Paid   bool // the provider's answer is no failure
	Served bool // the caller has read an answer that is no failure
	Left   bool // the caller disconnected before it had read an answer
}

// ErrDeadline is returned by Send if the provider did not answer before the Deadline.
var ErrDeadline = errors.New("the provider did not answer before the deadline")

// Send sends the call and returns the provider's response. The error is ErrDeadline or
// that of base. End is called also if Announce, base or End itself panics.
func (c *Call) Send(base http.RoundTripper) (*http.Response, error) {
	ctx, cancel := c.Request.Context(), func() {}
	if !c.Deadline.IsZero() {
		ctx, cancel = context.WithDeadline(ctx, c.Deadline)
	}
	paid, handed := false, false
	var whole atomic.Bool
	end := sync.OnceFunc(func() {
		cancel()
		c.End(Outcome{Paid: paid, Served: paid && whole.Load(), Left: !whole.Load() && c.Request.Context().Err() != nil})
	})
	defer func() {
		if !handed {
			end()
		}
	}()
	c.Announce()
	res, err := base.RoundTrip(requestbody.Restore(callheader.Strip(c.Request), c.Body).WithContext(ctx))
	switch {
	case err == nil:
	case ctx.Err() != nil && c.Request.Context().Err() == nil:
		return nil, ErrDeadline
	default:
		return nil, err
	}
	mark(res)
	res.Request = c.Request
	paid = res.StatusCode < http.StatusMultipleChoices
	res.Body = &body{ReadCloser: res.Body, caller: c.Request.Context(), scan: c.Scan, whole: func() { whole.Store(true) }, end: end}
	handed = true
	return res, nil
}

// mark says in a response that the call was sent in real time. The user's RoundTripper
// may leave out the header and the body.
func mark(res *http.Response) {
	if res.Header == nil {
		res.Header = make(http.Header)
	}
	if res.Body == nil {
		res.Body = http.NoBody
	}
	res.Header.Set(callheader.Mode, "realtime")
}

// A body is the body of a response. It reports the end of the reading.
type body struct {
	io.ReadCloser
	caller context.Context //nolint:containedctx // for as long as the caller reads
	scan   func([]byte)

	// whole is called at the end of the body, or when the caller closes the body
	// because it has read enough, as SDKs do after the last event of a stream. end is
	// called in any case, after whole. Both may be called several times.
	whole, end func()

	broken atomic.Bool // a Read failed
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.scan(p[:n])
	switch err {
	case nil:
	case io.EOF: //nolint:errorlint // io.Reader says that EOF is not wrapped
		b.whole()
		b.end()
	default:
		b.broken.Store(true)
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	if b.caller.Err() == nil && !b.broken.Load() {
		b.whole()
	}
	defer b.end()
	return b.ReadCloser.Close()
}
