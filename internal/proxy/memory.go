package proxy

import (
	"errors"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/autobatcher/autobatcher/internal/caller"
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

// heldBytes are the bytes of one request body in the budget. They count until the
// request has ended and the Transport keeps none of the bytes: when a client
// disconnects, the Transport may need the body for the upload of its batch. All methods
// may be called concurrently, and do not block. The nil *heldBytes count nothing.
type heldBytes struct {
	budget *memoryBudget

	mu      sync.Mutex
	bytes   int64
	holders int // the request, until it has ended, and the Transport
}

// hold returns heldBytes that the request holds.
func (m *memoryBudget) hold() *heldBytes { return &heldBytes{budget: m, holders: 1} }

// add counts n bytes, or returns false if the bytes do not fit.
func (h *heldBytes) add(n int64) bool {
	if h == nil {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.budget.reserve(n) {
		return false
	}
	h.bytes += n
	return true
}

// usualHeader is the size of a header that no client exceeds by chance, in bytes. The
// memory of such a header is small compared with that of the call itself.
const usualHeader = 8 << 10

// largeHeader returns how many bytes a header has beyond usualHeader. A call keeps its
// header until its end.
func largeHeader(h http.Header) (bytes int64) {
	for name, values := range h {
		for _, value := range values {
			bytes += int64(len(name) + len(value))
		}
	}
	return max(bytes-usualHeader, 0)
}

// Hold implements caller.Observer for the request: the Transport holds the bytes.
func (h *heldBytes) Hold() (release func()) {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holders++
	return h.release
}

// release ends the holding of one holder. The last holder returns the bytes to the
// budget.
func (h *heldBytes) release() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.holders--; h.holders == 0 {
		h.budget.used.Add(-h.bytes)
	}
}

// Waiting implements caller.Observer for a request that passes through.
func (h *heldBytes) Waiting(caller.Call) {}

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
