// Package budget limits what calls may cost: an amount is reserved for each call
// before the call is sent, and what the answer really cost is spent when the
// answer comes.
//
// All functions and methods may be called concurrently, and on nil: a nil Budget
// has no limit, and a nil Reservation reserves nothing.
package budget

import (
	"fmt"
	"strconv"
	"sync"
	"time"
)

// A Budget is an amount of money, in US dollars, for one day or for the life of
// the Budget. Its lock is held for arithmetic only.
type Budget struct {
	limit float64
	daily bool

	mu       sync.Mutex
	day      time.Time // the day, in UTC, of spent
	spent    float64
	reserved float64
	refused  int64
}

// New returns a Budget. With daily, a new day begins at midnight UTC: what was
// spent is forgotten, and reservations stay. A limit of 0 is no limit: New
// returns nil.
func New(limit float64, daily bool) *Budget {
	if limit == 0 {
		return nil
	}
	return &Budget{limit: limit, daily: daily, day: today()}
}

func today() time.Time { return time.Now().UTC().Truncate(24 * time.Hour) }

// State is what a Budget holds at one moment.
type State struct {
	LimitUSD    float64
	SpentUSD    float64 // since midnight UTC, if the Budget is for one day
	ReservedUSD float64 // for calls without an answer
	Refused     int64   // calls, since New
}

// State returns a snapshot, zero for a nil Budget.
func (b *Budget) State() State {
	if b == nil {
		return State{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turnLocked()
	return State{b.limit, b.spent, b.reserved, b.refused}
}

// turnLocked begins a new day. The caller holds b.mu.
func (b *Budget) turnLocked() {
	if now := today(); b.daily && now.After(b.day) {
		b.day, b.spent = now, 0
	}
}

// Exhausted is the error for a call that does not fit into the Budget.
type Exhausted struct {
	State

	Daily  bool
	Wanted float64 // of the call
}

// Error implements error.
func (e *Exhausted) Error() string {
	period := ""
	if e.Daily {
		period = " a day"
	}
	limit := strconv.FormatFloat(e.LimitUSD, 'f', -1, 64)
	if cents := fmt.Sprintf("%.2f", e.LimitUSD); len(limit) < len(cents) {
		limit = cents
	}
	return fmt.Sprintf("the budget is $%s%s; $%.4f are spent, $%.4f are reserved for calls without an answer, and this call may cost $%.4f",
		limit, period, e.SpentUSD, e.ReservedUSD, e.Wanted)
}

// fitsLocked returns an *Exhausted unless usd fits beside what is spent and
// reserved. The caller holds b.mu.
func (b *Budget) fitsLocked(usd float64) error {
	b.turnLocked()
	if b.spent+b.reserved+usd > b.limit {
		return &Exhausted{State{b.limit, b.spent, b.reserved, b.refused}, b.daily, usd}
	}
	return nil
}

// Refused counts a call that was refused.
func (b *Budget) Refused() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused++
}

// Spend takes usd from the Budget, also beyond the limit: the money is gone.
func (b *Budget) Spend(usd float64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turnLocked()
	b.spent += usd
}

// A Reservation is an amount that a call may cost. Take reserves the amount, and
// Release or Spend frees the amount.
type Reservation struct {
	b        *Budget
	usd      float64
	realtime float64
	state    state // guarded by b.mu
}

type state uint8

const (
	planned state = iota
	taken
	released
)

// Plan returns a Reservation of usd that reserves nothing yet, or nil for a nil
// Budget. realtime is what the call may cost if the call is sent in real time.
func (b *Budget) Plan(usd, realtime float64) *Reservation {
	if b == nil {
		return nil
	}
	return &Reservation{b: b, usd: usd, realtime: realtime}
}

// Realtime returns what the call may cost in real time, which nothing is reserved
// for.
func (r *Reservation) Realtime() float64 {
	if r == nil {
		return 0
	}
	return r.realtime
}

// Again returns a Reservation of the same amounts that reserves nothing yet.
func (r *Reservation) Again() *Reservation {
	if r == nil {
		return nil
	}
	return r.b.Plan(r.usd, r.realtime)
}

// Take reserves the amount, or returns an *Exhausted if the amount does not fit.
// After the first success, and after Release, Take does nothing.
func (r *Reservation) Take() error {
	if r == nil {
		return nil
	}
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	if r.state != planned {
		return nil
	}
	if err := r.b.fitsLocked(r.usd); err != nil {
		return err
	}
	r.state = taken
	r.b.reserved += r.usd
	return nil
}

// Release frees the amount. Only the first call has an effect.
func (r *Reservation) Release() {
	if r == nil {
		return
	}
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	r.releaseLocked()
}

func (r *Reservation) releaseLocked() {
	if r.state == taken {
		r.b.reserved = max(r.b.reserved-r.usd, 0) // never below zero by rounding
	}
	r.state = released
}

// Spend frees the amount and takes it from the Budget, for a call whose real cost
// is not known.
func (r *Reservation) Spend() {
	if r == nil {
		return
	}
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	r.releaseLocked()
	r.b.turnLocked()
	r.b.spent += r.usd
}
