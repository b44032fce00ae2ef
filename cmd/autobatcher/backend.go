package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/autobatcher/autobatcher"
	api "github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/dashboard"
	"github.com/autobatcher/autobatcher/internal/lane"
	notifier "github.com/autobatcher/autobatcher/internal/notify"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/internal/redact"
	"github.com/autobatcher/autobatcher/internal/webhook"
)

// A backend answers the requests of a listener: the proxy, the Transport that
// batches the proxy's calls, the live status page, and the sandbox if the sandbox
// replaces the provider.
type backend struct {
	transport  *autobatcher.Transport
	proxy      *proxy.Proxy
	counted    atomic.Pointer[proxy.Proxy] // proxy, for the page, which is made before; nil until then
	page       *dashboard.Dashboard
	sandbox    *embeddedSandbox   // or nil
	keyFile    *keyFile           // or nil
	journal    *monitoredJournal  // or nil
	notifier   *notifier.Notifier // or nil
	verifier   *webhook.Verifier  // of the provider's webhooks; or nil
	secrets    *redact.Secrets    // hidden in the log, in events and in answers
	authHeader string             // of the provider
	served     proxy.Options      // how requests are sent to the provider
	lane       string             // how calls are sent, for messages
	realtime   bool               // every call is sent in real time
	prices     string             // file of --prices
	batches    batchList
	files      openFiles
	log        *slog.Logger
}

// newBackend checks the settings and returns a new backend. onEvent is called for
// each event after the page and the metrics have recorded the event.
func (s *settings) newBackend(ctx context.Context, p process, log *slog.Logger, onEvent func(autobatcher.Event)) (*backend, error) {
	up, err := s.upstream()
	if err != nil {
		return nil, err
	}
	if err := s.checkCallers(); err != nil {
		return nil, err
	}
	p.limitHeap()
	secrets := redact.New()
	log = slog.New(secrets.Handler(log.Handler()))
	b := &backend{secrets: secrets, files: divide(openFileLimit()), log: log, prices: s.prices}
	var base http.RoundTripper = b.files.newUpstreamTransport()
	if s.sandbox {
		if up, base, err = b.startSandbox(up, time.Duration(s.turnaround), time.Duration(s.flexDelay)); err != nil {
			return nil, err
		}
	}
	b.authHeader = up.profile.AuthHeader
	o, err := s.batching(up)
	if err != nil {
		return nil, err
	}
	if b.keyFile, err = s.needKey(log); err != nil {
		return nil, err
	}
	b.lane = describeLane(o, up.profile)
	b.realtime = o.Mode == autobatcher.ModeRealtime || up.profile.SinglePrice != ""
	if b.keyFile != nil {
		b.keyFile.configure(&o, b.authHeader, b.secrets)
	}
	o.Base, o.Logger = proxy.LimitRealtime(base, b.files.flex()), log
	o.OnEvent = b.distribute(onEvent)
	if err := b.openWebhooks(&s.webhookSettings); err != nil {
		return nil, err
	}
	if err := b.openTransport(ctx, p, s, o); err != nil {
		return nil, err
	}
	b.page = dashboard.New(dashboard.Options{
		Stats: b.transport.Stats, Realtime: b.realtimeCalls, Sandbox: s.sandbox,
		Provider: up.profile.Name, Version: version(), Journal: s.journalKind(b.journal != nil),
		Cancel: !s.forwardKey && len(s.pageKeys) == 0,
	})
	if b.journal != nil {
		b.learn(ctx, up.account(), cmp.Or(o.CompletionWindow, up.profile.DefaultWindow))
	}
	b.served = s.proxyOptions(p, b, up)
	if !s.forwardKey {
		b.served.CancelBatch = b.canceller(up, base, b.served.APIKey)
	}
	if b.proxy, err = proxy.New(b.served); err != nil {
		return nil, err
	}
	b.counted.Store(b.proxy)
	return b, b.resume(b.served)
}

// distribute returns the handler of the Transport's events, which calls onEvent last.
func (b *backend) distribute(onEvent func(autobatcher.Event)) func(autobatcher.Event) {
	return func(e autobatcher.Event) {
		e.Error = b.secrets.Text(e.Error)
		b.batches.onEvent(e)
		b.page.OnEvent(e)
		b.proxy.OnEvent(e)
		b.notify(e)
		onEvent(e)
	}
}

// realtimeCalls returns the counts of the calls in real time, for the page.
func (b *backend) realtimeCalls() lane.RealtimeCalls {
	if p := b.counted.Load(); p != nil {
		return p.Realtime()
	}
	return lane.RealtimeCalls{}
}

// needKey loads the key for the provider, unless the callers bring their keys or no key
// is needed.
func (s *settings) needKey(log *slog.Logger) (*keyFile, error) {
	if s.forwardKey || s.sandbox {
		return nil, nil
	}
	key, err := s.loadKey(log)
	if errors.Is(err, errNoKey) {
		return nil, fmt.Errorf("%w (or try --sandbox, which needs no key)", err)
	}
	return key, err
}

// openTransport opens the journal, and the Transport with the journal.
func (b *backend) openTransport(ctx context.Context, p process, s *settings, o autobatcher.Options) error {
	store, err := s.openJournal(ctx, p, b.log)
	if err != nil {
		return err
	}
	if store != nil {
		b.journal = &monitoredJournal{Store: store}
		o.Journal = b.journal
	}
	if b.transport, err = autobatcher.New(o); err != nil {
		b.closeJournal()
		return &failure{exitUsage, err}
	}
	return nil
}

// startSandbox starts the sandbox and returns the sandbox as the upstream.
func (b *backend) startSandbox(up upstream, turnaround, flexDelay time.Duration) (upstream, http.RoundTripper, error) {
	sandbox, err := newEmbeddedSandbox(up.profile.Name, turnaround, flexDelay, b.log)
	if err != nil {
		return up, nil, err
	}
	b.sandbox = sandbox
	return upstream{url: sandbox.base(), profile: sandbox.profile, named: true}, sandbox.Transport(), nil
}

// proxyOptions returns the options of the proxy in front of b.transport.
func (s *settings) proxyOptions(p process, b *backend, up upstream) proxy.Options {
	metrics := prometheus.NewRegistry()
	if b.notifier != nil {
		metrics.MustRegister(b.notifier.Collectors()...)
	}
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.registerOutputs(metrics)
	if b.journal != nil {
		b.journal.register(metrics)
	}
	o := proxy.Options{
		Upstream: up.url, APIKey: s.apiKey, AuthHeader: b.authHeader, ForwardKey: s.forwardKey,
		Profile: up.callProfile(), Secrets: b.secrets, Transport: b.transport, Stats: b.transport.Stats, Webhooks: b.verifier, Wake: b.transport.Wake,
		MaxBody: int64(s.maxBody), MaxQueued: s.maxQueued,
		MaxMemory: s.memoryBudget(), MaxPassedThrough: b.files.passing(), PassThroughTimeout: s.passTimeout(up.profile),
		Grace: time.Duration(s.grace), Heartbeat: time.Duration(s.heartbeat),
		Page: b.page, Metrics: metrics, Logger: b.log,
		OnFailure: func(f proxy.Failure) { b.page.OnFailure(dashboard.Failure(f)) }, BatchCallers: b.page.Callers,
	}
	s.restrict(&o, s.host)
	if b.realtime { // no call costs more than the operator has chosen, so that each endpoint is open
		o.Profile.Endpoints = []string{"/chat/completions", "/embeddings", "/responses"}
	}
	if s.sandbox && !s.forwardKey {
		o.APIKey = "sandbox-key" // a real key must not be used with the sandbox
	}
	if b.keyFile != nil {
		o.Transport = &keyFileTransport{next: b.transport, file: b.keyFile, authHeader: o.AuthHeader, first: o.APIKey}
	}
	return o
}

// canceller returns a function that asks the provider to cancel a batch, or a call at the
// flex tier that runs in the background. The Transport notices the cancellation when it
// polls the batch.
func (b *backend) canceller(up upstream, base http.RoundTripper, key string) func(context.Context, string) error {
	return func(ctx context.Context, batchID string) error {
		key := key
		if b.keyFile != nil {
			key = b.keyFile.current()
		}
		var client api.Backend = up.client(key, base)
		if b.batches.isFlex(batchID) {
			client = up.flexClient(key, base)
		}
		b.log.Info("cancelling a batch, as asked on the page", "batch", batchID)
		return client.Cancel(ctx, api.Handle{BatchID: batchID})
	}
}

// close shuts the backend down: new calls are refused, the running batches are
// cancelled or left to run, waiting callers get an error, and the journal is
// closed.
func (b *backend) close() {
	b.proxy.Drain()
	_ = b.transport.Close() // always nil
	b.closeNotifier()
	b.page.Close()
	if b.sandbox != nil {
		b.sandbox.Close()
	}
	b.closeJournal()
}

// runningBatches returns the ids of the batches that run on if the process ends now.
// The sandbox's batches end with the process.
func (b *backend) runningBatches() []string {
	if b.sandbox != nil {
		return nil
	}
	return b.batches.running()
}

// closeJournal closes the journal, if the backend has a journal.
func (b *backend) closeJournal() {
	if b.journal != nil {
		if err := b.journal.Close(); err != nil {
			b.log.Warn("the journal did not close cleanly", "error", err)
		}
	}
}

// logJournal logs the place of the journal.
func (b *backend) logJournal(p process, place string) {
	if b.journal != nil {
		b.log.Info("journal opened", "journal", p.placeName(place))
	}
}

// resume continues the batches that an earlier process left running. With the
// callers' own keys, the first call with each key does this instead.
func (b *backend) resume(o proxy.Options) error {
	if b.journal == nil || o.ForwardKey {
		return nil
	}
	return b.transport.Recover(o.Upstream.String(), credentialHeader(o.AuthHeader, o.APIKey))
}
