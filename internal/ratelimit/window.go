package ratelimit

import (
	"sync"
	"time"
)

// A window counts the events of the last hour. The caller provides the lock.
type window struct {
	limit int         // events within any hour; zero or less: no limit
	held  int         // slots handed out, and neither used nor returned
	used  []time.Time // of the events of the last hour, oldest first
}

// expire forgets the events that are an hour old.
func (w *window) expire(now time.Time) {
	for len(w.used) > 0 && now.Sub(w.used[0]) >= time.Hour {
		w.used = w.used[1:]
	}
}

// full reports whether every slot is held or used.
func (w *window) full(now time.Time) bool {
	w.expire(now)
	return w.limit > 0 && w.held+len(w.used) >= w.limit
}

// spend records an event.
func (w *window) spend(now time.Time) {
	if w.limit > 0 {
		w.used = append(w.used, now)
	}
}

// wait returns the time until the oldest event is an hour old; false if the
// window counts no event.
func (w *window) wait(now time.Time) (time.Duration, bool) {
	if len(w.used) == 0 {
		return 0, false
	}
	return time.Hour - now.Sub(w.used[0]), true
}

// An Hourly allows a number of events within any hour. An Hourly is safe for
// concurrent use.
type Hourly struct {
	mu     sync.Mutex
	window window // guarded by mu
}

// NewHourly returns an Hourly of limit events; zero or less means no limit.
func NewHourly(limit int) *Hourly { return &Hourly{window: window{limit: limit}} }

// Take counts an event that happens now and returns true. If the last hour has
// no room for the event, Take returns false and the time until the hour has
// room. Take does not block.
func (h *Hourly) Take() (wait time.Duration, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.window.full(now) {
		wait, _ = h.window.wait(now)
		return wait, false
	}
	h.window.spend(now)
	return 0, true
}
