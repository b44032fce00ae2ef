package dashboard

import (
	"maps"
	"slices"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/provider"
)

// Limits of the page. Beyond the limits the page shows the batches with the newest
// events and the first queues, and says that entries are hidden.
const (
	maxFinished = 1000    // finished batches
	maxRunning  = 400     // running batches
	maxQueues   = 100     // queues
	maxModels   = 8       // models of a queue or a batch
	maxText     = 200     // characters of a text
	maxMessage  = 1 << 10 // bytes of an error message before redaction

	// maxSilence is how long a running batch is shown without an event. A batch
	// has no event while the provider's counts do not change, and can wait for a
	// day before the provider runs the first line.
	maxSilence = 48 * time.Hour
)

// A queue is a batch that collects calls.
type queue struct {
	Account  string   `json:"account"` // distinguishes credentials without revealing a credential
	Upstream string   `json:"upstream"`
	Endpoint string   `json:"endpoint"`
	Models   []string `json:"models"`
	More     int      `json:"more,omitempty"`    // number of models that are not listed
	Callers  []string `json:"callers,omitempty"` // the client keys, by name
	Calls    int      `json:"calls"`
	Bytes    int64    `json:"bytes"`
	Opened   int64    `json:"opened"`
}

// A snapshot is the state of the page, without the chart.
type snapshot struct {
	Now      int64     `json:"now"`
	Closing  bool      `json:"closing"`
	Queued   int       `json:"queued"`
	Running  int       `json:"running"`
	OK       int64     `json:"ok"`       // callers that got an answer below status 400 of their line
	Errors   int64     `json:"errors"`   // callers that got the provider's error for their line
	NoAnswer int64     `json:"noAnswer"` // callers that got an error of their batch or of autobatcher
	Left     int64     `json:"left"`     // callers that disconnected
	Answered int64     `json:"answered"` // OK and Errors, as in the chart
	Reasons  []reason  `json:"reasons"`
	Cost     *cost     `json:"cost,omitempty"`
	Budget   *budget   `json:"budget,omitempty"`
	ByLane   []total   `json:"byLane"` // costs; empty if all answers are of one lane
	Models   []total   `json:"models"`
	Keys     []total   `json:"keys"`
	Times    []times   `json:"times"`
	Queues   []queue   `json:"queues"`
	Hidden   int       `json:"hidden"` // number of queues that are not listed
	Lanes    []laneRow `json:"lanes"`
	Other    int64     `json:"otherTier"` // calls at the flex tier that were billed at another tier
	Finished int       `json:"finished"`  // number of batches that ended since the start, also if they are not listed
	Batches  []batch   `json:"batches"`   // running batches, then finished batches, then calls at the flex tier that run in the background, newest first
	Partial  bool      `json:"partial"`   // some running batches may not be listed

	// Of a frame of the stream, whose Batches are those that changed since the last
	// frame.
	Changes bool  `json:"changes,omitempty"`
	Gone    []int `json:"gone,omitempty"` // numbers of batches that are no longer listed
}

// A budget is the state of --budget, in US dollars.
type budget struct {
	Limit   float64 `json:"limit"`
	Spent   float64 `json:"spent"`
	Refused int64   `json:"refused"` // calls
}

// A board holds the batches, as reported by events. A board is not safe for
// concurrent use: Dashboard.mu guards the board.
type board struct {
	seq, rev int
	running  map[string]*record // key: batch id
	finished []*record          // oldest first
	ended    map[string]*record // the finished batches by id
	total    int                // number of finished batches, also if they are not listed
	closing  bool

	flex map[string]*record // calls at the flex tier that run in the background; key: id

	reasons     []reason // of all failures
	turnarounds map[string][]int64
}

func newBoard() board {
	return board{running: make(map[string]*record), ended: make(map[string]*record), turnarounds: make(map[string][]int64), flex: make(map[string]*record)}
}

// record updates the board for an event. An event of an unknown batch adds the
// batch: the process may have restarted, or prune may have removed the batch.
func (b *board) record(e autobatcher.Event) {
	id := clip(e.BatchID)
	switch {
	case e.Name == autobatcher.ClientClosing:
		b.closing = true
		return
	case e.CompletionWindow == provider.FlexWindow || b.flex[id] != nil:
		b.recordFlex(id, e)
		return
	case e.Name == autobatcher.BatchCost:
		if t := b.find(id); t != nil {
			t.Cost = newCost(e.Cost)
			b.changed(t)
		}
		return
	case e.Name == autobatcher.CallEscalated:
		return // an event of a call
	case b.ended[id] != nil:
		return // a late event, for example of a cancellation
	}
	t := b.running[id]
	if t == nil {
		t = b.newRecord(id, e)
	}
	t.apply(e)
	b.changed(t)
	if t.Finished || id == "" {
		b.finish(t)
		return
	}
	b.running[id] = t
	if len(b.running) > maxRunning {
		delete(b.running, oldest(b.running))
	}
}

// newRecord returns the record of a batch whose first event is e.
func (b *board) newRecord(id string, e autobatcher.Event) *record {
	b.seq++
	return &record{batch: batch{Seq: b.seq, ID: id, Models: []string{}, Created: e.Time.UnixMilli()}}
}

// changed gives a batch a new revision.
func (b *board) changed(t *record) {
	b.rev++
	t.Rev = b.rev
}

// find returns the batch with an id, or nil.
func (b *board) find(id string) *record {
	if t := b.running[id]; t != nil {
		return t
	}
	return b.ended[id]
}

// details returns a copy of the batch with a number, and false if the batch is not
// listed.
func (b *board) details(seq int, now time.Time) (record, bool) {
	for _, t := range b.running {
		if t.Seq == seq {
			c := t.copy()
			c.batch = b.estimated(c.batch, now)
			return c, true
		}
	}
	for _, t := range slices.AppendSeq(slices.Clone(b.finished), maps.Values(b.flex)) {
		if t.Seq == seq {
			return t.copy(), true
		}
	}
	return record{}, false
}

// finish moves a batch to the finished batches, and removes the oldest finished
// batch beyond the limit.
func (b *board) finish(t *record) {
	delete(b.running, t.ID)
	if t.ID != "" {
		b.ended[t.ID] = t
	}
	b.total++
	if t.Status == "completed" {
		b.noteTurnaround(t.Endpoint, t.Ended-t.Created)
	}
	b.finished = append(b.finished, t)
	if len(b.finished) > maxFinished {
		delete(b.ended, b.finished[0].ID)
		b.finished = slices.Delete(b.finished, 0, 1)
	}
}

// oldest returns the id of the batch with the oldest last event.
func oldest(batches map[string]*record) (id string) {
	var oldest *record
	for runningID, t := range batches {
		if oldest == nil || t.EventTime < oldest.EventTime {
			id, oldest = runningID, t
		}
	}
	return id
}

// prune removes what runs and had no event for maxSilence.
func (b *board) prune(now time.Time) {
	limit := now.Add(-maxSilence).UnixMilli()
	silent := func(_ string, t *record) bool { return t.EventTime < limit }
	maps.DeleteFunc(b.running, silent)
	maps.DeleteFunc(b.flex, silent)
}

// snapshot returns a copy of the state of the page, without the calls by lane.
func (b *board) snapshot(now time.Time, stats autobatcher.Stats) snapshot {
	s := snapshot{
		Now: now.UnixMilli(), Closing: b.closing, Partial: len(b.running) >= maxRunning,
		Queued: stats.Queued, Running: stats.Running,
		OK: stats.Answered - stats.Errors, Errors: stats.Errors, NoAnswer: stats.Failed, Left: stats.Left, Answered: stats.Answered,
		Reasons: slices.Clone(b.reasons), Cost: newCost(stats.Cost),
		ByLane: laneTotals(stats.Costs), Models: totals(stats.Costs, modelOf), Keys: totals(stats.Costs, keyOf),
		Times:    newTimes(stats.Times),
		Queues:   make([]queue, 0, min(len(stats.Queues), maxQueues)),
		Finished: b.total,
		Batches:  make([]batch, 0, len(b.running)+len(b.finished)+len(b.flex)),
	}
	if stats.Budget.LimitUSD > 0 {
		s.Budget = &budget{stats.Budget.LimitUSD, stats.Budget.SpentUSD, stats.Budget.Refused}
	}
	for _, t := range b.running {
		s.Batches = append(s.Batches, b.estimated(t.batch, now))
	}
	slices.SortFunc(s.Batches, func(x, y batch) int { return y.Seq - x.Seq })
	for _, t := range slices.Backward(b.finished) {
		s.Batches = append(s.Batches, t.batch)
	}
	s.Batches = append(s.Batches, b.flexCalls()...)
	for _, q := range stats.Queues {
		switch {
		case q.Calls == 0: // all callers have disconnected
		case len(s.Queues) == maxQueues:
			s.Hidden++
		default:
			s.Queues = append(s.Queues, newQueue(q))
		}
	}
	return s
}

func newQueue(q autobatcher.QueueStats) queue {
	models, more := clipModels(q.Models)
	return queue{
		Account: q.Payer, Upstream: clip(q.Upstream), Endpoint: clip(q.Endpoint),
		Models: models, More: more, Callers: clipCallers(q.Callers),
		Calls: q.Calls, Bytes: q.Bytes, Opened: q.Opened.UnixMilli(),
	}
}
