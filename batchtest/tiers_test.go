package batchtest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/google/go-cmp/cmp"
)

// tierBody is a body for the endpoint of path, with further fields.
func tierBody(path, fields string) string {
	content := `"input":"hi"`
	if path == "/chat/completions" {
		content = `"messages":[{"role":"user","content":"hi"}]`
	}
	return `{"model":"m",` + content + fields + `}`
}

func TestTiers(t *testing.T) {
	const flex, priority = `,"service_tier":"flex"`, `,"service_tier":"priority"`
	type got struct {
		Status int
		Said   any // the service_tier of the answer
		Paid   map[batchtest.Tier]int
		After  time.Duration
	}
	paid := func(tier batchtest.Tier) map[batchtest.Tier]int { return map[batchtest.Tier]int{tier: 1} }
	downgrade := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Tier: batchtest.TierDefault} }
	refused := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{FlexRefused: true} }
	tests := []struct {
		name         string
		behavior     batchtest.Behavior
		answer       func(batchtest.Line) batchtest.Outcome
		models       []string
		path, fields string
		want         got
	}{
		{"no tier", batchtest.OpenAI(), nil, nil, "/chat/completions", "", got{200, "default", paid("default"), 0}},
		{"null", batchtest.OpenAI(), nil, nil, "/responses", `,"service_tier":null`, got{200, "default", paid("default"), 0}},
		{"auto", batchtest.OpenAI(), nil, nil, "/responses", `,"service_tier":"auto"`, got{200, "default", paid("default"), 0}},
		{"flex", batchtest.OpenAI(), nil, nil, "/chat/completions", flex, got{200, "flex", paid("flex"), time.Minute}},
		{"flex response", batchtest.OpenAI(), nil, nil, "/responses", flex, got{200, "flex", paid("flex"), time.Minute}},
		{"an Answer that calls Echo", batchtest.OpenAI(), batchtest.Echo, nil, "/chat/completions", flex, got{200, "flex", paid("flex"), time.Minute}},
		{"priority", batchtest.OpenAI(), nil, nil, "/chat/completions", priority, got{200, "priority", paid("priority"), 0}},
		{"unknown tier", batchtest.OpenAI(), nil, nil, "/chat/completions", `,"service_tier":"gold"`, got{400, nil, nil, 0}},
		{"not a string", batchtest.OpenAI(), nil, nil, "/chat/completions", `,"service_tier":1`, got{400, nil, nil, 0}},
		{"embeddings", batchtest.OpenAI(), nil, nil, "/embeddings", flex, got{400, nil, nil, 0}},
		{"a model with flex", batchtest.OpenAI(), nil, []string{"m"}, "/responses", flex, got{200, "flex", paid("flex"), time.Minute}},
		{"a model without flex", batchtest.OpenAI(), nil, []string{"x"}, "/responses", flex, got{400, nil, nil, 0}},
		{"the provider does not grant the tier", batchtest.OpenAI(), downgrade, nil, "/responses", flex, got{200, "default", paid("default"), 0}},
		{"no capacity", batchtest.OpenAI(), refused, nil, "/responses", flex, got{429, nil, nil, 0}},
		{"no capacity does not matter without flex", batchtest.OpenAI(), refused, nil, "/responses", "", got{200, "default", paid("default"), 0}},
		{"Doubleword", batchtest.Doubleword(), nil, nil, "/chat/completions", flex, got{200, "flex", paid("flex"), time.Minute}},
		{"Doubleword, embeddings in real time at the full price", batchtest.Doubleword(), nil, nil, "/embeddings", flex, got{200, nil, paid("default"), 0}},
		{"Doubleword has no priority", batchtest.Doubleword(), nil, nil, "/chat/completions", priority, got{200, "default", paid("default"), 0}},
		{"Groq, no capacity", batchtest.Groq(), refused, nil, "/chat/completions", flex, got{498, nil, nil, 0}},
		{"a provider without tiers ignores the field", batchtest.Nebius(), nil, nil, "/chat/completions", flex, got{200, "default", paid("default"), 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(t, batchtest.Options{Behavior: tt.behavior, Answer: tt.answer, FlexDelay: time.Minute, FlexModels: tt.models})
				start := time.Now()
				res := a.post(tt.path, tierBody(tt.path, tt.fields))
				g := got{Status: res.status, Paid: a.server.PaidTiers(), After: time.Since(start)}
				if res.status == 200 {
					g.Said = res.json(t)["service_tier"]
				}
				if len(g.Paid) == 0 {
					g.Paid = nil
				}
				if diff := cmp.Diff(tt.want, g); diff != "" {
					t.Errorf("(-want +got):\n%s\n%s", diff, res.body)
				}
			})
		})
	}
}

func TestNoCapacity(t *testing.T) {
	tests := []struct {
		behavior batchtest.Behavior
		status   int
		kind     string
	}{
		{batchtest.OpenAI(), 429, "resource_unavailable"},
		{batchtest.Groq(), 498, "capacity_exceeded"},
	}
	for _, tt := range tests {
		t.Run(tt.behavior.Name, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{Behavior: tt.behavior, FlexModels: []string{"m"}})
			a.server.Control(batchtest.OpRealtime, batchtest.FlexUnavailable(), batchtest.FlexUnavailable())
			const path = "/chat/completions"
			if res := a.post(path, tierBody(path, "")); res.status != 200 {
				t.Errorf("a call without a tier: %d %s", res.status, res.body)
			}
			for range 2 {
				res := a.post(path, tierBody(path, `,"service_tier":"flex"`))
				e := res.json(t)["error"].(map[string]any)
				if res.status != tt.status || e["code"] != tt.kind || e["type"] != tt.kind {
					t.Errorf("refusal: %d %s", res.status, res.body)
				}
			}
			if res := a.post(path, tierBody(path, `,"service_tier":"flex"`)); res.status != 200 {
				t.Errorf("after two refusals: %d %s", res.status, res.body)
			}
			want := map[batchtest.Tier]int{"default": 1, "flex": 1}
			if diff := cmp.Diff(want, a.server.PaidTiers()); diff != "" {
				t.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRefusalsOfTiers(t *testing.T) {
	for path, code := range map[string]any{"/embeddings": "unknown_parameter", "/responses": nil} {
		a := newAPI(t, batchtest.Options{})
		res := a.post(path, tierBody(path, `,"service_tier":"gold"`))
		e := res.json(t)["error"].(map[string]any)
		if res.status != 400 || e["code"] != code || e["param"] != "service_tier" || e["type"] != "invalid_request_error" {
			t.Errorf("%s: %d %s", path, res.status, res.body)
		}
	}
}

func TestFlexCallsThatLastLong(t *testing.T) {
	tests := []struct {
		name     string
		behavior batchtest.Behavior
		delay    time.Duration
		timeout  time.Duration // of the client
		status   int           // zero: the client got no answer
		paid     int           // two hours later
	}{
		{"OpenAI answers late", batchtest.OpenAI(), 90 * time.Minute, 0, 200, 1},
		{"OpenAI does not execute a call without a caller", batchtest.OpenAI(), time.Hour, time.Minute, 0, 0},
		{"Doubleword answers within an hour", batchtest.Doubleword(), time.Hour, 0, 200, 1},
		{"Doubleword answers 504 after an hour, and executes the call", batchtest.Doubleword(), time.Hour + 1, 0, 504, 1},
		{"Doubleword executes a call without a caller", batchtest.Doubleword(), time.Hour, time.Minute, 0, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(t, batchtest.Options{Behavior: tt.behavior, FlexDelay: tt.delay})
				body := tierBody("/responses", `,"service_tier":"flex"`)
				id := echo("/v1/responses", body).json(t)["id"].(string)
				req := a.request("POST", "/responses", strings.NewReader(body))
				req.Header.Set("Content-Type", "application/json")
				start := time.Now()
				if tt.timeout > 0 {
					ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
					defer cancel()
					if _, err := a.attempt(req.WithContext(ctx)); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("error = %v", err)
					}
				} else if res := a.do(req); res.status != tt.status {
					t.Errorf("answer: %d %s, want %d", res.status, res.body, tt.status)
				}
				if n := len(a.server.Executed()); tt.status != 200 && n != 0 {
					t.Errorf("%d calls executed before the delay was over", n)
				}
				if got := a.get("/responses/" + id).status; tt.status != 200 && got != 404 {
					t.Errorf("retrieve before the delay was over: %d", got)
				}
				if took := time.Since(start); tt.status == 504 && took != time.Hour {
					t.Errorf("504 after %v", took)
				}
				time.Sleep(2 * time.Hour)
				if got := a.get("/responses/" + id).status; (got == 200) != (tt.paid == 1) {
					t.Errorf("retrieve afterwards: %d", got)
				}
				if got := a.server.PaidTiers()[batchtest.TierFlex]; got != tt.paid {
					t.Errorf("%d calls paid for, want %d", got, tt.paid)
				}
			})
		})
	}
}

func TestFaultReadsTheWholeBody(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	a.server.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable())
	req := a.request("POST", "/responses", io.MultiReader(strings.NewReader(`{"model":"m",`), brokenReader{}))
	req.Header.Set("Content-Type", "application/json")
	if res, err := a.attempt(req); err == nil && res.status != http.StatusBadRequest {
		t.Errorf("a body that broke off: %d %s", res.status, res.body)
	}
	if n := len(a.server.Executed()); n != 0 {
		t.Errorf("%d calls executed", n)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("broken") }

func TestTheTierIsInTheStream(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	tests := []struct {
		path, fields, want string
		events             int // that name the tier
	}{
		{"/chat/completions", `,"service_tier":"flex","stream":true`, `"service_tier":"flex"`, 5},
		{"/chat/completions", `,"stream":true`, `"service_tier":"default"`, 5},
		{"/responses", `,"service_tier":"flex","stream":true`, `"service_tier":"flex"`, 3},
	}
	for _, tt := range tests {
		res := a.post(tt.path, tierBody(tt.path, tt.fields))
		if got := strings.Count(res.body, tt.want); got != tt.events {
			t.Errorf("%s%s: %d events name the tier, want %d:\n%s", tt.path, tt.fields, got, tt.events, res.body)
		}
	}
}

func TestTheSameWorkAtAnotherTierHasTheSameKey(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	file := a.upload(`{"custom_id":"a","method":"POST","url":"/v1/responses","body":{"model":"m","input":"hi"}}` + "\n")
	a.retrieve(a.post("/batches", createBody(file, "/v1/responses", "24h")).json(t)["id"])
	for _, body := range []string{
		`{"model":"m","input":"hi","service_tier":"flex"}`,
		`{"service_tier":"flex","model":"m","background":true,"input":"hi"}`,
		`{"model":"m","input":"hi"}`,
		`{"model":"m","input":"ho"}`,
	} {
		a.post("/responses", body)
	}
	got := a.server.Paid()
	if key := a.server.Batches()[0].Lines[0].Key(); got[key] != 4 || len(got) != 2 {
		t.Errorf("paid = %v, want 4 of %s, and another", got, key)
	}
	want := map[batchtest.Tier]int{"batch": 1, "flex": 2, "default": 2}
	if diff := cmp.Diff(want, a.server.PaidTiers()); diff != "" {
		t.Errorf("paid by tier (-want +got):\n%s", diff)
	}
}
