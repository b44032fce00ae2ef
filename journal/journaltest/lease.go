package journaltest

import (
	"errors"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// leaseTests are about leases.
var leaseTests = []test{
	{"an owner without a lease begins and takes nothing", func(s *suite) {
		s.alive("a")
		s.begin("a", "one", "p")
		s.gone("a")
		for _, owner := range []string{"a", "stranger"} {
			if err := s.Begin(s.Context(), batch(owner, "two"), lines("p")); !errors.Is(err, journal.ErrLapsed) {
				s.Errorf("Begin by %s: %v, want ErrLapsed", owner, err)
			}
			if _, err := s.TakeOver(s.Context(), owner, account, hashes("p")); !errors.Is(err, journal.ErrLapsed) {
				s.Errorf("TakeOver by %s: %v, want ErrLapsed", owner, err)
			}
			if _, err := s.Claim(s.Context(), owner, "one"); !errors.Is(err, journal.ErrLapsed) {
				s.Errorf("Claim by %s: %v, want ErrLapsed", owner, err)
			}
			for _, ref := range []string{"one", "no such"} {
				for _, ns := range [][]int{nil, {0}} {
					if err := s.Hold(s.Context(), owner, ref, ns); !errors.Is(err, journal.ErrLapsed) {
						s.Errorf("Hold by %s: %v, want ErrLapsed", owner, err)
					}
				}
			}
		}
		s.same("batches", s.refs(journal.Filter{}), "one")
		s.counts("one", 0, 0, 1)
	}},
	{"the lines of a dead owner are open", func(s *suite) {
		s.alive("a", "b", "c")
		s.running("a", "one", "p", "q")
		s.running("c", "two", "p", "r")
		s.ok(s.Release(s.Context(), "c", "two", []int{1}))
		s.same("taken", s.take("a", "r"), "two/1")
		s.gone("a")
		s.counts("one", 0, 0, 2)
		s.counts("two", 0, 1, 1)
		s.same("taken", s.take("b", "p", "q", "r"), "one/0", "one/1", "two/1")
	}},
	{"a single owner claims the batch of a dead owner", func(s *suite) {
		s.alive("a", "b", "c")
		s.begin("a", "one", "p")
		s.claims("a", true)
		s.claims("b", false)
		s.gone("a")
		if got := s.batch("one").Owner; got != "" {
			s.Errorf("owner is %q, want none", got)
		}
		s.claims("b", true)
		s.claims("c", false)
		s.claims("b", true)
		if got := s.batch("one").Owner; got != "b" {
			s.Errorf("owner is %q, want b", got)
		}
		s.counts("one", 0, 0, 1)
		s.advance("b", "one", journal.Step{State: journal.Creating})
		if err := s.Advance(s.Context(), "a", "one", journal.Step{State: journal.Running}); !errors.Is(err, journal.ErrNotOwner) {
			s.Errorf("Advance by the dead: %v, want ErrNotOwner", err)
		}
	}},
	{"a missing batch is not claimed", func(s *suite) {
		s.alive("a")
		if _, err := s.Claim(s.Context(), "a", "no such"); !errors.Is(err, journal.ErrNoBatch) {
			s.Errorf("got %v, want ErrNoBatch", err)
		}
	}},
	{"a take-over does not claim the batch", func(s *suite) {
		s.alive("a", "b")
		s.begin("a", "one", "p")
		s.gone("a")
		s.same("taken", s.take("b", "p"), "one/0")
		if got := s.batch("one").Owner; got != "" {
			s.Errorf("owner is %q, want none", got)
		}
	}},
	{"an owner keeps nothing after the end of its lease by Heartbeat", func(s *suite) {
		s.alive("a", "b")
		s.begin("a", "one", "p")
		s.gone("a")
		s.alive("a")
		s.counts("one", 0, 0, 1)
		s.same("taken", s.take("b", "p"), "one/0")
	}},
	{"a lease runs out", func(s *suite) {
		s.alive("b")
		s.beat("a", time.Second)
		s.begin("a", "one", "p")
		s.until("a's line is open", func() bool { return len(s.take("b", "p")) == 1 })
		s.claims("b", true)
		if err := s.Begin(s.Context(), batch("a", "two"), nil); !errors.Is(err, journal.ErrLapsed) {
			s.Errorf("Begin after the lease: %v, want ErrLapsed", err)
		}
	}},
	{"a heartbeat keeps the held lines", func(s *suite) {
		s.alive("b")
		s.beat("a", time.Second)
		s.begin("a", "one", "p")
		s.alive("a")
		s.beat("short", time.Second)
		s.until("another lease as long has run out", func() bool { return len(s.owners()) == 2 })
		s.same("taken", s.take("b", "p"))
		s.counts("one", 0, 1, 0)
	}},
	{"an owner that died learns of its death by Heartbeat", func(s *suite) {
		s.same("fresh", s.fresh("a"), "fresh")
		s.same("known", s.fresh("a"), "known")
		s.beat("a", time.Second)
		s.begin("a", "one", "p", "q", "r")
		s.until("a is taken for dead", func() bool { return s.batch("one").Open == 3 })
		s.same("another", s.fresh("b"), "fresh")
		s.same("by another", s.take("b", "p"), "one/0")
		if err := s.Hold(s.Context(), "a", "one", []int{1}); !errors.Is(err, journal.ErrLapsed) {
			s.Errorf("Hold without a lease: %v, want ErrLapsed", err)
		}
		s.same("back", s.fresh("a"), "fresh")
		s.same("again", s.fresh("a"), "known")
		s.ok(s.Hold(s.Context(), "a", "one", []int{0, 1, 1}))
		s.counts("one", 0, 2, 1)
		s.same("what is left", s.take("b", "p", "q", "r"), "one/2")
		s.ok(s.Deliver(s.Context(), "a", "one", []int{0, 1}))
		s.counts("one", 1, 2, 0)
		s.claims("a", true)
	}},
	{"an expired owner that asks first keeps everything", func(s *suite) {
		s.beat("a", time.Second)
		s.begin("a", "one", "p")
		s.until("the lease has run out", func() bool {
			_, err := s.TakeOver(s.Context(), "a", account, hashes("p"))
			return errors.Is(err, journal.ErrLapsed)
		})
		for range 2 {
			s.alive("a")
			if _, err := s.TakeOver(s.Context(), "a", account, hashes("q")); err != nil {
				s.Errorf("TakeOver after a heartbeat: %v", err)
			}
		}
		s.ok(s.Hold(s.Context(), "a", "one", []int{0}))
		s.counts("one", 0, 1, 0)
		s.alive("b")
		s.same("by another", s.take("b", "p"))
	}},
	{"a line is held again after the death of its owner", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p", "q")
		s.gone("a")
		s.alive("a")
		s.ok(s.Hold(s.Context(), "a", "one", []int{0}))
		s.claims("b", true)
		if ok, err := s.Abandon(s.Context(), "b", "one"); ok || err != nil {
			s.Errorf("Abandon = %v, %v, though a holds a line", ok, err)
		}
		s.ok(s.Release(s.Context(), "a", "one", []int{0}))
		s.same("taken", s.take("b", "p", "q"), "one/0", "one/1")
	}},
	{"a line of a batch that is being cancelled is not held again", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p")
		s.gone("a")
		s.claims("b", true)
		if ok, err := s.Abandon(s.Context(), "b", "one"); !ok || err != nil {
			s.Errorf("Abandon = %v, %v", ok, err)
		}
		s.alive("a")
		s.ok(s.Hold(s.Context(), "a", "one", []int{0}))
		s.counts("one", 0, 0, 1)
		s.advance("b", "one", journal.Step{State: journal.Ended})
		s.ok(s.Hold(s.Context(), "a", "one", []int{0}))
		s.counts("one", 0, 1, 0)
	}},
	{"missing and delivered lines are not held", func(s *suite) {
		s.alive("a")
		s.begin("a", "one", "p")
		s.ok(s.Deliver(s.Context(), "a", "one", []int{0}))
		for _, lines := range [][]int{nil, {0}, {7}, {-1}} {
			s.ok(s.Hold(s.Context(), "a", "one", lines))
			s.ok(s.Hold(s.Context(), "a", "no such", lines))
		}
		s.counts("one", 1, 0, 0)
	}},
	{"owners without a running lease are not listed", func(s *suite) {
		s.same("at first", s.owners())
		s.alive("b", "a")
		s.same("two", s.owners(), "a", "b")
		all, err := s.Owners(s.Context())
		s.ok(err)
		for _, o := range all {
			if o.Silent < 0 || o.Silent > time.Minute || o.Left < long-time.Minute || o.Left > long {
				s.Errorf("%s: silent for %v, %v left", o.Name, o.Silent, o.Left)
			}
		}
		s.gone("a")
		s.gone("stranger")
		s.same("one", s.owners(), "b")
	}},
	{"closing loses nothing", func(s *suite) {
		s.alive("a")
		s.running("a", "one", "p", "q", "r")
		s.ok(s.Release(s.Context(), "a", "one", []int{1}))
		s.ok(s.Deliver(s.Context(), "a", "one", []int{2}))
		s.gone("a")
		s.ok(s.Close())
		s.Store = s.another()
		s.counts("one", 1, 0, 2)
		s.alive("b")
		s.same("taken", s.take("b", "p", "q", "r"), "one/0", "one/1")
	}},
}

// fresh is the report of Heartbeat as a word.
func (s *suite) fresh(owner string) []string {
	s.Helper()
	if s.beat(owner, long) {
		return []string{"fresh"}
	}
	return []string{"known"}
}

func (s *suite) owners() []string {
	s.Helper()
	all, err := s.Owners(s.Context())
	s.ok(err)
	names := []string{}
	for _, o := range all {
		names = append(names, o.Name)
	}
	return names
}

// claims checks the result of Claim for batch "one".
func (s *suite) claims(owner string, want bool) {
	s.Helper()
	got, err := s.Claim(s.Context(), owner, "one")
	s.ok(err)
	if got != want {
		s.Errorf("Claim(%s, one) = %v, want %v", owner, got, want)
	}
}

// until waits for a condition. A test cannot set the clock, which is the journal's.
func (s *suite) until(what string, happened func() bool) {
	s.Helper()
	deadline := time.After(10 * time.Second)
	for !happened() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			s.Fatal("timed out before: ", what)
		}
	}
}
