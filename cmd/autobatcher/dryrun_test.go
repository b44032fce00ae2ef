package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/price"
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
		{"no calls", openAI, map[share]*tally{}, 0},
		{"full batches", openAI, map[share]*tally{{"/embeddings", "m"}: {calls: 2000, bytes: 1}}, 2},
		{"one more call", openAI, map[share]*tally{{"/embeddings", "m"}: {calls: 2001, bytes: 1}}, 3},
		{"the provider's lines", small, map[share]*tally{{"/embeddings", "m"}: {calls: 5, bytes: 1}}, 3},
		{"the provider's bytes", small, map[share]*tally{{"/embeddings", "m"}: {calls: 1, bytes: 501}}, 6},
		{"one model per file", openAI, map[share]*tally{{"/responses", "m"}: {calls: 1}, {"/responses", "n"}: {calls: 1}}, 2},
		{"any models and endpoints", doubleword, map[share]*tally{{"/responses", "m"}: {calls: 1}, {"/embeddings", "n"}: {calls: 1}}, 1},
	}
	for _, tt := range tests {
		d := &dryRun{size: 1000, profile: tt.profile, tallies: tt.tallies}
		if got := d.allBatches(); got != tt.want {
			t.Errorf("%s: %d batches, want %d", tt.name, got, tt.want)
		}
	}
}

func TestDryRunCounts(t *testing.T) {
	next := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.ReadAll(r.Body) })
	prices, err := price.NewMeter(nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &dryRun{next: next, key: "k", size: 10, profile: provider.OpenAI(), prices: prices, tallies: map[share]*tally{}}
	for _, call := range [][4]string{
		{"k", "POST", "/v1/chat/completions", `{"model":"m","messages":[]}`},
		{"k", "POST", "/v1/chat/completions", `{"model":"m","messages":[]}`},
		{"k", "POST", "/v1/embeddings", `{"model":"text-embedding-3-small","input":"` + strings.Repeat("x", 4_000_000) + `"}`},
		{"k", "POST", "/v1/responses", `{"model":"m","service_tier":"flex","background":true}`},
		{"k", "POST", "/v1/chat/completions", `{"model":"gpt-4o-mini","max_tokens":500000,"n":2}`},
		{"k", "POST", "/v1/chat/completions", `{"model":"gpt-4o-mini"}`},
		{"k", "GET", "/v1/models", ""},
		{"k", "POST", "/v1/moderations", `{"input":"a"}`},
		{"k", "POST", "/v1/completions", `{"model":"davinci-002","prompt":"a","stream":true}`},
		{"k", "POST", "/v1/images/generations", `{"model":"gpt-image-1","prompt":"a","stream":true}`},
		{"k", "POST", "/v1/responses", `{"model":"m","service_tier":"priority"}`},
		{"other", "POST", "/v1/embeddings", `{"model":"m"}`},
	} {
		r := httptest.NewRequest(call[1], call[2], strings.NewReader(call[3]))
		r.Header.Set("Authorization", "Bearer "+call[0])
		d.ServeHTTP(httptest.NewRecorder(), r)
	}
	form := httptest.NewRequest("POST", "/v1/images/generations", strings.NewReader("--x--"))
	form.Header.Set("Authorization", "Bearer k")
	form.Header.Set("Content-Type", "multipart/form-data; boundary=x")
	d.ServeHTTP(httptest.NewRecorder(), form)
	summary := d.summary()
	for _, want := range []string{
		"m /chat/completions: 2 calls, 1 batch, 54 B, about 14 prompt tokens; the price of 2 calls is not known\n",
		"text-embedding-3-small /embeddings: 1 call, 1 batch, 3.8 MiB, about 1,000,012 prompt tokens for about $0.0100, in real time $0.0200\n",
		"gpt-4o-mini /chat/completions: 2 calls, 1 batch, 72 B, about 18 prompt tokens for about $0.0000013, in real time $0.0000027; with answers of 1,001,000 tokens, at most about $0.3003, in real time $0.6006\n",
		"omni-moderation-latest /moderations: 1 call, 1 batch, 13 B, about 4 prompt tokens\n",
		"davinci-002 /completions: 1 call, 1 batch, 50 B, about 13 prompt tokens for about $0.000013, in real time $0.000026; with answers of 1,000 tokens, at most about $0.0010, in real time $0.0020\n",
		"total: 7 calls, 5 batches, 3.8 MiB, about 1,000,059 prompt tokens for about $0.0100, in real time $0.0200; with answers of 1,002,000 tokens, at most about $0.3113, in real time $0.6226; the price of 2 calls is not known\n",
		"Answers may be as long as the calls allow (max_tokens), and have 1,000 tokens at most where a call names no limit.\n",
		"and 5 calls passed through without a batch, at a cost that is not estimated\n",
	} {
		if !strings.Contains(summary, want) {
			t.Errorf("the summary lacks %q:\n%s", want, summary)
		}
	}
}
