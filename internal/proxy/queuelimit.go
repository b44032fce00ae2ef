package proxy

import (
	"errors"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher"
)

// errQueueFull is the read error of a body whose call does not fit into the queue.
var errQueueFull = errors.New("the maximum number of calls waits to be sent")

// queueInterval is the minimum time between two measurements of the queue.
const queueInterval = 10 * time.Millisecond

// A queueLimit limits the number of calls that wait to be sent: calls whose body has
// arrived and whose batch the provider has not created yet. The Transport knows the
// calls that it has queued, but counting costs time in proportion to the number of
// calls. A queueLimit therefore adds the calls that came since the last measurement,
// and measures again only when the sum reaches the maximum. So never more calls wait
// than the maximum, apart from calls that the Transport resubmits; a call may be
// refused although calls were sent since the last measurement, which is at most
// queueInterval, or ten times the time of a measurement, ago. All methods may be
// called concurrently.
type queueLimit struct {
	max   int // 0: no limit
	stats func() autobatcher.Stats

	mu        sync.Mutex // not held while stats runs
	measured  int        // queued calls at the last measurement
	parsing   int        // calls with a reserved place: the Transport has not queued the calls yet
	added     int        // calls that the Transport has queued since the last measurement began
	last      time.Time  // end of the last measurement
	interval  time.Duration
	measuring chan struct{} // closed at the end of the measurement under way; nil: none
}

// A queuePlace is the place of one call in the queue, from the arrival of the body
// until the Transport counts the call.
type queuePlace struct {
	limit *queueLimit
	state placeState // guarded by limit.mu
}

type placeState int

const (
	placeFree placeState = iota
	placeReserved
	placeEnded // the Transport counts the call, or the call waits for nothing
)

// reserve reserves the place of a call whose body has arrived, or returns false if
// the queue is full. A call that is sent in real time, before its body has arrived or
// after, needs no place.
func (p *queuePlace) reserve() bool {
	l := p.limit
	if l.full() && !p.ended() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.max == 0 || p.state != placeFree:
		return true
	case l.fullLocked():
		return false
	}
	p.state = placeReserved
	l.parsing++
	return true
}

// queued says that the Transport has queued the call: the Transport's statistics
// count the call from now on.
func (p *queuePlace) queued() { p.end(1) }

// release frees the place of a call that was not queued.
func (p *queuePlace) release() { p.end(0) }

func (p *queuePlace) ended() bool {
	p.limit.mu.Lock()
	defer p.limit.mu.Unlock()
	return p.state == placeEnded
}

func (p *queuePlace) end(added int) {
	l := p.limit
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.state == placeReserved {
		l.parsing--
		l.added += added
	}
	p.state = placeEnded
}

// full reports whether the queue is full.
func (l *queueLimit) full() bool {
	if l.max == 0 {
		return false
	}
	l.mu.Lock()
	full := l.fullLocked()
	l.mu.Unlock()
	if !full {
		return false
	}
	l.measure()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fullLocked()
}

func (l *queueLimit) fullLocked() bool { return l.measured+l.parsing+l.added >= l.max }

// measure asks the Transport for the number of queued calls, unless the last
// measurement is new, or waits while another goroutine asks. A slow measurement is
// repeated less often.
func (l *queueLimit) measure() {
	began := time.Now()
	l.mu.Lock()
	if other := l.measuring; other != nil {
		l.mu.Unlock()
		<-other
		return
	}
	if !l.last.IsZero() && began.Sub(l.last) < l.interval {
		l.mu.Unlock()
		return
	}
	done := make(chan struct{})
	defer close(done) // after the result is stored
	l.measuring = done
	before := l.added
	l.mu.Unlock()

	queued := l.stats().Queued

	l.mu.Lock()
	defer l.mu.Unlock()
	l.measured, l.added, l.measuring = queued, l.added-before, nil
	l.last = time.Now()
	l.interval = max(queueInterval, 10*l.last.Sub(began))
}
