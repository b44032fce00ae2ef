package registry_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/autobatcher/autobatcher/internal/budget"
	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/registry"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

type (
	call   = registry.Call[string]
	waiter = registry.Waiter[string]
	answer = registry.Answer[string]
	lines  = registry.Lines[string]
)

const (
	keepFor   = time.Hour
	idleAfter = 2 * time.Minute
)

// A process has a registry and, unless store is nil, a journal.
type process struct {
	*testing.T
	*registry.Registry[string]
	session *journalsession.Session
	dropped []string
}

func start(t *testing.T, store journal.Store, keepFor time.Duration) *process {
	p := &process{T: t}
	p.Registry = registry.New(keepFor, idleAfter, func(c *call) { p.dropped = append(p.dropped, c.Request) }, func(*string) bool { return false })
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	o := journalsession.Options{Logger: slog.New(slog.DiscardHandler), Context: ctx, Start: func(f func()) bool { work.Go(f); return true }}
	p.session = journalsession.Disabled(o)
	if store != nil {
		var err error
		if p.session, err = journalsession.Open(store, o); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { stop(); work.Wait() })
	return p
}

// enter makes a call; calls of the same text have the same fingerprint.
func (p *process) enter(text string) (c *call, w *waiter, queued bool) {
	p.Helper()
	c = &call{Request: text}
	copy(c.Fingerprint[:], text)
	w, queued, ok := p.Enter(c)
	if !ok {
		p.Fatal("the registry takes no calls")
	}
	return c, w, queued
}

// batch makes queued calls the lines of a batch.
func (p *process) batch(calls ...*call) (*lines, chan struct{}) {
	p.Helper()
	idle := make(chan struct{}, 1)
	s := p.NewLines(idle, false)
	r := p.session.NewRecord(s)
	s.SetRecord(r)
	claimed := p.Claim(calls, s)
	err := r.Begin(p.Context(), journal.Batch{}, func() (all []journal.Line) {
		for _, c := range claimed {
			all = append(all, journal.Line{CustomID: c.ID, Fingerprint: journal.Hash(c.Fingerprint)})
		}
		return all
	})
	if err != nil {
		p.Fatal(err)
	}
	s.Known(r.Ref())
	return s, idle
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func ok(text string) *answer { return &answer{Answer: reply.Answer{Status: 200, Body: []byte(text)}} }

// answered waits for the answer of a caller.
func (p *process) answered(w *waiter) *answer {
	<-w.Ready
	return w.Answer()
}

func (p *process) wants(w *waiter, text string) *answer {
	p.Helper()
	select {
	case <-w.Ready:
		a := w.Answer()
		if string(a.Body) != text {
			p.Errorf("got %q, want %q", a.Body, text)
		}
		return a
	default:
		p.Errorf("no answer, want %q", text)
		return nil
	}
}

func TestCustomIDs(t *testing.T) {
	r := registry.New(time.Hour, time.Hour, func(*call) {}, func(*string) bool { return false })
	seen := make(map[string]bool)
	for range 100 {
		c := &call{}
		r.Enter(c)
		id, err := uuid.Parse(c.ID)
		if err != nil || id.Version() != 4 || id.Variant() != uuid.RFC4122 || id.String() != c.ID || seen[c.ID] {
			t.Errorf("the custom id is %q, %v, want a new random UUID", c.ID, err)
		}
		seen[c.ID] = true
	}
}

func TestRetries(t *testing.T) {
	for _, tt := range []struct {
		name string
		play func(p *process)
	}{
		{"a retry that enters gets the detached line", func(p *process) {
			c, w, _ := p.enter("a")
			s, _ := p.batch(c)
			p.Leave(w, false)
			retry, again, queued := p.enter("a")
			if queued || s.Find(retry.ID) != retry {
				p.Error("the retry does not have the line")
			}
			p.Complete(retry, ok("A"))
			p.wants(again, "A")
		}},
		{"a caller that leaves gives its line to the queued retry", func(p *process) {
			c, w, _ := p.enter("a")
			s, _ := p.batch(c)
			retry, again, queued := p.enter("a")
			if !queued {
				p.Fatal("calls that are alive were merged")
			}
			p.Leave(w, false)
			if len(p.dropped) != 1 || s.Find(retry.ID) != retry {
				p.Error("the retry does not have the line, or stays in its queue")
			}
			p.Complete(retry, ok("A"))
			p.wants(again, "A")
		}},
		{"n retries get n lines", func(p *process) {
			a, wa, _ := p.enter("a")
			b, wb, _ := p.enter("a")
			p.batch(a, b)
			p.Leave(wa, false)
			p.Leave(wb, false)
			for i := range 3 {
				if _, _, queued := p.enter("a"); queued != (i == 2) {
					p.Errorf("retry %d of 2 lines is queued: %v", i+1, queued)
				}
			}
		}},
		{"an answer without a caller is kept, once", func(p *process) {
			c, w, _ := p.enter("a")
			p.batch(c)
			p.Leave(w, false)
			p.Complete(c, ok("A"))
			_, again, _ := p.enter("a")
			p.wants(again, "A")
			if _, _, queued := p.enter("a"); !queued {
				p.Error("the answer was given twice")
			}
		}},
		{"an answer that was not read is kept again", func(p *process) {
			c, w, _ := p.enter("a")
			p.batch(c)
			p.Complete(c, ok("A"))
			for range 3 {
				p.Unread(p.wants(w, "A"))
				_, w, _ = p.enter("a")
			}
			p.Read(p.wants(w, "A"))
			if _, _, queued := p.enter("a"); !queued {
				p.Error("an answer that was read is given again")
			}
		}},
		{"kept answers expire exactly", func(p *process) {
			c, w, _ := p.enter("a")
			p.batch(c)
			p.Leave(w, false)
			p.Complete(c, ok("A"))
			time.Sleep(keepFor)
			if _, _, queued := p.enter("a"); !queued {
				p.Error("an expired answer was given")
			}
		}},
		{"a transient failure is not kept", func(p *process) {
			c, w, _ := p.enter("a")
			p.batch(c)
			p.Leave(w, false)
			p.Complete(c, &answer{Answer: reply.Answer{Status: 429, Retry: true}})
			if _, _, queued := p.enter("a"); !queued {
				p.Error("a 429 was given to a retry")
			}
		}},
		{"nothing is kept of a call that was answered elsewhere", func(p *process) {
			c, w, _ := p.enter("a")
			p.batch(c)
			p.Leave(w, false)
			p.Dismiss(c)
			p.Complete(c, ok("A"))
			if _, _, queued := p.enter("a"); !queued {
				p.Error("a dismissed line was given to a retry")
			}
		}},
		{"no call takes over a line of a batch that is being cancelled", func(p *process) {
			c, w, _ := p.enter("a")
			s, idle := p.batch(c)
			if s.BeginCancel(true) {
				p.Error("a batch is cancelled while a caller waits")
			}
			p.Leave(w, false)
			time.Sleep(idleAfter)
			synctest.Wait()
			if len(idle) != 1 || !s.BeginCancel(true) {
				p.Fatal("an idle batch is not cancelled")
			}
			retry, _, queued := p.enter("a")
			if !queued {
				p.Error("a line was taken over that is being cancelled")
			}
			s.CancelFailed()
			if s.Find(c.ID) != retry {
				p.Error("the queued retry does not get the line of a batch that runs on")
			}
		}},
		{"a retry resets the idle time", func(p *process) {
			c, w, _ := p.enter("a")
			_, idle := p.batch(c)
			p.Leave(w, false)
			time.Sleep(idleAfter - time.Second)
			_, again, _ := p.enter("a")
			time.Sleep(idleAfter)
			p.Leave(again, false)
			time.Sleep(idleAfter - time.Second)
			synctest.Wait()
			if len(idle) != 0 {
				p.Error("a batch is idle that had a caller a moment ago")
			}
		}},
		{"a call that is resubmitted can leave", func(p *process) {
			c, w, _ := p.enter("a")
			s, _ := p.batch(c)
			if !s.RetryLater(c, 1) {
				p.Fatal("not resubmitted")
			}
			p.Leave(w, false)
			p.Requeue([]*call{c}, func(again []*call) {
				if len(again) != 0 {
					p.Error("a call without a caller was queued again")
				}
			})
		}},
		{"a batch is idle whose last caller leaves a call that is resubmitted", func(p *process) {
			c, w, _ := p.enter("a")
			other, left, _ := p.enter("b")
			s, idle := p.batch(c, other)
			p.Leave(left, false)
			s.RetryLater(c, 1)
			p.Leave(w, false)
			time.Sleep(idleAfter)
			synctest.Wait()
			if len(idle) != 1 {
				p.Error("the batch is not idle")
			}
		}},
		{"a queued retry gets the answer of a line that it could not take over", func(p *process) {
			c, w, _ := p.enter("a")
			s, _ := p.batch(c)
			p.Leave(w, false)
			s.BeginCancel(false)
			retry, again, queued := p.enter("a")
			p.Complete(c, ok("A"))
			p.wants(again, "A")
			if !queued || !slices.Equal(p.dropped, []string{"a"}) || len(p.Queued([]*call{retry})) != 0 {
				p.Errorf("the retry is still queued; dropped: %v", p.dropped)
			}
		}},
		{"a queued retry gets the answer that its first attempt did not read", func(p *process) {
			c, w, _ := p.enter("a")
			p.batch(c)
			p.Complete(c, ok("A"))
			a := p.wants(w, "A")
			_, again, _ := p.enter("a")
			p.Unread(a)
			p.wants(again, "A")
			if _, _, queued := p.enter("a"); !queued {
				p.Error("one answer was given twice")
			}
		}},
		{"callers that come and go leave no bodies behind", func(p *process) {
			const rounds, size = 100, 1 << 20
			c, w, _ := p.enter("a")
			p.batch(c)
			before := heap()
			for range rounds {
				p.Leave(w, false)
				c, w, _ = p.enter("a")
				c.Body = make([]byte, size)
			}
			if grown := heap() - before; grown > rounds*size/10 {
				p.Errorf("the heap grew by %d bytes", grown)
			}
			runtime.KeepAlive(p)
		}},
		{"a closed batch gives no line away", func(p *process) {
			c, w, _ := p.enter("a")
			s, _ := p.batch(c)
			p.Leave(w, false)
			if rest, closed := s.Close(false); !closed || len(rest) != 1 {
				p.Errorf("%d calls are left, want one", len(rest))
			}
			if _, _, queued := p.enter("a"); !queued {
				p.Error("a line of a batch that has ended was taken over")
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { tt.play(start(t, nil, keepFor)) })
		})
	}
}

// A detached line of a batch that the provider has must not keep its body; before, the
// body may still be uploaded.
func TestBodiesOfDetachedLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, nil, keepFor)
		body := []byte("body")
		early, leavesEarly, _ := p.enter("early")
		late, leavesLate, _ := p.enter("late")
		stays, waiter, _ := p.enter("stays")
		for _, c := range []*call{early, late, stays} {
			c.Body = body
		}
		s, _ := p.batch(early, late, stays)
		p.Leave(leavesEarly, false)
		if early.Body == nil {
			t.Error("the body was freed during the upload")
		}
		s.SetID("batch")
		p.Leave(leavesLate, false)
		if early.Body != nil || late.Body != nil {
			t.Error("a detached line keeps its body")
		}
		if stays.Body == nil {
			t.Error("the body of a waiting call was freed")
		}
		retry, again, queued := p.enter("late")
		if queued || retry == late {
			t.Error("the retry did not take over the line")
		}
		p.Complete(retry, ok("late"))
		p.Complete(stays, ok("stays"))
		p.wants(again, "late")
		p.wants(waiter, "stays")
	})
}

// A body is freed once: when no caller waits for the call and no upload reads the body.
func TestFreed(t *testing.T) {
	for _, tt := range []struct {
		name string
		play func(p *process, c *call, w *waiter) // the body of c must be freed afterwards
	}{
		{"leaves the queue", func(p *process, _ *call, w *waiter) { p.Leave(w, false) }},
		{"is not queued", func(p *process, c *call, _ *waiter) { p.Withdraw(c) }},
		{"leaves after the upload", func(p *process, c *call, w *waiter) {
			s, _ := p.batch(c)
			s.SetID("batch")
			p.Leave(w, false)
		}},
		{"leaves during the upload", func(p *process, c *call, w *waiter) {
			s, _ := p.batch(c)
			p.Leave(w, false)
			p.wantsHeld(c)
			s.SetID("batch")
		}},
		{"a retry takes the line over during the upload", func(p *process, c *call, w *waiter) {
			s, _ := p.batch(c)
			p.Leave(w, false)
			retry, again, _ := p.enter("text")
			freed := 0
			retry.Body, retry.Freed = []byte("body"), func() { freed++ }
			p.wantsHeld(c)
			if p.Leave(again, false); freed != 1 { // no upload reads this body
				p.Error("the body of the retry is held")
			}
			s.SetID("batch")
		}},
		{"the journal gives the line away during the upload", func(p *process, c *call, w *waiter) {
			s, _ := p.batch(c)
			p.Leave(w, false)
			s.FinishRelease(s.BeginRelease())
			p.wantsHeld(c)
			s.SetID("batch")
		}},
		{"the upload fails", func(p *process, c *call, _ *waiter) {
			s, _ := p.batch(c)
			rest, _ := s.Close(false)
			p.wantsHeld(c)
			p.Complete(rest[0], ok("text"))
		}},
		{"leaves, and the upload fails", func(p *process, c *call, w *waiter) {
			s, _ := p.batch(c)
			p.Leave(w, false)
			s.FinishRelease(s.BeginRelease())
			s.Close(false)
			p.wantsHeld(c)
			s.EndSending()
		}},
		{"sent again, and leaves", func(p *process, c *call, w *waiter) {
			s, _ := p.batch(c)
			p.Requeue([]*call{c}, func([]*call) {})
			next, _ := p.batch(c)
			s.EndSending()
			p.Leave(w, false)
			p.wantsHeld(c)
			next.SetID("batch")
		}},
		{"resubmitted without a caller", func(p *process, c *call, w *waiter) {
			s, _ := p.batch(c)
			s.SetID("batch")
			s.RetryLater(c, 1)
			p.Leave(w, false)
			p.Requeue([]*call{c}, func([]*call) {})
		}},
		{"is answered", func(p *process, c *call, _ *waiter) {
			s, _ := p.batch(c)
			s.SetID("batch")
			p.wantsHeld(c)
			p.Complete(c, ok("text"))
		}},
		{"the registry is closed", func(p *process, c *call, w *waiter) {
			p.Leave(w, false)
			p.Close()
			late := &call{Freed: func() {}}
			late.Body = []byte("body")
			if p.Enter(late); late.Body != nil {
				p.Error("the body of a refused call is held")
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(t, nil, keepFor)
				freed := 0
				c, w, _ := p.enter("text")
				c.Body, c.Freed = []byte("body"), func() { freed++ }
				tt.play(p, c, w)
				if freed != 1 || c.Body != nil {
					t.Errorf("freed %d times; the body is %q", freed, c.Body)
				}
			})
		})
	}
}

// wantsHeld checks that the body of a call is not freed.
func (p *process) wantsHeld(c *call) {
	p.Helper()
	if c.Body == nil || c.Freed == nil {
		p.Error("the body was freed")
	}
}

func TestNothingIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, nil, -1)
		c, w, _ := p.enter("a")
		p.batch(c)
		p.Complete(c, ok("A"))
		p.Unread(p.wants(w, "A"))
		if _, _, queued := p.enter("a"); !queued {
			t.Error("an answer was kept")
		}
	})
}

// place gives lines to queued calls. It makes the lines of a batch when first asked.
func (p *process) place(taken []journal.Taken) { p.Place(taken, p.linesOf) }

func (p *process) linesOf(b journal.Batch) *lines {
	return p.LinesOf(b.Ref, func() *lines {
		s := p.NewLines(make(chan struct{}, 1), false)
		s.SetRecord(p.session.Resume(&b, s))
		return s
	})
}

// takeOver takes over the lines of a queued call.
func (p *process) takeOver(c *call) {
	p.Helper()
	if err := p.session.TakeOver(p.Context(), journal.Hash{}, func() []journal.Hash { return p.Queued([]*call{c}) }, p.place); err != nil {
		p.Error(err)
	}
}

// A batch is cancelled only while no caller waits for a line, and from then on no
// caller takes over a line.
func TestALineIsNotTakenOverWhileItsBatchIsCancelled(t *testing.T) {
	p := start(t, nil, keepFor)
	c, w, _ := p.enter("a")
	s, _ := p.batch(c)
	if s.BeginCancel(true) {
		t.Error("the batch is to be cancelled while a caller waits")
	}
	p.Leave(w, false)
	if !s.BeginCancel(true) {
		t.Error("the batch is not to be cancelled although nobody waits")
	}
	if _, _, queued := p.enter("a"); !queued {
		t.Error("a retry took over a line that is about to be cancelled")
	}
}

// The journal does not give a line away whose next caller came before the release.
func TestALineWithANewCallerIsNotReleased(t *testing.T) {
	p := start(t, nil, keepFor)
	c, w, _ := p.enter("a")
	s, _ := p.batch(c)
	p.Leave(w, false)
	if _, _, queued := p.enter("a"); queued {
		t.Fatal("the retry did not get the line")
	}
	if places := s.BeginRelease(); len(places) != 0 {
		t.Errorf("lines %v are to be released, and a caller waits for them", places)
	}
}

// A line whose answer a caller is reading is not given to an equal call, although
// this process holds the line.
func TestALineIsNotPlacedWhoseAnswerIsBeingRead(t *testing.T) {
	p := start(t, journal.NewMemory(), keepFor)
	c, w, _ := p.enter("a")
	p.batch(c)
	p.Complete(c, ok("A"))
	p.wants(w, "A")
	equal, _, _ := p.enter("a")
	held := journal.Line{CustomID: c.ID, Fingerprint: journal.Hash(c.Fingerprint)}
	p.Place([]journal.Taken{{Batch: journal.Batch{Ref: "b"}, Lines: []journal.Line{held}}}, p.linesOf)
	if len(p.Queued([]*call{equal})) != 1 {
		t.Error("two live calls have one line")
	}
}

// An answer that comes while the journal is asked to release its line goes to one call:
// to the call that the journal gives the line to.
func TestAnAnswerThatComesDuringARelease(t *testing.T) {
	store := journal.NewMemory()
	p := start(t, store, keepFor)
	c, w, _ := p.enter("a")
	s, _ := p.batch(c)
	p.Leave(w, false)
	places := s.BeginRelease() // as the session does
	_, again, _ := p.enter("a")
	p.Complete(c, ok("A"))
	if len(again.Ready) > 0 {
		t.Error("the answer was given away, and the journal may give the line away")
	}
	s.FinishRelease(places)
}

// noReleases is a journal that cannot release lines.
type noReleases struct{ journal.Store }

func (noReleases) Release(context.Context, string, string, []int) error { return errors.New("no") }

// A line whose answer was kept is placed with its answer, although its release is
// uncertain.
func TestAPlacedLineHasItsKeptAnswer(t *testing.T) {
	p := start(t, noReleases{journal.NewMemory()}, keepFor)
	c, w, _ := p.enter("a")
	s, _ := p.batch(c)
	p.Leave(w, false)
	p.Complete(c, ok("A"))
	s.BeginRelease() // a request whose answer is lost
	_, first, _ := p.enter("a")
	other, second, _ := p.enter("a")
	held := journal.Line{CustomID: c.ID, Fingerprint: journal.Hash(c.Fingerprint)}
	p.Place([]journal.Taken{{Lines: []journal.Line{held}}}, func(journal.Batch) *lines { return s })
	p.wants(first, "A")
	next := p.NewLines(make(chan struct{}, 1), false)
	next.SetRecord(p.session.NewRecord(next))
	if claimed := p.Claim([]*call{other}, next); len(claimed) != 1 || len(second.Ready) != 0 {
		t.Error("one line answers two live calls")
	}
}

// A retry that gets the failure kept for its line is the last that has a use for the
// line: the journal does not hold the line for ever.
func TestAPlacedLineHasItsKeptFailure(t *testing.T) {
	store := journal.NewMemory()
	p := start(t, store, keepFor)
	c, w, _ := p.enter("a")
	s, _ := p.batch(c)
	p.Leave(w, false)
	s.BeginRelease()
	p.Complete(c, &answer{Answer: reply.Answer{Status: 424, Local: true, Body: []byte("no")}, Paid: true})
	_, retry, _ := p.enter("a")
	held := journal.Line{CustomID: c.ID, Fingerprint: journal.Hash(c.Fingerprint)}
	p.Place([]journal.Taken{{Lines: []journal.Line{held}}}, func(journal.Batch) *lines { return s })
	p.wants(retry, "no")
	p.session.Flush(t.Context())
	known, err := store.Batches(t.Context(), journal.Filter{})
	if err != nil || len(known) != 1 || known[0].Delivered != 1 || known[0].Held != 0 {
		t.Errorf("%+v, %v; want one batch, whose line is delivered", known, err)
	}
}

func TestJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		p := start(t, store, keepFor)
		c, w, _ := p.enter("a")
		s, _ := p.batch(c)
		p.Leave(w, false)
		synctest.Wait() // the journal confirms the release
		if s.Count() != 0 {
			t.Error("the registry still has a line that the journal gives away")
		}
		retry, again, queued := p.enter("a")
		if !queued {
			t.Error("the registry gave a line that the journal gives away")
		}
		p.takeOver(retry)
		if s.Find(retry.ID) != retry || !s.TakeReread() {
			t.Error("the retry does not have the line, or the results are not read again")
		}
		// The answer comes, and the caller does not read the answer: the next retry
		// takes over the line, and gets the answer that was kept.
		p.Complete(retry, ok("A"))
		p.Unread(p.wants(again, "A"))
		synctest.Wait()
		third, again, _ := p.enter("a")
		p.takeOver(third)
		p.Read(p.wants(again, "A"))
		synctest.Wait()
		if list, _ := store.Batches(t.Context(), journal.Filter{}); len(list) != 1 || list[0].Delivered != 1 {
			t.Errorf("%+v; want the line delivered", list)
		}
	})
}

// sendInRealtime makes a call whose batch has an unknown outcome, and which is sent in real time.
func (p *process) sendInRealtime(text string) (w *waiter, unknown *answer) {
	p.Helper()
	c, w, _ := p.enter(text)
	p.batch(c)
	unknown = &answer{Answer: reply.Failure(424, "unknown", "unknown"), Paid: true}
	p.Complete(c, &answer{Realtime: true, Instead: unknown})
	return w, unknown
}

// A failure that was kept ends a line that the journal gives back: no caller waits for
// the line, and so the journal must not hold the line for this process.
func TestAPlacedLineHasItsFailureInRealtime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		p := start(t, store, keepFor)
		w, unknown := p.sendInRealtime("a")
		p.EndRealtime(p.answered(w), false, true)
		p.CallerLeft()
		synctest.Wait() // the journal confirms the release
		retry, again, _ := p.enter("a")
		p.takeOver(retry)
		if got := p.answered(again); got != unknown {
			t.Errorf("the retry got %+v", got)
		}
		synctest.Wait()
		if list, _ := store.Batches(t.Context(), journal.Filter{}); len(list) != 1 || list[0].Held != 0 || list[0].Delivered != 1 {
			t.Errorf("%+v; want the line delivered", list)
		}
	})
}

// A noteStore notes whether a process releases a line.
type noteStore struct {
	journal.Store
	released bool
}

func (s *noteStore) Release(ctx context.Context, owner, ref string, lines []int) error {
	s.released = true
	return s.Store.Release(ctx, owner, ref, lines)
}

// A retry reads the answer that the first caller did not read, before the journal was asked to
// release the line. The line is not released: the release would let another call have the line.
func TestALineThatARetryHasReadIsNotReleased(t *testing.T) {
	for _, queued := range []bool{true, false} { // or the retry comes after the first caller has left
		synctest.Test(t, func(t *testing.T) {
			store := &noteStore{Store: journal.NewMemory()}
			p := start(t, store, keepFor)
			c, w, _ := p.enter("a")
			p.batch(c)
			p.Complete(c, ok("A"))
			var again *waiter
			if queued {
				_, again, _ = p.enter("a")
			}
			p.Unread(p.wants(w, "A"))
			if !queued {
				_, again, _ = p.enter("a")
			}
			p.Read(p.wants(again, "A"))
			synctest.Wait()
			if list, _ := store.Batches(t.Context(), journal.Filter{}); len(list) != 1 || list[0].Held != 0 || list[0].Delivered != 1 || store.released {
				t.Errorf("queued %v: %+v, released %v; want the line delivered, and not released", queued, list, store.released)
			}
		})
	}
}

// A queued retry gets the failure of a call that real time could not answer either. No
// further retry gets the failure from the journal.
func TestAQueuedRetryHasTheFailureOfACallInRealtime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		p := start(t, store, keepFor)
		w, unknown := p.sendInRealtime("a")
		_, queued, _ := p.enter("a")
		p.EndRealtime(p.answered(w), false, false)
		p.CallerLeft()
		if got := p.answered(queued); got != unknown {
			t.Errorf("the queued retry got %+v", got)
		}
		synctest.Wait()
		if list, _ := store.Batches(t.Context(), journal.Filter{}); len(list) != 1 || list[0].Held != 0 || list[0].Delivered != 1 {
			t.Errorf("%+v; want the line delivered", list)
		}
	})
}

// Equal calls in two queues take over two lines: a line that is given to the call
// of the other queue is replaced by another line.
func TestEqualCallsInTwoQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		dead := start(t, store, keepFor)
		one, _, _ := dead.enter("a")
		two, _, _ := dead.enter("a")
		dead.batch(one, two)
		dead.session.Leave()

		p := start(t, store, keepFor)
		first, _, _ := p.enter("a")
		second, _, _ := p.enter("a")
		p.takeOver(second) // the line is given to the first call
		if got := p.Queued([]*call{first, second}); len(got) != 0 {
			t.Errorf("%d calls have no line", len(got))
		}
		third, _, _ := p.enter("a")
		p.takeOver(first) // another take-over was under way for the call
		if got := p.Queued([]*call{third}); len(got) != 1 {
			t.Error("a line was taken over that the journal does not have")
		}
	})
}

// A line of a batch that ends while the line is taken over goes to the call all
// the same.
func TestALineOfABatchThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		dead := start(t, store, keepFor)
		left, _, _ := dead.enter("a")
		dead.batch(left)
		dead.session.Leave()

		p := start(t, store, keepFor)
		c, _, _ := p.enter("a")
		found := 0
		place := func(taken []journal.Taken) {
			p.Place(taken, func(b journal.Batch) *lines {
				s := p.linesOf(b)
				if found++; found == 1 {
					s.Close(false)
				}
				return s
			})
		}
		if err := p.session.TakeOver(t.Context(), journal.Hash{}, func() []journal.Hash { return p.Queued([]*call{c}) }, place); err != nil {
			t.Error(err)
		}
		if found != 2 || len(p.Queued([]*call{c})) != 0 {
			t.Errorf("the line was placed %d times, want twice: the batch had ended at first", found)
		}
	})
}

// What is reserved for a call in real time is free again if the call has ended
// meanwhile, if its caller has left, and when the call in real time ends.
func TestReservationsInRealtime(t *testing.T) {
	for name, end := range map[string]func(p *process, c *call, w *waiter, escalated *answer){
		"the line was answered": func(p *process, c *call, _ *waiter, escalated *answer) {
			p.Complete(c, ok("A"))
			p.Complete(c, escalated)
		},
		"the caller has left": func(p *process, c *call, w *waiter, escalated *answer) {
			p.Leave(w, false)
			p.Complete(c, escalated)
		},
		"the call in real time ends": func(p *process, c *call, w *waiter, escalated *answer) {
			p.Complete(c, escalated)
			p.EndRealtime(p.answered(w), false, false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			spends := budget.New(100, false)
			meter, err := price.NewMeter(nil, spends, nil)
			if err != nil {
				t.Fatal(err)
			}
			spending, err := meter.Begin(price.Call{Profile: &provider.Profile{}}, 60)
			if err != nil || spends.State().ReservedUSD != 60 {
				t.Fatalf("%v, %+v", err, spends.State())
			}
			p := start(t, nil, keepFor)
			c, w, _ := p.enter("a")
			p.batch(c)
			end(p, c, w, &answer{Realtime: true, Instead: &answer{Answer: reply.Failure(424, "failed", "failed")}, Spending: spending})
			if got := spends.State(); got.ReservedUSD != 0 || got.SpentUSD != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// BenchmarkCall is what the registry costs a call that is queued, sent and
// answered.
func BenchmarkCall(b *testing.B) {
	r := registry.New(keepFor, idleAfter, func(*call) {}, func(*string) bool { return false })
	session := journalsession.Disabled(journalsession.Options{})
	s := r.NewLines(make(chan struct{}, 1), false)
	s.SetRecord(session.NewRecord(s))
	calls := make([]*call, 0, b.N)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		c := &call{Line: line.Line{Body: bytes.Clone([]byte("{}"))}}
		copy(c.Fingerprint[:], strconv.Itoa(i))
		if _, queue, ok := r.Enter(c); !queue || !ok {
			b.Fatal("not queued")
		}
		calls = append(calls, c)
	}
	for _, c := range r.Claim(calls, s) {
		r.Complete(c, ok("A"))
	}
}
