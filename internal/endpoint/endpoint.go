// Package endpoint knows what the URL of a call decides: the profile of the provider,
// the limits of a batch, and where the calls and the batches are sent. All calls to a
// URL share one Endpoint, so that the work is done once.
package endpoint

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/autobatcher/autobatcher/internal/collector"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/provider"
)

// An Endpoint is what the URL of a call decides. The exported fields must not be modified.
type Endpoint struct {
	Profile    *provider.Profile
	Suffix     string // "/chat/completions"; "": calls to the URL are not batched
	Upstream   string // the URL without Suffix, or without a slash at its end; with the query
	LineURL    string // of the lines of a batch
	Deployment string // the model that the path names; "": the body names the model
	Group      string // the part of a batch's key that the URL decides: the endpoint, where a batch may have only one
	Flex       bool   // the provider answers calls at its flex tier
	MaxBody    int64  // the most bytes of a body that fits on a line
	Limits     collector.Limits
	Kind

	lineMembers []string               // of a body; nil: the whole body stands on a line
	lastGroup   *atomic.Pointer[group] // nil: a batch may hold several models
	logged      uint32                 // read and written atomically: a bit for each entry of reasons that was logged
	badMetadata error                  // why no batch can be created with the metadata of Options
	window      string                 // of calls that ask for none
	badWindow   error                  // why window is not accepted
}

// A group is the part of a batch's key for calls that name a model.
type group struct{ model, name string }

// GroupOf returns the part of a batch's key that the URL and the model decide: the model
// counts where a batch may hold only one. The calls of a model share the text.
func (e *Endpoint) GroupOf(model string) string {
	if e.lastGroup == nil {
		return e.Group
	}
	last := e.lastGroup.Load()
	if last == nil || last.model != model {
		last = &group{model, e.Group + " " + model}
		e.lastGroup.Store(last)
	}
	return last.name
}

// maxShared is the most bytes that the parameters of a batch may have: each call keeps them
// until it is in a queue.
const maxShared = 4 << 10

// Split returns the body of a call's line, and the part of a batch's key that the URL and
// the body decide: where lines have only some members of a body, the others are part of the
// key. The error is a *reply.RequestError.
func (e *Endpoint) Split(body []byte, model string) (own []byte, group string, err error) {
	if e.lineMembers == nil {
		return body, e.GroupOf(model), nil
	}
	own, shared, err := line.Split(body, e.lineMembers, maxShared)
	switch {
	case errors.Is(err, line.ErrOthersTooLong):
		return nil, "", reply.InvalidBody("", fmt.Sprintf("the parameters beside %s belong to the batch, and have over %d bytes", strings.Join(e.lineMembers, " and "), maxShared))
	case err != nil:
		return nil, "", reply.InvalidBody("", "the parameters of the request body cannot be removed: "+err.Error())
	}
	return own, e.Group + " " + string(shared), nil
}

// Shared returns the parameters that calls with the group share, as a JSON object. Nil: the
// lines have the parameters.
func (e *Endpoint) Shared(group string) json.RawMessage {
	if e.lineMembers == nil {
		return nil
	}
	return json.RawMessage(strings.TrimPrefix(group, e.Group+" "))
}

// Accept returns the completion window of a call with a number of embedding inputs
// (0: no embeddings) that asks for a window, or for none (""). The error is a
// *reply.RequestError: no batch of the provider can hold the call.
func (e *Endpoint) Accept(inputs int, window string) (string, error) {
	if limit := e.Limits.Inputs; limit > 0 && inputs > limit {
		return "", reply.InvalidBody("input", fmt.Sprintf("input has %d items; a batch file may hold %d", inputs, limit))
	}
	if e.badMetadata != nil {
		return "", refusal("invalid_metadata", e.badMetadata)
	}
	accepted, bad := e.window, e.badWindow
	if window != "" {
		accepted, bad = checkedWindow(e.Profile, window)
	}
	if bad != nil {
		return "", refusal("invalid_completion_window", bad)
	}
	return accepted, nil
}

func refusal(code string, err error) error {
	return &reply.RequestError{Status: http.StatusBadRequest, Code: code, Message: err.Error()}
}

// Options configure a Table.
type Options struct {
	Profile  *provider.Profile // nil: the URL decides
	Metadata map[string]string // of all batches
	Window   string            // of calls that ask for none; "": the profile decides
	Calls    int               // the most calls of a batch
	Bytes    int64             // the most bytes of an input file; 0: the profile decides
}

// A Table holds the Endpoints of the URLs that were called. A Table is bounded, so that
// unknown names of hosts do not fill the memory. Of may be called concurrently.
type Table struct {
	opts Options

	mu    sync.Mutex
	known map[place]*Endpoint
}

// New returns an empty Table.
func New(o Options) *Table { return &Table{opts: o} }

// A place is the part of a URL that decides.
type place struct{ scheme, host, path, rawPath, query string }

const (
	maxEndpoints = 1000
	maxURL       = 1000 // bytes of a URL that is remembered
)

// Of returns the Endpoint of a URL.
func (t *Table) Of(u *url.URL) *Endpoint {
	p := place{u.Scheme, u.Host, u.Path, u.RawPath, u.RawQuery}
	t.mu.Lock()
	e := t.known[p]
	t.mu.Unlock()
	if e == nil {
		e = t.find(u)
		t.remember(p, e)
	}
	return e
}

// Base returns the Upstream of the calls below the base URL u, such as
// "https://api.openai.com/v1", and the Profile of the provider.
func (t *Table) Base(u *url.URL) (string, *provider.Profile) {
	return upstream(u, strings.TrimSuffix(u.EscapedPath(), "/")), t.profile(u)
}

func (t *Table) profile(u *url.URL) *provider.Profile {
	if t.opts.Profile != nil {
		return t.opts.Profile
	}
	found := provider.ForURL(u)
	return &found
}

func (t *Table) remember(p place, e *Endpoint) {
	if len(p.host)+len(p.path)+len(p.rawPath)+len(p.query) > maxURL {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil || len(t.known) >= maxEndpoints {
		t.known = make(map[place]*Endpoint)
	}
	t.known[p] = e
}

func (t *Table) find(u *url.URL) *Endpoint {
	p := t.profile(u)
	path := u.EscapedPath()
	e := &Endpoint{Profile: p, Suffix: p.Suffix(path)}
	e.Upstream = upstream(u, strings.TrimSuffix(path, cmp.Or(e.Suffix, "/")))
	e.LineURL = p.LineURL(e.Suffix)
	e.Deployment, _ = p.Deployment(path)
	if p.OneEndpoint {
		e.Group = e.Suffix
	}
	e.lineMembers = p.LineMembers[e.Suffix]
	if p.OneModel {
		e.lastGroup = new(atomic.Pointer[group])
	}
	e.Flex, e.Kind = p.Flex(e.Suffix), KindOf(p, e.Suffix)
	e.MaxBody = maxBody(p)
	e.Limits = t.limits(p)
	e.badMetadata = p.CheckMetadata(t.opts.Metadata)
	if e.window = t.opts.Window; e.window == "" {
		e.window = p.DefaultWindow
	} else {
		e.window, e.badWindow = checkedWindow(p, e.window)
	}
	return e
}

// limits are the limits of a batch: those of the options and those of the provider.
func (t *Table) limits(p *provider.Profile) collector.Limits {
	l := collector.Limits{Calls: t.opts.Calls, Bytes: maxFile, Inputs: p.MaxInputs}
	if p.MaxLines > 0 {
		l.Calls = min(l.Calls, p.MaxLines)
	}
	for _, most := range []int64{p.MaxBytes, t.opts.Bytes} {
		if most > 0 {
			l.Bytes = min(l.Bytes, most)
		}
	}
	return l
}

const (
	// maxFile bounds a file, in bytes, where the provider names no limit or a larger one:
	// the largest file that OpenAI takes.
	maxFile = 200_000_000 + lineOverhead

	// lineOverhead is more than the bytes of a line beside the body.
	lineOverhead = 256
)

// maxBody is the size of the largest body that fits on a line of a file.
func maxBody(p *provider.Profile) int64 {
	most := int64(maxFile)
	if p.MaxBytes > 0 {
		most = min(most, p.MaxBytes)
	}
	most -= lineOverhead
	if p.MaxLineBytes > 0 {
		most = min(most, p.MaxLineBytes)
	}
	return most
}

func checkedWindow(p *provider.Profile, window string) (string, error) {
	if err := p.CheckWindow(window); err != nil {
		return "", err
	}
	return window, nil
}

// upstream is where u leads, as far as path, with the query.
func upstream(u *url.URL, path string) string {
	if u.RawQuery == "" {
		return u.Scheme + "://" + u.Host + path
	}
	return u.Scheme + "://" + u.Host + path + "?" + u.RawQuery
}
