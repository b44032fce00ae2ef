package backend

import (
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

// CancelPolicy says how long cancelling a batch is tried.
var CancelPolicy = retry.Policy{
	Classify: Classify,
	Budget:   map[retry.Class]time.Duration{retry.Transient: cancelTimeout, retry.RateLimited: cancelTimeout},
}
