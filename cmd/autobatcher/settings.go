package main

import (
	"time"

	"github.com/urfave/cli/v3"
)

// settings are what the flags of serve and run say, unchecked.
type settings struct {
	// Upstream.
	baseURL    string
	apiKey     string
	provider   string
	sandbox    bool
	forwardKey bool // serve only

	// Batches.
	batchSize        int
	batchWindow      seconds
	pollInterval     seconds
	completionWindow string
	mode             string
	metadata         []string
	keepBatches      bool

	leftoverSettings
	journalSettings

	// Callers; the first four are serve's only.
	host           string
	port           int
	clientKeys     []string
	allowAnonymous bool
	maxBody        size
	maxQueued      int
	grace          grace
	heartbeat      seconds

	// Logs.
	logFormat string
	logLevel  string

	// run only.
	dryRun bool
}

const defaultBaseURL = "https://api.openai.com/v1"

func newSettings() *settings {
	return &settings{
		batchWindow:  seconds(10 * time.Second),
		pollInterval: seconds(5 * time.Second),
		grace:        grace(240 * time.Second),
		heartbeat:    seconds(15 * time.Second),
		logLevel:     "info",

		leftoverSettings: newLeftoverSettings(),
		journalSettings:  journalSettings{keepFor: seconds(24 * time.Hour)},
	}
}

// The categories of flags, in the order of the help.
const (
	aboutBatches   = "Batches"
	aboutCallers   = "Callers"
	aboutDeadlines = "Deadlines"
	aboutJournal   = "Journal"
	aboutLogs      = "Logs"
	aboutUpstream  = "Upstream"
	aboutSandbox   = "Sandbox"
)

func (s *settings) upstreamFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "base-url", Destination: &s.baseURL, Value: defaultBaseURL, Category: aboutUpstream,
			Sources: p.source("OPENAI_BASE_URL"),
			Usage:   "where the batches run: the `URL` of an OpenAI-compatible API",
		},
		&cli.StringFlag{
			Name: "api-key", Destination: &s.apiKey, Category: aboutUpstream,
			Sources: p.source("OPENAI_API_KEY"),
			Usage:   "the `KEY` that pays for the batches",
		},
		&cli.StringFlag{
			Name: "provider", Destination: &s.provider, Category: aboutUpstream,
			Sources: p.source("AUTOBATCHER_PROVIDER"),
			Usage:   "whose limits and spelling apply, by `NAME`, where the host of the base URL does not tell",
		},
		&cli.BoolFlag{
			Name: "sandbox", Destination: &s.sandbox, Category: aboutUpstream,
			Sources: p.source("AUTOBATCHER_SANDBOX"),
			Usage:   "rehearse: a made-up Batch API with the manners of the provider answers; nothing leaves this machine, no key is needed",
		},
	}
}

func (s *settings) batchFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{
			Name: "batch-size", Destination: &s.batchSize, Value: 1000, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_BATCH_SIZE"),
			Usage:   "send a batch at once when it holds `N` calls",
		},
		&cli.GenericFlag{
			Name: "batch-window", Value: &s.batchWindow, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_BATCH_WINDOW"),
			Usage:   "collect calls for `SECONDS`, or a duration such as 1m30s, from the first of a batch",
		},
		&cli.GenericFlag{
			Name: "poll-interval", Value: &s.pollInterval, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_POLL_INTERVAL"),
			Usage:   "look at a running batch every `SECONDS`, or a duration",
		},
		&cli.StringFlag{
			Name: "completion-window", Destination: &s.completionWindow, Category: aboutBatches,
			DefaultText: "the provider's: 1h at Doubleword, 24h elsewhere",
			Sources:     p.source("AUTOBATCHER_COMPLETION_WINDOW"),
			Usage:       "the `WINDOW` asked of the provider, its deadline and price tier; any string is passed on",
		},
		&cli.StringFlag{
			Name: "mode", Destination: &s.mode, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_MODE"),
			Usage:   "`MODE`: async for a completion window of 1h, batch for one of 24h",
		},
		&cli.StringSliceFlag{
			Name: "batch-metadata", Destination: &s.metadata, Category: aboutBatches,
			Sources: p.listSource("AUTOBATCHER_BATCH_METADATA"),
			Usage:   "attach `KEY=VALUE` to every batch and its events; repeatable",
		},
		&cli.BoolFlag{
			Name: "keep-active-batches-on-close", Destination: &s.keepBatches, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_KEEP_ACTIVE_BATCHES_ON_CLOSE"),
			Usage:   "let running batches run on, and cost, at the end, instead of cancelling them",
		},
	}
}

func (s *settings) callerFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.GenericFlag{
			Name: "max-body", Value: &s.maxBody, Category: aboutCallers,
			DefaultText: "what the provider takes in one line",
			Sources:     p.source("AUTOBATCHER_MAX_BODY"),
			Usage:       "refuse request bodies larger than `SIZE`, such as 10MB or 1GiB, with 413",
		},
		&cli.IntFlag{
			Name: "max-queued", Destination: &s.maxQueued, Category: aboutCallers,
			DefaultText: "no limit",
			Sources:     p.source("AUTOBATCHER_MAX_QUEUED"),
			Usage:       "refuse calls with 429 and Retry-After while `N` wait to be sent",
		},
		&cli.GenericFlag{
			Name: "grace", Value: &s.grace, Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_GRACE"),
			Usage:   "stay silent for `SECONDS`, a duration, or never; then begin the answer and keep it alive (shorter than a load balancer's idle timeout)",
		},
		&cli.GenericFlag{
			Name: "heartbeat", Value: &s.heartbeat, Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_HEARTBEAT"),
			Usage:   "keep an answer alive every `SECONDS`, or a duration, once it began",
		},
	}
}

func (s *settings) listenFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "host", Destination: &s.host, Value: "127.0.0.1", Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_HOST"),
			Usage:   "listen on `ADDRESS`; beyond loopback --client-key or --forward-key must say who may call",
		},
		&cli.IntFlag{
			Name: "port", Destination: &s.port, Value: 8080, Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_PORT"),
			Usage:   "listen on port `N`; 0 for any free one",
		},
		&cli.StringSliceFlag{
			Name: "client-key", Destination: &s.clientKeys, Category: aboutCallers,
			Sources: p.listSource("AUTOBATCHER_CLIENT_KEY"),
			Usage:   "answer only callers that show `KEY` as their API key; repeatable. /health stays open",
		},
		&cli.BoolFlag{
			Name: "forward-key", Destination: &s.forwardKey, Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_FORWARD_KEY"),
			Usage:   "pay with the key of each caller instead of --api-key; each key has batches of its own",
		},
		&cli.BoolFlag{
			Name: "allow-anonymous", Destination: &s.allowAnonymous, Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_ALLOW_ANONYMOUS"),
			Usage:   "listen beyond loopback even though anybody there can then spend the key",
		},
	}
}

func (s *settings) logFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "log-format", Destination: &s.logFormat, Value: "auto", Category: aboutLogs,
			Sources: p.source("AUTOBATCHER_LOG_FORMAT"),
			Usage:   "`FORMAT` of the log: text, json, or auto, which is text on a terminal and JSON elsewhere",
		},
		&cli.StringFlag{
			Name: "log-level", Destination: &s.logLevel, Value: s.logLevel, Category: aboutLogs,
			Sources: p.source("AUTOBATCHER_LOG_LEVEL"),
			Usage:   "leave out of the log what is below `LEVEL`: debug, info, warn or error; debug says why calls pass through",
		},
	}
}
