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
	// maxViewers bounds the streams that are open at once.
	maxViewers = 500

	// maxBehind is how many frames a viewer may be behind before it is
	// dropped. Its page comes again by itself.
	maxBehind = 8

	// maxQuiet is how long a stream may be silent. The page takes longer
	// silence for a lost connection.
	maxQuiet = 10 * time.Second
)

// A frame is one server-sent event, made once and sent to every viewer.
type frame []byte

// A viewer is one open stream. Its channel is closed when it is dropped.
type viewer chan frame

// A feed holds what was last published, and those who want to hear what comes
// next.
type feed struct {
	mu      sync.Mutex
	history history
	viewers map[viewer]struct{}
	ended   bool

	taken     time.Time // when the snapshot was
	sent      time.Time // when viewers were last told
	state     []byte    // JSON of the snapshot
	unchanged []byte    // the same without its time
	chart     []byte    // JSON of the history
}

// watched reports whether anybody watches.
func (f *feed) watched() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.viewers) > 0
}

// needs reports whether a sample is due, and whether a snapshot that is wanted
// has to be made. Once the feed has ended, neither is.
func (f *feed) needs(now time.Time, wanted bool) (due, stale bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return false, false
	}
	return f.history.due(now), wanted && f.stale(now)
}

// sample adds to the history, and sends it. The caller holds f.mu.
func (f *feed) sample(now time.Time, stats autobatcher.Stats) {
	f.history.add(now, stats)
	f.chart = marshal(f.history.chart())
	f.send(event("chart", f.chart))
}

// publish sends a snapshot, unless it says nothing new. The caller holds f.mu.
func (f *feed) publish(now time.Time, s snapshot) {
	f.taken = now
	f.state = marshal(s)
	s.Now = 0
	said := marshal(s)
	if bytes.Equal(said, f.unchanged) && now.Sub(f.sent) < maxQuiet {
		return
	}
	f.unchanged, f.sent = said, now
	f.send(event("state", f.state))
}

// send hands a frame to every viewer that keeps up, and drops the others. The
// caller holds f.mu.
func (f *feed) send(fr frame) {
	for v := range f.viewers {
		select {
		case v <- fr:
		default:
			f.drop(v)
		}
	}
}

// drop ends a viewer. The caller holds f.mu.
func (f *feed) drop(v viewer) {
	if _, ok := f.viewers[v]; ok {
		delete(f.viewers, v)
		close(v)
	}
}

// join adds a viewer, which finds all that there is to know in its channel. It
// returns nil where there are too many, or the feed has ended.
func (f *feed) join() viewer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended || len(f.viewers) >= maxViewers {
		return nil
	}
	v := make(viewer, maxBehind)
	v <- event("chart", f.chart)
	v <- event("state", f.state)
	if f.viewers == nil {
		f.viewers = make(map[viewer]struct{})
	}
	f.viewers[v] = struct{}{}
	return v
}

// leave removes a viewer that has gone.
func (f *feed) leave(v viewer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(v)
}

// end drops all viewers, and takes no more.
func (f *feed) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	for v := range f.viewers {
		f.drop(v)
	}
}

// stale reports whether the snapshot may be replaced by now. It leaves the
// ticker, which brings one each second, some room to be early. The caller holds
// f.mu.
func (f *feed) stale(now time.Time) bool { return now.Sub(f.taken) >= tick-tick/10 }

// latest is all that the page shows, as one JSON object.
func (f *feed) latest() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return marshal(map[string]json.RawMessage{"state": f.state, "chart": f.chart})
}

func event(name string, data []byte) frame {
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, data)
}

// marshal cannot fail: what it is given are numbers and texts.
func marshal(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("dashboard: %v", err))
	}
	return data
}
