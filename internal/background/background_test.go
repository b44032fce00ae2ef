package background

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/journal"
)

// A world is a Server whose calls a test answers.
type world struct {
	*testing.T
	*Server
	roundTrip func(*http.Request) (*http.Response, error)
	kept      atomic.Pointer[string] // the answer that a recall gets
	work      sync.WaitGroup
}

func newWorld(t *testing.T, roundTrip func(*http.Request) (*http.Response, error)) *world {
	w := &world{T: t, roundTrip: roundTrip}
	w.Server = New(Options{
		RoundTrip: roundTrip, Recall: w.recall, Journal: noJournal{}, KeepFor: time.Hour, Context: t.Context(), Err: errors.New("closed"),
		Key: func(r *http.Request, id []byte) (k Key) {
			copy(k.Fingerprint[:], id)
			return k
		},
		Start: func(f func()) bool { w.work.Go(f); return true },
	})
	t.Cleanup(w.work.Wait)
	return w
}

// recall gives the answer that is kept, and keeps the answer again unless it is read.
func (w *world) recall(*http.Request) (*http.Response, error) {
	text := w.kept.Swap(nil)
	if text == nil {
		return nil, ErrNotFound
	}
	return w.answer(*text), nil
}

func (w *world) answer(text string) *http.Response {
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: keptBody{io.NopCloser(strings.NewReader(text)), func() { w.kept.Store(&text) }}}
}

type keptBody struct {
	io.ReadCloser
	keep func()
}

func (b keptBody) MarkUndelivered() { b.keep() }

type noJournal struct{}

func (noJournal) Enabled() bool { return false }
func (noJournal) Find(context.Context, journal.Hash, []journal.Hash) ([]journal.Taken, error) {
	return nil, nil
}
func (noJournal) Withdraw(context.Context, journal.Hash, []journal.Hash) error { return nil }

func (w *world) submit(body string) (id string) {
	req, _ := http.NewRequestWithContext(w.Context(), http.MethodPost, "http://h.test/responses", nil)
	res, err := w.Start(req, &Asked{Body: []byte(body)})
	if err != nil {
		w.Fatal(err)
	}
	return gjson.Get(w.read(res), "id").String()
}

func (w *world) read(res *http.Response) string {
	text, _ := io.ReadAll(res.Body)
	return string(text)
}

func (w *world) ask(method, id string) (int, string) {
	req, _ := http.NewRequestWithContext(w.Context(), method, "http://h.test/responses/"+id, nil)
	res, _ := w.Serve(req)
	return res.StatusCode, w.read(res)
}

// An answer that comes while its call is deleted is deleted, too.
func TestDeleteAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		w = newWorld(t, func(r *http.Request) (*http.Response, error) {
			MarkOf(r.Context()).Sent("")
			<-r.Context().Done()
			return w.answer(`{"status":"completed"}`), nil
		})
		id := w.submit("{}")
		if status, text := w.ask("DELETE", id); status != 200 {
			t.Errorf("DELETE: %d %s", status, text)
		}
		if status, text := w.ask("GET", id); status != 404 {
			t.Errorf("after DELETE: %d %s", status, text)
		}
	})
}

// Only where there is no journal, the reply for an unknown id names what a process without a
// journal forgets.
func TestNotFound(t *testing.T) {
	for _, enabled := range []bool{false, true} {
		w := newWorld(t, nil)
		w.opts.Journal = emptyJournal{enabled: enabled}
		for _, method := range []string{"GET", "DELETE"} {
			status, text := w.ask(method, newID(false))
			if status != 404 || strings.Contains(text, "64 MiB") == enabled || !strings.Contains(text, "Options.KeepFor") {
				t.Errorf("%s, journal %v: %d %s", method, enabled, status, text)
			}
		}
	}
}

type emptyJournal struct {
	noJournal
	enabled bool
}

func (j emptyJournal) Enabled() bool { return j.enabled }

// Questions, a cancellation and Close may come at any moment.
func TestAtTheSameTime(t *testing.T) {
	for range 20 {
		synctest.Test(t, atTheSameTime)
	}
}

func atTheSameTime(t *testing.T) {
	w := newWorld(t, func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	})
	w.opts.Recall = w.roundTrip
	id := newID(false)
	var all sync.WaitGroup
	for _, method := range []string{"GET", "DELETE", "GET"} {
		all.Go(func() { w.ask(method, id) })
	}
	all.Go(func() {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://h.test/responses", nil)
		_, _ = w.Start(req, &Asked{Body: []byte("{}")})
	})
	all.Go(w.Close)
	all.Wait()
	w.Close()
}

// The id of a call that was sent is the response, also if the process ends at that moment.
func TestSentAndEnded(t *testing.T) {
	for range 50 {
		w := newWorld(t, func(r *http.Request) (*http.Response, error) {
			MarkOf(r.Context()).Sent("")
			return nil, errors.New("closed")
		})
		w.opts.Start = func(f func()) bool { f(); return true }
		if id := w.submit("{}"); id == "" {
			t.Fatal("no id")
		}
	}
}

// A process that ends answers all who wait for the same call.
func TestStartWhileClosing(t *testing.T) {
	w := newWorld(t, nil)
	w.opts.Start = func(func()) bool { return false }
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://h.test/responses", nil)
	for range 2 {
		if _, err := w.Start(req, &Asked{Body: []byte("{}")}); !errors.Is(err, w.opts.Err) {
			t.Errorf("error %v", err)
		}
	}
	if len(w.jobs) != 0 {
		t.Errorf("%d jobs are left", len(w.jobs))
	}
}

// A call that runs does not hold a second copy of its body.
func TestBodyIsHeldOnce(t *testing.T) {
	taken := make(chan struct{})
	w := newWorld(t, func(r *http.Request) (*http.Response, error) {
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
		MarkOf(r.Context()).Sent("")
		close(taken)
		<-r.Context().Done()
		runtime.KeepAlive(r)
		return nil, r.Context().Err()
	})
	var body weak.Pointer[[1 << 20]byte]
	asked := func() *Asked {
		b := new([1 << 20]byte)
		body = weak.Make(b)
		return &Asked{Body: b[:]}
	}()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://h.test/responses", nil)
	if _, err := w.Start(req, asked); err != nil {
		t.Fatal(err)
	}
	<-taken
	runtime.GC()
	if body.Value() != nil {
		t.Error("the body is held")
	}
	runtime.KeepAlive(asked)
	w.Close()
}

// A call with an Idempotency-Key is made, although a question for its id looks for an answer
// at the same moment: the question has no body to send. Both end when the call is not wanted
// any more, and when the process ends.
func TestIdempotencyKeyBesideARecall(t *testing.T) {
	for name, end := range map[string]func(w *world, id string){
		"closed":    func(w *world, _ string) { w.Close() },
		"released":  func(w *world, _ string) { w.Release() },
		"cancelled": func(w *world, id string) { w.ask("POST", id+"/cancel") },
		"deleted":   func(w *world, id string) { w.ask("DELETE", id) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(r *http.Request) (*http.Response, error) {
					MarkOf(r.Context()).Sent("")
					<-r.Context().Done()
					return nil, context.Cause(r.Context())
				})
				w.opts.Recall = longRecall(new(atomic.Int64))
				req, asked := w.keyed("{}")
				id, _ := w.namesOf(req, asked)
				w.ask("GET", id) // says "in progress" after a while, and looks on
				res, err := w.Start(req, asked)
				if err != nil {
					t.Fatal(err)
				}
				if got := gjson.Parse(w.read(res)); got.Get("id").String() != id || got.Get("status").String() != "queued" {
					t.Errorf("response = %s", got)
				}
				end(w, id)
				synctest.Wait()
				if len(w.jobs) != 0 {
					t.Errorf("%d jobs run on", len(w.jobs))
					w.Close()
				}
			})
		})
	}
}

// longRecall looks at the provider until its call is not wanted any more. It counts the calls.
func longRecall(calls *atomic.Int64) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		calls.Add(1)
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	}
}

// A question that has taken over the line of a call with an Idempotency-Key keeps the line when
// the call is made again: further questions, and a cancellation, find the question.
func TestIdempotencyKeyOfALineThatIsRecalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil) // a call that is sent again fails the test
		w.opts.Journal = &failingJournal{}
		var recalls atomic.Int64
		w.opts.Recall = longRecall(&recalls)
		req, asked := w.keyed("{}")
		id, _ := w.namesOf(req, asked)
		w.ask("GET", id)
		for range 2 {
			res, err := w.Start(req, &Asked{Body: []byte("{}")})
			if err != nil {
				t.Fatal(err)
			}
			if got := gjson.Get(w.read(res), "id").String(); got != id {
				t.Errorf("the same call again has the id %q, want %q", got, id)
			}
			synctest.Wait()
			if _, text := w.ask("GET", id); gjson.Get(text, "status").String() != "in_progress" {
				t.Errorf("GET: %s", text)
			}
		}
		_, _ = w.ask("POST", id+"/cancel")
		synctest.Wait()
		if n := recalls.Load(); n != 1 || len(w.jobs) != 0 {
			t.Errorf("%d recalls, want 1; %d jobs run on", n, len(w.jobs))
			w.Close()
		}
	})
}

// keyed is a call with an Idempotency-Key, whose caller waits for a minute.
func (w *world) keyed(body string) (*http.Request, *Asked) {
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	w.Cleanup(cancel)
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://h.test/responses", nil)
	req.Header.Set("Idempotency-Key", "k")
	return req, &Asked{Body: []byte(body)}
}

// A failingJournal fails a number of times, and then finds a line of a batch.
type failingJournal struct {
	noJournal
	failures int
}

func (j *failingJournal) Find(context.Context, journal.Hash, []journal.Hash) ([]journal.Taken, error) {
	if j.failures--; j.failures >= 0 {
		return nil, errors.New("the journal fails")
	}
	return []journal.Taken{{Batch: journal.Batch{BatchID: "b"}, Lines: []journal.Line{{CustomID: "c"}}}}, nil
}

// A call with an Idempotency-Key that the journal has is not sent again, although the journal
// fails at first. A journal that fails for longer stops no call.
func TestIdempotencyKeyWhileTheJournalFails(t *testing.T) {
	for failures, want := range map[int]int64{0: 0, 1: 0, maxLookFailures: 0, maxLookFailures + 1: 1} {
		synctest.Test(t, func(t *testing.T) {
			var sent atomic.Int64
			w := newWorld(t, func(r *http.Request) (*http.Response, error) {
				sent.Add(1)
				MarkOf(r.Context()).Sent("")
				return nil, errors.New("closed")
			})
			w.opts.Journal = &failingJournal{failures: failures}
			req, asked := w.keyed("{}")
			id, _ := w.namesOf(req, asked)
			res, err := w.Start(req, asked)
			if err != nil {
				t.Fatal(err)
			}
			if got := gjson.Get(w.read(res), "id").String(); got != id || sent.Load() != want {
				t.Errorf("%d failures: id %s, want %s; %d calls sent, want %d", failures, got, id, sent.Load(), want)
			}
		})
	}
}
