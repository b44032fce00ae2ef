package budget

import (
	"errors"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestReservations(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(*Budget) error
		want State
		err  bool
	}{
		"a call that fits":          {func(b *Budget) error { return b.Plan(3, 0).Take() }, State{LimitUSD: 10, ReservedUSD: 3}, false},
		"a call that does not fit":  {func(b *Budget) error { return b.Plan(11, 0).Take() }, State{LimitUSD: 10}, true},
		"exactly the limit":         {func(b *Budget) error { return b.Plan(10, 0).Take() }, State{LimitUSD: 10, ReservedUSD: 10}, false},
		"a plan reserves nothing":   {func(b *Budget) error { b.Plan(3, 0); return nil }, State{LimitUSD: 10}, false},
		"taken twice":               {func(b *Budget) error { r := b.Plan(3, 0); return errors.Join(r.Take(), r.Take()) }, State{LimitUSD: 10, ReservedUSD: 3}, false},
		"released twice":            {func(b *Budget) error { r := b.Plan(3, 0); err := r.Take(); r.Release(); r.Release(); return err }, State{LimitUSD: 10}, false},
		"released before it is due": {func(b *Budget) error { r := b.Plan(3, 0); r.Release(); return r.Take() }, State{LimitUSD: 10}, false},
		"spent beyond the limit":    {func(b *Budget) error { b.Spend(12); return fits(b, 0.01) }, State{LimitUSD: 10, SpentUSD: 12}, true},
		"spent as planned":          {func(b *Budget) error { r := b.Plan(3, 0); err := r.Take(); r.Spend(); return err }, State{LimitUSD: 10, SpentUSD: 3}, false},
		"spent and reserved":        {func(b *Budget) error { b.Spend(6); return errors.Join(b.Plan(4, 0).Take(), fits(b, 0)) }, State{LimitUSD: 10, SpentUSD: 6, ReservedUSD: 4}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := New(10, false)
			err := test.do(b)
			if got := b.State(); got != test.want || (err != nil) != test.err {
				t.Errorf("%+v, want %+v; error %v", got, test.want, err)
			}
			if none := New(0, true); none != nil || test.do(none) != nil || none.State() != (State{}) {
				t.Error("a limit of 0 is a limit")
			}
		})
	}
}

// fits reports whether usd can be reserved.
func fits(b *Budget, usd float64) error {
	r := b.Plan(usd, 0)
	defer r.Release()
	return r.Take()
}

// At midnight UTC, what was spent is forgotten, and reservations stay.
func TestDays(t *testing.T) {
	for name, daily := range map[string]bool{"a day": true, "a life": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := New(10, daily)
				b.Spend(8)
				held := b.Plan(2, 0)
				if err := held.Take(); err != nil {
					t.Fatal(err)
				}
				midnight := today().Add(24 * time.Hour)
				time.Sleep(time.Until(midnight) - time.Second)
				err := fits(b, 1)
				if exhausted := (*Exhausted)(nil); !errors.As(err, &exhausted) || exhausted.Daily != daily || strings.Contains(err.Error(), "a day") != daily {
					t.Errorf("before midnight: %v", err)
				}
				time.Sleep(time.Second)
				if err := fits(b, 8); (err == nil) != daily {
					t.Errorf("after midnight: %v", err)
				}
				if got := b.State(); got.ReservedUSD != 2 || (got.SpentUSD == 0) != daily {
					t.Errorf("after midnight: %+v", got)
				}
			})
		})
	}
}

func TestConcurrentUse(t *testing.T) {
	b := New(50, true)
	var wg sync.WaitGroup
	var mu sync.Mutex
	granted := 0
	for range 200 {
		wg.Go(func() {
			r := b.Plan(1, 0)
			if err := r.Take(); err != nil {
				b.Refused()
				return
			}
			mu.Lock()
			granted++
			mu.Unlock()
			b.Spend(1)
			r.Release()
		})
	}
	wg.Wait()
	s := b.State()
	if s.SpentUSD != float64(granted) || math.Abs(s.ReservedUSD) > 1e-9 || s.Refused != int64(200-granted) || granted < 25 || granted > 50 {
		t.Errorf("%d calls were granted: %+v", granted, s)
	}
}

// The message names the limit exactly: a budget may be less than a cent.
func TestExhaustedNamesTheLimit(t *testing.T) {
	for limit, want := range map[float64]string{20: "is $20.00;", 0.5: "is $0.50;", 0.0001: "is $0.0001;", 1.2345: "is $1.2345;"} {
		if got := (&Exhausted{State: State{LimitUSD: limit}}).Error(); !strings.Contains(got, want) {
			t.Errorf("%v: %s", limit, got)
		}
	}
}
