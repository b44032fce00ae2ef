package ratelimit

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// Each name has an hour of its own.
func TestHourliesSeparateNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHourlies(2)
		for _, want := range []bool{true, true, false} {
			if _, ok := h.Take("a"); ok != want {
				t.Errorf("Take(a) is %v, want %v", ok, want)
			}
		}
		if _, ok := h.Take("b"); !ok {
			t.Error("a used up the hour of b")
		}
		time.Sleep(time.Hour)
		if _, ok := h.Take("a"); !ok {
			t.Error("no event is allowed after an hour")
		}
	})
}

// The number of names is bounded, and a name without events in the last hour makes
// room for another.
func TestHourliesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHourlies(1)
		for i := range maxHourlies {
			if _, ok := h.Take(strconv.Itoa(i)); !ok {
				t.Fatalf("name %d has no event", i)
			}
		}
		if wait, ok := h.Take("more"); ok || wait != time.Hour {
			t.Errorf("a name beyond the bound: %v %v", wait, ok)
		}
		time.Sleep(time.Hour)
		if _, ok := h.Take("more"); !ok || len(h.named) != 1 {
			t.Errorf("after an hour: %v, %d names", ok, len(h.named))
		}
	})
}
