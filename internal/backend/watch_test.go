package backend_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
)

// An endedBoard is a Backend whose batches have all ended.
type endedBoard struct{ backend.Backend }

func (endedBoard) Status(_ context.Context, hs []backend.Handle) ([]backend.Status, error) {
	states := make([]backend.Status, len(hs))
	for i, h := range hs {
		states[i] = backend.Status{Handle: h, Phase: backend.Ended, Word: "completed"}
	}
	return states, nil
}

// signaled reports whether a watch is to be polled at once.
func signaled(w *backend.Watch) bool {
	select {
	case <-w.Woken():
		return true
	default:
		return false
	}
}

func TestWake(t *testing.T) {
	c := backend.NewStatusCache(0)
	a, b, same := c.Watch(handle(1)), c.Watch(handle(2)), c.Watch(handle(1))
	for range 2 {
		if !c.Wake("b1") {
			t.Error("a watched batch is not known")
		}
	}
	if !signaled(a) || !signaled(same) || signaled(b) {
		t.Error("Wake did not wake exactly the watches of the batch")
	}
	if signaled(a) {
		t.Error("two announcements before a poll wake the batch twice")
	}
	if c.Wake("b9") {
		t.Error("an unknown batch is known")
	}
	a.Done()
	same.Done()
	if c.Wake("b1") {
		t.Error("a batch is known after Done")
	}
}

// The end of a batch may be announced before the answer to the create arrives.
func TestWakeBeforeWatch(t *testing.T) {
	for _, tt := range []struct {
		later int // announcements of other batches after that of the batch
		want  bool
	}{{0, true}, {15, true}, {16, false}} {
		c := backend.NewStatusCache(0)
		c.Wake("b1")
		for i := range tt.later {
			c.Wake(fmt.Sprint("other", i))
		}
		if got := signaled(c.Watch(handle(1))); got != tt.want {
			t.Errorf("after %d other announcements: woken = %v, want %v", tt.later, got, tt.want)
		}
	}
}

// The state of an announced batch is new, and costs one request, also if the state of
// all batches was read a moment ago.
func TestLookAtAnAnnouncedBatch(t *testing.T) {
	c, b := backend.NewStatusCache(0), &board{}
	ws := watch(t, c, 10)
	look(t, ws, b)
	c.Wake("b3")
	look(t, ws, b)
	if b.all != 1 || b.single != 1 {
		t.Errorf("asked %d times for all and %d times alone, want 1 and 1", b.all, b.single)
	}
	if signaled(ws[3]) {
		t.Error("the poll that was asked for is asked for again")
	}
}

func TestInterval(t *testing.T) {
	const (
		normal  = 5 * time.Second
		slowest = 5 * time.Minute
	)
	// How batches end, one after the other.
	const (
		announced = iota // Wake, then a poll
		late             // a poll, then Wake
		silent           // a poll
		before           // the batch had ended when the watch began
		lost             // the watch ended before the batch
	)
	for _, tt := range []struct {
		name string
		ends []int
		want time.Duration
	}{
		{"no webhooks", nil, normal},
		{"two", []int{announced, announced}, normal},
		{"three", []int{announced, announced, announced}, slowest},
		{"polls that were faster", []int{late, late, late}, slowest},
		{"one is missing", []int{announced, announced, announced, silent}, normal},
		{"two after one that is missing", []int{announced, silent, announced, announced}, normal},
		{"three after one that is missing", []int{silent, announced, announced, announced}, slowest},
		{"batches that had ended before say nothing", []int{announced, announced, before, announced, before}, slowest},
		{"batches that were not followed to their end say nothing", []int{announced, announced, lost, announced, lost}, slowest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := backend.NewStatusCache(slowest)
			running := c.Watch(handle(1000))
			for i, end := range tt.ends {
				w := c.Watch(handle(i))
				if end != before {
					w.Interval(normal)
				}
				if end == announced {
					c.Wake(handle(i).BatchID)
				}
				if end != lost {
					if _, err := w.Look(t.Context(), endedBoard{}, 0); err != nil {
						t.Fatal(err)
					}
					w.Interval(normal) // the interval after the last look
				}
				w.Done()
				if end == late {
					c.Wake(handle(i).BatchID)
				}
			}
			if got := running.Interval(normal); got != tt.want {
				t.Errorf("interval %v, want %v", got, tt.want)
			}
			if got := running.Interval(time.Hour); got != time.Hour {
				t.Errorf("an interval of an hour became %v", got)
			}
			c.Wake("b1000") // its end may not be visible yet
			if got := running.Interval(normal); got != normal {
				t.Errorf("the interval of an announced batch is %v, want %v", got, normal)
			}
		})
	}
}

// A StatusCache whose polls webhooks do not slow down is for providers with results of
// running batches.
func TestIntervalOfPartialResults(t *testing.T) {
	c := backend.NewStatusCache(0)
	for i := range 5 {
		w := c.Watch(handle(i))
		w.Interval(time.Second)
		c.Wake(handle(i).BatchID)
		w.Look(t.Context(), endedBoard{}, 0)
		w.Done()
	}
	if got := c.Watch(handle(9)).Interval(time.Second); got != time.Second {
		t.Errorf("interval %v, want 1s", got)
	}
}
