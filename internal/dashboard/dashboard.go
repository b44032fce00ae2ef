// Package dashboard is the page that shows an autobatcher.Transport at work:
// what is queued, every batch and how far it is, and the last hour as a chart.
//
// The page is plain HTML, CSS and JavaScript, embedded, and kept up to date by
// server-sent events. It loads nothing from other hosts and shows neither a
// prompt nor a credential.
package dashboard

import (
	"sync"
	"time"

	"github.com/autobatcher/autobatcher"
)

const (
	defaultHistory = time.Hour

	// points is how many samples make up the history.
	points = 360

	// tick is how often viewers are told what changed, and the finest a sample
	// can be.
	tick = time.Second
)

// Options configure a Dashboard.
type Options struct {
	// Stats says what the Transport holds: its method of that name. It is
	// asked at once by New, once a second while somebody watches, and for each
	// sample of the chart. Nil: nothing is ever queued.
	Stats func() autobatcher.Stats

	// History is how far back the chart reaches. It is sampled 360 times, at
	// most once a second, so the default has a sample every 10 s.
	// Default: 1 h, also where it is negative.
	History time.Duration
}

// A Dashboard is an http.Handler and a listener to events. Its memory is
// bounded, whatever happens. All methods may be called concurrently. Make one
// with New, and Close it.
type Dashboard struct {
	stats func() autobatcher.Stats

	mu    sync.Mutex // never held across Stats, marshalling or the network
	board board

	feed feed

	end  sync.Once
	done chan struct{} // closed by Close
	turn chan struct{} // holds a token while a refresh goes on
	work sync.WaitGroup
}

// New returns a Dashboard that samples until it is closed.
func New(o Options) *Dashboard {
	if o.Stats == nil {
		o.Stats = func() autobatcher.Stats { return autobatcher.Stats{} }
	}
	if o.History <= 0 {
		o.History = defaultHistory
	}
	d := &Dashboard{stats: o.Stats, board: newBoard(), done: make(chan struct{}), turn: make(chan struct{}, 1)}
	d.feed.history.step = max(o.History/points, tick).Round(tick)
	d.refresh(time.Now(), true)
	d.work.Go(d.run)
	return d
}

// OnEvent notes what happened to a batch. It is made for
// autobatcher.Options.OnEvent: it waits for nobody.
func (d *Dashboard) OnEvent(e autobatcher.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.board.note(e)
}

// Close ends the streams of all viewers, and the sampling. The page and its
// snapshot are served on, as they last were. Closing again does nothing.
func (d *Dashboard) Close() {
	d.end.Do(func() { close(d.done) })
	d.work.Wait()
}

// run samples, and tells the viewers.
func (d *Dashboard) run() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			d.refresh(now, d.feed.watched())
		case <-d.done:
			d.feed.end()
			return
		}
	}
}

// refresh takes a sample if one is due, and a new snapshot if one is wanted and
// the last is old enough: however many watch, it is made once. One refresh goes
// on at a time; no lock is held while Stats is asked.
func (d *Dashboard) refresh(now time.Time, wanted bool) {
	d.turn <- struct{}{}
	defer func() { <-d.turn }()
	due, wanted := d.feed.needs(now, wanted)
	if !due && !wanted {
		return
	}
	stats := d.stats()
	d.feed.mu.Lock()
	defer d.feed.mu.Unlock()
	if due {
		d.feed.sample(now, stats)
	}
	d.feed.publish(now, d.snapshot(now, stats))
}

func (d *Dashboard) snapshot(now time.Time, stats autobatcher.Stats) snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.board.prune(now)
	return d.board.snapshot(now, stats)
}
