package dashboard

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/provider"
)

// A batch is a batch in the form of the list. Times are in Unix milliseconds.
type batch struct {
	Seq       int      `json:"seq"` // unique number, in the order of the first events
	Rev       int      `json:"rev"` // larger after each change of the batch
	ID        string   `json:"id"`  // "" if the batch was not created
	Endpoint  string   `json:"endpoint"`
	Models    []string `json:"models"`
	Callers   []string `json:"callers,omitempty"`
	Metadata  []string `json:"metadata,omitempty"` // as "name=value", sorted
	Window    string   `json:"window"`
	Status    string   `json:"status"`
	Finished  bool     `json:"finished"`
	Completed int      `json:"completed"` // lines that the provider answered
	Failed    int      `json:"failed"`    // lines that the provider counts as failed
	Total     int      `json:"total"`
	Created   int64    `json:"created"`
	Ended     int64    `json:"ended,omitempty"`
	Estimate  int64    `json:"estimate,omitempty"` // when the batch will probably end; 0: no estimate
	Basis     string   `json:"basis,omitempty"`    // of the estimate
	Event     string   `json:"event"`              // name of the last event
	EventTime int64    `json:"eventTime"`
	Error     string   `json:"error,omitempty"`
	Cost      *cost    `json:"cost,omitempty"` // nil: not known
}

// A record is a batch with what the page of the batch shows beside the list.
type record struct {
	batch
	InputFile  string   `json:"inputFile,omitempty"`
	OutputFile string   `json:"outputFile,omitempty"`
	ErrorFile  string   `json:"errorFile,omitempty"`
	Timeline   []moment `json:"timeline"`
	Reasons    []reason `json:"reasons"` // of the calls that this process answered

	began     time.Time // when the provider's counts were first seen
	beganDone int       // lines that were done at that time
}

// A moment is one or more equal events of a batch.
type moment struct {
	Time   int64  `json:"time"` // of the latest event
	Event  string `json:"event"`
	Status string `json:"status,omitempty"`
	Done   int    `json:"done"`
	Total  int    `json:"total"`
	Error  string `json:"error,omitempty"`
}

// maxMoments bounds the timeline of a batch. The timeline keeps the first moments
// and the last moment.
const maxMoments = 30

// apply updates the batch for an event. Zero fields of the event do not change the
// batch.
func (t *record) apply(e autobatcher.Event) {
	if e.Elapsed > 0 {
		t.Created = e.Time.Add(-e.Elapsed).UnixMilli()
	}
	t.Event, t.EventTime = string(e.Name), e.Time.UnixMilli()
	t.Endpoint = cmp.Or(clip(e.Endpoint), t.Endpoint)
	t.Window = cmp.Or(clip(e.CompletionWindow), t.Window)
	t.Status = cmp.Or(clip(e.Status), t.Status)
	t.InputFile = cmp.Or(clip(e.InputFileID), t.InputFile)
	t.OutputFile = cmp.Or(clip(e.OutputFileID), t.OutputFile)
	t.ErrorFile = cmp.Or(clip(e.ErrorFileID), t.ErrorFile)
	if e.Models != nil {
		t.Models, _ = clipModels(e.Models)
	}
	if len(e.Callers) > 0 {
		t.Callers = clipCallers(e.Callers)
	}
	if len(e.Metadata) > 0 {
		t.Metadata = clipMetadata(e.Metadata)
	}
	if c := newCost(e.Cost); c != nil {
		t.Cost = c
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
			t.Status = "given up" // polling ended before the provider had cancelled the batch
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
	t.note(e)
	t.observe(e.Time)
}

// note adds an event to the timeline. Progress in the same status is one moment.
func (t *record) note(e autobatcher.Event) {
	m := moment{Time: t.EventTime, Event: clip(string(e.Name)), Status: t.Status, Done: t.done(), Total: t.Total}
	if e.Error != "" {
		m.Error = clip(redact(e.Error))
	}
	last := len(t.Timeline) - 1
	switch {
	case last >= 0 && t.Timeline[last].Event == m.Event && t.Timeline[last].Status == m.Status, len(t.Timeline) == maxMoments:
		t.Timeline[last] = m
	default:
		t.Timeline = append(t.Timeline, m)
	}
}

// done returns the number of lines that the provider has ended.
func (t batch) done() int { return t.Completed + t.Failed }

// isFlex reports whether the batch is a call at the flex tier.
func (t batch) isFlex() bool { return t.Window == provider.FlexWindow }

// copy returns a record that later events do not change.
func (t *record) copy() record {
	c := *t
	c.Timeline, c.Reasons = slices.Clone(t.Timeline), slices.Clone(t.Reasons)
	return c
}

// maxMetadata is the number of pairs that OpenAI allows.
const maxMetadata = 16

// clipMetadata returns the first pairs as "name=value", sorted.
func clipMetadata(metadata map[string]string) []string {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(metadata)) {
		if len(pairs) < maxMetadata {
			pairs = append(pairs, clip(redact(name+"="+metadata[name])))
		}
	}
	return pairs
}
