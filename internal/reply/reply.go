// Package reply makes the http.Response for a call: from the result of a batch
// line, byte for byte or as a stream of events, or for a failure in OpenAI's error
// shape.
//
// Answer holds the data of a response until the caller's request is at hand.
// Body, the body of each response, reports whether the caller read the response,
// so that an undelivered result can be kept for a retry. RequestError is for
// requests that cannot be batched.
//
// Functions and methods do not modify shared state. A Body is not safe for
// concurrent use, like most bodies of net/http.
package reply

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/sse"
)

// An Answer is the data of the HTTP response that completes a call.
type Answer struct {
	Status    int    // HTTP status code
	Body      []byte // must not be modified after the Answer is in use
	Text      bool   // the body is plain text, not JSON
	RequestID string // the provider's request id; "": no X-Request-Id header
	Retry     bool   // the provider may answer the same request otherwise: no X-Should-Retry header
	Local     bool   // this process made the response: the provider did not answer the line
	BatchID   string // "": no Autobatcher-Batch-Id header
	CustomID  string // "": no Autobatcher-Custom-Id header
	Cost      string // US dollars; "": no Autobatcher-Cost header
}

// Failure returns an error made by this process, in OpenAI's error shape.
func Failure(status int, code, message string) Answer {
	return Answer{Status: status, Body: errorBody(status, code, "", message), Local: true}
}

// errorType returns the error type for the status. "batch_error" is our own type;
// the other types are those of OpenAI.
func errorType(status int) string {
	switch {
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status == http.StatusFailedDependency:
		return "batch_error"
	case status == http.StatusPaymentRequired:
		return "insufficient_quota"
	case status >= 500:
		return "server_error"
	}
	return "invalid_request_error"
}

// errorBody returns an error in OpenAI's shape. Empty param and code become null.
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
		panic(err) // cannot happen: strings always marshal
	}
	return body
}

// FromResult returns the answer for a result line with an HTTP response: Answered
// must be true. An error body that is not in OpenAI's shape is wrapped, so that SDKs
// can read the message.
func FromResult(r *line.Result) Answer {
	a := Answer{Status: r.Status, Body: r.Body, Text: r.Text, RequestID: r.RequestID, Retry: r.Transient()}
	if r.Status >= 400 && !HasError(r.Body) {
		message := cmp.Or(strings.TrimSpace(string(r.Body)), r.Message, http.StatusText(r.Status))
		a.Body, a.Text = errorBody(r.Status, r.Code, "", message), false
	}
	switch r.Status {
	case http.StatusNoContent, http.StatusResetContent, http.StatusNotModified:
		a.replaceBodiless()
	}
	return a
}

// replaceBodiless replaces a status that HTTP allows no body for. A server could not
// send the body with that status, and the connection of the client would break; a
// client in JavaScript ignores the body of a 205.
func (a *Answer) replaceBodiless() {
	if len(a.Body) > 0 && !HasError(a.Body) {
		a.Status = http.StatusOK
		return
	}
	if len(a.Body) == 0 {
		a.Body, a.Text = errorBody(http.StatusFailedDependency, "batch_line_unreadable", "",
			fmt.Sprintf("the result of the request has the status %d and no body", a.Status)), false
	}
	a.Status = http.StatusFailedDependency
}

// BatchRejected returns the answer for every call of a batch that the provider
// rejected. body is the provider's error response; message is used if body is not
// an error in OpenAI's shape.
func BatchRejected(status int, body []byte, message string) Answer {
	a := Answer{Status: status, Body: body, Local: true}
	if !HasError(body) {
		a.Body = errorBody(status, "batch_refused", "", "the provider refused the batch: "+message)
	}
	return a
}

// HasError reports whether body is a JSON object with an "error" object, the shape
// of errors that SDKs can read.
func HasError(body []byte) bool {
	return line.Valid(body) && gjson.GetBytes(body, "error").IsObject()
}

// ErrorMessage returns the message of an error in OpenAI's shape, or "".
func (a *Answer) ErrorMessage() string { return gjson.GetBytes(a.Body, "error.message").String() }

// Response returns an http.Response like a response that net/http received. The
// type of the response's Body is *Body.
func (a *Answer) Response(req *http.Request) *http.Response {
	r := newResponse(req, a.Status, a.Body)
	r.set("Content-Type", a.contentType())
	r.set("Content-Length", strconv.Itoa(len(a.Body)))
	r.set("X-Request-Id", a.RequestID)
	r.set("Autobatcher-Batch-Id", a.BatchID)
	r.set("Autobatcher-Custom-Id", a.CustomID)
	r.set("Autobatcher-Cost", a.Cost)
	switch {
	case a.Status == http.StatusServiceUnavailable && a.Local:
		r.set("Retry-After", "5") // nothing was submitted, so a retry is safe
	case a.Status >= 400 && !a.Retry: // a retry would be a new line, which is paid for again
		r.set("X-Should-Retry", "false")
	}
	return &r.Response
}

// A response has all parts of an http.Response in one allocation, but for the map of
// the headers.
type response struct {
	http.Response
	body   Body
	values [maxHeaders]string // of the headers
	count  int
}

const maxHeaders = 8

// set sets a header unless the value is empty or unsafe.
func (r *response) set(name, value string) {
	if value = HeaderValue(value); value != "" {
		r.values[r.count] = value
		r.count++
		r.Header[name] = r.values[r.count-1 : r.count : r.count]
	}
}

// maxHeaderValue is the length of the longest text of a provider in a header, in bytes.
const maxHeaderValue = 256

// HeaderValue returns a text of the provider for a header, or "" if the text is no
// printable ASCII or is too long: clients break the connection of a response whose
// header has a control character, or is longer than their buffer.
func HeaderValue(text string) string {
	if len(text) > maxHeaderValue || strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' }) {
		return ""
	}
	return text
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

func newResponse(req *http.Request, status int, body []byte) *response {
	r := &response{body: Body{ctx: req.Context()}}
	r.body.r.Reset(body)
	r.Response = http.Response{
		Status:     statusLine(status),
		StatusCode: status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        make(http.Header, maxHeaders),
		Body:          &r.body,
		ContentLength: int64(len(body)),
		Request:       req,
	}
	return r
}

// Stream returns a response with the stream of events that the provider would have
// sent, in the format f. usage says whether the request asked for a last chunk with the
// usage. If the body cannot be streamed, the response is a 424, or the provider's error.
func (a *Answer) Stream(req *http.Request, f sse.Format, usage bool) *http.Response {
	events, err := a.Body, error(nil)
	if !a.Text || !looksLikeEvents(a.Body) { // else the result already is a stream of events
		events, err = sse.Append(nil, a.Body, f, usage)
	}
	if err != nil && HasError(a.Body) {
		failed := *a // an error with status 200
		failed.Status = errorStatus(a.Body)
		return failed.Response(req)
	}
	if err != nil {
		failure := Failure(http.StatusFailedDependency, "batch_line_unreadable",
			"the result of this request in batch "+a.BatchID+" cannot be converted to a stream: "+err.Error())
		failure.BatchID, failure.CustomID, failure.RequestID = a.BatchID, a.CustomID, a.RequestID
		return failure.Response(req)
	}
	stream := *a
	stream.Body = events
	res := stream.Response(req)
	res.Header.Set("Content-Type", "text/event-stream; charset=utf-8")
	res.Header.Set("Cache-Control", "no-cache")
	return res
}

// errorStatus returns the status of an error that came with status 200: the status
// that the error names, or 424.
func errorStatus(body []byte) int {
	for _, path := range []string{"error.code", "error.status", "error.status_code"} {
		if status := gjson.GetBytes(body, path).Int(); status >= 400 && status <= 599 {
			return int(status)
		}
	}
	return http.StatusFailedDependency
}

func looksLikeEvents(body []byte) bool {
	return bytes.HasPrefix(body, []byte("data:")) || bytes.HasPrefix(body, []byte("event:"))
}

// A Receiver is notified whether the caller received a response. Its methods must not block.
type Receiver interface {
	// FromLine reports whether the provider answered the line of the call.
	FromLine() bool

	// Delivered is called at most once, when the caller received the response.
	Delivered()

	// Undelivered is called at most once, when the caller did not receive the response.
	// Undelivered may follow Delivered: see MarkUndelivered.
	Undelivered()
}

// A Body is the body of a response that reports whether the caller received the
// response. Set Receiver before the first Read.
//
// A caller received the response if the caller read to the end, or closed the Body
// while the context of the request was not done. A caller did not receive the
// response if the context was done and bytes were left at Close, or if
// MarkUndelivered was called.
type Body struct {
	r   bytes.Reader
	ctx context.Context // the context of the caller's request

	Receiver Receiver // nil: there is none, or the last notification was sent
	notified bool     // Delivered was called
}

// Len returns the number of unread bytes.
func (b *Body) Len() int { return b.r.Len() }

// Read implements io.Reader.
func (b *Body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.Len() == 0 {
		b.delivered()
	}
	return n, err
}

// WriteTo implements io.WriterTo.
func (b *Body) WriteTo(w io.Writer) (int64, error) {
	n, err := b.r.WriteTo(w)
	if b.Len() == 0 && err == nil {
		b.delivered()
	}
	return n, err
}

func (b *Body) delivered() {
	if b.Receiver != nil && !b.notified {
		b.notified = true
		b.Receiver.Delivered()
	}
}

// Close implements io.Closer. Close may be called several times.
func (b *Body) Close() error {
	if b.Len() > 0 && b.ctx.Err() != nil {
		b.MarkUndelivered()
	}
	b.delivered()
	b.Receiver = nil
	return nil
}

// MarkUndelivered reports a response as not delivered, even if the Body was read
// to the end. A proxy reads the Body and then may fail to send the bytes to the
// client. Calls after the first call and after Close have no effect.
func (b *Body) MarkUndelivered() {
	if r := b.Receiver; r != nil {
		b.Receiver = nil
		r.Undelivered()
	}
}

// A RequestError says why a request cannot be batched. Response returns the
// error to the caller.
type RequestError struct {
	Status  int    // HTTP status code
	Code    string // OpenAI error code
	Param   string // the member of the body that is wrong; "": the error is not about one member
	Message string
}

func (e *RequestError) Error() string { return e.Message }

// Answer returns the answer to the request.
func (e *RequestError) Answer() Answer {
	return Answer{Status: e.Status, Body: errorBody(e.Status, e.Code, e.Param, e.Message), Local: true}
}

// Response returns the response to the request.
func (e *RequestError) Response(req *http.Request) *http.Response {
	a := e.Answer()
	return a.Response(req)
}

// InvalidBody returns a *RequestError with status 400 for an error in the request
// body. param is the member that is wrong, or "" if the error is not about one
// member.
func InvalidBody(param, message string) error {
	return &RequestError{Status: http.StatusBadRequest, Code: "invalid_request", Param: param, Message: message}
}
