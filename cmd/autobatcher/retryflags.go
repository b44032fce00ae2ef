package main

import (
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher"
)

// retrySettings are the values of the flags for calls that a batch does not answer
// in time, for batches without callers, and for files at the provider.
type retrySettings struct {
	resubmits      int
	escalate       string
	escalateMargin seconds
	escalateLimit  int
	files          string
	abandonAfter   grace
}

func newRetrySettings() retrySettings {
	return retrySettings{
		resubmits:      1,
		escalate:       string(autobatcher.EscalateNever),
		escalateMargin: seconds(time.Minute),
		escalateLimit:  100,
		files:          string(autobatcher.FilesKeep),
		abandonAfter:   grace(2 * time.Minute),
	}
}

func (s *retrySettings) retryFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{
			Name: "resubmits", Destination: &s.resubmits, Value: s.resubmits, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_RESUBMITS"),
			Usage:   "resubmit an unanswered call in a new batch up to `N` times; -1 for never",
		},
		&cli.GenericFlag{
			Name: "abandon-after", Value: &s.abandonAfter, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_ABANDON_AFTER"),
			Usage:   "cancel a running batch that has had no callers for `SECONDS`, or a duration; never: no cancellation",
		},
		&cli.StringFlag{
			Name: "files", Destination: &s.files, Value: s.files, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_FILES"),
			Usage:   "`POLICY` for the files of a batch at the provider: keep, expire (after three days, where the provider supports expiry), or delete (when all results are delivered)",
		},
		&cli.StringFlag{
			Name: "escalate", Destination: &s.escalate, Value: s.escalate, Category: aboutDeadlines,
			Sources: p.source("AUTOBATCHER_ESCALATE"),
			Usage:   "`WHEN` to send a call in real time, at full price: never, failed (the batch could not answer the call), or deadline (as failed, and when the deadline of a call is near)",
		},
		&cli.GenericFlag{
			Name: "escalate-margin", Value: &s.escalateMargin, Category: aboutDeadlines,
			Sources: p.source("AUTOBATCHER_ESCALATE_MARGIN"),
			Usage:   "with --escalate deadline, send the call `SECONDS`, or a duration, before the deadline",
		},
		&cli.IntFlag{
			Name: "escalate-limit", Destination: &s.escalateLimit, Value: s.escalateLimit, Category: aboutDeadlines,
			Sources: p.source("AUTOBATCHER_ESCALATE_LIMIT"),
			Usage:   "send at most `N` calls an hour in real time, to limit the cost of an outage; each client key and each forwarded key has a budget of its own; -1 for no limit",
		},
	}
}

// escalations and filePolicies are the valid values of --escalate and --files.
var (
	escalations  = []string{string(autobatcher.EscalateNever), string(autobatcher.EscalateFailed), string(autobatcher.EscalateDeadline)}
	filePolicies = []string{string(autobatcher.FilesKeep), string(autobatcher.FilesExpire), string(autobatcher.FilesDelete)}
)

func (s *retrySettings) check() error {
	switch {
	case s.resubmits < -1:
		return usagef("--resubmits is %d; it must be at least 0, or -1 for never", s.resubmits)
	case !slices.Contains(escalations, s.escalate):
		return unknownValue("escalate", s.escalate, escalations)
	case !slices.Contains(filePolicies, s.files):
		return unknownValue("files", s.files, filePolicies)
	case s.escalateMargin <= 0:
		return usagef("--escalate-margin must be more than 0")
	case s.escalateLimit < -1 || s.escalateLimit == 0:
		return usagef("--escalate-limit is %d; it must be at least 1, or -1 for no limit (to send no calls in real time, use --escalate never)", s.escalateLimit)
	}
	return nil
}

// alternatives joins words as a list that ends with "or".
func alternatives(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// apply checks the settings and copies the settings to the library's options.
func (s *retrySettings) apply(o *autobatcher.Options) error {
	if err := s.check(); err != nil {
		return err
	}
	o.Resubmits = orNegative(s.resubmits)
	o.Escalate = autobatcher.Escalation(s.escalate)
	o.EscalateMargin = time.Duration(s.escalateMargin)
	o.EscalateLimit = s.escalateLimit
	o.Files = autobatcher.FilePolicy(s.files)
	o.AbandonAfter = time.Duration(s.abandonAfter)
	return nil
}
