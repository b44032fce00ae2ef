// Package dashboard is the live status page of an autobatcher.Transport: the
// queued calls, the progress of every batch, and a chart of the last hour.
//
// Make a Dashboard with New, give OnEvent to the Transport as Options.OnEvent, and
// serve the Dashboard at "/" and "/autobatcher/".
//
// The files: dashboard.go updates the state once a second, board.go and batch.go hold
// the batches, estimate.go estimates when batches end, failure.go counts why calls
// fail, lanes.go counts the calls in each lane, totals.go adds up costs, history.go has the samples of the chart, feed.go
// sends updates to browsers, http.go serves the page, and plain.go the page without
// JavaScript. The page in assets is plain HTML, CSS and JavaScript, updated by
// server-sent events: app.js has the connection, the figures and the queues, list.js
// the list of batches, batch.js the page of a batch, chart.js the chart. The page
// loads nothing from other hosts, and shows neither prompts nor credentials.
package dashboard

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/lane"
)

const (
	defaultHistory = time.Hour

	// historySamples is the number of samples in a full history.
	historySamples = 360

	// refreshInterval is the interval between updates for viewers, and the
	// minimum interval between samples.
	refreshInterval = time.Second
)

// Options configure a Dashboard.
type Options struct {
	// Stats is the method Stats of the Transport. New calls Stats; later the
	// Dashboard calls Stats for each sample of the chart, once a second while
	// viewers are connected, and for a request for the state. Calls are at least
	// 0.9 s apart, except for samples, and never concurrent. Nil: all counts are 0.
	Stats func() autobatcher.Stats

	// Realtime returns the counts of the calls in real time. The Dashboard calls Realtime
	// after Stats. Nil: all counts are 0.
	Realtime func() lane.RealtimeCalls

	// History is the time span of the chart. The chart has 360 samples, at most
	// one per second; the default has a sample every 10 s. 0 or negative means the
	// default of 1 h. The minimum is 6 min.
	History time.Duration

	// Sandbox says on the page that the answers are made up.
	Sandbox bool

	// Provider, Version and Journal are shown in the header of the page: the name of
	// the provider, the version of autobatcher, and what kind of journal is used, such
	// as "SQLite". Empty: not shown; an empty Journal is shown as "off".
	Provider, Version, Journal string

	// Cancel says that the page offers to cancel batches: that a POST to
	// "/autobatcher/cancel" is answered by the server in front of the Dashboard.
	Cancel bool
}

// A Dashboard is an http.Handler and a receiver of events. The memory of a
// Dashboard is bounded. Make a Dashboard with New, and Close the Dashboard after
// use. All methods may be called concurrently.
type Dashboard struct {
	opts Options

	mu    sync.Mutex // never held across Stats, marshalling or the network
	board board

	feed feed

	closeOnce  sync.Once
	done       chan struct{}  // closed by Close
	refreshing chan struct{}  // semaphore: holds a token during a refresh
	wg         sync.WaitGroup // counts the goroutine of run
}

// New returns a Dashboard that samples until it is closed.
func New(o Options) *Dashboard {
	if o.Stats == nil {
		o.Stats = func() autobatcher.Stats { return autobatcher.Stats{} }
	}
	if o.Realtime == nil {
		o.Realtime = func() lane.RealtimeCalls { return lane.RealtimeCalls{} }
	}
	if o.History <= 0 {
		o.History = defaultHistory
	}
	d := &Dashboard{opts: o, board: newBoard(), done: make(chan struct{}), refreshing: make(chan struct{}, 1)}
	d.feed.history.step = max(o.History/historySamples, refreshInterval).Round(refreshInterval)
	d.refresh(time.Now(), true)
	d.wg.Go(d.run)
	return d
}

// OnEvent records an event of a batch. Use OnEvent as autobatcher.Options.OnEvent.
// OnEvent does not wait for Stats, for viewers or for the network.
func (d *Dashboard) OnEvent(e autobatcher.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.board.record(e)
}

// Learn records how long a completed batch of an earlier process took, for the estimates
// of the page. The batch itself is not shown.
func (d *Dashboard) Learn(endpoint string, took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.board.noteTurnaround(clip(endpoint), took.Milliseconds())
}

// OnFailure counts a held call that ended without an OK answer. OnFailure does not
// wait for Stats, for viewers or for the network.
func (d *Dashboard) OnFailure(f Failure) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.board.fail(f)
}

// Callers returns the names of the callers of a batch, or of a call at the flex tier that
// runs in the background, and false if the page does not list the batch as running.
func (d *Dashboard) Callers(batchID string) ([]string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := cmp.Or(d.board.running[batchID], d.board.flex[batchID])
	if t == nil || batchID == "" {
		return nil, false
	}
	return slices.Clone(t.Callers), true
}

// Close ends the streams of all viewers, and stops sampling. Afterwards the
// Dashboard still serves the page and the last snapshot. Further calls do nothing.
func (d *Dashboard) Close() {
	d.closeOnce.Do(func() { close(d.done) })
	d.wg.Wait()
}

// run takes samples and updates the viewers until Close.
func (d *Dashboard) run() {
	ticker := time.NewTicker(refreshInterval)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			d.refresh(now, d.feed.hasViewers())
		case <-d.done:
			d.feed.close()
			return
		}
	}
}

// refresh takes a sample if a sample is due, and a snapshot if wanted is true and
// the last snapshot is old enough. All viewers share one snapshot. Concurrent
// calls wait for each other. No lock is held during the call of Stats.
func (d *Dashboard) refresh(now time.Time, wanted bool) {
	d.refreshing <- struct{}{}
	defer func() { <-d.refreshing }()
	sampleDue, wanted := d.feed.needs(now, wanted)
	if !sampleDue && !wanted {
		return
	}
	stats, realtime := d.opts.Stats(), d.opts.Realtime()
	d.feed.mu.Lock()
	defer d.feed.mu.Unlock()
	if sampleDue {
		d.feed.sampleLocked(now, stats)
	}
	d.feed.publishLocked(now, d.snapshot(now, stats, realtime))
}

func (d *Dashboard) snapshot(now time.Time, stats autobatcher.Stats, realtime lane.RealtimeCalls) snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.board.prune(now)
	s := d.board.snapshot(now, stats)
	s.Lanes, s.Other = newLanes(stats, realtime), stats.Cost.OtherTier
	return s
}
