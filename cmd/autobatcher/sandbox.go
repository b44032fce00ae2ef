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
	"github.com/autobatcher/autobatcher/provider"
)

// behaviors are the provider behaviors of the embedded server, by the name of the
// provider's profile.
var behaviors = map[string]func() batchtest.Behavior{
	"openai":     batchtest.OpenAI,
	"doubleword": batchtest.Doubleword,
	"llm-d":      batchtest.LLMD,
	"azure":      batchtest.Azure,
	"together":   batchtest.Together,
	"voyage":     batchtest.Voyage,
}

func behaviorNames() string {
	return strings.Join(slices.Sorted(maps.Keys(behaviors)), ", ")
}

// fromSandbox is in the output of each command that answers from the sandbox.
const fromSandbox = "the answers are made up by the sandbox, not by a model, and cost nothing"

// An embeddedSandbox is the embedded server as the upstream of a proxy.
type embeddedSandbox struct {
	*batchtest.Server
	profile provider.Profile
}

// newEmbeddedSandbox starts the embedded server with the behavior of the named
// provider, or with OpenAI's behavior if the server cannot behave like the
// provider.
func newEmbeddedSandbox(name string, turnaround, flexDelay time.Duration, log *slog.Logger) (*embeddedSandbox, error) {
	if behaviors[name] == nil {
		name = "openai"
	}
	profile, err := provider.ByName(name)
	if err != nil {
		return nil, fmt.Errorf("the sandbox: %w", err)
	}
	return &embeddedSandbox{
		Server: batchtest.New(batchtest.Options{
			Behavior: behaviors[name](), Answer: answerLine, Turnaround: turnaround, FlexDelay: flexDelay, Logf: logf(log),
		}),
		profile: profile,
	}, nil
}

// base returns the base URL of the server.
func (e *embeddedSandbox) base() *url.URL {
	u, err := url.Parse(e.URL)
	if err != nil {
		panic(err) // a URL of batchtest is valid
	}
	return u
}

func logf(log *slog.Logger) func(string, ...any) {
	return func(format string, args ...any) { log.Warn(fmt.Sprintf(format, args...)) }
}

// sandboxSettings are the flags of the sandbox command.
type sandboxSettings struct {
	settings // only host, port, turnaround, flexDelay and the log flags
	rate     int
	failRate float64
	behavior string
}

func sandboxCommand(p process) *cli.Command {
	s := &sandboxSettings{settings: *newSettings()}
	s.turnaround = seconds(10 * time.Second)
	return &cli.Command{
		Name:  "sandbox",
		Usage: "serve a Batch API for trials of any batch client without an account",
		Description: `The sandbox accepts files and batches as a provider does, and answers each
prompt with an echo of the prompt. The sandbox stores nothing beyond the end
of the process and sends nothing to other machines. Any API key is accepted;
each key has access to its own files and batches only.

` + directivesHelp,
		Flags:        manualLayout(s.sandboxFlags(p), s.logFlags(p)),
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
			Usage:   "listen on port `N`; 0 for any free port",
		},
		&cli.GenericFlag{
			Name: "turnaround", Value: &s.turnaround, Category: aboutSandbox,
			Sources: p.source("AUTOBATCHER_SANDBOX_TURNAROUND"),
			Usage:   "complete each batch after `SECONDS`, or a duration",
		},
		&cli.GenericFlag{
			Name: "flex-delay", Value: &s.flexDelay, Category: aboutSandbox,
			Sources: p.source("AUTOBATCHER_SANDBOX_FLEX_DELAY"),
			Usage:   "answer each call at the flex tier after `SECONDS`, or a duration; real-time calls are answered at once",
		},
		&cli.IntFlag{
			Name: "rate", Destination: &s.rate, DefaultText: "no limit", Category: aboutSandbox,
			Sources: p.source("AUTOBATCHER_SANDBOX_RATE"),
			Usage:   "answer more than `N` requests a minute with the same key with 429",
		},
		&cli.FloatFlag{
			Name: "fail-rate", Destination: &s.failRate, Category: aboutSandbox,
			Sources: p.source("AUTOBATCHER_SANDBOX_FAIL_RATE"),
			Usage:   "fail this `SHARE` of the lines, 0 to 1",
		},
		&cli.StringFlag{
			Name: "behavior", Destination: &s.behavior, Value: "openai", Category: aboutSandbox,
			Sources: p.source("AUTOBATCHER_SANDBOX_BEHAVIOR"),
			Usage:   "behave like the provider `NAME`: " + behaviorNames(),
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
	case behaviors[s.behavior] == nil:
		return usagef("--behavior is %q; it must be one of %s", s.behavior, behaviorNames())
	}
	return nil
}

// serve serves the Batch API until the process is stopped.
func (s *sandboxSettings) serve(ctx context.Context, p process) error {
	if err := s.check(); err != nil {
		return err
	}
	p, flush := p.queued()
	defer flush()
	log, err := s.logger(p)
	if err != nil {
		return err
	}
	api := batchtest.New(batchtest.Options{
		Behavior: behaviors[s.behavior](), Answer: answerLine, Turnaround: time.Duration(s.turnaround), FlexDelay: time.Duration(s.flexDelay),
		FailRate: s.failRate, RequestsPerMinute: s.rate, Logf: logf(log),
	})
	listener, err := listen(ctx, s.address())
	if err != nil {
		return err
	}
	base := "http://" + reachable(listener.Addr()) + (&embeddedSandbox{Server: api}).base().Path
	announce := func() { fmt.Fprintf(p.stdout, sandboxGreeting, base) }
	return service{newServer(api, log), listener, log, announce, api.Close, noBatches}.untilStopped(ctx, p)
}

const sandboxGreeting = `The sandbox, a Batch API for trials, is listening. For an OpenAI client:

  export OPENAI_BASE_URL=%[1]s
  export OPENAI_API_KEY=anything

For autobatcher in front of the sandbox:

  OPENAI_API_KEY=anything autobatcher serve --base-url %[1]s

Ctrl-C stops the sandbox and deletes all files and batches.
`

// noBatches is the list of running batches of a command without batches.
func noBatches() []string { return nil }
