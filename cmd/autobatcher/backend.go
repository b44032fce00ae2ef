package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/dashboard"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/journal"
)

// A backend is what answers behind a listener: the proxy, the Transport that
// batches for it, the page, and perhaps the sandbox in the place of a provider.
type backend struct {
	transport *autobatcher.Transport
	proxy     *proxy.Proxy
	page      *dashboard.Dashboard
	sandbox   *rehearsal    // or nil
	journal   journal.Store // or nil
	log       *slog.Logger
}

// newBackend checks the settings and puts a backend together. onEvent gets the
// events after the page and the metrics did.
func (s *settings) newBackend(ctx context.Context, p process, log *slog.Logger, onEvent func(autobatcher.Event)) (*backend, error) {
	up, err := s.upstream()
	if err != nil {
		return nil, err
	}
	if err := s.checkCallers(); err != nil {
		return nil, err
	}
	b := &backend{log: log}
	var base http.RoundTripper
	if s.sandbox {
		if up, base, err = b.rehearse(up); err != nil {
			return nil, err
		}
	}
	o, err := s.batching(up)
	if err != nil {
		return nil, err
	}
	if err := s.checkKey(); err != nil {
		return nil, err
	}
	o.Base, o.Logger = base, log
	o.OnEvent = func(e autobatcher.Event) {
		b.page.OnEvent(e)
		b.proxy.OnEvent(e)
		onEvent(e)
	}
	if b.journal, err = s.openJournal(ctx, p, log); err != nil {
		return nil, err
	}
	o.Journal = b.journal
	if b.transport, err = autobatcher.New(o); err != nil {
		b.closeJournal()
		return nil, &failure{exitUsage, err}
	}
	b.page = dashboard.New(dashboard.Options{Stats: b.transport.Stats})
	served := s.proxyOptions(b, up)
	if b.proxy, err = proxy.New(served); err != nil {
		return nil, err
	}
	return b, b.resume(served)
}

// rehearse puts the sandbox in the place of the upstream.
func (b *backend) rehearse(up upstream) (upstream, http.RoundTripper, error) {
	sandbox, err := rehearse(up.profile.Name, b.log)
	if err != nil {
		return up, nil, err
	}
	b.sandbox = sandbox
	return upstream{url: sandbox.base(), profile: sandbox.profile, named: true}, sandbox.Transport(), nil
}

func (s *settings) proxyOptions(b *backend, up upstream) proxy.Options {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	o := proxy.Options{
		Upstream: up.url, APIKey: s.apiKey, AuthHeader: up.profile.AuthHeader, ForwardKey: s.forwardKey,
		ClientKeys: s.clientKeys, Transport: b.transport, Stats: b.transport.Stats,
		MaxBody: int64(s.maxBody), MaxQueued: s.maxQueued,
		Grace: time.Duration(s.grace), Heartbeat: time.Duration(s.heartbeat),
		Page: b.page, Metrics: metrics, Logger: b.log,
	}
	if s.sandbox && !s.forwardKey {
		o.APIKey = "sandbox" // a real key has no business in a rehearsal
	}
	return o
}

// close ends all calls, in an orderly way: those that come from now on are
// told to come back later, upstream batches are cancelled or kept, those who
// wait are told.
func (b *backend) close() {
	b.proxy.Drain()
	_ = b.transport.Close() // always nil
	b.page.Close()
	if b.sandbox != nil {
		b.sandbox.Close()
	}
	b.closeJournal()
}

func (b *backend) closeJournal() {
	if b.journal != nil {
		if err := b.journal.Close(); err != nil {
			b.log.Warn("the journal did not close cleanly", "error", err)
		}
	}
}

// sayJournal tells an operator where the journal is.
func (b *backend) sayJournal(p process, place string) {
	if b.journal != nil {
		b.log.Info("what is paid for is remembered", "journal", p.placeName(place))
	}
}

// resume carries on with the batches that an earlier process left running. With
// the callers' own keys that waits for the first call of each.
func (b *backend) resume(o proxy.Options) error {
	if b.journal == nil || o.ForwardKey {
		return nil
	}
	value := o.APIKey
	if o.AuthHeader == "Authorization" {
		value = "Bearer " + value
	}
	header := make(http.Header)
	header.Set(o.AuthHeader, value)
	return b.transport.Recover(o.Upstream.String(), header)
}
