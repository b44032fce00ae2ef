package backend

import (
	"context"
	"errors"
	"time"

	"github.com/autobatcher/autobatcher/internal/retry"
)

const (
	// goneTimeout is how long a batch may be unknown, or the credential refused,
	// before the batch is given up: a new batch may not be visible yet, and
	// Doubleword answers 404 for any failure of its storage.
	goneTimeout = 10 * time.Minute

	// maxPollWait bounds the wait after a failed poll, however long a wait the provider
	// asks for: the batch may be finished.
	maxPollWait = 10 * time.Minute

	// MaxPollInterval bounds the interval between two polls of an old batch, unless the
	// usual interval is longer.
	MaxPollInterval = time.Minute

	// cancelTimeout is how long cancelling is tried.
	cancelTimeout = 10 * time.Minute
)

// PollPolicy says how long a batch is polled whose polls fail. A failure that may
// pass is bounded by the batch's own time.
var PollPolicy = retry.Policy{
	Classify: Classify,
	MaxWait:  maxPollWait,
	Budget: map[retry.Class]time.Duration{
		retry.Transient: retry.Forever, retry.RateLimited: retry.Forever,
		retry.NotFound: goneTimeout, retry.Unauthorized: goneTimeout, retry.Permanent: goneTimeout,
	},
}

// The interval between two polls of a batch, as a share of the age of the batch.
const (
	youngShare = 2  // of a young batch, which may hold a few short calls
	oldShare   = 60 // of an old batch
)

// firstPoll is the share of the usual interval after which a batch is polled first.
const firstPoll = 10

// PollInterval returns the time between two polls of a batch of an age: usual, or least
// if that is longer. An old batch is polled every 60th of its age, but at least once in
// MaxPollInterval. With soon, a young batch is polled sooner: first after a tenth of
// usual, then after half of its age. The time is never less than least.
func PollInterval(age, usual, least time.Duration, soon bool) time.Duration {
	old := min(age/oldShare, MaxPollInterval)
	if soon {
		usual = min(usual, max(usual/firstPoll, age/youngShare))
	}
	return max(usual, old, least)
}

// cancelPolicy says how long cancelling a batch is tried.
var cancelPolicy = retry.Policy{
	Classify: Classify,
	Budget:   map[retry.Class]time.Duration{retry.Transient: cancelTimeout, retry.RateLimited: cancelTimeout},
}

// errCallersReturned is why a batch is not cancelled after all.
var errCallersReturned = errors.New("callers have returned, or other processes have ended the batch")

// Cancel asks the provider to cancel a batch, again where that may help. With decide,
// retries may take over lines between two attempts: undo is called after each failure, and
// decide is asked before each further attempt. Without decide, undo is called after the last
// failure.
func Cancel(ctx context.Context, b Backend, h Handle, undo func(), decide func() bool) error {
	attempts := cancelPolicy.Start()
	for {
		err := b.Cancel(ctx, h)
		if err == nil {
			return nil
		}
		wait, again := attempts.Next(err)
		if !again || decide != nil {
			undo()
		}
		switch {
		case !again || retry.Sleep(ctx, wait) != nil:
			return err
		case decide != nil && !decide():
			return errCallersReturned
		}
	}
}
