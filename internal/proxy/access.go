package proxy

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// methods are the methods of OpenAI's API and of browsers. The proxy refuses all
// other methods, such as TRACE, which makes some servers repeat the request with its
// credential.
var methods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
}

// checkAccess returns why a request must not be answered, or nil. It checks what
// does not depend on the caller's key: the method, the address and the origin.
func (p *Proxy) checkAccess(r *http.Request) *failure {
	switch {
	case r.Method == http.MethodConnect:
		return &failConnect
	case !slices.Contains(methods, r.Method):
		return &failUnsupportedMethod
	case r.URL.Host != "" && !p.isOwnHost(r), p.anonymous() && !p.isOwnHost(r):
		return &failUnknownHost
	case isForeign(r) && !p.welcomes(r):
		return &failCrossOrigin
	case !isSafePath(r.URL):
		return &failUnsafePath
	}
	return nil
}

// anonymous reports whether callers need no key. Only the address then separates
// the programs of this machine from a web page that a browser on this machine
// shows.
func (p *Proxy) anonymous() bool { return len(p.keys) == 0 && !p.opts.ForwardKey }

// isOwnHost reports whether the Host header (or, with HTTP/1.1, the host of an
// absolute URL, which net/http copies to Request.Host) is a name of this server. A
// web page whose DNS name changes to the address of this server has the same origin
// as this server for the browser; the Host header still has the page's name. No
// browser sends an empty Host header.
func (p *Proxy) isOwnHost(r *http.Request) bool {
	name := hostname(r.Host)
	if r.Host == "" || name == "localhost" || strings.HasSuffix(name, ".localhost") || slices.Contains(p.allowedHosts, name) {
		return true
	}
	addr, err := netip.ParseAddr(name)
	if err != nil {
		return false
	}
	addr = addr.Unmap().WithZone("")
	return addr.IsLoopback() || addr == localAddr(r)
}

// localAddr returns the address of this machine at which the request arrived. A
// browser that names the address itself did not ask DNS.
func localAddr(r *http.Request) netip.Addr {
	tcp, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// hostname returns the name in a Host header in lower case, without the port, the
// brackets of an IPv6 address and a trailing dot.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

// isForeign reports whether a browser sent the request for a web page of another
// origin. Browsers send Origin with each WebSocket, and with each request that is
// not a GET or a HEAD; Sec-Fetch-Site with each request to a trustworthy address,
// which includes loopback. Pages cannot change these headers. Other clients send
// neither.
func isForeign(r *http.Request) bool {
	for _, site := range r.Header["Sec-Fetch-Site"] {
		if site != "same-origin" && site != "none" {
			return true
		}
	}
	for _, origin := range r.Header["Origin"] {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return true
		}
	}
	return false
}

// welcomes reports whether a page of another origin may send the request: with a
// client key, which a page has only if its user gave the key to the page; or by a
// link to the status page, which shows the status page to the user and not to the
// other page.
func (p *Proxy) welcomes(r *http.Request) bool {
	if !isOwnPage(r.URL.Path) {
		return len(p.keys) > 0
	}
	return r.URL.Path == "/" && r.Method == http.MethodGet &&
		r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

// isOwnPage reports whether the proxy answers the path itself.
func isOwnPage(path string) bool {
	return path == "/metrics" || path == "/" || strings.HasPrefix(path, "/autobatcher/")
}

// acceptsPage reports whether the page and the metrics are open at all. With ForwardKey
// they need PageKeys or ClientKeys: every text is a valid key of a caller there, and a
// request from this machine may come from a server that forwards requests of others.
func (p *Proxy) acceptsPage() bool { return len(p.pageKeys) > 0 || !p.opts.ForwardKey }

// corsMaxAge is how long a browser may remember the answer to a preflight, in
// seconds. No browser remembers longer than a day.
const corsMaxAge = "86400"

// answersCORS reports whether pages of other origins may read the answer. Only a
// client key authenticates such a page: cookies and HTTP Basic count for the
// proxy's own pages only.
func (p *Proxy) answersCORS(r *http.Request) bool {
	return len(p.keys) > 0 && r.Header.Get("Origin") != "" && !isOwnPage(r.URL.Path)
}

// setCORS allows pages of all origins to read an answer. The upstream's own
// Access-Control headers were removed before.
func setCORS(h http.Header) {
	h["Access-Control-Allow-Origin"] = []string{"*"}
	h["Access-Control-Expose-Headers"] = []string{"*"}
}

// serveOptions answers OPTIONS, also without a key: browsers send no key with a
// preflight.
func (p *Proxy) serveOptions(rw *responseWriter, r *http.Request) {
	h := rw.Header()
	h.Set("Allow", strings.Join(methods, ", "))
	if p.answersCORS(r) {
		h.Set("Access-Control-Allow-Methods", strings.Join(methods, ", "))
		h.Set("Access-Control-Max-Age", corsMaxAge)
		// "*" would not include Authorization.
		headers := r.Header.Get("Access-Control-Request-Headers")
		if headers == "" {
			headers = "Authorization, Api-Key, Content-Type"
		}
		h.Set("Access-Control-Allow-Headers", headers)
		if r.Header.Get("Access-Control-Request-Private-Network") == "true" {
			h.Set("Access-Control-Allow-Private-Network", "true")
		}
	}
	rw.WriteHeader(http.StatusNoContent)
}

// removeAccessControl removes the upstream's Access-Control headers, which speak
// for the upstream's callers and not for those of the proxy.
func removeAccessControl(h http.Header) {
	for name := range h {
		if strings.HasPrefix(name, "Access-Control-") {
			delete(h, name)
		}
	}
}
