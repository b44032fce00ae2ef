package blackbox_test

import (
	"context"
	"errors"
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
	"github.com/autobatcher/autobatcher/provider"
)

// A line to a journal can be in trouble.
type troubled struct {
	journal.Store
	mu      sync.Mutex
	trouble func(ctx context.Context, request string) error
}

// set makes f happen before each request; nil ends the trouble.
func (j *troubled) set(f func(ctx context.Context, request string) error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.trouble = f
}

func (j *troubled) meet(ctx context.Context, request string) error {
	j.mu.Lock()
	f := j.trouble
	j.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(ctx, request)
}

var errDown = errors.New("connection refused")

func down(context.Context, string) error { return errDown }

func hangs(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }

// once fails the first request of a kind.
func once(request string) func(context.Context, string) error {
	var failed atomic.Bool
	return func(_ context.Context, this string) error {
		if this != request || failed.Swap(true) {
			return nil
		}
		return errDown
	}
}

func (j *troubled) Heartbeat(ctx context.Context, owner string, lease time.Duration) (bool, error) {
	if err := j.meet(ctx, "heartbeat"); err != nil {
		return false, err
	}
	return j.Store.Heartbeat(ctx, owner, lease)
}

func (j *troubled) Owners(ctx context.Context) ([]journal.Owner, error) {
	list, err := j.Store.Owners(ctx)
	if trouble := j.meet(ctx, "owners"); trouble != nil { // after it was looked up
		return nil, trouble
	}
	return list, err
}

func (j *troubled) Begin(ctx context.Context, b journal.Batch, lines []journal.Line) error {
	if err := j.meet(ctx, "begin"); err != nil {
		return err
	}
	return j.Store.Begin(ctx, b, lines)
}

func (j *troubled) Advance(ctx context.Context, owner, ref string, s journal.Step) error {
	if err := j.meet(ctx, "advance "+string(s.State)); err != nil {
		return err
	}
	return j.Store.Advance(ctx, owner, ref, s)
}

func (j *troubled) Discard(ctx context.Context, owner, ref string) error {
	if err := j.meet(ctx, "discard"); err != nil {
		return err
	}
	return j.Store.Discard(ctx, owner, ref)
}

func (j *troubled) Claim(ctx context.Context, owner, ref string) (bool, error) {
	if err := j.meet(ctx, "claim"); err != nil {
		return false, err
	}
	return j.Store.Claim(ctx, owner, ref)
}

func (j *troubled) TakeOver(ctx context.Context, owner string, payer journal.Hash, prints []journal.Hash) ([]journal.Taken, error) {
	if err := j.meet(ctx, "take over"); err != nil {
		return nil, err
	}
	return j.Store.TakeOver(ctx, owner, payer, prints)
}

func (j *troubled) Hold(ctx context.Context, owner, ref string, lines []int) error {
	if err := j.meet(ctx, "hold"); err != nil {
		return err
	}
	return j.Store.Hold(ctx, owner, ref, lines)
}

func (j *troubled) Release(ctx context.Context, owner, ref string, lines []int) error {
	if err := j.meet(ctx, "release"); err != nil {
		return err
	}
	return j.Store.Release(ctx, owner, ref, lines)
}

func (j *troubled) Deliver(ctx context.Context, owner, ref string, lines []int) error {
	if err := j.meet(ctx, "deliver"); err != nil {
		return err
	}
	return j.Store.Deliver(ctx, owner, ref, lines)
}

func (j *troubled) Abandon(ctx context.Context, owner, ref string) (bool, error) {
	if err := j.meet(ctx, "abandon"); err != nil {
		return false, err
	}
	return j.Store.Abandon(ctx, owner, ref)
}

func (j *troubled) Batches(ctx context.Context, f journal.Filter) ([]journal.Batch, error) {
	request := "batches"
	if f.Ref != "" {
		request = "look"
	}
	if err := j.meet(ctx, request); err != nil {
		return nil, err
	}
	return j.Store.Batches(ctx, f)
}

// far starts a process whose line to the journal can be troubled.
func (f *fleet) far(o autobatcher.Options) (*process, *troubled) {
	f.Helper()
	well := f.store
	defer func() { f.store = well }()
	j := &troubled{Store: well}
	f.store = j
	return f.start(o), j
}

func inFleet(t *testing.T, server batchtest.Options, script func(f *fleet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { script(newFleet(t, server)) })
}

// only is the one batch that the journal knows.
func (f *fleet) only() journal.Batch {
	f.Helper()
	list, err := f.store.Batches(f.Context(), journal.Filter{})
	if err != nil || len(list) != 1 {
		f.Fatalf("%+v, %v; want one batch", list, err)
	}
	return list[0]
}

// A journal that is out of reach for longer than a lease while a batch is created
// learns of it all the same.
func TestABatchIDThatCouldNotBeRecorded(t *testing.T) {
	lapse := func(f *fleet) (a *process, leave context.CancelFunc) {
		a, j := f.far(autobatcher.Options{})
		f.start(autobatcher.Options{}) // who sees that a gives no sign of life
		f.srv.Control(batchtest.OpCreate, batchtest.Delay(20*time.Second))
		ctx, leave := context.WithCancel(f.Context())
		a.ask(ctx, "one") // created from 10 s to 30 s
		time.Sleep(15 * time.Second)
		j.set(down)
		time.Sleep(30 * time.Second)
		j.set(nil)
		time.Sleep(30 * time.Second)
		if b := f.only(); b.State != journal.Running || b.BatchID == "" {
			f.Errorf("the batch runs, and the journal says %s, id %q", b.State, b.BatchID)
		}
		return a, leave
	}
	t.Run("the line is found", func(t *testing.T) {
		inFleet(t, batchtest.Options{Turnaround: time.Hour}, func(f *fleet) {
			_, leave := lapse(f)
			leave()
			time.Sleep(time.Second)
			f.wantAnswer(f.start(autobatcher.Options{}).ask(f.Context(), "one"), "one")
			f.wantPaid(1, 1)
		})
	})
	t.Run("the batch is cancelled", func(t *testing.T) {
		inFleet(t, batchtest.Options{Turnaround: 10 * time.Hour}, func(f *fleet) {
			_, leave := lapse(f)
			leave()
			time.Sleep(10 * time.Minute)
			if f.cancels() == 0 {
				f.Error("the batch has no waiters and is not cancelled")
			}
		})
	})
}

// A replica that was taken for dead finds that its input file was deleted by the
// one that looked for its batch. Its calls are resubmitted.
func TestACreateWhoseFileAnotherReplicaDeleted(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: 10 * time.Minute}, func(f *fleet) {
		a, b := f.start(autobatcher.Options{}), f.start(autobatcher.Options{})
		f.wantAnswer(b.ask(f.Context(), "hello"), "hello") // b knows the credential
		restore := f.srv.Keep(batchtest.OpCreate, batchtest.RateLimit(20*time.Second))
		one := a.ask(f.Context(), "one")
		time.Sleep(15 * time.Second)
		a.away.Store(true)
		time.Sleep(20 * time.Second)
		a.away.Store(false)
		time.Sleep(time.Minute)
		restore()
		f.wantAnswer(one, "one")
		f.wantPaid(2, 2)
	})
}

// An update that the journal did not receive is sent again.
func TestUpdatesThatFailedAreRepeated(t *testing.T) {
	left := func(f *fleet) *process {
		a, j := f.far(autobatcher.Options{})
		ctx, leave := context.WithCancel(f.Context())
		first := a.ask(ctx, "one")
		time.Sleep(time.Minute)
		j.set(once("release"))
		leave()
		<-first
		return a
	}
	t.Run("who left at once comes back", func(t *testing.T) {
		inFleet(t, batchtest.Options{Turnaround: time.Hour}, func(f *fleet) {
			a := left(f)
			f.wantAnswer(a.ask(f.Context(), "one"), "one")
			f.wantPaid(1, 1)
		})
	})
	t.Run("who left comes back elsewhere", func(t *testing.T) {
		inFleet(t, batchtest.Options{Turnaround: time.Hour}, func(f *fleet) {
			left(f)
			time.Sleep(30 * time.Second)
			f.wantAnswer(f.start(autobatcher.Options{}).ask(f.Context(), "one"), "one")
			f.wantPaid(1, 1)
		})
	})
	t.Run("no caller comes back", func(t *testing.T) {
		inFleet(t, batchtest.Options{Turnaround: 10 * time.Hour}, func(f *fleet) {
			left(f)
			time.Sleep(10 * time.Minute)
			if f.cancels() == 0 {
				f.Error("the batch has no waiters and is not cancelled")
			}
		})
	})
	t.Run("a delivery", func(t *testing.T) {
		inFleet(t, batchtest.Options{}, func(f *fleet) {
			a, j := f.far(autobatcher.Options{})
			j.set(once("deliver"))
			f.wantAnswer(a.ask(f.Context(), "one"), "one")
			time.Sleep(time.Minute)
			if b := f.only(); b.Delivered != 1 {
				f.Errorf("%+v; want a line that is delivered", b)
			}
		})
	})
}

// To ask again costs seconds, and another line costs money.
func TestATakeOverThatFailsIsTriedAgain(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: time.Hour}, func(f *fleet) {
		a := f.start(autobatcher.Options{})
		b, j := f.far(autobatcher.Options{})
		ctx, leave := context.WithCancel(f.Context())
		first := a.ask(ctx, "one")
		time.Sleep(time.Minute)
		leave()
		<-first
		j.set(once("take over"))
		f.wantAnswer(b.ask(f.Context(), "one"), "one")
		f.wantPaid(1, 1)
	})
}

// A line that was taken while its owner was out of reach, and left again, is its
// owner's caller's yet.
func TestABatchIsNotCancelledThatAnOwnCallerWaitsFor(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: 2 * time.Hour}, func(f *fleet) {
		a, b := f.start(autobatcher.Options{}), f.start(autobatcher.Options{})
		one := a.ask(f.Context(), "one")
		time.Sleep(time.Minute)
		a.away.Store(true)
		time.Sleep(16 * time.Second)
		ctx, leave := context.WithCancel(f.Context())
		second := b.ask(ctx, "one")
		time.Sleep(15 * time.Second)
		a.away.Store(false)
		time.Sleep(time.Minute)
		leave()
		<-second
		f.wantAnswer(one, "one")
		if n := f.cancels(); n > 0 {
			f.Errorf("cancelled %d times", n)
		}
		f.wantPaid(1, 1)
	})
}

// A process that has lapsed takes back a line that a caller of its own waits for,
// and then the other one, which its new call is after.
func TestALineWithAWaiterHidesNoReleasedLine(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: 2 * time.Hour}, func(f *fleet) {
		a, b := f.start(autobatcher.Options{}), f.start(autobatcher.Options{})
		one := a.ask(f.Context(), "one")
		time.Sleep(time.Minute)
		b.ask(f.Context(), "one")
		time.Sleep(time.Minute)
		b.cut()
		time.Sleep(30 * time.Second)
		a.away.Store(true)
		time.Sleep(16 * time.Second)
		again := a.ask(f.Context(), "one") // the retry of b's
		time.Sleep(9900 * time.Millisecond)
		a.away.Store(false)
		f.wantAnswer(one, "one")
		f.wantAnswer(again, "one")
		f.wantPaid(2, 2)
	})
}

// However long the list of owners takes: a sign of life from before it was asked
// for is none.
func TestASlowListOfOwners(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: 2 * time.Hour}, func(f *fleet) {
		b := f.start(autobatcher.Options{})
		a, j := f.far(autobatcher.Options{BatchWindow: time.Second})
		b.ask(f.Context(), "one")
		time.Sleep(time.Minute)
		j.set(func(_ context.Context, request string) error {
			if request == "owners" {
				time.Sleep(4 * time.Second)
			}
			return nil
		})
		time.Sleep(time.Second) // between two signs of life
		b.cut()
		f.wantAnswer(a.ask(f.Context(), "one"), "one")
		f.wantPaid(1, 1)
	})
}

// Close does not wait long for a journal that does not answer.
func TestCloseWhileTheJournalHangs(t *testing.T) {
	for _, cancels := range []bool{false, true} {
		inFleet(t, batchtest.Options{Turnaround: 2 * time.Hour}, func(f *fleet) {
			a, j := f.far(autobatcher.Options{BatchSize: 1, CancelOnClose: cancels})
			var leaves []context.CancelFunc
			for i := range 64 {
				ctx, leave := context.WithCancel(f.Context())
				leaves = append(leaves, leave)
				a.ask(ctx, strings.Repeat("x", i+1))
			}
			time.Sleep(time.Minute)
			j.set(hangs)
			for _, leave := range leaves[:32] {
				leave()
			}
			began := time.Now()
			a.Close()
			if d := time.Since(began); d > 30*time.Second {
				f.Errorf("with CancelOnClose %v it took %v", cancels, d)
			}
		})
	}
}

// loseUpdates lets that many batches end while the journal accepts no update.
func (p *process) loseUpdates(j *troubled, batches int) {
	var all []<-chan outcome
	for i := range batches {
		all = append(all, p.ask(p.f.Context(), strings.Repeat("x", i+1)))
	}
	time.Sleep(time.Second)
	j.set(func(_ context.Context, request string) error {
		if strings.HasPrefix(request, "advance") {
			return errDown
		}
		return nil
	})
	for _, c := range all {
		<-c
	}
	time.Sleep(time.Second)
}

// Pending updates of a slow journal leave room for heartbeats.
func TestPendingUpdatesDoNotCostTheLease(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: 2 * time.Minute}, func(f *fleet) {
		a, j := f.far(autobatcher.Options{BatchSize: 1})
		a.loseUpdates(j, 160)
		j.set(func(context.Context, string) error { time.Sleep(200 * time.Millisecond); return nil })
		for range 120 {
			time.Sleep(time.Second)
			if list, err := f.store.Owners(f.Context()); err != nil || len(list) != 1 || list[0].Silent > 10*time.Second {
				f.Fatalf("%+v, %v; want signs of life", list, err)
			}
		}
		list, _ := f.store.Batches(f.Context(), journal.Filter{})
		for _, b := range list {
			if b.State != journal.Ended {
				f.Fatalf("%s %q is %s after two minutes", b.Ref, b.BatchID, b.State)
			}
		}
	})
}

// A batch that never ends is read a last time, and a line without an answer is
// resubmitted.
func TestAnOverdueBatchAndAResubmittedLine(t *testing.T) {
	tries := 0
	server := batchtest.Options{Behavior: batchtest.Doubleword(), Answer: func(l batchtest.Line) batchtest.Outcome {
		switch {
		case strings.Contains(string(l.Body), "stuck"):
			return batchtest.Outcome{Never: true}
		case tries == 0:
			tries++
			return batchtest.Outcome{Code: "line_failed", Message: "no"}
		}
		return batchtest.Echo(l)
	}}
	inFleet(t, server, func(f *fleet) {
		p := provider.Doubleword()
		a := f.start(autobatcher.Options{Provider: &p})
		f.srv.Keep(batchtest.OpRetrieve, field("status", `"in_progress"`))
		restore := f.srv.Keep(batchtest.OpContent, batchtest.HTML(http.StatusServiceUnavailable))
		time.AfterFunc(25*time.Hour+10*time.Minute, restore) // a day and an hour is when it is overdue
		one, stuck := a.ask(f.Context(), "one"), a.ask(f.Context(), "stuck")
		if r := <-stuck; !strings.Contains(r.body, "batch_overdue") {
			f.Errorf("%d, %v, %s; want batch_overdue", r.status, r.err, r.body)
		}
		f.wantAnswer(one, "one")
	})
}

// What was never counted as done is looked for, however little the provider counts.
func TestCountsThatLeaveOutWhatNeverRan(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		inFleet(t, batchtest.Options{Turnaround: 40 * time.Minute}, func(f *fleet) {
			a := f.start(autobatcher.Options{AbandonAfter: -1})
			ctx, leave := context.WithCancel(f.Context())
			one := a.ask(f.Context(), "one")
			time.Sleep(time.Second)
			a.ask(ctx, "two")
			time.Sleep(30 * time.Minute) // one has run
			if leaves {
				leave()
			}
			time.Sleep(time.Minute)
			f.srv.Control(batchtest.OpContent, batchtest.Status(http.StatusOK, nil, "")) // a copy that lags behind
			f.cancel(f.only().BatchID)
			f.srv.Keep(batchtest.OpRetrieve, field("request_counts", `{"total":2,"completed":1,"failed":0}`))
			f.wantAnswer(one, "one")
			leave()
			n := 0
			for _, l := range f.srv.Executed() {
				if strings.Contains(string(l.Body), "one") {
					n++
				}
			}
			if n != 1 {
				f.Errorf("the other left %v: paid for %d times", leaves, n)
			}
		})
	}
}

// cancel cancels a batch as somebody else might.
func (f *fleet) cancel(batchID string) {
	f.Helper()
	req, _ := http.NewRequestWithContext(f.Context(), http.MethodPost, f.srv.URL+"/batches/"+batchID+"/cancel", nil)
	req.Header.Set("Authorization", "Bearer k")
	res, err := f.srv.Transport().RoundTrip(req)
	if err != nil || res.StatusCode != http.StatusOK {
		f.Fatalf("cancel: %v, %v", res, err)
	}
	res.Body.Close()
}

// Close names batches whose ids are being learned (for the race detector).
func TestCloseWhileABatchIsResumed(t *testing.T) {
	f := newFleet(t, batchtest.Options{Turnaround: time.Hour})
	a := f.start(autobatcher.Options{BatchWindow: 10 * time.Millisecond})
	a.ask(t.Context(), "one")
	for len(f.srv.Batches()) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	a.Close()
	b, j := f.far(autobatcher.Options{OnEvent: func(e autobatcher.Event) {
		if e.Name == autobatcher.ClientClosing {
			time.Sleep(300 * time.Millisecond)
		}
	}})
	j.set(func(_ context.Context, request string) error {
		if request == "claim" {
			time.Sleep(100 * time.Millisecond)
		}
		return nil
	})
	if err := b.Recover(f.srv.URL, http.Header{"Authorization": {"Bearer k"}}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(150 * time.Millisecond)
	b.Close()
}

// A caller leaves and comes back while the journal is out of reach for less than a
// lease: its line is known when the journal is back.
func TestAShortOutage(t *testing.T) {
	for _, outage := range []time.Duration{5 * time.Second, 9 * time.Second, 12 * time.Second, 14 * time.Second} {
		inFleet(t, batchtest.Options{Turnaround: 100 * time.Second}, func(f *fleet) {
			a, j := f.far(autobatcher.Options{})
			ctx, leave := context.WithCancel(f.Context())
			first := a.ask(ctx, "one")
			time.Sleep(62 * time.Second)
			j.set(down)
			leave()
			<-first
			again := a.ask(f.Context(), "one") // claimed ten seconds later
			time.Sleep(outage)
			j.set(nil)
			f.wantAnswer(again, "one")
			f.wantPaid(1, 1)
		})
	}
}

// Updates that another goroutine is sending are waited for.
func TestUpdatesThatAreBeingSent(t *testing.T) {
	server := batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: 50 * time.Minute, Answer: func(l batchtest.Line) batchtest.Outcome {
		o := batchtest.Echo(l)
		o.Delay = 70 * time.Second
		if strings.Contains(string(l.Body), "two") {
			o.Delay = 22 * time.Second
		}
		return o
	}}
	inFleet(t, server, func(f *fleet) {
		p := provider.Doubleword()
		a, j := f.far(autobatcher.Options{Provider: &p})
		ctx, leave := context.WithCancel(f.Context())
		first, two := a.ask(ctx, "one"), a.ask(f.Context(), "two")
		time.Sleep(27 * time.Second)
		again := a.ask(f.Context(), "one") // claimed at 37 s
		time.Sleep(4 * time.Second)
		j.set(once("release"))
		leave()
		<-first
		time.Sleep(500 * time.Millisecond)
		j.set(func(_ context.Context, request string) error {
			if request == "deliver" {
				time.Sleep(6 * time.Second)
			}
			return nil
		})
		f.wantAnswer(two, "two")
		f.wantAnswer(again, "one")
		f.wantPaid(2, 1)
	})
}

// A deaf line loses the answers to releases.
type deafLine struct {
	journal.Store
	loses atomic.Bool
}

func (d *deafLine) Release(ctx context.Context, owner, ref string, lines []int) error {
	err := d.Store.Release(ctx, owner, ref, lines)
	if d.loses.Load() {
		return errDown
	}
	return err
}

// A release that is repeated does not open a line that a caller has come back for.
func TestAReleaseIsNotRepeatedOfALineThatWasTakenAgain(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: 2 * time.Hour}, func(f *fleet) {
		well := f.store
		d := &deafLine{Store: well}
		f.store = d
		a := f.start(autobatcher.Options{})
		f.store = well
		b := f.start(autobatcher.Options{})
		ctx, leave := context.WithCancel(f.Context())
		first := a.ask(ctx, "one")
		time.Sleep(time.Minute)
		d.loses.Store(true)
		leave()
		<-first
		again := a.ask(f.Context(), "one")
		time.Sleep(30 * time.Second)
		if b := f.only(); b.Held != 1 {
			f.Fatalf("%+v; want the line held again", b)
		}
		d.loses.Store(false)
		time.Sleep(20 * time.Second)
		if b := f.only(); b.Held != 1 {
			f.Errorf("%+v; want the line held, since a caller waits for it", b)
		}
		f.wantAnswer(b.ask(f.Context(), "one"), "one") // which is alive beside the other
		f.wantAnswer(again, "one")
		f.wantPaid(2, 2)
	})
}

// A batch that was given up since the journal took it is not claimed again and
// forgotten about.
func TestABatchThatWasGivenUpIsDiscarded(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: 10 * time.Minute}, func(f *fleet) {
		a := f.start(autobatcher.Options{})
		b := f.start(autobatcher.Options{})
		f.srv.Control(batchtest.OpUpload, batchtest.Delay(40*time.Second)) // from 10 s to 50 s
		f.srv.Keep(batchtest.OpDeleteFile, batchtest.Delay(20*time.Second))
		ctx, leave := context.WithCancel(f.Context())
		one, two := a.ask(f.Context(), "one"), a.ask(ctx, "two")
		time.Sleep(16 * time.Second)
		leave()
		<-two
		time.Sleep(4 * time.Second)
		a.away.Store(true)
		time.Sleep(35 * time.Second)
		a.away.Store(false)
		f.wantAnswer(one, "one")
		time.Sleep(time.Minute)
		began := time.Now()
		f.wantAnswer(b.ask(f.Context(), "two"), "two")
		if d := time.Since(began); d > 15*time.Minute {
			f.Errorf("answered after %v", d)
		}
		time.Sleep(time.Minute)
		list, _ := f.store.Batches(f.Context(), journal.Filter{})
		for _, b := range list {
			if b.State != journal.Ended {
				f.Errorf("%+v; want it ended", b)
			}
		}
	})
}

// One clean look before an outage does not use up the time for those after it.
func TestACleanLookBeforeAnOutage(t *testing.T) {
	inFleet(t, batchtest.Options{}, func(f *fleet) {
		a := f.start(autobatcher.Options{})
		lagging := batchtest.Status(http.StatusOK, nil, "")
		f.srv.Control(batchtest.OpContent, lagging)
		f.srv.Control(batchtest.OpContent, every(125, batchtest.HTML(http.StatusServiceUnavailable))...)
		f.srv.Control(batchtest.OpContent, lagging)
		r := <-a.ask(f.Context(), "one")
		if r.status != http.StatusOK || r.at < 45*time.Minute {
			f.Errorf("%d, %v, %s at %v; want the answer after the outage", r.status, r.err, r.body, r.at)
		}
		f.wantPaid(1, 1)
	})
}

// A journal that hangs holds calls up, but not one after the other.
func TestAJournalThatHangs(t *testing.T) {
	for _, n := range []int{1, 40} {
		inFleet(t, batchtest.Options{}, func(f *fleet) {
			a, j := f.far(autobatcher.Options{BatchSize: 1})
			j.set(hangs)
			var all []<-chan outcome
			for i := range n {
				all = append(all, a.ask(f.Context(), strings.Repeat("x", i+1)))
			}
			for _, c := range all {
				if r := <-c; r.status != http.StatusOK || r.at > 2*time.Minute {
					f.Fatalf("of %d: %d, %v at %v", n, r.status, r.err, r.at)
				}
			}
		})
	}
}

// A failing journal is logged at once, and then once a minute.
func TestJournalErrorsAreLoggedSparingly(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: 10 * time.Minute}, func(f *fleet) {
		a := f.start(autobatcher.Options{})
		b, j := f.far(autobatcher.Options{})
		f.srv.Control(batchtest.OpUpload, batchtest.Delay(20*time.Minute))
		a.leftWhileUploading("one")
		again := b.ask(f.Context(), "one")
		time.Sleep(time.Minute)
		j.set(down)
		time.Sleep(10 * time.Minute)
		if n := strings.Count(b.log.String(), "level=ERROR"); n < 2 || n > 60 {
			f.Errorf("%d errors are logged in ten minutes", n)
		}
		j.set(nil)
		f.wantAnswer(again, "one")
	})
}

// Close ends the lease also where many updates for a slow journal are pending.
func TestCloseWithManyPendingUpdates(t *testing.T) {
	inFleet(t, batchtest.Options{}, func(f *fleet) {
		a, j := f.far(autobatcher.Options{BatchSize: 1})
		a.loseUpdates(j, 40)
		j.set(func(ctx context.Context, _ string) error {
			select {
			case <-time.After(100 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		a.Close()
		if list, err := f.store.Owners(f.Context()); err != nil || len(list) > 0 {
			f.Errorf("%+v, %v; want no owner", list, err)
		}
	})
}

// Calls that took over lines of a batch with another window are resubmitted with
// their own window.
func TestWindowsOfResubmittedCalls(t *testing.T) {
	inFleet(t, batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: 50 * time.Minute}, func(f *fleet) {
		p := provider.Doubleword()
		a := f.start(autobatcher.Options{Provider: &p})
		a.ask(f.Context(), "one")
		a.ask(f.Context(), "two")
		time.Sleep(time.Minute)
		a.cut()
		b := f.start(autobatcher.Options{Provider: &p})
		one, two := b.ask(f.Context(), "one", with("Autobatcher-Completion-Window", "24h")), b.ask(f.Context(), "two")
		time.Sleep(2 * time.Minute)
		f.cancel(f.only().BatchID)
		f.wantAnswer(one, "one")
		f.wantAnswer(two, "two")
		windows := make(map[string]string)
		for _, b := range f.srv.Batches() {
			windows[b.Window] = b.Status
		}
		if windows["24h"] != "completed" || windows["1h"] != "completed" {
			f.Errorf("windows %v; want each call's own", windows)
		}
	})
}
