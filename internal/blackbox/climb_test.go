package blackbox_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/caller"
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
