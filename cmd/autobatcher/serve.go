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
		Usage: "serve an OpenAI-compatible proxy that batches calls",
		Description: `Programs use the proxy as their OPENAI_BASE_URL, with any OPENAI_API_KEY:

   POST …/chat/completions, …/embeddings, …/responses   answered by batches,
                                                        as are the other calls
                                                        that the provider batches
   POST …/responses with "background": true             an id at once; GET, DELETE and
                                                        POST …/cancel of the id later;
                                                        other calls with the header
                                                        Prefer: respond-async likewise
   GET /health                                          ok
   GET /metrics                                         metrics for Prometheus
   GET /                                                live status page
   POST /autobatcher/webhook                            webhooks of the provider
   all other requests                                   passed through

With --client-key, only requests that neither show nor change anything of other
callers are passed through. Without keys of callers, serve answers programs on
this machine, and refuses web pages.

serve writes the events of batches to stdout, as one JSON object per line, and
the log to stderr. SIGINT or SIGTERM shut serve down: running batches are
cancelled, unless --keep-active-batches-on-close is set; with a journal, those of
calls in the background run on. A second signal, at least a second after the
first, ends serve at once.`,
		Flags:              manualLayout(s.upstreamFlags(p), s.batchFlags(p), s.laneFlags(p), s.retryFlags(p), s.journalFlags(p), s.listenFlags(p), s.accessFlags(p), s.webhookFlags(p), s.notifyFlags(p), s.callerFlags(p), s.limitFlags(p), s.logFlags(p)),
		SliceFlagSeparator: listSeparator,
		Action:             noArguments(func(ctx context.Context) error { return s.serve(ctx, p) }),
		OnUsageError:       badUsage,
	}
}

func (s *settings) serve(ctx context.Context, p process) error {
	p, flush := p.queued()
	defer flush()
	log, err := s.logger(p)
	if err != nil {
		return err
	}
	if err := s.checkListener(); err != nil {
		return err
	}
	// If the reader of stdout closes the pipe, events are lost, and the proxy goes on.
	_, ignore := p.notify(syscall.SIGPIPE)
	defer ignore()
	listener, err := listen(ctx, s.address())
	if err != nil {
		return err
	}
	b, err := s.newBackend(ctx, p, log, eventLines(p.stdout, log))
	if err != nil {
		_ = listener.Close() // no call was accepted yet
		return err
	}
	url := "http://" + reachable(listener.Addr())
	announce := func() {
		log.Info("listening", "address", listener.Addr().String(), "export", "OPENAI_BASE_URL="+url+"/v1", "page", url+"/", "lane", b.lane)
		if s.sandbox {
			log.Warn("sandbox: " + fromSandbox)
		}
		b.logJournal(p, s.journal)
		if b.served.Webhooks != nil {
			log.Info("webhooks of the provider are received", "path", proxy.WebhookPath)
		}
	}
	return service{newServer(b.proxy, b.log), b.files.limitConnections(listener, log, b.proxy.ConnectionRefused), log, announce, b.close, b.runningBatches}.untilStopped(ctx, p)
}
