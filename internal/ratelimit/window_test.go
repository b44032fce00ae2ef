package ratelimit_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/ratelimit"
)

func TestHourly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := ratelimit.NewHourly(2)
		start := time.Now()
		var at []time.Duration
		for range 5 {
			for wait, ok := h.Take(); !ok; wait, ok = h.Take() {
				time.Sleep(wait)
			}
			at = append(at, time.Since(start)/time.Minute)
			time.Sleep(10 * time.Minute)
		}
		// Any hour holds two events: the third waits until the first is an hour old.
		if want := []time.Duration{0, 10, 60, 70, 120}; !slices.Equal(at, want) {
			t.Errorf("minutes %v, want %v", at, want)
		}
	})
}

func TestHourlyWithoutLimit(t *testing.T) {
	for _, limit := range []int{0, -1} {
		h := ratelimit.NewHourly(limit)
		for range 10_000 {
			if _, ok := h.Take(); !ok {
				t.Fatalf("limit %d: refused", limit)
			}
		}
	}
}
