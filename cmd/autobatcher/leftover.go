package main

import (
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher"
)

// leftoverSettings say what becomes of calls that their batch does not answer
// in time, of batches that nobody waits for, and of files.
type leftoverSettings struct {
	resubmits      int
	escalate       string
	escalateMargin seconds
	escalateLimit  int
	files          string
	abandonAfter   grace
}

func newLeftoverSettings() leftoverSettings {
	return leftoverSettings{
		resubmits:      1,
		escalate:       string(autobatcher.EscalateNever),
		escalateMargin: seconds(time.Minute),
		escalateLimit:  100,
		files:          string(autobatcher.FilesKeep),
		abandonAfter:   grace(2 * time.Minute),
	}
}

func (s *leftoverSettings) leftoverFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{
			Name: "resubmits", Destination: &s.resubmits, Value: s.resubmits, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_RESUBMITS"),
			Usage:   "put a call that its batch left unanswered into another batch, up to `N` times; -1 for never",
		},
		&cli.GenericFlag{
			Name: "abandon-after", Value: &s.abandonAfter, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_ABANDON_AFTER"),
			Usage:   "cancel a running batch that nobody has waited for since `SECONDS`, a duration, or never",
		},
		&cli.StringFlag{
			Name: "files", Destination: &s.files, Value: s.files, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_FILES"),
			Usage:   "`WHAT` becomes of a batch's files: keep, expire after three days where the provider can, or delete once all is delivered",
		},
		&cli.StringFlag{
			Name: "escalate", Destination: &s.escalate, Value: s.escalate, Category: aboutDeadlines,
			Sources: p.source("AUTOBATCHER_ESCALATE"),
			Usage:   "send a call in real time, at full price, `WHEN`: never, failed (its batch could not answer it), or deadline (that, or its deadline is near)",
		},
		&cli.GenericFlag{
			Name: "escalate-margin", Value: &s.escalateMargin, Category: aboutDeadlines,
			Sources: p.source("AUTOBATCHER_ESCALATE_MARGIN"),
			Usage:   "with --escalate deadline, do so `SECONDS`, or a duration, before the deadline",
		},
		&cli.IntFlag{
			Name: "escalate-limit", Destination: &s.escalateLimit, Value: s.escalateLimit, Category: aboutDeadlines,
			Sources: p.source("AUTOBATCHER_ESCALATE_LIMIT"),
			Usage:   "send no more than `N` calls an hour in real time, so that a bad night is no bill; -1 for no limit",
		},
	}
}

// escalations and filePolicies are what the flags may say.
var (
	escalations  = []string{string(autobatcher.EscalateNever), string(autobatcher.EscalateFailed), string(autobatcher.EscalateDeadline)}
	filePolicies = []string{string(autobatcher.FilesKeep), string(autobatcher.FilesExpire), string(autobatcher.FilesDelete)}
)

func (s *leftoverSettings) check() error {
	switch {
	case s.resubmits < -1:
		return usagef("--resubmits is %d; it must be at least 0, or -1 for never", s.resubmits)
	case !slices.Contains(escalations, s.escalate):
		return usagef("--escalate is %q; it must be %s", s.escalate, oneOf(escalations))
	case !slices.Contains(filePolicies, s.files):
		return usagef("--files is %q; it must be %s", s.files, oneOf(filePolicies))
	case s.escalateMargin <= 0:
		return usagef("--escalate-margin must be more than 0")
	case s.escalateLimit < -1 || s.escalateLimit == 0:
		return usagef("--escalate-limit is %d; it must be at least 1, or -1 for no limit (--escalate never sends none)", s.escalateLimit)
	}
	return nil
}

func oneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// apply puts the settings into the library's options.
func (s *leftoverSettings) apply(o *autobatcher.Options) error {
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
