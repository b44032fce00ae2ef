package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/urfave/cli/v3"
)

// healthPatience is shorter than what container engines give a probe.
const healthPatience = 5 * time.Second

// healthCommand probes a serve on this machine, for container images that have
// neither a shell nor curl. It reads the variables that serve reads.
func healthCommand(p process) *cli.Command {
	s := newSettings()
	return &cli.Command{
		Name:         "health",
		Usage:        "ask a serve on this machine whether it is well; exit 0 if so",
		Hidden:       true,
		Flags:        s.listenFlags(p)[:2],
		Action:       noArguments(s.probe),
		OnUsageError: badUsage,
	}
}

func (s *settings) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthPatience)
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
	// No proxy: the answer must come from this machine.
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // read only
	if body, _ := io.ReadAll(io.LimitReader(res.Body, 200)); res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: %s", url, res.Status, body)
	}
	return nil
}
