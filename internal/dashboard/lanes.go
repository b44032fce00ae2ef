package dashboard

import (
	"slices"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/lane"
)

// A laneRow has the calls of one lane in the form of the page.
type laneRow struct {
	Name    string `json:"name"`
	Waiting int    `json:"waiting"`
	OK      int64  `json:"ok"`
	Failed  int64  `json:"failed"`
}

func newLaneRow(name string, c lane.Calls) laneRow { return laneRow{name, c.Waiting, c.OK, c.Failed} }

// The names of the lanes that have costs.
const (
	inBatches = "in batches"
	atFlex    = "at the flex tier"
	escalated = "in real time, after another lane"
)

// newLanes returns the calls by lane, always in the same order.
func newLanes(s autobatcher.Stats, r lane.RealtimeCalls) []laneRow {
	flex := lane.Calls{Waiting: s.Flex.Waiting, OK: s.Flex.Answered - s.Flex.Errors, Failed: s.Flex.Errors + s.Flex.Failed}
	batches := lane.Calls{Waiting: s.Queued + s.Running - flex.Waiting, OK: s.Answered - s.Errors - flex.OK, Failed: s.Errors + s.Failed - flex.Failed}
	return []laneRow{
		newLaneRow(inBatches, batches), newLaneRow(atFlex, flex),
		newLaneRow("in real time, as chosen", r.Chosen), newLaneRow(escalated, r.Escalated),
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
