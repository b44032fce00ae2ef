package registry_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/budget"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/journal"
)

// fork has the caller of a call wait with a further call instead.
func (p *process) fork(c *call, w *waiter) (*call, *waiter) {
	p.Helper()
	next, waiting := p.unfollowed(c)
	if !p.Follow(w, waiting) {
		p.Fatal("the caller does not wait with the further call")
	}
	return next, waiting
}

// unfollowed makes a Fork of c that no caller waits with yet.
func (p *process) unfollowed(c *call) (*call, *waiter) {
	p.Helper()
	next := p.Fork(c, func(r *string) (string, bool) { return *r, true })
	waiting, _, ok := p.Enter(next)
	if !ok {
		p.Fatal("the further call is not entered")
	}
	return next, waiting
}

// elsewhere reports whether another process gets the line of c from the journal.
func elsewhere(t *testing.T, store journal.Store, c *call) bool {
	t.Helper()
	if _, err := store.Heartbeat(t.Context(), "other", time.Hour); err != nil {
		t.Fatal(err)
	}
	taken, err := store.TakeOver(t.Context(), "other", journal.Hash{}, []journal.Hash{journal.Hash(c.Fingerprint)})
	if err != nil {
		t.Fatal(err)
	}
	return len(taken) == 1
}

// A caller that waits with a further line gets the answer that comes first. The first line
// stays at the process while the caller waits, and is released to the journal afterwards. If
// the further line fails, the caller waits for the first line again.
func TestFork(t *testing.T) {
	for name, tt := range map[string]struct {
		unsent    bool // the further call waits to be sent
		then      func(p *process, s *lines, c, next *call, w *waiter)
		waiting   bool // the caller waits afterwards
		kept      bool // the answer to the first line is kept for a retry
		elsewhere bool // another process gets the first line
		further   bool // another process gets the further line
	}{
		"the first line answers": {then: func(p *process, _ *lines, c, _ *call, w *waiter) {
			p.Complete(c, ok("first"))
			p.Read(p.wants(w, "first"))
		}},
		"the first line answers before the further call is sent": {unsent: true, then: func(p *process, s *lines, c, next *call, w *waiter) {
			p.Complete(c, ok("first"))
			p.Read(p.wants(w, "first"))
			if sent := p.Claim([]*call{next}, s); len(sent) != 0 {
				p.Error("the further call is sent")
			}
		}},
		"the first line answers, and the caller does not read": {kept: true, elsewhere: true, then: func(p *process, _ *lines, c, _ *call, w *waiter) {
			p.Complete(c, ok("first"))
			p.Unread(p.wants(w, "first"))
		}},
		"the first line has an error": {waiting: true, kept: true, then: func(p *process, _ *lines, c, _ *call, _ *waiter) {
			p.Complete(c, &answer{Answer: reply.Answer{Status: 400}})
		}},
		"no answer yet": {waiting: true, then: func(*process, *lines, *call, *call, *waiter) {}},
		"the further line answers": {elsewhere: true, then: func(p *process, _ *lines, _, next *call, w *waiter) {
			p.Complete(next, ok("further"))
			p.Read(p.wants(w, "further"))
		}},
		"the further line answers, and the first line is dismissed": {then: func(p *process, _ *lines, c, next *call, w *waiter) {
			p.Complete(next, ok("further"))
			p.Read(p.wants(w, "further"))
			p.Dismiss(c)
		}},
		"the caller leaves":            {elsewhere: true, further: true, then: func(p *process, _ *lines, _, _ *call, w *waiter) { p.Leave(w, false) }},
		"the batch is to be cancelled": {waiting: true, elsewhere: true, then: func(_ *process, s *lines, _, _ *call, _ *waiter) { s.BeginCancel(false) }},
		"an equal call waits": {waiting: true, then: func(p *process, _ *lines, _, _ *call, w *waiter) {
			equal, _, _ := p.enter("a")
			p.takeOver(equal)
			if len(p.Queued([]*call{equal})) != 1 {
				p.Error("the equal call has the line, although the caller waits")
			}
		}},
		"an equal call waits, and the first line answers": {then: func(p *process, _ *lines, c, _ *call, w *waiter) {
			equal, _, _ := p.enter("a")
			p.Complete(c, ok("first"))
			p.Read(p.wants(w, "first"))
			if len(p.Queued([]*call{equal})) != 1 {
				p.Error("the equal call is not queued")
			}
		}},
		"an equal call waits, and the first line may be paid for": {waiting: true, kept: false, then: func(p *process, _ *lines, c, _ *call, _ *waiter) {
			equal, _, _ := p.enter("a")
			p.Complete(c, &answer{Answer: reply.Failure(424, "unreadable", "unreadable"), Paid: true})
			if len(p.Queued([]*call{equal})) != 1 {
				p.Error("the equal call gets the failure")
			}
		}},
		"a retry waits, and the caller leaves": {further: true, then: func(p *process, _ *lines, _, _ *call, w *waiter) {
			retry, _, _ := p.enter("a")
			p.Leave(w, false)
			if len(p.Queued([]*call{retry})) != 0 || !p.HasWaiter(retry) || !p.HasForked(retry) {
				p.Error("the retry does not have the line of a call that has forked")
			}
		}},
		"a retry waits, and the further line answers": {then: func(p *process, s *lines, c, next *call, w *waiter) {
			_, again, _ := p.enter("a")
			p.Complete(next, ok("further"))
			p.Read(p.wants(w, "further"))
			p.Dismiss(c)
			p.Leave(again, false)
			synctest.Wait() // the journal has the line
			p.Dismiss(c)
			synctest.Wait()
			retry, again, _ := p.enter("a")
			p.takeOver(retry)
			if s.Find(retry.ID) != retry {
				p.Fatal("the retry does not have the line")
			}
			p.Complete(retry, ok("first"))
			p.Read(p.wants(again, "first"))
		}},
		"the further line fails": {then: func(p *process, _ *lines, c, next *call, w *waiter) {
			p.Complete(next, &answer{Answer: reply.Failure(503, "full", "full")})
			if _, id := p.NameOf(next); !p.HasWaiter(c) || id != c.ID {
				p.Error("the caller does not wait for the first line")
			}
			p.Complete(c, ok("first"))
			p.Read(p.wants(w, "first"))
		}},
		"the further line may be paid for": {further: true, then: func(p *process, _ *lines, c, next *call, w *waiter) {
			p.Complete(next, &answer{Answer: reply.Failure(424, "unknown", "unknown"), Paid: true})
			p.Complete(c, ok("first"))
			p.Read(p.wants(w, "first"))
		}},
		"the further line has an error": {then: func(p *process, _ *lines, c, next *call, w *waiter) {
			p.Complete(next, &answer{Answer: reply.Answer{Status: 400}})
			p.Complete(c, &answer{Answer: reply.Answer{Status: 400, Body: []byte("first")}})
			p.Read(p.wants(w, "first"))
		}},
		"the further line is to be sent in real time": {then: func(p *process, s *lines, c, next *call, w *waiter) {
			p.Complete(next, &answer{Realtime: true, Instead: &answer{Answer: reply.Failure(503, "full", "full")}})
			if !s.RetryLater(c, 1) {
				p.Error("the first line cannot be sent again")
			}
			p.Requeue([]*call{c}, func(queued []*call) {
				if len(queued) != 1 || string(queued[0].Body) != "body" {
					p.Errorf("%v is queued", queued)
				}
			})
			p.Leave(w, false)
		}},
		"the further line fails, and the caller leaves": {elsewhere: true, then: func(p *process, _ *lines, _, next *call, w *waiter) {
			p.Complete(next, &answer{Answer: reply.Failure(503, "full", "full")})
			p.Leave(w, false)
		}},
		"the further call is too expensive": {unsent: true, then: func(p *process, _ *lines, c, next *call, w *waiter) {
			next.Reservation = budget.New(1, false).Plan(2, 2)
			p.Refuse([]*call{next}, func(error) *answer { return ok("refused") })
			if p.HasForked(c) {
				p.Error("a Fork that was not sent counts")
			}
			p.Complete(c, ok("first"))
			p.Read(p.wants(w, "first"))
		}},
		"the further line fails after the first line": {elsewhere: true, then: func(p *process, _ *lines, c, next *call, w *waiter) {
			p.Complete(c, &answer{Answer: reply.Failure(424, "first", "first")})
			p.Complete(next, &answer{Answer: reply.Answer{Status: 500, Body: []byte("further")}})
			p.Read(p.wants(w, "further"))
		}},
		"the further line fails while the batch is cancelled": {elsewhere: true, then: func(p *process, s *lines, _, next *call, w *waiter) {
			s.BeginCancel(false)
			p.Complete(next, &answer{Answer: reply.Answer{Status: 500, Body: []byte("further")}})
			p.Read(p.wants(w, "further"))
		}},
		"a retry gets the first line back from the journal, and the caller leaves": {further: true, then: func(p *process, s *lines, _, _ *call, w *waiter) {
			s.BeginCancel(false)
			synctest.Wait()
			s.CancelFailed()
			retry, _, _ := p.enter("a")
			p.takeOver(retry)
			p.Leave(w, false)
			if s.Find(retry.ID) != retry {
				p.Error("the retry does not have the line")
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := journal.NewMemory()
				p := start(t, store, keepFor)
				c, w, _ := p.enter("a")
				c.Body = []byte("body")
				s, _ := p.batch(c)
				s.SetID("batch") // nothing reads the bodies any more
				next, waiting := p.fork(c, w)
				if !tt.unsent {
					p.batch(next)
				}
				synctest.Wait()
				tt.then(p, s, c, next, waiting)
				synctest.Wait()
				if p.HasWaiter(next) != tt.waiting || (p.Kept(c.ID, false) != nil) != tt.kept {
					t.Errorf("waiting %v, kept %v; want %v, %v", p.HasWaiter(next), p.Kept(c.ID, false), tt.waiting, tt.kept)
				}
				if first, further := elsewhere(t, store, c), elsewhere(t, store, next); first != tt.elsewhere || further != tt.further {
					t.Errorf("another process has the first line: %v, the further line: %v; want %v, %v", first, further, tt.elsewhere, tt.further)
				}
			})
		})
	}
}

// The process ends while a call waits with a further line, whose outcome is not known: the
// journal keeps the further line for a retry.
func TestForkOfAProcessThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		p := start(t, store, keepFor)
		c, w, _ := p.enter("a")
		p.batch(c)
		next, _ := p.fork(c, w)
		p.batch(next)
		p.Complete(next, &answer{Err: errors.New("closed")})
		p.Complete(c, &answer{Err: errors.New("closed")})
		p.session.Leave()
		if !elsewhere(t, store, c) || !elsewhere(t, store, next) {
			t.Error("a line is lost")
		}
	})
}

// The line of a call whose caller does not need the line is not kept for the caller: the
// further call has an answer already, or the call was not sent.
func TestForkWithoutALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		p := start(t, store, keepFor)
		c, w, _ := p.enter("a")
		p.batch(c)
		next, waiting := p.unfollowed(c)
		p.batch(next)
		p.Complete(next, ok("further"))
		if !p.Follow(w, waiting) {
			t.Error("the first line has an answer")
		}
		p.Read(p.wants(waiting, "further"))
		synctest.Wait()
		if !elsewhere(t, store, c) {
			t.Error("another process does not get the line")
		}
		c, w, _ = p.enter("b")
		_, waiting = p.fork(c, w)
		p.Leave(waiting, false)
		if sent := p.Claim([]*call{c}, p.NewLines(nil, false)); len(sent) != 0 || len(p.dropped) != 2 {
			t.Errorf("%v is sent, %v dropped; want the call and the further call dropped", sent, p.dropped)
		}
	})
}

// A gated journal releases no line until the gate is closed.
type gated struct {
	journal.Store
	gate chan struct{}
}

func (g gated) Release(ctx context.Context, owner, ref string, lines []int) error {
	<-g.gate
	return g.Store.Release(ctx, owner, ref, lines)
}

// The journal releases a line whose caller waits with a Fork, since the batch was to be
// cancelled. The line is not given to a queued retry as well.
func TestForkWhoseLineIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, gate := journal.NewMemory(), make(chan struct{})
		p := start(t, gated{store, gate}, keepFor)
		c, w, _ := p.enter("a")
		s, _ := p.batch(c)
		next, waiting := p.fork(c, w)
		p.batch(next)
		synctest.Wait()
		s.BeginCancel(false)
		synctest.Wait() // the journal is releasing the line
		s.CancelFailed()
		retry, _, _ := p.enter("a")
		p.Leave(waiting, false)
		has := s.Find(retry.ID) == retry
		close(gate)
		synctest.Wait()
		if other := elsewhere(t, store, c); has == other {
			t.Errorf("the retry has the line: %v, another process: %v", has, other)
		}
	})
}

// A Fork fails before the caller waits with it: the caller goes on waiting for the first line,
// and does not fork again.
func TestForkThatHasFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, nil, keepFor)
		c, w, _ := p.enter("a")
		p.batch(c)
		next, waiting := p.unfollowed(c)
		p.batch(next)
		if p.HasForked(c) {
			t.Error("the Fork counts as failed")
		}
		p.Complete(next, &answer{Answer: reply.Failure(424, "unknown", "unknown"), Paid: true})
		if p.Follow(w, waiting) || !p.HasForked(c) {
			t.Error("the caller waits with the Fork, which has failed")
		}
		p.Complete(c, ok("first"))
		p.Read(p.wants(w, "first"))
	})
}
