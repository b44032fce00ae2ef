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

// metrics is what /metrics says now.
func metrics(t *testing.T, client *http.Client) string {
	t.Helper()
	res, err := client.Get("http://proxy/metrics")
	if err != nil {
		t.Fatal(err)
	}
	return all(t, res)
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := `{"model":"m","usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`
		calls := transport(func(r *http.Request) (*http.Response, error) {
			switch r.Header.Get("X-Case") {
			case "error":
				return after(0, 429, "application/json", `{}`)(r)
			case "down":
				return failing(0, errors.New("down"))(r)
			case "late":
				return after(time.Hour, 400, "application/json", `{}`)(r)
			}
			return after(2*time.Minute, 200, "application/json", answer)(r)
		})
		p := newProxy(t, proxy.Options{Transport: calls, Stats: func() autobatcher.Stats { return autobatcher.Stats{Queued: 11} }})
		client := serve(t, p)
		p.OnEvent(autobatcher.Event{Name: autobatcher.BatchSubmitted})
		p.OnEvent(autobatcher.Event{Name: autobatcher.BatchSubmitted})
		held := make(chan struct{})
		go func() {
			defer close(held)
			all(t, post(t, client, "/v1/embeddings", `{"input":"prompt"}`))
		}()
		synctest.Wait()
		if got := metrics(t, client); !strings.Contains(got, "\nautobatcher_calls_held 1\n") {
			t.Errorf("while a call is held:\n%s", got)
		}
		<-held
		for _, name := range []string{"error", "down"} {
			all(t, post(t, client, "/v1/chat/completions", chatCall, "X-Case", name, "Authorization", "Bearer caller"))
		}
		post(t, client, "/v1/responses", chatCall, "X-Case", "late").Body.Close()
		all(t, post(t, client, "/v1/files", ``))
		all(t, post(t, client, "/secret-path", ``))
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
			`autobatcher_events_total{event="batch_submitted"} 2`,
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
				t.Errorf("the metrics tell %s", secret)
			}
		}
		if u := p.Usage(); u.Answered != 1 || u.Failed != 3 || u.PromptTokens != 3 || u.CompletionTokens != 4 || u.TotalTokens != 7 {
			t.Errorf("%+v", u)
		}
	})
}

// TestMetricsRegisteredTwice is an error, not a panic.
func TestMetricsRegisteredTwice(t *testing.T) {
	o := proxy.Options{Upstream: parse(t, upstreamURL), APIKey: "k", Transport: instant, Metrics: prometheus.NewRegistry()}
	if _, err := proxy.New(o); err != nil {
		t.Fatal(err)
	}
	if _, err := proxy.New(o); err == nil {
		t.Error("no error")
	}
}
