package proxy

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/autobatcher/autobatcher"
)

// meters count what the proxy does. No label holds a key, a prompt or anything
// else that a caller chooses.
type meters struct {
	calls  *prometheus.CounterVec
	held   *prometheus.HistogramVec
	events *prometheus.CounterVec
	tokens *prometheus.CounterVec

	answered, failed          atomic.Int64
	prompt, completion, total atomic.Int64
	bytesIn, bytesOut         atomic.Int64
}

// heldBuckets are seconds: from a call that passes through to a batch that
// takes its whole day.
var heldBuckets = []float64{1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600}

func newMeters(registry *prometheus.Registry, stats func() autobatcher.Stats, held *atomic.Int64) (*meters, http.Handler, error) {
	m := &meters{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autobatcher_calls_total", Help: "Calls ended, by endpoint and status class; aborted: without a clean end.",
		}, []string{"endpoint", "outcome"}),
		held: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "autobatcher_call_seconds", Help: "How long calls took, by endpoint.", Buckets: heldBuckets,
		}, []string{"endpoint"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autobatcher_events_total", Help: "Events of batches, by name.",
		}, []string{"event"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autobatcher_tokens_total", Help: "Tokens that answers told of, by kind.",
		}, []string{"kind"}),
	}
	collectors := []prometheus.Collector{
		m.calls, m.held, m.events, m.tokens,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "autobatcher_calls_held", Help: "Calls held now.",
		}, func() float64 { return float64(held.Load()) }),
		counter("autobatcher_request_bytes_total", "Bytes of the calls' bodies.", &m.bytesIn),
		counter("autobatcher_response_bytes_total", "Bytes of the answers' bodies.", &m.bytesOut),
	}
	if stats != nil {
		collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "autobatcher_calls_queued", Help: "Calls held whose batch was not sent yet.",
		}, func() float64 { return float64(stats().Queued) }))
	}
	for _, c := range collectors {
		if err := registry.Register(c); err != nil {
			return nil, nil, err
		}
	}
	return m, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), nil
}

func counter(name, help string, value *atomic.Int64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value.Load()) })
}

func (m *meters) event(name string) { m.events.WithLabelValues(name).Inc() }

// count adds a request that has ended.
func (m *meters) count(a *answer) {
	if a.endpoint == "" {
		return
	}
	outcome := a.outcome()
	m.calls.WithLabelValues(a.endpoint, outcome).Inc()
	if a.endpoint == "other" {
		return
	}
	m.held.WithLabelValues(a.endpoint).Observe(time.Since(a.begun).Seconds())
	if outcome == "2xx" || outcome == "3xx" {
		m.answered.Add(1)
	} else {
		m.failed.Add(1)
	}
	m.bytesIn.Add(a.received)
	m.bytesOut.Add(a.bytes)
	if t := a.tally; t != nil && t.total > 0 {
		m.prompt.Add(t.prompt)
		m.completion.Add(t.completion)
		m.total.Add(t.total)
		m.tokens.WithLabelValues("prompt").Add(float64(t.prompt))
		m.tokens.WithLabelValues("completion").Add(float64(t.completion))
	}
}

// outcome is the class of the status, or "aborted".
func (a *answer) outcome() string {
	if a.broken || a.status == 0 {
		return "aborted"
	}
	return strconv.Itoa(a.status/100) + "xx"
}

func (m *meters) usage() Usage {
	return Usage{
		PromptTokens:     m.prompt.Load(),
		CompletionTokens: m.completion.Load(),
		TotalTokens:      m.total.Load(),
		Answered:         m.answered.Load(),
		Failed:           m.failed.Load(),
		BytesIn:          m.bytesIn.Load(),
		BytesOut:         m.bytesOut.Load(),
	}
}
