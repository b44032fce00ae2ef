package journalsession

import (
	"sync"
	"time"
)

// Spaced returns a function that has f called in a goroutine of its own: at once, but
// never twice at the same time, and half a second after the call before at the earliest.
// Calls of the function that come meanwhile share the next call of f, so that many calls
// cost little. The function may be called concurrently, and does not block.
func (s *Session) Spaced(f func()) func() {
	return (&spaced{session: s, f: f}).soon
}

type spaced struct {
	session *Session
	f       func()

	mu      sync.Mutex
	wanted  bool      // soon was called after f was called last
	running bool      // a goroutine calls f while it is wanted
	next    time.Time // the earliest next call of f
}

func (r *spaced) soon() {
	r.mu.Lock()
	start := !r.running
	r.wanted, r.running = true, true
	r.mu.Unlock()
	if start && !r.session.Start(r.run) {
		r.stop()
	}
}

func (r *spaced) run() {
	ended := false
	defer func() {
		if !ended { // the user's Store exits the goroutine
			r.stop()
		}
	}()
	for !ended {
		if sleep(r.session.Context, time.Until(r.next)) != nil {
			return
		}
		r.mu.Lock()
		r.wanted = false
		r.mu.Unlock()
		r.f()
		r.mu.Lock()
		r.next = time.Now().Add(findDelay)
		ended = !r.wanted
		r.running = r.wanted
		r.mu.Unlock()
	}
}

func (r *spaced) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = false
}
