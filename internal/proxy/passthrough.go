package proxy

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strings"
	"sync"

	"github.com/autobatcher/autobatcher/internal/account"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/usage"
)

// An upstream holds the address that requests are sent to, and the credential
// that requests are sent with.
type upstream struct {
	base       *url.URL
	header     string // canonical name of the credential's header
	credential string // value of the header; "": the caller's own credential is sent
}

func newUpstream(o *Options) upstream {
	u := upstream{base: o.Upstream, header: http.CanonicalHeaderKey(o.AuthHeader)}
	switch {
	case o.ForwardKey:
	case u.header == "Authorization":
		u.credential = "Bearer " + o.APIKey
	default:
		u.credential = o.APIKey
	}
	return u
}

// targetURL returns the upstream URL for a caller's URL: the base path, followed
// by the caller's path without a leading /v1.
func (u upstream) targetURL(in *url.URL) *url.URL {
	out := *u.base
	path, escaped := trimV1(in.Path), trimV1(in.EscapedPath())
	base := strings.TrimSuffix(u.base.Path, "/")
	if strings.HasSuffix(base, azurePath) && strings.HasPrefix(path, azurePath+"/") && strings.HasPrefix(escaped, azurePath+"/") {
		path, escaped = path[len(azurePath):], escaped[len(azurePath):]
	}
	out.Path = base + path
	if u.base.RawPath != "" || in.RawPath != "" { // otherwise each path has only its usual encoding
		out.RawPath = strings.TrimSuffix(u.base.EscapedPath(), "/") + escaped
	}
	switch {
	case out.RawQuery == "":
		out.RawQuery = in.RawQuery
	case in.RawQuery != "":
		out.RawQuery += "&" + in.RawQuery
	}
	return &out
}

// azurePath is the path that Azure's SDKs add to an endpoint. The base URL of the
// upstream may have the path, too.
const azurePath = "/openai"

func trimV1(path string) string {
	rest, ok := strings.CutPrefix(path, "/v1")
	if ok && (rest == "" || rest[0] == '/') {
		return rest
	}
	return path
}

// authorize replaces the caller's credential, which authenticates the caller to
// the proxy, with the proxy's credential for the upstream. With
// RefuseClientHeaders, authorize also removes the headers by which a caller would
// choose another organization, project or tenant to pay; many different values
// would also make many small batches.
func (p *Proxy) authorize(h http.Header) {
	u := p.upstream
	if u.credential == "" {
		return
	}
	if p.opts.RefuseClientHeaders {
		for name := range account.Headers(account.Identity(h, p.opts.Profile.AccountHeaders...)) {
			delete(h, name)
		}
	}
	delete(h, "Authorization")
	delete(h, "Api-Key")
	h[u.header] = []string{u.credential}
}

// privateHeaders describe the caller or the path to the proxy, which the upstream
// does not need to know, or make some servers answer another method or path than
// the proxy has checked. Cookies belong to the proxy and to the other servers on its
// host, since browsers do not separate the ports of a host; the upstream's own cookies
// reach no client (cleanHeader).
var privateHeaders = []string{
	"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Real-Ip", "Origin", "Referer", "Cookie",
	"X-Http-Method", "X-Http-Method-Override", "X-Method-Override", "X-Original-Uri", "X-Original-Url", "X-Rewrite-Url",
}

// hopByHopHeaders apply to one connection only and are not forwarded.
var hopByHopHeaders = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect"}

// removePrivateHeaders removes privateHeaders.
func removePrivateHeaders(h http.Header) {
	for _, name := range privateHeaders {
		delete(h, name)
	}
}

// newRequest returns the request for a held call. newRequest takes over and
// modifies the header of r: a copy would be the largest allocation of a call.
func (p *Proxy) newRequest(ctx context.Context, r *http.Request, body io.ReadCloser) *http.Request {
	u := p.upstream
	out := r.WithContext(ctx)
	in := *r.URL
	in.RawQuery = p.keptQuery(r.URL)
	out.URL = u.targetURL(&in)
	out.Host, out.RequestURI, out.Body = "", "", body
	out.TransferEncoding, out.Trailer, out.Close = nil, nil, false
	for _, value := range out.Header["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			delete(out.Header, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
		}
	}
	for _, name := range hopByHopHeaders {
		delete(out.Header, name)
	}
	// Heartbeats may come before the response, and a compressed body cannot
	// follow uncompressed heartbeats.
	delete(out.Header, "Accept-Encoding")
	removePrivateHeaders(out.Header)
	p.authorize(out.Header)
	return out
}

// newReverseProxy returns the handler for requests that are not held.
func (p *Proxy) newReverseProxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:     p.opts.Transport,
		FlushInterval: -1,
		BufferPool:    copyBuffers{},
		ErrorLog:      slog.NewLogLogger(p.opts.Logger.Handler(), slog.LevelDebug),
		ModifyResponse: func(res *http.Response) error {
			if rw, ok := res.Request.Context().Value(passedKey{}).(*responseWriter); ok {
				rw.passed.endSending() // from here on, the response has to arrive
				p.watchResponse(res, rw.cancelUpstream)
			}
			return p.cleanResponse(res)
		},
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL = p.upstream.targetURL(pr.In.URL)
			pr.Out.Host = ""
			pr.Out.Trailer = nil // not searched for headers that clients may not send
			removeUpgrade(pr.Out.Header)
			removePrivateHeaders(pr.Out.Header)
			p.authorize(pr.Out.Header)
			if p.upstream.credential != "" || p.batchedEndpoint(pr.In) != "" {
				// Neither the search for credentials nor the usage scanner can read
				// a compressed response.
				delete(pr.Out.Header, "Accept-Encoding")
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			p.passThroughFailed(w.(*responseWriter), r, err)
		},
	}
}

// passThrough forwards a request to the upstream and the response to the client.
func (p *Proxy) passThrough(rw *responseWriter, r *http.Request) {
	if rw.endpoint != endpointOther {
		rw.usage, rw.lane = &usage.Scanner{}, &p.metrics.chosen
		rw.lane.waiting.Add(1)
		defer rw.lane.waiting.Add(-1)
	}
	if !p.beginPassing() {
		rw.writeFailure(failTooManyPassed)
		return
	}
	defer p.passing.Add(-1)
	ctx, cancel := context.WithCancelCause(caller.With(r.Context(), rw.caller))
	defer cancel(nil)
	r = r.WithContext(context.WithValue(ctx, passedKey{}, rw))
	rw.upgradeTimeout, rw.cancelUpstream = p.opts.PassThroughTimeout, func() { cancel(errStalled) }
	var held *heldBytes
	if rw.passed = p.watchRequest(rw, r, cancel); rw.passed != nil {
		held = rw.passed.held
		defer held.release()
		defer rw.passed.endSending()
	}
	p.reverseProxy.ServeHTTP(rw, r.WithContext(caller.Observe(r.Context(), held)))
}

// passedKey is the key of the responseWriter in the context of a passed request.
type passedKey struct{}

// isUpload reports whether a request uploads a file.
func isUpload(r *http.Request) bool {
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return strings.HasPrefix(mediaType, "multipart/") || mediaType == "application/octet-stream"
}

func (p *Proxy) passThroughFailed(rw *responseWriter, r *http.Request, err error) {
	if reason := rw.passed.failed(); reason != nil {
		p.countBodyRefusal(reason)
		rw.writeFailure(bodyFailure(reason))
		return
	}
	if clientGone(r) {
		panic(http.ErrAbortHandler)
	}
	p.opts.Logger.Warn("upstream request failed", "path", r.URL.Path, "error", p.opts.Secrets.Text(err.Error()))
	rw.writeFailure(p.transportFailure(err))
}

// maxErrorPage is how many bytes of an error page are read.
const maxErrorPage = 2000

// wrapErrorPage converts an error response that is not JSON, as gateways and
// some providers send, into OpenAI's error shape, which SDKs can read. The
// status does not change.
func wrapErrorPage(res *http.Response) error {
	mediaType, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if res.StatusCode < 400 || res.Header.Get("Content-Encoding") != "" || res.Request.Method == http.MethodHead ||
		mediaType == "application/json" || strings.HasSuffix(mediaType, "+json") || mediaType == "text/event-stream" {
		return nil
	}
	page, err := io.ReadAll(io.LimitReader(res.Body, maxErrorPage))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	var message string
	if mediaType != "text/html" {
		message = strings.ToValidUTF8(string(bytes.TrimSpace(page)), "")
	}
	replaceBody(res, upstreamError(res, message).body())
	return nil
}

// upstreamError returns the failure for an error response of the upstream. An
// empty message is replaced by the status line.
func upstreamError(res *http.Response, message string) failure {
	message = cmp.Or(message, "the upstream answered "+res.Status)
	return failure{status: res.StatusCode, code: "upstream_error", message: message}
}

// copyBuffers is the httputil.BufferPool of the reverse proxy.
type copyBuffers struct{}

const bufferSize = 32 << 10

var bufferPool = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Get returns a buffer of bufferSize bytes.
func (copyBuffers) Get() []byte { return bufferPool.Get().(*[bufferSize]byte)[:] }

// Put returns a buffer to the pool.
func (copyBuffers) Put(b []byte) { bufferPool.Put((*[bufferSize]byte)(b)) }
