package journaltest

import (
	"errors"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/autobatcher/autobatcher/journal"
)

// ignoreTimes ignores the times of batches, which differ in each run.
var ignoreTimes = cmpopts.IgnoreFields(journal.Batch{}, "Began", "Created", "Ended")

// lifeTests are about batches, from Begin to Forget.
var lifeTests = []test{
	{"a new journal is empty", func(s *suite) {
		s.same("batches", s.refs(journal.Filter{}))
	}},
	{"the key is random and the same for every process", func(s *suite) {
		first, err := s.Key(s.Context())
		s.ok(err)
		second, err := s.another().Key(s.Context())
		s.ok(err)
		if first != second || first == (journal.Hash{}) {
			s.Errorf("keys are %x and %x", first, second)
		}
	}},
	{"a batch is found as it was begun", func(s *suite) {
		s.alive("a")
		s.begin("a", "one", "p", "q")
		want := batch("a", "one")
		want.State, want.Lines, want.Held = journal.Uploading, 2, 2
		for _, store := range []journal.Store{s.Store, s.another()} {
			got, err := store.Batches(s.Context(), journal.Filter{})
			s.ok(err)
			if diff := cmp.Diff([]journal.Batch{want}, got, ignoreTimes); diff != "" {
				s.Errorf("(-want +got)\n%s", diff)
			}
		}
	}},
	{"a batch without lines or models", func(s *suite) {
		s.alive("a")
		s.ok(s.Begin(s.Context(), journal.Batch{Ref: "one", Owner: "a"}, nil))
		want := journal.Batch{Ref: "one", Owner: "a", State: journal.Uploading}
		if diff := cmp.Diff(want, s.batch("one"), ignoreTimes, cmpopts.EquateEmpty()); diff != "" {
			s.Errorf("(-want +got)\n%s", diff)
		}
	}},
	{"names are unique", func(s *suite) {
		s.alive("a")
		s.begin("a", "one", "p")
		if err := s.Begin(s.Context(), batch("a", "one"), lines("q", "r")); !errors.Is(err, journal.ErrExists) {
			s.Errorf("second Begin: %v, want ErrExists", err)
		}
		s.counts("one", 0, 1, 0)
	}},
	{"text comes back unchanged", func(s *suite) {
		s.alive("o'wner \U0001f916")
		want := batch("o'wner \U0001f916", `re"f\ %s`)
		want.Models = []string{"a,b", `c"d`, "é\n", ""}
		want.Traces = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 'x'"
		s.ok(s.Begin(s.Context(), want, []journal.Line{{CustomID: `x'y"z ü`, Fingerprint: hash("p")}}))
		s.gone(want.Owner)
		s.alive("b")
		taken, err := s.TakeOver(s.Context(), "b", account, hashes("p"))
		s.ok(err)
		want.State, want.Owner = journal.Uploading, ""
		all := []journal.Taken{{Batch: want, Lines: []journal.Line{{CustomID: `x'y"z ü`, Fingerprint: hash("p")}}}}
		if diff := cmp.Diff(all, taken, ignoreTimes); diff != "" {
			s.Errorf("(-want +got)\n%s", diff)
		}
	}},
	{"every step is kept, and empty fields change nothing", func(s *suite) {
		s.alive("a")
		s.begin("a", "one", "p")
		want := batch("a", "one")
		want.Lines, want.Held = 1, 1
		for _, step := range []journal.Step{
			{State: journal.Uploaded, InputFileID: "file-1"},
			{State: journal.Creating},
			{State: journal.Uploaded, InputFileID: "file-2"}, // the create failed; retry
			{State: journal.Creating},
			{State: journal.Running, BatchID: "batch-1"},
			{State: journal.Ended, Status: "completed", Cost: "0.0000012", Savings: "-3"},
			{State: journal.Ended}, // changes nothing
		} {
			s.advance("a", "one", step)
			want.State = step.State
			if step.InputFileID != "" {
				want.InputFileID = step.InputFileID
			}
			want.BatchID += step.BatchID
			want.Status += step.Status
			want.Cost += step.Cost
			want.Savings += step.Savings
			if diff := cmp.Diff(want, s.batch("one"), ignoreTimes); diff != "" {
				s.Errorf("after %v (-want +got)\n%s", step, diff)
			}
		}
	}},
	{"times are noted once", func(s *suite) {
		s.alive("a")
		s.begin("a", "one", "p")
		begun := s.batch("one")
		if begun.Began.IsZero() || !begun.Created.IsZero() || !begun.Ended.IsZero() {
			s.Errorf("after Begin: %v, %v, %v", begun.Began, begun.Created, begun.Ended)
		}
		s.advance("a", "one", journal.Step{State: journal.Running, BatchID: "batch-1"})
		s.advance("a", "one", journal.Step{State: journal.Ended, Status: "completed"})
		ended := s.batch("one")
		if ended.Created.Before(begun.Began) || ended.Ended.Before(ended.Created) || !ended.Began.Equal(begun.Began) {
			s.Errorf("after all: %v, %v, %v", ended.Began, ended.Created, ended.Ended)
		}
		s.advance("a", "one", journal.Step{State: journal.Running})
		s.advance("a", "one", journal.Step{State: journal.Ended, Status: "expired"})
		again := s.batch("one")
		if !again.Created.Equal(ended.Created) || !again.Ended.Equal(ended.Ended) {
			s.Errorf("repeated steps: %v, %v, want %v, %v", again.Created, again.Ended, ended.Created, ended.Ended)
		}
		if name, offset := again.Began.Zone(); name != "UTC" || offset != 0 {
			s.Errorf("times are in %s, want UTC", name)
		}
	}},
	{"only the owner advances", func(s *suite) {
		s.alive("a", "b")
		s.begin("a", "one", "p")
		if err := s.Advance(s.Context(), "b", "one", journal.Step{State: journal.Creating}); !errors.Is(err, journal.ErrNotOwner) {
			s.Errorf("Advance by another: %v, want ErrNotOwner", err)
		}
		if err := s.Discard(s.Context(), "b", "one"); !errors.Is(err, journal.ErrNotOwner) {
			s.Errorf("Discard by another: %v, want ErrNotOwner", err)
		}
		if err := s.Advance(s.Context(), "a", "two", journal.Step{State: journal.Creating}); !errors.Is(err, journal.ErrNoBatch) {
			s.Errorf("Advance of none: %v, want ErrNoBatch", err)
		}
		if err := s.Discard(s.Context(), "a", "two"); !errors.Is(err, journal.ErrNoBatch) {
			s.Errorf("Discard of none: %v, want ErrNoBatch", err)
		}
		if got := s.batch("one").State; got != journal.Uploading {
			s.Errorf("state is %q", got)
		}
	}},
	{"a discarded batch leaves nothing", func(s *suite) {
		s.alive("a", "b")
		s.begin("a", "one", "p")
		s.ok(s.Discard(s.Context(), "a", "one"))
		s.gone("a")
		s.same("batches", s.refs(journal.Filter{}))
		s.same("taken", s.take("b", "p"))
		s.alive("a")
		s.begin("a", "one", "q") // the name and the lines of the batch are free again
		s.counts("one", 0, 1, 0)
	}},
	{"filters", func(s *suite) {
		s.alive("a")
		s.begin("a", "fresh", "p")
		s.running("a", "running", "p")
		s.running("a", "left", "p", "q")
		s.advance("a", "left", journal.Step{State: journal.Ended})
		s.ok(s.Deliver(s.Context(), "a", "left", []int{0}))
		s.running("a", "done", "p")
		s.ok(s.Deliver(s.Context(), "a", "done", []int{0}))
		s.advance("a", "done", journal.Step{State: journal.Ended})
		other := batch("a", "other")
		other.Account = hash("another account")
		s.ok(s.Begin(s.Context(), other, lines("p")))

		s.same("all", s.refs(journal.Filter{}), "fresh", "running", "left", "done", "other")
		s.same("unfinished", s.refs(journal.Filter{Unfinished: true}), "fresh", "running", "left", "other")
		s.same("by ref", s.refs(journal.Filter{Ref: "left"}), "left")
		s.same("by account", s.refs(journal.Filter{Account: &other.Account}), "other")
		s.same("by all", s.refs(journal.Filter{Ref: "done", Account: &account, Unfinished: true}))
		s.same("none", s.refs(journal.Filter{Ref: "no such"}))
	}},
	{"ended batches are forgotten", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "running", "p")
		for _, ref := range []string{"held", "open", "done"} {
			s.running("a", ref, "p")
			s.advance("a", ref, journal.Step{State: journal.Ended})
		}
		s.ok(s.Release(s.Context(), "a", "open", []int{0}))
		s.ok(s.Deliver(s.Context(), "a", "done", []int{0}))

		s.forgets(0, long, long)
		s.forgets(2, 0, long)
		s.same("left", s.refs(journal.Filter{}), "running", "held")
		s.same("taken", s.take("b", "p"))
	}},
	{"old batches without a living owner are forgotten", func(s *suite) {
		s.alive("a", "b")
		s.running("a", "mine", "p")
		s.ok(s.Release(s.Context(), "a", "mine", []int{0}))
		for _, state := range []journal.State{journal.Uploading, journal.Creating, journal.Running, journal.Cancelling, journal.Ended} {
			s.begin("b", string(state), "q")
			s.advance("b", string(state), journal.Step{State: state})
		}
		s.begin("b", "held", "r")
		s.gone("b")
		s.same("taken", s.take("a", "r"), "held/0")
		s.forgets(0, long, long)
		s.forgets(5, long, 0)
		s.same("left", s.refs(journal.Filter{}), "mine", "held")
		s.same("taken", s.take("a", "q"))
	}},
}

// forgets checks how many batches Forget forgets.
func (s *suite) forgets(want int, ended, begun time.Duration) {
	s.Helper()
	n, err := s.Forget(s.Context(), ended, begun)
	s.ok(err)
	if n != want {
		s.Errorf("Forget(%v, %v) = %d, want %d", ended, begun, n, want)
	}
}
