package autobatcher_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// Statistics may be asked for at any moment in the life of a batch. The race detector
// makes the check.
func TestStatsWhileABatchIsSent(t *testing.T) {
	srv := batchtest.New(batchtest.Options{})
	tr, err := autobatcher.New(autobatcher.Options{Base: srv.Transport(), BatchSize: 1, PollInterval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		x := &trial{T: t, srv: srv, tr: tr, begun: time.Now()}
		for range 20 {
			if a := x.call("/chat/completions", chat("text")); a.err != nil || a.res.StatusCode != 200 {
				t.Errorf("%v %s", a.err, a.body)
				return
			}
		}
	}()
	for {
		select {
		case <-done:
			return
		default:
			for _, q := range tr.Stats().Queues {
				if q.Endpoint != "/v1/chat/completions" {
					t.Errorf("a queue for %q", q.Endpoint)
				}
			}
		}
	}
}

// A call counts as queued exactly once until its batch exists, also at the moment when
// the queued calls become the lines of a batch.
func TestStatsCountQueuedCallsOnce(t *testing.T) {
	const calls = 20
	for range 100 {
		uploading := make(chan struct{})
		begin := sync.OnceFunc(func() { close(uploading) })
		base := through(func(r *http.Request) (*http.Response, error) {
			begin() // the calls are lines now
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		tr, err := autobatcher.New(autobatcher.Options{Base: base, BatchSize: calls})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		for range calls {
			done.Go(func() {
				r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://upstream.test/v1/embeddings", strings.NewReader(`{"model":"m","input":"a"}`))
				if res, err := tr.RoundTrip(r); err == nil {
					res.Body.Close()
				}
			})
		}
		for queued, sent := 0, false; !sent; {
			select {
			case <-uploading:
				sent = true
			default:
			}
			got := tr.Stats().Queued
			if got < queued || got > calls {
				t.Fatalf("%d calls are queued after %d", got, queued)
			}
			queued = got
		}
		cancel()
		done.Wait()
		tr.Close()
	}
}

// The totals tell answers, answers with an error status, and calls that their batch did
// not answer apart.
func TestTotals(t *testing.T) {
	outcome := func(l batchtest.Line) batchtest.Outcome {
		switch {
		case strings.Contains(string(l.Body), "bad"):
			return batchtest.Outcome{Status: 400}
		case strings.Contains(string(l.Body), "gone"):
			return batchtest.Outcome{Missing: true}
		}
		return batchtest.Echo(l)
	}
	try(t, "", batchtest.Options{Answer: outcome}, autobatcher.Options{}, func(t *trial) {
		var ends []<-chan answer
		for _, text := range []string{"good", "good", "bad", "gone"} {
			ends = append(ends, t.start("/chat/completions", chat(text)))
		}
		for _, end := range ends {
			<-end
		}
		if s := t.tr.Stats(); s.Answered != 3 || s.Errors != 1 || s.Failed != 1 {
			t.Errorf("stats %+v; want 3 answers, 1 of them an error, and 1 failure", s)
		}
	})
}

// The statistics have each batch from its creation to its end, with what the provider
// last said, and how many callers wait.
func TestStatsOfRunningBatches(t *testing.T) {
	server := batchtest.Options{Turnaround: time.Minute, Behavior: batchtest.Doubleword()}
	try(t, "", server, autobatcher.Options{BatchSize: 2, PollInterval: time.Second}, func(t *trial) {
		check := func(want ...autobatcher.BatchStats) {
			t.Helper()
			got := t.tr.Stats().Batches
			for i := range got {
				if i < len(want) {
					want[i].ID = t.srv.Batches()[i].ID
				}
				got[i].Created = got[i].Created.Round(time.Second)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("after %v: %s", time.Since(t.begun), diff)
			}
		}
		const chats, embeddings = "/v1/chat/completions", "/v1/embeddings"
		ends := []<-chan answer{t.start("/chat/completions", chat("a"))}
		synctest.Wait()
		check() // the call is queued
		ends = append(ends, t.start("/chat/completions", chat("b")))
		synctest.Wait()
		first := autobatcher.BatchStats{Endpoint: chats, Status: "validating", Counts: autobatcher.Counts{Total: 2}, Calls: 2, Created: t.begun}
		check(first)
		time.Sleep(31 * time.Second)
		for range 2 {
			ends = append(ends, t.start("/embeddings", `{"model":"m","input":"a"}`))
		}
		synctest.Wait()
		first.Status, first.Counts.Completed, first.Calls = "in_progress", 1, 1
		check(first, autobatcher.BatchStats{Endpoint: embeddings, Status: "validating", Counts: autobatcher.Counts{Total: 2}, Calls: 2, Created: t.begun.Add(31 * time.Second)})
		for _, end := range ends {
			<-end
		}
		synctest.Wait()
		check()
	})
}

type through func(*http.Request) (*http.Response, error)

func (f through) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
