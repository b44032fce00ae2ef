package proxy_test

import (
	"net/http"
	"testing"

	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/provider"
)

// TestAzurePaths checks that the calls of Azure's SDKs, which add /openai to an
// endpoint, reach the upstream with and without /openai in its base URL.
func TestAzurePaths(t *testing.T) {
	const want = "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=1"
	for _, base := range []string{"https://r.openai.azure.com/openai", "https://r.openai.azure.com"} {
		for _, path := range []string{"/openai/deployments/d/chat/completions", "/v1/deployments/d/chat/completions"} {
			if base == "https://r.openai.azure.com" && path[:3] == "/v1" {
				continue // nothing says /openai
			}
			var got string
			answer := transport(func(r *http.Request) (*http.Response, error) {
				got = r.URL.String()
				return respondNow(r)
			})
			p := newProxy(t, proxy.Options{Upstream: parse(t, base), Transport: answer, AuthHeader: "api-key", Profile: provider.AzureLegacy()})
			res := post(t, serve(t, p), path+"?api-version=1", chatCall)
			readAll(t, res)
			if res.StatusCode != http.StatusOK || got != want {
				t.Errorf("%s at %s: %s, upstream %s", path, base, res.Status, got)
			}
		}
	}
}
