package proxy

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/background"
	"github.com/autobatcher/autobatcher/internal/usage"
	"github.com/autobatcher/autobatcher/provider"
)

// metrics counts requests, events and tokens, for Prometheus and for Usage. No
// label contains text that a client chooses, so no key and no prompt can appear
// in a label, and the number of time series is bounded. All methods may be
// called concurrently.
type metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	events  *prometheus.CounterVec
	tokens  *prometheus.CounterVec

	answered, failed          atomic.Int64
	chosen, escalated         laneCount // calls in real time
	asked                     atomic.Int64
	prompt, completion, total atomic.Int64
	bytesIn, bytesOut         atomic.Int64
}

// durationBuckets are in seconds. The smallest buckets fit calls that pass
// through, the largest fit a batch with a window of 24 h.
var durationBuckets = []float64{1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600}

// newMetrics registers the proxy's metrics and returns the handler of /metrics.
// held is the number of calls held now. stats may be nil.
func newMetrics(registry *prometheus.Registry, stats func() autobatcher.Stats, held *atomic.Int64) (*metrics, http.Handler, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autobatcher_calls_total", Help: "Ended calls by endpoint and status class. The outcome aborted means that the response has no clean end.",
		}, []string{"endpoint", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "autobatcher_call_seconds", Help: "Duration of model calls by endpoint.", Buckets: durationBuckets,
		}, []string{"endpoint"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autobatcher_events_total", Help: "Lifecycle events of batches by event name. In the lane flex, a batch is a single call at the provider's flex tier.",
		}, []string{"event", "lane"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autobatcher_tokens_total", Help: "Tokens in the usage objects of responses, by kind.",
		}, []string{"kind"}),
	}
	collectors := []prometheus.Collector{
		m.calls, m.seconds, m.events, m.tokens,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "autobatcher_calls_held", Help: "Calls held now.",
		}, func() float64 { return float64(held.Load()) }),
		newCounterFunc("autobatcher_request_bytes_total", "Request body bytes of held calls.", &m.bytesIn),
		newCounterFunc("autobatcher_response_bytes_total", "Response body bytes of model calls.", &m.bytesOut),
	}
	if stats != nil {
		collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "autobatcher_calls_queued", Help: "Held calls in batches that are not yet submitted.",
		}, func() float64 { return float64(stats().Queued) }), costCollector{stats})
	}
	for _, c := range collectors {
		if err := registry.Register(c); err != nil {
			return nil, nil, err
		}
	}
	return m, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), nil
}

func newCounterFunc(name, help string, value *atomic.Int64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value.Load()) })
}

func (m *metrics) countEvent(e autobatcher.Event) {
	lane := "batch"
	if e.CompletionWindow == provider.FlexWindow {
		lane = "flex"
	}
	m.events.WithLabelValues(string(e.Name), lane).Inc()
}

// countRequest counts a request that has ended. Requests for the proxy's own
// pages are not counted. For requests that are not model calls, only the total
// by outcome is counted.
func (m *metrics) countRequest(rw *responseWriter) {
	if rw.endpoint == "" {
		return
	}
	outcome := rw.outcome()
	m.calls.WithLabelValues(rw.endpoint, outcome).Inc()
	if rw.endpoint == endpointOther {
		if background.IsTarget(rw.r.URL) {
			m.asked.Add(1)
		}
		return
	}
	m.seconds.WithLabelValues(rw.endpoint).Observe(time.Since(rw.started).Seconds())
	ok := outcome == "2xx" || outcome == "3xx"
	rw.lane.end(ok)
	if ok {
		m.answered.Add(1)
	} else {
		m.failed.Add(1)
	}
	m.bytesIn.Add(rw.bytesIn)
	m.bytesOut.Add(rw.bytesOut)
	m.countTokens(rw.usage)
}

// countTokens adds the tokens of one response. u may be nil.
func (m *metrics) countTokens(u *usage.Scanner) {
	if u == nil || u.Total <= 0 {
		return
	}
	m.prompt.Add(u.Input)
	m.completion.Add(u.Output)
	m.total.Add(u.Total)
	m.tokens.WithLabelValues("prompt").Add(float64(u.Input))
	m.tokens.WithLabelValues("completion").Add(float64(u.Output))
}

// outcome returns the class of the status, such as "2xx", or "aborted".
func (rw *responseWriter) outcome() string {
	if rw.aborted || rw.status == 0 {
		return "aborted"
	}
	return strconv.Itoa(rw.status/100) + "xx"
}

func (m *metrics) usage() Usage {
	return Usage{
		PromptTokens:     m.prompt.Load(),
		CompletionTokens: m.completion.Load(),
		TotalTokens:      m.total.Load(),
		Answered:         m.answered.Load(),
		Realtime:         m.chosen.ok.Load(),
		Failed:           m.failed.Load(),
		Asked:            m.asked.Load(),
		BytesIn:          m.bytesIn.Load(),
		BytesOut:         m.bytesOut.Load(),
	}
}
