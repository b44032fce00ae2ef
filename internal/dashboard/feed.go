package dashboard

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher"
)

const (
	// maxViewers is the maximum number of open streams.
	maxViewers = 500

	// maxPending is the maximum number of unread frames of a viewer. A viewer with
	// more unread frames is disconnected, and the page reconnects.
	maxPending = 8

	// keepAlive is the maximum interval between frames of a stream. After 30 s
	// without a frame the page reconnects.
	keepAlive = 10 * time.Second
)

// A frame is the bytes of one server-sent event. All viewers share the bytes.
type frame []byte

// A viewer is the queue of frames for one open stream. Closing the channel ends the
// stream.
type viewer chan frame

// A feed holds the latest snapshot and the history, and sends updates to viewers.
type feed struct {
	mu      sync.Mutex // guards all fields
	history history
	viewers map[viewer]struct{}
	closed  bool

	taken    time.Time         // time of the latest snapshot
	state    snapshot          // the latest snapshot
	whole    []byte            // JSON of state, which new viewers share; nil: not made yet
	sent     time.Time         // time of the last state frame
	lastSent []byte            // JSON of the last state frame, without the time and without the batches
	versions map[int]versionOf // the batches that the viewers have, by number
	chart    []byte            // JSON of the history
}

// A versionOf a batch changes when the batch changes.
type versionOf struct {
	rev      int
	estimate int64
}

// hasViewers reports whether a stream is open.
func (f *feed) hasViewers() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.viewers) > 0
}

// needs reports whether a sample is due, and whether a wanted snapshot must be
// taken because the latest snapshot is too old. A closed feed needs neither.
func (f *feed) needs(now time.Time, wanted bool) (sampleDue, snapshotDue bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false, false
	}
	return f.history.due(now), wanted && f.staleLocked(now)
}

// sampleLocked adds a sample to the history, and sends the history to the viewers.
func (f *feed) sampleLocked(now time.Time, stats autobatcher.Stats) {
	f.history.add(now, stats)
	f.chart = marshal(f.history.chart())
	f.sendLocked(event("chart", f.chart))
}

// publishLocked replaces the latest snapshot. The viewers get what has changed: a
// page with a thousand batches is not sent once a second. If nothing has changed, the
// viewers get a frame after keepAlive.
func (f *feed) publishLocked(now time.Time, s snapshot) {
	f.taken, f.state, f.whole = now, s, nil
	changes, versions := f.changesLocked(s)
	head := changes
	head.Now, head.Batches, head.Gone = 0, nil, nil
	withoutTime := marshal(head)
	unchanged := len(changes.Batches)+len(changes.Gone) == 0 && bytes.Equal(withoutTime, f.lastSent)
	if unchanged && now.Sub(f.sent) < keepAlive {
		return
	}
	f.lastSent, f.sent, f.versions = withoutTime, now, versions
	f.sendLocked(event("state", marshal(changes)))
}

// changesLocked returns the snapshot with only the batches that the viewers do not
// have, and the versions of all batches.
func (f *feed) changesLocked(s snapshot) (changes snapshot, versions map[int]versionOf) {
	changes, versions = s, make(map[int]versionOf, len(s.Batches))
	changes.Changes, changes.Batches = true, []batch{}
	for _, b := range s.Batches {
		v := versionOf{b.Rev, b.Estimate}
		versions[b.Seq] = v
		if f.versions[b.Seq] != v {
			changes.Batches = append(changes.Batches, b)
		}
	}
	for seq := range f.versions {
		if _, listed := versions[seq]; !listed {
			changes.Gone = append(changes.Gone, seq)
		}
	}
	return changes, versions
}

// sendLocked queues a frame for every viewer. A viewer with a full queue is
// disconnected.
func (f *feed) sendLocked(fr frame) {
	for v := range f.viewers {
		select {
		case v <- fr:
		default:
			f.dropLocked(v)
		}
	}
}

// dropLocked disconnects a viewer. A second call for the same viewer does nothing.
func (f *feed) dropLocked(v viewer) {
	if _, ok := f.viewers[v]; ok {
		delete(f.viewers, v)
		close(v)
	}
}

// wholeLocked returns the latest snapshot as JSON, with all batches.
func (f *feed) wholeLocked() []byte {
	if f.whole == nil {
		f.whole = marshal(f.state)
	}
	return f.whole
}

// subscribe adds a viewer. The queue of the viewer starts with the current chart
// and state. subscribe returns nil if the feed has maxViewers viewers or is closed.
func (f *feed) subscribe() viewer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || len(f.viewers) >= maxViewers {
		return nil
	}
	v := make(viewer, maxPending)
	v <- event("chart", f.chart)
	v <- event("state", f.wholeLocked())
	if f.viewers == nil {
		f.viewers = make(map[viewer]struct{})
	}
	f.viewers[v] = struct{}{}
	return v
}

// unsubscribe removes a viewer. The viewer may be disconnected already.
func (f *feed) unsubscribe(v viewer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropLocked(v)
}

// close disconnects all viewers, and makes subscribe return nil.
func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for v := range f.viewers {
		f.dropLocked(v)
	}
}

// staleLocked reports whether the latest snapshot is old enough to be replaced. The
// limit is less than refreshInterval, because a tick of the ticker may be early.
func (f *feed) staleLocked(now time.Time) bool {
	return now.Sub(f.taken) >= refreshInterval-refreshInterval/10
}

// latest returns the latest snapshot and the chart as one JSON object.
func (f *feed) latest() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return marshal(map[string]json.RawMessage{"state": f.wholeLocked(), "chart": f.chart})
}

func event(name string, data []byte) frame {
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, data)
}

// marshal returns v as JSON. marshal panics on an error, which the types of this
// package cannot cause.
func marshal(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("dashboard: %v", err))
	}
	return data
}
