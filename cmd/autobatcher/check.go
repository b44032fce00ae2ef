package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/provider"
)

// An upstream is where the batches run, and by whose rules.
type upstream struct {
	url     *url.URL
	profile provider.Profile
	named   bool // by --provider, instead of told from the URL
}

// upstream finds the provider, and refuses one that has no batches.
func (s *settings) upstream() (upstream, error) {
	u, err := url.Parse(s.baseURL)
	switch {
	case err != nil:
		return upstream{}, usagef("--base-url: %w", err)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return upstream{}, usagef("--base-url is %q; it must begin with https:// or http:// and name a host", s.baseURL)
	case u.Fragment != "" || u.User != nil:
		return upstream{}, usagef("--base-url must have neither a user nor a fragment")
	}
	up := upstream{url: u, profile: provider.ForURL(u)}
	if s.provider != "" {
		up.named = true
		if up.profile, err = provider.ByName(s.provider); err != nil {
			return upstream{}, usagef("--provider: %w", err)
		}
	}
	if up.profile.Refusal != "" {
		return upstream{}, usagef("%s", up.profile.Refusal)
	}
	return up, nil
}

// batching makes the library's options of the flags.
func (s *settings) batching(up upstream) (autobatcher.Options, error) {
	metadata, err := parseMetadata(s.metadata)
	if err != nil {
		return autobatcher.Options{}, err
	}
	window, err := s.window(up.profile)
	if err != nil {
		return autobatcher.Options{}, err
	}
	if s.batchSize < 1 {
		return autobatcher.Options{}, usagef("--batch-size is %d; it must be at least 1", s.batchSize)
	}
	if s.pollInterval <= 0 {
		return autobatcher.Options{}, usagef("--poll-interval must be more than 0")
	}
	o := autobatcher.Options{
		BatchSize: s.batchSize,
		// To the library 0 means its default; on the command line it means at once.
		BatchWindow:      max(time.Duration(s.batchWindow), 1),
		PollInterval:     time.Duration(s.pollInterval),
		CompletionWindow: window,
		Metadata:         metadata,
		CancelOnClose:    !s.keepBatches,
		KeepFor:          orNegative(time.Duration(s.keepFor)),
		JournalRequired:  s.required == yes,
	}
	if up.named {
		o.Provider = &up.profile
	}
	return o, s.apply(&o)
}

// parseMetadata reads KEY=VALUE items. Of a key given twice the last counts.
func parseMetadata(items []string) (map[string]string, error) {
	if len(items) == 0 {
		return nil, nil
	}
	metadata := make(map[string]string, len(items))
	for _, item := range items {
		name, value, ok := strings.Cut(item, "=")
		switch {
		case !ok:
			return nil, usagef("--batch-metadata %q: expected KEY=VALUE", item)
		case name == "":
			return nil, usagef("--batch-metadata %q: key must be non-empty", item)
		}
		metadata[name] = value
	}
	return metadata, nil
}

// modeWindows are the completion windows that --mode stands for.
var modeWindows = map[string]string{"async": "1h", "batch": "24h"}

// window is the completion window asked for; "" leaves it to the provider.
func (s *settings) window(p provider.Profile) (string, error) {
	window := s.completionWindow
	if s.mode != "" {
		meant, ok := modeWindows[s.mode]
		switch {
		case !ok:
			return "", usagef("--mode is %q; it must be async or batch", s.mode)
		case window != "" && window != meant:
			return "", usagef("--mode %s means --completion-window %s, not %s; give one of the two", s.mode, meant, window)
		}
		window = meant
	}
	if window == "" {
		return "", nil
	}
	if err := p.CheckWindow(window); err != nil {
		return "", &failure{exitUsage, err}
	}
	return window, nil
}

var errNoKey = errors.New("no API key: give --api-key, or set OPENAI_API_KEY (or try --sandbox, which needs none)")

// checkKey refuses to start without a key that pays.
func (s *settings) checkKey() error {
	if s.apiKey == "" && !s.forwardKey && !s.sandbox && !s.dryRun {
		return &failure{exitFailure, errNoKey}
	}
	return nil
}

// checkListener refuses an address at which strangers could spend the key, or
// the proxy would call itself.
func (s *settings) checkListener() error {
	if s.port < 0 || s.port > 65535 {
		return usagef("--port is %d; it must be 0 to 65535", s.port)
	}
	if !s.sandbox && s.isItself() {
		return usagef("the base URL %s is this very proxy: OPENAI_BASE_URL is meant for its clients here, so give --base-url", s.baseURL)
	}
	if isLoopback(s.host) || s.allowAnonymous || s.forwardKey || len(s.clientKeys) > 0 {
		return nil
	}
	return usagef("--host %s would let anybody who reaches it spend your key: add --client-key KEY, which callers must then show, "+
		"or --forward-key, so that each pays with a key of its own (or --allow-anonymous, to insist)", quoteEmpty(s.host))
}

// isItself reports whether the base URL leads back here, as it does in a shell
// where it was exported for the clients.
func (s *settings) isItself() bool {
	u, err := url.Parse(s.baseURL)
	if err != nil || s.port == 0 || u.Port() != fmt.Sprint(s.port) {
		return false
	}
	return isLoopback(u.Hostname()) || u.Hostname() == s.host
}

func quoteEmpty(s string) string {
	if s == "" {
		return `""`
	}
	return s
}

// isLoopback reports whether only this machine can reach host.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// checkCallers checks what limits callers.
func (s *settings) checkCallers() error {
	for _, key := range s.clientKeys {
		if strings.TrimSpace(key) == "" {
			return usagef("--client-key must not be empty")
		}
	}
	if s.maxQueued < 0 {
		return usagef("--max-queued is %d; it must not be negative", s.maxQueued)
	}
	if s.heartbeat <= 0 {
		return usagef("--heartbeat must be more than 0")
	}
	return nil
}

// address is where to listen.
func (s *settings) address() string { return net.JoinHostPort(s.host, fmt.Sprint(s.port)) }
