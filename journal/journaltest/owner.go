package journaltest

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/journal"
)

// ownerTests are about the death of owners, and about finding the lines and batches
// of dead and living owners.
var ownerTests = []test{
	{"an owner that returns after its death holds nothing", func(s *suite) {
		s.alive("b")
		for life := range 3 {
			s.beat("a", long)
			s.running("a", fmt.Sprint("batch", life), "p")
			s.gone("a")
		}
		s.same("returned", s.fresh("a"), "fresh")
		s.same("held", s.held("a", "p"))
		for life := range 3 {
			s.counts(fmt.Sprint("batch", life), 0, 0, 1)
		}
		s.same("taken", s.take("b", "p", "p", "p"), "batch0/0", "batch1/0", "batch2/0")
		s.ok(s.Release(s.Context(), "a", "batch0", []int{0}))
		s.ok(s.Deliver(s.Context(), "a", "batch1", []int{0}))
		s.same("still held", s.held("b", "p"), "batch0/0", "batch1/0", "batch2/0")
	}},
	{"an owner that returns before its death keeps everything", func(s *suite) {
		s.beat("a", time.Second)
		s.running("a", "one", "p")
		s.until("the lease has run out", func() bool { return s.refused("a") })
		s.same("held", s.held("a", "p"), "one/0")
		s.same("returned", s.fresh("a"), "known")
		s.same("held", s.held("a", "p"), "one/0")
		s.alive("b")
		s.same("taken", s.take("b", "p"))
		s.advance("a", "one", journal.Step{State: journal.Ended})
	}},
	{"an owner does not removeDead itself", func(s *suite) {
		s.beat("a", time.Second)
		s.running("a", "one", "p", "q")
		s.until("the lease has run out", func() bool { return s.refused("a") })
		s.ok(s.Release(s.Context(), "a", "one", []int{1}))
		s.ok(s.Deliver(s.Context(), "a", "one", []int{0}))
		s.advance("a", "one", journal.Step{State: journal.Ended})
		s.same("returned", s.fresh("a"), "known")
		s.counts("one", 1, 0, 1)
	}},
	{"held lines are found, all of each fingerprint", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p", "q", "p", "r")
		s.running("a", "two", "p")
		s.running("b", "three", "p")
		other := batch("a", "four")
		other.Account = hash("another account")
		s.ok(s.Begin(s.Context(), other, lines("p")))
		s.ok(s.Release(s.Context(), "a", "one", []int{1}))
		s.ok(s.Deliver(s.Context(), "a", "one", []int{3}))
		s.same("a's", s.held("a", "r", "p", "q", "p"), "one/0", "one/2", "two/0")
		s.same("b's", s.held("b", "p", "q", "r"), "three/0")
		s.same("none", s.held("a"))
		s.same("a stranger's", s.held("stranger", "p"))
		s.same("taken", s.take("b", "q"), "one/1")
		s.same("b's", s.held("b", "p", "q"), "one/1", "three/0")
	}},
	{"held lines come with their batch", func(s *suite) {
		s.alive("a")
		s.running("a", "one", "p", "q")
		held, err := s.Held(s.Context(), "a", account, hashes("q"))
		s.ok(err)
		want := batch("a", "one")
		want.State, want.BatchID = journal.Running, "batch-one"
		all := []journal.Taken{{Batch: want, Lines: []journal.Line{{N: 1, CustomID: customID(1), Fingerprint: hash("q")}}}}
		if diff := cmp.Diff(all, held, ignoreTimes); diff != "" {
			s.Errorf("(-want +got)\n%s", diff)
		}
	}},
	{"lines of a batch that is being cancelled stay held", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p")
		s.advance("a", "one", journal.Step{State: journal.Cancelling})
		s.same("held", s.held("a", "p"), "one/0")
		s.same("taken", s.take("b", "p"))
	}},
	{"a response id is returned with its line", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p", "q", "r")
		s.ok(s.Release(s.Context(), "a", "one", []int{2}))
		for n := range 3 {
			s.ok(s.SetResponse(s.Context(), "a", "one", n, fmt.Sprint("resp", n)))
		}
		s.ok(s.SetResponse(s.Context(), "b", "one", 0, "another owner's"))
		s.same("held", s.responses(s.Held(s.Context(), "a", account, hashes("p", "q"))), "resp0", "resp1")
		s.ok(s.SetResponse(s.Context(), "a", "one", 1, ""))
		s.gone("a")
		s.same("taken", s.responses(s.TakeOver(s.Context(), "b", account, hashes("p", "q", "r"))), "resp0", "", "")
		s.ok(s.SetResponse(s.Context(), "b", "one", 2, "resp9"))
		s.same("held", s.responses(s.Held(s.Context(), "b", account, hashes("r"))), "resp9")
	}},
	{"a response of no line", func(s *suite) {
		s.alive("a")
		s.running("a", "one", "p")
		for _, n := range []int{-1, 7} {
			s.ok(s.SetResponse(s.Context(), "a", "one", n, "resp"))
		}
		s.ok(s.SetResponse(s.Context(), "a", "no such", 0, "resp"))
		s.ok(s.SetResponse(s.Context(), "stranger", "one", 0, "resp"))
		s.same("held", s.responses(s.Held(s.Context(), "a", account, hashes("p"))), "")
	}},
	{"orphans are the batches that no living owner runs", func(s *suite) {
		s.alive("a", "b", "c")
		s.running("a", "one", "p", "q")
		s.begin("b", "two", "p")
		s.running("b", "ended", "p")
		s.advance("b", "ended", journal.Step{State: journal.Ended})
		other := batch("b", "other")
		other.Account = hash("another account")
		s.ok(s.Begin(s.Context(), other, lines("p")))
		s.same("none", s.refs(journal.Filter{Orphans: true}))
		s.gone("b")
		s.same("b's", s.refs(journal.Filter{Orphans: true}), "two", "other")
		s.same("by account", s.refs(journal.Filter{Orphans: true, Account: &account}), "two")
		s.same("by ref", s.refs(journal.Filter{Orphans: true, Ref: "other"}), "other")
		s.same("by another's ref", s.refs(journal.Filter{Orphans: true, Ref: "one"}))
		s.same("unfinished", s.refs(journal.Filter{Orphans: true, Unfinished: true}), "two", "other")
		s.gone("a")
		ok, err := s.Claim(s.Context(), "c", "two")
		if s.ok(err); !ok {
			s.Error("the orphan was not claimed")
		}
		s.same("rest", s.refs(journal.Filter{Orphans: true}), "one", "other")
		all, err := s.Batches(s.Context(), journal.Filter{Orphans: true, Ref: "one"})
		s.ok(err)
		want := batch("", "one")
		want.State, want.BatchID, want.Lines = journal.Running, "batch-one", 2
		if diff := cmp.Diff([]journal.Batch{want}, all, ignoreTimes); diff != "" {
			s.Errorf("(-want +got)\n%s", diff)
		}
	}},
	{"the lease runs out: orphans and counts show the death", func(s *suite) {
		s.beat("a", time.Second)
		s.running("a", "one", "p")
		s.until("the batch is an orphan", func() bool { return len(s.refs(journal.Filter{Orphans: true})) == 1 })
		s.counts("one", 0, 0, 1)
		s.same("returned", s.fresh("a"), "fresh")
	}},
	{"a heartbeat and a take-over at the same moment", func(s *suite) {
		s.alive("b")
		heart := s.another()
		for round := range 12 {
			ref := fmt.Sprint("batch", round)
			s.dying("a", ref)
			var expired bool
			var taken []string
			s.both(
				func() (err error) { expired, err = heart.Heartbeat(s.Context(), "a", long); return err },
				func() error {
					all, err := s.TakeOver(s.Context(), "b", account, hashes(ref))
					taken = names(all)
					return err
				})
			if expired != (len(taken) == 1) {
				s.Errorf("round %d: expired is %v, and %q was taken", round, expired, taken)
			}
			s.gone("a")
		}
	}},
	{"a Begin by an owner that is being buried", func(s *suite) {
		s.alive("b")
		begins := s.another()
		for round := range 12 {
			ref := fmt.Sprint("late", round)
			s.dying("a", fmt.Sprint("early", round))
			var began error
			s.both(
				func() error { began = begins.Begin(s.Context(), batch("a", ref), lines(ref)); return nil },
				func() error { _, err := s.TakeOver(s.Context(), "b", account, hashes(ref)); return err })
			found := len(s.refs(journal.Filter{Ref: ref}))
			switch {
			case began == nil && found == 1, errors.Is(began, journal.ErrLapsed) && found == 0:
			default:
				s.Errorf("round %d: Begin: %v, and the journal has %d batches", round, began, found)
			}
			s.gone("a")
		}
	}},
	{"an abandon and a take-over of a dead owner's lines at the same moment", func(s *suite) {
		s.alive("a", "b")
		other := s.another()
		for round := range 12 {
			ref := fmt.Sprint("batch", round)
			s.alive("dead")
			s.running("dead", ref, ref)
			s.gone("dead")
			if ok, err := s.Claim(s.Context(), "a", ref); !ok || err != nil {
				s.Fatalf("Claim = %v, %v", ok, err)
			}
			var abandoned bool
			var taken []string
			s.both(
				func() (err error) { abandoned, err = other.Abandon(s.Context(), "a", ref); return err },
				func() error {
					all, err := s.TakeOver(s.Context(), "b", account, hashes(ref))
					taken = names(all)
					return err
				})
			if abandoned == (len(taken) == 1) {
				s.Errorf("round %d: abandoned is %v, and %q was taken", round, abandoned, taken)
			}
		}
	}},
	{"a Forget and a take-over at the same moment", func(s *suite) {
		s.alive("a", "b")
		other := s.another()
		for round := range 12 {
			ref := fmt.Sprint("batch", round)
			s.running("a", ref, ref)
			s.advance("a", ref, journal.Step{State: journal.Ended})
			s.ok(s.Release(s.Context(), "a", ref, []int{0}))
			var taken []string
			s.both(
				func() error { _, err := other.Forget(s.Context(), 0, long); return err },
				func() error {
					all, err := s.TakeOver(s.Context(), "b", account, hashes(ref))
					taken = names(all)
					return err
				})
			if got := len(s.refs(journal.Filter{Ref: ref})); got != len(taken) {
				s.Errorf("round %d: %q was taken, and the journal has %d batches", round, taken, got)
			}
		}
	}},
}

// held lists the lines held by the owner, as "ref/n".
func (s *suite) held(owner string, fingerprints ...string) []string {
	s.Helper()
	held, err := s.Held(s.Context(), owner, account, hashes(fingerprints...))
	s.ok(err)
	return names(held)
}

// responses lists the response ids of lines.
func (s *suite) responses(all []journal.Taken, err error) (ids []string) {
	s.Helper()
	s.ok(err)
	for _, t := range all {
		for _, l := range t.Lines {
			ids = append(ids, l.ResponseID)
		}
	}
	return ids
}

// refused reports whether the owner has no lease.
func (s *suite) refused(owner string) bool {
	s.Helper()
	_, err := s.TakeOver(s.Context(), owner, account, nil)
	if err != nil && !errors.Is(err, journal.ErrLapsed) {
		s.Fatal(err)
	}
	return err != nil
}

// dying begins a batch with the line ref, and waits for the end of the owner's lease.
// No request removes the owner.
func (s *suite) dying(owner, ref string) {
	s.Helper()
	for lease := 50 * time.Millisecond; ; lease *= 2 { // a slow disk may need more time
		s.beat(owner, lease)
		err := s.Begin(s.Context(), batch(owner, ref), lines(ref))
		if err == nil {
			break
		}
		if !errors.Is(err, journal.ErrLapsed) {
			s.Fatal(err)
		}
	}
	s.until("the lease has run out", func() bool { return s.refused(owner) })
}

// both does two things at the same moment.
func (s *suite) both(first, second func() error) {
	s.Helper()
	var wg sync.WaitGroup
	start := make(chan struct{})
	for _, f := range []func() error{first, second} {
		wg.Go(func() {
			<-start
			if err := f(); err != nil {
				s.Error(err)
			}
		})
	}
	close(start)
	wg.Wait()
}
