package main

import (
	"net"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher/internal/proxy"
)

// accessSettings are the values of the flags that say who may call, and what a
// caller may choose.
type accessSettings struct {
	clientKeys         []string
	pageKeys           []string
	allowAnonymous     bool
	allowHosts         []string
	allowAccountRoutes bool
	clientHeaders      string // on, off, or "" for the default
	oneCaller          bool   // the client keys belong to the program of run
}

// accessFlags are flags of serve only: the proxy of run serves one program.
func (s *settings) accessFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{
			Name: "client-key", Destination: &s.clientKeys, Category: aboutBasics,
			Sources: p.listSource("AUTOBATCHER_CLIENT_KEY"),
			Usage: "answer only callers that send `KEY` as their API key; repeatable. Callers with different keys share batches, but never answers. " +
				"/health needs no key",
		},
		&cli.StringSliceFlag{
			Name: "page-key", Destination: &s.pageKeys, Category: aboutCallers,
			DefaultText: "the client keys; with --forward-key alone, page and metrics are closed",
			Sources:     p.listSource("AUTOBATCHER_PAGE_KEY"),
			Usage:       "show the page and the metrics only to callers that send `KEY`; repeatable",
		},
		&cli.StringSliceFlag{
			Name: "allow-host", Destination: &s.allowHosts, Category: aboutCallers,
			Sources: p.listSource("AUTOBATCHER_ALLOW_HOST"),
			Usage: "without keys of callers, answer requests to `NAME`, too; repeatable. Loopback names, the value of --host and the address " +
				"of the connection are always names of the proxy; other names are refused, since a web page could use them",
		},
		&cli.BoolFlag{
			Name: "allow-account-routes", Destination: &s.allowAccountRoutes, Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_ALLOW_ACCOUNT_ROUTES"),
			Usage: "with --client-key, open all routes of the provider, such as /files and /batches, by which each caller can read, change and delete " +
				"what other callers have made",
		},
		&cli.StringFlag{
			Name: "client-headers", Destination: &s.clientHeaders, Category: aboutCallers,
			DefaultText: "off with --client-key, else on",
			Sources:     p.source("AUTOBATCHER_CLIENT_HEADERS"),
			Usage:       "`on|off`: whether callers may choose price and deadline of a call, by the headers Autobatcher-… or by a service_tier; off refuses such calls with 400, and calls that the provider does not batch with 404",
		},
		&cli.BoolFlag{
			Name: "forward-key", Destination: &s.forwardKey, Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_FORWARD_KEY"),
			Usage:   "pay with the key of each caller instead of --api-key; callers with different keys do not share batches",
		},
		&cli.BoolFlag{
			Name: "allow-anonymous", Destination: &s.allowAnonymous, Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_ALLOW_ANONYMOUS"),
			Usage:   "allow a --host that other machines can reach without client keys, so that any caller can spend the key; add --allow-host for each name that callers use",
		},
	}
}

// checkAccess checks the flags of accessFlags.
func (s *accessSettings) checkAccess() error {
	blank := func(text string) bool { return strings.TrimSpace(text) == "" }
	switch {
	case slices.ContainsFunc(s.clientKeys, blank):
		return usagef("--client-key must not be empty")
	case slices.ContainsFunc(s.pageKeys, blank):
		return usagef("--page-key must not be empty")
	case !slices.Contains([]string{"", "on", "off"}, s.clientHeaders):
		return usagef("--client-headers is %q; it must be on or off", s.clientHeaders)
	}
	for _, host := range s.allowHosts {
		if _, _, err := net.SplitHostPort(host); blank(host) || err == nil || strings.ContainsAny(host, "/*") {
			return usagef("--allow-host is %q; it must be the name of one host, without a port", host)
		}
	}
	return nil
}

// restrict copies the settings to the options of a proxy.
func (s *accessSettings) restrict(o *proxy.Options, host string) {
	o.ClientKeys, o.PageKeys = s.clientKeys, s.pageKeys
	o.AllowHosts = append(slices.Clone(s.allowHosts), host)
	o.AllowAccountRoutes, o.OneCaller = s.allowAccountRoutes, s.oneCaller
	o.RefuseClientHeaders = s.clientHeaders == "off" || s.clientHeaders == "" && len(s.clientKeys) > 0
}

// trustProgram allows everything to the only program that has the client key, as
// run does: the program could use the provider's key as well. The key is new in each
// run, and the calls of an earlier run are the same caller's.
func (s *accessSettings) trustProgram(key string) {
	s.clientKeys, s.oneCaller, s.allowAccountRoutes, s.clientHeaders = []string{key}, true, true, "on"
}
