package simulation

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher"
)

// setAccount sets the options for accounts whose credentials change: the key is the
// name of the account.
func (w *world) setAccount(o *autobatcher.Options) {
	if !w.rotation {
		return
	}
	o.Account = func(req *http.Request) string { return bearer(req.Header) }
	o.Credential = func(_ context.Context, key string) (http.Header, error) {
		return http.Header{"Authorization": {"Bearer " + w.credential(key)}}, nil
	}
}

// credential is the newest credential of a key: the key itself, or, if keys are
// rotated, the key and the number of the credential, as in "key-0.3".
func (w *world) credential(key string) string {
	if !w.rotation {
		return key
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("%s.%d", key, len(w.revoked[key]))
}

// bearer is the key of the credential in a request.
func bearer(header http.Header) string {
	credential := strings.TrimPrefix(header.Get("Authorization"), "Bearer ")
	key, _, _ := strings.Cut(credential, ".")
	return key
}

// rotateKeys lets the server see keys instead of credentials. A credential that was
// revoked gets a 401.
func (w *world) rotateKeys(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		key, number, _ := strings.Cut(strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer "), ".")
		if w.isRevoked(key, number) {
			if req.Body != nil {
				req.Body.Close()
			}
			return respond(req, http.StatusUnauthorized, http.Header{"Content-Type": {"application/json"}}, invalidKey), nil
		}
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", "Bearer "+key)
		return next.RoundTrip(req)
	})
}

func (w *world) isRevoked(key, number string) bool {
	n, err := strconv.Atoi(number)
	w.mu.Lock()
	defer w.mu.Unlock()
	return err != nil || n < len(w.revoked[key]) && !time.Now().Before(w.revoked[key][n])
}

// runRotation replaces the credentials of keys. An old credential may be valid for
// some minutes more.
func (w *world) runRotation() {
	d := newDice(w.seed, "rotation")
	for w.sleep(d.between(time.Minute, w.length/3)) {
		key, overlap := w.keys[d.IntN(len(w.keys))], d.of(0, d.between(time.Second, 10*time.Minute))
		w.logf("%s gets a new credential; the old credential ends after %v", key, overlap)
		revoked := time.Now().Add(overlap)
		w.mu.Lock()
		w.revoked[key] = append(w.revoked[key], revoked)
		// A process without a newer credential may give the key's batches up.
		w.refusalsSoFar = append(w.refusalsSoFar, refusal{key: key, since: revoked, ends: revoked})
		w.mu.Unlock()
	}
}
