// Package notify posts events to a URL, signed as the Standard Webhooks specification
// says.
package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/retry"
	"github.com/autobatcher/autobatcher/internal/webhook"
)

const (
	// maxEvents and maxBytes bound the events that wait.
	maxEvents = 10_000
	maxBytes  = 8 << 20

	// attemptTimeout limits one request.
	attemptTimeout = 10 * time.Second

	// retryTimeout is how long an event is posted again after failures.
	retryTimeout = 5 * time.Minute

	// maxWait bounds the wait between two requests, also if the receiver asks for a
	// longer one.
	maxWait = time.Minute

	// warnInterval is the minimum time between two warnings.
	warnInterval = time.Minute
)

// Options configure a Notifier. URL and Secret are required.
type Options struct {
	URL    string // http or https; redirects are not followed
	Secret string // "whsec_" and at least 16 bytes in base64

	// Transport sends the requests. Default: a clone of http.DefaultTransport.
	Transport http.RoundTripper
	// Logger gets a warning at most once a minute while events cannot be posted. The
	// warnings name the host of URL and neither path nor query.
	Logger *slog.Logger
}

// A Notifier posts events, one at a time and in the order of Send. An event is posted
// again for up to five minutes, unless the receiver answers with a status of 2xx, or says
// that the event itself is not acceptable (400, 410, 413, 415, 422). All methods may be
// called concurrently.
type Notifier struct {
	url       *url.URL
	secret    *standardwebhooks.Webhook
	transport http.RoundTripper
	log       *slog.Logger
	results   *prometheus.CounterVec
	cancel    context.CancelFunc // ends the goroutine
	done      chan struct{}      // closed when the goroutine has ended

	mu      sync.Mutex
	pending [][]byte
	bytes   int // in pending
	closed  bool
	changed chan struct{} // has room for one signal: pending or closed has changed

	warned time.Time // when the last warning was logged; used by the goroutine only
}

// New returns a Notifier, whose goroutine ends after Close. The error names the option
// that is wrong, and contains no part of URL and Secret.
func New(o Options) (*Notifier, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, errors.New("the URL must begin with https:// or http://, name a host, and have neither a user nor a fragment")
	}
	secret, err := webhook.Secret(o.Secret)
	if err != nil {
		return nil, err
	}
	n := &Notifier{
		url: u, secret: secret, transport: o.Transport, log: o.Logger,
		done: make(chan struct{}), changed: make(chan struct{}, 1),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autobatcher_notifications_total", Help: "Events for --notify: delivered, failed (not accepted within five minutes, or refused by the receiver), dropped (the queue was full, or the process ended).",
		}, []string{"result"}),
	}
	for _, result := range []string{delivered, failed, dropped} {
		n.results.WithLabelValues(result)
	}
	if n.transport == nil {
		n.transport = http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // net/http documents the type
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go n.run(ctx)
	return n, nil
}

// The results of events, in the metric.
const (
	delivered = "delivered"
	failed    = "failed"
	dropped   = "dropped"
)

// Collectors returns the metrics.
func (n *Notifier) Collectors() []prometheus.Collector {
	return []prometheus.Collector{n.results, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "autobatcher_notifications_pending", Help: "Events that wait to be posted to the URL of --notify.",
	}, func() float64 {
		n.mu.Lock()
		defer n.mu.Unlock()
		return float64(len(n.pending))
	})}
}

// Send posts an event, which is JSON. Send does not block. While 10,000 events or 8 MiB
// wait, and after Close, Send drops the event.
func (n *Notifier) Send(event []byte) {
	n.mu.Lock()
	full := n.closed || len(n.pending) >= maxEvents || n.bytes+len(event) > maxBytes
	if !full {
		n.pending = append(n.pending, event)
		n.bytes += len(event)
	}
	n.mu.Unlock()
	if full {
		n.results.WithLabelValues(dropped).Inc()
		return
	}
	n.signal()
}

func (n *Notifier) signal() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Close waits until no event waits, or ctx ends. Then Close drops the events that wait,
// and returns. Close may be called once.
func (n *Notifier) Close(ctx context.Context) {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.signal()
	select {
	case <-n.done:
	case <-ctx.Done():
	}
	n.cancel()
	<-n.done
	n.mu.Lock()
	defer n.mu.Unlock()
	if rest := len(n.pending); rest > 0 {
		n.results.WithLabelValues(dropped).Add(float64(rest))
		n.log.Warn("the last events could not be posted in time", "host", n.url.Host, "events", rest)
	}
	if idle, ok := n.transport.(interface{ CloseIdleConnections() }); ok {
		idle.CloseIdleConnections()
	}
}

// run posts events until the Notifier is closed and no event waits, or ctx ends.
func (n *Notifier) run(ctx context.Context) {
	defer close(n.done)
	for {
		event, closed := n.first()
		switch {
		case event != nil:
			if !n.deliver(ctx, event) {
				return
			}
			n.removeFirst()
		case closed:
			return
		default:
			select {
			case <-n.changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

// first returns the event that is posted next, or nil.
func (n *Notifier) first() (event []byte, closed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.pending) > 0 {
		event = n.pending[0]
	}
	return event, n.closed
}

func (n *Notifier) removeFirst() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bytes -= len(n.pending[0])
	n.pending[0] = nil
	n.pending = n.pending[1:]
}

// policy says how often an event is posted.
var policy = retry.Policy{
	Classify: func(err error) (retry.Class, time.Duration) {
		var refused *refusal
		if errors.As(err, &refused) {
			if slices.Contains(final, refused.status) {
				return retry.Permanent, -1
			}
			return retry.Transient, refused.retryAfter
		}
		return retry.Transient, -1
	},
	Budget:  map[retry.Class]time.Duration{retry.Transient: retryTimeout},
	MaxWait: maxWait,
}

// final are the statuses after which the same event is not posted again.
var final = []int{
	http.StatusBadRequest, http.StatusGone, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity,
}

// A refusal is an answer other than 2xx.
type refusal struct {
	status     int
	retryAfter time.Duration
}

func (r *refusal) Error() string {
	return fmt.Sprintf("the receiver answered %d %s", r.status, http.StatusText(r.status))
}

// deliver posts an event until the receiver has accepted the event, or the event is
// given up. It reports false if ctx ended before.
func (n *Notifier) deliver(ctx context.Context, event []byte) bool {
	id := "msg_" + uuid.NewString() // equal in all requests for the event
	attempts := policy.Start()
	for {
		err := n.post(ctx, id, event)
		if err == nil {
			n.results.WithLabelValues(delivered).Inc()
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		wait, again := attempts.Next(err)
		n.warn(err, again)
		if !again {
			n.results.WithLabelValues(failed).Inc()
			return true
		}
		if retry.Sleep(ctx, wait) != nil {
			return false
		}
	}
}

// warn logs that an event could not be posted, at most once in warnInterval.
func (n *Notifier) warn(err error, again bool) {
	if now := time.Now(); n.warned.IsZero() || now.Sub(n.warned) >= warnInterval {
		n.warned = now
		n.log.Warn("an event could not be posted", "host", n.url.Host, "again", again, "error", err)
	}
}

// post sends one request. The error contains neither the path nor the query of the URL.
func (n *Notifier) post(ctx context.Context, id string, event []byte) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	now := time.Now()
	signature, err := n.secret.Sign(id, now, event)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.url.String(), bytes.NewReader(event))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", backend.UserAgent)
	req.Header.Set(standardwebhooks.HeaderWebhookID, id)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	res, err := n.transport.RoundTrip(req) // in contrast to a Client, without redirects
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, 64<<10) // so that the connection can be used again
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return &refusal{res.StatusCode, backend.RetryAfter(res.Header, now)}
	}
	return nil
}
