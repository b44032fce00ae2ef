package dashboard

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/autobatcher/autobatcher"
)

// What the page can hold. Beyond these bounds it shows the newest batches and
// the oldest queues, and says how many there are more.
const (
	maxFinished = 100
	maxRunning  = 400
	maxQueues   = 100
	maxModels   = 8
	maxText     = 200     // characters of any one text
	maxMessage  = 1 << 10 // bytes of an error that are looked at

	// silence is how long a running batch may be without an event before it
	// is no longer shown. Providers say nothing while nothing changes, and a
	// batch may wait for a whole day before its first line is run.
	silence = 48 * time.Hour
)

// A batch is one batch as the page shows it. Times are Unix milliseconds.
type batch struct {
	Seq       int      `json:"seq"` // tells batches apart, in the order they were seen
	ID        string   `json:"id"`  // "" where the provider refused the batch
	Endpoint  string   `json:"endpoint"`
	Models    []string `json:"models"`
	Window    string   `json:"window"`
	Status    string   `json:"status"`
	Finished  bool     `json:"finished"`
	Completed int      `json:"completed"`
	Failed    int      `json:"failed"`
	Total     int      `json:"total"`
	Created   int64    `json:"created"`
	Ended     int64    `json:"ended,omitempty"`
	Event     string   `json:"event"` // the last one
	EventTime int64    `json:"eventTime"`
	Error     string   `json:"error,omitempty"`
}

// A queue is one batch that is collecting.
type queue struct {
	Payer    string   `json:"payer"`
	Upstream string   `json:"upstream"`
	Endpoint string   `json:"endpoint"`
	Models   []string `json:"models"`
	More     int      `json:"more,omitempty"` // models that are not listed
	Calls    int      `json:"calls"`
	Bytes    int64    `json:"bytes"`
	Opened   int64    `json:"opened"`
}

// A snapshot is all that the page shows but for the chart.
type snapshot struct {
	Now      int64   `json:"now"`
	Closing  bool    `json:"closing"`
	Queued   int     `json:"queued"`
	Running  int     `json:"running"`
	Answered int64   `json:"answered"`
	Failed   int64   `json:"failed"`
	Left     int64   `json:"left"`
	Queues   []queue `json:"queues"`
	Hidden   int     `json:"hidden"`  // queues that are not listed
	Batches  []batch `json:"batches"` // those that run, then the others, newest first
	Crowded  bool    `json:"crowded"` // there may be more that run
}

// A board is what is known of the batches, told by their events.
type board struct {
	seq      int
	running  map[string]*batch // by id
	finished []batch           // oldest first
	ended    map[string]bool   // the ids among finished
	closing  bool
}

func newBoard() board {
	return board{running: make(map[string]*batch), ended: make(map[string]bool)}
}

// note takes an event in. A batch that is not known, because the process was
// started anew or it was pruned, is known from then on.
func (b *board) note(e autobatcher.Event) {
	id := clip(e.BatchID)
	switch {
	case e.Name == autobatcher.ClientClosing:
		b.closing = true
		return
	case b.ended[id]:
		return // the answer to a cancellation, say, that came too late
	}
	t := b.running[id]
	if t == nil {
		b.seq++
		t = &batch{Seq: b.seq, ID: id, Models: []string{}, Created: e.Time.UnixMilli()}
	}
	t.apply(e)
	if t.Finished || id == "" {
		b.finish(t)
		return
	}
	b.running[id] = t
	if len(b.running) > maxRunning {
		delete(b.running, b.stalest())
	}
}

// apply brings the batch up to an event. Not every event has every field.
func (t *batch) apply(e autobatcher.Event) {
	if e.Elapsed > 0 {
		t.Created = e.Time.Add(-e.Elapsed).UnixMilli()
	}
	t.Event, t.EventTime = string(e.Name), e.Time.UnixMilli()
	t.Endpoint = cmp.Or(clip(e.Endpoint), t.Endpoint)
	t.Window = cmp.Or(clip(e.CompletionWindow), t.Window)
	t.Status = cmp.Or(clip(e.Status), t.Status)
	if e.Models != nil {
		t.Models, _ = clipModels(e.Models)
	}
	if e.Counts != (autobatcher.Counts{}) {
		t.Completed, t.Failed = max(e.Counts.Completed, 0), max(e.Counts.Failed, 0)
	}
	t.Total = max(e.Counts.Total, e.RequestCount, t.Total)
	switch e.Name {
	case autobatcher.BatchSubmissionFailed:
		t.Status, t.Finished = "not submitted", true
	case autobatcher.BatchCompleted:
		t.Status, t.Finished = "completed", true
	case autobatcher.BatchTerminal:
		t.Finished = true
		if t.Status == "cancelling" {
			t.Status = "given up" // it said so for too long
		}
	case autobatcher.BatchCancelRequested:
		t.Status = "cancelling"
	}
	if e.Error != "" {
		t.Error = clip(redact(e.Error))
	}
	if t.Finished {
		t.Ended = t.EventTime
	}
}

// finish moves a batch to those that have ended, and forgets the oldest of
// them.
func (b *board) finish(t *batch) {
	delete(b.running, t.ID)
	if t.ID != "" {
		b.ended[t.ID] = true
	}
	b.finished = append(b.finished, *t)
	if len(b.finished) > maxFinished {
		delete(b.ended, b.finished[0].ID)
		b.finished = slices.Delete(b.finished, 0, 1)
	}
}

// stalest is the running batch whose last event is the longest ago.
func (b *board) stalest() (id string) {
	var oldest *batch
	for i, t := range b.running {
		if oldest == nil || t.EventTime < oldest.EventTime {
			id, oldest = i, t
		}
	}
	return id
}

// prune stops showing the running batches that were not heard of for long.
func (b *board) prune(now time.Time) {
	limit := now.Add(-silence).UnixMilli()
	maps.DeleteFunc(b.running, func(_ string, t *batch) bool { return t.EventTime < limit })
}

// snapshot copies what the page shows.
func (b *board) snapshot(now time.Time, stats autobatcher.Stats) snapshot {
	s := snapshot{
		Now: now.UnixMilli(), Closing: b.closing, Crowded: len(b.running) >= maxRunning,
		Queued: stats.Queued, Running: stats.Running,
		Answered: stats.Answered, Failed: stats.Failed, Left: stats.Left,
		Queues:  make([]queue, 0, min(len(stats.Queues), maxQueues)),
		Batches: make([]batch, 0, len(b.running)+len(b.finished)),
	}
	for _, t := range b.running {
		s.Batches = append(s.Batches, *t)
	}
	slices.SortFunc(s.Batches, func(x, y batch) int { return y.Seq - x.Seq })
	for _, t := range slices.Backward(b.finished) {
		s.Batches = append(s.Batches, t)
	}
	for _, q := range stats.Queues {
		switch {
		case q.Calls == 0: // all its callers have gone
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
		Payer: q.Payer, Upstream: clip(q.Upstream), Endpoint: clip(q.Endpoint),
		Models: models, More: more,
		Calls: q.Calls, Bytes: q.Bytes, Opened: q.Opened.UnixMilli(),
	}
}

// clipModels lists the first models, and says how many there are more. Their
// names come from the callers and can be anything.
func clipModels(models []string) (clipped []string, more int) {
	if len(models) > maxModels {
		more = len(models) - maxModels
		models = models[:maxModels]
	}
	clipped = make([]string, len(models))
	for i, m := range models {
		clipped[i] = clip(m)
	}
	return clipped, more
}

// clip cuts a text to a length that cannot hurt the page.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := 0
	for i := range s {
		if n++; n > maxText {
			return s[:i] + "…"
		}
	}
	return s
}

// secrets match what an error message can carry and the page must not show:
// the query of a URL, the user named in it, and whatever looks like a key.
// Providers like to repeat the key they refused.
var secrets = regexp.MustCompile(`((?i:bearer|basic|key provided:) *)\S+|\?[^\s"'?]+=[^\s"']*|//[^\s/@"']+@|` +
	`\b(?:[sprx]k|key)[-_][\w*-]{6,}|\bAIza[\w*-]+|\b[\w*-]{32,}`)

func redact(message string) string {
	return secrets.ReplaceAllString(message[:min(len(message), maxMessage)], "${1}[hidden]")
}
