package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/autobatcher/autobatcher/internal/ratelimit"
)

// A pending is an Acquire in another goroutine. The fields are those of the test's
// goroutine; poll sets the fields.
type pending struct {
	outcome chan pending // holds one outcome
	grant   *ratelimit.Grant
	err     error
	at      time.Time // of the end of the Acquire
}

// start starts an Acquire.
func start(ctx context.Context, l *ratelimit.Limiter, group string, tokens int64) *pending {
	p := &pending{outcome: make(chan pending, 1)}
	go func() {
		g, err := l.Acquire(ctx, group, tokens)
		p.outcome <- pending{grant: g, err: err, at: time.Now()}
	}()
	return p
}

// acquire starts an Acquire and returns when the Acquire waits or has ended.
func acquire(ctx context.Context, l *ratelimit.Limiter, group string, tokens int64) *pending {
	p := start(ctx, l, group, tokens)
	p.poll()
	return p
}

// poll waits until every goroutine of the test waits, and reads the outcome.
func (p *pending) poll() {
	synctest.Wait()
	select {
	case o := <-p.outcome:
		p.grant, p.err, p.at = o.grant, o.err, o.at
	default:
	}
}

// granted reports for each Acquire whether the Acquire has a Grant.
func granted(waiting ...*pending) []bool {
	var got []bool
	for _, p := range waiting {
		p.poll()
		got = append(got, p.grant != nil)
	}
	return got
}

func wantGranted(t *testing.T, when string, waiting []*pending, want ...bool) {
	t.Helper()
	if got := granted(waiting...); !slices.Equal(got, want) {
		t.Fatalf("%s: granted %v, want %v", when, got, want)
	}
}

// Twelve batches share an hour of three creations: each batch is created in the
// order of arrival.
func TestSlotsAreFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(3)
		begin := time.Now()
		created := make(chan int, 12)
		at := make(chan time.Duration, 12)
		for i := range 12 {
			go func() {
				g, err := l.Acquire(t.Context(), "m", 1)
				if err != nil {
					t.Error(err)
					return
				}
				defer g.Leave()
				created <- i
				at <- time.Since(begin)
				g.Used()
			}()
			synctest.Wait()
			time.Sleep(time.Minute)
		}
		time.Sleep(4 * time.Hour)
		for i := range 12 {
			if got := <-created; got != i {
				t.Errorf("batch %d is created in place %d", got, i)
			}
			if got, want := <-at, time.Duration(i/3)*time.Hour+time.Duration(i%3)*time.Minute; got != want {
				t.Errorf("batch %d at %v, want %v", i, got, want)
			}
		}
	})
}

func TestCanceledWaiterUsesNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(1)
		first := acquire(t.Context(), l, "m", 1)
		reason := errors.New("no caller is left")
		ctx, cancel := context.WithCancelCause(t.Context())
		second, third := acquire(ctx, l, "m", 1), acquire(t.Context(), l, "m", 1)
		first.grant.Used()
		wantGranted(t, "after the first", []*pending{first, second, third}, true, false, false)
		cancel(reason)
		second.poll()
		if !errors.Is(second.err, reason) || second.grant != nil {
			t.Errorf("canceled: %v, %v", second.grant, second.err)
		}
		time.Sleep(time.Hour)
		wantGranted(t, "an hour later", []*pending{third}, true)
	})
}

func TestAcquireWithEndedContext(t *testing.T) {
	l := ratelimit.New(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if _, err := l.Acquire(ctx, "m", 1); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
	g, err := l.Acquire(t.Context(), "m", 1)
	if err != nil {
		t.Fatal(err)
	}
	g.Leave()
	if !l.Idle() {
		t.Error("the limiter holds something for callers that have gone")
	}
}

func TestReturnedSlotGoesToTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(1)
		first, second, third := acquire(t.Context(), l, "m", 1), acquire(t.Context(), l, "m", 1), acquire(t.Context(), l, "m", 1)
		first.grant.Leave()
		wantGranted(t, "Leave", []*pending{second, third}, true, false)
		first.grant.Leave()
		wantGranted(t, "Leave twice", []*pending{second, third}, true, false)
		second.grant.Used()
		second.grant.Leave()
		wantGranted(t, "Leave after Used", []*pending{third}, false)
		time.Sleep(time.Hour)
		wantGranted(t, "an hour later", []*pending{third}, true)
	})
}

// The hour of a creation begins when the create is sent, not when the slot was
// handed out.
func TestSlotCountsFromUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(1)
		first, second := acquire(t.Context(), l, "m", 1), acquire(t.Context(), l, "m", 1)
		time.Sleep(2 * time.Hour)
		wantGranted(t, "while the slot is held", []*pending{second}, false)
		first.grant.Used()
		used := time.Now()
		time.Sleep(3 * time.Hour)
		second.poll()
		if got := second.at.Sub(used); got != time.Hour {
			t.Errorf("second batch %v after the create, want 1h", got)
		}
	})
}

func TestNextSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(1)
		first, second := acquire(t.Context(), l, "m", 1), acquire(t.Context(), l, "m", 1)
		if err := first.grant.NextSlot(t.Context()); err != nil {
			t.Fatalf("with an unused slot: %v", err)
		}
		wantGranted(t, "with an unused slot", []*pending{second}, false)
		first.grant.Used()
		begin := time.Now()
		third := make(chan time.Duration, 1)
		go func() {
			if err := first.grant.NextSlot(t.Context()); err != nil {
				t.Error(err)
			}
			third <- time.Since(begin)
		}()
		time.Sleep(time.Hour)
		wantGranted(t, "an hour later", []*pending{second}, true)
		second.grant.Used()
		if got := <-third; got != 2*time.Hour {
			t.Errorf("the second create of the first batch after %v, want 2h", got)
		}
	})
}

func TestNextSlotEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(1)
		g := acquire(t.Context(), l, "m", 1).grant
		g.Used()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := g.NextSlot(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		waiting := make(chan error, 1)
		go func() { waiting <- g.NextSlot(t.Context()) }()
		synctest.Wait()
		g.Leave()
		if err := <-waiting; err == nil {
			t.Error("a batch that has left got a slot")
		}
		if err := g.NextSlot(t.Context()); err == nil {
			t.Error("a batch that has left waits for a slot")
		}
		time.Sleep(time.Hour)
		if !l.Idle() {
			t.Error("the limiter is not idle although nothing uses the limiter")
		}
	})
}

// A batch that waits for room for its tokens keeps no slot from a batch of
// another group.
func TestWaitForRoomHoldsNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(2)
		first := acquire(t.Context(), l, "m", 60)
		first.grant.Used()
		first.grant.Refused(100)
		second := acquire(t.Context(), l, "m", 60)
		other := acquire(t.Context(), l, "n", 60)
		wantGranted(t, "two groups", []*pending{second, other}, false, true)
	})
}

func TestRoomIsFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(0)
		first, second := acquire(t.Context(), l, "m", 60), acquire(t.Context(), l, "m", 60)
		wantGranted(t, "without a limit", []*pending{first, second}, true, true)
		if alone := first.grant.Refused(100); alone {
			t.Error("two batches are in")
		}
		first.grant.Leave()
		third, fourth := acquire(t.Context(), l, "m", 41), acquire(t.Context(), l, "m", 40)
		wantGranted(t, "60 of 100 are used", []*pending{third, fourth}, false, false)
		second.grant.Leave()
		wantGranted(t, "room was freed", []*pending{third, fourth}, true, true)
	})
}

func TestCanceledWaiterLetsTheNextIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(0)
		acquire(t.Context(), l, "m", 60).grant.Refused(100)
		ctx, cancel := context.WithCancel(t.Context())
		big, small := acquire(ctx, l, "m", 90), acquire(t.Context(), l, "m", 10)
		wantGranted(t, "behind the large batch", []*pending{big, small}, false, false)
		cancel()
		wantGranted(t, "the large batch has gone", []*pending{small}, true)
	})
}

func TestOnlyBatchIsLetIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(0)
		first := acquire(t.Context(), l, "m", 0)
		if alone := first.grant.Refused(10); !alone {
			t.Error("no other batch is in")
		}
		large := acquire(t.Context(), l, "m", 1000)
		wantGranted(t, "a batch without tokens is in", []*pending{large}, false)
		first.grant.Leave()
		first.grant.Leave()
		wantGranted(t, "the group is empty", []*pending{large}, true)
	})
}

func TestLimitLearned(t *testing.T) {
	for _, tt := range []struct {
		name                  string
		others, tokens, named int64
		want                  int64
	}{
		{"named", 100, 50, 120, 120},
		{"not named: less than the refused sum", 100, 50, 0, 149},
		{"negative is not named", 100, 50, -1, 149},
		{"alone: the tokens are underestimated", 0, 100_000, 0, 75_000},
		{"alone, with few tokens: other programs fill the queue", 0, 100, 0, 20_000},
		{"alone, below the named limit", 0, 100, 1000, 1000},
		{"alone, above the named limit", 0, 1000, 100, 100},
		{"above two to the power of 31", 0, 1000, 15_000_000_000, 15_000_000_000},
		{"capped", 0, 1000, 1 << 62, math.MaxInt64 / 16},
		{"negative tokens", 0, -1000, 0, 20_000},
		{"more tokens than an input can hold", 0, math.MaxInt64, 0, 3 << 38},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := ratelimit.New(0)
			if tt.others > 0 {
				mustAcquire(t, l, tt.others)
			}
			mustAcquire(t, l, tt.tokens).Refused(tt.named)
			if got := l.TokenLimit("m"); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
			if got := l.TokenLimit("n"); got != 0 {
				t.Errorf("another group has limit %d", got)
			}
		})
	}
}

func mustAcquire(t *testing.T, l *ratelimit.Limiter, tokens int64) *ratelimit.Grant {
	t.Helper()
	g, err := l.Acquire(t.Context(), "m", tokens)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// The limit doubles with every hour without a refusal, never overflows, and is
// forgotten in the end.
func TestLimitDoubles(t *testing.T) {
	for _, named := range []int64{1, 1000, 15_000_000_000, 1 << 62, math.MaxInt64} {
		synctest.Test(t, func(t *testing.T) {
			l := ratelimit.New(0)
			mustAcquire(t, l, 10).Refused(named)
			last := l.TokenLimit("m")
			for hour := range 30 {
				time.Sleep(time.Hour)
				got := l.TokenLimit("m")
				if want := min(saturatingDouble(last), math.MaxInt64/16); got != want {
					t.Fatalf("named %d, hour %d: limit %d, want %d", named, hour+1, got, want)
				}
				last = got
			}
			time.Sleep(time.Hour)
			if got := l.TokenLimit("m"); got != 0 {
				t.Errorf("named %d: limit %d after 31 hours, want none", named, got)
			}
		})
	}
}

func saturatingDouble(n int64) int64 {
	if n > math.MaxInt64/2 {
		return math.MaxInt64
	}
	return 2 * n
}

// A waiting batch enters in the moment in which the doubled limit has room,
// without another event.
func TestDoubledLimitLetsWaitingBatchIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(0)
		begin := time.Now()
		mustAcquire(t, l, 60).Refused(100)
		second, third := acquire(t.Context(), l, "m", 60), acquire(t.Context(), l, "m", 200)
		time.Sleep(3 * time.Hour)
		wantGranted(t, "after three hours", []*pending{second, third}, true, true)
		if got := second.at.Sub(begin); got != time.Hour {
			t.Errorf("second batch after %v, want 1h", got)
		}
		if got := third.at.Sub(begin); got != 2*time.Hour {
			t.Errorf("third batch after %v, want 2h", got)
		}
	})
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.New(1)
		check := func(when string, want bool) {
			t.Helper()
			if got := l.Idle(); got != want {
				t.Errorf("%s: idle %v, want %v", when, got, want)
			}
		}
		check("new", true)
		first := acquire(t.Context(), l, "m", 1)
		check("a batch is in", false)
		first.grant.Leave()
		check("the batch has left", true)
		second := acquire(t.Context(), l, "m", 1)
		second.grant.Used()
		second.grant.Leave()
		check("a creation within the hour", false)
		time.Sleep(time.Hour)
		check("an hour later", true)
		third := acquire(t.Context(), l, "m", 1)
		third.grant.Refused(0)
		third.grant.Leave()
		check("a limit is known", false)
		time.Sleep(31 * time.Hour)
		check("the limit is forgotten", true)
	})
}

// Any sequence of calls keeps the limit of the hour and the order, and keeps no
// slot and no room for a batch that has left.
func TestLimiterProperties(t *testing.T) {
	steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{
			action:  rapid.IntRange(0, 4).Draw(t, "action"),
			pick:    rapid.IntRange(0, 99).Draw(t, "pick"),
			minutes: rapid.IntRange(1, 90).Draw(t, "minutes"),
		}
	}), 1, 40)
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{slots: rapid.IntRange(1, 4).Draw(rt, "slots")}
		script := steps.Draw(rt, "steps")
		var err error
		synctest.Test(t, func(t *testing.T) { err = m.run(t.Context(), script) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

// A step is one step of a script for a model.
type step struct{ action, pick, minutes int }

// A model drives a Limiter and checks what the Limiter promises.
type model struct {
	ctx     context.Context
	limiter *ratelimit.Limiter
	slots   int
	batches []*modelBatch // in order of arrival
	creates []time.Time
}

// A modelBatch is a batch of a model.
type modelBatch struct {
	*pending
	cancel context.CancelFunc
	ended  bool
	free   bool // the batch holds no slot any more
}

func (m *model) run(ctx context.Context, script []step) error {
	m.ctx, m.limiter = ctx, ratelimit.New(m.slots)
	var failed error
	for _, s := range script {
		m.apply(s)
		m.poll()
		failed = errors.Join(failed, m.check())
	}
	for _, b := range m.batches {
		m.end(b)
		m.poll()
	}
	time.Sleep(time.Hour)
	if !m.limiter.Idle() {
		failed = errors.Join(failed, errors.New("the limiter is not idle although every batch has left"))
	}
	return failed
}

func (m *model) apply(s step) {
	if s.action == 0 || len(m.batches) == 0 {
		m.arrive([]string{"m", "n"}[s.pick%2])
		return
	}
	switch b := m.batches[s.pick%len(m.batches)]; s.action {
	case 1:
		time.Sleep(time.Duration(s.minutes) * time.Minute)
	case 2, 3:
		m.use(b)
	case 4:
		m.end(b)
	}
}

// poll reads what the batches have acquired.
func (m *model) poll() {
	for _, b := range m.batches {
		b.poll()
	}
}

func (m *model) arrive(group string) {
	ctx, cancel := context.WithCancel(m.ctx)
	m.batches = append(m.batches, &modelBatch{pending: start(ctx, m.limiter, group, 1), cancel: cancel})
}

func (m *model) use(b *modelBatch) {
	if b.grant == nil {
		return
	}
	if !b.free {
		m.creates = append(m.creates, time.Now())
	}
	b.free = true
	b.grant.Used()
}

// end ends a batch, wherever the batch is.
func (m *model) end(b *modelBatch) {
	b.ended = true
	b.cancel()
	if b.grant != nil {
		b.free = true
		b.grant.Leave()
	}
}

func (m *model) check() error {
	held, waiting := 0, 0
	for _, b := range m.batches {
		switch {
		case b.grant == nil && !b.ended:
			waiting++
		case b.grant != nil && waiting > 0 && !b.free:
			return errors.New("a batch has overtaken a batch")
		case b.grant != nil && !b.free:
			held++
		}
	}
	for _, at := range m.creates {
		if time.Since(at) < time.Hour {
			held++
		}
	}
	switch {
	case held > m.slots:
		return fmt.Errorf("%d slots held or used within the hour, limit %d", held, m.slots)
	case waiting > 0 && held < m.slots:
		return fmt.Errorf("%d batches wait although a slot is free", waiting)
	}
	return nil
}
