package ratelimit

import (
	"sync"
	"time"
)

// maxHourlies bounds the names of an Hourlies.
const maxHourlies = 10_000

// An Hourlies allows a number of events within any hour for each name. An Hourlies
// is safe for concurrent use.
type Hourlies struct {
	limit int

	mu    sync.Mutex
	named map[string]*Hourly // guarded by mu
}

// NewHourlies returns an Hourlies of limit events for each name; zero or less means
// no limit.
func NewHourlies(limit int) *Hourlies {
	return &Hourlies{limit: limit, named: make(map[string]*Hourly)}
}

// Take is Hourly.Take for the events of name. If 10,000 names have had an event
// within the last hour, Take allows a further name no event.
func (h *Hourlies) Take(name string) (wait time.Duration, ok bool) {
	hourly := h.of(name)
	if hourly == nil {
		return time.Hour, false
	}
	return hourly.Take()
}

// of returns the Hourly of name, or nil beyond the bound.
func (h *Hourlies) of(name string) *Hourly {
	h.mu.Lock()
	defer h.mu.Unlock()
	hourly := h.named[name]
	if hourly == nil {
		if len(h.named) >= maxHourlies {
			h.forgetLocked()
		}
		if len(h.named) >= maxHourlies {
			return nil
		}
		hourly = NewHourly(h.limit)
		h.named[name] = hourly
	}
	return hourly
}

// forgetLocked forgets the names without an event in the last hour.
func (h *Hourlies) forgetLocked() {
	now := time.Now()
	for name, hourly := range h.named {
		if hourly.idle(now) {
			delete(h.named, name)
		}
	}
}

// idle reports whether the last hour had no event.
func (h *Hourly) idle(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.window.expire(now)
	return len(h.window.used) == 0
}
