package flexapi_test

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/flexapi"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/provider"
)

// A refusal of the tier by its param is remembered for the model. A known message moves
// its call, and is not remembered. A message that may repeat words of the call does neither.
func TestRefusalsOfTheTier(t *testing.T) {
	const none = ""
	for _, tt := range []struct {
		message, param string
		moves          bool
		remembered     bool
	}{
		{"Invalid service_tier argument", "service_tier", true, true},
		{"anything", "service_tier", true, true},

		{"Invalid service_tier argument", none, true, false},
		{"Unsupported service_tier: flex", none, true, false},
		{"Unsupported value: 'service_tier' does not support 'flex' with this model.", none, true, false},
		{"Flex is not available for this model.", none, true, false},
		{"Flex processing is not supported", none, true, false},
		{"service_tier flex is not available for this model", none, true, false},
		{"The service tier 'flex' is not supported for the model 'gpt-4o'.", none, true, false},
		{"This model does not support service_tier `flex`.", none, true, false},

		{"Unsupported service_tier: flex", "messages[0].content", false, false},
		{"Invalid content: Flex is not available for this model.", none, false, false},
		{"Input should be 'user' [type=literal_error, input_value='service_tier', input_type=str]", none, false, false},
		{"Unsupported service_tier: flex\nmessages.0.role", none, false, false},
		{"Unsupported role: what is flex, and why is it not supported?", none, false, false},
		{"The model 'Flex is not available' does not exist", none, false, false},
		{"service_tier", none, false, false},
		{"", none, false, false},
	} {
		body, err := json.Marshal(map[string]any{"error": map[string]any{"message": tt.message, "param": tt.param}})
		if err != nil {
			t.Fatal(err)
		}
		asked := 0
		via := roundTripper(func(*http.Request) (*http.Response, error) {
			asked++
			return &http.Response{StatusCode: http.StatusBadRequest, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(body)))}, nil
		})
		u := &url.URL{Scheme: "https", Host: "api.example.invalid", Path: "/v1"}
		p, models := provider.OpenAI(), new(flexapi.Models)
		for i := range 2 {
			l := &line.Line{ID: "1", URL: p.Endpoint("/chat/completions"), Body: []byte(`{"model":"m"}`)}
			c := flexapi.New(u, via, &p, models, slog.New(slog.DiscardHandler))
			_, _, err := c.Create(t.Context(), line.File{Lines: 1, At: func(int) *line.Line { return l }}, backend.Handle{}, backend.Params{Models: []string{"m"}})
			if errors.Is(err, backend.ErrNoTier) != tt.moves {
				t.Errorf("%q, param %q: call %d: %v; want a refusal of the tier: %v", tt.message, tt.param, i, err, tt.moves)
			}
		}
		if (asked == 1) != tt.remembered || models.HasFlex("m") == tt.remembered {
			t.Errorf("%q, param %q: asked %d times, the model has the tier: %v; want the refusal remembered: %v", tt.message, tt.param, asked, models.HasFlex("m"), tt.remembered)
		}
	}
}
