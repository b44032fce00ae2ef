package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
)

// A heldCall is a call on its way through a batch.
type heldCall struct {
	*answer
	p    *Proxy
	body *callBody

	mu      sync.Mutex // guards the answer while the call is held: the timer writes to it too
	timer   *time.Timer
	every   time.Duration // between heartbeats
	form    form          // set when 200 is committed
	over    bool          // no heartbeat from now on
	chunkID string        // of the chunks that were heartbeats, if any were
	created int64
}

// hold answers a call when the Transport does, however long that takes.
func (p *Proxy) hold(a *answer, r *http.Request) {
	a.tally = &tally{}
	defer p.held.Add(-1)
	switch held := p.held.Add(1); {
	case p.opts.MaxQueued > 0 && held > int64(p.opts.MaxQueued):
		a.refuse(failFull)
		return
	case r.ContentLength > p.opts.MaxBody:
		a.refuse(failTooLarge)
		return
	}
	c := &heldCall{answer: a, p: p}
	c.body = newCallBody(a, p.opts.MaxBody, c.startBeating)
	defer c.body.Close()
	defer c.stopBeating()
	res, err := p.opts.Transport.RoundTrip(p.upstream.outgoing(r, c.body))
	c.stopBeating()
	c.received, _ = c.body.progress()
	if err != nil {
		c.fail(err)
		return
	}
	defer res.Body.Close()
	c.respond(res)
}

// fail ends a call that got no response.
func (c *heldCall) fail(err error) {
	f := failureOf(err)
	_, unread := c.body.progress()
	switch {
	case unread != nil: // net/http takes any such error for the caller's end
		f = bodyFailure(unread)
	case gone(c.r):
		panic(http.ErrAbortHandler) // nobody listens
	}
	if c.form != uncommitted {
		c.failLate(f.object())
	}
	c.refuse(f)
}

// respond sends the Transport's response.
func (c *heldCall) respond(res *http.Response) {
	if c.form != uncommitted {
		c.respondLate(res)
		return
	}
	h := c.Header()
	for name, values := range res.Header {
		h[name] = values
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
	c.WriteHeader(res.StatusCode)
	c.copy(res)
}

// respondLate sends it after 200 was committed, if it fits what was committed.
func (c *heldCall) respondLate(res *http.Response) {
	events := strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream")
	switch {
	case res.StatusCode >= 300, events != (c.form != newlines), res.Header.Get("Content-Encoding") != "":
		object := errorObject(res)
		giveBack(res)
		c.failLate(object)
	case c.chunkID != "":
		c.copyChunks(res)
	default:
		c.copy(res)
	}
}

// giveBack lets the Transport keep an answer that could not be passed on, for
// the retry that an SDK makes of a call that broke off: a new line would be paid
// for, and fare no better.
func giveBack(res *http.Response) {
	if body, ok := res.Body.(interface{ Keep() }); ok {
		body.Keep()
	}
}

// copy sends the response's body, at once where it is a stream that is still
// being made.
func (c *heldCall) copy(res *http.Response) {
	var w io.Writer = c.answer
	if res.ContentLength < 0 {
		w = flusher{c.answer}
	}
	buffer := bufferPool.Get().(*[bufferSize]byte)
	defer bufferPool.Put(buffer)
	if _, err := io.CopyBuffer(w, res.Body, buffer[:]); err != nil {
		giveBack(res)
		panic(http.ErrAbortHandler) // the caller must not take it for all
	}
}

// A flusher flushes every write.
type flusher struct{ *answer }

// Write writes b and flushes it.
func (f flusher) Write(b []byte) (int, error) {
	n, err := f.answer.Write(b)
	if err == nil {
		err = f.FlushError()
	}
	return n, err
}

// copyChunks sends a chat stream under the id of the chunks that were
// heartbeats: to a reader they are all of one completion.
func (c *heldCall) copyChunks(res *http.Response) {
	lines := bufio.NewReaderSize(res.Body, bufferSize)
	for {
		line, err := lines.ReadBytes('\n')
		last := errors.Is(err, io.EOF)
		if _, werr := c.Write(c.renamed(line)); werr != nil || err != nil && !last {
			giveBack(res)
			panic(http.ErrAbortHandler)
		}
		if last {
			return
		}
		if lines.Buffered() == 0 {
			c.Flush()
		}
	}
}

// renamed is a line of the stream, under the id and time of the heartbeats.
func (c *heldCall) renamed(line []byte) []byte {
	data, ok := bytes.CutPrefix(line, []byte("data: {"))
	if !ok || !gjson.GetBytes(line[len("data: "):], "choices").Exists() {
		return line
	}
	chunk, err := sjson.SetBytes(line[len(line)-len(data)-1:], "id", c.chunkID)
	if err == nil {
		chunk, err = sjson.SetBytes(chunk, "created", c.created)
	}
	if err != nil {
		return line
	}
	return append([]byte("data: "), chunk...)
}

// maxErrorBody is how much of an error's body is read, in bytes.
const maxErrorBody = 64 << 10

// errorObject is the error in a response that came too late for its status.
func errorObject(res *http.Response) []byte {
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
	if object := gjson.GetBytes(body, "error"); object.IsObject() && gjson.ValidBytes(body) {
		return []byte(object.Raw)
	}
	return failure{status: res.StatusCode, code: "upstream_error", message: "the upstream answered " + res.Status}.object()
}
