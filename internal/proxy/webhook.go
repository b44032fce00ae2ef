package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/autobatcher/autobatcher/internal/webhook"
)

// WebhookPath is the path that receives the provider's webhooks.
const WebhookPath = "/autobatcher/webhook"

const (
	// maxWebhook is the maximum size of a webhook, in bytes. The events of OpenAI and
	// Doubleword have less than a kilobyte.
	maxWebhook = 64 << 10

	// webhooksAtOnce is the maximum number of webhooks that are read at the same time:
	// anyone can send a body, so that the bodies must not use much memory.
	webhooksAtOnce = 64

	// webhookTimeout is how long the body of a webhook may take to arrive.
	webhookTimeout = 10 * time.Second

	// refusedInterval is the minimum time between two warnings about refused webhooks,
	// which anyone can send.
	refusedInterval = time.Minute
)

// webhooks limits and counts the provider's webhooks. All methods may be called
// concurrently.
type webhooks struct {
	slots   chan struct{} // has a value for each webhook that is read now
	counts  *prometheus.CounterVec
	warning atomic.Int64 // when the last warning was logged, in Unix nanoseconds
}

// The results of webhooks, in the metric.
const (
	webhookPolled  = "polled"  // a batch is polled
	webhookIgnored = "ignored" // nothing has to be polled
	webhookRefused = "refused" // the webhook is not of the provider
)

// newWebhooks returns webhooks, whose metric is registered.
func newWebhooks(registry *prometheus.Registry) (*webhooks, error) {
	counts := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "autobatcher_webhooks_total", Help: "Webhooks of the provider: polled (a batch was polled at once), ignored (repeated, of another event or of a batch that is not polled), refused (not signed, too large or malformed).",
	}, []string{"result"})
	for _, result := range []string{webhookPolled, webhookIgnored, webhookRefused} {
		counts.WithLabelValues(result)
	}
	return &webhooks{slots: make(chan struct{}, webhooksAtOnce), counts: counts}, registry.Register(counts)
}

// serveWebhook answers a webhook of the provider. The signature authenticates the
// provider: neither a client key nor the host or the origin of the request counts.
func (p *Proxy) serveWebhook(rw *responseWriter, r *http.Request) {
	if p.opts.Webhooks == nil || p.opts.Wake == nil {
		rw.writeFailure(failNotFound)
		return
	}
	result, refusal := p.receiveWebhook(rw, r)
	p.webhooks.counts.WithLabelValues(result).Inc()
	if refusal != nil {
		rw.writeFailure(*refusal)
		return
	}
	rw.WriteHeader(http.StatusNoContent)
}

// receiveWebhook reads and verifies a webhook, and polls the batch. The failure is nil
// if the signature is right and the body is an event, so that the provider does not send
// the webhook again.
func (p *Proxy) receiveWebhook(rw *responseWriter, r *http.Request) (result string, refusal *failure) {
	text, refusal := p.readWebhook(rw, r)
	if refusal != nil {
		return webhookRefused, refusal
	}
	ids, err := p.opts.Webhooks.Verify(r.Header, text)
	if err != nil {
		f := failWebhookSignature
		if errors.Is(err, webhook.ErrMalformed) {
			f = failWebhookBody
		}
		f.message = err.Error()
		p.warnRefused(err)
		return webhookRefused, &f
	}
	result = webhookIgnored
	for _, id := range ids {
		if p.opts.Wake(id) {
			result = webhookPolled
		}
	}
	p.opts.Logger.Debug("webhook received", "batch", ids, "result", result)
	return result, nil
}

// readWebhook reads the body of a webhook. After a failure the deadline stays, since
// net/http reads the rest of the body before the response is sent.
func (p *Proxy) readWebhook(rw *responseWriter, r *http.Request) ([]byte, *failure) {
	if r.Method != http.MethodPost {
		return nil, &failWebhookMethod
	}
	_ = rw.rc.SetReadDeadline(time.Now().Add(webhookTimeout)) // some ResponseWriters do not support deadlines
	select {
	case p.webhooks.slots <- struct{}{}:
		defer func() { <-p.webhooks.slots }()
	default:
		return nil, &failTooManyWebhooks
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw.w, r.Body, maxWebhook))
	if err == nil {
		_ = rw.rc.SetReadDeadline(time.Time{})
		return body, nil
	}
	f := bodyFailure(err)
	if f.code == failTooLarge.code {
		f = failWebhookTooLarge
	}
	return nil, &f
}

// warnRefused logs that a webhook was refused, at most once in refusedInterval.
func (p *Proxy) warnRefused(err error) {
	last, now := p.webhooks.warning.Load(), time.Now().UnixNano()
	if last != 0 && now-last < int64(refusedInterval) || !p.webhooks.warning.CompareAndSwap(last, now) {
		return
	}
	p.opts.Logger.Warn("a webhook was refused; autobatcher_webhooks_total counts refused webhooks", "error", err)
}

var (
	failWebhookMethod   = failure{status: http.StatusMethodNotAllowed, code: "method_not_allowed", message: "this path supports only POST"}
	failWebhookTooLarge = failure{
		status: http.StatusRequestEntityTooLarge, code: "request_too_large", noRetry: true,
		message: "a webhook may have 64 KiB",
	}
	failTooManyWebhooks = failure{
		status: http.StatusServiceUnavailable, code: "too_many_webhooks", retryAfter: "5",
		message: "the proxy reads the maximum number of webhooks; send the webhook again",
	}
	failWebhookSignature = failure{status: http.StatusUnauthorized, code: "invalid_webhook_signature", noRetry: true}
	failWebhookBody      = failure{status: http.StatusBadRequest, code: "invalid_webhook", noRetry: true}
)
