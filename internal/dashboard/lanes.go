package dashboard

import (
	"slices"

	"github.com/autobatcher/autobatcher"
)

// Realtime counts the model calls that are answered in real time.
type Realtime struct {
	Chosen    LaneCalls // the operator or the caller chose real time, or the provider does not batch the call
	Escalated LaneCalls // waited for a batch or for the flex tier before
}

// LaneCalls counts the calls of a lane.
type LaneCalls struct {
	Waiting int   // whose answer has not ended
	OK      int64 // ended with a status below 400
	Failed  int64 // ended otherwise
}

// A lane has the calls of one lane in the form of the page.
type lane struct {
	Name    string `json:"name"`
	Waiting int    `json:"waiting"`
	OK      int64  `json:"ok"`
	Failed  int64  `json:"failed"`
}

func (c LaneCalls) named(name string) lane { return lane{name, c.Waiting, c.OK, c.Failed} }

// The names of the lanes that have costs.
const (
	inBatches = "in batches"
	atFlex    = "at the flex tier"
	escalated = "in real time, after another lane"
)

// newLanes returns the calls by lane, always in the same order.
func newLanes(s autobatcher.Stats, r Realtime) []lane {
	flex := LaneCalls{s.Flex.Waiting, s.Flex.Answered - s.Flex.Errors, s.Flex.Errors + s.Flex.Failed}
	batches := LaneCalls{s.Queued + s.Running - flex.Waiting, s.Answered - s.Errors - flex.OK, s.Errors + s.Failed - flex.Failed}
	return []lane{
		batches.named(inBatches), flex.named(atFlex),
		r.Chosen.named("in real time, as chosen"), r.Escalated.named(escalated),
	}
}

// recordFlex updates the calls at the flex tier for an event of one, which is that of a
// batch of one call. Only a call that runs in the background has an event before its end;
// it is listed until then.
func (b *board) recordFlex(id string, e autobatcher.Event) {
	t := b.flex[id]
	switch e.Name {
	case autobatcher.BatchCompleted, autobatcher.BatchTerminal, autobatcher.BatchSubmissionFailed:
		delete(b.flex, id)
		return
	case autobatcher.BatchCost, autobatcher.CallEscalated:
		return // says nothing about the state of the call
	case autobatcher.BatchSubmitted, autobatcher.BatchResumed:
		if t == nil && id != "" {
			t = b.newRecord(id, e)
			b.flex[id] = t
		}
	}
	if t == nil {
		return // has ended
	}
	t.apply(e)
	b.changed(t)
	if len(b.flex) > maxRunning {
		delete(b.flex, oldest(b.flex))
	}
}

// flexCalls returns the listed calls at the flex tier, newest first.
func (b *board) flexCalls() []batch {
	calls := make([]batch, 0, len(b.flex))
	for _, t := range b.flex {
		calls = append(calls, t.batch)
	}
	slices.SortFunc(calls, func(x, y batch) int { return y.Seq - x.Seq })
	return calls
}
