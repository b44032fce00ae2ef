package flexapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/backend"
)

const (
	// refusalKept is how long a model counts as a model without a flex tier. Providers
	// add models to the tier.
	refusalKept = time.Hour

	// maxModels and maxModelName bound the memory of Models: callers choose the names.
	maxModels    = 1000
	maxModelName = 256
)

// Models remembers the models for which the provider has refused the flex tier. There
// is one Models for each account, since the tier may depend on the account. The zero
// Models is empty. All methods may be called concurrently.
type Models struct {
	mu      sync.Mutex
	refused map[string]time.Time // when the provider refused the tier last
}

// HasFlex reports whether the model has a flex tier, as far as is known.
func (m *Models) HasFlex(model string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, refused := m.refused[model]
	return !refused || time.Since(at) >= refusalKept
}

// refuse notes that the model has no flex tier.
func (m *Models) refuse(model string) {
	if len(model) > maxModelName {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refused == nil || len(m.refused) >= maxModels { // forgotten models are asked for again
		m.refused = make(map[string]time.Time)
	}
	m.refused[model] = time.Now()
}

// The parts of the sentences of namesTier.
const (
	quote     = `[\x60'"]?`
	tierName  = `(?:the )?` + quote + `(?:service[_ ]?tier` + quote + `(?: ` + quote + `flex` + quote + `)?|flex` + quote + `(?: processing| (?:service )?tier)?)`
	someModel = `(?:this|the|your|the requested) model(?: ` + quote + `[\w.:/-]{1,100}` + quote + `)?`
)

// namesTier matches the messages of refusals that name the tier without a param, such as
// "Unsupported service_tier: flex" and "Flex is not available for this model." The whole
// message must be a known sentence, since other messages quote the prompt, which may speak
// of tiers, too. Quoted may only be the tier and the model.
var namesTier = regexp.MustCompile(`(?i)^(?:` +
	`(?:invalid|unsupported|unknown)(?: value(?: for)?| parameter| argument)?:? ` + tierName + `(?: argument| parameter| value)?(?:: ` + quote + `flex` + quote + `)?(?: (?:for|by|with) ` + someModel + `)?|` +
	tierName + ` is not (?:currently )?(?:available|supported|allowed|enabled)(?: (?:for|by|with) ` + someModel + `)?|` +
	`(?:unsupported value: )?` + tierName + ` does not support ` + quote + `flex` + quote + `(?: (?:for|with) ` + someModel + `)?|` +
	someModel + ` does not (?:support|have) ` + tierName +
	`)\.?$`)

// A refusal says whether the provider has refused a call for its tier.
type refusal int

const (
	notOfTier   refusal = iota
	ofTier              // by a message, which decides about this call alone
	ofModelTier         // by its param: the model has no flex tier
)

// tierRefusal says whether the provider has refused the call because the model has no
// flex tier. The error cannot concern a tier that the caller chose, since the Client
// replaces the member of the body. Only a param decides about further calls of the model:
// a message may repeat words of the call, and one caller must not close the tier for
// others. The message about another param does not count at all.
func tierRefusal(e *backend.Error) refusal {
	if e.Err != nil || e.Status != http.StatusBadRequest && e.Status != http.StatusUnprocessableEntity {
		return notOfTier
	}
	param := gjson.GetBytes(e.Body, "error.param").String()
	switch {
	case param == "service_tier":
		return ofModelTier
	case param == "" && namesTier.MatchString(e.Message()):
		return ofTier
	}
	return notOfTier
}

// remembered is the refusal of a call whose model is known to have no flex tier. The
// refusal does not repeat what the provider answered to another call.
func remembered(op, model string) *backend.Error {
	body, _ := json.Marshal(map[string]any{"error": map[string]any{ // strings can be written as JSON
		"message": fmt.Sprintf("the model %q has no flex tier: the provider refused an earlier call", model),
		"type":    "invalid_request_error", "param": "service_tier", "code": nil,
	}})
	return &backend.Error{Op: op, Status: http.StatusBadRequest, Header: http.Header{}, Body: body, RetryAfter: -1}
}
