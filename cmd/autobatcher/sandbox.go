package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/provider"
)

// manners are the providers that the embedded server can imitate, by the name
// of their profile.
var manners = map[string]func() batchtest.Manners{
	"openai":     batchtest.OpenAI,
	"doubleword": batchtest.Doubleword,
	"llm-d":      batchtest.LLMD,
	"azure":      batchtest.Azure,
	"together":   batchtest.Together,
}

func mannerNames() string {
	return strings.Join(slices.Sorted(maps.Keys(manners)), ", ")
}

// A rehearsal is the embedded server in the place of an upstream.
type rehearsal struct {
	*batchtest.Server
	profile provider.Profile
}

// rehearse makes the embedded server behave like the provider of that name, or
// like OpenAI where it cannot.
func rehearse(name string, log *slog.Logger) (*rehearsal, error) {
	if manners[name] == nil {
		name = "openai"
	}
	profile, err := provider.ByName(name)
	if err != nil {
		return nil, fmt.Errorf("the sandbox: %w", err)
	}
	return &rehearsal{
		Server:  batchtest.New(batchtest.Options{Manners: manners[name](), Answer: obey, Logf: logf(log)}),
		profile: profile,
	}, nil
}

// base is the base URL by which the Transport knows the server.
func (r *rehearsal) base() *url.URL {
	u, err := url.Parse(r.URL)
	if err != nil {
		panic(err) // batchtest made it
	}
	return u
}

func logf(log *slog.Logger) func(string, ...any) {
	return func(format string, args ...any) { log.Warn(fmt.Sprintf(format, args...)) }
}

// sandboxSettings are the flags of the sandbox command.
type sandboxSettings struct {
	settings   // of which it has some
	turnaround seconds
	rate       int
	failRate   float64
	manners    string
}

func sandboxCommand(p process) *cli.Command {
	s := &sandboxSettings{settings: *newSettings(), turnaround: seconds(10 * time.Second)}
	return &cli.Command{
		Name:  "sandbox",
		Usage: "play a Batch API on a port of its own, to try any batch client without an account",
		Description: `It takes files and batches as a provider does, and answers what it is asked
by saying it back. Nothing is kept beyond its end, nothing leaves this
machine, and any API key will do; each sees its own files and batches only.

` + steering,
		Flags:        described(s.sandboxFlags(p), s.logFlags(p)),
		Action:       noArguments(func(ctx context.Context) error { return s.serve(ctx, p) }),
		OnUsageError: badUsage,
	}
}

func (s *sandboxSettings) sandboxFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "host", Destination: &s.host, Value: "127.0.0.1", Category: aboutSandbox,
			Sources: p.source("AUTOBATCHER_SANDBOX_HOST"),
			Usage:   "listen on `ADDRESS`",
		},
		&cli.IntFlag{
			Name: "port", Destination: &s.port, Value: 8081, Category: aboutSandbox,
			Sources: p.source("AUTOBATCHER_SANDBOX_PORT"),
			Usage:   "listen on port `N`; 0 for any free one",
		},
		&cli.GenericFlag{
			Name: "turnaround", Value: &s.turnaround, Category: aboutSandbox,
			Sources: p.source("AUTOBATCHER_SANDBOX_TURNAROUND"),
			Usage:   "take `SECONDS`, or a duration, for each batch",
		},
		&cli.IntFlag{
			Name: "rate", Destination: &s.rate, DefaultText: "no limit", Category: aboutSandbox,
			Sources: p.source("AUTOBATCHER_SANDBOX_RATE"),
			Usage:   "answer 429 beyond `N` requests a minute from one key",
		},
		&cli.FloatFlag{
			Name: "fail-rate", Destination: &s.failRate, Category: aboutSandbox,
			Sources: p.source("AUTOBATCHER_SANDBOX_FAIL_RATE"),
			Usage:   "let this `SHARE` of the lines fail, 0 to 1",
		},
		&cli.StringFlag{
			Name: "manners", Destination: &s.manners, Value: "openai", Category: aboutSandbox,
			Sources: p.source("AUTOBATCHER_SANDBOX_MANNERS"),
			Usage:   "behave like provider `NAME`: " + mannerNames(),
		},
	}
}

func (s *sandboxSettings) check() error {
	switch {
	case s.port < 0 || s.port > 65535:
		return usagef("--port is %d; it must be 0 to 65535", s.port)
	case s.rate < 0:
		return usagef("--rate is %d; it must not be negative", s.rate)
	case !(s.failRate >= 0 && s.failRate <= 1): // NaN too
		return usagef("--fail-rate is %v; it must be 0 to 1", s.failRate)
	case manners[s.manners] == nil:
		return usagef("--manners is %q; there are %s", s.manners, mannerNames())
	}
	return nil
}

// serve plays the Batch API until it is told to stop.
func (s *sandboxSettings) serve(ctx context.Context, p process) error {
	if err := s.check(); err != nil {
		return err
	}
	log, err := s.logger(p)
	if err != nil {
		return err
	}
	api := batchtest.New(batchtest.Options{
		Manners: manners[s.manners](), Answer: obey, Turnaround: time.Duration(s.turnaround),
		FailRate: s.failRate, RequestsPerMinute: s.rate, Logf: logf(log),
	})
	listener, err := listen(ctx, s.address())
	if err != nil {
		return err
	}
	base := "http://" + reachable(listener.Addr()) + (&rehearsal{Server: api}).base().Path
	announce := func() { fmt.Fprintf(p.stdout, sandboxGreeting, base) }
	return service{proxy.NewServer(api), listener, log, announce, api.Close}.untilStopped(ctx, p)
}

const sandboxGreeting = `A Batch API to play with is listening. For an OpenAI client:

  export OPENAI_BASE_URL=%[1]s
  export OPENAI_API_KEY=anything

For autobatcher in front of it:

  autobatcher serve --base-url %[1]s --api-key anything

Interrupt it to stop. It forgets everything then.
`
