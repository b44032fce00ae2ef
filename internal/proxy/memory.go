package proxy

import (
	"errors"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	// errNoMemory is the read error of a body that does not fit into the memory
	// budget.
	errNoMemory = errors.New("the memory budget is used up")

	failNoMemory = failure{
		status: http.StatusServiceUnavailable, code: "out_of_memory", retryAfter: "10",
		message: "the bodies of the calls that the proxy holds use all the memory that the proxy may use (--max-memory); retry when some calls are answered",
	}
)

// A memoryBudget limits how many bytes of request bodies the proxy holds at the same
// time. Bytes count when they arrive, not when they are announced, and count without
// their Content-Encoding. All methods may be called concurrently.
type memoryBudget struct {
	limit int64 // 0: no limit
	used  atomic.Int64
}

// reserve counts n bytes, or returns false if the bytes do not fit.
func (m *memoryBudget) reserve(n int64) bool {
	if used := m.used.Add(n); m.limit > 0 && used > m.limit && n > 0 {
		m.used.Add(-n)
		return false
	}
	return true
}

// release returns n bytes that reserve counted.
func (m *memoryBudget) release(n int64) { m.used.Add(-n) }

// newRefusals returns the counter of requests that limits refused.
func newRefusals() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "autobatcher_refused_total", Help: "Requests and connections that a limit refused, by reason: memory, queue, connections, passed_through.",
	}, []string{"reason"})
}

// The values of the label reason.
const (
	refusedMemory      = "memory"
	refusedQueue       = "queue"
	refusedConnections = "connections"
	refusedPassThrough = "passed_through"
)

// registerLimits adds the metrics of the limits to Options.Metrics.
func (p *Proxy) registerLimits() error {
	p.refusals = newRefusals()
	for _, reason := range []string{refusedMemory, refusedQueue, refusedConnections, refusedPassThrough} {
		p.refusals.WithLabelValues(reason) // a counter that is absent cannot be alerted on
	}
	return errors.Join(
		p.opts.Metrics.Register(p.refusals),
		p.opts.Metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "autobatcher_request_memory_bytes", Help: "Bytes of request bodies held now.",
		}, func() float64 { return float64(p.memory.used.Load()) })),
		p.opts.Metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "autobatcher_request_memory_limit_bytes", Help: "Maximum of autobatcher_request_memory_bytes; 0: no limit.",
		}, func() float64 { return float64(p.memory.limit) })),
	)
}
