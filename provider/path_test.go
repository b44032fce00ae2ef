package provider_test

import (
	"testing"

	"github.com/autobatcher/autobatcher/provider"
)

func TestSuffix(t *testing.T) {
	with := func(endpoints ...string) provider.Profile {
		p := provider.OpenAI()
		p.Endpoints = append([]string{}, endpoints...) // never nil, which means the default endpoints
		return p
	}
	completions, both := with("/completions"), with("/completions", "/chat/completions")
	for _, tt := range []struct {
		profile    provider.Profile
		path, want string
	}{
		{provider.OpenAI(), "/v1/chat/completions", "/chat/completions"},
		{provider.OpenAI(), "/chat/completions", "/chat/completions"},
		{provider.OpenAI(), "/v1/embeddings", "/embeddings"},
		{provider.OpenAI(), "/v1/responses", "/responses"},
		{provider.OpenAI(), "/v1/completions", "/completions"},
		{provider.OpenAI(), "/v1/moderations", "/moderations"},
		{provider.OpenAI(), "/v1/images/generations", "/images/generations"},
		{provider.OpenAI(), "/v1/images/edits", "/images/edits"},
		{provider.OpenAI(), "/v1/images/variations", ""},
		{provider.OpenAI(), "/v1/audio/transcriptions", ""},
		{provider.OpenAI(), "/v1/videos", ""},
		{provider.OpenAI(), "/v1/fim/completions", ""},
		{provider.OpenAI(), "/v1/organization/usage/moderations", ""},
		{provider.Doubleword(), "/v1/completions", "/completions"},
		{provider.Doubleword(), "/v1/moderations", ""},
		{provider.LLMD(), "/v1/completions", "/completions"},
		{provider.Generic(), "/v1/completions", ""},
		{provider.OpenAI(), "/v1/models", ""},
		{provider.OpenAI(), "/v1/chat/completions/", ""},
		{provider.OpenAI(), "/v1/chat/completions/x", ""},
		{provider.OpenAI(), "/v1/myembeddings", ""},
		{provider.OpenAI(), "/v1/organization/usage/embeddings", ""},
		{provider.OpenAI(), "", ""},
		{provider.Groq(), "/openai/v1/chat/completions", "/chat/completions"},
		{provider.Groq(), "/openai/v1/embeddings", ""},
		{provider.Groq(), "/openai/v1/audio/translations", "/audio/translations"},
		{provider.Together(), "/v1/audio/transcriptions", "/audio/transcriptions"},
		{provider.AzureLegacy(), "/openai/deployments/gpt/chat/completions", "/chat/completions"},

		// The list of the profile decides, and not a fixed list.
		{with("/moderations"), "/v1/moderations", "/moderations"},
		{with("/moderations"), "/v1/chat/completions", ""},
		{with("/images/generations"), "/v1/images/generations", "/images/generations"},
		{with(), "/v1/chat/completions", ""},

		// A longer endpoint is never taken for a shorter endpoint.
		{completions, "/v1/completions", "/completions"},
		{completions, "/v1/chat/completions", ""},
		{completions, "/v1/fim/completions", ""},
		{both, "/v1/chat/completions", "/chat/completions"},
		{both, "/v1/completions", "/completions"},
		{with("/fim/completions"), "/v1/fim/completions", "/fim/completions"},

		// A provider without batches refuses the call with a reason.
		{provider.Profile{Name: "refused", Refusal: "No."}, "/v1/chat/completions", "/chat/completions"},
	} {
		if got := tt.profile.Suffix(tt.path); got != tt.want {
			t.Errorf("%s %v: Suffix(%q) = %q, want %q", tt.profile.Name, tt.profile.Endpoints, tt.path, got, tt.want)
		}
	}
}

func TestDeployment(t *testing.T) {
	for _, tt := range []struct {
		profile    provider.Profile
		path, want string // want empty: no deployment
	}{
		{provider.AzureLegacy(), "/openai/deployments/gpt-4o/chat/completions", "gpt-4o"},
		{provider.AzureLegacy(), "/openai/deployments/gpt-4o", "gpt-4o"},
		{provider.AzureLegacy(), "/openai/deployments/gpt-4o/", "gpt-4o"},
		{provider.AzureLegacy(), "/gateway/openai/deployments/a%20b/embeddings", "a b"},
		{provider.AzureLegacy(), "/openai/deployments/a%2Fb/embeddings", "a/b"},
		{provider.AzureLegacy(), "/openai/deployments/deployments/chat/completions", "deployments"},
		{provider.AzureLegacy(), "/openai/deployments", ""},
		{provider.AzureLegacy(), "/openai/deployments//chat/completions", ""},
		{provider.AzureLegacy(), "/openai/deployments/%zz/chat/completions", ""},
		{provider.AzureLegacy(), "/openai/v1/chat/completions", ""},
		{provider.Azure(), "/openai/deployments/gpt/chat/completions", ""},
		{provider.OpenAI(), "/v1/chat/completions", ""},
	} {
		got, ok := tt.profile.Deployment(tt.path)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: Deployment(%q) = %q, %v; want %q", tt.profile.Name, tt.path, got, ok, tt.want)
		}
	}
}
