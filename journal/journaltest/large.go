package journaltest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// largeTests are about batches of many lines. A backend may store large batches in a
// different way than small batches.
var largeTests = []test{
	{"lines of small and large batches are taken, the oldest first", func(s *suite) {
		s.alive("a", "b")
		s.begin("a", "small", "p", "q")
		s.begin("a", "large", many("p", 1000)...)
		s.begin("a", "later", "p", "r")
		s.gone("a")
		s.same("one", s.take("b", "p"), "small/0")
		s.same("more", s.take("b", "p", "p", "p"), "large/0", "large/1", "large/2")
		s.same("others", s.take("b", "q", "r"), "small/1", "later/1")
		s.counts("large", 0, 3, 997)
		s.same("held", s.held("b", "p"), "small/0", "large/0", "large/1", "large/2")
		if got := s.take("b", many("p", 1000)...); len(got) != 998 || got[997] != "later/0" {
			s.Errorf("took %d lines, want 998, up to later/0", len(got))
		}
	}},
	{"a few lines of a large batch", func(s *suite) {
		s.alive("a", "b", "c")
		s.running("a", "one", numbered(6_000)...)
		s.ok(s.Release(s.Context(), "a", "one", []int{3, 5_999, 3_000}))
		s.ok(s.Deliver(s.Context(), "a", "one", []int{0, 1, 2}))
		s.ok(s.SetResponse(s.Context(), "a", "one", 4, "resp4"))
		s.same("taken", s.take("b", "p0", "p3", "p4", "p3000", "no such"), "one/3", "one/3000")
		s.counts("one", 3, 5_996, 1)
		s.same("held", s.responses(s.Held(s.Context(), "a", account, hashes("p4", "p3"))), "resp4")
		s.ok(s.Hold(s.Context(), "c", "one", []int{5_999, 3_000}))
		s.same("held by c", s.held("c", "p3000", "p5999"), "one/5999")
		s.gone("a")
		s.gone("b")
		if got := len(s.take("c", numbered(6_000)...)); got != 5_996 {
			s.Errorf("took %d lines, want 5996", got)
		}
		s.counts("one", 3, 5_997, 0)
	}},
	{"a large batch that was delivered", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", numbered(1000)...)
		all := make([]int, 1000)
		for n := range all {
			all[n] = n
		}
		s.ok(s.Release(s.Context(), "a", "one", all[:10]))
		s.ok(s.Deliver(s.Context(), "a", "one", all[5:]))
		s.counts("one", 995, 0, 5)
		s.same("taken", s.take("b", numbered(1000)...), "one/0", "one/1", "one/2", "one/3", "one/4")
		s.ok(s.Deliver(s.Context(), "b", "one", all))
		s.counts("one", 1000, 0, 0)
		s.gone("a")
		s.same("taken", s.take("b", numbered(1000)...))
	}},
	{"thousands of fingerprints in reverse order", func(s *suite) {
		const n = 6_000
		s.alive("a", "b")
		s.begin("a", "one", numbered(n)...)
		s.gone("a")
		asked := numbered(n)
		slices.Reverse(asked)
		got := s.take("b", asked...)
		if len(got) != n || got[0] != "one/0" || got[n-1] != fmt.Sprint("one/", n-1) {
			s.Errorf("took %d lines, want %d in order", len(got), n)
		}
		if got := len(s.held("b", asked...)); got != n {
			s.Errorf("holds %d lines, want %d", got, n)
		}
	}},
	{"large batches are deleted in pages", func(s *suite) {
		s.alive("a", "b")
		for _, ref := range []string{"forgotten", "discarded", "kept"} {
			s.running("a", ref, numbered(6_000)...)
		}
		s.advance("a", "forgotten", journal.Step{State: journal.Ended})
		s.advance("a", "kept", journal.Step{State: journal.Ended})
		s.ok(s.Release(s.Context(), "a", "forgotten", upTo(6_000)))
		s.ok(s.Discard(s.Context(), "a", "discarded"))
		s.forgets(1, 0, long)
		s.same("left", s.refs(journal.Filter{}), "kept")
		s.same("taken", s.take("b", "p0", "p5999"))
		s.begin("a", "forgotten", "q") // the name is free again
		s.counts("kept", 0, 6_000, 0)
	}},
	{"a deletion that was interrupted is continued", func(s *suite) {
		s.alive("a", "b")
		for i := range 3 {
			ref := fmt.Sprint("batch", i)
			s.running("a", ref, numbered(6_000)...)
			s.advance("a", ref, journal.Step{State: journal.Ended})
			s.ok(s.Release(s.Context(), "a", ref, upTo(6_000)))
		}
		for wait := time.Millisecond; len(s.refs(journal.Filter{})) > 0; wait *= 2 {
			ctx, cancel := context.WithTimeout(s.Context(), wait)
			_, err := s.Forget(ctx, 0, long)
			cancel()
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				s.Fatal(err)
			}
			left := s.refs(journal.Filter{})
			for _, name := range s.take("b", "p7", "p7", "p7") {
				if ref := name[:len(name)-len("/7")]; !slices.Contains(left, ref) {
					s.Errorf("%s was taken of a batch that is being deleted", name)
				}
				s.ok(s.Release(s.Context(), "b", name[:len(name)-len("/7")], []int{7}))
			}
		}
		_, err := s.Forget(s.Context(), 0, long)
		s.ok(err)
		s.begin("a", "batch0", "q")
		s.counts("batch0", 0, 1, 0)
	}},
}

// many repeats a fingerprint n times.
func many(fingerprint string, n int) []string { return slices.Repeat([]string{fingerprint}, n) }

// numbered are the fingerprints p0 to pn-1.
func numbered(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprint("p", i)
	}
	return all
}

// upTo are the numbers below n.
func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}
