// Package webhook verifies the webhooks by which providers announce that a batch, or a
// response that runs in the background, has ended. The webhooks are signed as the
// Standard Webhooks specification says.
package webhook

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/tidwall/gjson"
)

const (
	// minSecret is the least number of bytes of a secret. An empty secret would accept
	// every webhook.
	minSecret = 16

	// maxID is the greatest length of the id of a batch.
	maxID = 256

	// maxSeen is how many webhooks a Verifier remembers in order to recognize a repeated
	// webhook.
	maxSeen = 4096
)

var (
	// ErrSignature is wrapped by the errors of a webhook that no secret has signed. The
	// text says why, and has no text of the sender.
	ErrSignature = errors.New("the webhook is not signed with a secret of this server")

	// ErrMalformed is the error of a webhook that is signed and is no event.
	ErrMalformed = errors.New("the body of the webhook is not an event of a provider: an object with type and data")
)

// errors that wrap ErrSignature.
var (
	errHeaders   = signatureError("a request needs the headers webhook-id, webhook-timestamp and webhook-signature of Standard Webhooks")
	errTimestamp = signatureError("webhook-timestamp is more than 5 minutes from the time of this server")
	errNoMatch   = signatureError("webhook-signature has no signature by a secret of this server")
)

type signatureError string

func (e signatureError) Error() string { return string(e) }
func (e signatureError) Unwrap() error { return ErrSignature }

// Secret parses a secret: "whsec_" and at least 16 bytes in base64. The error does not
// contain the secret.
func Secret(text string) (*standardwebhooks.Webhook, error) {
	encoded, prefixed := strings.CutPrefix(text, "whsec_")
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !prefixed || err != nil || len(key) < minSecret {
		return nil, errors.New(`a secret must be "whsec_" and at least 16 bytes in base64`)
	}
	return standardwebhooks.NewWebhookRaw(key)
}

// A Verifier verifies webhooks. All methods may be called concurrently.
type Verifier struct {
	secrets []*standardwebhooks.Webhook

	mu   sync.Mutex
	seen map[[sha256.Size]byte]struct{} // hashes of the ids of webhooks
	ring [][sha256.Size]byte            // the keys of seen, the oldest at next
	next int
}

// NewVerifier returns a Verifier of webhooks that one of the secrets has signed. The
// error of a malformed secret does not contain the secret.
func NewVerifier(secrets []string) (*Verifier, error) {
	v := &Verifier{seen: make(map[[sha256.Size]byte]struct{})}
	for _, text := range secrets {
		s, err := Secret(text)
		if err != nil {
			return nil, err
		}
		v.secrets = append(v.secrets, s)
	}
	return v, nil
}

// Verify verifies a webhook by its headers, and returns the ids that the batch or the
// response may have in the API: none if the webhook does not say that a batch or response
// has ended, and none if the same webhook was verified before. The error wraps
// ErrSignature, or is ErrMalformed.
func (v *Verifier) Verify(h http.Header, body []byte) (ids []string, err error) {
	if err := v.checkSignature(h, body); err != nil {
		return nil, err
	}
	if !gjson.ValidBytes(body) {
		return nil, ErrMalformed
	}
	event := gjson.ParseBytes(body)
	kind, data := event.Get("type"), event.Get("data")
	if kind.Type != gjson.String || !data.IsObject() {
		return nil, ErrMalformed
	}
	if !slices.Contains(ends, kind.String()) {
		return nil, nil
	}
	id := strings.Clone(cmp.Or(data.Get("id").String(), data.Get("batch_id").String())) // without the body
	switch {
	case id == "", len(id) > maxID:
		return nil, ErrMalformed
	case v.repeated(h.Get(standardwebhooks.HeaderWebhookID)):
		return nil, nil
	}
	// Doubleword has the prefix in webhooks only.
	if bare, prefixed := strings.CutPrefix(id, "batch_"); prefixed && bare != "" {
		return []string{id, bare}, nil
	}
	return []string{id}, nil
}

// ends are the types of events that say that a batch or a response has ended.
var ends = []string{
	"batch.completed", "batch.failed", "batch.expired", "batch.cancelled",
	"response.completed", "response.failed", "response.cancelled", "response.incomplete",
}

// checkSignature checks timestamp and signature with each secret.
func (v *Verifier) checkSignature(h http.Header, body []byte) error {
	for _, s := range v.secrets {
		switch err := s.Verify(body, h); {
		case err == nil:
			return nil
		case errors.Is(err, standardwebhooks.ErrRequiredHeaders), errors.Is(err, standardwebhooks.ErrInvalidHeaders):
			return errHeaders
		case errors.Is(err, standardwebhooks.ErrMessageTooOld), errors.Is(err, standardwebhooks.ErrMessageTooNew):
			return errTimestamp
		}
	}
	return errNoMatch
}

// repeated reports whether a webhook with the id was verified before, and remembers the
// id. A provider that got no answer sends a webhook again, and so may someone who has
// recorded a webhook.
func (v *Verifier) repeated(id string) bool {
	sum := sha256.Sum256([]byte(id))
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, seen := v.seen[sum]; seen {
		return true
	}
	v.seen[sum] = struct{}{}
	if len(v.ring) < maxSeen {
		v.ring = append(v.ring, sum)
		return false
	}
	delete(v.seen, v.ring[v.next])
	v.ring[v.next] = sum
	v.next = (v.next + 1) % maxSeen
	return false
}
