package main

import (
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/provider"
)

// A base URL that cannot work is refused with the URL that works.
func TestBaseURLWithoutPathOrWithEndpoint(t *testing.T) {
	for base, want := range map[string]string{
		"https://api.openai.com":                                     "https://api.openai.com/v1?",
		"https://api.openai.com/":                                    "https://api.openai.com/v1?",
		"https://api.openai.com/v1/chat/completions":                 "https://api.openai.com/v1?",
		"https://api.openai.com/chat/completions":                    "https://api.openai.com/v1?",
		"https://api.groq.com":                                       "https://api.groq.com/openai/v1?",
		"https://res.openai.azure.com?api-version=preview":           "",
		"http://localhost:8000/v1/responses/":                        "http://localhost:8000/v1?",
		"http://localhost:8000/v1/completions":                       "http://localhost:8000/v1?",
		"https://api.openai.com/v1/moderations":                      "https://api.openai.com/v1?",
		"https://api.openai.com/v1/images/generations":               "https://api.openai.com/v1?",
		"http://localhost:4000/embeddings":                           "http://localhost:4000?",
		"https://open.bigmodel.cn":                                   "https://open.bigmodel.cn/api/paas/v4?",
		"https://api.openai.com/v1":                                  "",
		"https://api.openai.com/v1/":                                 "",
		"https://res.openai.azure.com/openai":                        "",
		"https://gateway.example.com/openai/us/v1":                   "",
		"http://localhost:4000":                                      "",
		"https://res.openai.azure.com/openai/deployments/embeddings": "",
	} {
		s := newSettings()
		s.baseURL = base
		_, err := s.upstream()
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", base, err)
		case want != "" && (err == nil || !strings.HasSuffix(err.Error(), "did you mean "+want)):
			t.Errorf("%s: %v, want the URL %s", base, err, want)
		}
	}
}

// Each provider with a host has a path, except for Azure.
func TestProvidersHaveBasePaths(t *testing.T) {
	for _, name := range provider.Names() {
		p, err := provider.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if p.Refusal == "" && !strings.HasPrefix(name, "azure") && len(p.Hosts) > 0 && !strings.HasPrefix(p.BasePath, "/") {
			t.Errorf("%s has no base path", name)
		}
	}
}
