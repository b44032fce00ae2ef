package retry_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/retry"
)

// A failure is an error of a class, with the wait that the server asked for.
type failure struct {
	class retry.Class
	asked time.Duration
}

func (failure) Error() string { return "failed" }

func classify(err error) (retry.Class, time.Duration) {
	var f failure
	if !errors.As(err, &f) {
		return retry.Stopped, -1
	}
	return f.class, f.asked
}

func policy() retry.Policy {
	return retry.Policy{Classify: classify, Budget: map[retry.Class]time.Duration{
		retry.Transient: time.Hour, retry.RateLimited: time.Hour, retry.NotFound: time.Minute, retry.Unauthorized: retry.Forever,
	}}
}

func TestNext(t *testing.T) {
	for _, tt := range []struct {
		name        string
		err         error
		maxWait     time.Duration
		again       bool
		least, most time.Duration
	}{
		{"no error", nil, 0, false, 0, 0},
		{"an error of another kind", context.Canceled, 0, false, 0, time.Second},
		{"a class without a budget", failure{retry.Permanent, -1}, 0, false, 0, time.Second},
		{"transient", failure{retry.Transient, -1}, 0, true, 750 * time.Millisecond, time.Second},
		{"too fast, no wait named", failure{retry.RateLimited, -1}, 0, true, time.Minute, 66 * time.Second},
		{"too fast, no wait wanted", failure{retry.RateLimited, 0}, 0, true, time.Second, 1100 * time.Millisecond},
		{"too fast, a wait named", failure{retry.RateLimited, 2 * time.Minute}, 0, true, 2 * time.Minute, 132 * time.Second},
		{"busy, a wait named", failure{retry.Transient, time.Minute}, 0, true, time.Minute, time.Minute},
		{"a long wait is obeyed", failure{retry.Transient, 50 * time.Minute}, 0, true, 50 * time.Minute, 50 * time.Minute},
		{"a long wait is cut", failure{retry.Transient, 24 * time.Hour}, 10 * time.Minute, true, 10 * time.Minute, 10 * time.Minute},
		{"a long rate limit is cut", failure{retry.RateLimited, 24 * time.Hour}, 10 * time.Minute, true, 10 * time.Minute, 10 * time.Minute},
		{"a wait beyond the budget", failure{retry.Transient, 2 * time.Hour}, 0, false, 2 * time.Hour, 2 * time.Hour},
		{"not found at first", failure{retry.NotFound, -1}, 0, true, 750 * time.Millisecond, time.Second},
	} {
		p := policy()
		p.MaxWait = tt.maxWait
		if wait, again := p.Start().Next(tt.err); again != tt.again || wait < tt.least || wait > tt.most {
			t.Errorf("%s: %v, %v; want %v to %v, %v", tt.name, wait, again, tt.least, tt.most, tt.again)
		}
	}
}

// run makes attempts, each of a length, until a policy gives up, and returns how
// long that took.
func run(a *retry.Attempts, err error, length time.Duration) time.Duration {
	began := time.Now()
	for time.Since(began) < 100*time.Hour {
		time.Sleep(length)
		wait, again := a.Next(err)
		if !again {
			break
		}
		time.Sleep(wait)
	}
	return time.Since(began)
}

func TestBudgets(t *testing.T) {
	transient, limited, lost := failure{retry.Transient, -1}, failure{retry.RateLimited, -1}, failure{retry.NotFound, -1}
	within := func(t *testing.T, took, least, most time.Duration) {
		t.Helper()
		if took < least || took > most {
			t.Errorf("took %v, want %v to %v", took, least, most)
		}
	}
	t.Run("waits and attempts count", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			within(t, run(policy().Start(), transient, 0), 59*time.Minute, time.Hour)
			within(t, run(policy().Start(), transient, 5*time.Minute), time.Hour, time.Hour+10*time.Minute)
		})
	})
	t.Run("classes do not add up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := policy().Start()
			within(t, run(a, transient, 0), 59*time.Minute, time.Hour)
			within(t, run(a, limited, 0), 58*time.Minute, time.Hour)
			within(t, run(a, lost, 0), 20*time.Second, time.Minute)
			if _, again := a.Next(transient); again {
				t.Error("a budget that is used up is used again")
			}
		})
	})
	t.Run("a success restores all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := policy().Start()
			run(a, transient, 0)
			run(a, lost, 0)
			a.Next(nil)
			time.Sleep(2 * time.Hour) // time between attempts is not spent on a class
			within(t, run(a, transient, 0), 59*time.Minute, time.Hour)
		})
	})
	t.Run("for ever", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := policy().Start()
			for range 100 {
				time.Sleep(time.Hour)
				if wait, again := a.Next(failure{retry.Unauthorized, 24 * time.Hour}); !again || wait < time.Hour {
					t.Fatalf("%v, %v", wait, again)
				}
			}
		})
	})
}

func TestBackoff(t *testing.T) {
	for attempt, want := range map[int]time.Duration{
		-1: time.Second, 0: time.Second, 1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 6: 30 * time.Second, 1000: 30 * time.Second,
	} {
		if got := retry.Backoff(attempt); got > want || got < want*3/4 {
			t.Errorf("Backoff(%d) = %v, want %v less up to a quarter", attempt, got, want)
		}
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := retry.Sleep(t.Context(), time.Minute); err != nil || time.Since(began) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		enough := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, enough)
		defer cancel()
		if err := retry.Sleep(ctx, time.Minute); !errors.Is(err, enough) || time.Since(began) != 61*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestMayHaveRun(t *testing.T) {
	for status, want := range map[int]bool{
		400: false, 408: true, 429: false, 498: false, 500: false, 501: false, 502: true, 503: false, 504: true, 505: false,
		519: false, 520: true, 521: false, 522: true, 523: false, 524: true, 525: false, 526: false, 529: false, 530: false,
	} {
		if got := retry.MayHaveRun(status); got != want {
			t.Errorf("%d: %v", status, got)
		}
	}
}
