package main

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/dashboard"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

// A backend is what answers behind a listener: the proxy, the Transport that
// batches for it, the page, and perhaps the sandbox in the place of a provider.
type backend struct {
	transport *autobatcher.Transport
	proxy     *proxy.Proxy
	page      *dashboard.Dashboard
	sandbox   *rehearsal // or nil
	log       *slog.Logger
}

// newBackend checks the settings and puts a backend together. onEvent gets the
// events after the page and the metrics did.
func (s *settings) newBackend(log *slog.Logger, onEvent func(autobatcher.Event)) (*backend, error) {
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
	if b.transport, err = autobatcher.New(o); err != nil {
		return nil, &failure{exitUsage, err}
	}
	b.page = dashboard.New(dashboard.Options{Stats: b.transport.Stats})
	b.proxy, err = proxy.New(s.proxyOptions(b, up))
	return b, err
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
}
