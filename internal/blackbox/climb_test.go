package blackbox_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/journal"
)

// A slowClimb is the Observer of a call whose move to the flex tier takes until the batch
// has answered. The first Hold is that of the call in the batch.
type slowClimb struct {
	holder
	climb func()
}

// Hold implements caller.Observer.
func (o *slowClimb) Hold() (release func()) {
	if o.holds.Load() == 1 {
		o.climb()
	}
	return o.holder.Hold()
}

// A batch answers a call at the moment when the call moves to the flex tier: the caller gets
// the answer of the batch, and a second answer is not paid for.
func TestTheBatchAnswersACallThatClimbs(t *testing.T) {
	const at = 2*time.Hour - time.Minute - 15*time.Minute // when calls with a deadline of two hours climb
	for _, path := range []string{"/chat/completions", "/responses"} {
		o := autobatcher.Options{Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute}
		openAI(batchtest.Options{Turnaround: 110 * time.Minute, FlexDelay: 10 * time.Minute}, o).run(t, path, func(s *scene) {
			first := s.send(path, bodyTo(path, "b"))
			climbing := false
			observer := &slowClimb{climb: func() {
				climbing = s.elapsed() >= at
				first.within(time.Hour) // the answer of the same batch
				synctest.Wait()
			}}
			ctx := caller.Observe(s.Context(), observer)
			call := &pending{s: s, leave: func() {}, done: make(chan reply, 1)}
			go func() { call.done <- s.do(s.request(ctx, path, bodyTo(path, "a"), with("Autobatcher-Deadline", "2h"))) }()
			r := call.within(3 * time.Hour)
			if r.err != nil || r.status != 200 || r.header.Get("Autobatcher-Mode") != "" || r.header.Get("Autobatcher-Batch-Id") != s.srv.Batches()[0].ID {
				s.Errorf("%d %v %v, want the answer of the batch: %s", r.status, r.err, r.header, r.body)
			}
			s.until(24 * time.Hour)
			if !climbing {
				s.Error("the call has not climbed")
			}
			if h, r := observer.holds.Load(), observer.releases.Load(); h != 2 || r != 2 {
				s.Errorf("the body was held %d times and released %d times", h, r)
			}
			if diff := cmp.Diff(map[batchtest.Tier]int{"batch": 2}, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}

// A call that has climbed, and whose flex call fails, waits for its batch again. A flex call
// that may be paid for is not sent again.
func TestAFailedClimbReturnsToTheBatch(t *testing.T) {
	fails := func(f batchtest.Fault) func(*scene) {
		return func(s *scene) { s.srv.Keep(batchtest.OpRealtime, f) }
	}
	for _, tt := range []struct {
		name   string
		before func(*scene)
		flex   int // calls that were paid for
	}{
		{"no room", fails(batchtest.FlexUnavailable()), 0},
		{"an error", fails(batchtest.Status(500, nil, `{"error":{"message":"x","type":"server_error"}}`)), 0},
		{"a refusal", fails(batchtest.Status(401, nil, `{"error":{"message":"x","type":"auth"}}`)), 0},
		{"a gateway's page", fails(batchtest.HTML(502)), 0},
		{"a redirect", fails(batchtest.Redirect(308, "https://other.example/v1/chat/completions")), 0},
		{"a connection that breaks", fails(batchtest.LoseAnswer()), 1},
	} {
		for _, store := range []journal.Store{nil, journal.NewMemory()} {
			o := autobatcher.Options{Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute, EscalateLimit: 1, Journal: store}
			openAI(batchtest.Options{Turnaround: 110 * time.Minute}, o).run(t, fmt.Sprint(tt.name, ", journal ", store != nil), func(s *scene) {
				tt.before(s)
				call := s.chat("a", with("Autobatcher-Deadline", "2h"))
				s.chat("b")
				r := call.within(3 * time.Hour)
				if r.status != 200 || r.header.Get("Autobatcher-Mode") != "" || r.at > 112*time.Minute {
					s.Errorf("%d %q after %v, want the answer of the batch: %s", r.status, r.header.Get("Autobatcher-Mode"), r.at, r.body)
				}
				if got := s.tr.Stats(); got.Left != 0 {
					s.Errorf("%d callers have left, want none", got.Left)
				}
				want := map[batchtest.Tier]int{"batch": 2}
				if tt.flex > 0 {
					want["flex"] = tt.flex
				}
				if diff := cmp.Diff(want, s.srv.PaidTiers()); diff != "" {
					s.Errorf("paid (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// A call stays in its batch, with and without a journal, if the budget has no room for a
// second line.
func TestTheBudgetHasNoRoomForAClimb(t *testing.T) {
	for _, store := range []journal.Store{nil, journal.NewMemory()} {
		o := autobatcher.Options{
			Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute, Journal: store,
			Prices: []byte(tokenPrices), Budget: autobatcher.Budget{USD: 130}, AbandonAfter: -1,
		}
		openAI(fiveTokens(110*time.Minute), o).run(t, fmt.Sprint("journal ", store != nil), func(s *scene) {
			a := s.send("/chat/completions", limited("a", 60), with("Autobatcher-Deadline", "2h"))
			b := s.send("/chat/completions", limited("b", 60))
			for _, call := range []*pending{a, b} {
				if r := call.within(3 * time.Hour); r.status != 200 || r.header.Get("Autobatcher-Mode") != "" {
					s.Errorf("%d %q after %v, want the answer of the batch: %s", r.status, r.header.Get("Autobatcher-Mode"), r.at, r.body)
				}
			}
		})
	}
}

// A call that has climbed keeps its line of the batch while an equal call waits.
func TestAnEqualCallBesideAClimb(t *testing.T) {
	o := autobatcher.Options{Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute}
	openAI(batchtest.Options{Turnaround: 110 * time.Minute, FlexDelay: 12 * time.Minute}, o).run(t, "in the same process", func(s *scene) {
		a := s.chat("a", with("Autobatcher-Deadline", "2h"))
		s.chat("b")
		s.until(105 * time.Minute)
		equal := s.chat("a", with("Autobatcher-Deadline", "2h"))
		if r := a.within(5 * time.Hour); r.status != 200 || r.header.Get("Autobatcher-Mode") != "" || r.at > 112*time.Minute {
			s.Errorf("%d %q after %v, want the answer of the batch: %s", r.status, r.header.Get("Autobatcher-Mode"), r.at, r.body)
		}
		if r := equal.within(5 * time.Hour); r.status != 200 || r.header.Get("Autobatcher-Mode") != "flex" {
			s.Errorf("the equal call: %d %q after %v, want an answer of its own: %s", r.status, r.header.Get("Autobatcher-Mode"), r.at, r.body)
		}
	})
}
