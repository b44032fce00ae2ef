package batchtest_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/google/go-cmp/cmp"
)

// A moment is what a batch should look like at a time after its creation.
type moment struct {
	at     time.Duration
	status string
	counts string // total/completed/failed
}

func counts(b map[string]any) string {
	c := b["request_counts"].(map[string]any)
	return fmt.Sprintf("%v/%v/%v", c["total"], c["completed"], c["failed"])
}

// follow retrieves a batch at each moment and compares.
func (a *api) follow(id any, start time.Time, moments []moment) (last map[string]any) {
	a.t.Helper()
	for _, m := range moments {
		time.Sleep(time.Until(start.Add(m.at)))
		last = a.retrieve(id)
		got := moment{m.at, last["status"].(string), counts(last)}
		if diff := cmp.Diff(m, got, cmp.AllowUnexported(moment{})); diff != "" {
			a.t.Errorf("at %v (-want +got):\n%s", m.at, diff)
		}
	}
	return last
}

func TestLifecycle(t *testing.T) {
	slow := batchtest.Options{Turnaround: 10 * time.Minute, Validating: time.Minute, Finalizing: 2 * time.Minute}
	only := func(id string, o batchtest.Outcome) func(batchtest.Line) batchtest.Outcome {
		return func(l batchtest.Line) batchtest.Outcome {
			if l.CustomID == id {
				return o
			}
			return batchtest.Outcome{}
		}
	}
	allFail := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: 400} }
	tests := []struct {
		name    string
		opts    batchtest.Options
		moments []moment
		lines   map[string]string // at the end: custom_id to "file status" or "file code"
	}{{
		name:    "the zero options finish by the first retrieve",
		moments: []moment{{0, "completed", "2/2/0"}},
		lines:   map[string]string{"line-0": "output 200", "line-1": "output 200"},
	}, {
		name: "every state takes its time",
		opts: slow,
		moments: []moment{
			{0, "validating", "2/0/0"},
			{time.Minute - 1, "validating", "2/0/0"},
			{time.Minute, "in_progress", "2/0/0"},
			{6*time.Minute - 1, "in_progress", "2/0/0"},
			{6 * time.Minute, "in_progress", "2/1/0"},
			{11*time.Minute - 1, "in_progress", "2/1/0"},
			{11 * time.Minute, "finalizing", "2/2/0"},
			{13*time.Minute - 1, "finalizing", "2/2/0"},
			{13 * time.Minute, "completed", "2/2/0"},
		},
		lines: map[string]string{"line-0": "output 200", "line-1": "output 200"},
	}, {
		name:    "negative times count as zero",
		opts:    batchtest.Options{Turnaround: -time.Hour, Validating: -1, Finalizing: -1},
		moments: []moment{{0, "completed", "2/2/0"}},
		lines:   map[string]string{"line-0": "output 200", "line-1": "output 200"},
	}, {
		name: "a delayed line finishes after its delay",
		opts: batchtest.Options{Answer: only("line-0", batchtest.Outcome{Delay: time.Hour})},
		moments: []moment{
			{0, "in_progress", "2/1/0"},
			{time.Hour - 1, "in_progress", "2/1/0"},
			{time.Hour, "completed", "2/2/0"},
		},
		lines: map[string]string{"line-0": "output 200", "line-1": "output 200"},
	}, {
		name: "a line that never finishes expires with its window",
		opts: batchtest.Options{Answer: only("line-0", batchtest.Outcome{Never: true})},
		moments: []moment{
			{0, "in_progress", "2/1/0"},
			{24*time.Hour - 1, "in_progress", "2/1/0"},
			{24 * time.Hour, "expired", "2/1/1"},
		},
		lines: map[string]string{"line-0": "error batch_expired", "line-1": "output 200"},
	}, {
		name:    "expiry is found out late but counted from the window",
		opts:    batchtest.Options{Turnaround: 40 * time.Hour},
		moments: []moment{{50 * time.Hour, "expired", "2/1/1"}},
		lines:   map[string]string{"line-0": "output 200", "line-1": "error batch_expired"},
	}, {
		name:    "all failed is completed",
		opts:    batchtest.Options{Answer: allFail},
		moments: []moment{{0, "completed", "2/0/2"}},
		lines:   map[string]string{"line-0": "error 400", "line-1": "error 400"},
	}, {
		name:    "all failed is failed at Doubleword",
		opts:    batchtest.Options{Behavior: batchtest.Doubleword(), Answer: allFail},
		moments: []moment{{0, "failed", "2/0/2"}},
		lines:   map[string]string{"line-0": "error NonRetriableHttpStatus", "line-1": "error NonRetriableHttpStatus"},
	}, {
		name: "without expiry the work goes on past the window",
		opts: batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: 40 * time.Hour},
		moments: []moment{
			{24 * time.Hour, "in_progress", "2/1/0"},
			{40 * time.Hour, "completed", "2/2/0"},
		},
		lines: map[string]string{"line-0": "output 200", "line-1": "output 200"},
	}, {
		name:    "failed lines can be in the output file",
		opts:    batchtest.Options{Behavior: batchtest.LLMD(), Answer: only("line-1", batchtest.Outcome{Status: 429})},
		moments: []moment{{0, "completed", "2/1/1"}},
		lines:   map[string]string{"line-0": "output 200", "line-1": "output 429"},
	}, {
		name:    "errors that are not HTTP's are in the error file",
		opts:    batchtest.Options{Behavior: batchtest.LLMD(), Answer: only("line-1", batchtest.Outcome{Code: "request_timeout", Message: "slow"})},
		moments: []moment{{0, "completed", "2/1/1"}},
		lines:   map[string]string{"line-0": "output 200", "line-1": "error request_timeout"},
	}, {
		name:    "a missing line counts as completed",
		opts:    batchtest.Options{Answer: only("line-0", batchtest.Outcome{Missing: true})},
		moments: []moment{{0, "completed", "2/2/0"}},
		lines:   map[string]string{"line-1": "output 200"},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(t, tt.opts)
				start := time.Now()
				b := a.follow(a.create(chatLines(2))["id"], start, tt.moments)
				if diff := cmp.Diff(tt.lines, a.outcomes(b)); diff != "" {
					t.Errorf("lines (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// outcomes sums up both result files of a batch.
func (a *api) outcomes(b map[string]any) map[string]string {
	a.t.Helper()
	found := map[string]string{}
	for _, file := range []string{"output", "error"} {
		for _, l := range a.results(b[file+"_file_id"]) {
			found[l["custom_id"].(string)] = file + " " + a.gist(l)
		}
	}
	return found
}

// gist is the status of a result line, or the code or type of its error.
func (a *api) gist(l map[string]any) string {
	if res, ok := l["response"].(map[string]any); ok {
		return fmt.Sprint(res["status_code"])
	}
	e := l["error"].(map[string]any)
	if code, ok := e["code"].(string); ok {
		return code
	}
	return answer{body: e["message"].(string)}.json(a.t)["type"].(string)
}

func TestTimesOfACompletedBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{Validating: time.Minute, Turnaround: time.Hour, Finalizing: time.Second})
		start := time.Now()
		id := a.create(chatLines(1))["id"]
		time.Sleep(2 * time.Hour)
		b := a.retrieve(id)
		got := map[string]float64{}
		for name, v := range b {
			if s, ok := v.(float64); ok && strings.HasSuffix(name, "_at") {
				got[name] = s - float64(start.Unix())
			}
		}
		want := map[string]float64{
			"created_at": 0, "in_progress_at": 60, "finalizing_at": 3660, "completed_at": 3661, "expires_at": 86400,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("seconds since creation (-want +got):\n%s", diff)
		}
	})
}

func TestCancel(t *testing.T) {
	slow := batchtest.OpenAI()
	slow.CancelTime = 10 * time.Minute
	tests := []struct {
		name    string
		opts    batchtest.Options
		after   time.Duration // when the cancel is sent
		status  int
		answer  string
		moments []moment
		lines   map[string]string
	}{{
		name:   "OpenAI cancels after a while and writes a line for every request",
		opts:   batchtest.Options{Behavior: slow, Turnaround: time.Hour},
		after:  45 * time.Minute,
		status: 200, answer: "cancelling",
		moments: []moment{
			{55*time.Minute - 1, "cancelling", "2/1/0"},
			{55 * time.Minute, "cancelled", "2/1/1"},
		},
		lines: map[string]string{"line-0": "output 200", "line-1": "error batch_cancelled"},
	}, {
		name:   "OpenAI refuses to cancel what has ended",
		status: 409,
		moments: []moment{
			{time.Hour, "completed", "2/2/0"},
		},
		lines: map[string]string{"line-0": "output 200", "line-1": "output 200"},
	}, {
		name:   "Doubleword cancels at once and without a line",
		opts:   batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: time.Hour},
		after:  45 * time.Minute,
		status: 200, answer: "cancelled",
		moments: []moment{{45 * time.Minute, "cancelled", "2/1/0"}},
		lines:   map[string]string{"line-0": "output 200"},
	}, {
		name:   "Doubleword cancels even what is completed",
		opts:   batchtest.Options{Behavior: batchtest.Doubleword()},
		after:  time.Minute,
		status: 200, answer: "cancelled",
		moments: []moment{{time.Hour, "cancelled", "2/2/0"}},
		lines:   map[string]string{"line-0": "output 200", "line-1": "output 200"},
	}, {
		name:   "Doubleword never ends what is cancelled while validating",
		opts:   batchtest.Options{Behavior: batchtest.Doubleword(), Validating: time.Minute},
		status: 200, answer: "cancelling",
		moments: []moment{{100 * time.Hour, "cancelling", "2/0/0"}},
		lines:   map[string]string{},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(t, tt.opts)
				start := time.Now()
				id := a.create(chatLines(2))["id"]
				time.Sleep(tt.after)
				res := a.post("/batches/"+id.(string)+"/cancel", "")
				if res.status != tt.status {
					t.Fatalf("cancel: %d %s", res.status, res.body)
				}
				if got := res.json(t)["status"]; tt.answer != "" && got != tt.answer {
					t.Errorf("status in the answer to cancel = %v, want %s", got, tt.answer)
				}
				b := a.follow(id, start, tt.moments)
				if diff := cmp.Diff(tt.lines, a.outcomes(b)); diff != "" {
					t.Errorf("lines (-want +got):\n%s", diff)
				}
				if got, want := a.server.Batches()[0].CancelRequested, tt.status == 200; got != want {
					t.Errorf("CancelRequested = %v, want %v", got, want)
				}
			})
		})
	}
}

func TestForcedEnds(t *testing.T) {
	tests := []struct {
		name   string
		force  func(s *batchtest.Server, id string) error
		status string
		counts string
		lines  map[string]string
	}{
		{
			"finish", (*batchtest.Server).Finish, "completed", "2/2/0",
			map[string]string{"line-0": "output 200", "line-1": "output 200"},
		},
		{
			"expire", (*batchtest.Server).Expire, "expired", "2/1/1",
			map[string]string{"line-0": "output 200", "line-1": "error batch_expired"},
		},
		{
			"fail", func(s *batchtest.Server, id string) error { return s.FailBatch(id, "token_limit_exceeded", "later", 0) },
			"failed", "2/0/0",
			map[string]string{},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(t, batchtest.Options{Turnaround: 2 * time.Hour})
				id := a.create(chatLines(2))["id"].(string)
				time.Sleep(90 * time.Minute)
				if err := tt.force(a.server, id); err != nil {
					t.Fatal(err)
				}
				b := a.follow(id, time.Now(), []moment{{0, tt.status, tt.counts}})
				if diff := cmp.Diff(tt.lines, a.outcomes(b)); diff != "" {
					t.Errorf("lines (-want +got):\n%s", diff)
				}
				if err := tt.force(a.server, "batch_unknown"); err == nil {
					t.Error("forcing an unknown batch is no error")
				}
			})
		})
	}
}

func TestFailBatchShowsTheError(t *testing.T) {
	a := newAPI(t, batchtest.Options{Turnaround: time.Hour})
	id := a.create(chatLines(1))["id"].(string)
	if err := a.server.FailBatch(id, "model_not_found", "no such model", 7); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"object": "list", "data": []any{
		map[string]any{"code": "model_not_found", "message": "no such model", "line": 7.0, "param": nil},
	}}
	if diff := cmp.Diff(any(want), a.retrieve(id)["errors"]); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

func TestWindows(t *testing.T) {
	anyWindow := batchtest.OpenAI()
	anyWindow.Windows = nil
	for window, want := range map[string]time.Duration{
		"24h": 24 * time.Hour, "1h": time.Hour, "15m": 15 * time.Minute, "7d": 7 * 24 * time.Hour,
	} {
		t.Run(window, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				never := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Never: true} }
				a := newAPI(t, batchtest.Options{Behavior: anyWindow, Answer: never})
				res := a.post("/batches", createBody(a.upload(chatLines(1)), chat, window))
				a.follow(res.json(t)["id"], time.Now(), []moment{
					{want - 1, "in_progress", "1/0/0"}, {want, "expired", "1/0/1"},
				})
			})
		})
	}
}

func TestEnqueuedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{Turnaround: time.Hour, MaxEnqueuedTokens: 30})
		first := a.create(chatLines(1))["id"]
		second := a.create(chatLines(1))["id"]
		if got := a.retrieve(second); got["status"] != "failed" {
			t.Fatalf("status beyond the limit = %v, want failed", got["status"])
		}
		if got := a.server.Batches()[1].Errors; len(got) != 1 || got[0].Code != "token_limit_exceeded" {
			t.Errorf("errors = %v, want token_limit_exceeded", got)
		}
		a.key = "sk-other"
		third := a.create(chatLines(1))["id"]
		a.follow(third, time.Now(), []moment{{time.Hour, "completed", "1/1/0"}})
		a.key = "sk-test"
		a.follow(first, time.Now(), []moment{{0, "completed", "1/1/0"}})
		fourth := a.create(chatLines(1))["id"]
		a.follow(fourth, time.Now(), []moment{{time.Hour, "completed", "1/1/0"}})
	})
}
