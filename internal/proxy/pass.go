package proxy

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
)

// An upstream knows where requests go, and as whom.
type upstream struct {
	base       *url.URL
	header     string // of the credential, canonical
	credential string // its value; "": the caller's own goes up
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

// locate maps a caller's URL onto the upstream's: what follows /v1, or all of it
// where there is no /v1, is appended to the base path.
func (u upstream) locate(in *url.URL) *url.URL {
	out := *u.base
	out.Path = strings.TrimSuffix(u.base.Path, "/") + withoutV1(in.Path)
	out.RawPath = strings.TrimSuffix(u.base.EscapedPath(), "/") + withoutV1(in.EscapedPath())
	switch {
	case out.RawQuery == "":
		out.RawQuery = in.RawQuery
	case in.RawQuery != "":
		out.RawQuery += "&" + in.RawQuery
	}
	return &out
}

func withoutV1(path string) string {
	rest, ok := strings.CutPrefix(path, "/v1")
	if ok && (rest == "" || rest[0] == '/') {
		return rest
	}
	return path
}

// authorize replaces the caller's credential, which is meant for the proxy, by
// the proxy's own.
func (u upstream) authorize(h http.Header) {
	if u.credential == "" {
		return
	}
	delete(h, "Authorization")
	delete(h, "Api-Key")
	h[u.header] = []string{u.credential}
}

// private are headers that say something about the caller, or about the way to
// the proxy, which is nothing to the upstream.
var private = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Real-Ip", "Origin", "Referer"}

// hopByHop are the headers that end at the proxy.
var hopByHop = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect"}

// tidy removes what must not leave with a request.
func tidy(h http.Header) {
	for _, name := range private {
		delete(h, name)
	}
	if cookies, ok := h["Cookie"]; ok {
		forgetOurCookie(h, cookies)
	}
}

// forgetOurCookie removes the cookie that the page has set.
func forgetOurCookie(h http.Header, cookies []string) {
	var rest []string
	for _, pair := range strings.Split(strings.Join(cookies, ";"), ";") {
		if name, _, _ := strings.Cut(strings.TrimSpace(pair), "="); name != cookieName && name != "" {
			rest = append(rest, strings.TrimSpace(pair))
		}
	}
	delete(h, "Cookie")
	if len(rest) > 0 {
		h["Cookie"] = []string{strings.Join(rest, "; ")}
	}
}

// outgoing is the request for a call that is held, as the Transport gets it. It
// takes over the header of r, which would be the largest thing to copy.
func (u upstream) outgoing(r *http.Request, body io.ReadCloser) *http.Request {
	out := r.WithContext(r.Context())
	out.URL = u.locate(r.URL)
	out.Host, out.RequestURI, out.Body = "", "", body
	out.TransferEncoding, out.Trailer, out.Close = nil, nil, false
	for _, value := range out.Header["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			delete(out.Header, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
		}
	}
	for _, name := range hopByHop {
		delete(out.Header, name)
	}
	// A compressed body cannot follow the newlines that may have been sent.
	delete(out.Header, "Accept-Encoding")
	tidy(out.Header)
	u.authorize(out.Header)
	return out
}

// newPass returns the proxy for everything that is not held.
func (p *Proxy) newPass() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:      p.opts.Transport,
		FlushInterval:  -1,
		BufferPool:     buffers{},
		ErrorLog:       slog.NewLogLogger(p.opts.Logger.Handler(), slog.LevelDebug),
		ModifyResponse: wrapErrorPage,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL = p.upstream.locate(pr.In.URL)
			pr.Out.Host = ""
			tidy(pr.Out.Header)
			p.upstream.authorize(pr.Out.Header)
			if batchedEndpoint(pr.In) != "" {
				delete(pr.Out.Header, "Accept-Encoding") // so that usage can be read
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			p.passFailed(w.(*answer), r, err)
		},
	}
}

// through passes a request on and its response back.
func (p *Proxy) through(a *answer, r *http.Request) {
	if a.endpoint != "other" {
		a.tally = &tally{}
	}
	p.pass.ServeHTTP(a, r)
}

func (p *Proxy) passFailed(a *answer, r *http.Request, err error) {
	if gone(r) {
		panic(http.ErrAbortHandler)
	}
	p.opts.Logger.Warn("upstream failed", "path", r.URL.Path, "error", err)
	a.refuse(failureOf(err))
}

// maxErrorPage is how much of an error page is kept, in bytes.
const maxErrorPage = 2000

// wrapErrorPage puts an error that is no JSON, as gateways and some providers
// send it, into the shape that SDKs can read. The status remains.
func wrapErrorPage(res *http.Response) error {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if res.StatusCode < 400 || res.Header.Get("Content-Encoding") != "" || res.Request.Method == http.MethodHead ||
		kind == "application/json" || strings.HasSuffix(kind, "+json") || kind == "text/event-stream" {
		return nil
	}
	page, err := io.ReadAll(io.LimitReader(res.Body, maxErrorPage))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	message := "the upstream answered " + res.Status
	if text := string(bytes.TrimSpace(page)); text != "" && kind != "text/html" {
		message = strings.ToValidUTF8(text, "")
	}
	body := failure{status: res.StatusCode, code: "upstream_error", message: message}.body()
	res.Body = io.NopCloser(bytes.NewReader(body))
	res.ContentLength = int64(len(body))
	res.Header.Set("Content-Type", "application/json")
	res.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

// buffers lends the ReverseProxy its copying buffers.
type buffers struct{}

const bufferSize = 32 << 10

var bufferPool = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Get returns a buffer of bufferSize bytes.
func (buffers) Get() []byte { return bufferPool.Get().(*[bufferSize]byte)[:] }

// Put takes it back.
func (buffers) Put(b []byte) { bufferPool.Put((*[bufferSize]byte)(b)) }
