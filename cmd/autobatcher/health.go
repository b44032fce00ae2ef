package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/urfave/cli/v3"
)

// healthTimeout is not longer than the timeout that deploy/Dockerfile sets for the
// probe.
const healthTimeout = 5 * time.Second

// healthCommand probes a serve process on this machine, for container images that
// have neither a shell nor curl. The command reads the same variables as serve.
func healthCommand(p process) *cli.Command {
	s := newSettings()
	return &cli.Command{
		Name:         "health",
		Usage:        "probe the serve process on this machine; exit 0 if serve is healthy",
		Hidden:       true,
		Flags:        s.listenFlags(p)[:2],
		Action:       noArguments(s.probe),
		OnUsageError: badUsage,
	}
}

// probe requests /health.
func (s *settings) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	host := s.host
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	url := "http://" + net.JoinHostPort(host, fmt.Sprint(s.port)) + "/health"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// Without an HTTP proxy: the answer must come from this machine.
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return fmt.Errorf("no answer from %s; is autobatcher serve running, with this --host and --port? %w", url, errors.Unwrap(err))
	}
	defer res.Body.Close() //nolint:errcheck // read only
	if body, _ := io.ReadAll(io.LimitReader(res.Body, 200)); res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s: %s", url, res.Status, body)
	}
	return nil
}
