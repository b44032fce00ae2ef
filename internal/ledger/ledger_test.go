package ledger_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
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
	lapses *int // how often it was told that its lease had run out
}

func open(t *testing.T, store journal.Store, required bool) *owner {
	t.Helper()
	log, lapses := new(strings.Builder), new(int)
	l, err := ledger.Open(store, ledger.Options{
		Required: required, KeepFor: time.Hour, Lapsed: func() { *lapses++ }, Logger: slog.New(slog.NewTextHandler(log, nil)),
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

// takes says how many lines o takes over for one print, and how long that takes.
func (o *owner) takes(t *testing.T) (lines int, took time.Duration) {
	t.Helper()
	began := time.Now()
	taken, err := o.TakeOver(t.Context(), payer, []journal.Hash{print1})
	if err != nil {
		t.Error(err)
	}
	for _, part := range taken {
		lines += len(part.Lines)
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
	until time.Time
}

func (d *distant) Heartbeat(ctx context.Context, owner string, lease time.Duration) (bool, error) {
	if time.Now().Before(d.until) {
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
			far.until = time.Now().Add(away)
			time.Sleep(away)
			b.Orphans(t.Context())
			time.Sleep(ledger.Lease)
		}
		if *a.lapses != 1 || *b.lapses != 0 {
			t.Fatalf("a was told of %d lapses, b of %d; want 1 and 0", *a.lapses, *b.lapses)
		}
		a.Hold(t.Context(), "one", func() []int { return []int{0} })
		if n, _ := b.takes(t); n != 0 {
			t.Error("a line that is held again was taken")
		}
		if mine, err := a.Claim(t.Context(), "one"); !mine || err != nil {
			t.Errorf("a carries its batch on: %v, %v", mine, err)
		}
	})
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
			_, takeOver := o.TakeOver(t.Context(), payer, []journal.Hash{print1})
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
	taken, err2 := none.TakeOver(t.Context(), payer, []journal.Hash{print1})
	if ok || taken != nil || err != nil || err2 != nil || none.Advance(t.Context(), "x", journal.Step{}) != nil {
		t.Error("a Ledger that is none does nothing and finds nothing")
	}
	if !none.Abandon(t.Context(), "x") || !none.Settled(t.Context(), "x") {
		t.Error("without a journal nobody else is in the way")
	}
	none.Deliver(t.Context(), "x", []int{1})
	none.Release(t.Context(), "x", func() []int { return []int{1} })
	none.End(t.Context(), "x", "completed")
	none.Leave()
}
