package background

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// A Mark stands in the context of a call whose answer is asked for by an id.
type Mark struct {
	// ID takes the place of the body in the fingerprint of the call, so that who knows
	// the id finds the line, at any process with the same journal.
	ID string

	// Line is the name of the line in the journal, if the journal was asked for a call
	// that is recalled; otherwise "".
	Line string

	// Discard says that a kept answer of a recalled call is of no use any more.
	Discard bool

	// Sent is called when the provider has created the batch of the call, with the id of
	// the batch, or with "" if the journal does not know the batch. Sent must not block.
	Sent func(recorded string)
}

type markKey struct{}

// MarkOf returns the Mark in ctx, or nil.
func MarkOf(ctx context.Context) *Mark {
	m, _ := ctx.Value(markKey{}).(*Mark)
	return m
}

// ErrWithdrawn is the cause of the end of a call's context if nobody wants the answer of
// the call any more: no retry will come.
var ErrWithdrawn = errors.New("the response was cancelled or deleted")

// errUnclaimed ends a call for whose id no caller has waited for a while.
var errUnclaimed = errors.New("no caller waits for the id of the response")

// ErrNotFound says that a recall found neither an answer nor a line.
var ErrNotFound = errors.New("no line of the call is known")

// Asked is the error of a call that is to be answered in the background: at once with an
// id, by which the caller asks for the answer later.
type Asked struct {
	Body  []byte // of the call, without its Content-Encoding
	Model string
	Async bool // by the header Prefer, for any endpoint; else a background response of OpenAI's API
}

func (*Asked) Error() string { return "the call is to be answered in the background" }

// PrefersAsync reports whether a request has the header "Prefer: respond-async" (RFC 7240).
func PrefersAsync(h http.Header) bool {
	for _, value := range h["Prefer"] {
		for preference := range strings.SplitSeq(value, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			if strings.EqualFold(strings.TrimSpace(preference), "respond-async") {
				return true
			}
		}
	}
	return false
}

// The ids begin with what the ids of the provider do not begin with.
const (
	ids            = "_autobatcher_" // in each
	responsePrefix = "resp" + ids
	asyncPrefix    = "call" + ids
)

var target = regexp.MustCompile(`^(.*)/((?:resp|call)_autobatcher_[0-9a-f]{32})(/cancel)?$`)

// match returns the parts of a path that names an answer of this package: the path of the
// call, the id, and "/cancel" or "". Other paths have no parts.
func match(u *url.URL) []string {
	if u == nil || !strings.Contains(u.Path, ids) { // no expression is matched with the path of each call
		return nil
	}
	return target.FindStringSubmatch(u.EscapedPath())
}

// IsTarget reports whether a URL names an answer of this package.
func IsTarget(u *url.URL) bool { return match(u) != nil }
