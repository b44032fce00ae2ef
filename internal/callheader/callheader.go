// Package callheader reads the request headers by which a call chooses how
// autobatcher treats the call, and removes these headers before a request is sent.
//
// All functions are safe for concurrent use. A nil http.Header is an empty one.
package callheader

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/reply"
)

// The headers of autobatcher, and their prefix.
const (
	prefix   = "Autobatcher-"
	Mode     = "Autobatcher-Mode"
	Window   = "Autobatcher-Completion-Window"
	Deadline = "Autobatcher-Deadline"
)

// Options are what a call asks of autobatcher.
type Options struct {
	Mode     lane.Mode     // "": no choice
	Window   string        // completion window; "": no choice
	Deadline time.Duration // how long the caller waits; 0: no limit
}

// Parse reads the headers. A header of autobatcher that is unknown, whose value is
// wrong, or that has several different values, is a *reply.RequestError: a server
// in front of autobatcher may have read another value than autobatcher would.
func Parse(h http.Header) (Options, error) {
	var o Options
	for name, values := range h {
		if !isOurs(name) || len(values) == 0 {
			continue
		}
		if other := slices.IndexFunc(values, func(v string) bool { return v != values[0] }); other >= 0 {
			return Options{}, invalid(name, values[other], "the request has another value of this header, too")
		}
		if err := o.set(name, values[0]); err != nil {
			return Options{}, err
		}
	}
	return o, nil
}

// Name returns the name of a header of autobatcher in h, or "" if h has none.
func Name(h http.Header) string {
	for name, values := range h {
		if isOurs(name) && len(values) > 0 {
			return name
		}
	}
	return ""
}

// Keep removes the names of autobatcher's headers from the header Connection, by
// which a client declares a header to be for the next hop only. A proxy in front
// of a Transport would otherwise remove the headers that the Transport reads.
func Keep(h http.Header) {
	values, found := h["Connection"]
	if !found {
		return
	}
	var kept []string
	for token := range strings.SplitSeq(strings.Join(values, ","), ",") {
		if token = strings.TrimSpace(token); token != "" && !isOurs(token) {
			kept = append(kept, token)
		}
	}
	delete(h, "Connection")
	if len(kept) > 0 {
		h["Connection"] = []string{strings.Join(kept, ", ")}
	}
}

func (o *Options) set(name, value string) (err error) {
	switch http.CanonicalHeaderKey(name) {
	case Mode:
		if o.Mode = lane.Mode(value); !slices.Contains(lane.Modes, o.Mode) {
			return invalid(Mode, value, `it must be "batch", "flex", "auto" or "realtime"`)
		}
	case Window:
		o.Window = value
	case Deadline:
		if o.Deadline, err = time.ParseDuration(value); err != nil || o.Deadline <= 0 {
			return invalid(Deadline, value, `it must be a positive duration such as "30m" or "2h"`)
		}
	default:
		return invalid(name, value, "there is no such header; there are "+Mode+", "+Window+" and "+Deadline)
	}
	return nil
}

func invalid(name, value, why string) error {
	return &reply.RequestError{Status: http.StatusBadRequest, Code: "invalid_header", Message: fmt.Sprintf("request header %s is %q: %s", name, value, why)}
}

// Strip returns the request without the headers of autobatcher: a clone, or req
// itself if req has no such header.
func Strip(req *http.Request) *http.Request {
	found := false
	for name := range req.Header {
		found = found || isOurs(name)
	}
	if !found {
		return req
	}
	clone := req.Clone(req.Context())
	for name := range clone.Header {
		if isOurs(name) {
			delete(clone.Header, name)
		}
	}
	return clone
}

func isOurs(name string) bool {
	return len(name) > len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
}
