// Package proxy is the local OpenAI-compatible proxy in front of a Transport
// that batches: whoever speaks OpenAI to it gets batch price.
//
//	POST …/chat/completions, …/embeddings, …/responses   held until their batch answers
//	GET /health                                          "ok"
//	GET /metrics                                         for Prometheus
//	GET /, /autobatcher/…                                the page
//	everything else                                      passed through to the upstream
//
// # A held call
//
// A batch takes hours, and no client waits in silence that long. So a held call
// is silent only for Options.Grace, while its true status can still be told.
// Then 200 is committed and something is sent every Options.Heartbeat that the
// client at hand is known to skip: comments in a stream of events, empty deltas
// for a client that counts comments, newlines before a JSON body. A failure
// after that is an error event in a stream, and always a broken connection: a
// client takes a clean end for a success.
//
// A held call does not go through httputil.ReverseProxy as the others do: what
// that adds (upgrades, 1xx, trailers) means nothing to a call that is answered
// from a file, and a hundred thousand calls pay for it in memory. A call costs
// its handler's goroutine, which net/http has started anyway, and one timer.
//
// # Errors
//
// Whatever the proxy itself has to say is JSON in OpenAI's shape under the right
// status, since SDKs decide by both whether to try again and pay again.
package proxy

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/autobatcher/autobatcher"
)

// Options configure a Proxy. Upstream and Transport are required, and APIKey
// unless ForwardKey is set.
type Options struct {
	// Upstream is the base URL with its path, such as https://api.openai.com/v1.
	// What follows /v1 in a caller's path is appended to it. Its query, if any,
	// is sent with every request.
	Upstream *url.URL

	// APIKey is the credential sent upstream. No caller ever sees it.
	APIKey string

	// AuthHeader is the header it is sent in: "Authorization", as a bearer
	// token, or "api-key", as it is. Default: "Authorization".
	AuthHeader string

	// ForwardKey sends each caller's own credential upstream instead of APIKey,
	// so that each has its own batches. A call without one gets 401.
	ForwardKey bool

	// ClientKeys are the keys the proxy lets in. With any, nothing but /health
	// answers without one of them, in Authorization: Bearer or in api-key. The
	// page and /metrics also take it as ?key=… and as the password of HTTP
	// Basic, for browsers. With ForwardKey they are the credentials let through.
	// Default: everybody is let in, except that browsers may not send calls from
	// the pages of other sites.
	ClientKeys []string

	// Transport answers the calls: an *autobatcher.Transport.
	Transport http.RoundTripper

	// Stats is the Transport's method of that name. Optional: without it the
	// metric of queued calls is absent.
	Stats func() autobatcher.Stats

	// MaxBody is the largest body, in bytes, of a call that is held; a larger
	// one gets 413. Default: 200 MiB.
	MaxBody int64

	// MaxQueued is how many calls are held at once; one more gets 429 with
	// Retry-After. Default: no limit.
	MaxQueued int

	// Grace is how long a held call is silent before 200 is committed. It is cut
	// to 80 % of the timeout that a client announces. Set it below the idle limit
	// of a load balancer in front. Default: 240 s. Negative: for ever.
	Grace time.Duration

	// Heartbeat is the time between signs of life after that. It is cut to half
	// of the timeout that a client announces. Default: 15 s.
	Heartbeat time.Duration

	// Page is served at "/" and below "/autobatcher/". Default: 404.
	Page http.Handler

	// Metrics is where the proxy's metrics are registered and what /metrics
	// shows. Default: a registry of its own.
	Metrics *prometheus.Registry

	// Logger is told of panics and of upstreams that cannot be reached. It never
	// sees a credential, a prompt or an answer. Default: nothing is logged.
	Logger *slog.Logger
}

const (
	defaultMaxBody   = 200 << 20
	defaultGrace     = 240 * time.Second // openai-node gives up after 300 s without headers
	defaultHeartbeat = 15 * time.Second  // load balancers give up after 60 s without a byte
)

func (o Options) withDefaults() Options {
	if o.AuthHeader == "" {
		o.AuthHeader = "Authorization"
	}
	if o.MaxBody == 0 {
		o.MaxBody = defaultMaxBody
	}
	if o.Grace == 0 {
		o.Grace = defaultGrace
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = defaultHeartbeat
	}
	if o.Metrics == nil {
		o.Metrics = prometheus.NewRegistry()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o *Options) validate() error {
	switch {
	case o.Upstream == nil || o.Upstream.Host == "" || o.Upstream.Scheme != "http" && o.Upstream.Scheme != "https":
		return fmt.Errorf("proxy: Options.Upstream is %q; it must be an http or https URL such as https://api.openai.com/v1", redacted(o.Upstream))
	case o.Transport == nil:
		return errors.New("proxy: Options.Transport is missing")
	case o.APIKey == "" && !o.ForwardKey:
		return errors.New("proxy: Options.APIKey is empty; set it, or ForwardKey")
	case slices.Contains(o.ClientKeys, ""):
		return errors.New("proxy: Options.ClientKeys has an empty key")
	case !strings.EqualFold(o.AuthHeader, "Authorization") && !strings.EqualFold(o.AuthHeader, "api-key"):
		return fmt.Errorf("proxy: Options.AuthHeader is %q; it must be Authorization or api-key", o.AuthHeader)
	case o.MaxBody < 0:
		return fmt.Errorf("proxy: Options.MaxBody is %d; it must not be negative; 0 means %d", o.MaxBody, defaultMaxBody)
	case o.MaxQueued < 0:
		return fmt.Errorf("proxy: Options.MaxQueued is %d; it must not be negative; 0 means no limit", o.MaxQueued)
	case o.Heartbeat < 0:
		return fmt.Errorf("proxy: Options.Heartbeat is %v; it must not be negative; 0 means %v", o.Heartbeat, defaultHeartbeat)
	}
	return nil
}

func redacted(u *url.URL) string {
	if u == nil {
		return ""
	}
	return u.Redacted()
}

// A Proxy is an http.Handler. Make one with New and serve it with NewServer.
// All methods may be called concurrently.
type Proxy struct {
	opts     Options
	upstream upstream
	keys     keyring
	pass     *httputil.ReverseProxy
	scrape   http.Handler // of /metrics
	meters   *meters
	origins  *http.CrossOriginProtection
	draining atomic.Bool
	held     atomic.Int64
	boot     string // tells this process's synthetic stream ids from others'
	calls    atomic.Int64
}

// New returns a Proxy. The error names the field that is missing or out of
// bounds, or tells that Options.Metrics has such metrics already.
func New(o Options) (*Proxy, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	p := &Proxy{
		opts:     o,
		upstream: newUpstream(&o),
		keys:     newKeyring(o.ClientKeys),
		origins:  http.NewCrossOriginProtection(),
		boot:     rand.Text()[:10],
	}
	p.pass = p.newPass()
	var err error
	p.meters, p.scrape, err = newMeters(o.Metrics, o.Stats, &p.held)
	return p, err
}

// OnEvent counts an event of the Transport's. Give it to the Transport as, or
// call it from, Options.OnEvent.
func (p *Proxy) OnEvent(e autobatcher.Event) { p.meters.event(string(e.Name)) }

// Drain makes every call from now on end with 503 and Retry-After: 1. Calls that
// are held already are not touched; they end with the Transport.
func (p *Proxy) Drain() { p.draining.Store(true) }

// Usage says what went through the Proxy so far.
func (p *Proxy) Usage() Usage {
	u := p.meters.usage()
	u.Waiting = int(p.held.Load())
	return u
}

// ServeHTTP answers one request.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := &answer{w: w, r: r, begun: time.Now()}
	defer p.finish(a)
	switch path := r.URL.Path; {
	case path == "/health":
		health(a, r)
	case path == "/metrics":
		p.guarded(a, r, p.scrape)
	case path == "/" || strings.HasPrefix(path, "/autobatcher/"):
		p.guarded(a, r, p.opts.Page)
	default:
		p.call(a, r)
	}
}

// finish ends every request. A panic becomes as good an answer as it still can,
// which says not to try again: it would panic again, and might be paid for again.
func (p *Proxy) finish(a *answer) {
	v := recover()
	if v != nil && v != http.ErrAbortHandler { //nolint:errorlint // the very value, as net/http compares it
		p.opts.Logger.Error("handler panicked", "panic", v, "path", a.r.URL.Path, "stack", string(debug.Stack()))
		if a.status == 0 {
			clear(a.Header())
			a.refuse(failInternal)
			v = nil
		}
	}
	a.broken = v != nil
	p.meters.count(a)
	if a.broken {
		panic(http.ErrAbortHandler)
	}
	switch {
	case a.status == http.StatusSwitchingProtocols: // the connection is not ours any more
	case a.r.ProtoMajor == 1 || a.bytes > http2Buffer:
		a.Flush() // net/http would wait for ever for a client that takes no more
	}
}

// http2Buffer is how much of an answer net/http keeps back over HTTP/2: what
// fits into it goes in one piece with the stream's end, unless it is flushed.
const http2Buffer = 4 << 10

func health(a *answer, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		a.refuse(failMethod)
		return
	}
	a.Header()["Content-Type"] = []string{"text/plain; charset=utf-8"}
	a.Header()["Content-Length"] = []string{"2"}
	_, _ = a.Write([]byte("ok"))
}

// call answers what is meant for the upstream.
func (p *Proxy) call(a *answer, r *http.Request) {
	credential := credentialOf(r.Header)
	a.endpoint = cmp.Or(batchedEndpoint(r), "other")
	switch {
	case p.draining.Load():
		a.refuse(failDraining)
	case len(p.keys) > 0 && !p.keys.has(credential):
		a.refuse(failKey)
	case p.opts.ForwardKey && credential == "":
		a.refuse(failNoKey)
	case len(p.keys) == 0 && p.origins.Check(r) != nil:
		a.refuse(failOrigin)
	case a.endpoint == "other" || r.Header.Get("Autobatcher-Mode") == "realtime":
		p.through(a, r)
	default:
		p.hold(a, r)
	}
}

// endpoints are the path suffixes of the calls that the Transport batches.
var endpoints = []string{"/chat/completions", "/embeddings", "/responses"}

// batchedEndpoint is the one the request is for, or "".
func batchedEndpoint(r *http.Request) string {
	if r.Method != http.MethodPost {
		return ""
	}
	for _, suffix := range endpoints {
		if strings.HasSuffix(r.URL.Path, suffix) {
			return suffix
		}
	}
	return ""
}
