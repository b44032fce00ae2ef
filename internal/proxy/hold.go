package proxy

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/aside"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/usage"
)

// A heldCall is a call that waits for the result of its batch.
type heldCall struct {
	*responseWriter
	p *Proxy

	body    requestBody
	place   queuePlace
	scanner usage.Scanner // responseWriter.usage
	passage *passage      // nil: refused

	result io.Reader // the body of the Transport's response, without credentials

	mu       sync.Mutex // guards responseWriter until stopHeartbeats returns, and the fields below
	call     caller.Call
	timer    *time.Timer
	interval time.Duration // between heartbeats
	format   heartbeatFormat
	late     lateStream // the events that were sent before the answer
	stopped  bool       // no further heartbeat is sent
}

// hold begins a call that the Transport answers, and returns what waits for the answer.
// hold returns nil if the call has its answer.
func (p *Proxy) hold(rw *responseWriter) (wait func()) {
	c := &heldCall{responseWriter: rw, p: p, place: queuePlace{limit: &p.queue}}
	p.held.Add(1)
	defer func() {
		if wait == nil {
			c.end()
		}
	}()
	req, refusal := c.begin()
	if refusal != nil {
		rw.writeFailure(*refusal)
		return nil
	}
	return func() { c.wait(req) }
}

// wait waits for the answer, for up to a day. Nothing deep runs on the goroutine that waits.
func (c *heldCall) wait(req *http.Request) {
	defer c.end()
	res, err := c.p.opts.Transport.RoundTrip(req)
	aside.Run(func() { c.answer(res, err) })
}

// begin returns the request for the Transport, or a refusal.
func (c *heldCall) begin() (*http.Request, *failure) {
	p, r := c.p, c.r
	c.usage = &c.scanner
	switch {
	case p.queue.full(): // before the body is sent; queuePlace.reserve decides
		p.refusals.WithLabelValues(refusedQueue).Inc()
		return nil, &failTooManyCalls
	case r.ContentLength > p.opts.MaxBody:
		return nil, &failTooLarge
	}
	c.body.begin(c.responseWriter, &p.memory, p.opts.MaxBody, &c.place)
	if !c.body.held.add(largeHeader(r.Header)) {
		p.countBodyRefusal(errNoMemory)
		return nil, &failNoMemory
	}
	c.passage = p.newPassage(c.caller)
	return p.newRequest(caller.Follow(r.Context(), &c.passage.caller, c), r, &c.body), nil
}

// end releases what the call holds.
func (c *heldCall) end() {
	c.stopHeartbeats()
	if c.body.begun() {
		c.body.Close()
		c.body.held.release()
	}
	c.place.release()
	if c.passage != nil {
		c.passage.end()
	}
	c.p.held.Add(-1)
}

// answer sends the result of RoundTrip to the client.
func (c *heldCall) answer(res *http.Response, err error) {
	c.place.release()
	c.stopHeartbeats()
	c.bytesIn, _ = c.body.progress()
	c.lane = c.laneOf(res)
	if err != nil {
		c.fail(err)
		return
	}
	defer res.Body.Close()
	c.result = c.p.cleanBody(res)
	c.reportFailure(res)
	c.respond(res)
}

// Waiting implements caller.Observer. Heartbeats start only when the call waits: before,
// the proxy does not know the heartbeat format, and the client may still be sending.
func (c *heldCall) Waiting(call caller.Call) {
	c.passage.waited.Store(true)
	c.place.queued()
	c.startHeartbeats(call)
}

// Hold implements caller.Observer.
func (c *heldCall) Hold() (release func()) { return c.body.held.Hold() }

// countBodyRefusal counts a request whose body a limit refused.
func (p *Proxy) countBodyRefusal(err error) {
	switch {
	case errors.Is(err, errNoMemory):
		p.refusals.WithLabelValues(refusedMemory).Inc()
	case errors.Is(err, errQueueFull):
		p.refusals.WithLabelValues(refusedQueue).Inc()
	}
}

// fail ends a call for which RoundTrip returned an error.
func (c *heldCall) fail(err error) {
	f := c.p.transportFailure(err)
	_, bodyErr := c.body.progress()
	switch {
	case bodyErr != nil: // checked first: net/http also cancels the context after a read error
		f = bodyFailure(bodyErr)
		c.p.countBodyRefusal(bodyErr)
	case clientGone(c.r):
		panic(http.ErrAbortHandler)
	case c.p.opts.OnFailure != nil:
		c.p.opts.OnFailure(Failure{Status: f.status, Code: f.code})
	}
	if c.committed() {
		c.abortCommitted(f.object())
	}
	c.writeFailure(f)
}

// respond sends the Transport's response to the client.
func (c *heldCall) respond(res *http.Response) {
	if c.committed() {
		c.respondCommitted(res)
		return
	}
	h := c.Header()
	for name, values := range res.Header {
		h[name] = values
	}
	for _, name := range hopByHopHeaders {
		delete(h, name)
	}
	c.p.cleanHeader(h, res.StatusCode)
	c.WriteHeader(res.StatusCode)
	c.copyBody(res)
}

// respondCommitted sends the response after 200 was committed. A response that
// does not match the committed status and content type becomes a failure.
func (c *heldCall) respondCommitted(res *http.Response) {
	isStream := strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream")
	switch {
	case res.StatusCode >= 300, isStream != (c.format != formatNewline), res.Header.Get("Content-Encoding") != "":
		object := c.p.errorObject(res, c.result)
		markUndelivered(res)
		c.abortCommitted(object)
	case c.late.id != "":
		c.copyEvents(res)
	default:
		c.copyBody(res)
	}
	for _, name := range lateHeaders {
		if value := res.Header.Get(name); value != "" {
			c.Header().Set(http.TrailerPrefix+name, c.p.opts.Secrets.Value(value, false))
		}
	}
}

// lateHeaders are sent as trailers behind an answer whose headers were sent before
// the batch had ended.
var lateHeaders = []string{"X-Request-Id", "Autobatcher-Batch-Id", "Autobatcher-Custom-Id", "Autobatcher-Mode", "Autobatcher-Cost"}

// An undeliveredMarker is a response body that can be marked as not delivered.
type undeliveredMarker interface{ MarkUndelivered() }

// The Transport's bodies must have the method, or paid results would be dropped.
var _ undeliveredMarker = (*reply.Body)(nil)

// markUndelivered lets the Transport keep a response that the client did not
// receive. An SDK retries after a broken connection; the retry then gets the
// kept response, and no second line is paid for.
func markUndelivered(res *http.Response) {
	if body, ok := res.Body.(undeliveredMarker); ok {
		body.MarkUndelivered()
	}
}

// copyBody sends the response's body. A body of unknown length may be a stream
// in progress, so copyBody flushes each piece of such a body.
func (c *heldCall) copyBody(res *http.Response) {
	var w io.Writer = c.responseWriter
	if res.ContentLength < 0 {
		w = flushWriter{c.responseWriter}
	}
	buffer := bufferPool.Get().(*[bufferSize]byte)
	defer bufferPool.Put(buffer)
	if _, err := io.CopyBuffer(w, c.result, buffer[:]); err != nil {
		markUndelivered(res)
		panic(http.ErrAbortHandler) // a clean end would make the partial body look complete
	}
}

// A flushWriter flushes after each write.
type flushWriter struct{ *responseWriter }

// Write writes b and flushes.
func (f flushWriter) Write(b []byte) (int, error) {
	n, err := f.responseWriter.Write(b)
	if err == nil {
		err = f.FlushError()
	}
	return n, err
}

// copyEvents sends a stream so that the stream continues the events that were sent
// before.
func (c *heldCall) copyEvents(res *http.Response) {
	events := bufio.NewReaderSize(c.result, bufferSize)
	for {
		event, err := readEvent(events)
		last := errors.Is(err, io.EOF)
		if _, werr := c.Write(c.late.continued(event)); werr != nil || err != nil && !last {
			markUndelivered(res)
			panic(http.ErrAbortHandler)
		}
		if last {
			return
		}
		if events.Buffered() == 0 {
			c.Flush()
		}
	}
}

// maxErrorBody is how many bytes of an error response are read.
const maxErrorBody = 64 << 10

// errorObject returns the error object of a response whose status cannot be
// sent any more.
func (p *Proxy) errorObject(res *http.Response, result io.Reader) []byte {
	body, _ := io.ReadAll(io.LimitReader(result, maxErrorBody))
	if object := gjson.GetBytes(body, "error"); object.IsObject() && gjson.ValidBytes(body) {
		return []byte(object.Raw)
	}
	return []byte(p.opts.Secrets.Text(string(upstreamError(res, "").object())))
}
