package main

import (
	"time"

	"github.com/urfave/cli/v3"
)

// settings holds the values of the flags of serve and run, not yet checked.
type settings struct {
	// Upstream.
	baseURL    string
	apiKey     string
	apiKeyFile string // takes precedence over apiKey
	provider   string
	sandbox    bool
	turnaround seconds // of the sandbox
	flexDelay  seconds // of the sandbox
	forwardKey bool    // serve only

	// Batches.
	batchSize        int
	batchWindow      seconds
	pollInterval     seconds
	completionWindow string
	metadata         []string
	keepBatches      bool
	prices           string // file
	budget           budget

	laneSettings
	retrySettings
	journalSettings
	webhookSettings

	// Callers; host, port and accessSettings are flags of serve only.
	host string
	port int
	accessSettings
	maxBody   size
	maxQueued int
	grace     grace
	heartbeat seconds

	// Limits.
	maxMemory          size // 0: half of the available memory
	passThroughTimeout seconds

	// Logs.
	logFormat string
	logLevel  string

	// run only.
	dryRun bool
}

const defaultBaseURL = "https://api.openai.com/v1"

func newSettings() *settings {
	return &settings{
		batchSize:    1000,
		batchWindow:  seconds(10 * time.Second),
		pollInterval: seconds(5 * time.Second),
		grace:        grace(240 * time.Second),
		heartbeat:    seconds(15 * time.Second),

		passThroughTimeout: seconds(15 * time.Minute),

		logLevel: "info",

		laneSettings:    newLaneSettings(),
		retrySettings:   newRetrySettings(),
		journalSettings: journalSettings{keepFor: seconds(24 * time.Hour)},
	}
}

// The categories of flags in the help.
const (
	aboutBasics    = "Basics" // comes first, since categories are sorted
	aboutBatches   = "Batches"
	aboutCallers   = "Callers"
	aboutDeadlines = "Deadlines"
	aboutJournal   = "Journal"
	aboutLogs      = "Logs"
	aboutUpstream  = "Upstream"
	aboutSandbox   = "Sandbox"
	aboutWebhooks  = "Webhooks"
)

func (s *settings) upstreamFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "base-url", Destination: &s.baseURL, Value: defaultBaseURL, Category: aboutBasics,
			Sources: p.source("OPENAI_BASE_URL"),
			Usage:   "`URL` of the OpenAI-compatible API that runs the batches",
		},
		&cli.StringFlag{
			Name: "api-key", Destination: &s.apiKey, Category: aboutUpstream,
			Sources: p.source("OPENAI_API_KEY"),
			Usage:   "`KEY` that pays for the batches; other users of this machine can see arguments, so prefer the variable or --api-key-file",
		},
		&cli.StringFlag{
			Name: "api-key-file", Destination: &s.apiKeyFile, Category: aboutBasics,
			Sources: p.source("AUTOBATCHER_API_KEY_FILE"),
			Usage: "read the key from `FILE`, and read FILE again when FILE changes; takes precedence over --api-key. " +
				"The path of FILE identifies the account, so that the batches of an old key continue with the new key",
		},
		&cli.StringFlag{
			Name: "provider", Destination: &s.provider, Category: aboutUpstream,
			Sources: p.source("AUTOBATCHER_PROVIDER"),
			Usage:   "provider to assume when the host of the base URL is unknown, by `NAME`",
		},
		&cli.BoolFlag{
			Name: "sandbox", Destination: &s.sandbox, Category: aboutBasics,
			Sources: p.source("AUTOBATCHER_SANDBOX"),
			Usage:   "answer from an embedded Batch API with the provider's behavior; nothing leaves this machine, and no key is needed",
		},
		&cli.GenericFlag{
			Name: "sandbox-turnaround", Value: &s.turnaround, Category: aboutUpstream,
			Sources: p.source("AUTOBATCHER_SANDBOX_TURNAROUND"),
			Usage:   "with --sandbox, complete each batch after `SECONDS`, or a duration",
		},
		&cli.GenericFlag{
			Name: "sandbox-flex-delay", Value: &s.flexDelay, Category: aboutUpstream,
			Sources: p.source("AUTOBATCHER_SANDBOX_FLEX_DELAY"),
			Usage:   "with --sandbox, answer each call at the flex tier after `SECONDS`, or a duration",
		},
	}
}

func (s *settings) batchFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{
			Name: "batch-size", Destination: &s.batchSize, Value: s.batchSize, Category: aboutBasics,
			Sources: p.source("AUTOBATCHER_BATCH_SIZE"),
			Usage:   "send a batch at once when the batch has `N` calls",
		},
		&cli.StringFlag{
			Name: "prices", Destination: &s.prices, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_PRICES"),
			Usage:   "read prices for estimates of costs from `FILE`, before the built-in prices; the format is that of LiteLLM's model_prices_and_context_window.json",
		},
		&cli.GenericFlag{
			Name: "budget", Value: &s.budget, Category: aboutBatches,
			DefaultText: "no limit",
			Sources:     p.source("AUTOBATCHER_BUDGET"),
			Usage: "refuse calls with 402 that may cost more than what is left of `AMOUNT`, by the estimates: 20usd for the life of the process, 20usd/day for each day (UTC). " +
				"Refuses models without a known price (--prices), and does not limit calls that pass through",
		},
		&cli.GenericFlag{
			Name: "batch-window", Value: &s.batchWindow, Category: aboutBasics,
			Sources: p.source("AUTOBATCHER_BATCH_WINDOW"),
			Usage:   "collect calls for `SECONDS`, or a duration such as 1m30s, from the first call of a batch",
		},
		&cli.GenericFlag{
			Name: "poll-interval", Value: &s.pollInterval, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_POLL_INTERVAL"),
			Usage:   "poll a running batch every `SECONDS`, or a duration",
		},
		&cli.StringFlag{
			Name: "completion-window", Destination: &s.completionWindow, Category: aboutBatches,
			DefaultText: "the provider's default: 1h at Doubleword, 24h elsewhere",
			Sources:     p.source("AUTOBATCHER_COMPLETION_WINDOW"),
			Usage:       "completion `WINDOW` to request from the provider, which sets deadline and price; any string is passed on",
		},
		&cli.StringSliceFlag{
			Name: "batch-metadata", Destination: &s.metadata, Category: aboutBatches,
			Sources: p.listSource("AUTOBATCHER_BATCH_METADATA"),
			Usage:   "attach `KEY=VALUE` to every batch and to the events of the batch; repeatable",
		},
		&cli.BoolFlag{
			Name: "keep-active-batches-on-close", Destination: &s.keepBatches, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_KEEP_ACTIVE_BATCHES_ON_CLOSE"),
			Usage:   "on shutdown, leave the running batches to run on and to be paid for, instead of cancelling the batches",
		},
	}
}

func (s *settings) callerFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.GenericFlag{
			Name: "max-body", Value: &s.maxBody, Category: aboutCallers,
			DefaultText: "the provider's limit for one line",
			Sources:     p.source("AUTOBATCHER_MAX_BODY"),
			Usage:       "refuse a request body larger than `SIZE`, such as 10MB or 1GiB, with 413",
		},
		&cli.IntFlag{
			Name: "max-queued", Destination: &s.maxQueued, Category: aboutCallers,
			DefaultText: "no limit",
			Sources:     p.source("AUTOBATCHER_MAX_QUEUED"),
			Usage:       "refuse a call with 429 and Retry-After while `N` calls wait to be sent: calls that have arrived whole, and whose batch the provider has not created yet",
		},
		&cli.GenericFlag{
			Name: "grace", Value: &s.grace, Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_GRACE"),
			Usage:   "send nothing to a waiting caller for `SECONDS`, or a duration; then begin the answer and keep the connection open with heartbeats. Must be shorter than a load balancer's idle timeout. never: send nothing before the answer",
		},
		&cli.GenericFlag{
			Name: "heartbeat", Value: &s.heartbeat, Category: aboutCallers,
			Sources: p.source("AUTOBATCHER_HEARTBEAT"),
			Usage:   "send a heartbeat every `SECONDS`, or a duration, once the answer has begun",
		},
	}
}

func (s *settings) listenFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "host", Destination: &s.host, Value: "127.0.0.1", Category: aboutBasics,
			Sources: p.source("AUTOBATCHER_HOST"),
			Usage:   "listen on `ADDRESS`; an address that other machines can reach requires --client-key or --forward-key",
		},
		&cli.IntFlag{
			Name: "port", Destination: &s.port, Value: 8080, Category: aboutBasics,
			Sources: p.source("AUTOBATCHER_PORT"),
			Usage:   "listen on port `N`; 0 for any free port",
		},
	}
}

func (s *settings) logFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "log-format", Destination: &s.logFormat, Value: "auto", Category: aboutLogs,
			Sources: p.source("AUTOBATCHER_LOG_FORMAT"),
			Usage:   "`FORMAT` of the log: text, json, or auto (text on a terminal, JSON elsewhere)",
		},
		&cli.StringFlag{
			Name: "log-level", Destination: &s.logLevel, Value: s.logLevel, Category: aboutLogs,
			Sources: p.source("AUTOBATCHER_LOG_LEVEL"),
			Usage:   "log messages of at least `LEVEL`: debug, info, warn or error; debug says why calls pass through",
		},
	}
}
