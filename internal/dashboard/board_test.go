package dashboard

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/lane"
)

var noon = time.UnixMilli(1_700_000_000_000)

func TestBatchStates(t *testing.T) {
	type view struct {
		Status   string
		Finished bool
		Done     int
		Error    string
	}
	event := func(name autobatcher.EventName, status string, done int) autobatcher.Event {
		return autobatcher.Event{Name: name, BatchID: "b", Status: status, Counts: autobatcher.Counts{Completed: done}}
	}
	tests := []struct {
		name   string
		events []autobatcher.Event
		want   view
	}{
		{"submitted", []autobatcher.Event{event(autobatcher.BatchSubmitted, "validating", 0)}, view{Status: "validating"}},
		{"in progress", []autobatcher.Event{event(autobatcher.BatchProgress, "in_progress", 3)}, view{Status: "in_progress", Done: 3}},
		{"completed", []autobatcher.Event{event(autobatcher.BatchProgress, "in_progress", 3), event(autobatcher.BatchCompleted, "completed", 9)}, view{"completed", true, 9, ""}},
		{"failed", []autobatcher.Event{event(autobatcher.BatchTerminal, "failed", 0)}, view{Status: "failed", Finished: true}},
		{"an event without counts keeps the counts", []autobatcher.Event{event(autobatcher.BatchProgress, "in_progress", 3), event(autobatcher.BatchTerminal, "expired", 0)}, view{"expired", true, 3, ""}},
		{"cancelling at the end", []autobatcher.Event{event(autobatcher.BatchTerminal, "cancelling", 0)}, view{Status: "given up", Finished: true}},
		{"cancel requested", []autobatcher.Event{event(autobatcher.BatchCancelRequested, "in_progress", 3)}, view{Status: "cancelling", Done: 3}},
		{
			"cancel failed",
			[]autobatcher.Event{{Name: autobatcher.BatchCancelFailed, BatchID: "b", Status: "in_progress", Error: "500"}},
			view{Status: "in_progress", Error: "500"},
		},
		{
			"a late event does not change a finished batch",
			[]autobatcher.Event{event(autobatcher.BatchCompleted, "completed", 9), event(autobatcher.BatchCancelRequested, "in_progress", 1)},
			view{"completed", true, 9, ""},
		},
		{
			"not submitted",
			[]autobatcher.Event{{Name: autobatcher.BatchSubmissionFailed, Error: "401"}},
			view{Status: "not submitted", Finished: true, Error: "401"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBoard()
			for _, e := range tt.events {
				b.record(e)
			}
			s := b.snapshot(noon, autobatcher.Stats{})
			if len(s.Batches) != 1 {
				t.Fatalf("%d batches, want 1", len(s.Batches))
			}
			got := s.Batches[0]
			if diff := cmp.Diff(tt.want, view{got.Status, got.Finished, got.Completed, got.Error}); diff != "" {
				t.Errorf("batch (-want +got):\n%s", diff)
			}
		})
	}
}

// Calls at the flex tier are listed while they run in the background, behind the batches,
// and do not push batches out of the list.
func TestFlexCalls(t *testing.T) {
	b := newBoard()
	event := func(name autobatcher.EventName, id, status string) {
		b.record(autobatcher.Event{Name: name, Time: noon, BatchID: id, CompletionWindow: "flex", Status: status, RequestCount: 1, Models: []string{"m"}, Callers: []string{"key 2"}})
	}
	b.record(autobatcher.Event{Name: autobatcher.BatchSubmitted, Time: noon, BatchID: "batch", CompletionWindow: "24h"})
	b.record(autobatcher.Event{Name: autobatcher.BatchCompleted, Time: noon, BatchID: "ended", CompletionWindow: "24h"})
	for i := range maxRunning + maxFinished + 10 {
		id := fmt.Sprint("resp_", i)
		event(autobatcher.BatchSubmitted, id, "in_progress")
		if i < 3 {
			continue // runs
		}
		event([]autobatcher.EventName{autobatcher.BatchCompleted, autobatcher.BatchTerminal}[i%2], id, "completed")
		b.record(autobatcher.Event{Name: autobatcher.BatchCost, BatchID: id, CompletionWindow: "flex"})
	}
	event(autobatcher.BatchSubmissionFailed, "", "")
	event(autobatcher.BatchProgress, "late", "in_progress")
	event(autobatcher.BatchCancelRequested, "resp_1", "in_progress")
	event(autobatcher.BatchResumed, "resumed", "in_progress")
	b.record(autobatcher.Event{Name: autobatcher.BatchProgress, Time: noon, BatchID: "resp_2", Status: "queued"})
	var got []string
	for _, x := range b.snapshot(noon, autobatcher.Stats{}).Batches {
		got = append(got, x.ID+" "+x.Status)
	}
	want := []string{"batch ", "ended completed", "resumed in_progress", "resp_2 queued", "resp_1 cancelling", "resp_0 in_progress"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the list (-want +got):\n%s", diff)
	}
	resumed := b.flex["resumed"]
	if d, found := b.details(resumed.Seq, noon); !found || d.ID != "resumed" || d.Callers[0] != "key 2" || !d.isFlex() || len(d.Timeline) != 1 {
		t.Errorf("%v %+v", found, d)
	}
	for i := range 2 * maxRunning {
		event(autobatcher.BatchSubmitted, fmt.Sprint("more_", i), "in_progress")
	}
	s := b.snapshot(noon, autobatcher.Stats{})
	if len(s.Batches) != 2+maxRunning || s.Partial || s.Batches[0].ID != "batch" {
		t.Errorf("the list has %d batches and calls, partial %v; want %d calls", len(s.Batches), s.Partial, maxRunning)
	}
	if b.prune(noon.Add(maxSilence + time.Hour)); len(b.flex) != 0 {
		t.Errorf("%d calls are listed after a long silence", len(b.flex))
	}
}

// Each call is counted in one lane.
func TestLanes(t *testing.T) {
	stats := autobatcher.Stats{
		Queued: 3, Running: 10, Answered: 100, Errors: 20, Failed: 5, Left: 7,
		Flex: autobatcher.FlexStats{Waiting: 4, Answered: 30, Errors: 10, Failed: 2}, Cost: autobatcher.Cost{OtherTier: 6},
	}
	realtime := lane.RealtimeCalls{Chosen: lane.Calls{Waiting: 1, OK: 2, Failed: 3}, Escalated: lane.Calls{Waiting: 4, OK: 5, Failed: 6}}
	d := New(Options{Stats: func() autobatcher.Stats { return stats }, Realtime: func() lane.RealtimeCalls { return realtime }})
	defer d.Close()
	want := []laneRow{
		{"in batches", 9, 60, 13}, {"at the flex tier", 4, 20, 12}, {"in real time, as chosen", 1, 2, 3}, {"in real time, after another lane", 4, 5, 6},
	}
	if diff := cmp.Diff(want, d.feed.state.Lanes); diff != "" || d.feed.state.Other != 6 {
		t.Errorf("%d at another tier (-want +got):\n%s", d.feed.state.Other, diff)
	}
	page := strings.Join(strings.Fields(get(d, "GET", "/").Body.String()), " ")
	for _, text := range []string{
		`<th scope="row">in batches</th><td class="number">9</td><td class="number">60</td><td class="number">13</td>`,
		`<th scope="row">in real time, after another lane</th><td class="number">4</td><td class="number">5</td><td class="number">6</td>`,
		`whose price may be higher: <span id="other-tier-count">6</span>. A warning`,
	} {
		if !strings.Contains(page, text) {
			t.Errorf("the page without JavaScript lacks %s", text)
		}
	}
}

// The cost of a batch comes after the batch has ended.
func TestCosts(t *testing.T) {
	b := newBoard()
	known := autobatcher.Cost{USD: 1, Savings: 2, Priced: 3, Unpriced: 4, PricesDate: "2026-11-26"}
	for _, e := range []autobatcher.Event{
		{Name: autobatcher.BatchCompleted, BatchID: "a", Status: "completed"},
		{Name: autobatcher.BatchCost, BatchID: "a", Cost: known},
		{Name: autobatcher.BatchCompleted, BatchID: "b", Status: "completed"},
		{Name: autobatcher.BatchCost, BatchID: "unknown", Cost: known},
	} {
		e.Time = noon
		b.record(e)
	}
	want := &cost{USD: 1, Savings: 2, Priced: 3, Unpriced: 4, Date: "2026-11-26"}
	s := b.snapshot(noon, autobatcher.Stats{Cost: known})
	if diff := cmp.Diff(want, s.Cost); diff != "" {
		t.Error(diff)
	}
	if len(s.Batches) != 2 || cmp.Diff(want, s.Batches[1].Cost) != "" || s.Batches[0].Cost != nil || s.Batches[1].Status != "completed" {
		t.Errorf("%+v", s.Batches)
	}
	if s := b.snapshot(noon, autobatcher.Stats{Cost: autobatcher.Cost{Unpriced: 1}}); s.Cost != nil {
		t.Errorf("a cost that is not known is shown as %+v", s.Cost)
	}
}

func TestBatchesAreListedNewestFirst(t *testing.T) {
	b := newBoard()
	for _, id := range []string{"a", "b", "c", "d"} {
		b.record(autobatcher.Event{Name: autobatcher.BatchSubmitted, BatchID: id})
	}
	b.record(autobatcher.Event{Name: autobatcher.BatchCompleted, BatchID: "c"})
	b.record(autobatcher.Event{Name: autobatcher.BatchCompleted, BatchID: "b"})
	var got []string
	for _, t := range b.snapshot(noon, autobatcher.Stats{}).Batches {
		got = append(got, t.ID)
	}
	if diff := cmp.Diff([]string{"d", "a", "b", "c"}, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestBoardIsBounded(t *testing.T) {
	b := newBoard()
	long := strings.Repeat("é", 10*maxText)
	many := make([]string, 10*maxModels)
	for i := range many {
		many[i] = long
	}
	for i := range 3 * maxRunning {
		at := noon.Add(time.Duration(i) * time.Second)
		for _, name := range []autobatcher.EventName{autobatcher.BatchSubmitted, autobatcher.BatchCompleted} {
			b.record(autobatcher.Event{Name: name, Time: at, BatchID: fmt.Sprint("done", i), Models: many, Status: long, Error: long})
		}
		b.record(autobatcher.Event{Name: autobatcher.BatchSubmissionFailed, Time: at})
		b.record(autobatcher.Event{Name: autobatcher.BatchSubmitted, Time: at, BatchID: fmt.Sprint(i, long), Endpoint: long})
	}
	stats := autobatcher.Stats{Queues: make([]autobatcher.QueueStats, 3*maxQueues)}
	for i := range stats.Queues {
		stats.Queues[i] = autobatcher.QueueStats{Calls: 1, Models: many, Upstream: long}
	}
	s := b.snapshot(noon, stats)

	if len(b.running) != maxRunning || len(b.finished) != maxFinished || len(b.ended) > maxFinished {
		t.Errorf("%d running, %d finished, %d ended", len(b.running), len(b.finished), len(b.ended))
	}
	if s.Finished != 6*maxRunning {
		t.Errorf("%d have finished, want %d: also those that are not listed", s.Finished, 6*maxRunning)
	}
	if !s.Partial {
		t.Error("Partial is false, although running batches are not listed")
	}
	if newest := fmt.Sprint(3*maxRunning - 1); !strings.HasPrefix(s.Batches[0].ID, newest) {
		t.Errorf("the newest batch is not listed: %.20s", s.Batches[0].ID)
	}
	if len(s.Queues) != maxQueues || s.Hidden != 2*maxQueues {
		t.Errorf("%d queues and %d hidden", len(s.Queues), s.Hidden)
	}
	q := s.Queues[0]
	if len(q.Models) != maxModels || q.More != 9*maxModels {
		t.Errorf("%d models and %d more", len(q.Models), q.More)
	}
	if n := utf8.RuneCountInString(q.Upstream); n != maxText+1 {
		t.Errorf("a text of %d characters, want %d and an ellipsis", n, maxText)
	}
}

func TestBatchesWithoutEventsArePruned(t *testing.T) {
	b := newBoard()
	b.record(autobatcher.Event{Name: autobatcher.BatchProgress, Time: noon, BatchID: "b"})
	b.prune(noon.Add(maxSilence))
	if len(b.running) != 1 {
		t.Fatal("pruned too early")
	}
	b.prune(noon.Add(maxSilence + time.Millisecond))
	if len(b.running) != 0 {
		t.Fatal("not pruned")
	}
	b.record(autobatcher.Event{Name: autobatcher.BatchProgress, Time: noon.Add(3 * maxSilence), BatchID: "b"})
	if len(b.running) != 1 {
		t.Fatal("a batch with a new event is not shown again")
	}
}

func TestRedact(t *testing.T) {
	tests := []struct{ message, want string }{
		{`batch_size must be at least 1`, `batch_size must be at least 1`},
		{`Incorrect API key provided: hunter2. See the docs`, `Incorrect API key provided: [hidden] See the docs`},
		{`refused sk-proj-abcdef123456`, `refused [hidden]`},
		{`refused sk-abc***************xyz`, `refused [hidden]`},
		{`Post "https://host/v1/batches?key=AIzaSyXyz&alt=json": EOF`, `Post "https://host/v1/batches[hidden]": EOF`},
		{`Post "https://user:pass@host/v1": EOF`, `Post "https:[hidden]host/v1": EOF`},
		{`AIzaSyA-0123 is not valid`, `[hidden] is not valid`},
		{`header Authorization: Bearer abc`, `header Authorization: Bearer [hidden]`},
		{`token 0123456789abcdef0123456789abcdef`, `token [hidden]`},
		{`quota? none`, `quota? none`},
	}
	for _, tt := range tests {
		if got := redact(tt.message); got != tt.want {
			t.Errorf("redact(%q) = %q, want %q", tt.message, got, tt.want)
		}
	}
}

func TestHistoryIsBounded(t *testing.T) {
	h := history{step: 10 * time.Second}
	for i := range 1000 {
		now := noon.Add(time.Duration(i) * h.step)
		if !h.due(now) || h.due(now.Add(-time.Millisecond)) && i > 0 {
			t.Fatalf("sample %d is due at the wrong time", i)
		}
		h.add(now, autobatcher.Stats{Queued: i, Running: 1, Answered: int64(3 * i)})
	}
	c := h.chart()
	if len(c.Times) != historySamples+1 || len(c.Waiting) != historySamples+1 || len(c.Answered) != historySamples+1 {
		t.Fatalf("%d, %d and %d samples, want %d", len(c.Times), len(c.Waiting), len(c.Answered), historySamples+1)
	}
	if span := c.Times[historySamples] - c.Times[0]; span != time.Hour.Milliseconds() {
		t.Errorf("covers %d ms, want an hour", span)
	}
	if c.Waiting[historySamples] != 1000 || c.Answered[historySamples] != 3 || c.Total != 2997 {
		t.Errorf("last: %d waiting, %d answered, %d in all", c.Waiting[historySamples], c.Answered[historySamples], c.Total)
	}
}

func TestHistoryAfterPause(t *testing.T) {
	h := history{step: 10 * time.Second}
	h.add(noon, autobatcher.Stats{})
	h.add(noon.Add(time.Hour), autobatcher.Stats{})
	if h.due(noon.Add(time.Hour + 9*time.Second)) {
		t.Error("a sample is due early after the pause")
	}
	if !h.due(noon.Add(time.Hour + 10*time.Second)) {
		t.Error("the next sample is late")
	}
}

// FuzzRecord checks that the snapshot is valid and small for any event.
func FuzzRecord(f *testing.F) {
	f.Add("batch_progress", "batch_1", "in_progress", "gpt", "?a=b", 1, 2, 3)
	f.Add("batch_terminal", "", "\xff", "\x00", strings.Repeat("é", 5000), -1, -2, -3)
	f.Fuzz(func(t *testing.T, name, id, status, model, message string, completed, failed, total int) {
		b := newBoard()
		b.record(autobatcher.Event{
			Name: autobatcher.EventName(name), Time: noon, BatchID: id, Endpoint: model, Status: status, Models: []string{model}, Error: message,
			Counts: autobatcher.Counts{Completed: completed, Failed: failed, Total: total},
		})
		data := marshal(b.snapshot(noon, autobatcher.Stats{}))
		if len(data) > 10_000+6*len(name) || !json.Valid(data) {
			t.Fatalf("%d bytes: %.100q", len(data), data)
		}
	})
}
