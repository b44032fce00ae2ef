package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strconv"

	"github.com/autobatcher/autobatcher"
)

// A failure is what the proxy itself has to say to a caller, in OpenAI's shape.
type failure struct {
	status  int
	code    string
	message string
	retry   string // Retry-After; "": none
	never   bool   // x-should-retry: false
}

var (
	failDraining = failure{
		status: http.StatusServiceUnavailable, code: "shutting_down", retry: "1",
		message: "the proxy is shutting down; the same call again takes over what was sent already",
	}
	failKey = failure{
		status: http.StatusUnauthorized, code: "invalid_api_key",
		message: "this proxy wants one of its client keys, as Authorization: Bearer <key> or as api-key: <key>",
	}
	failNoKey = failure{
		status: http.StatusUnauthorized, code: "invalid_api_key",
		message: "this proxy forwards the caller's own key, and the request has none: send Authorization: Bearer <key>",
	}
	failOrigin = failure{
		status: http.StatusForbidden, code: "cross_origin", never: true,
		message: "a web page of another origin sent this call, and would spend the proxy's key; give the proxy client keys to allow it",
	}
	failFull = failure{
		status: http.StatusTooManyRequests, code: "too_many_calls_held", retry: "10",
		message: "the proxy holds as many calls as it may; try again when some were answered",
	}
	failTooLarge = failure{
		status: http.StatusRequestEntityTooLarge, code: "request_too_large",
		message: "the request body is larger than this proxy takes",
	}
	failSlowBody = failure{
		status: http.StatusRequestTimeout, code: "request_body_timeout",
		message: "the rest of the request body did not arrive in time",
	}
	failBody = failure{
		status: http.StatusBadRequest, code: "incomplete_body",
		message: "the request body ended early or could not be read",
	}
	failMethod   = failure{status: http.StatusMethodNotAllowed, code: "method_not_allowed", message: "this path answers GET only"}
	failNotFound = failure{status: http.StatusNotFound, code: "not_found", message: "there is nothing here"}
	failInternal = failure{
		status: http.StatusInternalServerError, code: "internal_error", never: true,
		message: "the proxy has a defect, which its log describes",
	}
)

// failUpstream tells that the upstream could not be reached.
func failUpstream(err error) failure {
	return failure{status: http.StatusBadGateway, code: "upstream_unreachable", message: "the upstream could not be reached: " + err.Error()}
}

// failureOf says what an error of the Transport's means to the caller.
func failureOf(err error) failure {
	switch {
	case errors.Is(err, autobatcher.ErrClosed):
		return failDraining
	default:
		return failUpstream(err)
	}
}

// bodyFailure says what is wrong with a body that could not be read.
func bodyFailure(err error) failure {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return failTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return failSlowBody
	}
	return failBody
}

// gone reports whether there is nobody left to tell about err.
func gone(r *http.Request) bool { return errors.Is(r.Context().Err(), context.Canceled) }

// refuse sends f in place of an answer.
func (a *answer) refuse(f failure) {
	h := a.Header()
	body := f.body()
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	if f.retry != "" {
		h["Retry-After"] = []string{f.retry}
	}
	if f.never {
		h["X-Should-Retry"] = []string{"false"}
	}
	a.WriteHeader(f.status)
	if a.r.Method != http.MethodHead {
		_, _ = a.Write(body)
	}
}

// object is the error itself: the value of "error" in a body.
func (f failure) object() []byte {
	object, err := json.Marshal(struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    string  `json:"code"`
	}{f.message, f.kind(), nil, f.code})
	if err != nil {
		panic(err) // strings always marshal
	}
	return object
}

func (f failure) body() []byte {
	return append(append([]byte(`{"error":`), f.object()...), '}')
}

func (f failure) kind() string {
	switch {
	case f.status == http.StatusUnauthorized:
		return "authentication_error"
	case f.status == http.StatusForbidden:
		return "permission_error"
	case f.status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case f.status >= 500:
		return "server_error"
	}
	return "invalid_request_error"
}
