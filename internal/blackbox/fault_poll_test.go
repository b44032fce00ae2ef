package blackbox_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// One answer that asks for a long wait must not stop polling for that long: a
// batch is polled again within the hour whatever the server asks.
func TestALongRetryAfterDoesNotStopPolling(t *testing.T) {
	later := http.Header{"Retry-After": {"86400"}}
	faults := map[string]batchtest.Fault{
		"429": batchtest.RateLimit(24 * time.Hour),
		"503": batchtest.Status(503, later, `{}`),
		"500": batchtest.Status(500, later, `{}`),
		"404": batchtest.Status(404, later, `{}`),
	}
	for _, op := range []batchtest.Op{batchtest.OpRetrieve, batchtest.OpContent} {
		for name, fault := range faults {
			setup{server: batchtest.Options{Turnaround: 10 * time.Minute}}.run(t, string(op)+" "+name, func(s *scene) {
				s.srv.Control(op, fault)
				if r := s.chat("text").within(48 * time.Hour).says("text"); r.at > time.Hour {
					s.Errorf("answered at %v, want within the hour", r.at)
				}
			})
		}
	}
	for name, fault := range faults {
		manyBatches().run(t, "list "+name, func(s *scene) {
			s.srv.Control(batchtest.OpList, every(3, fault)...)
			for i, r := range s.rush(12, numbered) {
				if r.status != 200 || r.at > time.Hour {
					s.Errorf("call %d: status %d at %v, want an answer within the hour", i, r.status, r.at)
				}
			}
		})
	}
}

// A batch that cannot be polled any more is given up a day after its completion
// window, like a batch that never ends.
func TestPollsThatNeverSucceed(t *testing.T) {
	for name, fault := range map[string]batchtest.Fault{"503": batchtest.HTML(503), "no answer": batchtest.Reset(), "429": batchtest.RateLimit(10 * time.Minute)} {
		u := doubleword(stuck, autobatcher.Options{PollInterval: 30 * time.Minute})
		u.run(t, name, func(s *scene) {
			s.srv.Keep(batchtest.OpRetrieve, fault)
			r := s.chat("text").within(60 * time.Hour)
			if r.status != 424 || r.at < 25*time.Hour || r.at > 27*time.Hour {
				s.Errorf("status %d, error %v at %v; want 424 a day after the window of an hour", r.status, r.err, r.at)
			}
			if r.err == nil {
				r.fails("batch_overdue")
			}
		})
	}
}

// A batch is polled before it is cancelled. At Doubleword a cancellation turns a
// batch that has completed into a cancelled batch.
func TestABatchIsPolledBeforeItIsCancelled(t *testing.T) {
	p := provider.Doubleword()
	t.Run("because its callers left", func(t *testing.T) {
		doubleword(batchtest.Options{Turnaround: 2 * time.Minute}, autobatcher.Options{PollInterval: 30 * time.Minute}).play(t, func(s *scene) {
			call := s.chat("text")
			s.until(20 * time.Second)
			call.left() // without callers for two minutes at 140 s, ended at 130 s
			s.until(20 * time.Minute)
			if n := s.cancels(); n != 0 {
				s.Errorf("%d requests to cancel a batch that has completed", n)
			}
			s.chat("text").within(time.Hour).says("text")
			s.sent(1)
		})
	})
	t.Run("because the process closes", func(t *testing.T) {
		doubleword(batchtest.Options{Turnaround: 2 * time.Minute}, autobatcher.Options{PollInterval: 30 * time.Minute, CancelOnClose: true}).play(t, func(s *scene) {
			call := s.chat("text")
			s.until(5 * time.Minute)
			s.tr.Close()
			call.left()
			if n := s.cancels(); n != 0 {
				s.Errorf("%d requests to cancel a batch that has completed", n)
			}
		})
	})
	t.Run("because an earlier process was about to", func(t *testing.T) {
		inFleet(t, batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: 10 * time.Minute}, func(f *fleet) {
			a := f.start(autobatcher.Options{Provider: &p, AbandonAfter: time.Minute})
			f.srv.Control(batchtest.OpCancel, batchtest.Hang())
			ctx, leave := context.WithCancel(f.Context())
			first := a.ask(ctx, "one")
			time.Sleep(20 * time.Second)
			leave()
			<-first
			time.Sleep(70 * time.Second) // the journal knows that the batch is to be cancelled
			if b := f.only(); b.State != journal.Cancelling {
				f.Fatalf("the journal says %s, want cancelling", b.State)
			}
			a.cut()
			time.Sleep(20 * time.Minute)
			before := f.cancels()
			b := f.start(autobatcher.Options{Provider: &p})
			if err := b.Recover(f.srv.URL, http.Header{"Authorization": {"Bearer k"}}); err != nil {
				f.Fatal(err)
			}
			time.Sleep(10 * time.Minute)
			if n := f.cancels() - before; n != 0 {
				f.Errorf("%d requests to cancel a batch that has completed", n)
			}
		})
	})
}

// A batch whose lines were all delivered is not cancelled for want of callers, even
// if another replica delivered some of them.
func TestABatchWithoutOpenLinesIsNotCancelled(t *testing.T) {
	p := provider.Doubleword()
	inFleet(t, batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: 4 * time.Minute}, func(f *fleet) {
		a, b := f.start(autobatcher.Options{Provider: &p}), f.start(autobatcher.Options{Provider: &p})
		f.srv.Keep(batchtest.OpRetrieve, field("status", `"in_progress"`))
		ctx, leave := context.WithCancel(f.Context())
		first, two := a.ask(ctx, "one"), a.ask(f.Context(), "two")
		time.Sleep(30 * time.Second)
		leave()
		<-first
		time.Sleep(time.Second)
		f.wantAnswer(b.ask(f.Context(), "one"), "one")
		f.wantAnswer(two, "two")
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if n := f.cancels(); n != 0 {
			f.Errorf("%d requests to cancel a batch whose lines were delivered", n)
		}
	})
}
