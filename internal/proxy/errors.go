package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/reply"
)

// A failure is an error response of the proxy's own, in OpenAI's error shape.
type failure struct {
	status     int
	code       string
	message    string
	retryAfter string // value of Retry-After; "": no such header
	noRetry    bool   // send X-Should-Retry: false, which SDKs obey
}

var (
	failDraining = failure{
		status: http.StatusServiceUnavailable, code: "shutting_down", retryAfter: "1",
		message: "the proxy is shutting down; retry the call when the proxy runs again",
	}
	failInvalidKey = failure{
		status: http.StatusUnauthorized, code: "invalid_api_key",
		message: "this proxy requires one of its client keys: send Authorization: Bearer <key> or api-key: <key>",
	}
	failOtherKey = failure{
		status: http.StatusUnauthorized, code: "invalid_api_key",
		message: "this proxy serves one program: send the key of the variable OPENAI_API_KEY, which autobatcher run has set, as Authorization: Bearer <key>, and no key of your own",
	}
	failMissingKey = failure{
		status: http.StatusUnauthorized, code: "invalid_api_key",
		message: "this proxy forwards the caller's own key, but the request has no key: send Authorization: Bearer <key>",
	}
	failInvalidPageKey = failure{
		status: http.StatusUnauthorized, code: "invalid_api_key",
		message: "the page and the metrics require a key: --page-key, or else --client-key; open the page with ?key=<key>, or send Authorization: Bearer <key>",
	}
	failClosedPage = failure{
		status: http.StatusForbidden, code: "page_closed", noRetry: true,
		message: "with --forward-key, the page and the metrics are closed, since every text is accepted as a caller's key; to open the page and the metrics with a key, start the proxy with --page-key",
	}
	failCrossOrigin = failure{
		status: http.StatusForbidden, code: "cross_origin", noRetry: true,
		message: "a web page of another origin sent this request, and no client key tells the page apart from an attacker; to allow calls of web pages, start the proxy with --client-key",
	}
	failUnknownHost = failure{
		status: http.StatusMisdirectedRequest, code: "unknown_host", noRetry: true,
		message: "the request names a host that is not a name of this proxy, as in an attack by DNS rebinding; if the name is right, start the proxy with --allow-host NAME or with --client-key",
	}
	failConnect = failure{
		status: http.StatusMethodNotAllowed, code: "method_not_allowed", noRetry: true,
		message: "this server is no HTTP proxy and refuses CONNECT: remove HTTPS_PROXY, and use the server as base URL (OPENAI_BASE_URL=http://<host>:<port>/v1)",
	}
	failUnsupportedMethod = failure{
		status: http.StatusMethodNotAllowed, code: "method_not_allowed", noRetry: true,
		message: "the proxy forwards only GET, HEAD, POST, PUT, PATCH and DELETE",
	}
	failUnsafePath = failure{
		status: http.StatusBadRequest, code: "invalid_path", noRetry: true,
		message: "the path must be below the base URL: it must begin with a slash, and must not contain \".\" or \"..\" as a segment, backslashes or control characters, encoded or not",
	}
	failTooManyCalls = failure{
		status: http.StatusTooManyRequests, code: "too_many_calls_queued", retryAfter: "10",
		message: "the maximum number of calls waits to be sent (--max-queued); retry when some calls are sent",
	}
	failTooManyPassed = failure{
		status: http.StatusServiceUnavailable, code: "too_many_requests_passed_through", retryAfter: "5",
		message: "the proxy forwards the maximum number of requests; retry when some requests are answered",
	}
	failTooLarge = failure{
		status: http.StatusRequestEntityTooLarge, code: "request_too_large",
		message: "the request body exceeds the limit of this proxy for a batched call (--max-body); send less, or send the call with the header Autobatcher-Mode: realtime, if this proxy allows it",
	}
	failSlowBody = failure{
		status: http.StatusRequestTimeout, code: "request_body_timeout",
		message: "the rest of the request body did not arrive in time; send the request again",
	}
	failEncoding = failure{
		status: http.StatusBadRequest, code: "invalid_request",
		message: "the request body is not compressed as its Content-Encoding says; send the body as it is, or with the right Content-Encoding",
	}
	failIncompleteBody = failure{
		status: http.StatusBadRequest, code: "incomplete_body",
		message: "the request body ended early or could not be read; send the request again",
	}
	failMethod   = failure{status: http.StatusMethodNotAllowed, code: "method_not_allowed", message: "this path supports only GET and HEAD"}
	failNotFound = failure{status: http.StatusNotFound, code: "not_found", message: "this path does not exist"}
	failInternal = failure{
		status: http.StatusInternalServerError, code: "internal_error", noRetry: true,
		message: "internal error in the proxy; see the proxy's log",
	}
)

// failNearMiss is for a path that resembles a batched route.
func failNearMiss(r *http.Request, endpoint string) failure {
	return failure{
		status: http.StatusNotFound, code: "unknown_route", noRetry: true,
		message: fmt.Sprintf("%s %q is not batched, and the provider might answer it at full price; use POST /v1%s, and put any other part of the path into --base-url", r.Method, r.URL.EscapedPath(), endpoint),
	}
}

// failClosedRoute is for a route that client keys do not open.
func failClosedRoute(r *http.Request) failure {
	return failure{
		status: http.StatusForbidden, code: "route_closed", noRetry: true,
		message: fmt.Sprintf("%s %q may show or change what other clients of this proxy have at the provider; to open such routes to all client keys, start the proxy with --allow-account-routes", r.Method, r.URL.EscapedPath()),
	}
}

// failNotBatched is for a model call that the provider does not batch, so that the
// Transport would send the call at full price.
func failNotBatched(endpoint string) failure {
	return failure{
		status: http.StatusNotFound, code: autobatcher.CodeBatchUnsupported, noRetry: true,
		message: fmt.Sprintf("the provider has no batches for POST /v1%s, and clients of this proxy may not send calls at full price; use another route, or start the proxy with --client-headers=on", endpoint),
	}
}

// failClosedHeader is for a header by which a client would choose the price.
func failClosedHeader(name string) failure {
	return failure{
		status: http.StatusBadRequest, code: "header_closed", noRetry: true,
		message: fmt.Sprintf("clients of this proxy may not use the request header %s, which chooses the price of a call; remove the header, or start the proxy with --client-headers=on", name),
	}
}

// headerFailure returns the failure for an error of callheader.Parse.
func headerFailure(err error) failure {
	f := failure{status: http.StatusBadRequest, code: "invalid_header", message: err.Error(), noRetry: true}
	var refusal *reply.RequestError
	if errors.As(err, &refusal) {
		f.status, f.code, f.message = refusal.Status, refusal.Code, refusal.Message
	}
	return f
}

// transportFailure returns the failure for an error of Options.Transport.
func (p *Proxy) transportFailure(err error) failure {
	if errors.Is(err, autobatcher.ErrClosed) {
		return failDraining
	}
	return failure{status: http.StatusBadGateway, code: "upstream_unreachable", message: "the upstream could not be reached: " + p.opts.Secrets.Text(err.Error())}
}

// bodyFailure returns the failure for an error that reading a request body
// returned.
func bodyFailure(err error) failure {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return failTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, errStalled):
		return failSlowBody
	case errors.Is(err, errNotRead):
		return failNotRead
	case errors.Is(err, errNoMemory):
		return failNoMemory
	case errors.Is(err, errQueueFull):
		return failTooManyCalls
	case errors.Is(err, errEncoding):
		return failEncoding
	}
	return failIncompleteBody
}

// clientGone reports whether the client disconnected, so that no response can
// be delivered.
func clientGone(r *http.Request) bool { return errors.Is(r.Context().Err(), context.Canceled) }

// writeFailure sends f as the response. Nothing must have been sent before.
func (rw *responseWriter) writeFailure(f failure) {
	h := rw.Header()
	body := f.body()
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	if f.retryAfter != "" {
		h["Retry-After"] = []string{f.retryAfter}
	}
	if f.noRetry {
		h["X-Should-Retry"] = []string{"false"}
	}
	if f.status == http.StatusMethodNotAllowed {
		h["Allow"] = []string{strings.Join(methods, ", ")}
	}
	rw.WriteHeader(f.status)
	if rw.r.Method != http.MethodHead {
		_, _ = rw.Write(body)
	}
}

// object returns the error object: the value of "error" in the body.
func (f failure) object() []byte {
	object, err := json.Marshal(struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    string  `json:"code"`
	}{f.message, f.errorType(), nil, f.code})
	if err != nil {
		panic(err) // cannot happen: strings always marshal
	}
	return object
}

func (f failure) body() []byte {
	return append(append([]byte(`{"error":`), f.object()...), '}')
}

// errorType returns OpenAI's error type for the status.
func (f failure) errorType() string {
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
