// Package proxy is the local OpenAI-compatible proxy in front of a Transport
// that batches. A client needs only another base URL to pay the batch price.
//
//	POST …/chat/completions, …/embeddings, …/responses   held until the batch answers; so are the other
//	                                                     calls that Options.Profile batches, but for forms
//	GET /health                                          "ok"
//	GET /metrics                                         metrics for Prometheus
//	GET /, /autobatcher/…                                live status page
//	POST /autobatcher/cancel                             cancels a batch, for the page
//	POST /autobatcher/webhook                            webhooks of the provider
//	all other requests                                   passed through to the upstream
//
// A call with the header Autobatcher-Mode: realtime is passed through, too.
// docs/security.md says which requests are refused.
//
// The files follow a request: proxy.go selects the handler, access.go checks where
// the request comes from, auth.go checks keys, route.go checks the path, hold.go,
// heartbeat.go and latestream.go answer held calls, failure.go reports errors, passthrough.go forwards the other
// requests, and clean.go hides credentials in responses. cancel.go cancels batches for the page,
// lanes.go counts the calls in real time, and webhook.go receives the provider's webhooks. responsewriter.go,
// requestbody.go, stall.go and upgrade.go limit how long a peer may stall; memory.go,
// queuelimit.go and connlimit.go limit what clients can use.
//
// # A held call
//
// A batch takes hours, but clients have timeouts of minutes. The proxy sends
// nothing for Options.Grace, because until the first byte the proxy can still
// choose the status. After the grace the proxy commits status 200, and sends a
// heartbeat every Options.Heartbeat. The form of the heartbeat depends on the
// client: events without content in the stream of a known SDK, comments in any other
// stream, newlines before a JSON body. If the call fails after the commit, an event stream gets an error
// event, and the connection is broken in any case, because a client takes a clean
// end for a success.
//
// A held call does not use httputil.ReverseProxy. The additional features
// (upgrades, 1xx responses, trailers) are useless for a response that comes from
// a result file, but would cost memory for each of a hundred thousand calls. A
// waiting call costs the goroutine of its handler, which net/http has started
// anyway, and one timer.
//
// # Errors
//
// Errors of the proxy itself are JSON in OpenAI's error shape with a matching
// status, because SDKs use both to decide about a retry, and a retry may be paid
// for again.
package proxy

import (
	"cmp"
	"crypto/rand"
	"net/http"
	"net/http/httputil"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/aside"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/callheader"
	"github.com/autobatcher/autobatcher/internal/endpoint"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/requestbody"
)

// A Proxy is an http.Handler. Make a Proxy with New and serve it with NewServer.
// All methods may be called concurrently.
type Proxy struct {
	opts           Options
	routes         []string // the endpoints of model calls, below the base path, as endpoint.Routes orders them
	upstream       upstream
	keys           keyring
	pageKeys       keyring       // keys for the page and the metrics; empty: no key
	allowedHosts   []string      // Options.AllowHosts in lower case
	anyone         caller.Caller // sends the calls without a key
	reverseProxy   *httputil.ReverseProxy
	metrics        *metrics
	metricsHandler http.Handler // serves /metrics
	draining       atomic.Bool
	held           atomic.Int64
	passing        atomic.Int64 // requests that pass through now, and held calls that are sent in real time
	memory         memoryBudget
	queue          queueLimit
	refusals       *prometheus.CounterVec
	webhooks       *webhooks
	instanceID     string       // makes chunk ids unique across processes
	chunkIDs       atomic.Int64 // number of chunk ids made so far
}

// New returns a Proxy. The error names the option that is missing or out of
// bounds, or says that the proxy's metrics are already registered at
// Options.Metrics.
func New(o Options) (*Proxy, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	p := &Proxy{
		opts:       o,
		routes:     endpoint.Routes(&o.Profile),
		upstream:   newUpstream(&o),
		keys:       newKeyring(o.ClientKeys),
		pageKeys:   newKeyring(o.ClientKeys),
		instanceID: rand.Text()[:10],
	}
	if len(o.PageKeys) > 0 {
		p.pageKeys = newKeyring(o.PageKeys)
	}
	for _, host := range o.AllowHosts {
		p.allowedHosts = append(p.allowedHosts, hostname(host))
	}
	p.anyone.BatchOnly = o.RefuseClientHeaders
	for i := range p.keys {
		p.keys[i].caller.BatchOnly = o.RefuseClientHeaders
		if o.OneCaller {
			p.keys[i].caller.ID, p.keys[i].caller.Name = "", ""
		}
	}
	p.addSecrets()
	p.memory.limit = o.MaxMemory
	p.queue = queueLimit{max: o.MaxQueued, stats: o.Stats}
	p.reverseProxy = p.newReverseProxy()
	if err := p.registerLimits(); err != nil {
		return nil, err
	}
	var err error
	if p.webhooks, err = newWebhooks(o.Metrics); err != nil {
		return nil, err
	}
	p.metrics, p.metricsHandler, err = newMetrics(o.Metrics, o.Stats, &p.held)
	return p, err
}

// OnEvent counts an event of the Transport. Use OnEvent as Options.OnEvent of
// the Transport, or call OnEvent from there. OnEvent does not block.
func (p *Proxy) OnEvent(e autobatcher.Event) { p.metrics.countEvent(e) }

// Drain makes every new call end with 503 and Retry-After: 1. Drain does not
// affect calls that are already held: closing the Transport ends held calls.
func (p *Proxy) Drain() { p.draining.Store(true) }

// Usage returns the counts of model calls so far.
func (p *Proxy) Usage() Usage {
	u := p.metrics.usage()
	u.Waiting = int(p.held.Load())
	return u
}

// ServeHTTP answers one request.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rw := &responseWriter{w: w, rc: http.NewResponseController(w), r: r, started: time.Now()}
	defer p.finish(rw)
	var next func()
	// The goroutine may serve many calls of a connection, and waits for most of its time: its
	// stack stays at 4 KB.
	aside.Run(func() { next = p.serve(rw, r) })
	if next != nil {
		next()
	}
}

// serve answers a request, or returns what answers the request: a call that waits.
func (p *Proxy) serve(rw *responseWriter, r *http.Request) (next func()) {
	path := r.URL.Path
	switch path {
	case "/health":
		serveHealth(rw, r)
		return nil
	case WebhookPath:
		p.serveWebhook(rw, r)
		return nil
	}
	if !isOwnPage(path) {
		rw.endpoint = cmp.Or(p.batchedEndpoint(r), endpointOther)
		rw.cors = p.answersCORS(r)
	}
	refusal := p.checkAccess(r)
	switch {
	case refusal != nil:
		rw.writeFailure(*refusal)
	case path == "/metrics":
		p.serveProtected(rw, r, p.metricsHandler)
	case path == cancelPath:
		p.serveCancel(rw, r)
	case isOwnPage(path):
		p.serveProtected(rw, r, p.opts.Page)
	case r.Method == http.MethodOptions:
		p.serveOptions(rw, r)
	default:
		return p.serveCall(rw, r)
	}
	return nil
}

// finish ends every request, also after a panic. If nothing was sent before the
// panic, finish sends an error response with X-Should-Retry: false, because a
// retry would probably panic again and might be paid for again. Otherwise finish
// breaks the connection.
func (p *Proxy) finish(rw *responseWriter) {
	v := recover()
	if v != nil && v != http.ErrAbortHandler { //nolint:errorlint // net/http compares the value in the same way
		p.opts.Logger.Error("handler panicked", "panic", v, "path", rw.r.URL.Path, "stack", string(debug.Stack()))
		if rw.status == 0 {
			clear(rw.Header())
			rw.writeFailure(failInternal)
			v = nil
		}
	}
	rw.aborted = v != nil
	p.metrics.countRequest(rw)
	if rw.aborted {
		panic(http.ErrAbortHandler)
	}
	rw.end()
}

// end sends the rest of a response.
func (rw *responseWriter) end() {
	switch {
	case rw.status == http.StatusSwitchingProtocols: // the connection belongs to the upgraded protocol
	case rw.r.ProtoMajor == 1 || rw.bytesOut > http2Buffer:
		aside.Run(rw.Flush) // with a timeout; net/http would flush without a timeout
	default: // net/http sends the response after end; a client that accepts no bytes must not keep the stream
		_ = rw.rc.SetWriteDeadline(time.Now().Add(stallTimeout))
	}
}

// http2Buffer is the size of net/http's response buffer for HTTP/2, in bytes. A
// smaller response is sent in one piece together with the end of the stream,
// unless the response is flushed before.
const http2Buffer = 4 << 10

func serveHealth(rw *responseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		rw.writeFailure(failMethod)
		return
	}
	rw.Header()["Content-Type"] = []string{"text/plain; charset=utf-8"}
	rw.Header()["Content-Length"] = []string{"2"}
	_, _ = rw.Write([]byte("ok"))
}

// serveCall answers a request for the upstream: serveCall checks the
// credentials and the route, then holds the call or passes the request through.
func (p *Proxy) serveCall(rw *responseWriter, r *http.Request) (next func()) {
	if refusal := p.checkCall(rw, r); refusal != nil {
		rw.writeFailure(*refusal)
		return nil
	}
	// The mode is decided here, once: the Transport must read the same headers.
	callheader.Keep(r.Header)
	asked, err := callheader.Parse(r.Header)
	switch {
	case err != nil:
		rw.writeFailure(headerFailure(err))
	case rw.endpoint == endpointOther && isWebSocket(r.Header) && asked.Mode != lane.Realtime && p.similarPath(r.URL) != "":
		rw.writeFailure(failNearMiss(r, p.similarPath(r.URL)))
	case rw.endpoint == endpointOther || asked.Mode == lane.Realtime, requestbody.IsForm(r.Header) && !p.opts.RefuseClientHeaders:
		return func() { p.passThrough(rw, r) }
	default:
		return p.hold(rw)
	}
	return nil
}

// checkCall returns why a request for the upstream is refused, or nil.
func (p *Proxy) checkCall(rw *responseWriter, r *http.Request) *failure {
	credential := credentialOf(r.Header)
	key := p.keys.find(credential)
	switch {
	case p.draining.Load():
		return &failDraining
	case len(p.keys) > 0 && key < 0:
		if p.opts.OneCaller {
			return &failOtherKey
		}
		return &failInvalidKey
	case p.opts.ForwardKey && credential == "":
		return &failMissingKey
	}
	if refusal := p.checkRoute(rw, r); refusal != nil {
		return refusal
	}
	if name := callheader.Name(r.Header); name != "" && p.opts.RefuseClientHeaders {
		f := failClosedHeader(name)
		return &f
	}
	rw.caller = p.callerOf(key, credential)
	return nil
}
