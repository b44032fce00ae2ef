package batchtest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// An apiError is a refusal. The Server writes each refusal in the style of the
// provider.
type apiError struct {
	status     int
	kind       string // the type, which makes the refusal JSON; empty: the usual type of the status
	code       string // empty: null
	param      string // empty: null
	message    string
	retryAfter time.Duration // zero: no Retry-After
}

func (e *apiError) Error() string { return e.message }

// invalid is a 400 about one parameter.
func invalid(param, format string, args ...any) *apiError {
	return &apiError{status: 400, param: param, message: fmt.Sprintf(format, args...)}
}

func notFound(what, id string) *apiError {
	return &apiError{status: 404, param: "id", message: fmt.Sprintf("No such %s object: %s", what, id)}
}

func (s *Server) refuse(w http.ResponseWriter, err error) {
	e := &apiError{status: 500, message: err.Error()}
	errors.As(err, &e)
	if e.retryAfter > 0 {
		seconds := int64((e.retryAfter + time.Second - 1) / time.Second)
		w.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
	}
	switch {
	case s.behavior.TextErrors && e.status == 429:
		writeJSON(w, e.status, overload("too_many_requests", e.message))
	case s.behavior.TextErrors && e.status == 503:
		writeJSON(w, e.status, overload("service_unavailable", e.message))
	case s.behavior.TextErrors && e.kind == "":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(e.status)
		_, _ = io.WriteString(w, e.message)
	default:
		writeBody(w, e.status, errorBody(e))
	}
}

// overload is the JSON body of a 429 or 503 at a provider with TextErrors. The
// seconds in the body differ from the header Retry-After, which is right.
func overload(code, message string) any {
	return map[string]any{"error": code, "message": message, "retry_after_seconds": 30}
}

// errorBody is OpenAI's shape of an error.
func errorBody(e *apiError) []byte {
	type shape struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    *string `json:"code"`
	}
	body, _ := json.Marshal(map[string]shape{"error": {
		Message: e.message, Type: cmp.Or(e.kind, errorType(e.status)), Param: nonEmpty(e.param), Code: nonEmpty(e.code),
	}})
	return body
}

func errorType(status int) string {
	switch {
	case status == 401:
		return "authentication_error"
	case status == 429:
		return "rate_limit_error"
	case status >= 500:
		return "server_error"
	}
	return "invalid_request_error"
}

// failureBody is the body of a model's failure if Options.Answer gives none.
func failureBody(status int) []byte {
	text := cmp.Or(http.StatusText(status), "Unknown error")
	return errorBody(&apiError{status: status, message: text + "."})
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	writeBody(w, status, marshal(v))
}

func marshal(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // v always has a type of this package, and holds JSON from a valid body
	}
	return body
}

func writeBody(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
