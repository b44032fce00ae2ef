package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

func runCommand(p process) *cli.Command {
	s := newSettings()
	s.host, s.logLevel = "127.0.0.1", "warn"
	firstArgument := 1
	return &cli.Command{
		Name:      "run",
		Usage:     "run a program whose OpenAI calls are batched",
		ArgsUsage: "-- program [arguments]",
		Description: `The program finds a proxy of its own by OPENAI_BASE_URL, OPENAI_API_BASE and
OPENAI_API_KEY, and needs no change, as long as it makes its calls side by
side: calls made one after the other ride in a batch each. It owns stdin and
stdout; progress and a summary are said on stderr. Signals reach it, and its
exit code is that of autobatcher run.

   autobatcher run -- python evaluate.py --model gpt-4o-mini
   autobatcher run --dry-run -- python evaluate.py`,
		Flags:              described(s.upstreamFlags(p), s.batchFlags(p), s.leftoverFlags(p), s.journalFlags(p), s.callerFlags(p), s.runFlags(p), s.logFlags(p)),
		SliceFlagSeparator: listSeparator,
		HideHelpCommand:    true,
		StopOnNthArg:       &firstArgument, // what follows the program is the program's
		Action:             action(func(ctx context.Context, args []string) error { return s.run(ctx, p, args) }),
		OnUsageError:       badUsage,
	}
}

func (s *settings) runFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{
			Name: "dry-run", Destination: &s.dryRun, Category: aboutUpstream,
			Sources: p.source("AUTOBATCHER_DRY_RUN"),
			Usage:   "send nothing: answer each call with an error, and say at the end what there would have been",
		},
	}
}

// run runs the program beside a proxy of its own.
func (s *settings) run(ctx context.Context, p process, program []string) error {
	if len(program) == 0 {
		return usagef("run needs a program to run: autobatcher run [options] -- program [arguments]")
	}
	log, err := s.logger(p)
	if err != nil {
		return err
	}
	key := "autobatcher-" + rand.Text()
	s.clientKeys = []string{key}
	if s.dryRun {
		return s.rehearseRun(ctx, p, log, key, program)
	}
	var batches atomic.Int64
	b, err := s.newBackend(ctx, p, log, func(e autobatcher.Event) {
		if e.Name == autobatcher.BatchSubmitted {
			batches.Add(1)
		}
	})
	if err != nil {
		return err
	}
	began := time.Now()
	look := func() status { return b.status(batches.Load(), time.Since(began)) }
	show := showProgress(p.stderr, look)
	code, err := s.beside(ctx, p, log, b.proxy, key, program, func() {
		show.stop() // before anything can end the process at once: it borrows the terminal
		b.close()
	})
	if err == nil {
		fmt.Fprintln(p.stderr, look().summary())
	}
	return exitAs(code, err)
}

// exitAs ends the command as its child ended.
func exitAs(code int, err error) error {
	if err == nil && code == 0 {
		return nil
	}
	return &failure{code, err}
}

// beside runs the program while handler answers its calls, and calls shutdown
// when it has ended.
func (s *settings) beside(ctx context.Context, p process, log *slog.Logger, handler http.Handler, key string, program []string, shutdown func()) (int, error) {
	listener, err := listen(ctx, s.address())
	if err != nil {
		shutdown()
		return exitFailure, err
	}
	server := proxy.NewServer(handler)
	go server.Serve(listener) //nolint:errcheck // ends with ErrServerClosed, below
	signals, ignore := p.notify(passedSignals...)
	defer ignore()
	env := childEnv(p.env, "http://"+listener.Addr().String()+"/v1", key)
	code, err := p.runChild(ctx, program, env, signals)

	done := make(chan struct{})
	defer close(done)
	go p.forceOn(signals, done, log)
	shutdown()
	if stopErr := stop(server); stopErr != nil {
		log.Warn("the proxy did not stop cleanly", "error", stopErr)
	}
	return code, err
}

// status reads how far everything is.
func (b *backend) status(batches int64, elapsed time.Duration) status {
	stats, usage := b.transport.Stats(), b.proxy.Usage()
	return status{
		Waiting: stats.Queued, InFlight: stats.Running,
		Answered: usage.Answered, Failed: usage.Failed, Batches: batches,
		PromptTokens: usage.PromptTokens, CompletionTokens: usage.CompletionTokens,
		Elapsed: elapsed,
	}
}
