package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/provider"
)

// An upstream is the API that runs the batches.
type upstream struct {
	url     *url.URL
	profile provider.Profile
	named   bool // the profile is from --provider, not from the URL
}

// upstream returns the API of --base-url. A provider without an
// OpenAI-compatible Batch API is an error.
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
			if near := nearest(s.provider, provider.Names()); near != "" {
				return upstream{}, usagef("--provider: %w; did you mean %s?", err, near)
			}
			return upstream{}, usagef("--provider: %w", err)
		}
	}
	if up.profile.Refusal != "" {
		return upstream{}, usagef("%s", up.profile.Refusal)
	}
	return up, checkBase(u, up.profile)
}

// callProfile returns the profile of calls whose path names a deployment, where the
// provider has deployments: Azure's two APIs share their hosts, and the path of a
// call decides.
func (up upstream) callProfile() provider.Profile {
	if up.named {
		return up.profile
	}
	deployed := *up.url
	deployed.Path += "/deployments/name"
	return provider.ForURL(&deployed)
}

// batching returns the library's options for the flags.
func (s *settings) batching(up upstream) (autobatcher.Options, error) {
	metadata, err := parseMetadata(s.metadata)
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
		// 0 means "at once" on the command line, and "the default" in the library.
		BatchWindow:     max(time.Duration(s.batchWindow), 1),
		PollInterval:    time.Duration(s.pollInterval),
		Metadata:        metadata,
		CancelOnClose:   !s.keepBatches,
		KeepFor:         orNegative(time.Duration(s.keepFor)),
		JournalRequired: s.required == yes,
		Budget:          autobatcher.Budget(s.budget),
	}
	if o.Prices, err = readPrices(s.prices); err != nil {
		return o, &failure{exitUsage, err}
	}
	if up.named {
		o.Provider = &up.profile
	}
	if err := s.applyLane(&o, up.profile); err != nil {
		return o, err
	}
	return o, s.apply(&o)
}

// readPrices reads the price map of --prices. Without a path, the map is nil.
func readPrices(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, unreadable("--prices", path, err)
	}
	if _, err := price.Parse(text); err != nil {
		return nil, fmt.Errorf("--prices %s: %w; the format is that of LiteLLM's model_prices_and_context_window.json", path, err)
	}
	return text, nil
}

// parseMetadata parses KEY=VALUE items. If a key occurs twice, the last value
// counts.
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

var errNoKey = errors.New("no API key: set OPENAI_API_KEY, or give --api-key-file")

// loadKey finds the key that pays for batches. With --api-key-file, the key is
// stored in s.apiKey, and the file is returned; otherwise the file is nil.
func (s *settings) loadKey(log *slog.Logger) (*keyFile, error) {
	if s.apiKeyFile != "" {
		file, err := openKeyFile(s.apiKeyFile, log)
		if err != nil {
			if e := (*fs.PathError)(nil); errors.As(err, &e) {
				return nil, unreadable("--api-key-file", s.apiKeyFile, err)
			}
			return nil, fmt.Errorf("--api-key-file: %w", err)
		}
		s.apiKey = file.current()
		return file, nil
	}
	if s.apiKey == "" {
		return nil, errNoKey
	}
	return nil, nil
}

// checkListener returns an error if other machines could spend the key, or if the
// proxy would call itself.
func (s *settings) checkListener() error {
	if s.port < 0 || s.port > 65535 {
		return usagef("--port is %d; it must be 0 to 65535", s.port)
	}
	if !s.sandbox && s.isItself() {
		return usagef("the base URL %s is the address of this proxy: OPENAI_BASE_URL is set for the proxy's clients, so give --base-url", s.baseURL)
	}
	if isLoopback(s.host) || s.allowAnonymous || s.forwardKey || len(s.clientKeys) > 0 {
		return nil
	}
	return usagef("--host %s would let callers on other machines spend your key: add --client-key KEY, which callers must then send, "+
		"or --forward-key, so that each caller pays with the caller's own key (or allow this with --allow-anonymous)", quoteEmpty(s.host))
}

// isItself reports whether the base URL is the address of this proxy, as in a shell
// where OPENAI_BASE_URL was exported for clients.
func (s *settings) isItself() bool {
	u, err := url.Parse(s.baseURL)
	if err != nil || s.port == 0 || u.Port() != fmt.Sprint(s.port) {
		return false
	}
	return isLoopback(u.Hostname()) || u.Hostname() == s.host
}

// quoteEmpty returns s, or "" in quotes.
func quoteEmpty(s string) string {
	if s == "" {
		return `""`
	}
	return s
}

// isLoopback reports whether host can be reached from this machine only.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// checkCallers checks the flags that limit callers.
func (s *settings) checkCallers() error {
	if err := s.checkAccess(); err != nil {
		return err
	}
	if s.maxQueued < 0 {
		return usagef("--max-queued is %d; it must not be negative", s.maxQueued)
	}
	if s.passThroughTimeout <= 0 {
		return usagef("--pass-through-timeout must be more than 0")
	}
	if s.heartbeat <= 0 {
		return usagef("--heartbeat must be more than 0")
	}
	return nil
}

// address returns the address to listen on.
func (s *settings) address() string { return net.JoinHostPort(s.host, fmt.Sprint(s.port)) }
