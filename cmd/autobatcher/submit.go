package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/submit"
)

// submitSettings are the values of the flags of submit.
type submitSettings struct {
	*settings
	output  string
	skipBad bool
}

func submitCommand(p process) *cli.Command {
	s := &submitSettings{settings: newSettings()}
	s.batchSize, s.logLevel = 50_000, "warn"
	return &cli.Command{
		Name:      "submit",
		Usage:     "run the requests of a Batch API input file",
		ArgsUsage: "FILE.jsonl",
		Description: `FILE has a request on each line, as the Batch API expects:

   {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {…}}

The file may be of any size, and may mix endpoints and models: autobatcher makes
as many batches as the provider's limits require, and sends a line again that no
batch answered. The results are written in the order of the input, in the format
of the Batch API. Failed requests are among the results.

All lines are checked before anything is sent. If submit is interrupted, the same
command goes on where it ended: results are kept in a file beside the output, and
batches that still run are found by the journal.

   autobatcher submit requests.jsonl -o results.jsonl`,
		Flags:              manualLayout(s.submitFlags(p), s.upstreamFlags(p), s.batchFlags(p), s.batchLaneFlags(p), s.retryFlags(p), s.journalFlags(p), s.limitFlags(p), s.logFlags(p)),
		SliceFlagSeparator: listSeparator,
		HideHelpCommand:    true,
		Action:             action(func(ctx context.Context, args []string) error { return s.submit(ctx, p, args) }),
		OnUsageError:       badUsage,
	}
}

func (s *submitSettings) submitFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "output", Aliases: []string{"o"}, Destination: &s.output, Category: aboutBasics,
			DefaultText: "FILE.results.jsonl",
			Usage:       "write the results to `OUT`, which must not exist",
		},
		&cli.BoolFlag{
			Name: "skip-bad-lines", Destination: &s.skipBad, Category: aboutBasics,
			Sources: p.source("AUTOBATCHER_SKIP_BAD_LINES"),
			Usage:   "send the good lines of a file that has bad lines, and write an error for each bad line; otherwise nothing is sent",
		},
	}
}

// submit runs the requests of a file.
func (s *submitSettings) submit(ctx context.Context, p process, args []string) error {
	if len(args) != 1 {
		return usagef("submit needs one input file: autobatcher submit FILE.jsonl [-o OUT.jsonl]")
	}
	p, flush := p.queued()
	defer flush()
	log, err := s.logger(p)
	if err != nil {
		return err
	}
	file, err := os.Open(args[0])
	if err != nil {
		return unreadable("", args[0], err)
	}
	defer file.Close() //nolint:errcheck // read only
	out, err := s.outputOf(args[0])
	if err != nil {
		return err
	}
	up, err := s.upstream()
	if err != nil {
		return err
	}
	in, err := s.check(p, file, up)
	if err != nil {
		return err
	}
	part, err := submit.OpenPart(out+".part", in)
	switch {
	case errors.Is(err, submit.ErrInUse):
		return fmt.Errorf("%w; wait until that process ends, or give another output with -o", err)
	case errors.Is(err, submit.ErrOtherInput), errors.Is(err, submit.ErrNotPart):
		return fmt.Errorf("%w; remove it to begin anew, or give another output with -o", err)
	case err != nil:
		return unwritable(s.outputFlag(), out, err)
	}
	if err := s.runJob(ctx, p, log, &submit.Job{
		Input: in, Part: part, Batched: up.profile.Batches, MaxCalls: maxCalls(s.memoryBudget()), MaxBytes: s.memoryBudget() / 2,
	}, file); err != nil {
		return errors.Join(err, part.Close())
	}
	if err := part.Finish(out); err != nil {
		return err
	}
	fmt.Fprintln(p.stderr, "autobatcher: the results are in "+printableLine(out))
	if _, ok := part.Counts(); ok < in.Requests+len(in.Bad) {
		return &failure{exitFailure, nil}
	}
	return nil
}

// callMemory is what a waiting call takes beside its body, at the most.
const callMemory = 16 << 10

// maxCalls is the number of calls that half of a memory budget has room for.
func maxCalls(budget int64) int { return int(min(max(budget/2/callMemory, 1000), 200_000)) }

// outputOf returns the path of the output. An output that exists is an error: it may
// be the result of an earlier run.
func (s *submitSettings) outputOf(input string) (string, error) {
	out := s.output
	if out == "" {
		out = strings.TrimSuffix(input, ".jsonl") + ".results.jsonl"
	}
	switch _, err := os.Lstat(out); {
	case err == nil:
		return "", usagef("%s exists; give another output with -o, or remove it", out)
	case !errors.Is(err, fs.ErrNotExist):
		return "", unwritable(s.outputFlag(), out, err)
	}
	return out, nil
}

// outputFlag is the flag of a message about the output, or "" if the name of the
// output follows from that of the input.
func (s *submitSettings) outputFlag() string {
	if s.output == "" {
		return ""
	}
	return "-o"
}

// maxNamed is the number of bad lines that are named.
const maxNamed = 20

// check reads the whole file, names its bad lines, and goes back to its beginning.
func (s *submitSettings) check(p process, file *os.File, up upstream) (*submit.Input, error) {
	in, err := submit.Check(file, up.profile.Batches)
	if err != nil {
		return nil, unreadable("", file.Name(), err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("%s must be a file, since submit reads it twice: %w", file.Name(), err)
	}
	for _, bad := range in.Bad[:min(len(in.Bad), maxNamed)] {
		fmt.Fprintf(p.stderr, "autobatcher: %s: %s\n", printableLine(file.Name()), printableLine(bad.String()))
	}
	if more := len(in.Bad) - maxNamed; more > 0 {
		fmt.Fprintf(p.stderr, "autobatcher: … and %s more\n", count(int64(more), "bad line", "bad lines"))
	}
	switch {
	case len(in.Bad) > 0 && !s.skipBad:
		return nil, fmt.Errorf("nothing was sent, since %s cannot be sent; correct the file, or give --skip-bad-lines", count(int64(len(in.Bad)), "line", "lines"))
	case in.Requests == 0:
		return nil, fmt.Errorf("%s has no request", file.Name())
	}
	return in, nil
}

// errStopped is why a job ends at a signal.
var errStopped = errors.New("interrupted; the same command goes on where this one ended")

// runJob runs a job until each request has a result, or a signal arrives.
func (s *submitSettings) runJob(ctx context.Context, p process, log *slog.Logger, job *submit.Job, file io.Reader) error {
	b, err := s.newBackend(ctx, p, log, func(autobatcher.Event) {})
	if err != nil {
		return err
	}
	job.Do, job.Secrets = b.send, b.secrets
	job.AllQueued = func() { _ = b.transport.Flush(ctx) } // the callers get the errors
	if already, _ := job.Part.Counts(); already > 0 {
		fmt.Fprintf(p.stderr, "autobatcher: %s of an earlier run are kept\n", count(int64(already), "result", "results"))
	}
	began := time.Now()
	snapshot := func() status { return b.jobStatus(job, time.Since(began)) }
	show := showProgress(p.stderr, snapshot)
	caught, ignore := p.notify(stopSignals...)
	defer ignore()
	ended := make(chan struct{})
	var jobErr error
	go func() {
		defer close(ended)
		jobErr = job.Run(ctx, file)
	}()
	stopped := false
	select {
	case <-ended:
	case <-caught:
		stopped = true
	}
	signals, done := &signalQueue{caught: caught}, make(chan struct{})
	signals.received()
	go p.forceOn(signals, done, b.runningBatches, log)
	show.stop()
	b.close()
	<-ended // each call has its answer, or an error
	close(done)
	if err = jobErr; stopped && err != nil {
		err = errStopped
	}
	fmt.Fprintln(p.stderr, snapshot().jobSummary())
	if s.sandbox {
		fmt.Fprintln(p.stderr, "autobatcher: "+fromSandbox)
	}
	fmt.Fprint(p.stderr, b.remains(s.keepBatches))
	if n, why := job.Unsent(); err == nil && n > 0 {
		return fmt.Errorf("%s could not be sent, and the same command tries again: %s", count(int64(n), "request", "requests"), why)
	}
	return err
}

// send sends a request of a job.
func (b *backend) send(ctx context.Context, r submit.Request, queued func()) (*http.Response, error) {
	ctx = caller.Observe(ctx, queuedObserver(queued))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.served.Upstream.JoinPath(r.Endpoint).String(), bytes.NewReader(r.Body))
	if err != nil {
		return nil, err
	}
	req.Header = credentialHeader(b.served.AuthHeader, b.served.APIKey)
	req.Header.Set("Content-Type", "application/json")
	return b.served.Transport.RoundTrip(req)
}

// A queuedObserver is called when its call is queued.
type queuedObserver func()

// Waiting implements caller.Observer.
func (f queuedObserver) Waiting(caller.Call) { f() }

// Hold implements caller.Observer. A job limits the bytes of its requests by itself.
func (queuedObserver) Hold() func() { return nil }

// jobSummary returns the last line of output of a job.
func (s status) jobSummary() string {
	return fmt.Sprintf("autobatcher: %s of %s (%s failed); %s; %s prompt and %s completion tokens; %s",
		comma(s.Answered+s.Failed), count(s.calls(), "request has a result", "requests have results"), comma(s.Failed), s.sent(),
		comma(s.PromptTokens), comma(s.CompletionTokens), s.Elapsed.Round(100*time.Millisecond)) + s.costs()
}

// jobStatus returns a snapshot of the progress of a job.
func (b *backend) jobStatus(job *submit.Job, elapsed time.Duration) status {
	done, ok := job.Part.Counts()
	prompt, completion := job.Tokens()
	stats := b.transport.Stats()
	running := stats.Running
	return status{
		Waiting: max(job.Input.Requests+len(job.Input.Bad)-done-running, 0), InFlight: running,
		Answered: int64(ok), Failed: int64(done - ok), Batches: b.batches.count(), Resumed: b.batches.resumedCount(),
		PromptTokens: prompt, CompletionTokens: completion,
		Done: b.batches.done(), Running: b.batches.running(), Left: b.batches.left(time.Now()),
		Cost: stats.Cost, Costs: stats.Costs, Prices: b.prices, Sandbox: b.sandbox != nil, Elapsed: elapsed,
	}
}
