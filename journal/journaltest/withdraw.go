package journaltest

import (
	"fmt"
	"slices"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/journal"
)

// withdrawTests are about lines of any holder, which any process finds and withdraws.
var withdrawTests = []test{
	{"lines of every holder are found, and withdrawn", func(s *suite) {
		s.everyHolder()
		want := []string{"one/0", "one/2", "two/0", "three/0"}
		s.same("found", s.find("p"), want...)
		s.same("found again, asked twice", s.find("p", "p", "no such"), want...)
		s.same("held by a", s.held("a", "p"), "one/0")
		s.withdraws(4, "p", "p", "no such")
		s.same("found after that", s.find("p"))
		s.same("the rest", s.find("p", "q"), "one/1", "three/1")
		s.counts("one", 3, 1, 0)
		s.counts("two", 1, 0, 0)
		s.counts("three", 1, 0, 1)
		s.withdraws(0, "p")
	}},
	{"lines of another account are neither found nor withdrawn", func(s *suite) {
		s.alive("a")
		other := batch("a", "one")
		other.Account = hash("another account")
		s.ok(s.Begin(s.Context(), other, lines("p")))
		s.same("found", s.find("p"))
		s.withdraws(0, "p")
		s.counts("one", 0, 1, 0)
	}},
	{"lines are found and withdrawn in every state", func(s *suite) {
		s.alive("a")
		var want []string
		for _, state := range []journal.State{
			journal.Uploading, journal.Uploaded, journal.Creating, journal.Running, journal.Cancelling, journal.Ended,
		} {
			s.begin("a", string(state), "p")
			s.advance("a", string(state), journal.Step{State: state})
			want = append(want, string(state)+"/0")
		}
		s.same("found", s.find("p"), want...)
		s.withdraws(len(want), "p")
		for _, b := range want {
			s.counts(b[:len(b)-len("/0")], 1, 0, 0)
		}
	}},
	{"no fingerprints find nothing", func(s *suite) {
		s.alive("a")
		s.running("a", "one", "p")
		s.same("found", s.find())
		s.withdraws(0)
		s.counts("one", 0, 1, 0)
	}},
	{"nothing is found in an empty journal, nor of a deleted batch", func(s *suite) {
		s.same("found", s.find("p"))
		s.withdraws(0, "p")
		s.alive("a")
		s.running("a", "forgotten", "p")
		s.advance("a", "forgotten", journal.Step{State: journal.Ended})
		s.ok(s.Release(s.Context(), "a", "forgotten", []int{0}))
		s.begin("a", "discarded", "p")
		s.ok(s.Discard(s.Context(), "a", "discarded"))
		s.forgets(1, 0, long)
		s.same("found", s.find("p"))
		s.withdraws(0, "p")
	}},
	{"found lines come with their batch", func(s *suite) {
		s.alive("a")
		s.running("a", "one", "p", "q")
		s.ok(s.SetResponse(s.Context(), "a", "one", 1, "resp1"))
		want := batch("a", "one")
		want.State, want.BatchID = journal.Running, "batch-one"
		all := []journal.Taken{{Batch: want, Lines: []journal.Line{
			{N: 1, CustomID: customID(1), Fingerprint: hash("q"), ResponseID: "resp1"},
		}}}
		for _, owner := range []string{"a", ""} {
			all[0].Batch.Owner = owner
			found, err := s.another().Find(s.Context(), account, hashes("q"))
			s.ok(err)
			if diff := cmp.Diff(all, found, ignoreTimes); diff != "" {
				s.Errorf("run by %q (-want +got)\n%s", owner, diff)
			}
			s.gone("a")
		}
	}},
	{"no owner dies of Find and Withdraw", func(s *suite) {
		s.alive("a")
		s.running("a", "one", "p", "q")
		s.dying("a", "r")
		found, err := s.Find(s.Context(), account, hashes("p"))
		s.ok(err)
		if len(found) != 1 || found[0].Batch.Owner != "a" {
			s.Errorf("found %+v, want the line, of a batch run by the expired owner", found)
		}
		s.withdraws(1, "q")
		s.same("returned", s.fresh("a"), "known")
		s.same("held", s.held("a", "p", "q", "r"), "one/0", "r/0")
	}},
	{"a withdrawn line is a delivered line for its holder", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p", "q")
		s.withdraws(1, "p")
		for _, owner := range []string{"a", "b"} {
			s.ok(s.SetResponse(s.Context(), owner, "one", 0, "resp"))
			s.ok(s.Release(s.Context(), owner, "one", []int{0}))
			s.ok(s.Hold(s.Context(), owner, "one", []int{0}))
			s.ok(s.Deliver(s.Context(), owner, "one", []int{0}))
			s.same("taken", s.take(owner, "p"))
			s.same("held", s.held(owner, "p"))
		}
		s.counts("one", 1, 1, 0)
		s.ok(s.Deliver(s.Context(), "a", "one", []int{0, 1}))
		s.counts("one", 2, 0, 0)
	}},
	{"a batch whose held lines are withdrawn is abandoned and forgotten", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p", "q")
		s.ok(s.Release(s.Context(), "a", "one", []int{0}))
		s.same("taken", s.take("b", "p"), "one/0")
		s.withdraws(1, "q")
		s.abandons(false)
		s.withdraws(1, "p")
		s.abandons(true)
		s.advance("a", "one", journal.Step{State: journal.Ended})
		s.same("unfinished", s.refs(journal.Filter{Unfinished: true}))
		s.forgets(1, 0, long)
	}},
	{"lines of small and large batches", func(s *suite) {
		s.alive("a", "b")
		s.begin("a", "small", "p", "q")
		s.begin("a", "large", append(many("p", 1000), numbered(1000)...)...)
		s.begin("b", "later", "p", "p7")
		s.ok(s.Release(s.Context(), "a", "large", upTo(10)))
		s.ok(s.Deliver(s.Context(), "a", "large", []int{3}))
		s.same("few", s.find("p7", "q", "p999"), "small/1", "large/1007", "large/1999", "later/1")
		if got := s.find("p"); len(got) != 1001 || got[0] != "small/0" || got[1] != "large/0" || got[1000] != "later/0" {
			s.Errorf("found %d lines, want 1001 from small/0 to later/0", len(got))
		}
		s.withdraws(3, "p7", "q")
		s.counts("large", 2, 1989, 9)
		s.withdraws(1001, "p")
		s.counts("large", 1001, 999, 0)
		s.same("found", s.find("p", "p7", "q"))
		s.withdraws(999, numbered(1000)...)
		s.counts("large", 2000, 0, 0)
		s.same("found", s.find(numbered(1000)...))
		s.counts("small", 2, 0, 0)
		s.counts("later", 2, 0, 0)
	}},
	{"thousands of fingerprints are withdrawn at once", func(s *suite) {
		const n = 6_000
		s.alive("a", "b")
		s.begin("a", "one", numbered(n)...)
		s.begin("b", "two", numbered(n)...)
		asked := numbered(n)
		slices.Reverse(asked)
		if got := s.find(asked...); len(got) != 2*n || got[0] != "one/0" || got[2*n-1] != fmt.Sprint("two/", n-1) {
			s.Errorf("found %d lines, want %d in order", len(got), 2*n)
		}
		s.withdraws(2*n, asked...)
		s.counts("one", n, 0, 0)
		s.counts("two", n, 0, 0)
	}},
}

// everyHolder makes lines with the fingerprint p that are held by a living owner,
// released, delivered, and held by a dead owner.
func (s *suite) everyHolder() {
	s.Helper()
	s.alive("a", "b", "dead")
	s.running("a", "one", "p", "q", "p", "p")
	s.running("b", "two", "p")
	s.begin("dead", "three", "p", "q")
	s.ok(s.Release(s.Context(), "a", "one", []int{2}))
	s.ok(s.Deliver(s.Context(), "a", "one", []int{3}))
	s.gone("dead")
}

// find finds lines, and returns their names as "ref/n".
func (s *suite) find(fingerprints ...string) []string {
	s.Helper()
	found, err := s.Find(s.Context(), account, hashes(fingerprints...))
	s.ok(err)
	return names(found)
}

// withdraws checks how many lines Withdraw withdraws.
func (s *suite) withdraws(want int, fingerprints ...string) {
	s.Helper()
	n, err := s.Withdraw(s.Context(), account, hashes(fingerprints...))
	s.ok(err)
	if n != want {
		s.Errorf("Withdraw(%d fingerprints) = %d, want %d", len(fingerprints), n, want)
	}
}
