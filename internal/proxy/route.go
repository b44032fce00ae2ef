package proxy

import (
	"encoding/hex"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/autobatcher/autobatcher/internal/background"
	"github.com/autobatcher/autobatcher/provider"
)

// maxDecodings is how often isSafePath decodes a path: a server behind the
// upstream may decode once more than the upstream.
const maxDecodings = 4

// isSafePath reports whether a path stays below the base path of the upstream, also
// if a server decodes the path more than once, takes a backslash for a slash, or
// ignores what follows a semicolon.
func isSafePath(u *url.URL) bool {
	if u.Opaque != "" || !strings.HasPrefix(u.Path, "/") {
		return false
	}
	path := u.EscapedPath()
	for range maxDecodings + 1 {
		for segment := range strings.SplitSeq(path, "/") {
			segment, _, _ = strings.Cut(segment, ";")
			if segment = strings.TrimSpace(segment); segment == "." || segment == ".." {
				return false
			}
		}
		if !utf8.ValidString(path) || strings.ContainsFunc(path, func(r rune) bool { return r == '\\' || unicode.IsControl(r) }) {
			return false
		}
		if !strings.Contains(path, "%") {
			return true
		}
		decoded := decode(path)
		if decoded == path {
			return true
		}
		path = decoded
	}
	return false
}

// decode decodes a path once. In contrast to url.PathUnescape, an invalid escape is
// not an error: a server may decode the rest.
func decode(path string) string {
	return escapes.ReplaceAllStringFunc(path, func(escape string) string {
		b, err := hex.DecodeString(escape[1:])
		if err != nil {
			panic(err) // the expression matches digits only
		}
		return string(b)
	})
}

var escapes = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// endpointOther is the endpoint of upstream requests that are not model calls.
const endpointOther = "other"

// batchedEndpoint returns the entry of p.routes that a request is for, or "" for other
// requests. The Transport chooses by the end of the path, so the rest of the path must be
// right: a wrong path would be passed through at full price, or each path would be a batch
// of its own.
func (p *Proxy) batchedEndpoint(r *http.Request) string {
	if r.Method != http.MethodPost {
		return ""
	}
	path := p.apiPath(r.URL)
	if i := slices.Index(p.routes, path); i >= 0 {
		return p.routes[i]
	}
	return ""
}

// apiPath returns the escaped path of a request below the base path, without what
// Azure's SDKs add: /openai, and the name of a deployment. Example:
// "/chat/completions".
func (p *Proxy) apiPath(u *url.URL) string {
	path := trimV1(u.EscapedPath())
	if p.upstream.header != "Api-Key" {
		return path
	}
	if rest, found := strings.CutPrefix(path, azurePath); found && strings.HasPrefix(rest, "/") {
		path = rest
		if !strings.Contains(p.upstream.base.Path, azurePath) {
			path = trimV1(path)
		}
	}
	cut := p.opts.Profile.BasePathCut
	if rest, found := strings.CutPrefix(path, cut); found && cut != "" {
		if name, after, ok := strings.Cut(rest, "/"); ok && name != "" {
			return "/" + after
		}
	}
	return path
}

// similarEndpoint returns the entry of p.routes that the client probably wanted, or "" if
// the request resembles no entry. Servers differ in what they accept, also PUT in place of
// POST.
func (p *Proxy) similarEndpoint(r *http.Request) string {
	if !slices.Contains([]string{http.MethodPost, http.MethodPut, http.MethodPatch}, r.Method) {
		return ""
	}
	return p.similarPath(r.URL)
}

// similarPath returns the entry of p.routes that a path resembles, or "": a slash at the
// end, an encoded slash or question mark, a path parameter, a suffix for the format, upper
// case. The path of another known endpoint, such as /fim/completions, resembles no entry.
func (p *Proxy) similarPath(u *url.URL) string {
	path := u.EscapedPath()
	if p.isOther(path) {
		return ""
	}
	for range maxDecodings {
		path = decode(path)
	}
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		path = path[:i]
	}
	var segments []string
	for segment := range strings.SplitSeq(strings.ToLower(path), "/") {
		segment, _, _ = strings.Cut(segment, ";")
		segment = strings.ReplaceAll(segment, "chat.", "chat") // no format
		if i := strings.IndexAny(segment, ".,&:"); i > 0 {
			segment = segment[:i]
		}
		if letters := onlyLetters(segment); letters != "" {
			segments = append(segments, strings.TrimSuffix(letters, "s"))
		}
	}
	joined := "/" + strings.Join(segments, "/")
	for _, endpoint := range p.routes { // the longer first: /chat/completions ends in /completions
		singular := strings.TrimSuffix(strings.ReplaceAll(endpoint, "s/", "/"), "s")
		one := onlyLetters(strings.TrimSuffix(endpoint, "s")) // without a slash in between
		if strings.HasSuffix(joined, singular) || strings.HasSuffix(joined, "/"+one) {
			return endpoint
		}
	}
	return ""
}

// isOther reports whether a path ends like an entry of p.routes, and is another endpoint
// that is known.
func (p *Proxy) isOther(path string) bool {
	known := provider.Profile{Endpoints: p.routes}
	return known.Suffix(path) == "" && slices.ContainsFunc(p.routes, func(route string) bool { return strings.HasSuffix(path, route) })
}

// onlyLetters removes everything but letters.
func onlyLetters(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) {
			return r
		}
		return -1
	}, s)
}

// openRoutes are the paths, below the base path, that client keys open beside those of
// p.routes: the calls whose answer depends on the request alone. All other routes list, read or change
// what belongs to the account of the proxy's key, and so what other clients have
// made. The list names what is open, because providers have routes that are not
// known here.
var openRoutes = map[string][]string{
	http.MethodPost: {
		"/responses/input_tokens", "/completions", "/moderations", "/rerank", "/score", "/audio/speech", "/audio/transcriptions", "/audio/translations",
		"/images/generations", "/images/edits", "/images/variations",
	},
	http.MethodGet:  {"/models"},
	http.MethodHead: {"/models"},
}

// isOpenRoute reports whether all client keys may use the route of a request.
func (p *Proxy) isOpenRoute(r *http.Request) bool {
	path := p.apiPath(r.URL)
	if r.Method != http.MethodPost && strings.HasPrefix(path, "/models/") {
		path = "/models" // a model's name may contain slashes
	}
	return slices.Contains(openRoutes[r.Method], path) || background.IsTarget(r.URL) // such answers are those of the caller
}

// closesAccountRoutes reports whether only openRoutes are open. With ForwardKey
// each caller has an account of its own.
func (p *Proxy) closesAccountRoutes() bool {
	return len(p.keys) > 0 && !p.opts.ForwardKey && !p.opts.AllowAccountRoutes
}

// checkRoute returns why the route of a request is closed, or nil.
func (p *Proxy) checkRoute(rw *responseWriter, r *http.Request) *failure {
	if rw.endpoint == endpointOther {
		if similar := p.similarEndpoint(r); similar != "" {
			f := failNearMiss(r, similar)
			return &f
		}
	}
	if p.closesAccountRoutes() && rw.endpoint == endpointOther && !p.isOpenRoute(r) {
		f := failClosedRoute(r)
		return &f
	}
	if p.opts.RefuseClientHeaders && rw.endpoint != endpointOther && p.opts.Profile.Suffix(rw.endpoint) == "" {
		f := failNotBatched(rw.endpoint)
		return &f
	}
	return nil
}

// keptQuery returns the part of a batched call's query that goes upstream: what the
// provider's batches need. Calls with different URLs do not share a batch, so other
// parameters would make a batch of each call, and no parameter can change an
// answer. A parameter of the base URL cannot be changed.
func (p *Proxy) keptQuery(u *url.URL) string {
	if u.RawQuery == "" {
		return ""
	}
	kept, base := url.Values{}, p.upstream.base.Query()
	for name, values := range u.Query() {
		if slices.Contains(p.opts.Profile.KeepQuery, name) && !base.Has(name) {
			kept.Set(name, values[0])
		}
	}
	return kept.Encode()
}
