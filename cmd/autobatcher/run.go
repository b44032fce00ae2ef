package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher"
)

func runCommand(p process) *cli.Command {
	s := newSettings()
	s.host, s.logLevel = "127.0.0.1", "warn"
	firstArgument := 1
	return &cli.Command{
		Name:      "run",
		Usage:     "run a program and batch the program's OpenAI calls",
		ArgsUsage: "-- program [arguments]",
		Description: `The program runs unchanged. OPENAI_BASE_URL, OPENAI_API_BASE and OPENAI_API_KEY
direct the program's calls to a proxy that serves this program only. The
program must make its calls concurrently: sequential calls are sent in one
batch each. The program uses stdin and stdout; autobatcher writes progress and
a summary to stderr. Signals are passed on to the program, a signal to stop once
in a second, and autobatcher run exits with the program's exit code.

   autobatcher run -- python evaluate.py --model gpt-4o-mini
   autobatcher run --dry-run -- python evaluate.py`,
		Flags:              manualLayout(s.upstreamFlags(p), s.batchFlags(p), s.laneFlags(p), s.retryFlags(p), s.journalFlags(p), s.notifyFlags(p), s.callerFlags(p), s.limitFlags(p), s.runFlags(p), s.logFlags(p)),
		SliceFlagSeparator: listSeparator,
		HideHelpCommand:    true,
		StopOnNthArg:       &firstArgument, // all arguments after the program belong to the program
		Action:             action(func(ctx context.Context, args []string) error { return s.run(ctx, p, args) }),
		OnUsageError:       badUsage,
	}
}

func (s *settings) runFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{
			Name: "dry-run", Destination: &s.dryRun, Category: aboutBasics,
			Sources: p.source("AUTOBATCHER_DRY_RUN"),
			Usage:   "send no calls to the provider: answer each call with an echo from the sandbox, and print at the end which batches would have been sent",
		},
	}
}

// run runs the program with a proxy for the program.
func (s *settings) run(ctx context.Context, p process, program []string) error {
	if len(program) == 0 {
		return usagef("run needs a program to run: autobatcher run [options] -- program [arguments]")
	}
	p, flush := p.queued()
	defer flush()
	log, err := s.logger(p)
	if err != nil {
		return err
	}
	key := "autobatcher-" + rand.Text()
	s.trustProgram(key)
	if s.dryRun {
		return s.runDry(ctx, p, log, key, program)
	}
	counter, once := &callCounter{}, sync.Once{}
	var b *backend
	b, err = s.newBackend(ctx, p, log, func(e autobatcher.Event) {
		if e.Name != autobatcher.BatchSubmitted {
			return
		}
		if hint := counter.hint(b.batches.count()); hint != "" {
			once.Do(func() { fmt.Fprintln(p.stderr, "autobatcher: hint: "+hint) })
		}
	})
	if err != nil {
		return err
	}
	counter.Handler = b.proxy
	if s.mode != "" {
		fmt.Fprintln(p.stderr, "autobatcher: lane: "+b.lane)
	}
	began := time.Now()
	snapshot := func() status { return b.status(time.Since(began)) }
	show := showProgress(p.stderr, snapshot)
	shutdown := func() {
		show.stop() // first, since a second signal ends the process: the terminal must be restored before
		b.close()
	}
	code, err := s.runWithProxy(ctx, p, log, answerer{b, counter, shutdown}, key, program)
	if err == nil {
		fmt.Fprintln(p.stderr, snapshot().summary())
		if s.sandbox {
			fmt.Fprintln(p.stderr, "autobatcher: "+fromSandbox)
		}
		fmt.Fprint(p.stderr, b.remains(s.keepBatches))
	}
	return exitAs(code, err)
}

// exitAs returns the error that makes the command exit with the child's exit code.
func exitAs(code int, err error) error {
	if err == nil && code == 0 {
		return nil
	}
	return &failure{code, err}
}

// An answerer answers the program's calls.
type answerer struct {
	*backend
	handler  http.Handler // in front of the proxy of backend
	shutdown func()       // closes backend; called after the program has ended
}

// runWithProxy runs the program while a answers the program's calls.
func (s *settings) runWithProxy(ctx context.Context, p process, log *slog.Logger, a answerer, key string, program []string) (int, error) {
	listener, err := listen(ctx, s.address())
	if err != nil {
		a.shutdown()
		return exitFailure, err
	}
	server := newServer(a.handler, log)
	listener = a.files.limitConnections(listener, log, a.proxy.ConnectionRefused)
	go server.Serve(listener) //nolint:errcheck // ends with ErrServerClosed, below
	caught, ignore := p.notify(passedSignals...)
	defer ignore()
	signals := &signalQueue{caught: caught}
	env := childEnv(p.env, "http://"+listener.Addr().String(), key, a.authHeader)
	code, err := p.runChild(ctx, program, env, signals)

	done := make(chan struct{})
	defer close(done)
	go p.forceOn(signals, done, a.runningBatches, log)
	if stopErr := stop(server, a.shutdown); stopErr != nil {
		log.Warn("the proxy was stopped before all answers were written", "error", stopErr)
	}
	return code, err
}

// status returns a snapshot of the progress.
func (b *backend) status(elapsed time.Duration) status {
	stats, usage := b.transport.Stats(), b.proxy.Usage()
	flex, _ := b.batches.flexCount()
	return status{
		Waiting: stats.Queued, InFlight: stats.Running,
		Answered: usage.Answered, Failed: usage.Failed, Batches: b.batches.count(), Resumed: b.batches.resumedCount(), Flex: flex, Passed: usage.Realtime, Asked: usage.Asked, Realtime: b.realtime,
		PromptTokens: usage.PromptTokens, CompletionTokens: usage.CompletionTokens,
		Done: b.batches.done(), Running: b.batches.running(), Left: b.batches.left(time.Now()),
		Cost: stats.Cost, Costs: stats.Costs, Prices: b.prices, Refused: stats.Budget.Refused, Sandbox: b.sandbox != nil,
		Elapsed: elapsed,
	}
}
