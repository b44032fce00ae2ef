// Package retry decides whether a failed operation is attempted again, and
// when. The uploads, creates, polls, downloads, deletes and cancels of a batch
// and the writes to the journal share the one Policy type.
package retry

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"time"
)

// A Class is a kind of error. A Policy has a separate budget for each class.
type Class int

// The classes of errors.
const (
	Stopped      Class = iota // the caller's context ended, or the error is a programming error: never retried
	Permanent                 // the server refused the request for its content
	Transient                 // the server gave no answer, a broken answer or a 5xx
	RateLimited               // the server asked for fewer requests
	NotFound                  // the server does not know the object; a replica may lag behind
	Unauthorized              // the server refused the credential, which may be renewed
	NotReady                  // the server is still processing an object that the request names
)

// Forever is a budget that does not run out.
const Forever time.Duration = math.MaxInt64

// A Classifier returns the class of an error and the server's requested wait. The
// wait is negative if the server requested none. The error is never nil.
type Classifier func(error) (Class, time.Duration)

// A Policy says how long a failing operation is attempted. A Policy is a plain
// value: it may be copied and shared between goroutines.
type Policy struct {
	// Classify classifies the errors. It must not be nil.
	Classify Classifier

	// Budget is how long attempts that fail in a class may go on: the sum of the
	// waits and of the repeated attempts. Each class has a separate budget, and a
	// success restores all budgets. If the budget of a class is absent, zero or
	// negative, an error of the class is final.
	Budget map[Class]time.Duration

	// MaxWait bounds a single wait, also a wait that the server requested. Zero
	// means no bound: the Policy obeys a long Retry-After within the budget.
	MaxWait time.Duration
}

// Start returns the record of one operation's attempts. The first attempt may
// begin at any time afterwards.
func (p Policy) Start() *Attempts { return &Attempts{policy: p} }

// Attempts records the attempts of an operation. Several goroutines must not use
// an Attempts at once.
type Attempts struct {
	policy   Policy
	failures int // since the last success
	used     map[Class]time.Duration
	resumed  time.Time // when the attempt after the last wait began
}

// Next records the end of an attempt. Next returns the wait before the next
// attempt, and whether to make a next attempt. A nil error is a
// success: Next forgets the failures before it, and returns 0 and false.
func (a *Attempts) Next(err error) (wait time.Duration, again bool) {
	if err == nil {
		*a = Attempts{policy: a.policy}
		return 0, false
	}
	class, asked := a.policy.Classify(err)
	now := time.Now()
	if a.used == nil {
		a.used = make(map[Class]time.Duration)
	}
	if a.failures > 0 {
		a.used[class] += max(now.Sub(a.resumed), 0)
	}
	a.failures++
	wait = a.wait(class, asked)
	if class == Stopped || wait > a.policy.Budget[class]-a.used[class] {
		return wait, false
	}
	a.used[class] += wait
	a.resumed = now.Add(wait)
	return wait, true
}

// wait is how long to wait after an error of a class.
func (a *Attempts) wait(class Class, asked time.Duration) time.Duration {
	wait := max(Backoff(a.failures), asked)
	if class == RateLimited {
		wait = rateLimitWait(asked)
	}
	if a.policy.MaxWait > 0 {
		wait = min(wait, a.policy.MaxWait)
	}
	return wait
}

// rateLimitWait is the requested wait, at least a second, or a minute if the
// server requested none. Up to a tenth is added: otherwise the clients of a fleet
// would return in the same instant.
func rateLimitWait(asked time.Duration) time.Duration {
	wait := time.Minute
	if asked >= 0 {
		wait = max(asked, time.Second)
	}
	return wait + rand.N(wait/10)
}

// Backoff is the wait after the given number of failed attempts, counted from
// 1. The wait doubles from a second to half a minute, less up to a quarter.
func Backoff(attempt int) time.Duration {
	wait := time.Second << min(max(attempt-1, 0), 5)
	wait = min(wait, 30*time.Second)
	return wait - rand.N(wait/4)
}

// Sleep waits for d. It returns the cause of ctx if ctx ends first.
func Sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Outliving is parent, but ends grace later.
func Outliving(parent context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() {
		time.AfterFunc(grace, func() { cancel(context.Cause(parent)) })
	})
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// After is a channel that receives once d has passed; none if d is not positive.
func After(d time.Duration) (<-chan time.Time, func() bool) {
	if d <= 0 {
		return nil, func() bool { return true }
	}
	timer := time.NewTimer(d)
	return timer.C, timer.Stop
}

// MayHaveRun reports whether a request that was answered with an HTTP status may have been
// carried out nevertheless: a server stopped waiting, or a gateway got no answer. 520, 522
// and 524 are Cloudflare's, whose other statuses mean that no server was reached.
func MayHaveRun(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusBadGateway, http.StatusGatewayTimeout, 520, 522, 524:
		return true
	}
	return false
}

// ContextError is the cause of ctx's end, and matches ctx.Err() too.
func ContextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}
