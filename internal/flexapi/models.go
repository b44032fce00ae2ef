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

// namesTier matches the messages of refusals that name the tier without a param, such as
// "Unsupported service_tier: flex" and "Flex is not available for this model."
var namesTier = regexp.MustCompile(`(?i)\bservice[_ ]?tier\b|\bflex\b.*\bnot (available|supported)\b`)

// noTier reports that the provider has refused the call because the model has no flex
// tier. The error cannot concern a tier that the caller chose, since the Client replaces
// the member of the body. The message counts only where the error names no param: the
// message about another param may quote the prompt.
func noTier(e *backend.Error) bool {
	if e.Err != nil || e.Status != http.StatusBadRequest && e.Status != http.StatusUnprocessableEntity {
		return false
	}
	if param := gjson.GetBytes(e.Body, "error.param").String(); param != "" {
		return param == "service_tier"
	}
	return namesTier.MatchString(e.Message())
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
