package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// errStalled is the error of a body of a passed request that stopped arriving.
	errStalled = errors.New("no byte arrived for Options.PassThroughTimeout")

	// errNotRead is the error of a passed request whose body the upstream stopped
	// reading.
	errNotRead = errors.New("the upstream read no byte for Options.PassThroughTimeout")

	failNotRead = failure{
		status: http.StatusGatewayTimeout, code: "upstream_stalled",
		message: "the provider stopped reading the request (--pass-through-timeout); send the request again",
	}
)

// A passedBody is the request or response body of a request that passes through. A
// passedBody limits how long one Read may wait for a byte, so that a peer that has
// stopped does not keep a connection for ever, and counts the bytes of a request
// body that the Transport may keep. Time in which nobody reads does not count for a
// response: the client may be slow, and responseWriter limits each write. For a request
// body sendTimer limits that time, from the first byte to the last one.
type passedBody struct {
	io.ReadCloser
	timeout time.Duration
	stop    func()     // makes a blocked Read fail
	held    *heldBytes // nil: the bytes are not counted

	failure atomic.Pointer[error] // errStalled, errNotRead or errNoMemory, if the proxy ended the body

	sending   sync.Mutex  // guards the fields below
	sendTimer *time.Timer // ends the request when nobody reads; nil for a response
	left      int64       // bytes that Read has not returned yet; negative: not known
	sent      bool        // nobody has to read the rest
}

// limitSending makes stop run when the next Read does not come in time.
func (b *passedBody) limitSending(length int64, stop func()) {
	b.left = length
	b.sendTimer = time.AfterFunc(b.timeout, func() {
		b.fail(errNotRead)
		stop()
	})
	b.sendTimer.Stop() // until the body has begun
}

// nextRead starts sendTimer after a Read that returned n bytes.
func (b *passedBody) nextRead(n int, err error) {
	b.sending.Lock()
	defer b.sending.Unlock()
	b.left -= int64(n)
	if b.sendTimer != nil && err == nil && b.left != 0 && !b.sent {
		b.sendTimer.Reset(b.timeout)
	}
}

// endSending ends the limit of limitSending: the upstream has answered, or the body is
// closed. b may be nil.
func (b *passedBody) endSending() {
	if b == nil || b.sendTimer == nil {
		return
	}
	b.sending.Lock()
	defer b.sending.Unlock()
	b.sent = true
	b.sendTimer.Stop()
}

// Close implements io.Closer.
func (b *passedBody) Close() error {
	b.endSending()
	return b.ReadCloser.Close()
}

// Read implements io.Reader.
func (b *passedBody) Read(p []byte) (n int, err error) {
	if b.sendTimer != nil {
		b.sendTimer.Stop()
		defer func() { b.nextRead(n, err) }()
	}
	timer := time.AfterFunc(b.timeout, func() {
		b.fail(errStalled)
		b.stop()
	})
	n, err = b.ReadCloser.Read(p)
	timer.Stop()
	if !b.held.add(int64(n)) {
		b.fail(errNoMemory)
		return 0, errNoMemory
	}
	if err != nil && !errors.Is(err, io.EOF) && b.failed() != nil {
		err = b.failed()
	}
	return n, err
}

func (b *passedBody) fail(err error) { b.failure.CompareAndSwap(nil, &err) }

// failed returns the reason why the proxy ended the body, or nil. b may be nil.
func (b *passedBody) failed() error {
	if b == nil {
		return nil
	}
	if err := b.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// watchRequest replaces the body of r by a passedBody, and returns the passedBody, or
// nil if r has no body. cancel ends r when the upstream stops reading the body. Bodies of uploads are not counted: the Transport streams
// uploads, and keeps at most the bodies of model calls, which are JSON.
func (p *Proxy) watchRequest(rw *responseWriter, r *http.Request, cancel context.CancelCauseFunc) *passedBody {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	body := &passedBody{
		ReadCloser: r.Body, timeout: p.opts.PassThroughTimeout,
		stop: func() { _ = rw.rc.SetReadDeadline(time.Now()) },
	}
	if r.Method == http.MethodPost && !isUpload(r) {
		body.held = p.memory.hold()
	}
	body.limitSending(r.ContentLength, func() { cancel(errNotRead) })
	r.Body = body
	return body
}

// watchResponse makes the response body of a passed request, or of a held call that
// was answered in real time, fail when no byte arrives. cancel ends the request to the
// upstream. An upgradedConn watches the connection of an upgraded protocol (101).
func (p *Proxy) watchResponse(res *http.Response, cancel func()) {
	if res.StatusCode == http.StatusSwitchingProtocols {
		return
	}
	path := res.Request.URL.Path
	res.Body = &passedBody{ReadCloser: res.Body, timeout: p.opts.PassThroughTimeout, stop: func() {
		p.opts.Logger.Warn("the upstream's response stopped arriving", "path", path, "after", p.opts.PassThroughTimeout)
		cancel()
	}}
}
