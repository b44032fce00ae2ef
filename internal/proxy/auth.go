package proxy

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"strings"
)

// A keyring holds the keys that are let in, as hashes: those are of equal
// length, so that a comparison takes the same time whatever is wrong.
type keyring []clientKey

type clientKey struct {
	key    [sha256.Size]byte // hash of the key
	cookie [sha256.Size]byte // hash of the cookie that a browser has for it
}

func newKeyring(keys []string) keyring {
	var ring keyring
	for _, key := range keys {
		ring = append(ring, clientKey{key: sha256.Sum256([]byte(key)), cookie: sha256.Sum256([]byte(cookieFor(key)))})
	}
	return ring
}

// has reports whether key is one of the ring's.
func (ring keyring) has(key string) bool {
	sum := sha256.Sum256([]byte(key))
	found := 0
	for i := range ring {
		found |= subtle.ConstantTimeCompare(sum[:], ring[i].key[:])
	}
	return found == 1 && key != ""
}

// hasCookie reports whether value is the cookie for one of the ring's keys.
func (ring keyring) hasCookie(value string) bool {
	sum := sha256.Sum256([]byte(value))
	found := 0
	for i := range ring {
		found |= subtle.ConstantTimeCompare(sum[:], ring[i].cookie[:])
	}
	return found == 1
}

// credentialOf is the key that a request came with, or "".
func credentialOf(h http.Header) string {
	if token, ok := bearer(h.Get("Authorization")); ok {
		return token
	}
	return h.Get("Api-Key")
}

func bearer(value string) (token string, ok bool) {
	const scheme = "Bearer "
	if len(value) > len(scheme) && strings.EqualFold(value[:len(scheme)], scheme) {
		return strings.TrimSpace(value[len(scheme):]), true
	}
	return "", false
}

// cookieName is the cookie that carries a browser from the page's address, with
// ?key=…, to what the page loads.
const cookieName = "autobatcher"

// guarded serves the page or the metrics to those who may see them.
func (p *Proxy) guarded(a *answer, r *http.Request, h http.Handler) {
	switch {
	case !p.keys.admitsBrowser(a, r):
		a.Header()["Www-Authenticate"] = []string{`Basic realm="autobatcher", charset="UTF-8"`}
		a.refuse(failKey)
	case h == nil:
		a.refuse(failNotFound)
	default:
		h.ServeHTTP(a, r)
	}
}

// admitsBrowser is has for a request that a browser may have sent, which cannot
// be told to send a header.
func (ring keyring) admitsBrowser(a *answer, r *http.Request) bool {
	if len(ring) == 0 || ring.has(credentialOf(r.Header)) {
		return true
	}
	if _, password, ok := r.BasicAuth(); ok && ring.has(password) {
		return true
	}
	if key := r.URL.Query().Get("key"); ring.has(key) {
		http.SetCookie(a, &http.Cookie{Name: cookieName, Value: cookieFor(key), Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
		return true
	}
	cookie, err := r.Cookie(cookieName)
	return err == nil && ring.hasCookie(cookie.Value)
}

// cookieFor says that a browser knew the key, without saying the key.
func cookieFor(key string) string {
	sum := sha256.Sum256([]byte("cookie " + key))
	return hex.EncodeToString(sum[:])
}
