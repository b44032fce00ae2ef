package backend

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/retry"
)

// An Error is a request to the provider that failed.
type Error struct {
	Op         string        // "POST /files"
	Uploading  bool          // the request was an upload of an input file
	Status     int           // of the response; 0: no response
	Header     http.Header   // of the response
	Body       []byte        // of the response, at most 64 KiB
	RetryAfter time.Duration // the wait that the provider asked for; negative: the provider named none
	Err        error         // the cause, if the response is missing or unusable
}

// NoAnswer is the Error of a request without a response, or with a response that
// broke off.
func NoAnswer(op string, err error) *Error { return &Error{Op: op, RetryAfter: -1, Err: err} }

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Op + ": " + e.Err.Error()
	}
	return fmt.Sprintf("%s: %d %s: %s", e.Op, e.Status, http.StatusText(e.Status), e.Message())
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Message is the provider's message, in any of the shapes that providers use.
func (e *Error) Message() string {
	for _, path := range []string{"error.message", "message", "error", "detail"} {
		if v := gjson.GetBytes(e.Body, path); v.Type == gjson.String && v.Str != "" && gjson.ValidBytes(e.Body) {
			return short(v.Str)
		}
	}
	return short(string(bytes.TrimSpace(e.Body)))
}

// short is a text that fits into a log line.
func short(s string) string { return strings.ToValidUTF8(s[:min(len(s), 500)], "") }

// Code is the provider's error code. It is empty if the provider named none.
func (e *Error) Code() string {
	if !gjson.ValidBytes(e.Body) {
		return ""
	}
	return gjson.GetBytes(e.Body, "error.code").String()
}

var lineNumber = regexp.MustCompile(`(?i)(?:^\s*|\bon )line (\d{1,7})\b`)

// Line is the line of the input file, from 1, for which the provider refused
// the whole file: "Line N: …" or "Invalid JSON on line N: …". Line is 0 if the
// provider named none.
func (e *Error) Line() int {
	if !e.refusesContent() && e.Status != http.StatusForbidden { // 403: an unknown model
		return 0
	}
	m := lineNumber.FindStringSubmatch(e.Message())
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// refusesContent reports a status that concerns the content of a file.
func (e *Error) refusesContent() bool {
	return e.Err == nil && (e.Status == http.StatusBadRequest || e.Status == http.StatusUnprocessableEntity)
}

// RefusesUpload reports that the provider refused an input file for the content,
// rather than for the sender or the time.
func (e *Error) RefusesUpload() bool { return e.Uploading && e.refusesContent() }

// RateLimited reports a temporary 429. A 429 for an exhausted quota
// or an unverified account does not pass: a wait would only hide the reason from
// the owner of the account.
func (e *Error) RateLimited() bool {
	if e.Status != http.StatusTooManyRequests {
		return false
	}
	text := strings.ToLower(e.Code() + " " + e.Message())
	return !strings.Contains(text, "insufficient_quota") && !strings.Contains(text, "unverified account")
}

// Transient reports a failure that may pass: no response, an unusable response, a
// timeout or a fault of the server.
func (e *Error) Transient() bool {
	return e.Err != nil || e.Status == http.StatusRequestTimeout || e.Status >= 500
}

// Ambiguous reports a failure after which the provider may have carried out the
// request nevertheless.
func (e *Error) Ambiguous() bool { return e.Transient() }

// notReady matches the refusals of a create whose input file the provider has
// not processed yet. Azure writes "Only files with status 'Processed' are
// accepted", others write that the file is not ready.
var notReady = regexp.MustCompile(`(?i)only files with status .?processed|` +
	`\bfile\b.*\b(not|n't)\b.*\b(processed|ready)\b|` +
	`\bfile\b.*\b(is|still|status)\b.*\b(pending|processing|being processed)\b`)

// NotReady reports a refused create whose input file the provider is still
// processing. The same create succeeds later.
func (e *Error) NotReady() bool {
	if e.Uploading || !e.refusesContent() && e.Status != http.StatusConflict {
		return false
	}
	return notReady.MatchString(e.Message())
}

// Classify is the retry.Classifier for the errors of a Backend.
func Classify(err error) (retry.Class, time.Duration) {
	var failed *Error
	if !errors.As(err, &failed) {
		return retry.Stopped, -1
	}
	return failed.class(), failed.RetryAfter
}

func (e *Error) class() retry.Class {
	switch {
	case e.RateLimited():
		return retry.RateLimited
	case e.Transient():
		return retry.Transient
	case e.NotReady():
		return retry.NotReady
	}
	switch e.Status {
	case http.StatusNotFound, http.StatusGone:
		return retry.NotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return retry.Unauthorized
	}
	return retry.Permanent
}
