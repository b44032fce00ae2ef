package line

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"unsafe"

	"github.com/tidwall/gjson"
)

// A Result is one line of an output or error file. It shares no memory with
// the line it was read from.
type Result struct {
	ID        string // custom_id
	Status    int    // the line's own HTTP status; 0: the line got no HTTP answer
	RequestID string // the provider's id of the request, where it says one
	Body      []byte // the answer's body, byte for byte; nil without one
	Text      bool   // the body was no JSON: the file carried it as a string
	Code      string // without an HTTP answer: why, in the provider's words
	Message   string
}

// Answered reports whether the line holds an HTTP answer that can be passed on.
// A success without a body is none.
func (r *Result) Answered() bool {
	return r.Status >= 300 || r.Status > 0 && len(r.Body) > 0
}

// ErrMalformed is what Parse returns for a line that is no JSON object with a
// custom_id. Such a line costs nobody but itself.
var ErrMalformed = errors.New("not a result line")

// Parse reads one line of an output or error file, in any of the shapes that
// providers write: an HTTP answer under "response" (OpenAI, in either file),
// one serialized into the text of "error.message" (Doubleword), or no answer
// at all, with the reason under "error".
func Parse(b []byte) (Result, error) {
	if !Valid(b) {
		return Result{}, ErrMalformed
	}
	var id, response, failure gjson.Result
	gjson.Parse(view(b)).ForEach(func(key, value gjson.Result) bool {
		switch key.Str {
		case "custom_id":
			id = value
		case "response":
			response = value
		case "error":
			failure = value
		}
		return true
	})
	if id.Type != gjson.String || id.Str == "" {
		return Result{}, ErrMalformed
	}
	r := Result{ID: strings.Clone(id.Str)}
	if response.IsObject() {
		r.readResponse(response)
	}
	if r.Status == 0 || len(r.Body) == 0 {
		r.readError(failure)
	}
	return r, nil
}

// view is b as a string without a copy. What is kept of it must be copied,
// since b is the reader's buffer.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// readResponse reads {"status_code", "request_id", "body"}. A response without
// a usable status is none: what went wrong stands under "error" then.
func (r *Result) readResponse(response gjson.Result) {
	response.ForEach(func(key, value gjson.Result) bool {
		switch key.Str {
		case "status_code":
			r.Status = httpStatus(value)
		case "request_id":
			r.RequestID = strings.Clone(value.String())
		case "body":
			r.setBody(value)
		}
		return true
	})
}

// setBody keeps the body as it stands in the file. A provider whose model
// answered no JSON stores the text as a JSON string; the caller gets the text.
func (r *Result) setBody(body gjson.Result) {
	switch body.Type {
	case gjson.Null:
	case gjson.String:
		r.Body, r.Text = []byte(body.String()), true
	default:
		r.Body = []byte(body.Raw)
	}
}

// readError reads "error", whatever its shape.
func (r *Result) readError(failure gjson.Result) {
	if !failure.IsObject() {
		r.Message = strings.Clone(failure.String())
		return
	}
	r.Code = strings.Clone(failure.Get("code").String())
	r.Message = strings.Clone(failure.Get("message").String())
	r.readSerialized()
}

// readSerialized reads Doubleword's error message, which is itself JSON:
// {"type": …, "details": {"status", "body"} or {"error"}}. An HTTP status in
// it is the line's own; anything else gives the reason a code.
func (r *Result) readSerialized() {
	if len(r.Message) == 0 || r.Message[0] != '{' || !Valid([]byte(r.Message)) {
		return
	}
	inner := gjson.Parse(r.Message)
	kind, details := inner.Get("type"), inner.Get("details")
	if kind.Type != gjson.String {
		return
	}
	if status := httpStatus(details.Get("status")); status != 0 {
		r.Status, r.Code, r.Message = status, "", ""
		r.setBody(details.Get("body"))
		r.Text = r.Text && !Valid(r.Body)
		return
	}
	r.Code, r.Message = kind.String(), details.Get("error").String()
}

// httpStatus is the final HTTP status that v holds as a number or in digits,
// or 0.
func httpStatus(v gjson.Result) int {
	status, err := strconv.Atoi(v.String())
	if err != nil || status < 200 || status > 599 {
		return 0
	}
	return status
}

// OneLine returns body, valid JSON, without raw line breaks, and body itself
// where there are none. In valid JSON they stand only between tokens, so the
// value stays the same, token for token.
func OneLine(body []byte) []byte {
	if bytes.IndexByte(body, '\n') < 0 && bytes.IndexByte(body, '\r') < 0 {
		return body
	}
	out := make([]byte, 0, len(body))
	for _, c := range body {
		if c != '\n' && c != '\r' {
			out = append(out, c)
		}
	}
	return out
}
