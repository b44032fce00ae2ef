// Package reply makes what a caller reads: the answer of its line as net/http
// would have received it, as a stream of events, or a failure in OpenAI's error
// shape.
package reply

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/sse"
)

// An Answer is what settles a call as an HTTP response.
type Answer struct {
	Status    int
	Body      []byte
	Text      bool   // the body is no JSON
	RequestID string // the provider's
	Ours      bool   // a failure of ours, not the provider's answer
	BatchID   string
	CustomID  string
}

// Failure is an answer of ours, in OpenAI's error shape.
func Failure(status int, code, message string) Answer {
	return Answer{Status: status, Body: errorBody(status, code, "", message), Ours: true}
}

// errorType is what OpenAI calls an error of this status.
func errorType(status int) string {
	switch {
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status == http.StatusFailedDependency:
		return "batch_error"
	case status >= 500:
		return "server_error"
	}
	return "invalid_request_error"
}

// errorBody is an error in OpenAI's shape; message and type are always strings.
func errorBody(status int, code, param, message string) []byte {
	type object struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    *string `json:"code"`
	}
	o := object{Message: message, Type: errorType(status)}
	if param != "" {
		o.Param = &param
	}
	if code != "" {
		o.Code = &code
	}
	body, err := json.Marshal(map[string]object{"error": o})
	if err != nil {
		panic(err) // four strings always marshal
	}
	return body
}

// Of makes an answer of a result line that is Answered.
func Of(r *line.Result) Answer {
	a := Answer{Status: r.Status, Body: r.Body, Text: r.Text, RequestID: r.RequestID}
	if r.Status >= 400 && !HasError(r.Body) {
		message := cmp.Or(strings.TrimSpace(string(r.Body)), r.Message, http.StatusText(r.Status))
		a.Body, a.Text = errorBody(r.Status, r.Code, "", message), false
	}
	return a
}

// Refused passes on what the provider said of a whole batch.
func Refused(status int, body []byte, message string) Answer {
	a := Answer{Status: status, Body: body, Ours: true}
	if !HasError(body) {
		a.Body = errorBody(status, "batch_refused", "", "the provider refused the batch: "+message)
	}
	return a
}

// HasError reports whether body is an error in OpenAI's shape, as SDKs read it.
func HasError(body []byte) bool {
	return line.Valid(body) && gjson.GetBytes(body, "error").IsObject()
}

// Reason is what an answer of ours says.
func (a *Answer) Reason() string { return gjson.GetBytes(a.Body, "error.message").String() }

// Response makes an http.Response as net/http would have read it. Its body is a
// *Body.
func (a *Answer) Response(req *http.Request) *http.Response {
	h := make(http.Header, 6)
	values := make([]string, 0, 8) // one allocation for all the headers
	set := func(name, value string) {
		if value != "" {
			values = append(values, value)
			h[name] = values[len(values)-1 : len(values) : len(values)]
		}
	}
	set("Content-Type", a.contentType())
	set("Content-Length", strconv.Itoa(len(a.Body)))
	set("X-Request-Id", a.RequestID)
	set("Autobatcher-Batch-Id", a.BatchID)
	set("Autobatcher-Custom-Id", a.CustomID)
	switch {
	case a.Status == http.StatusServiceUnavailable && a.Ours:
		set("Retry-After", "5") // nothing was submitted: trying again is safe
	case a.Status >= 400:
		set("X-Should-Retry", "false")
	}
	return newResponse(req, a.Status, h, a.Body)
}

func (a *Answer) contentType() string {
	if a.Text {
		return "text/plain; charset=utf-8"
	}
	return "application/json"
}

func statusLine(status int) string {
	if status == http.StatusOK {
		return "200 OK"
	}
	return strconv.Itoa(status) + " " + http.StatusText(status)
}

func newResponse(req *http.Request, status int, h http.Header, body []byte) *http.Response {
	content := &Body{ctx: req.Context()}
	content.r.Reset(body)
	return &http.Response{
		Status:     statusLine(status),
		StatusCode: status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        h,
		Body:          content,
		ContentLength: int64(len(body)),
		Request:       req,
	}
}

// Stream makes a response that is the stream of events which the provider would
// have sent: that of the Responses API, or that of a chat, with its usage if
// that was asked for.
func (a *Answer) Stream(req *http.Request, responses, usage bool) *http.Response {
	var events []byte
	var err error
	switch {
	case a.Text && looksLikeEvents(a.Body):
		events = a.Body // the provider batched the stream itself
	case responses:
		events, err = sse.AppendResponse(nil, a.Body)
	default:
		events, err = sse.AppendChat(nil, a.Body, usage)
	}
	if err != nil {
		bad := Failure(http.StatusFailedDependency, "batch_line_unreadable",
			"batch "+a.BatchID+" answered this request with something that cannot be streamed: "+err.Error())
		bad.BatchID, bad.CustomID, bad.RequestID = a.BatchID, a.CustomID, a.RequestID
		return bad.Response(req)
	}
	whole := *a
	whole.Body = events
	res := whole.Response(req)
	res.Header.Set("Content-Type", "text/event-stream; charset=utf-8")
	res.Header.Set("Cache-Control", "no-cache")
	return res
}

func looksLikeEvents(body []byte) bool {
	return bytes.HasPrefix(body, []byte("data:")) || bytes.HasPrefix(body, []byte("event:"))
}

// A Body is the body of a response, which knows whether its caller lived to
// read it.
type Body struct {
	r   bytes.Reader
	ctx context.Context // the caller's

	// Done, if not nil, is called once: when the end was reached, or the caller
	// closed the body because it had enough.
	Done func()

	// Unread, if not nil, is called once if the caller went away in the middle.
	Unread func()
}

// Len is how many bytes were not read yet.
func (b *Body) Len() int { return b.r.Len() }

// Read implements io.Reader.
func (b *Body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.Len() == 0 {
		b.done()
	}
	return n, err
}

// WriteTo implements io.WriterTo.
func (b *Body) WriteTo(w io.Writer) (int64, error) {
	n, err := b.r.WriteTo(w)
	if b.Len() == 0 && err == nil {
		b.done()
	}
	return n, err
}

func (b *Body) done() {
	if b.Done != nil {
		b.Done()
	}
	b.Done = nil
}

// Close is called by whoever reads the response.
func (b *Body) Close() error {
	if b.Len() > 0 && b.ctx.Err() != nil {
		b.Keep()
	}
	b.Unread = nil
	b.done()
	return nil
}

// Keep says that the answer did not reach its caller although it was read, as a
// proxy knows whose caller's connection broke.
func (b *Body) Keep() {
	if b.Unread != nil {
		b.Unread()
		b.Done = nil
	}
	b.Unread = nil
}

// A Refusal is what is wrong with a request, as its caller will read it.
type Refusal struct {
	Status               int
	Code, Param, Message string
}

func (r *Refusal) Error() string { return r.Message }

// Response answers the request that is refused.
func (r *Refusal) Response(req *http.Request) *http.Response {
	a := Answer{Status: r.Status, Body: errorBody(r.Status, r.Code, r.Param, r.Message), Ours: true}
	return a.Response(req)
}

// BadBody refuses a request for what its body says; param is the member at
// fault, "" for the whole.
func BadBody(param, message string) error {
	return &Refusal{Status: http.StatusBadRequest, Code: "invalid_request", Param: param, Message: message}
}
