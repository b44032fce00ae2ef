package batchapi

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

// An Error is a request to the provider that failed.
type Error struct {
	Op         string        // "POST /files"
	Uploading  bool          // it was an upload
	Status     int           // the answer's status; 0: there was no answer
	Header     http.Header   // the answer's
	Body       []byte        // the answer's, at most 64 KiB of it
	RetryAfter time.Duration // how long the provider said to wait; negative: it did not say
	Err        error         // what went wrong, where there was no answer or one that makes no sense
}

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Op + ": " + e.Err.Error()
	}
	return fmt.Sprintf("%s: %d %s: %s", e.Op, e.Status, http.StatusText(e.Status), e.Message())
}

func (e *Error) Unwrap() error { return e.Err }

// Message is what the provider said, in whatever shape it said it.
func (e *Error) Message() string {
	for _, path := range []string{"error.message", "message", "error", "detail"} {
		if v := gjson.GetBytes(e.Body, path); v.Type == gjson.String && v.Str != "" && gjson.ValidBytes(e.Body) {
			return short(v.Str)
		}
	}
	return short(string(bytes.TrimSpace(e.Body)))
}

// short is a text that is fit for a log line.
func short(s string) string { return strings.ToValidUTF8(s[:min(len(s), 500)], "") }

// Code is the provider's error code, "" without one.
func (e *Error) Code() string {
	if !gjson.ValidBytes(e.Body) {
		return ""
	}
	return gjson.GetBytes(e.Body, "error.code").String()
}

var lineNumber = regexp.MustCompile(`(?i)(?:^\s*|\bon )line (\d{1,7})\b`)

// Line is the line of the input file, from 1, that the provider refused the
// whole file for, or 0: "Line N: …" or "Invalid JSON on line N: …".
func (e *Error) Line() int {
	if !e.refusesFile() && e.Status != http.StatusForbidden { // 403: a model that is unknown
		return 0
	}
	m := lineNumber.FindStringSubmatch(e.Message())
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// refusesFile reports a status that speaks of what is in the file.
func (e *Error) refusesFile() bool {
	return e.Status == http.StatusBadRequest || e.Status == http.StatusUnprocessableEntity
}

// RefusesUpload reports that the provider refused an input file for what is in
// it, rather than for who sent it or when.
func (e *Error) RefusesUpload() bool { return e.refusesFile() && e.Uploading }

// RateLimited reports a 429 that passes with time. An exhausted quota or an
// unverified account does not: waiting would only hide it from its owner.
func (e *Error) RateLimited() bool {
	if e.Status != http.StatusTooManyRequests {
		return false
	}
	text := strings.ToLower(e.Code() + " " + e.Message())
	return !strings.Contains(text, "insufficient_quota") && !strings.Contains(text, "unverified account")
}

// Transient reports a failure that may be gone at the next try: no answer, a
// senseless one, a timeout or a server's error.
func (e *Error) Transient() bool {
	return e.Err != nil || e.Status == http.StatusRequestTimeout || e.Status >= 500
}

// Ambiguous reports a failure after which the request may have been carried
// out all the same.
func (e *Error) Ambiguous() bool { return e.Transient() }

// maxErrorBody bounds what is kept of an error's body.
const maxErrorBody = 64 << 10

func clip(b []byte) []byte { return b[:min(len(b), maxErrorBody)] }

func newError(method, path string, res *http.Response) *Error {
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
	return &Error{
		Op: method + " /" + path, Status: res.StatusCode, Header: res.Header, Body: body,
		RetryAfter: retryAfter(res.Header, time.Now()),
	}
}

// retryAfter reads Retry-After-Ms, and Retry-After in seconds or as a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	if ms, err := strconv.ParseFloat(h.Get("Retry-After-Ms"), 64); err == nil && ms >= 0 {
		return seconds(ms / 1000)
	}
	value := h.Get("Retry-After")
	if s, err := strconv.ParseFloat(value, 64); err == nil && s >= 0 {
		return seconds(s)
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(at.Sub(now), 0), maxRetryAfter)
	}
	return -1
}

// maxRetryAfter caps what a header may ask for, so that nonsense cannot overflow.
const maxRetryAfter = 24 * time.Hour

func seconds(s float64) time.Duration {
	return time.Duration(min(s, maxRetryAfter.Seconds()) * float64(time.Second))
}
