package ledger_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/ledger"
	"github.com/autobatcher/autobatcher/journal"
)

var (
	payer  = journal.Hash{1}
	print1 = journal.Hash{2}
)

// An owner is a Ledger that gives signs of life until it is stopped.
type owner struct {
	*ledger.Ledger
	stop   context.CancelFunc
	log    *strings.Builder
	lapses *atomic.Int32 // how often it was told that its lease had run out
}

func open(t *testing.T, store journal.Store, required bool) *owner {
	t.Helper()
	log, lapses := new(strings.Builder), new(atomic.Int32)
	l, err := ledger.Open(store, ledger.Options{
		Required: required, KeepFor: time.Hour, Lapsed: func() { lapses.Add(1) }, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { l.Live(ctx); close(done) }()
	o := &owner{l, func() { stop(); <-done }, log, lapses}
	t.Cleanup(o.stop)
	return o
}

func (o *owner) begin(t *testing.T, ref string) {
	t.Helper()
	ok, err := o.Begin(t.Context(), journal.Batch{Ref: ref, Payer: payer}, []journal.Line{{CustomID: ref, Print: print1}})
	if !ok || err != nil {
		t.Fatalf("begin: %v, %v", ok, err)
	}
}

func nothingToTell(context.Context) bool { return true }

// takes says how many lines o takes over for one print, and how long that takes.
func (o *owner) takes(t *testing.T) (lines int, took time.Duration) {
	t.Helper()
	began := time.Now()
	err := o.TakeOver(t.Context(), payer, []journal.Hash{print1}, nothingToTell, func(taken []journal.Taken) []journal.Hash {
		for _, part := range taken {
			lines += len(part.Lines)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return lines, time.Since(began)
}

func bubble(t *testing.T, f func(t *testing.T, store journal.Store)) {
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		t.Cleanup(func() { store.Close() })
		f(t, store)
	})
}

func TestAloneNobodyIsWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		if n, took := open(t, store, false).takes(t); n != 0 || took != 0 {
			t.Errorf("%d lines after %v", n, took)
		}
	})
}

func TestOwnersThatLiveCostASignOfLife(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		a, b := open(t, store, false), open(t, store, false)
		time.Sleep(time.Second)
		a.begin(t, "held")
		if n, took := b.takes(t); n != 0 || took < 2*time.Second || took > 3*time.Second {
			t.Errorf("%d lines after %v, want none after the next heartbeat", n, took)
		}
	})
}

func TestAnOwnerThatDiedIsWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		a, b := open(t, store, false), open(t, store, false)
		a.begin(t, "left")
		a.stop() // and never said goodbye
		if n, took := b.takes(t); n != 1 || took > ledger.Lease+time.Second {
			t.Errorf("%d lines after %v, want one when the lease has run out", n, took)
		}
	})
}

func TestAnOwnerThatLeavesIsNot(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		a, b := open(t, store, false), open(t, store, false)
		a.begin(t, "left")
		a.stop()
		a.Leave()
		if n, took := b.takes(t); n != 1 || took != 0 {
			t.Errorf("%d lines after %v, want one at once", n, took)
		}
	})
}

func TestReleaseAndAbandon(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		a := open(t, store, false)
		a.begin(t, "one")
		if err := a.Advance(t.Context(), "one", journal.Step{State: journal.Running, BatchID: "b"}); err != nil {
			t.Fatal(err)
		}
		if a.Abandon(t.Context(), "one") {
			t.Error("abandoned while a line is held")
		}
		a.Release(t.Context(), "one", func() []int { return []int{0} })
		if !a.Abandon(t.Context(), "one") {
			t.Error("not abandoned though nobody holds a line")
		}
		if n, _ := a.takes(t); n != 0 {
			t.Error("a line of an abandoned batch was taken over")
		}
	})
}

func TestABatchThatWasTaken(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		a, b := open(t, store, false), open(t, store, false)
		a.begin(t, "one")
		a.stop()
		time.Sleep(ledger.Lease + time.Second)
		if orphans := b.Orphans(t.Context()); len(orphans) != 1 || orphans[0].Ref != "one" {
			t.Errorf("orphans: %+v", orphans)
		}
		if mine, err := b.Claim(t.Context(), "one"); !mine || err != nil {
			t.Fatalf("claim: %v, %v", mine, err)
		}
		if err := a.Advance(t.Context(), "one", journal.Step{State: journal.Creating}); !errors.Is(err, ledger.ErrTaken) {
			t.Errorf("advance: %v, want ErrTaken", err)
		}
	})
}

// A distant journal is out of reach for a while.
type distant struct {
	journal.Store
	until moment
}

// A moment is a time that may be set while it is read.
type moment struct{ atomic.Int64 }

func (m *moment) in(d time.Duration) { m.Store(time.Now().Add(d).UnixNano()) }

func (m *moment) isAhead() bool { return time.Now().UnixNano() < m.Load() }

func (d *distant) Heartbeat(ctx context.Context, owner string, lease time.Duration) (bool, error) {
	if d.until.isAhead() {
		return false, errBroken
	}
	return d.Store.Heartbeat(ctx, owner, lease)
}

func TestALapseIsToldAndUndone(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		far := &distant{Store: store}
		a, b := open(t, far, false), open(t, store, false)
		a.begin(t, "one")
		for _, away := range []time.Duration{ledger.Lease / 2, 2 * ledger.Lease} {
			far.until.in(away)
			time.Sleep(away)
			b.Orphans(t.Context())
			time.Sleep(ledger.Lease)
		}
		if n, m := a.lapses.Load(), b.lapses.Load(); n != 1 || m != 0 {
			t.Fatalf("a was told of %d lapses, b of %d; want 1 and 0", n, m)
		}
		if err := a.Hold(t.Context(), "one", func() []int { return []int{0} }); err != nil {
			t.Error(err)
		}
		if n, _ := b.takes(t); n != 0 {
			t.Error("a line that is held again was taken")
		}
		if mine, err := a.Claim(t.Context(), "one"); !mine || err != nil {
			t.Errorf("a carries its batch on: %v, %v", mine, err)
		}
	})
}

// A deaf journal does as it is told, and its answers are lost.
type deaf struct {
	journal.Store
	until moment
}

func (d *deaf) Heartbeat(ctx context.Context, owner string, lease time.Duration) (bool, error) {
	fresh, err := d.Store.Heartbeat(ctx, owner, lease)
	if d.until.isAhead() {
		return false, errBroken
	}
	return fresh, err
}

func TestALapseWhoseNewsWasLost(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		far := &deaf{Store: store}
		a := open(t, far, false)
		far.until.in(2 * ledger.Lease)
		time.Sleep(3 * ledger.Lease)
		if n := a.lapses.Load(); n != 1 {
			t.Errorf("told of %d lapses, want one: what happened meanwhile is not known", n)
		}
	})
}

// A hesitant journal fails a number of times to hear how batches end.
type hesitant struct {
	journal.Store
	fails atomic.Int32
}

func (h *hesitant) Advance(ctx context.Context, owner, ref string, s journal.Step) error {
	if h.fails.Add(-1) >= 0 {
		return errBroken
	}
	return h.Store.Advance(ctx, owner, ref, s)
}

func (h *hesitant) Discard(ctx context.Context, owner, ref string) error {
	if h.fails.Add(-1) >= 0 {
		return errBroken
	}
	return h.Store.Discard(ctx, owner, ref)
}

func TestTheLastWordIsRepeated(t *testing.T) {
	for _, tt := range []struct {
		name  string
		words func(ctx context.Context, o *owner)
		want  journal.State // "": forgotten
	}{
		{"runs", func(ctx context.Context, o *owner) { o.Runs(ctx, "one", "b") }, journal.Running},
		{"discarded", func(ctx context.Context, o *owner) { o.Discard(ctx, "one") }, ""},
		{"runs, then ended", func(ctx context.Context, o *owner) {
			o.Runs(ctx, "one", "b")
			o.End(ctx, "one", "b", "completed")
		}, journal.Ended},
	} {
		for name, wait := range map[string]func(o *owner){
			"while it lives": func(*owner) { time.Sleep(time.Minute) },
			"when it leaves": func(o *owner) { o.stop(); o.Leave() },
		} {
			t.Run(tt.name+" "+name, func(t *testing.T) {
				bubble(t, func(t *testing.T, store journal.Store) {
					far := &hesitant{Store: store}
					o := open(t, far, false)
					o.begin(t, "one")
					far.fails.Store(1)
					tt.words(t.Context(), o)
					wait(o)
					list, err := store.Batches(t.Context(), journal.Filter{})
					switch {
					case err != nil:
						t.Error(err)
					case tt.want == "" && len(list) > 0:
						t.Errorf("%+v, want nothing", list)
					case tt.want != "" && (len(list) != 1 || list[0].State != tt.want || list[0].BatchID != "b"):
						t.Errorf("%+v, want the state %s and the batch's id", list, tt.want)
					}
				})
			})
		}
	}
}

// A broken journal fails whatever is asked of it.
type broken struct{ journal.Store }

var errBroken = errors.New("no space left")

func (broken) Begin(context.Context, journal.Batch, []journal.Line) error { return errBroken }

func (broken) Advance(context.Context, string, string, journal.Step) error { return errBroken }

func (broken) TakeOver(context.Context, string, journal.Hash, []journal.Hash) ([]journal.Taken, error) {
	return nil, errBroken
}

func TestAJournalThatFails(t *testing.T) {
	for _, required := range []bool{false, true} {
		bubble(t, func(t *testing.T, store journal.Store) {
			o := open(t, broken{store}, required)
			ok, begin := o.Begin(t.Context(), journal.Batch{Ref: "one"}, nil)
			advance := o.Advance(t.Context(), "one", journal.Step{})
			takeOver := o.TakeOver(t.Context(), payer, []journal.Hash{print1}, nothingToTell, func([]journal.Taken) []journal.Hash { t.Error("it took what there is not"); return nil })
			if ok {
				t.Error("a batch that was not written down counts as written")
			}
			for what, err := range map[string]error{"begin": begin, "advance": advance, "take over": takeOver} {
				if failed := errors.Is(err, ledger.ErrFailed) && errors.Is(err, errBroken); failed != required {
					t.Errorf("required %v: %s: %v", required, what, err)
				}
				if !strings.Contains(o.log.String(), "journal: "+what+" failed") {
					t.Errorf("the log says nothing of %s:\n%s", what, o.log)
				}
			}
		})
	}
}

func TestWithoutAJournal(t *testing.T) {
	var none *ledger.Ledger
	ok, err := none.Begin(t.Context(), journal.Batch{}, nil)
	err2 := none.TakeOver(t.Context(), payer, []journal.Hash{print1}, nothingToTell, func([]journal.Taken) []journal.Hash { t.Error("taken"); return nil })
	if ok || err != nil || err2 != nil || none.Advance(t.Context(), "x", journal.Step{}) != nil {
		t.Error("a Ledger that is none does nothing and finds nothing")
	}
	if !none.Abandon(t.Context(), "x") || !none.Settled(t.Context(), "x") {
		t.Error("without a journal nobody else is in the way")
	}
	none.Deliver(t.Context(), "x", []int{1})
	none.Release(t.Context(), "x", func() []int { return []int{1} })
	none.End(t.Context(), "x", "b", "completed")
	none.Leave()
}
