package blackbox_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
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
			if got := s.tr.Stats(); got.Answered != 2 || got.Left != 0 {
				s.Errorf("%d calls are answered, and %d callers have left; want 2 and 0", got.Answered, got.Left)
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
			if n := s.tr.Stats().Budget.Refused; n != 0 {
				s.Errorf("%d calls are refused, want none", n)
			}
		})
	}
}

// Calls whose climbs fail use up no room for calls in real time.
func TestFailedClimbsTakeNoRoom(t *testing.T) {
	const calls = 20
	o := autobatcher.Options{Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute, EscalateLimit: calls}
	openAI(batchtest.Options{Turnaround: 10 * time.Hour}, o).run(t, "full", func(s *scene) {
		s.srv.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable())
		var asked atomic.Int64
		ctx := caller.With(s.Context(), &caller.Caller{Realtime: func() bool { asked.Add(1); return true }})
		done := make(chan reply, calls)
		for i := range calls {
			go func() {
				done <- s.do(s.request(ctx, "/chat/completions", chatBody(fmt.Sprint(i)), with("Autobatcher-Deadline", "2h")))
			}()
		}
		s.until(118 * time.Minute)
		if n := asked.Load(); n != 0 {
			s.Errorf("the server was asked %d times for room, before a call was sent in real time", n)
		}
		for range calls {
			if r := <-done; r.status != 200 || r.header.Get("Autobatcher-Mode") != "realtime" {
				s.Errorf("%d %q: %s", r.status, r.header.Get("Autobatcher-Mode"), r.body)
			}
		}
	})
}

// Two equal calls climb. The failure of one flex call is not the answer of the other call,
// whose batch answers.
func TestEqualCallsClimb(t *testing.T) {
	for name, fault := range map[string]batchtest.Fault{
		"a refusal":                batchtest.Status(401, nil, `{"error":{"message":"x","type":"auth"}}`),
		"a bad call":               batchtest.Status(400, nil, `{"error":{"message":"x","type":"invalid_request_error","param":"foo"}}`),
		"a connection that breaks": batchtest.LoseAnswer(),
	} {
		for _, slow := range []time.Duration{0, time.Minute} {
			var takes atomic.Int64
			o := autobatcher.Options{
				Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute,
				Journal: slowTakeOver{journal.NewMemory(), &takes},
			}
			openAI(batchtest.Options{Turnaround: 110 * time.Minute}, o).run(t, fmt.Sprint(name, ", a journal that takes ", slow), func(s *scene) {
				s.srv.Keep(batchtest.OpRealtime, func(w http.ResponseWriter, r *http.Request) bool {
					time.Sleep(20 * time.Second)
					return fault(w, r)
				})
				calls := []*pending{s.chat("a", with("Autobatcher-Deadline", "2h"))}
				s.until(5 * time.Second)
				calls = append(calls, s.chat("a", with("Autobatcher-Deadline", "2h")))
				s.until(104*time.Minute + 2*time.Second) // the first call climbs before, and the second call after
				takes.Store(int64(slow))
				for i, c := range calls {
					if r := c.within(3 * time.Hour); r.status != 200 || r.header.Get("Autobatcher-Mode") != "" || r.at > 112*time.Minute {
						s.Errorf("call %d: %d %q after %v, want the answer of the batch: %s", i, r.status, r.header.Get("Autobatcher-Mode"), r.at, r.body)
					}
				}
				if got := s.tr.Stats(); got.Answered != 2 || got.Errors != 0 || got.Left != 0 {
					s.Errorf("%d answered, %d errors, %d left; want 2 answered", got.Answered, got.Errors, got.Left)
				}
			})
		}
	}
}

// A call whose flex call may be paid for, and whose batch does not answer either, is not sent
// at the flex tier again.
func TestACallClimbsOnce(t *testing.T) {
	server := hopeless
	server.Turnaround = 110 * time.Minute
	for _, fallback := range []autobatcher.FlexFallback{autobatcher.FallbackBatch, autobatcher.FallbackRealtime} {
		o := autobatcher.Options{Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute, FlexFallback: fallback}
		openAI(server, o).run(t, string(fallback), func(s *scene) {
			s.srv.Control(batchtest.OpRealtime, batchtest.LoseAnswer())
			call := s.chat("a", with("Autobatcher-Deadline", "2h"))
			s.chat("b")
			if r := call.within(3 * time.Hour); r.status != 200 || r.header.Get("Autobatcher-Mode") != "realtime" {
				s.Errorf("%d %q, want an answer in real time: %s", r.status, r.header.Get("Autobatcher-Mode"), r.body)
			}
			paid := 0
			for _, e := range s.srv.Executed() {
				if e.Tier == batchtest.TierFlex && strings.Contains(string(e.Body), `"a"`) {
					paid++
				}
			}
			if paid != 1 {
				s.Errorf("paid for at the flex tier %d times, want once", paid)
			}
		})
	}
}

// The failure of a batch does not name the flex tier, where the call has been.
func TestTheFailureOfABatchAfterAClimb(t *testing.T) {
	o := autobatcher.Options{Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute}
	unreadable := func(batchtest.Line) batchtest.Outcome {
		return batchtest.Outcome{BodyVerbatim: true, Body: []byte("{\n")}
	}
	openAI(batchtest.Options{Turnaround: 110 * time.Minute, Answer: unreadable}, o).run(t, "unreadable", func(s *scene) {
		s.srv.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable())
		call := s.chat("a", with("Autobatcher-Deadline", "2h"))
		s.chat("b")
		if r := call.within(3 * time.Hour); r.status != 424 || r.header.Get("Autobatcher-Mode") != "" || r.header.Get("Autobatcher-Batch-Id") != s.srv.Batches()[0].ID {
			s.Errorf("%d %v: %s", r.status, r.header, r.body)
		}
	})
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
