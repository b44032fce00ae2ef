package main

import (
	"log/slog"
	"net"
	"net/http"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher/internal/proxy"
)

// limitFlags are flags of serve and run that limit what callers can use.
func (s *settings) limitFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.GenericFlag{
			Name: "max-memory", Value: &s.maxMemory, Category: aboutCallers,
			DefaultText: "half of the memory of the machine or the container",
			Sources:     p.source("AUTOBATCHER_MAX_MEMORY"),
			Usage:       "hold at most `SIZE` of request bodies, such as 500MB or 2GiB; a call whose body does not fit gets 503 and Retry-After",
		},
		&cli.GenericFlag{
			Name: "pass-through-timeout", Value: &s.passThroughTimeout, Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_PASS_THROUGH_TIMEOUT"),
			Usage:   "end a request that passes through when no byte of the request or of the response arrives for `SECONDS`, or a duration, and a WebSocket on which no byte passes",
		},
	}
}

// newUpstreamTransport returns a transport with at most f.upstream connections to the
// provider. A request waits while all connections are in use.
func (f openFiles) newUpstreamTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxConnsPerHost = f.upstream
	return t
}

// limitConnections limits the connections of callers so that the process keeps file
// descriptors for the provider. refused is called for each refused connection.
func (f openFiles) limitConnections(l net.Listener, log *slog.Logger, refused func()) net.Listener {
	if f.connections == 0 {
		return l
	}
	if f.limit < lowOpenFiles {
		log.Warn("the limit on open files is low: callers with more connections get 503; raise the limit, for example with ulimit -n 65536",
			"open_files", f.limit, "connections", f.connections, "requests_passing_through", f.passing())
	}
	return proxy.LimitConnections(l, f.connections, refused)
}
