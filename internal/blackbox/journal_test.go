package blackbox_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
)

// A fleet is processes that share a journal and a provider. A process is a
// Transport; one that crashes is cut off from both, and never says goodbye.
type fleet struct {
	*testing.T
	srv   *batchtest.Server
	store journal.Store
	begin time.Time
	base  func(http.RoundTripper) http.RoundTripper // around every process's way to the server
}

func newFleet(t *testing.T, server batchtest.Options) *fleet {
	f := &fleet{T: t, srv: batchtest.New(server), store: journal.NewMemory(), begin: time.Now()}
	t.Cleanup(func() { f.store.Close() })
	return f
}

type process struct {
	f *fleet
	*autobatcher.Transport
	cut  context.CancelFunc // crashes the process
	away atomic.Bool        // the journal hears nothing of it for now
	log  logbook
}

// A logbook may be read while it is written.
type logbook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logbook) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start starts a process.
func (f *fleet) start(o autobatcher.Options) *process {
	f.Helper()
	ctx, cut := context.WithCancel(context.Background())
	p := &process{f: f, cut: cut}
	server := f.srv.Transport()
	if f.base != nil {
		server = f.base(server)
	}
	o.Base = roundTripper(func(req *http.Request) (*http.Response, error) {
		if err := ctx.Err(); err != nil {
			<-req.Context().Done() // a process that is dead sends nothing
			return nil, req.Context().Err()
		}
		return server.RoundTrip(req)
	})
	o.Journal = mortal{f.store, ctx, &p.away}
	o.Logger = slog.New(slog.NewTextHandler(&p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	o.QuietAfter = cmp.Or(o.QuietAfter, -1) // the times below are those of whole windows
	if p.Transport, err = autobatcher.New(o); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { p.Close() })
	return p
}

// A mortal journal hears nothing more of a process that is dead, or nothing for
// a while.
type mortal struct {
	journal.Store
	ctx  context.Context
	away *atomic.Bool
}

func (m mortal) Heartbeat(ctx context.Context, owner string, lease time.Duration) (bool, error) {
	if err := m.ctx.Err(); err != nil {
		return false, err
	}
	if m.away.Load() {
		return false, errors.New("no route to host")
	}
	return m.Store.Heartbeat(ctx, owner, lease)
}

// Advance stores no step of a process that is dead: its goroutines run on in the test.
func (m mortal) Advance(ctx context.Context, owner, ref string, step journal.Step) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	return m.Store.Advance(ctx, owner, ref, step)
}

type outcome struct {
	status int
	body   string
	err    error
	at     time.Duration
}

// ask makes a chat call in a process, whose outcome comes later.
func (p *process) ask(ctx context.Context, prompt string, edits ...edit) <-chan outcome {
	replies := make(chan outcome, 1)
	go func() {
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, p.f.srv.URL+"/chat/completions",
			strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"`+prompt+`"}]}`))
		req.Header.Set("Authorization", "Bearer k")
		req.Header.Set("Content-Type", "application/json")
		for _, e := range edits {
			e(req)
		}
		res, err := p.RoundTrip(req)
		r := outcome{err: err, at: time.Since(p.f.begin)}
		if err == nil {
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			r.status, r.body = res.StatusCode, string(body)
		}
		replies <- r
	}()
	return replies
}

func (f *fleet) wantAnswer(replies <-chan outcome, text string) {
	f.Helper()
	r := <-replies
	if r.err != nil || r.status != http.StatusOK || !strings.Contains(r.body, text) {
		f.Errorf("at %v: %d, %v, %s; want an answer with %q", r.at, r.status, r.err, r.body, text)
	}
}

func (f *fleet) wantPaid(lines, batches int) {
	f.Helper()
	if n := len(f.srv.Executed()); n != lines {
		f.Errorf("%d lines were paid for, want %d", n, lines)
	}
	if n := len(f.srv.Batches()); n != batches {
		f.Errorf("%d batches, want %d", n, batches)
	}
}

func TestAfterACrashTheSameCallFindsItsLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Turnaround: 10 * time.Minute})
		a := f.start(autobatcher.Options{})
		a.ask(t.Context(), "one")
		a.ask(t.Context(), "two")
		time.Sleep(time.Minute)
		a.cut()
		b := f.start(autobatcher.Options{})
		one, two := b.ask(t.Context(), "one"), b.ask(t.Context(), "two")
		f.wantAnswer(one, "one")
		f.wantAnswer(two, "two")
		f.wantPaid(2, 1)
	})
}

func TestDetachedBatchesAreResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Turnaround: 10 * time.Minute})
		a := f.start(autobatcher.Options{})
		one := a.ask(t.Context(), "one")
		time.Sleep(time.Minute)
		a.Close()
		if r := <-one; r.err == nil {
			t.Errorf("a closed Transport answered %d", r.status)
		}
		time.Sleep(time.Hour)
		b := f.start(autobatcher.Options{})
		f.wantAnswer(b.ask(t.Context(), "one"), "one")
		f.wantPaid(1, 1)
		b.Close()
		// What was delivered is not found again: the next call is a new sample.
		c := f.start(autobatcher.Options{})
		f.wantAnswer(c.ask(t.Context(), "one"), "one")
		f.wantPaid(2, 2)
	})
}

func TestARetryAtAnotherReplicaFindsItsLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Turnaround: 10 * time.Minute})
		a, b := f.start(autobatcher.Options{}), f.start(autobatcher.Options{})
		ctx, leave := context.WithCancel(t.Context())
		first := a.ask(ctx, "one")
		time.Sleep(time.Minute)
		leave()
		<-first
		f.wantAnswer(b.ask(t.Context(), "one"), "one")
		f.wantPaid(1, 1)
	})
}

func TestCallsAliveAtTwoReplicasAreNeverMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Turnaround: 10 * time.Minute})
		a, b := f.start(autobatcher.Options{}), f.start(autobatcher.Options{})
		first := a.ask(t.Context(), "one")
		time.Sleep(time.Minute)
		f.wantAnswer(b.ask(t.Context(), "one"), "one")
		f.wantAnswer(first, "one")
		f.wantPaid(2, 2)
	})
}

func TestAReplicaWhoseLeaseExpiredHoldsItsLinesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Turnaround: 10 * time.Minute})
		a, b := f.start(autobatcher.Options{}), f.start(autobatcher.Options{})
		first := a.ask(t.Context(), "one")
		time.Sleep(time.Minute)
		a.away.Store(true)
		time.Sleep(time.Minute)
		if list, _ := f.store.Batches(t.Context(), journal.Filter{}); len(list) != 1 || list[0].Open != 1 {
			t.Fatalf("%+v; want a batch with an open line", list)
		}
		a.away.Store(false)
		time.Sleep(5 * time.Second)
		f.wantAnswer(b.ask(t.Context(), "one"), "one")
		f.wantAnswer(first, "one")
		f.wantPaid(2, 2)
	})
}

func TestResultsThatCouldNotBeReadAreLookedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{})
		a := f.start(autobatcher.Options{})
		restore := f.srv.Keep(batchtest.OpContent, batchtest.Tear(10))
		if r := <-a.ask(t.Context(), "one"); r.status != http.StatusFailedDependency || !strings.Contains(r.body, "batch_results_unread") {
			t.Errorf("%d, %v, %s; want batch_results_unread", r.status, r.err, r.body)
		}
		restore()
		f.wantAnswer(a.ask(t.Context(), "one"), "one")
		f.wantPaid(1, 1)
	})
}

// cancels counts the requests to cancel a batch.
func (f *fleet) cancels() (n int) {
	for _, r := range f.srv.Requests() {
		if strings.HasSuffix(r.Path, "/cancel") {
			n++
		}
	}
	return n
}

func TestABatchThatHasEndedIsNotCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Turnaround: time.Hour})
		a := f.start(autobatcher.Options{})
		ctx, leave := context.WithCancel(t.Context())
		f.srv.Keep(batchtest.OpCancel, batchtest.HTML(503))
		first := a.ask(ctx, "one")
		time.Sleep(time.Minute)
		leave()
		<-first
		time.Sleep(3 * time.Minute)
		asked := f.cancels()
		if asked == 0 {
			t.Fatal("the batch has no waiters and is not cancelled")
		}
		list, _ := f.store.Batches(t.Context(), journal.Filter{})
		if err := f.store.Advance(t.Context(), list[0].Owner, list[0].Ref, journal.Step{State: journal.Ended, Status: "completed"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Minute)
		if n := f.cancels(); n > asked {
			t.Errorf("%d more requests to cancel a batch that has ended", n-asked)
		}
		if list, _ = f.store.Batches(t.Context(), journal.Filter{}); list[0].State != journal.Ended {
			t.Errorf("the journal says that it is %s again", list[0].State)
		}
	})
}

func TestRecoverWatchesWhatAnEarlierProcessLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Turnaround: 10 * time.Minute})
		a := f.start(autobatcher.Options{})
		a.ask(t.Context(), "one")
		time.Sleep(time.Minute)
		a.cut()
		time.Sleep(time.Minute)
		b := f.start(autobatcher.Options{})
		if err := b.Recover(f.srv.URL, http.Header{"Authorization": {"Bearer k"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Minute)
		list, err := f.store.Batches(t.Context(), journal.Filter{})
		if err != nil || len(list) != 1 || list[0].State != journal.Ended || list[0].Open != 1 {
			t.Fatalf("%+v, %v; want a batch that has ended, with an open line", list, err)
		}
		f.wantAnswer(b.ask(t.Context(), "one"), "one")
		f.wantPaid(1, 1)
	})
}

// A replica that takes over a line of a batch that is being created waits until the
// batch exists.
func TestATakenLineOfABatchThatIsBeingCreated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Turnaround: 10 * time.Minute})
		a, b, c := f.start(autobatcher.Options{}), f.start(autobatcher.Options{}), f.start(autobatcher.Options{})
		f.srv.Control(batchtest.OpUpload, batchtest.Delay(21*time.Second))
		ctx, leave := context.WithCancel(t.Context())
		a.ask(t.Context(), "other")
		first := a.ask(ctx, "one") // a uploads it from 10 s to 35 s
		time.Sleep(15 * time.Second)
		leave()
		<-first
		time.Sleep(time.Second)
		again := b.ask(t.Context(), "one")
		b.ask(t.Context(), "new")
		time.Sleep(9 * time.Second)
		c.cut() // so that b, which takes the line at 26 s, waits for more until 40 s
		time.Sleep(12 * time.Second)
		if n := len(f.srv.Batches()); n != 1 {
			t.Fatalf("%d batches, want the one of a", n)
		}
		a.Close() // and b becomes the one who carries it on
		f.wantAnswer(again, "one")
		time.Sleep(time.Hour)
		f.wantPaid(3, 2)
	})
}

// leftWhileUploading makes a call whose caller leaves while it is uploaded, 15
// seconds later, and another call of the same batch, whose outcome leftWhileUploading returns.
func (p *process) leftWhileUploading(prompt string) (other <-chan outcome) {
	ctx, leave := context.WithCancel(p.f.Context())
	other = p.ask(p.f.Context(), "other")
	first := p.ask(ctx, prompt)
	time.Sleep(15 * time.Second)
	leave()
	<-first
	time.Sleep(time.Second)
	return other
}

func TestAFailedLookChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Turnaround: 10 * time.Minute})
		a := f.start(autobatcher.Options{})
		b, j := f.far(autobatcher.Options{})
		var looks atomic.Int32
		j.set(func(_ context.Context, request string) error {
			if request == "look" && looks.Add(1) == 5 {
				return errDown
			}
			return nil
		})
		f.srv.Control(batchtest.OpUpload, batchtest.Delay(60*time.Second))
		other := a.leftWhileUploading("one")
		f.wantAnswer(b.ask(t.Context(), "one"), "one")
		f.wantAnswer(other, "other")
		f.wantPaid(2, 1)
		if n := looks.Load(); n < 5 {
			t.Errorf("no look failed: there were %d", n)
		}
	})
}

// A caller who took over a line waits until the journal says what became of the batch.
// A discard that failed is therefore repeated.
func TestADiscardThatFailsIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Turnaround: 10 * time.Minute})
		a, j := f.far(autobatcher.Options{})
		var discards atomic.Int32
		j.set(func(_ context.Context, request string) error {
			if request == "discard" && discards.Add(1) <= 3 {
				return errDown
			}
			return nil
		})
		b := f.start(autobatcher.Options{})
		f.srv.Control(batchtest.OpUpload, func(w http.ResponseWriter, r *http.Request) bool {
			time.Sleep(time.Minute)
			return batchtest.Status(http.StatusRequestEntityTooLarge, nil, `{"error":{"message":"no"}}`)(w, r)
		})
		a.leftWhileUploading("one")
		r := <-b.ask(t.Context(), "one")
		if r.status != http.StatusOK || r.at > 15*time.Minute {
			t.Errorf("%d, %v at %v; want an answer from a batch of its own", r.status, r.err, r.at)
		}
	})
}

// The wait for an owner that never records what became of its batch ends.
func TestTheWaitForAnOwnerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{})
		a, b := f.start(autobatcher.Options{}), f.start(autobatcher.Options{})
		stuck := make(chan struct{})
		f.srv.Control(batchtest.OpUpload, func(http.ResponseWriter, *http.Request) bool { <-stuck; return true })
		a.leftWhileUploading("one") // a is alive and uploads, without a word on how long
		r := <-b.ask(t.Context(), "one")
		close(stuck)
		if r.status == 0 || r.at > 4*time.Hour {
			t.Errorf("%d, %v at %v; want an answer within hours", r.status, r.err, r.at)
		}
	})
}

// What is there of results is not bought again because the rest is not.
func TestATornFileBesideOneThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
			if strings.Contains(string(l.Body), "bad") {
				return batchtest.Outcome{Status: http.StatusBadRequest}
			}
			return batchtest.Echo(l)
		}})
		a := f.start(autobatcher.Options{})
		output := "" // which is read first
		restore := f.srv.Keep(batchtest.OpContent, func(w http.ResponseWriter, r *http.Request) bool {
			if output == "" {
				output = r.URL.Path
			}
			if r.URL.Path == output {
				return batchtest.Tear(10)(w, r)
			}
			return batchtest.HTML(http.StatusNotFound)(w, r)
		})
		time.AfterFunc(30*time.Minute, restore)
		one, bad := a.ask(t.Context(), "one"), a.ask(t.Context(), "bad")
		f.wantAnswer(one, "one")
		if r := <-bad; r.status != http.StatusBadRequest {
			t.Errorf("%d, %v; want the line's own 400", r.status, r.err)
		}
		f.wantPaid(2, 1)
	})
}

// Results that the provider keeps from us are not bought again, and are there
// when it thinks better of it.
func TestResultsThatMayNotBeRead(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, batchtest.Options{})
				a := f.start(autobatcher.Options{})
				restore := f.srv.Keep(batchtest.OpContent, batchtest.HTML(status))
				r := <-a.ask(t.Context(), "one")
				if r.status != http.StatusFailedDependency || !strings.Contains(r.body, "batch_results_unread") || r.at > 15*time.Minute {
					t.Errorf("%d, %v, %s at %v; want batch_results_unread within minutes", r.status, r.err, r.body, r.at)
				}
				restore()
				f.wantAnswer(a.ask(t.Context(), "one"), "one")
				f.wantPaid(1, 1)
			})
		})
	}
}

// A batch that may not be looked at for a while runs, and is paid for.
func TestABatchThatMayNotBePolled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{})
		a := f.start(autobatcher.Options{})
		restore := f.srv.Keep(batchtest.OpRetrieve, batchtest.HTML(http.StatusUnauthorized))
		if r := <-a.ask(t.Context(), "one"); r.status != http.StatusFailedDependency || !strings.Contains(r.body, "batch_lost") {
			t.Errorf("%d, %v, %s; want batch_lost", r.status, r.err, r.body)
		}
		restore()
		f.wantAnswer(a.ask(t.Context(), "one"), "one")
		f.wantPaid(1, 1)
	})
}

// A journal that missed the update "creating" still has the input file, by which the
// batch is found.
func TestABatchThatTheJournalThinksIsOnlyUploaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Turnaround: 10 * time.Minute})
		a, j := f.far(autobatcher.Options{})
		j.set(func(_ context.Context, request string) error {
			if strings.HasPrefix(request, "advance") && request != "advance uploaded" {
				return errDown
			}
			return nil
		})
		a.ask(t.Context(), "one")
		time.Sleep(time.Minute)
		a.cut()
		f.wantAnswer(f.start(autobatcher.Options{}).ask(t.Context(), "one"), "one")
		f.wantPaid(1, 1)
	})
}

// Recover finds the account of a base URL that ends as an endpoint does, such as that of
// a deployment with the name "embeddings".
func TestRecoverOfABaseURLThatEndsAsAnEndpoint(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: 10 * time.Minute}, func(f *fleet) {
		base := f.srv.URL + "/embeddings"
		f.base = func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				r = r.Clone(r.Context())
				r.URL.Path = strings.Replace(r.URL.Path, "/embeddings/", "/", 1)
				return next.RoundTrip(r)
			})
		}
		there := func(r *http.Request) { r.URL.Path = strings.Replace(r.URL.Path, "/chat/", "/embeddings/chat/", 1) }
		a := f.start(autobatcher.Options{})
		a.ask(f.Context(), "one", there)
		time.Sleep(time.Minute)
		a.cut()
		time.Sleep(time.Minute)
		b := f.start(autobatcher.Options{})
		if err := b.Recover(base, http.Header{"Authorization": {"Bearer k"}}); err != nil {
			f.Fatal(err)
		}
		time.Sleep(time.Minute)
		if len(b.Stats().Batches) != 1 {
			f.Error("the batch was not resumed")
		}
	})
}
