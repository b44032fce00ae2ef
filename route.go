package autobatcher

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/autobatcher/autobatcher/internal/inbound"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/payer"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/provider"
)

// A call is one intercepted request: what its line says, who may share its
// batch, and, once it is queued, how far it got.
type call struct {
	line.Line
	key      key
	profile  *provider.Profile
	print    fingerprint
	suffix   string // "/chat/completions"
	model    string
	raw      []byte        // the body as it came, where it may yet be sent so
	inputs   int           // embedding inputs; 0 for other calls
	tries    int           // how often it rode again for want of an answer
	deadline time.Duration // 0: none
	stream   bool          // answered as a stream of events
	usage    bool          // whose last one says the usage

	// These are guarded by Transport.mu.
	batch     *batch
	place     int     // in the batch's calls, and so its line
	open      bool    // the journal says that anyone may take the line over
	waiter    *waiter // nil: the caller has gone
	ended     bool    // settled, never to be settled again
	unwanted  bool    // the caller has got its answer elsewhere
	answer    *answer // came without a caller, and is kept
	keptUntil time.Time
}

// A key says who may share a batch: calls with equal keys, and nobody else. It
// holds credentials and never leaves memory.
type key struct {
	base   string // upstream URL as far as "/v1", with the query
	payer  string // every header that says who pays
	window string
	group  string // endpoint and model, where a file may hold one only
}

// account is whose limits and whose money it is.
func (k *key) account() string { return k.base + "\x00" + k.payer }

// A fingerprint tells whether a call is the same call again: same credential,
// URL and body bytes.
type fingerprint [sha256.Size]byte

// endpoints are the path suffixes of the calls that are batched.
var endpoints = []string{"/chat/completions", "/embeddings", "/responses"}

// The request headers of ours, and the prefix they are known by.
const (
	headerPrefix   = "Autobatcher-"
	headerMode     = "Autobatcher-Mode"
	headerWindow   = "Autobatcher-Completion-Window"
	headerDeadline = "Autobatcher-Deadline"
)

// route decides what becomes of a request, without asking the network. Exactly
// one result is set: a call to be batched, a request to be passed through, or
// the reason why it can be neither. It closes the request's body unless it
// passes that on.
func (t *Transport) route(req *http.Request) (*call, *http.Request, error) {
	suffix := batchedSuffix(req)
	wishes, err := readWishes(req.Header)
	if err != nil {
		closeBody(req)
		return nil, nil, err
	}
	if suffix == "" || wishes.realtime {
		return nil, passThrough(req), nil
	}
	base := strings.TrimSuffix(req.URL.EscapedPath(), suffix)
	profile := t.profileFor(req.URL, base)
	switch {
	case profile.Refusal != "":
		closeBody(req)
		return nil, nil, &reply.Refusal{Status: http.StatusBadRequest, Code: "batch_unsupported", Message: profile.Refusal + " (Or send this call with the header Autobatcher-Mode: realtime.)"}
	case !profile.Batches(suffix):
		t.log.Debug("call passes through", "reason", "the provider does not batch "+suffix, "provider", profile.Name)
		return nil, passThrough(req), nil
	}
	raw, body, err := snapshot(req, lineLimit(profile))
	if err != nil {
		return nil, nil, err
	}
	c := &call{profile: profile, suffix: suffix, deadline: wishes.deadline}
	background, err := c.rewrite(body)
	switch {
	case err != nil:
		return nil, nil, err
	case background:
		t.log.Debug("call passes through", "reason", "background: true answers at once by itself")
		return nil, withBody(passThrough(req), raw), nil
	}
	if profile.MaxInputs > 0 && c.inputs > profile.MaxInputs {
		return nil, nil, reply.BadBody("input", fmt.Sprintf("input has %d items; a batch file may hold %d", c.inputs, profile.MaxInputs))
	}
	if err := profile.CheckMetadata(t.opts.Metadata); err != nil {
		return nil, nil, &reply.Refusal{Status: http.StatusBadRequest, Code: "invalid_metadata", Message: err.Error()}
	}
	if t.opts.Escalate != EscalateNever {
		c.raw = raw
	}
	if c.key.window, err = t.windowFor(profile, wishes.window); err != nil {
		return nil, nil, err
	}
	t.identify(c, req, base, raw)
	return c, nil, nil
}

// batchedSuffix is the endpoint that the request is for, if that is batched.
func batchedSuffix(req *http.Request) string {
	if req.Method != http.MethodPost || req.URL == nil {
		return ""
	}
	for _, suffix := range endpoints {
		if strings.HasSuffix(req.URL.EscapedPath(), suffix) {
			return suffix
		}
	}
	return ""
}

// profileFor tells the provider from the URL. base is its path as far as the
// endpoint.
func (t *Transport) profileFor(u *url.URL, base string) *provider.Profile {
	if t.opts.Provider != nil {
		return t.opts.Provider
	}
	name := u.Scheme + "://" + u.Host + base
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.profiles[name]
	if p == nil {
		if len(t.profiles) >= 1000 { // an enemy's host names must not fill memory
			clear(t.profiles)
		}
		known := provider.ForURL(u)
		p = &known
		t.profiles[name] = p
	}
	return p
}

func (t *Transport) windowFor(p *provider.Profile, wish string) (string, error) {
	window := wish
	if window == "" {
		window = t.opts.CompletionWindow
	}
	if window == "" {
		return p.DefaultWindow, nil
	}
	if err := p.CheckWindow(window); err != nil {
		return "", &reply.Refusal{Status: http.StatusBadRequest, Code: "invalid_completion_window", Message: err.Error()}
	}
	return window, nil
}

// wishes are what a call asks of us by its headers.
type wishes struct {
	realtime bool
	window   string
	deadline time.Duration
}

func readWishes(h http.Header) (wishes, error) {
	var w wishes
	for name, values := range h {
		if !isOurs(name) || len(values) == 0 {
			continue
		}
		value := values[len(values)-1]
		var err error
		switch http.CanonicalHeaderKey(name) {
		case headerMode:
			w.realtime = value == "realtime"
			if value != "realtime" && value != "batch" {
				err = badHeader(headerMode, value, `it must be "batch" or "realtime"`)
			}
		case headerWindow:
			w.window = value
		case headerDeadline:
			w.deadline, err = time.ParseDuration(value)
			if err != nil || w.deadline <= 0 {
				err = badHeader(headerDeadline, value, `it must be a positive duration such as "30m" or "2h"`)
			}
		default:
			err = badHeader(name, value, "there is no such header; there are "+headerMode+", "+headerWindow+" and "+headerDeadline)
		}
		if err != nil {
			return wishes{}, err
		}
	}
	return w, nil
}

func isOurs(name string) bool {
	return len(name) > len(headerPrefix) && strings.EqualFold(name[:len(headerPrefix)], headerPrefix)
}

func badHeader(name, value, why string) error {
	return &reply.Refusal{Status: http.StatusBadRequest, Code: "invalid_header", Message: fmt.Sprintf("request header %s is %q: %s", name, value, why)}
}

// passThrough is the request as it goes on to Base: without headers of ours,
// and the very same where it has none.
func passThrough(req *http.Request) *http.Request {
	ours := false
	for name := range req.Header {
		ours = ours || isOurs(name)
	}
	if !ours {
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

// withBody gives a request whose body was read that body again.
func withBody(req *http.Request, body []byte) *http.Request {
	clone := req.WithContext(req.Context())
	clone.ContentLength = int64(len(body))
	clone.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	clone.Body, _ = clone.GetBody()
	return clone
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

// maxBody bounds a body where the provider names no limit: the largest file
// that OpenAI takes.
const maxBody = 200_000_000

// lineLimit is how large a body may be to fit on a line of a file.
func lineLimit(p *provider.Profile) int64 {
	limit := int64(maxBody)
	if p.MaxBytes > 0 {
		limit = min(limit, p.MaxBytes-lineOverhead)
	}
	if p.MaxLineBytes > 0 {
		limit = min(limit, p.MaxLineBytes)
	}
	return limit
}

// lineOverhead is more than what stands on a line beside the body.
const lineOverhead = 256

// snapshot reads and closes the request's body. raw is what the caller sent,
// body the same without its Content-Encoding.
func snapshot(req *http.Request, limit int64) (raw, body []byte, err error) {
	defer closeBody(req)
	// A body that does not come must not hold a caller that leaves.
	if req.Context().Done() != nil && req.Body != nil {
		stop := context.AfterFunc(req.Context(), func() { req.Body.Close() })
		defer stop()
	}
	if raw, err = inbound.Read(req.Body, req.ContentLength, limit); err != nil {
		if req.Context().Err() != nil {
			err = contextError(req.Context())
		}
		return nil, nil, err
	}
	body, err = inbound.Decode(raw, req.Header.Get("Content-Encoding"), limit)
	return raw, body, err
}

// rewrite checks the body and makes the line's of it. It reports whether the
// call asks to run in the background, which answers at once by itself.
func (c *call) rewrite(body []byte) (background bool, err error) {
	if !utf8.Valid(body) {
		return false, reply.BadBody("", "the request body is not valid UTF-8")
	}
	if !line.Valid(body) || bytes.TrimLeft(body, " \t\r\n")[0] != '{' {
		return false, reply.BadBody("", "the request body is not a JSON object")
	}
	var input gjson.Result
	streams := false
	gjson.Parse(view(body)).ForEach(func(name, value gjson.Result) bool {
		switch name.String() {
		case "model":
			if value.Type == gjson.String {
				c.model = strings.Clone(value.Str)
			}
		case "stream":
			c.stream, streams = value.Bool(), true
		case "stream_options":
			c.usage, streams = value.Get("include_usage").Bool(), true
		case "background":
			background = value.Bool()
		case "input":
			input = value
		}
		return true
	})
	if c.model == "" {
		return false, reply.BadBody("model", "you must provide a model parameter, and it must be a string")
	}
	if c.suffix == "/embeddings" {
		c.inputs, c.stream = countInputs(input), false // there is no such stream
	}
	c.URL = c.profile.LineURL(c.suffix)
	c.Body = line.OneLine(body)
	if streams {
		c.Body, err = withoutStream(c.Body)
	}
	return background, err
}

// view is b as a string without a copy, for as long as b does not change.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// countInputs is how many embeddings are asked for: input is a text, a list of
// tokens, or a list of either.
func countInputs(input gjson.Result) int {
	if !input.IsArray() {
		return 1
	}
	n, tokens := 0, false
	input.ForEach(func(_, value gjson.Result) bool {
		tokens = value.Type == gjson.Number
		n++
		return !tokens
	})
	if tokens {
		return 1
	}
	return n
}

// withoutStream deletes "stream" and "stream_options", every one of them if
// there are several, and leaves the rest as it stands.
func withoutStream(body []byte) ([]byte, error) {
	for _, name := range []string{"stream", "stream_options"} {
		for gjson.GetBytes(body, name).Exists() {
			shorter, err := sjson.DeleteBytes(body, name)
			if err != nil || len(shorter) >= len(body) {
				return nil, reply.BadBody(name, "the request body has a "+name+" that cannot be removed")
			}
			body = shorter
		}
	}
	return body, nil
}

// upstreamOf is where u leads, as far as the path base, with its query.
func upstreamOf(u *url.URL, base string) string {
	if u.RawQuery == "" {
		return u.Scheme + "://" + u.Host + base
	}
	return u.Scheme + "://" + u.Host + base + "?" + u.RawQuery
}

// identify says who pays for the call, with whom it may share a batch, and by
// what the same call is known again.
func (t *Transport) identify(c *call, req *http.Request, base string, raw []byte) {
	c.key.base = upstreamOf(req.URL, base)
	c.key.payer = payer.Of(req.Header)
	if c.profile.OneEndpoint {
		c.key.group = c.suffix
	}
	if c.profile.OneModel {
		c.key.group += " " + c.model
	}
	h := hashes.Get().(hash.Hash)
	defer hashes.Put(h)
	h.Reset()
	h.Write(t.secret[:])
	for _, part := range []string{c.key.base, c.key.payer, c.suffix} {
		h.Write(unsafe.Slice(unsafe.StringData(part), len(part)))
		h.Write(separator)
	}
	h.Write(raw)
	h.Sum(c.print[:0])
}

var (
	hashes    = sync.Pool{New: func() any { return sha256.New() }}
	separator = []byte{0}
)
