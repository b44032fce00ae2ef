package proxy_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

// metrics returns the body of /metrics.
func metrics(t *testing.T, client *http.Client) string {
	t.Helper()
	res, err := client.Get("http://proxy/metrics")
	if err != nil {
		t.Fatal(err)
	}
	return readAll(t, res)
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := `{"model":"m","usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`
		calls := transport(func(r *http.Request) (*http.Response, error) {
			switch r.Header.Get("X-Case") {
			case "error":
				return respondAfter(0, 429, "application/json", `{}`)(r)
			case "down":
				return failAfter(0, errors.New("down"))(r)
			case "late":
				return respondAfter(time.Hour, 400, "application/json", `{}`)(r)
			}
			return respondAfter(2*time.Minute, 200, "application/json", answer)(r)
		})
		p := newProxy(t, proxy.Options{Transport: calls, Stats: func() autobatcher.Stats { return autobatcher.Stats{Queued: 11} }})
		client := serve(t, p)
		p.OnEvent(autobatcher.Event{Name: autobatcher.BatchSubmitted})
		p.OnEvent(autobatcher.Event{Name: autobatcher.BatchSubmitted})
		held := make(chan struct{})
		go func() {
			defer close(held)
			readAll(t, post(t, client, "/v1/embeddings", `{"input":"prompt"}`))
		}()
		synctest.Wait()
		if got := metrics(t, client); !strings.Contains(got, "\nautobatcher_calls_held 1\n") {
			t.Errorf("while a call is held:\n%s", got)
		}
		<-held
		for _, name := range []string{"error", "down"} {
			readAll(t, post(t, client, "/v1/chat/completions", chatCall, "X-Case", name, "Authorization", "Bearer caller"))
		}
		post(t, client, "/v1/responses", chatCall, "X-Case", "late").Body.Close()
		readAll(t, post(t, client, "/v1/files", ``))
		readAll(t, post(t, client, "/secret-path", ``))
		synctest.Wait()
		got := metrics(t, client)
		for _, want := range []string{
			`autobatcher_calls_total{endpoint="/embeddings",outcome="2xx"} 1`,
			`autobatcher_calls_total{endpoint="/chat/completions",outcome="4xx"} 1`,
			`autobatcher_calls_total{endpoint="/chat/completions",outcome="5xx"} 1`,
			`autobatcher_calls_total{endpoint="/responses",outcome="aborted"} 1`,
			`autobatcher_calls_total{endpoint="other",outcome="2xx"} 2`,
			`autobatcher_calls_held 0`,
			`autobatcher_calls_queued 11`,
			`autobatcher_events_total{event="batch_submitted",lane="batch"} 2`,
			`autobatcher_tokens_total{kind="prompt"} 3`,
			`autobatcher_tokens_total{kind="completion"} 4`,
			`autobatcher_call_seconds_bucket{endpoint="/embeddings",le="60"} 0`,
			`autobatcher_call_seconds_bucket{endpoint="/embeddings",le="300"} 1`,
		} {
			if !strings.Contains(got, "\n"+want+"\n") {
				t.Errorf("no %s in\n%s", want, got)
			}
		}
		for _, secret := range []string{"caller", "sk-upstream", "prompt\"", "secret-path"} {
			if strings.Contains(strings.ReplaceAll(got, `kind="prompt"`, ""), secret) {
				t.Errorf("the metrics contain %s", secret)
			}
		}
		if u := p.Usage(); u.Answered != 1 || u.Failed != 3 || u.PromptTokens != 3 || u.CompletionTokens != 4 || u.TotalTokens != 7 {
			t.Errorf("%+v", u)
		}
	})
}

// TestMetricsRegisteredTwice checks that a second registration returns an error.
func TestMetricsRegisteredTwice(t *testing.T) {
	o := proxy.Options{Upstream: parse(t, upstreamURL), APIKey: "k", Transport: respondNow, Metrics: prometheus.NewRegistry()}
	if _, err := proxy.New(o); err != nil {
		t.Fatal(err)
	}
	if _, err := proxy.New(o); err == nil {
		t.Error("no error")
	}
}

// Metrics have the cost by model, client key and lane, and never the name of a model that
// only a client knows.
func TestCostMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stats := autobatcher.Stats{
			Costs: []autobatcher.CostPart{
				{Payer: "1", Model: "gpt-5", Caller: "key 1", Lane: autobatcher.ModeBatch, Cost: autobatcher.Cost{USD: 1, Savings: 2, Priced: 1}},
				{Payer: "2", Model: "gpt-5", Caller: "key 1", Lane: autobatcher.ModeBatch, Cost: autobatcher.Cost{USD: 1, Savings: 2, Priced: 1, Unpriced: 3, OtherTier: 2}},
				{Payer: "1", Model: "gpt-5", Caller: "key 1", Lane: autobatcher.ModeFlex, Cost: autobatcher.Cost{USD: 3, Savings: 1, Priced: 1}},
				{Payer: "1", Model: "gpt-5", Caller: "key 1", Lane: autobatcher.ModeRealtime, Cost: autobatcher.Cost{USD: 5, Priced: 1}},
				{Payer: "1", Model: "a prompt", Caller: "key 1", Lane: autobatcher.ModeBatch, Cost: autobatcher.Cost{Unpriced: 4, OtherTier: 3}},
			},
			Budget: autobatcher.BudgetStats{LimitUSD: 20, SpentUSD: 2, ReservedUSD: 0.5, Refused: 6},
		}
		p := newProxy(t, proxy.Options{Transport: respondAfter(0, 200, "", ""), Stats: func() autobatcher.Stats { return stats }})
		got := metrics(t, serve(t, p))
		for _, want := range []string{
			`autobatcher_cost_usd_total{key="key 1",lane="batch",model="gpt-5"} 2`,
			`autobatcher_cost_usd_total{key="key 1",lane="flex",model="gpt-5"} 3`,
			`autobatcher_cost_usd_total{key="key 1",lane="realtime",model="gpt-5"} 5`,
			`autobatcher_savings_usd{key="key 1",lane="batch",model="gpt-5"} 4`,
			`autobatcher_savings_usd{key="key 1",lane="flex",model="gpt-5"} 1`,
			`autobatcher_savings_usd{key="key 1",lane="realtime",model="gpt-5"} 0`,
			`autobatcher_unpriced_answers_total{key="key 1"} 7`,
			`autobatcher_other_tier_answers_total{key="key 1"} 5`,
			`autobatcher_budget_usd 20`,
			`autobatcher_budget_spent_usd 2`,
			`autobatcher_budget_reserved_usd 0.5`,
			`autobatcher_budget_refused_total 6`,
		} {
			if !strings.Contains(got, "\n"+want+"\n") {
				t.Errorf("no %s in\n%s", want, got)
			}
		}
		if strings.Contains(got, "a prompt") {
			t.Errorf("a label has text of a client:\n%s", got)
		}
	})
}
