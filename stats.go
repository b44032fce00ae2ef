package autobatcher

import (
	"time"

	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/provider"
)

// Stats is what a Transport holds at one moment. It names no credential.
type Stats struct {
	Queued   int       // calls that were not sent yet
	Running  int       // calls whose line was sent and whose caller waits
	Answered int64     // callers that got the answer of their line, since New; of calls in the background, the answers
	Errors   int64     // of Answered: callers whose answer has a status of 400 or more
	Failed   int64     // callers that got an error of their batch or of autobatcher, since New
	Left     int64     // callers that stopped waiting before their answer came, since New
	Flex     FlexStats // of these: calls at the flex tier
	Queues   []QueueStats
	Batches  []BatchStats
	Times    []TurnaroundStats
	Cost     Cost       // since New
	Costs    []CostPart // Cost by account, caller, model and lane; the part without names has what is beyond 1,000 parts
	Budget   BudgetStats
}

// FlexStats counts the calls at the flex tier.
type FlexStats struct {
	Waiting                  int   // of Queued and Running
	Answered, Errors, Failed int64 // as in Stats
}

// TurnaroundStats is how long batches, and calls at the flex tier, took from their
// creation to their end: at most the newest 50 of a kind.
type TurnaroundStats struct {
	Provider    string // name of the profile
	Model       string
	Window      string // completion window; "flex" for calls at the flex tier
	Count       int
	Median, P90 time.Duration
}

// QueueStats describes a batch that was not sent yet.
type QueueStats struct {
	Payer    string // tells accounts apart without naming them; differs from process to process, unless the processes share a journal
	Upstream string // base URL, without its query
	Endpoint string
	Models   []string // sorted, each once
	Callers  []string // names of the callers, sorted, each once; only where a server has named its clients
	Calls    int
	Bytes    int64
	Opened   time.Time
}

// BatchStats describes a batch that exists at the provider and has not ended.
type BatchStats struct {
	ID       string
	Endpoint string
	Status   string    // as the provider last said, such as validating, in_progress or finalizing
	Counts   Counts    // as the provider last said
	Calls    int       // whose callers wait
	Created  time.Time // by the clock of this process
}

// Stats returns a snapshot.
func (t *Transport) Stats() Stats {
	n, flex := t.registry.Counters()
	s := Stats{Answered: n.Answered, Errors: n.Errors, Failed: n.Failed, Left: n.Left, Flex: FlexStats{0, flex.Answered, flex.Errors, flex.Failed}, Cost: Cost(t.router.meter.Total()), Budget: BudgetStats(t.router.meter.Budget().State())}
	for _, p := range t.router.meter.Parts() {
		s.Costs = append(s.Costs, CostPart{p.Payer, p.Caller, p.Model, Mode(p.Lane), Cost(p.Total)})
	}
	for _, known := range t.router.turnaround.All() {
		s.Times = append(s.Times, TurnaroundStats(known))
	}
	for _, b := range t.allBatches() {
		queued := b.queue.Calls() // before Census: a call may become a line meanwhile, and counts once
		id, waiting, running := b.lines.Census(queued, b.key.window == provider.FlexWindow)
		s.Queued += waiting
		s.Running += running
		if b.key.window == provider.FlexWindow {
			s.Flex.Waiting += waiting + running
		}
		switch e := lastEvent(t, b); {
		case id != "" && e.BatchID != "":
			s.Batches = append(s.Batches, BatchStats{e.BatchID, e.Endpoint, e.Status, e.Counts, running, e.Time.Add(-e.Elapsed)})
		case waiting > 0:
			q := b.queueStats(queued)
			q.Calls = waiting
			s.Queues = append(s.Queues, q)
		}
	}
	return s
}

// lastEvent is the last event of a batch; the zero Event before the first.
func lastEvent(t *Transport, b *batch) Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.batches[b]
}

// queueStats describes the calls that were not sent yet, without their number.
func (b *batch) queueStats(queued []*call) QueueStats {
	_, bytes := b.queue.Size()
	a := b.key.account
	q := QueueStats{Payer: a.Name, Upstream: a.Upstream(), Bytes: bytes, Opened: b.queue.Opened}
	if first := b.queue.First; first != nil { // b.url changes when calls become lines
		q.Endpoint = first.URL
	} else { // of another process
		q.Endpoint = b.url
	}
	n := caller.NamesOf(queued, asked)
	q.Models, q.Callers = n.Models, n.Callers
	return q
}
