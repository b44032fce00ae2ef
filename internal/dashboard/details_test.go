package dashboard

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
)

// progress is an event of a batch of 100 calls, created at noon.
func progress(name autobatcher.EventName, id, status string, after time.Duration, done int) autobatcher.Event {
	return autobatcher.Event{
		Name: name, BatchID: id, Endpoint: "/v1/embeddings", Status: status, CompletionWindow: "24h", RequestCount: 100,
		Time: noon.Add(after), Elapsed: after, Counts: autobatcher.Counts{Completed: done, Total: 100},
	}
}

func TestEstimates(t *testing.T) {
	const m = time.Minute
	earlier := []autobatcher.Event{
		progress(autobatcher.BatchCompleted, "a", "completed", 10*m, 100),
		progress(autobatcher.BatchCompleted, "b", "completed", 30*m, 100),
		progress(autobatcher.BatchCompleted, "c", "completed", 50*m, 100),
		progress(autobatcher.BatchTerminal, "d", "expired", 1000*m, 1),
	}
	running := func(after time.Duration, done int) autobatcher.Event {
		return progress(autobatcher.BatchProgress, "x", "in_progress", after, done)
	}
	for _, test := range []struct {
		name   string
		events []autobatcher.Event
		now    time.Duration
		want   time.Duration // after noon; 0: no estimate
		basis  string
	}{
		{"nothing is known", []autobatcher.Event{running(m, 0)}, m, 0, ""},
		{"first counts", []autobatcher.Event{running(10*m, 25)}, 10 * m, 40 * m, "from the progress so far"},
		{"counts over time", []autobatcher.Event{running(60*m, 0), running(70*m, 50)}, 71 * m, 80 * m, "from the progress so far"},
		{"few counts", []autobatcher.Event{running(60*m, 0), running(61*m, 1)}, 61 * m, 0, ""},
		{"beyond the window", []autobatcher.Event{running(60*m, 0), running(180*m, 6)}, 180 * m, 24 * time.Hour, "from the progress so far"},
		{"earlier batches", append(earlier[:4:4], running(m, 0)), m, 30 * m, "median of the last 3 completed"},
		{"one earlier batch", append(earlier[:1:1], running(m, 0)), m, 10 * m, "as long as the last completed"},
		{"longer than earlier batches", append(earlier[:4:4], running(m, 0)), 31 * m, 0, ""},
		{"cancelling", append(earlier[:4:4], progress(autobatcher.BatchCancelRequested, "x", "in_progress", m, 50)), m, 0, ""},
		{"ended", append(earlier[:4:4], running(m, 50), progress(autobatcher.BatchCompleted, "x", "completed", 2*m, 100)), 2 * m, 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBoard()
			for _, e := range test.events {
				b.record(e)
			}
			for _, got := range b.snapshot(noon.Add(test.now), autobatcher.Stats{}).Batches {
				if got.ID != "x" {
					continue
				}
				want := int64(0)
				if test.want > 0 {
					want = noon.Add(test.want).UnixMilli()
				}
				if got.Estimate != want || got.Basis != test.basis {
					t.Errorf("%v (%s), want %v (%s)", time.UnixMilli(got.Estimate).Sub(noon), got.Basis, test.want, test.basis)
				}
			}
		})
	}
}

// TestFailuresAreCounted checks the tiles, and that the reasons are bounded.
func TestFailuresAreCounted(t *testing.T) {
	b := newBoard()
	b.record(progress(autobatcher.BatchProgress, "x", "in_progress", time.Minute, 1))
	before := b.running["x"].Rev
	for i := range 100 {
		for range 1 + i%2 {
			b.fail(Failure{BatchID: "x", Status: 400, Code: fmt.Sprint("code", i), FromLine: true})
		}
	}
	b.fail(Failure{Status: 503, Code: "sk-proj-0123456789abcdef"})
	b.fail(Failure{BatchID: "unknown", Status: 424, Code: "batch_expired"})
	s := b.snapshot(noon, autobatcher.Stats{Answered: 200, Errors: 150, Failed: 2, Left: 1})
	if s.OK != 50 || s.Errors != 150 || s.NoAnswer != 2 || s.Left != 1 || s.Answered != 200 {
		t.Errorf("%d OK, %d errors, %d without an answer, %d left", s.OK, s.Errors, s.NoAnswer, s.Left)
	}
	details, found := b.details(s.Batches[0].Seq, noon)
	if !found || details.Rev == before {
		t.Errorf("found: %v; the failures have not changed the batch", found)
	}
	for name, reasons := range map[string][]reason{"page": s.Reasons, "batch": details.Reasons} {
		var calls int64
		for _, r := range reasons {
			calls += r.Calls
		}
		if want := map[string]int64{"page": 152, "batch": 150}[name]; calls != want {
			t.Errorf("%s: %d calls, want %d", name, calls, want)
		}
		if len(reasons) > maxReasons+2 || reasons[0].Code != otherReasons || reasons[0].Calls < 100 {
			t.Errorf("%s: %d reasons, first %+v", name, len(reasons), reasons[0])
		}
	}
	if text := string(marshal(s)); strings.Contains(text, "0123456789abcdef") {
		t.Error("a code that looks like a key is shown")
	}
}

func TestDetails(t *testing.T) {
	b := newBoard()
	submitted := progress(autobatcher.BatchSubmitted, "x", "validating", time.Second, 0)
	submitted.InputFileID, submitted.Metadata = "file-in", map[string]string{"b": "2", "a": "1", "secret": "sk-proj-0123456789abcdef"}
	b.record(submitted)
	for i := range 50 {
		b.record(progress(autobatcher.BatchProgress, "x", "in_progress", time.Duration(i)*time.Minute, i))
	}
	ended := progress(autobatcher.BatchTerminal, "x", "expired", time.Hour, 60)
	ended.OutputFileID, ended.ErrorFileID = "file-out", "file-err"
	b.record(ended)
	d, found := b.details(1, noon)
	if !found {
		t.Fatal("the batch is not found")
	}
	want := []moment{
		{noon.Add(time.Second).UnixMilli(), "batch_submitted", "validating", 0, 100, ""},
		{noon.Add(49 * time.Minute).UnixMilli(), "batch_progress", "in_progress", 49, 100, ""},
		{noon.Add(time.Hour).UnixMilli(), "batch_terminal", "expired", 60, 100, ""},
	}
	if diff := cmp.Diff(want, d.Timeline); diff != "" {
		t.Errorf("timeline (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a=1", "b=2", "secret=[hidden]"}, d.Metadata); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	if d.InputFile != "file-in" || d.OutputFile != "file-out" || d.ErrorFile != "file-err" {
		t.Errorf("files %q %q %q", d.InputFile, d.OutputFile, d.ErrorFile)
	}
	for i := range 10 * maxMoments {
		b.record(progress(autobatcher.BatchProgress, "y", fmt.Sprint("status", i), time.Minute, 0))
	}
	if d, _ := b.details(2, noon); len(d.Timeline) != maxMoments || d.Timeline[maxMoments-1].Status != fmt.Sprint("status", 10*maxMoments-1) {
		t.Errorf("%d moments", len(d.Timeline))
	}
}

// An escalated call is no event of its batch, and without a batch it is no batch.
func TestEscalatedCallsAreNoBatches(t *testing.T) {
	b := newBoard()
	b.record(autobatcher.Event{Name: autobatcher.CallEscalated, Time: noon, Error: "deadline"})
	if s := b.snapshot(noon, autobatcher.Stats{}); len(s.Batches) != 0 {
		t.Errorf("%+v", s.Batches)
	}
}

// TestCallers checks who may be asked about: running batches with an id.
func TestCallers(t *testing.T) {
	d := newDashboard(t, Options{})
	e := progress(autobatcher.BatchProgress, "x", "in_progress", time.Minute, 0)
	e.Callers = []string{"key 1"}
	d.OnEvent(e)
	d.OnEvent(autobatcher.Event{Name: autobatcher.BatchSubmissionFailed})
	if callers, found := d.Callers("x"); !found || cmp.Diff([]string{"key 1"}, callers) != "" {
		t.Errorf("%v %v", callers, found)
	}
	e.Name = autobatcher.BatchCompleted
	d.OnEvent(e)
	for _, id := range []string{"x", "", "unknown"} {
		if _, found := d.Callers(id); found {
			t.Errorf("%q is running", id)
		}
	}
}

func TestTotals(t *testing.T) {
	var parts []autobatcher.CostPart
	for i := range 3 * maxTotals {
		parts = append(parts, autobatcher.CostPart{Payer: "p", Caller: fmt.Sprint("key ", i%2), Model: fmt.Sprint("m", i), Cost: autobatcher.Cost{USD: float64(i), Savings: 1, Priced: 2, Unpriced: 1}})
	}
	s := newBoard()
	got := s.snapshot(noon, autobatcher.Stats{Costs: parts})
	if len(got.Models) != maxTotals || got.Models[0].Name != "m149" || got.Models[maxTotals-1].Name != "all others" || got.Models[maxTotals-1].Priced != 2*101 {
		t.Errorf("%d models: %+v", len(got.Models), got.Models)
	}
	var usd float64
	for _, m := range got.Models {
		usd += m.USD
	}
	if len(got.Keys) != 2 || got.Keys[0].Name != "p · key 1" || got.Keys[0].USD+got.Keys[1].USD != usd || usd != 149*150/2 {
		t.Errorf("%+v", got.Keys)
	}
}

// The costs by lane are shown if the answers are of more than one lane, also without
// JavaScript.
func TestTotalsByLane(t *testing.T) {
	part := func(model string, lane autobatcher.Mode, usd float64) autobatcher.CostPart {
		return autobatcher.CostPart{Payer: "p", Model: model, Lane: lane, Cost: autobatcher.Cost{USD: usd, Savings: 0.5, Priced: 1}}
	}
	unpriced := part("x", autobatcher.ModeFlex, 0)
	unpriced.Cost = autobatcher.Cost{Unpriced: 2}
	batches := []autobatcher.CostPart{part("a", autobatcher.ModeBatch, 1), part("b", autobatcher.ModeBatch, 2)}
	for name, test := range map[string]struct {
		parts []autobatcher.CostPart
		want  []total
		rows  string
	}{
		"no answers": {nil, []total{}, ""},
		"one lane":   {batches, []total{}, ""},
		"all lanes": {
			append(slices.Clone(batches), part("a", autobatcher.ModeRealtime, 5), unpriced),
			[]total{
				{"in real time, after another lane", cost{USD: 5, Savings: 0.5, Priced: 1}},
				{"in batches", cost{USD: 3, Savings: 1, Priced: 2}},
				{"at the flex tier", cost{Unpriced: 2}},
			},
			`<tr><th scope="row">in real time, after another lane</th><td class="number">1</td><td class="number">$5.0000</td><td class="number">$0.5000</td></tr>
            <tr><th scope="row">in batches</th><td class="number">2</td><td class="number">$3.0000</td><td class="number">$1.0000</td></tr>
            <tr><th scope="row">at the flex tier</th><td class="number">2</td><td class="number">not known</td><td class="number">not known</td></tr>`,
		},
		"a lane that is not known": {
			[]autobatcher.CostPart{part("a", autobatcher.ModeFlex, 2), part("", "", 1)},
			[]total{{"at the flex tier", cost{USD: 2, Savings: 0.5, Priced: 1}}, {"unknown", cost{USD: 1, Savings: 0.5, Priced: 1}}},
			`<tr><th scope="row">unknown</th><td class="number">1</td><td class="number">$1.0000</td><td class="number">$0.5000</td></tr>`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDashboard(t, Options{Stats: func() autobatcher.Stats { return autobatcher.Stats{Costs: test.parts} }})
			page := get(d, "GET", "/").Body.String()
			if got := strings.Contains(page, "Costs by lane"); got != (test.rows != "") || !strings.Contains(page, test.rows) {
				t.Errorf("the page without JavaScript is\n%s", page)
			}
			d.feed.mu.Lock()
			defer d.feed.mu.Unlock()
			if diff := cmp.Diff(test.want, d.feed.state.ByLane, cmp.AllowUnexported(total{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestTimes(t *testing.T) {
	var known []autobatcher.TurnaroundStats
	for i := range 2 * maxTimes {
		known = append(known, autobatcher.TurnaroundStats{Provider: "openai", Model: fmt.Sprint("m", i), Window: "24h", Count: i % 50, Median: time.Minute, P90: time.Hour})
	}
	b := newBoard()
	got := b.snapshot(noon, autobatcher.Stats{Times: known}).Times
	if want := (times{"m49", "openai", "24h", 49, 60_000, 3_600_000}); len(got) != maxTimes || got[0] != want {
		t.Errorf("%d times, the first %+v; want %d, the first %+v", len(got), got[0], maxTimes, want)
	}
	if got := b.snapshot(noon, autobatcher.Stats{}).Times; got == nil {
		t.Error("no times are null in JSON, which the page does not expect")
	}
}

// TestFramesHaveOnlyChanges checks that a frame has only the batches that changed, and
// names the batches that are gone.
func TestFramesHaveOnlyChanges(t *testing.T) {
	v := make(viewer, 1)
	f := feed{viewers: map[viewer]struct{}{v: {}}}
	b := newBoard()
	for i := range 500 {
		b.record(progress(autobatcher.BatchProgress, fmt.Sprint("batch", i), "in_progress", time.Minute, 0))
	}
	publish := func(now time.Time) (s snapshot) {
		t.Helper()
		f.publishLocked(now, b.snapshot(now, autobatcher.Stats{}))
		select {
		case fr := <-v:
			_, data, _ := strings.Cut(string(fr), "data: ")
			if err := json.Unmarshal([]byte(data), &s); err != nil {
				t.Fatal(err)
			}
		default:
		}
		return s
	}
	if s := publish(noon); !s.Changes || len(s.Batches) != maxRunning {
		t.Errorf("the first frame has %d batches", len(s.Batches))
	}
	b.record(progress(autobatcher.BatchProgress, "batch499", "in_progress", 2*time.Minute, 1))
	if s := publish(noon.Add(time.Second)); len(s.Batches) != 1 || s.Batches[0].ID != "batch499" || len(s.Gone) != 0 {
		t.Errorf("after one event the frame has %d batches, and %d are gone", len(s.Batches), len(s.Gone))
	}
	if s := publish(noon.Add(2 * time.Second)); s.Changes {
		t.Error("a frame was sent without a change")
	}
	b.prune(noon.Add(maxSilence + 90*time.Second))
	if s := publish(noon.Add(3 * time.Second)); len(s.Gone) != maxRunning-1 || len(s.Batches) != 0 {
		t.Errorf("after the pruning %d are gone, and the frame has %d batches", len(s.Gone), len(s.Batches))
	}
}

func TestServeBatch(t *testing.T) {
	d := newDashboard(t, Options{})
	d.OnEvent(progress(autobatcher.BatchProgress, "x", "in_progress", time.Minute, 1))
	for target, status := range map[string]int{"?seq=1": 200, "?seq=2": 404, "?seq=x": 404, "": 404} {
		w := get(d, "GET", "/autobatcher/batch"+target)
		if w.Code != status || status == 200 && !strings.Contains(w.Body.String(), `"timeline":[{`) {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
}

func TestPlainPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		defer d.Close()
		for i := range plainRows + 1 {
			d.OnEvent(progress(autobatcher.BatchProgress, fmt.Sprint("batch", i), "in_progress", time.Minute, 0))
		}
		time.Sleep(refreshInterval)
		for _, test := range []struct {
			page           string
			rows           int
			previous, next string
		}{
			{"", 25, "", "?key=k&page=2"},
			{"1", 25, "", "?key=k&page=2"},
			{"2", 1, "?key=k&page=1", ""},
			{"3", 1, "?key=k&page=1", ""},
			{"-7", 25, "", "?key=k&page=2"},
			{"odd", 25, "", "?key=k&page=2"},
		} {
			p := d.pageData(url.Values{"key": {"k"}, "page": {test.page}})
			if len(p.Rows) != test.rows || p.Previous != test.previous || p.Next != test.next {
				t.Errorf("page %q: %d rows, previous %q, next %q", test.page, len(p.Rows), p.Previous, p.Next)
			}
		}
	})
}

// Small amounts are not shown as $0.0000.
func TestDollars(t *testing.T) {
	for usd, want := range map[float64]string{0: "$0.0000", 12.5: "$12.5000", 0.00012: "$0.00012", 0.0000049: "$0.0000049", -0.00012: "$-0.00012"} {
		if got := dollars(usd); got != want {
			t.Errorf("%v is %s, want %s", usd, got, want)
		}
	}
}
