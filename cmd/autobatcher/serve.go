package main

import (
	"context"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher/internal/proxy"
)

func serveCommand(p process) *cli.Command {
	s := newSettings()
	return &cli.Command{
		Name:  "serve",
		Usage: "be an OpenAI-compatible proxy that batches",
		Description: `Programs use it as their OPENAI_BASE_URL, with any OPENAI_API_KEY:

   POST …/chat/completions, …/embeddings, …/responses   answered by batches
   GET /health                                          ok
   GET /metrics                                         for Prometheus
   GET /                                                what goes on, as a page
   everything else                                      passed through

What becomes of batches is told on stdout, an event a line, as JSON. The log
goes to stderr. SIGINT or SIGTERM end it, cancelling the batches that run
unless told to keep them; a second one ends it at once.`,
		Flags:              described(s.upstreamFlags(p), s.batchFlags(p), s.leftoverFlags(p), s.journalFlags(p), s.listenFlags(p), s.callerFlags(p), s.logFlags(p)),
		SliceFlagSeparator: listSeparator,
		Action:             noArguments(func(ctx context.Context) error { return s.serve(ctx, p) }),
		OnUsageError:       badUsage,
	}
}

func (s *settings) serve(ctx context.Context, p process) error {
	log, err := s.logger(p)
	if err != nil {
		return err
	}
	if err := s.checkListener(); err != nil {
		return err
	}
	// A reader of stdout that goes away costs its events, not the proxy.
	_, ignore := p.notify(syscall.SIGPIPE)
	defer ignore()
	listener, err := listen(ctx, s.address())
	if err != nil {
		return err
	}
	b, err := s.newBackend(ctx, p, log, eventLines(p.stdout, log))
	if err != nil {
		_ = listener.Close() // nobody has called yet
		return err
	}
	url := "http://" + reachable(listener.Addr())
	announce := func() {
		log.Info("listening", "address", listener.Addr().String(), "export", "OPENAI_BASE_URL="+url+"/v1", "page", url+"/")
		b.sayJournal(p, s.journal)
	}
	return service{proxy.NewServer(b.proxy), listener, log, announce, b.close}.untilStopped(ctx, p)
}
