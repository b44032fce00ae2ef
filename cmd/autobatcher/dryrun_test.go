package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/provider"
)

func TestDryRunCountsBatches(t *testing.T) {
	openAI, doubleword := provider.OpenAI(), provider.Doubleword()
	small := openAI
	small.MaxLines, small.MaxBytes = 2, 100
	tests := []struct {
		name    string
		profile provider.Profile
		tallies map[share]*tally
		want    int64
	}{
		{"nothing", openAI, map[share]*tally{}, 0},
		{"full batches", openAI, map[share]*tally{{"/embeddings", "m"}: {calls: 2000, bytes: 1}}, 2},
		{"one more", openAI, map[share]*tally{{"/embeddings", "m"}: {calls: 2001, bytes: 1}}, 3},
		{"the provider's lines", small, map[share]*tally{{"/embeddings", "m"}: {calls: 5, bytes: 1}}, 3},
		{"the provider's bytes", small, map[share]*tally{{"/embeddings", "m"}: {calls: 1, bytes: 501}}, 6},
		{"a model a file", openAI, map[share]*tally{{"/responses", "m"}: {calls: 1}, {"/responses", "n"}: {calls: 1}}, 2},
		{"all together", doubleword, map[share]*tally{{"/responses", "m"}: {calls: 1}, {"/embeddings", "n"}: {calls: 1}}, 1},
	}
	for _, tt := range tests {
		d := &dryRun{size: 1000, profile: tt.profile, tallies: tt.tallies}
		if got := d.allBatches(); got != tt.want {
			t.Errorf("%s: %d batches, want %d", tt.name, got, tt.want)
		}
	}
}

func TestDryRunAnswers(t *testing.T) {
	d := &dryRun{key: "k", size: 10, profile: provider.OpenAI(), tallies: map[share]*tally{}}
	ask := func(key, method, path, body string) int {
		t.Helper()
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+key)
		w := httptest.NewRecorder()
		d.ServeHTTP(w, r)
		if w.Header().Get("X-Should-Retry") != "false" || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("header is %v", w.Header())
		}
		return w.Code
	}
	if code := ask("other", "POST", "/v1/embeddings", `{"model":"m"}`); code != http.StatusUnauthorized {
		t.Errorf("another key gets %d", code)
	}
	for _, call := range [][3]string{
		{"POST", "/v1/chat/completions", `{"model":"m","messages":[]}`},
		{"POST", "/v1/chat/completions", `{"model":"m","messages":[]}`},
		{"POST", "/v1/responses", `{"model":"m","background":true}`},
		{"GET", "/v1/models", ""},
	} {
		if code := ask("k", call[0], call[1], call[2]); code != http.StatusBadRequest {
			t.Errorf("%v gets %d", call, code)
		}
	}
	summary := d.summary()
	for _, want := range []string{
		"m /chat/completions: 2 calls, 1 batch, 54 B, about 14 prompt tokens\n",
		"altogether: 2 calls, 1 batch, 54 B, about 14 prompt tokens\n",
		"and 2 calls passed through unbatched\n",
	} {
		if !strings.Contains(summary, want) {
			t.Errorf("the summary lacks %q:\n%s", want, summary)
		}
	}
}
