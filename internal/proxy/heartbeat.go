package proxy

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/sse"
)

// A heartbeatFormat is the form of the bytes that prevent a client timeout after the
// commit of 200.
type heartbeatFormat int

const (
	formatNone     heartbeatFormat = iota // 200 is not committed
	formatNewline                         // before a JSON body: every JSON parser skips white space
	formatComment                         // in an event stream, without a blank line: old openai-go versions take a blank line for an event
	formatChunk                           // empty chunks of a chat stream
	formatText                            // empty chunks of the stream of a text completion
	formatResponse                        // events of the Responses API that say that the response is in progress
)

const (
	newlineHeartbeat = "\n"
	commentHeartbeat = ": waiting for the batch\n"
)

// chooseFormat returns the format for a client. Events are better than comments,
// since some clients end a stream without an event for two minutes (LangChain) or
// with 300 lines of comments (go-openai). But a client that is not known may take
// an event for an answer, and gets comments.
func chooseFormat(r *http.Request, endpoint string, stream bool) heartbeatFormat {
	switch {
	case !stream || endpoint == "/embeddings":
		return formatNewline
	case endpoint == "/chat/completions" && (isOpenAI(r.Header) || isGoOpenAI(r.Header) || isVercel(r.Header)):
		return formatChunk
	case endpoint == "/completions" && (isOpenAI(r.Header) || isGoOpenAI(r.Header)):
		return formatText
	case endpoint == "/responses" && isOpenAI(r.Header):
		return formatResponse
	}
	return formatComment
}

// isOpenAI reports whether the headers are those of an SDK of OpenAI, which
// frameworks in Python, JavaScript and Go use.
func isOpenAI(h http.Header) bool { return h.Get("X-Stainless-Lang") != "" }

// isGoOpenAI reports whether the headers are those of a streaming call by
// go-openai or a fork of go-openai, which send no name of their own.
func isGoOpenAI(h http.Header) bool {
	return h.Get("Accept") == "text/event-stream" && h.Get("Cache-Control") == "no-cache" &&
		strings.HasPrefix(h.Get("User-Agent"), "Go-http-client/")
}

// isVercel reports whether the headers are those of Vercel's AI SDK.
func isVercel(h http.Header) bool { return strings.Contains(h.Get("User-Agent"), "ai-sdk/") }

// startHeartbeats schedules the first heartbeat of a call that waits.
//
// Responses to HTTP/1.0 get no heartbeats, because an HTTP/1.0 client cannot
// distinguish an aborted response from a complete response.
func (c *heldCall) startHeartbeats(call caller.Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped || c.timer != nil {
		return
	}
	grace, interval := c.p.opts.Grace, c.p.opts.Heartbeat
	if grace < 0 || !c.r.ProtoAtLeast(1, 1) {
		return
	}
	if timeout := announcedTimeout(c.r.Header); timeout > 0 {
		grace = min(grace, max(timeout*4/5, minAnnounced))
		interval = min(interval, max(timeout/2, minAnnounced))
	}
	c.call, c.interval = call, interval
	c.timer = time.AfterFunc(grace, c.beat)
}

// minAnnounced is the shortest grace and the shortest interval between heartbeats
// that a client can cause by announcing a timeout: each heartbeat costs a write.
const minAnnounced = time.Second

// announcedTimeout returns the shortest timeout that the client announces in
// its headers, or 0.
func announcedTimeout(h http.Header) time.Duration {
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

// stopHeartbeats waits for a heartbeat that is being written, and prevents all
// further heartbeats. Afterwards only the handler's goroutine uses the response.
func (c *heldCall) stopHeartbeats() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.timer != nil {
		c.timer.Stop()
	}
}

// beat runs on the timer's goroutine and sends a heartbeat; the first heartbeat
// also commits status 200. A write error ends the heartbeats but not the call:
// when the client disconnects, net/http cancels the context of the call.
func (c *heldCall) beat() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	if !c.committed() {
		c.commitLocked()
	}
	if _, err := c.Write(c.heartbeat()); err != nil {
		return
	}
	if err := c.FlushError(); err == nil {
		c.timer.Reset(c.interval)
	}
}

// committed reports whether status 200 was sent before the outcome of the call
// was known.
func (c *heldCall) committed() bool { return c.format != formatNone }

// commitLocked sends status 200 and the headers, with the names that the call has
// at the provider by now. The caller holds c.mu.
func (c *heldCall) commitLocked() {
	c.format = chooseFormat(c.r, c.endpoint, c.call.Stream)
	h := c.Header()
	h["Content-Type"] = []string{"application/json"}
	if c.format != formatNewline {
		h["Content-Type"] = []string{"text/event-stream; charset=utf-8"}
		h["Cache-Control"] = []string{"no-cache"}
	}
	h["X-Accel-Buffering"] = []string{"no"} // nginx buffers heartbeats otherwise
	batchID, customID := c.call.Name()
	h["Autobatcher-Custom-Id"] = []string{customID}
	if batchID = reply.HeaderValue(batchID); batchID != "" {
		h["Autobatcher-Batch-Id"] = []string{batchID}
	}
	if c.format >= formatChunk {
		c.late = lateStream{
			format: c.format, created: time.Now().Unix(), model: c.call.Model,
			id: fmt.Sprintf("%s%s-%d", idPrefix[c.format], c.p.instanceID, c.p.chunkIDs.Add(1)),
		}
	}
	c.WriteHeader(http.StatusOK)
}

var idPrefix = map[heartbeatFormat]string{formatChunk: "chatcmpl-", formatText: "cmpl-", formatResponse: "resp_"}

// heartbeat returns the bytes of one heartbeat.
func (c *heldCall) heartbeat() []byte {
	switch c.format {
	case formatNone, formatNewline:
		return []byte(newlineHeartbeat)
	case formatComment:
		return []byte(commentHeartbeat)
	case formatChunk, formatText, formatResponse:
	}
	return c.late.heartbeat()
}

// abortCommitted reports a failure after 200 was committed: a stream gets an
// error event, a JSON response gets nothing. abortCommitted always breaks the
// connection, by a panic with http.ErrAbortHandler, because clients take a clean
// end for a success.
func (c *heldCall) abortCommitted(object []byte) {
	switch {
	case c.format == formatNewline:
	case c.endpoint == "/responses":
		_, _ = c.Write(c.late.continued(sse.AppendResponseError(nil, object)))
	default:
		_, _ = c.Write(sse.AppendChatError(nil, object))
	}
	c.Flush()
	panic(http.ErrAbortHandler)
}
