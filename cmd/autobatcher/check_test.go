package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/provider"
)

func TestIsLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "localhost": true, "::ffff:127.0.0.1": true,
		"": false, "0.0.0.0": false, "::": false, "10.0.0.1": false, "example.com": false, "localhost.example.com": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("isLoopback(%q) = %v", host, got)
		}
	}
}

func TestUpstream(t *testing.T) {
	tests := []struct {
		base, provider string
		want           string // the profile's name, or part of the error
	}{
		{"https://api.openai.com/v1", "", "openai"},
		{"https://api.doubleword.ai/v1", "", "doubleword"},
		{"http://localhost:4000", "", "generic"},
		{"http://localhost:4000", "litellm", "litellm"},
		{"http://localhost:4000", "LiteLLM", "litellm"},
		{"http://localhost:4000", "acme", "unknown provider"},
		{"https://api.anthropic.com/v1", "", "no OpenAI-compatible Batch API"},
		{"http://localhost:4000", "anthropic", "no OpenAI-compatible Batch API"},
		{"localhost:4000", "", "must begin with https://"},
		{"ftp://example.com", "", "must begin with https://"},
		{"https://", "", "name a host"},
		{"https://user:secret@example.com/v1", "", "neither a user nor a fragment"},
		{"https://example.com/v1#x", "", "neither a user nor a fragment"},
		{"https://exa mple.com", "", "--base-url"},
	}
	for _, tt := range tests {
		s := newSettings()
		s.baseURL, s.provider = tt.base, tt.provider
		up, err := s.upstream()
		got := up.profile.Name
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) || strings.Contains(got, "secret") {
			t.Errorf("%s, %q: %s; want %s", tt.base, tt.provider, got, tt.want)
		}
	}
}

func TestLane(t *testing.T) {
	for _, tt := range []struct {
		mode, window string
		batchesOnly  bool
		profile      provider.Profile
		want         string // mode and window, or part of the error
	}{
		{"", "", false, provider.OpenAI(), "batch "},
		{"batch", "", false, provider.OpenAI(), "batch 24h"},
		{"batch", "", false, provider.Voyage(), "batch "},
		{"batch", "12h", false, provider.Voyage(), "batch 12h"},
		{"async", "", false, provider.Doubleword(), "batch 1h"},
		{"async", "1h", false, provider.Doubleword(), "batch 1h"},
		{"async", "", false, provider.Generic(), "batch 1h"},
		{"async", "", false, provider.OpenAI(), "flex "},
		{"async", "24h", false, provider.OpenAI(), "flex 24h"},
		{"async", "", true, provider.OpenAI(), "does not accept"},
		{"async", "", false, provider.Nebius(), "does not accept"},
		{"flex", "", false, provider.OpenAI(), "flex "},
		{"auto", "24h", false, provider.OpenAI(), "auto 24h"},
		{"realtime", "", false, provider.Groq(), "realtime "},
		{"flex", "1h", false, provider.OpenAI(), "does not accept"},
		{"flex", "", true, provider.OpenAI(), "must be async or batch"},
		{"", "any string", false, provider.Doubleword(), "batch any string"},
		{"", "72h", false, provider.Generic(), "batch 72h"},
		{"async", "24h", false, provider.Doubleword(), "give only one of the flags"},
		{"later", "", false, provider.Doubleword(), "must be async, auto, batch, flex or realtime"},
		{"flexx", "", false, provider.Doubleword(), "did you mean flex?"},
	} {
		s := &settings{completionWindow: tt.window, laneSettings: laneSettings{mode: tt.mode, batchesOnly: tt.batchesOnly}}
		mode, window, err := s.lane(tt.profile)
		got := string(mode) + " " + window
		if err != nil {
			got = err.Error()
		}
		if got != tt.want && (err == nil || !strings.Contains(got, tt.want)) {
			t.Errorf("%q, %q, %s: %q; want %q", tt.mode, tt.window, tt.profile.Name, got, tt.want)
		}
	}
}

func TestDescribeLane(t *testing.T) {
	for _, tt := range []struct {
		mode    autobatcher.Mode
		profile provider.Profile
		want    string
	}{
		{autobatcher.ModeBatch, provider.OpenAI(), "batches of 24h"},
		{autobatcher.ModeFlex, provider.OpenAI(), "flex tier, or else batches of 24h"},
		{autobatcher.ModeFlex, provider.Groq(), "batches of 24h, since groq has no flex tier that saves money"},
		{autobatcher.ModeRealtime, provider.OpenAI(), "real time, at full price"},
		{autobatcher.ModeFlex, provider.DashScopeBatchChat(), "single calls, half price"},
		{autobatcher.ModeBatch, provider.AzureModels(), "real time, at full price, since azure-models has no batches"},
		{autobatcher.ModeFlex, provider.AzureModels(), "real time, at full price, since azure-models has no batches"},
	} {
		if got := describeLane(autobatcher.Options{Mode: tt.mode}, tt.profile); got != tt.want {
			t.Errorf("%s at %s: %q, want %q", tt.mode, tt.profile.Name, got, tt.want)
		}
	}
}

// QuietAfter is off at 0 and below on the command line, and has a default at 0 in the
// library.
func TestQuietAfter(t *testing.T) {
	for text, want := range map[string]time.Duration{"": time.Second, "2": 2 * time.Second, "300ms": 300 * time.Millisecond, "0": -1, "-1": -1, "-2s": -1} {
		s := newSettings()
		if text != "" {
			if err := s.quietAfter.Set(text); err != nil {
				t.Fatal(err)
			}
		}
		o, err := s.batching(upstream{profile: provider.OpenAI()})
		if err != nil || o.QuietAfter != want {
			t.Errorf("--quiet-after %q: %v, %v; want %v", text, o.QuietAfter, err, want)
		}
	}
	if err := new(quiet).Set("soon"); err == nil {
		t.Error("--quiet-after soon is accepted")
	}
}

// On the command line a window of 0 means "at once". In the library 0 means the
// default.
func TestBatchingAtOnce(t *testing.T) {
	s := newSettings()
	s.batchSize, s.batchWindow = 1, 0
	o, err := s.batching(upstream{profile: provider.OpenAI()})
	if err != nil || o.BatchWindow <= 0 || o.BatchWindow > time.Millisecond {
		t.Errorf("BatchWindow is %v, %v; want at most 1 ms", o.BatchWindow, err)
	}
}

func TestParseMetadata(t *testing.T) {
	got, err := parseMetadata([]string{"a=1", "b=x=y,z", "a=2", "empty="})
	want := map[string]string{"a": "2", "b": "x=y,z", "empty": ""}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if got, err := parseMetadata(nil); got != nil || err != nil {
		t.Errorf("without items: %v, %v; want nil", got, err)
	}
}

// Calls may name a deployment at Azure, also if the base URL names none.
func TestCallProfile(t *testing.T) {
	for _, tt := range []struct{ base, provider, want string }{
		{"https://r.openai.azure.com/openai", "", "azure-legacy"},
		{"https://r.openai.azure.com", "", "azure-legacy"},
		{"https://r.openai.azure.com/openai", "azure", "azure"},
		{"https://gateway.example/v1", "azure-legacy", "azure-legacy"},
		{"https://r.services.ai.azure.com/models", "", "azure-models"},
		{"https://r.cognitiveservices.azure.com/openai", "", "azure-legacy"},
		{"https://api.openai.com/v1", "", "openai"},
		{"https://gateway.example/v1", "", "generic"},
	} {
		s := settings{baseURL: tt.base, provider: tt.provider}
		up, err := s.upstream()
		if err != nil {
			t.Fatal(err)
		}
		if got := up.callProfile().Name; got != tt.want {
			t.Errorf("%s, --provider %q: %s, want %s", tt.base, tt.provider, got, tt.want)
		}
	}
}
