package proxy

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"

	"github.com/autobatcher/autobatcher/internal/caller"
)

// A keyring holds the accepted client keys as hashes. All hashes have the same
// length, so the time of a comparison depends neither on the length of a wrong
// key nor on the position of the first wrong byte.
type keyring []clientKey

type clientKey struct {
	key    [sha256.Size]byte // hash of the key
	cookie [sha256.Size]byte // hash of the cookie value for the key
	caller caller.Caller     // who sends the key
}

func newKeyring(keys []string) keyring {
	var ring keyring
	for i, key := range keys {
		k := clientKey{key: sha256.Sum256([]byte(key)), cookie: sha256.Sum256([]byte(cookieValue(key)))}
		id := hex.EncodeToString(k.key[:])
		// The name is a number: a hash could be used to guess a weak key.
		k.caller = caller.Caller{ID: id, Name: "key " + strconv.Itoa(i+1), Budget: id}
		ring = append(ring, k)
	}
	return ring
}

// contains reports whether key is an accepted client key.
func (ring keyring) contains(key string) bool { return ring.find(key) >= 0 }

// find returns the index of an accepted client key, or -1.
func (ring keyring) find(key string) int {
	found := -1
	if len(ring) == 0 || key == "" {
		return found
	}
	sum := sha256.Sum256([]byte(key))
	for i := range ring {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(sum[:], ring[i].key[:]), i, found)
	}
	return found
}

// callerOf returns the caller for the Transport. key is the index of the caller's
// client key, or -1. Each client key, and each forwarded credential, has a budget of
// escalations of its own.
func (p *Proxy) callerOf(key int, credential string) *caller.Caller {
	if p.opts.ForwardKey {
		p.opts.Secrets.AddCaller(credential)
	}
	switch {
	case key >= 0:
		return &p.keys[key].caller
	case p.opts.ForwardKey:
		sum := sha256.Sum256([]byte(credential))
		return &caller.Caller{Budget: string(sum[:]), BatchOnly: p.opts.RefuseClientHeaders}
	}
	return &p.anyone
}

// findCookie returns the index of the client key that a cookie value was made of, or
// -1.
func (ring keyring) findCookie(value string) int {
	sum := sha256.Sum256([]byte(value))
	found := -1
	for i := range ring {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(sum[:], ring[i].cookie[:]), i, found)
	}
	return found
}

// credentialOf returns the caller's key: the bearer token, else the value of
// the Api-Key header, else "".
func credentialOf(h http.Header) string {
	if token, ok := bearerToken(h.Get("Authorization")); ok {
		return token
	}
	return h.Get("Api-Key")
}

func bearerToken(value string) (token string, ok bool) {
	const scheme = "Bearer "
	if len(value) > len(scheme) && strings.EqualFold(value[:len(scheme)], scheme) {
		return strings.TrimSpace(value[len(scheme):]), true
	}
	return "", false
}

// cookieName is the name of the cookie that authenticates a browser's requests
// for the files of the page, after the browser opened the page with ?key=….
const cookieName = "autobatcher"

// serveProtected serves the page or the metrics to authenticated clients. h may
// be nil: then the response is 404.
func (p *Proxy) serveProtected(rw *responseWriter, r *http.Request, h http.Handler) {
	switch {
	case !p.acceptsPage():
		rw.writeFailure(failClosedPage)
	case !p.pageKeys.allowsBrowser(rw, r):
		rw.Header()["Www-Authenticate"] = []string{`Basic realm="autobatcher", charset="UTF-8"`}
		rw.writeFailure(failInvalidPageKey)
	case h == nil:
		rw.writeFailure(failNotFound)
	default:
		h.ServeHTTP(rw, r)
	}
}

// allowsBrowser reports whether r is authenticated, and sets the cookie if r has
// ?key=…. In contrast to API clients, a browser cannot be configured to send a
// key in a header, so allowsBrowser also accepts the key as the password of HTTP
// Basic, in the query, and as the cookie.
func (ring keyring) allowsBrowser(rw *responseWriter, r *http.Request) bool {
	if key := r.URL.Query().Get("key"); ring.contains(key) {
		http.SetCookie(rw, &http.Cookie{Name: cookieName, Value: cookieValue(key), Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
	}
	return len(ring) == 0 || ring.ofBrowser(r) >= 0
}

// ofBrowser returns the index of the key that authenticates a browser, or -1.
func (ring keyring) ofBrowser(r *http.Request) int {
	_, password, _ := r.BasicAuth()
	for _, key := range []string{credentialOf(r.Header), password, r.URL.Query().Get("key")} {
		if i := ring.find(key); i >= 0 {
			return i
		}
	}
	if cookie, err := r.Cookie(cookieName); err == nil {
		return ring.findCookie(cookie.Value)
	}
	return -1
}

// cookieValue derives a cookie value from a key. The key cannot be computed from
// the value.
func cookieValue(key string) string {
	sum := sha256.Sum256([]byte("cookie " + key))
	return hex.EncodeToString(sum[:])
}
