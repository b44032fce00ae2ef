package journaltest

import (
	"fmt"
	"slices"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/journal"
)

// holdTests are about lines: held, open, delivered.
var holdTests = []test{
	{"held lines are not taken", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p")
		s.same("by another", s.take("b", "p"))
		s.same("by the same", s.take("a", "p"))
		s.counts("one", 0, 1, 0)
	}},
	{"released lines are taken once", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p", "q")
		s.ok(s.Release(s.Context(), "a", "one", []int{1}))
		s.counts("one", 0, 1, 1)
		s.same("first", s.take("b", "p", "q"), "one/1")
		s.same("second", s.take("b", "p", "q"))
		s.counts("one", 0, 2, 0)
	}},
	{"an owner takes its own lines again", func(s *suite) {
		s.alive("a")
		s.running("a", "one", "p")
		s.ok(s.Release(s.Context(), "a", "one", []int{0}))
		s.same("taken", s.take("a", "p"), "one/0")
	}},
	{"taken lines come with their batch", func(s *suite) {
		s.alive("a", "b")
		s.begin("a", "one", "p", "q")
		s.advance("a", "one", journal.Step{State: journal.Uploaded, InputFileID: "file-1"})
		s.advance("a", "one", journal.Step{State: journal.Running, BatchID: "batch-1"})
		s.ok(s.Release(s.Context(), "a", "one", []int{1}))
		taken, err := s.TakeOver(s.Context(), "b", account, hashes("q"))
		s.ok(err)
		want := batch("a", "one")
		want.State, want.InputFileID, want.BatchID = journal.Running, "file-1", "batch-1"
		all := []journal.Taken{{Batch: want, Lines: []journal.Line{{N: 1, CustomID: customID(1), Fingerprint: hash("q")}}}}
		if diff := cmp.Diff(all, taken, ignoreTimes); diff != "" {
			s.Errorf("(-want +got)\n%s", diff)
		}
		if taken[0].Batch.Began.IsZero() || taken[0].Batch.Created.IsZero() {
			s.Error("without its times")
		}
	}},
	{"equal fingerprints take a line each, the oldest first", func(s *suite) {
		s.alive("a", "b", "c")
		s.running("a", "one", "p", "q", "p")
		s.running("a", "two", "p", "p")
		s.ok(s.Release(s.Context(), "a", "one", []int{0, 1, 2}))
		s.ok(s.Release(s.Context(), "a", "two", []int{0, 1}))
		s.same("two", s.take("b", "p", "p"), "one/0", "one/2")
		s.same("more than there are", s.take("c", "p", "p", "p", "p"), "two/0", "two/1")
		s.same("the rest", s.take("c", "p", "q"), "one/1")
	}},
	{"lines of another account are not taken", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p")
		s.ok(s.Release(s.Context(), "a", "one", []int{0}))
		taken, err := s.TakeOver(s.Context(), "b", hash("another account"), hashes("p"))
		s.ok(err)
		s.same("taken", names(taken))
	}},
	{"lines are taken in every state except Cancelling", func(s *suite) {
		s.alive("a", "b")
		for _, state := range []journal.State{
			journal.Uploading, journal.Uploaded, journal.Creating, journal.Running, journal.Cancelling, journal.Ended,
		} {
			s.begin("a", string(state), "p")
			s.advance("a", string(state), journal.Step{State: state})
			s.ok(s.Release(s.Context(), "a", string(state), []int{0}))
		}
		s.same("taken", s.take("b", "p", "p", "p", "p", "p", "p"),
			"uploading/0", "uploaded/0", "creating/0", "running/0", "ended/0")
	}},
	{"no fingerprints take nothing", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p")
		s.ok(s.Release(s.Context(), "a", "one", []int{0}))
		s.same("taken", s.take("b"))
	}},
	{"delivered lines are never taken", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p", "p", "p")
		s.ok(s.Deliver(s.Context(), "a", "one", []int{0, 2}))
		s.counts("one", 2, 1, 0)
		s.ok(s.Release(s.Context(), "a", "one", []int{0, 1, 2}))
		s.counts("one", 2, 0, 1)
		s.gone("a")
		s.same("taken", s.take("b", "p", "p", "p"), "one/1")
	}},
	{"delivering again changes nothing", func(s *suite) {
		s.alive("a")
		s.running("a", "one", "p", "q")
		for range 2 {
			s.ok(s.Deliver(s.Context(), "a", "one", []int{1, 1}))
			s.counts("one", 1, 1, 0)
		}
	}},
	{"an open line may be delivered, a line of another owner may not", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p", "q")
		s.ok(s.Release(s.Context(), "a", "one", []int{0, 1}))
		s.same("taken", s.take("b", "q"), "one/1")
		s.ok(s.Deliver(s.Context(), "a", "one", []int{0, 1}))
		s.counts("one", 1, 1, 0)
		s.ok(s.Release(s.Context(), "a", "one", []int{1}))
		s.counts("one", 1, 1, 0)
		s.ok(s.Deliver(s.Context(), "b", "one", []int{1}))
		s.counts("one", 2, 0, 0)
	}},
	{"missing lines", func(s *suite) {
		s.alive("a")
		s.running("a", "one", "p")
		for _, lines := range [][]int{nil, {}, {7}, {-1}} {
			s.ok(s.Release(s.Context(), "a", "one", lines))
			s.ok(s.Deliver(s.Context(), "a", "one", lines))
		}
		s.ok(s.Release(s.Context(), "a", "no such", []int{0}))
		s.ok(s.Deliver(s.Context(), "a", "no such", []int{0}))
		s.ok(s.Deliver(s.Context(), "no such", "one", []int{0}))
		s.counts("one", 0, 1, 0)
	}},
	{"a batch with a held line is not abandoned", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p", "q")
		s.ok(s.Release(s.Context(), "a", "one", []int{0, 1}))
		s.same("taken", s.take("b", "q"), "one/1")
		s.abandons(false)
		s.ok(s.Release(s.Context(), "b", "one", []int{1}))
		s.abandons(true)
		s.abandons(false) // abandoned already
		if got := s.batch("one").State; got != journal.Cancelling {
			s.Errorf("state is %q", got)
		}
	}},
	{"lines of an abandoned batch are taken only after its end", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "one", "p")
		s.ok(s.Release(s.Context(), "a", "one", []int{0}))
		s.abandons(true)
		s.same("while cancelling", s.take("b", "p"))
		s.advance("a", "one", journal.Step{State: journal.Ended, Status: "cancelled"})
		s.same("after", s.take("b", "p"), "one/0")
	}},
	{"only a running batch is abandoned", func(s *suite) {
		s.alive("a", "b")
		s.begin("a", "one", "p")
		s.ok(s.Release(s.Context(), "a", "one", []int{0}))
		s.abandons(false)
		if _, err := s.Abandon(s.Context(), "b", "one"); err == nil {
			s.Error("another owner abandoned it")
		}
		if _, err := s.Abandon(s.Context(), "a", "two"); err == nil {
			s.Error("abandoned what is not there")
		}
	}},
	{"many lines at once", func(s *suite) {
		const n = 5000
		s.alive("a", "b")
		fingerprints, numbers := make([]string, n), make([]int, n)
		for i := range n {
			fingerprints[i], numbers[i] = fmt.Sprint("p", i), i
		}
		s.running("a", "one", fingerprints...)
		s.ok(s.Release(s.Context(), "a", "one", numbers[n/2:]))
		s.counts("one", 0, n/2, n/2)
		if got := len(s.take("b", fingerprints...)); got != n/2 {
			s.Errorf("took %d, want %d", got, n/2)
		}
		slices.Reverse(numbers)
		s.ok(s.Deliver(s.Context(), "a", "one", numbers))
		s.counts("one", n/2, n/2, 0)
		s.ok(s.Deliver(s.Context(), "b", "one", numbers))
		s.counts("one", n, 0, 0)
	}},
}

// abandons checks the result of Abandon of batch "one" by owner a.
func (s *suite) abandons(want bool) {
	s.Helper()
	got, err := s.Abandon(s.Context(), "a", "one")
	s.ok(err)
	if got != want {
		s.Errorf("Abandon = %v, want %v", got, want)
	}
}
