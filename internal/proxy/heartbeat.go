package proxy

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/sse"
)

// A form is how a committed answer is kept alive.
type form int

const (
	uncommitted form = iota
	newlines         // before a JSON body: every client skips white space
	comments         // in a stream of events, without the blank line that old openai-go takes for an event
	chunks           // with nothing in them, for go-openai: it gives up after 300 lines of comments
)

const (
	newline = "\n"
	comment = ": waiting for the batch\n"
)

// formFor says which form the client can bear.
func formFor(r *http.Request, endpoint string, stream bool) form {
	switch {
	case !stream || endpoint == "/embeddings":
		return newlines
	case endpoint == "/chat/completions" && isGoOpenAI(r.Header):
		return chunks
	}
	return comments
}

// isGoOpenAI knows go-openai and its forks by the headers of their streams.
func isGoOpenAI(h http.Header) bool {
	return h.Get("Accept") == "text/event-stream" && h.Get("Cache-Control") == "no-cache" &&
		strings.HasPrefix(h.Get("User-Agent"), "Go-http-client/")
}

// startBeating sets the time at which 200 is committed, if ever. The Transport
// has read the body: until then it is not known what to send, and the caller is
// not waiting yet.
func (c *heldCall) startBeating() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.timer != nil {
		return
	}
	grace, every := c.p.opts.Grace, c.p.opts.Heartbeat
	if grace < 0 || !c.r.ProtoAtLeast(1, 1) { // HTTP/1.0 cannot tell a broken end from a clean one
		return
	}
	if patience := announced(c.r.Header); patience > 0 {
		grace = min(grace, patience*4/5)
		every = min(every, patience/2)
	}
	c.every = every
	c.timer = time.AfterFunc(grace, c.beat)
}

// announced is the shortest timeout that the client says it has, or 0.
func announced(h http.Header) time.Duration {
	var shortest time.Duration
	for _, name := range []string{"X-Stainless-Timeout", "X-Stainless-Read-Timeout"} {
		seconds, err := strconv.ParseFloat(h.Get(name), 64)
		if err != nil || !(seconds > 0 && seconds < 1e9) {
			continue
		}
		timeout := time.Duration(seconds * float64(time.Second))
		if shortest == 0 || timeout < shortest {
			shortest = timeout
		}
	}
	return shortest
}

// stopBeating returns when no heartbeat is being written, and none will be.
func (c *heldCall) stopBeating() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.timer != nil {
		c.timer.Stop()
	}
}

// beat sends a sign of life, the first time with the status. It runs on the
// timer's goroutine. An error ends the beating and nothing else: where the
// caller has gone, net/http ends the call's context.
func (c *heldCall) beat() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	if c.form == uncommitted {
		c.commit()
	}
	if _, err := c.Write(c.sign()); err != nil {
		return
	}
	if err := c.FlushError(); err == nil {
		c.timer.Reset(c.every)
	}
}

// commit sends the status, which cannot be taken back.
func (c *heldCall) commit() {
	c.form = formFor(c.r, c.endpoint, c.body.scan.stream())
	h := c.Header()
	h["Content-Type"] = []string{"application/json"}
	if c.form != newlines {
		h["Content-Type"] = []string{"text/event-stream; charset=utf-8"}
		h["Cache-Control"] = []string{"no-cache"}
	}
	h["X-Accel-Buffering"] = []string{"no"} // nginx would keep the signs of life to itself
	if c.form == chunks {
		c.chunkID = fmt.Sprintf("chatcmpl-%s-%d", c.p.boot, c.p.calls.Add(1))
		c.created = time.Now().Unix()
	}
	c.WriteHeader(http.StatusOK)
}

// sign is the next sign of life.
func (c *heldCall) sign() []byte {
	switch c.form {
	case comments:
		return []byte(comment)
	case chunks:
		return fmt.Appendf(nil, `data: {"id":%q,"object":"chat.completion.chunk","created":%d,"model":%s,"choices":[{"index":0,"delta":{},"finish_reason":null}]}`+"\n\n",
			c.chunkID, c.created, c.body.scan.model())
	}
	return []byte(newline)
}

// failLate tells about a failure after 200 was committed, as far as that is
// possible, and breaks the connection, which every client notices.
func (c *heldCall) failLate(object []byte) {
	switch {
	case c.form == newlines:
	case c.endpoint == "/responses":
		_, _ = c.Write(sse.AppendResponseError(nil, object))
	default:
		_, _ = c.Write(sse.AppendChatError(nil, object))
	}
	c.Flush()
	panic(http.ErrAbortHandler)
}
