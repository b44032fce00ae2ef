package pace_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/pace"
)

func TestHourly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := pace.NewHourly(2)
		start := time.Now()
		var at []time.Duration
		for range 5 {
			if err := h.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			at = append(at, time.Since(start))
			time.Sleep(10 * time.Minute)
		}
		// Any hour holds two: the third waits for the first to be an hour old.
		want := []time.Duration{0, 10 * time.Minute, 60 * time.Minute, 70 * time.Minute, 120 * time.Minute}
		for i := range want {
			if at[i] != want[i] {
				t.Errorf("event %d at %v, want %v", i, at[i], want[i])
			}
		}
	})
}

func TestHourlyWaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := pace.NewHourly(1)
		h.Take()
		reason := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, reason)
		defer cancel()
		if err := h.Wait(ctx); !errors.Is(err, reason) {
			t.Errorf("got %v", err)
		}
	})
}

func TestHourlyWithoutLimit(t *testing.T) {
	h := pace.NewHourly(0)
	for range 10_000 {
		if _, ok := h.Take(); !ok {
			t.Fatal("refused")
		}
	}
}

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := pace.NewGate()
		enter := func(tokens int64) <-chan error {
			entered := make(chan error, 1)
			go func() { entered <- g.Enter(t.Context(), tokens) }()
			synctest.Wait()
			return entered
		}
		if first, second := enter(60), enter(60); len(first) != 1 || len(second) != 1 {
			t.Fatal("a gate that has learned nothing holds nobody back")
		}
		g.Refused(60, 100)
		g.Leave(60)
		if got := g.Limit(); got != 100 {
			t.Errorf("limit %d, want the one that was told", got)
		}
		third, fourth := enter(41), enter(40)
		if len(third) != 0 {
			t.Error("60 and 41 are over 100")
		}
		if len(fourth) != 0 {
			t.Error("whoever came later must wait, though there would be room")
		}
		g.Leave(60)
		synctest.Wait()
		if len(third) != 1 || len(fourth) != 1 {
			t.Error("room that was left is not taken")
		}
	})
}

func TestGateLearns(t *testing.T) {
	for _, tt := range []struct {
		name                string
		others, tokens, say int64
		want                int64
	}{
		{"told", 100, 50, 120, 120},
		{"not told: less than what was too much", 100, 50, 0, 149},
		{"alone: tokens are more than they seem", 0, 100_000, 0, 75_000},
		{"alone, but hardly any: others fill the queue", 0, 100, 0, 20_000},
		{"alone, and fewer than the limit told", 0, 100, 1000, 1000},
		{"alone, and far too many", 0, 1000, 100, 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := pace.NewGate()
			g.Enter(t.Context(), tt.others)
			g.Enter(t.Context(), tt.tokens)
			g.Refused(tt.tokens, tt.say)
			if got := g.Limit(); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestGateForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := pace.NewGate()
		g.Enter(t.Context(), 10)
		g.Refused(10, 1000)
		for _, want := range []int64{1000, 2000, 4000} {
			if got := g.Limit(); got != want {
				t.Errorf("limit %d, want %d", got, want)
			}
			time.Sleep(time.Hour)
		}
		time.Sleep(48 * time.Hour)
		if got := g.Limit(); got != 0 {
			t.Errorf("limit %d two days later, want none", got)
		}
	})
}

func TestGateEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := pace.NewGate()
		g.Enter(t.Context(), 10)
		g.Refused(10, 5)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Enter(ctx, 10); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestSet(t *testing.T) {
	made := 0
	next := func() int { made++; return made }
	var s pace.Set[int]
	first, again, other := s.Of("a", next), s.Of("a", next), s.Of("b", next)
	if first != again || first == other {
		t.Error("want one value a name")
	}
	for i := range 5000 {
		s.Of(fmt.Sprint(i), next)
	}
	if s.Of("a", next) == 1 {
		t.Error("a set that never forgets grows without bound")
	}
}
