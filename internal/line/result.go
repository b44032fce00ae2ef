package line

import (
	"bytes"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"unsafe"

	"github.com/tidwall/gjson"
)

// A Result is a line of an output or error file. A Result shares no memory with
// the bytes of the line.
type Result struct {
	ID        string // custom_id
	Status    int    // the HTTP status of the line; 0: the line has no HTTP answer
	RequestID string // the provider's id of the request; empty: none
	Body      []byte // the answer's body, byte for byte; nil without one
	Text      bool   // the body was not JSON: the file carried the body as a string
	Code      string // without an HTTP answer: the provider's reason
	Message   string

	// Malformed says that the line is not strict JSON. Body holds the unchanged
	// bytes of the line, or nothing if the end of the body is not certain.
	Malformed bool
}

// Answered reports whether the line holds an HTTP answer that can be passed on.
// A success without a body cannot.
func (r *Result) Answered() bool {
	return r.Status >= 300 || r.Status > 0 && len(r.Body) > 0
}

// Transient reports whether the same request may get another answer: the provider
// was overloaded or had a fault. A 429 for an exhausted quota is not transient.
func (r *Result) Transient() bool {
	switch r.Status {
	case http.StatusRequestTimeout:
		return true
	case http.StatusTooManyRequests:
		return !bytes.Contains(r.Body, []byte("insufficient_quota"))
	case http.StatusNotImplemented:
		return false
	}
	return r.Status >= 500
}

// ErrMalformed is the error of Parse for a line without a readable custom_id.
var ErrMalformed = errors.New("not a result line")

// Parse reads a line of an output or error file, in any of the shapes that
// providers write: an HTTP answer under "response" (OpenAI, in either file; Voyage, with a
// message in place of the body of an error), an HTTP answer serialized into the text of "error.message" (Doubleword), or no
// answer at all, with the reason under "error". Parse reads as much as it can of a
// line that is not strict JSON, and marks the Result as Malformed.
func Parse(b []byte) (Result, error) {
	b = trimBOM(b)
	var p parts
	switch object := p.find(b); {
	case !object && !Valid(b):
		return parseLenient(b)
	case len(p.id) <= len(`""`) || p.id[0] != '"':
		return Result{}, ErrMalformed
	}
	r := Result{ID: string(unquote(p.id))}
	r.readResponse(&p)
	if r.Status == 0 || len(r.Body) == 0 {
		r.readError(gjson.Parse(View(p.failure)))
		if r.Message == "" {
			r.Message = strings.Clone(gjson.Parse(View(p.message)).String())
		}
	}
	return r, nil
}

// parts are the values of a result line that are read. They share memory with the line.
type parts struct {
	id, failure                      []byte
	status, requestID, body, message []byte // of the response
}

// find finds the parts of b while it validates b, in one pass. It returns false if b is
// not a valid object. Of several members with the same name the last counts.
func (p *parts) find(b []byte) bool {
	return scanEnd(b, scanMembers(b, 0, func(name []byte, i int) int {
		if string(name) == "response" {
			return p.findInResponse(b, i)
		}
		end := scanValue(b, i, maxDepth-1)
		switch {
		case end < 0:
		case string(name) == "custom_id":
			p.id = b[i:end]
		case string(name) == "error":
			p.failure = b[i:end]
		}
		return end
	}))
}

// findInResponse finds the parts of the response, which begins at b[i]. It returns the
// index behind the response, or -1 if the response is not valid.
func (p *parts) findInResponse(b []byte, i int) int {
	p.status, p.requestID, p.body, p.message = nil, nil, nil, nil
	if b[i] != '{' {
		return scanValue(b, i, maxDepth-1)
	}
	return scanMembers(b, i, func(name []byte, i int) int {
		end := scanValue(b, i, maxDepth-2)
		switch {
		case end < 0:
		case string(name) == "status_code":
			p.status = b[i:end]
		case string(name) == "request_id":
			p.requestID = b[i:end]
		case string(name) == "body":
			p.body = b[i:end]
		case string(name) == "message":
			p.message = b[i:end]
		}
		return end
	})
}

// View is b as a string without a copy: b must not change while the string, or a part of
// it, is in use. The caller copies the parts to keep of a buffer that is used again.
func View(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// readResponse reads {"status_code", "request_id", "body" or "message"}. A response without a usable
// status does not count: the member "error" holds the reason then.
func (r *Result) readResponse(p *parts) {
	r.Status = httpStatus(gjson.Parse(View(p.status)))
	r.RequestID = strings.Clone(gjson.Parse(View(p.requestID)).String())
	r.setBody(gjson.Parse(View(p.body)))
}

// setBody keeps the unchanged bytes of the body. If a model did not answer JSON,
// the provider stores the text as a JSON string, and the caller gets the text. Some
// providers store JSON as a JSON string, too.
func (r *Result) setBody(body gjson.Result) {
	switch body.Type {
	case gjson.Null:
	case gjson.String:
		r.Body = []byte(body.String())
		r.Text = !isContainer(r.Body)
	default:
		r.Body = []byte(body.Raw)
	}
}

// isContainer reports whether b is a JSON object or array.
func isContainer(b []byte) bool {
	trimmed := bytes.TrimSpace(b)
	return len(trimmed) > 0 && (trimmed[0] == '{' || trimmed[0] == '[') && Valid(trimmed)
}

// readError reads "error" in any shape.
func (r *Result) readError(failure gjson.Result) {
	if !failure.IsObject() {
		r.Message = strings.Clone(failure.String())
		return
	}
	r.Code = strings.Clone(failure.Get("code").String())
	r.Message = strings.Clone(failure.Get("message").String())
	r.readSerialized()
}

// readSerialized reads Doubleword's error message, a JSON text: {"type": …,
// "details": {"status", "body"} or {"error"}}. An HTTP status in the message is the
// status of the line. Otherwise the type is the code of the reason.
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

// httpStatus is the final HTTP status in v, a number or a string of digits, or 0.
func httpStatus(v gjson.Result) int {
	text := v.Raw // of nearly every status, and String would have to convert a number
	if v.Type != gjson.Number || len(text) != len("200") {
		text = v.String()
	}
	status, err := strconv.Atoi(text)
	if err != nil || status < 200 || status > 599 {
		return 0
	}
	return status
}
