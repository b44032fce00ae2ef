package journalsession_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/journal"
)

var (
	account     = journal.Hash{1}
	fingerprint = journal.Hash{2}
)

// An owner is a session that sends heartbeats until it is stopped.
type owner struct {
	*journalsession.Session
	stop context.CancelFunc
	log  *strings.Builder
}

// lines are the lines of a batch, as a registry would have them.
type lines struct {
	mu                sync.Mutex
	waiting, detached []int
	released          []int
}

func (l *lines) BeginRelease() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.detached)
}

func (l *lines) Waiting() []int    { l.mu.Lock(); defer l.mu.Unlock(); return slices.Clone(l.waiting) }
func (l *lines) Unanswered() []int { return append(l.Waiting(), l.BeginRelease()...) }
func (l *lines) FinishRelease(places []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.released, l.detached = append(l.released, places...), nil
}

func (l *lines) detach() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting, l.detached = nil, l.waiting
}

func open(t *testing.T, store journal.Store, required bool) *owner {
	t.Helper()
	log := new(strings.Builder)
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	s, err := journalsession.Open(store, journalsession.Options{
		Required: required, KeepFor: time.Hour, Logger: slog.New(slog.NewTextHandler(log, nil)),
		Context: ctx, Start: func(f func()) bool {
			if ctx.Err() != nil {
				return false
			}
			work.Go(f)
			return true
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	work.Go(func() { s.Run(ctx) })
	o := &owner{s, func() { stop(); work.Wait() }, log}
	t.Cleanup(o.stop)
	return o
}

// begin stores a batch of one line that a caller waits for.
func (o *owner) begin(t *testing.T) (*journalsession.Record, *lines) {
	t.Helper()
	l := &lines{waiting: []int{0}}
	r := o.NewRecord(l)
	err := r.Begin(t.Context(), journal.Batch{Account: account}, func() []journal.Line {
		return []journal.Line{{CustomID: "one", Fingerprint: fingerprint}}
	})
	if r.Ref() == "" || err != nil {
		t.Fatalf("begin: %q, %v", r.Ref(), err)
	}
	return r, l
}

// takes is how many lines o takes over for one fingerprint, and how long that
// takes.
func (o *owner) takes(t *testing.T) (n int, took time.Duration) {
	t.Helper()
	began := time.Now()
	waiting := func() []journal.Hash { return []journal.Hash{fingerprint}[min(n, 1):] }
	err := o.TakeOver(t.Context(), account, waiting, func(taken []journal.Taken) {
		for _, part := range taken {
			n += len(part.Lines)
		}
	})
	if err != nil {
		t.Error(err)
	}
	return n, time.Since(began)
}

// wants is a call that waits and never gets its line.
func wants(f journal.Hash) journalsession.Waiting {
	return func() []journal.Hash { return []journal.Hash{f} }
}

func bubble(t *testing.T, f func(t *testing.T, store journal.Store)) {
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		t.Cleanup(func() { store.Close() })
		f(t, store)
	})
}

func TestTakeOver(t *testing.T) {
	for _, tt := range []struct {
		name     string
		prepare  func(t *testing.T, store journal.Store)
		lines    int
		min, max time.Duration
	}{
		{"no other owner", func(*testing.T, journal.Store) {}, 0, 0, 0},
		{"an owner that lives holds the line", func(t *testing.T, store journal.Store) {
			a := open(t, store, false)
			time.Sleep(time.Second)
			a.begin(t)
		}, 0, 2 * time.Second, 3 * time.Second},
		{"an owner that died", func(t *testing.T, store journal.Store) {
			a := open(t, store, false)
			a.begin(t)
			a.stop()
		}, 1, time.Second, journalsession.Lease + time.Second},
		{"an owner that left", func(t *testing.T, store journal.Store) {
			a := open(t, store, false)
			a.begin(t)
			a.stop()
			a.Leave()
		}, 1, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, store journal.Store) {
				tt.prepare(t, store)
				if n, took := open(t, store, false).takes(t); n != tt.lines || took < tt.min || took > tt.max {
					t.Errorf("%d lines after %v; want %d after %v to %v", n, took, tt.lines, tt.min, tt.max)
				}
			})
		})
	}
}

func TestReleaseAndAbandon(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		a := open(t, store, false)
		r, l := a.begin(t)
		if err := r.Advance(t.Context(), journal.Step{State: journal.Running, BatchID: "b"}); err != nil {
			t.Fatal(err)
		}
		if r.Abandon(t.Context()) {
			t.Error("the batch may be cancelled while a line is held")
		}
		l.detach()
		r.Detached()
		synctest.Wait()
		if !slices.Equal(l.released, []int{0}) {
			t.Errorf("released %v, want the detached line", l.released)
		}
		if !r.Abandon(t.Context()) {
			t.Error("the batch may not be cancelled though no process holds a line")
		}
		if n, _ := a.takes(t); n != 0 {
			t.Error("a line of a cancelled batch was taken over")
		}
	})
}

func TestABatchThatWasTaken(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		a, b := open(t, store, false), open(t, store, false)
		r, _ := a.begin(t)
		a.stop()
		time.Sleep(journalsession.Lease + time.Second)
		orphans := b.Orphans(t.Context())
		if len(orphans) != 1 || orphans[0].Ref != r.Ref() {
			t.Fatalf("orphans: %+v", orphans)
		}
		if mine, err := b.Resume(&journal.Batch{Ref: r.Ref(), Account: account}, &lines{}).Claim(t.Context()); !mine || err != nil {
			t.Fatalf("claim: %v, %v", mine, err)
		}
		if err := r.Advance(t.Context(), journal.Step{State: journal.Creating}); !errors.Is(err, journalsession.ErrTaken) {
			t.Errorf("advance: %v, want ErrTaken", err)
		}
	})
}

// A process whose lease has expired does not become the owner of a batch that it wants to
// discard, and that another process was about to create: nobody would look for the batch.
func TestABatchThatWasTakenIsNotDiscarded(t *testing.T) {
	for _, state := range []journal.State{journal.Creating, journal.Running} {
		bubble(t, func(t *testing.T, store journal.Store) {
			far := &failing{Store: store}
			a, b := open(t, far, false), open(t, store, false)
			r, _ := a.begin(t)
			r.Close() // no caller here waits for the batch
			far.set(until("heartbeat", 3*journalsession.Lease), nil)
			time.Sleep(2 * journalsession.Lease)
			const dead = "a process that dies"
			if _, err := store.Heartbeat(t.Context(), dead, journalsession.Lease); err != nil {
				t.Fatal(err)
			}
			if mine, err := store.Claim(t.Context(), dead, r.Ref()); !mine || err != nil {
				t.Fatalf("claim: %v, %v", mine, err)
			}
			if err := store.Advance(t.Context(), dead, r.Ref(), journal.Step{State: state, BatchID: map[journal.State]string{journal.Running: "b"}[state]}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * journalsession.Lease)
			r.Discard(t.Context())
			if orphans := b.Orphans(t.Context()); len(orphans) != 1 || orphans[0].Ref != r.Ref() {
				t.Errorf("state %s: orphans: %+v, want the batch", state, orphans)
			}
		})
	}
}

// A store that fails requests, or loses the answers to requests that were
// carried out, until a time.
type failing struct {
	journal.Store
	mu         sync.Mutex
	fail, lose func(request string) bool
}

// set sets which requests fail, and whose answers are lost.
func (f *failing) set(fail, lose func(request string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail, f.lose = fail, lose
}

var errBroken = errors.New("no space left")

func (f *failing) do(request string, carryOut func() error) error {
	f.mu.Lock()
	fail, lose := f.fail, f.lose
	f.mu.Unlock()
	if fail != nil && fail(request) {
		return errBroken
	}
	err := carryOut()
	if lose != nil && lose(request) {
		return errBroken
	}
	return err
}

func (f *failing) Heartbeat(ctx context.Context, owner string, lease time.Duration) (expired bool, err error) {
	err = f.do("heartbeat", func() error { expired, err = f.Store.Heartbeat(ctx, owner, lease); return err })
	return expired, err
}

func (f *failing) Begin(ctx context.Context, b journal.Batch, l []journal.Line) error {
	return f.do("begin", func() error { return f.Store.Begin(ctx, b, l) })
}

func (f *failing) Advance(ctx context.Context, owner, ref string, s journal.Step) error {
	return f.do("advance", func() error { return f.Store.Advance(ctx, owner, ref, s) })
}

func (f *failing) Discard(ctx context.Context, owner, ref string) error {
	return f.do("discard", func() error { return f.Store.Discard(ctx, owner, ref) })
}

func (f *failing) TakeOver(ctx context.Context, owner string, account journal.Hash, fingerprints []journal.Hash) (taken []journal.Taken, err error) {
	err = f.do("take over", func() error {
		taken, err = f.Store.TakeOver(ctx, owner, account, fingerprints)
		return err
	})
	if err != nil {
		return nil, err
	}
	return taken, nil
}

// until is a failure of one request until a time.
func until(request string, d time.Duration) func(string) bool {
	end := time.Now().Add(d)
	return func(r string) bool { return r == request && time.Now().Before(end) }
}

func TestAnExpiredLeaseIsHeldAgain(t *testing.T) {
	for _, lost := range []bool{false, true} {
		bubble(t, func(t *testing.T, store journal.Store) {
			far := &failing{Store: store}
			a, b := open(t, far, false), open(t, store, false)
			r, _ := a.begin(t)
			if f := until("heartbeat", 2*journalsession.Lease); lost {
				far.set(nil, f)
			} else {
				far.set(f, nil)
			}
			time.Sleep(2 * journalsession.Lease)
			b.Orphans(t.Context())
			time.Sleep(journalsession.Lease)
			if n, _ := b.takes(t); n != 0 {
				t.Errorf("answers lost %v: a line that a caller waits for was taken", lost)
			}
			if mine, err := r.Claim(t.Context()); !mine || err != nil {
				t.Errorf("answers lost %v: the batch is owned: %v, %v", lost, mine, err)
			}
		})
	}
}

// A take-over that was carried out, and whose answer was lost, hides no line.
func TestATakeOverWhoseAnswerIsLost(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		a := open(t, store, false)
		a.begin(t)
		a.stop()
		a.Leave()
		far := &failing{Store: store}
		b := open(t, far, false)
		far.set(nil, until("take over", time.Second))
		if n, _ := b.takes(t); n < 1 {
			t.Error("no line, want the line that the lost answer named")
		}
	})
}

func TestTheLastStateIsSentAgain(t *testing.T) {
	for _, tt := range []struct {
		name   string
		states func(ctx context.Context, r *journalsession.Record)
		want   journal.State // "": deleted
	}{
		{"running", func(ctx context.Context, r *journalsession.Record) { r.Running(ctx, "b") }, journal.Running},
		{"discarded", func(ctx context.Context, r *journalsession.Record) { r.Discard(ctx) }, ""},
		{"running, then ended", func(ctx context.Context, r *journalsession.Record) {
			r.Running(ctx, "b")
			r.End(ctx, journal.Step{BatchID: "b", Status: "completed"})
		}, journal.Ended},
	} {
		for name, wait := range map[string]func(o *owner){
			"while the session lives": func(*owner) { time.Sleep(time.Minute) },
			"when the session leaves": func(o *owner) { o.stop(); o.Leave() },
		} {
			t.Run(tt.name+" "+name, func(t *testing.T) {
				bubble(t, func(t *testing.T, store journal.Store) {
					far := &failing{Store: store}
					o := open(t, far, false)
					r, _ := o.begin(t)
					var fails atomic.Int32
					far.set(func(request string) bool {
						return (request == "advance" || request == "discard") && fails.Add(1) == 1
					}, nil)
					tt.states(t.Context(), r)
					wait(o)
					list, err := store.Batches(t.Context(), journal.Filter{})
					switch {
					case err != nil:
						t.Error(err)
					case tt.want == "" && len(list) > 0:
						t.Errorf("%+v, want nothing", list)
					case tt.want != "" && (len(list) != 1 || list[0].State != tt.want || list[0].BatchID != "b"):
						t.Errorf("%+v, want the state %s and the id of the batch", list, tt.want)
					}
				})
			})
		}
	}
}

func TestAJournalThatFails(t *testing.T) {
	for _, required := range []bool{false, true} {
		bubble(t, func(t *testing.T, store journal.Store) {
			far := &failing{Store: store}
			o := open(t, far, required)
			r, _ := o.begin(t)
			far.set(func(request string) bool { return request != "heartbeat" }, nil)
			other := o.NewRecord(&lines{})
			begin := other.Begin(t.Context(), journal.Batch{}, func() []journal.Line { return nil })
			advance := r.Advance(t.Context(), journal.Step{})
			takeOver := o.TakeOver(t.Context(), account, wants(journal.Hash{9}), func([]journal.Taken) { t.Error("took a line") })
			if other.Ref() != "" {
				t.Error("a batch that was not stored counts as stored")
			}
			for request, err := range map[string]error{"begin": begin, "advance": advance, "take over": takeOver} {
				if failed := errors.Is(err, journalsession.ErrFailed) && errors.Is(err, errBroken); failed != required {
					t.Errorf("required %v: %s: %v", required, request, err)
				}
				if !strings.Contains(o.log.String(), "journal: "+request+" failed") {
					t.Errorf("the log says nothing of %s:\n%s", request, o.log)
				}
			}
		})
	}
}

// A Store whose heartbeat panics is a journal that fails. The first heartbeat, with
// which the session begins, succeeds.
func TestAHeartbeatThatPanics(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		o := open(t, &panickingHeartbeat{Store: store}, true)
		time.Sleep(time.Minute)
		o.stop()
		if !strings.Contains(o.log.String(), "journal: heartbeat failed") || !strings.Contains(o.log.String(), "a defect") {
			t.Errorf("the log says nothing of the heartbeat:\n%s", o.log)
		}
	})
}

type panickingHeartbeat struct {
	journal.Store
	calls int
}

func (p *panickingHeartbeat) Heartbeat(ctx context.Context, owner string, lease time.Duration) (bool, error) {
	if p.calls++; p.calls > 1 {
		panic("a defect")
	}
	return p.Store.Heartbeat(ctx, owner, lease)
}

type panicking struct{ journal.Store }

func (panicking) TakeOver(context.Context, string, journal.Hash, []journal.Hash) ([]journal.Taken, error) {
	panic("a defect")
}

// The store is the user's code. A panic in the store must not end the process.
func TestAStoreThatPanics(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		o := open(t, panicking{store}, true)
		err := o.TakeOver(t.Context(), account, wants(fingerprint), func([]journal.Taken) {})
		if !errors.Is(err, journalsession.ErrFailed) || !strings.Contains(err.Error(), "a defect") {
			t.Errorf("%v; want a journal that failed", err)
		}
	})
}

// Any process finds and withdraws a line, also the line of another holder.
func TestFindAndWithdraw(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		a, b := open(t, store, false), open(t, store, false)
		if !b.Enabled() {
			t.Error("the journal works, and is not enabled")
		}
		r, _ := a.begin(t)
		found, err := b.Find(t.Context(), account, []journal.Hash{fingerprint})
		if err != nil || len(found) != 1 || found[0].Batch.Ref != r.Ref() || found[0].Lines[0].CustomID != "one" {
			t.Errorf("found %+v, %v; want the line of a's batch", found, err)
		}
		if err := b.Withdraw(t.Context(), account, []journal.Hash{fingerprint}); err != nil {
			t.Error(err)
		}
		if found, err := a.Find(t.Context(), account, []journal.Hash{fingerprint}); len(found) != 0 || err != nil {
			t.Errorf("found %+v, %v, after the withdrawal", found, err)
		}
		r.Delivered(0) // the holder may deliver the line all the same
		if !r.Flush(t.Context()) || !r.AllDelivered(t.Context()) {
			t.Error("the line is not delivered")
		}
	})
}

// A journal that fails, panics or hangs ends a Find and a Withdraw with an error, also
// where the journal is not required, and the error is logged.
func TestFindAndWithdrawInAJournalThatFails(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail func(ctx context.Context) error
		says string
		took time.Duration
	}{
		{"fails", func(context.Context) error { return errors.New("no disk") }, "no disk", 0},
		{"panics", func(context.Context) error { panic("a defect") }, "a defect", 0},
		{"hangs", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, "deadline exceeded", 10 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, store journal.Store) {
				o := open(t, findsNothing{store, tt.fail}, false)
				for request, do := range map[string]func() error{
					"find":     func() error { _, err := o.Find(t.Context(), account, nil); return err },
					"withdraw": func() error { return o.Withdraw(t.Context(), account, nil) },
				} {
					began := time.Now()
					if err := do(); err == nil || !strings.Contains(err.Error(), tt.says) {
						t.Errorf("%s: %v, want %q", request, err, tt.says)
					}
					if took := time.Since(began); took != tt.took {
						t.Errorf("%s took %v, want %v", request, took, tt.took)
					}
					if want := "journal: " + request + " failed"; !strings.Contains(o.log.String(), want) {
						t.Errorf("%q is not in the log:\n%s", want, o.log)
					}
				}
			})
		})
	}
}

// findsNothing is a journal whose Find and Withdraw fail.
type findsNothing struct {
	journal.Store
	fail func(ctx context.Context) error
}

func (f findsNothing) Find(ctx context.Context, _ journal.Hash, _ []journal.Hash) ([]journal.Taken, error) {
	return nil, f.fail(ctx)
}

func (f findsNothing) Withdraw(ctx context.Context, _ journal.Hash, _ []journal.Hash) (int, error) {
	return 0, f.fail(ctx)
}

func TestWithoutAJournal(t *testing.T) {
	s := journalsession.Disabled(journalsession.Options{})
	if s.Enabled() {
		t.Error("a journal is enabled")
	}
	if found, err := s.Find(t.Context(), account, []journal.Hash{fingerprint}); found != nil || err != nil {
		t.Errorf("found %v, %v", found, err)
	}
	if err := s.Withdraw(t.Context(), account, []journal.Hash{fingerprint}); err != nil {
		t.Errorf("withdraw: %v", err)
	}
	l := &lines{detached: []int{0}}
	r := s.NewRecord(l)
	unused := func() []journal.Line { t.Error("lines are made for no journal"); return nil }
	if err := r.Begin(t.Context(), journal.Batch{}, unused); err != nil || r.Ref() != "" {
		t.Errorf("begin: %v", err)
	}
	err := s.TakeOver(t.Context(), account, wants(fingerprint), func([]journal.Taken) { t.Error("taken") })
	if err != nil || r.Advance(t.Context(), journal.Step{}) != nil {
		t.Error("a journal that does not exist failed")
	}
	if !r.Abandon(t.Context()) || !r.AllDelivered(t.Context()) {
		t.Error("without a journal no other process is in the way")
	}
	if mine, err := s.Claim(t.Context(), "b"); !mine || err != nil {
		t.Errorf("claim: %v, %v; without a journal no other process owns a batch", mine, err)
	}
	if mine, err := r.Claim(t.Context()); !mine || err != nil {
		t.Errorf("claim: %v, %v", mine, err)
	}
	if unfinished, err := s.Unfinished(t.Context(), account); unfinished || err != nil {
		t.Errorf("unfinished: %v, %v", unfinished, err)
	}
	if _, err := r.Look(t.Context()); !errors.Is(err, journal.ErrNoBatch) {
		t.Errorf("look: %v", err)
	}
	if len(s.Orphans(t.Context())) > 0 || s.Reading() > 0 || r.BeginRead() {
		t.Error("a journal that does not exist has batches")
	}
	if s.Resume(&journal.Batch{Ref: "b"}, l).Ref() != "" {
		t.Error("a journal that does not exist knows a batch")
	}
	s.TryTakeOver(t.Context(), account, wants(fingerprint), func([]journal.Taken) { t.Error("taken") })
	s.FindSoon(account, fingerprint, nil)
	s.Run(t.Context())
	s.HoldExpired(t.Context())
	r.ReleaseAll(t.Context())
	r.Delivered(1)
	r.Detached()
	r.Running(t.Context(), "b")
	r.Discard(t.Context())
	r.End(t.Context(), journal.Step{BatchID: "b", Status: "completed"})
	r.HoldLater()
	r.Close()
	s.Renew()
	s.Leave()
	if !s.Flush(t.Context()) || len(l.released) > 0 {
		t.Errorf("released %v, want the line to stay in the registry", l.released)
	}
}

// slow is a journal that takes 50 s for a million lines, within the limit for that
// many lines, and that forgets what it is told.
type slow struct {
	journal.Store
	mu    sync.Mutex
	kinds map[string]int // lines by request
}

func (s *slow) lines(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kinds[kind]
}

func (s *slow) work(ctx context.Context, kind string, lines []int) error {
	select {
	case <-time.After(time.Duration(len(lines)) * 50 * time.Microsecond):
		s.mu.Lock()
		defer s.mu.Unlock()
		s.kinds[kind] += len(lines)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slow) Release(ctx context.Context, _, _ string, lines []int) error {
	return s.work(ctx, "release", lines)
}

func (s *slow) Deliver(ctx context.Context, _, _ string, lines []int) error {
	return s.work(ctx, "deliver", lines)
}

func (s *slow) Hold(ctx context.Context, _, _ string, lines []int) error {
	return s.work(ctx, "hold", lines)
}

// The time that the journal has grows with the number of lines, also for releases,
// for holds and for what is sent again after a heartbeat.
func TestTimeGrowsWithTheLines(t *testing.T) {
	const n = 1_000_000
	many := make([]int, n)
	for _, tt := range []struct {
		name string
		play func(ctx context.Context, o *owner, r *journalsession.Record, l *lines) bool
	}{
		{"release", func(ctx context.Context, _ *owner, r *journalsession.Record, l *lines) bool {
			l.detach()
			r.Detached()
			return r.Flush(ctx)
		}},
		{"deliver", func(context.Context, *owner, *journalsession.Record, *lines) bool { return true }},
		{"hold", func(ctx context.Context, o *owner, r *journalsession.Record, _ *lines) bool {
			r.HoldLater()
			o.HoldExpired(ctx)
			return true
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, store journal.Store) {
				s := &slow{Store: store, kinds: make(map[string]int)}
				o := open(t, s, false)
				r, l := o.begin(t)
				l.mu.Lock()
				l.waiting = many
				l.mu.Unlock()
				if tt.name == "deliver" {
					for i := range n {
						r.Delivered(i)
					}
				}
				if !tt.play(t.Context(), o, r, l) {
					t.Error("not confirmed")
				}
				time.Sleep(2 * time.Minute)
				if got := s.lines(tt.name); got != n {
					t.Errorf("the journal was told of %d lines", got)
				}
			})
		})
	}
}

// exiting is a journal whose first release exits the goroutine.
type exiting struct {
	journal.Store
	exited atomic.Bool
}

func (e *exiting) Release(ctx context.Context, owner, ref string, lines []int) error {
	if !e.exited.Swap(true) {
		runtime.Goexit()
	}
	return e.Store.Release(ctx, owner, ref, lines)
}

// A Store that exits the goroutine loses no update.
func TestAStoreThatExitsTheGoroutine(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		o := open(t, &exiting{Store: store}, false)
		r, l := o.begin(t)
		l.detach()
		r.Detached()
		time.Sleep(time.Minute)
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.released) != 1 {
			t.Errorf("released %v, want the line", l.released)
		}
	})
}

// hanging is a journal of which one kind of request never returns.
type hanging struct {
	journal.Store
	kind string
}

func (h hanging) hang(ctx context.Context, kind string) error {
	if h.kind != kind {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (h hanging) Release(ctx context.Context, owner, ref string, lines []int) error {
	if err := h.hang(ctx, "release"); err != nil {
		return err
	}
	return h.Store.Release(ctx, owner, ref, lines)
}

func (h hanging) TakeOver(ctx context.Context, owner string, account journal.Hash, fingerprints []journal.Hash) ([]journal.Taken, error) {
	if err := h.hang(ctx, "take over"); err != nil {
		return nil, err
	}
	return h.Store.TakeOver(ctx, owner, account, fingerprints)
}

// Requests of one kind that always hang hold no take-over up for long, although the
// journal answers others, and although many take-overs wait for one another.
func TestRequestsThatHang(t *testing.T) {
	for _, kind := range []string{"release", "take over"} {
		for _, callers := range []int{1, 40} {
			t.Run(fmt.Sprint(kind, " ", callers), func(t *testing.T) {
				bubble(t, func(t *testing.T, store journal.Store) {
					o := open(t, hanging{store, kind}, false)
					r, l := o.begin(t)
					l.detach()
					r.Detached()
					var work sync.WaitGroup
					began := time.Now()
					for range callers {
						work.Go(func() {
							if err := o.TakeOver(t.Context(), account, wants(journal.Hash{9}), func([]journal.Taken) {}); err != nil {
								t.Error(err)
							}
						})
					}
					work.Wait()
					if took := time.Since(began); took > time.Minute {
						t.Errorf("the last take-over took %v", took)
					}
				})
			})
		}
	}
}
