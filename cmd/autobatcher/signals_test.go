package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/dashboard"
	"github.com/autobatcher/autobatcher/journal"
)

// A signal within a second of the first does not force the end; a later signal does,
// and the log names the batches that run on.
func TestSecondSignal(t *testing.T) {
	tests := []struct {
		name   string
		before bool            // the first signal was received before the shutdown
		after  []time.Duration // of further signals, since the beginning of the shutdown
		forced time.Duration   // when the process ends; 0: never
	}{
		{"none", true, nil, 0},
		{"repeated by timeout", true, []time.Duration{500 * time.Microsecond}, 0},
		{"repeated, then a second", true, []time.Duration{500 * time.Microsecond, 3 * time.Second}, 3 * time.Second},
		{"a second", true, []time.Duration{time.Second}, time.Second},
		{"the first arrives after the end of the program", false, []time.Duration{0, 500 * time.Microsecond}, 0},
		{"the same, then a second", false, []time.Duration{time.Millisecond, 3 * time.Second}, 3 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lockedBuffer
				began, code, forced := time.Now(), 0, time.Duration(0)
				p := process{stdout: io.Discard, stderr: io.Discard, exit: func(c int) { code, forced = c, time.Since(began) }}
				caught, done := make(chan os.Signal, 8), make(chan struct{})
				q := &signalQueue{caught: caught}
				if tt.before {
					q.received()
				}
				go p.forceOn(q, done, func() []string { return []string{"batch_1"} }, slog.New(slog.NewTextHandler(&log, nil)))
				for _, d := range tt.after {
					time.Sleep(time.Until(began.Add(d)))
					caught <- syscall.SIGTERM
				}
				time.Sleep(time.Minute)
				close(done)
				synctest.Wait()
				if forced != tt.forced {
					t.Errorf("forced after %v, want %v", forced, tt.forced)
				}
				if tt.forced > 0 && (code != 143 || !strings.Contains(log.String(), "batch_1")) {
					t.Errorf("exit code %d, log: %s", code, log.String())
				}
			})
		})
	}
}

// The time that is left is estimated from earlier batches, or else from the provider's
// counts; the longest counts.
func TestTimeLeft(t *testing.T) {
	now := time.Now()
	event := func(name autobatcher.EventName, id string, elapsed, ago time.Duration, counts autobatcher.Counts) autobatcher.Event {
		return autobatcher.Event{Name: name, BatchID: id, Elapsed: elapsed, Time: now.Add(-ago), Counts: counts}
	}
	var l batchList
	check := func(want time.Duration) {
		t.Helper()
		if got := l.left(now); got != want {
			t.Errorf("%v left, want %v", got, want)
		}
	}
	check(0)
	l.onEvent(event(autobatcher.BatchSubmitted, "a", 0, time.Minute, autobatcher.Counts{}))
	check(0)
	l.onEvent(event(autobatcher.BatchProgress, "a", time.Minute, 10*time.Second, autobatcher.Counts{Completed: 20, Failed: 5, Total: 100}))
	check(3*time.Minute - 10*time.Second)
	for i, took := range []time.Duration{time.Minute, 10 * time.Minute, 2 * time.Minute} {
		l.onEvent(event(autobatcher.BatchCompleted, fmt.Sprint("done", i), took, time.Hour, autobatcher.Counts{}))
	}
	check(2*time.Minute - 70*time.Second)
	l.onEvent(event(autobatcher.BatchSubmitted, "b", 0, 0, autobatcher.Counts{}))
	check(2 * time.Minute)
}

func TestBatchList(t *testing.T) {
	var l batchList
	for _, e := range []autobatcher.Event{
		{Name: autobatcher.BatchResumed, BatchID: "old"},
		{Name: autobatcher.BatchSubmitted, BatchID: "a"},
		{Name: autobatcher.BatchSubmitted, BatchID: "b"},
		{Name: autobatcher.BatchSubmitted, BatchID: "c"},
		{Name: autobatcher.BatchSubmissionFailed},
		{Name: autobatcher.BatchCompleted, BatchID: "a"},
		{Name: autobatcher.CallEscalated, BatchID: "a"},
		{Name: autobatcher.BatchCancelRequested, BatchID: "b"},
		{Name: autobatcher.BatchCancelRequested, BatchID: "c"},
		{Name: autobatcher.BatchCancelledUpstream, BatchID: "c"},
		{Name: autobatcher.BatchCost, BatchID: "c"},
		{Name: autobatcher.BatchCost, BatchID: "old"},
	} {
		l.onEvent(e)
	}
	if got := strings.Join(l.running(), " "); got != "old b" {
		t.Errorf("running: %s", got)
	}
	if got := strings.Join(l.cancelled(), " "); got != "c" {
		t.Errorf("cancelled: %s", got)
	}
	if got := l.count(); got != 3 {
		t.Errorf("%d batches, want 3", got)
	}
}

// The estimates begin with the batches that the journal knows: completed batches of the
// same API and window.
func TestEstimatesBeginWithTheJournal(t *testing.T) {
	const upstream, window, endpoint = "https://api.openai.com/v1", "24h", "/v1/chat/completions"
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		defer store.Close()
		write := func(ref, upstream, window, status string, took time.Duration) {
			t.Helper()
			if _, err := store.Heartbeat(t.Context(), "earlier", 24*time.Hour); err != nil {
				t.Fatal(err)
			}
			batch := journal.Batch{Ref: ref, Owner: "earlier", Upstream: upstream, Window: window, Endpoint: endpoint}
			if err := store.Begin(t.Context(), batch, []journal.Line{{CustomID: ref}}); err != nil {
				t.Fatal(err)
			}
			for _, step := range []journal.Step{{State: journal.Running, BatchID: ref}, {State: journal.Ended, Status: status}} {
				if err := store.Advance(t.Context(), "earlier", ref, step); err != nil {
					t.Fatal(err)
				}
				time.Sleep(took)
				took = 0
			}
		}
		for i := range 4 {
			write(fmt.Sprint("slow", i), upstream, window, "expired", 23*time.Hour)
			write(fmt.Sprint("elsewhere", i), "https://eu.api.openai.com/v1", window, "completed", time.Hour)
			write(fmt.Sprint("other", i), upstream, "1h", "completed", time.Minute)
		}
		for i, took := range []time.Duration{time.Minute, 10 * time.Minute, 7 * time.Minute} {
			write(fmt.Sprint("mine", i), upstream, window, "completed", took)
		}

		b := &backend{journal: &monitoredJournal{Store: store}, page: dashboard.New(dashboard.Options{}), log: slog.New(slog.DiscardHandler)}
		defer b.page.Close()
		b.learn(t.Context(), upstream, window)
		e := autobatcher.Event{Name: autobatcher.BatchSubmitted, BatchID: "new", Endpoint: endpoint, CompletionWindow: window, Time: time.Now()}
		b.batches.onEvent(e)
		b.page.OnEvent(e)
		if left := b.batches.left(time.Now()); left != 7*time.Minute {
			t.Errorf("about %v left, want 7m", left)
		}
		w := httptest.NewRecorder()
		b.page.ServeHTTP(w, httptest.NewRequest("GET", "/autobatcher/batch?seq=1", nil))
		if !strings.Contains(w.Body.String(), "median of the last 3 completed") {
			t.Errorf("the page has no estimate: %s", w.Body)
		}
	})
}
