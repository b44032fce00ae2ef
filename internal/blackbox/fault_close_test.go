package blackbox_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// Close must not cancel a batch that is known to have completed. At Doubleword the
// cancellation would succeed, and the results would be bought again.
func TestCloseDoesNotCancelACompletedBatch(t *testing.T) {
	setup{options: autobatcher.Options{CancelOnClose: true}}.run(t, "while it is downloaded", func(s *scene) {
		s.srv.Control(batchtest.OpContent, batchtest.Hang())
		call := s.chat("text")
		s.until(20 * time.Second)
		s.tr.Close()
		if r := call.within(time.Minute); !errors.Is(r.err, autobatcher.ErrClosed) {
			s.Errorf("status %d, error %v; want ErrClosed", r.status, r.err)
		}
		if n := s.cancels(); n != 0 {
			s.Errorf("%d requests to cancel a batch that has completed", n)
		}
		if names := s.eventNames(); slices.Contains(names, autobatcher.BatchCancelRequested) {
			s.Errorf("events %v; a batch that has completed is not to be cancelled", names)
		}
	})
	t.Run("the next process reads its results", func(t *testing.T) {
		inFleet(t, batchtest.Options{Behavior: batchtest.Doubleword()}, func(f *fleet) {
			p := provider.Doubleword()
			restore := f.srv.Keep(batchtest.OpContent, batchtest.Hang())
			a := f.start(autobatcher.Options{Provider: &p, CancelOnClose: true})
			first := a.ask(f.Context(), "one")
			time.Sleep(20 * time.Second)
			a.Close()
			<-first
			restore()
			f.wantAnswer(f.start(autobatcher.Options{Provider: &p}).ask(f.Context(), "one"), "one")
			f.wantPaid(1, 1)
			if n := f.cancels(); n != 0 {
				f.Errorf("%d requests to cancel a batch that has completed", n)
			}
		})
	})
}

// With CancelOnClose, Close cancels every batch that runs, including a batch whose
// callers have disconnected and whose lines the journal holds.
func TestCloseCancelsBatchesWithoutCallers(t *testing.T) {
	for name, wait := range map[string]time.Duration{"at once": 0, "after the journal knows": 1500 * time.Millisecond, "a minute later": time.Minute} {
		t.Run(name, func(t *testing.T) {
			inFleet(t, batchtest.Options{Turnaround: time.Hour}, func(f *fleet) {
				a := f.start(autobatcher.Options{CancelOnClose: true})
				ctx, leave := context.WithCancel(f.Context())
				first := a.ask(ctx, "one")
				time.Sleep(time.Minute)
				leave()
				<-first
				time.Sleep(wait)
				a.Close()
				if n := f.cancels(); n != 1 {
					f.Errorf("%d requests to cancel the batch, want 1", n)
				}
			})
		})
	}
}

// A batch that a process was about to cancel is cancelled by the next process.
func TestACancellationIsFinishedByTheNextProcess(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: time.Hour}, func(f *fleet) {
		a := f.start(autobatcher.Options{CancelOnClose: true})
		first := a.ask(f.Context(), "one")
		time.Sleep(time.Minute)
		restore := f.srv.Keep(batchtest.OpCancel, batchtest.HTML(503))
		a.Close()
		<-first
		restore()
		f.start(autobatcher.Options{}).ask(f.Context(), "two")
		time.Sleep(time.Minute)
		if b := f.srv.Batches()[0]; !b.CancelRequested {
			f.Errorf("%+v; want the batch cancelled by the next process", b)
		}
	})
}

// A batch whose callers have all left during the upload is not created.
func TestABatchThatNobodyWaitsForIsNotCreated(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		s.srv.Control(batchtest.OpUpload, batchtest.Delay(20*time.Second))
		call := s.chat("text")
		s.until(20 * time.Second)
		call.left()
		s.until(10 * time.Minute)
		if n := len(s.srv.Batches()); n != 0 {
			s.Errorf("%d batches for a caller who left during the upload, want none", n)
		}
	})
}

// Shutdown waits for calls that were sent in real time.
func TestShutdownWaitsForEscalatedCalls(t *testing.T) {
	u := escalating(hopeless, autobatcher.EscalateFailed)
	u.play(t, func(s *scene) {
		s.srv.Control(batchtest.OpRealtime, batchtest.Delay(10*time.Minute))
		call := s.chat("text")
		s.until(2 * time.Minute)
		ended := make(chan time.Duration, 1)
		go func() {
			if err := s.tr.Shutdown(context.Background()); err != nil {
				s.Error(err)
			}
			ended <- s.elapsed()
		}()
		r := call.within(time.Hour).says("text")
		if at := <-ended; r.err != nil || at < r.at {
			s.Errorf("Shutdown returned at %v, before the call ended at %v: status %d, error %v", at, r.at, r.status, r.err)
		}
	})
}

// EscalateFailed promises real time instead of a failure, whatever the failure is:
// a refused upload, a lost batch, an overdue batch.
func TestEveryFailureOfABatchEscalates(t *testing.T) {
	for name, spoil := range map[string]func(s *scene){
		"the provider takes no upload": func(s *scene) { s.srv.Keep(batchtest.OpUpload, batchtest.HTML(503)) },
		"the upload is refused":        func(s *scene) { s.srv.Keep(batchtest.OpUpload, batchtest.HTML(403)) },
		"the batch is lost":            func(s *scene) { s.srv.Keep(batchtest.OpRetrieve, batchtest.HTML(404)) },
	} {
		escalating(batchtest.Options{}, autobatcher.EscalateFailed).run(t, name, func(s *scene) {
			spoil(s)
			r := s.chat("text").within(3 * time.Hour).says("text")
			if r.status != 200 || r.header.Get("Autobatcher-Mode") != "realtime" {
				s.Errorf("status %d, header %v; want an answer in real time", r.status, r.header)
			}
		})
	}
}

// Callers are answered before the last event of their batch is emitted, whatever
// the end of the batch is.
func TestCallersAreAnsweredBeforeTheLastEvent(t *testing.T) {
	ends := map[string]struct {
		setup setup
		spoil func(s *scene)
	}{
		"completed": {},
		"lost":      {spoil: func(s *scene) { s.srv.Keep(batchtest.OpRetrieve, batchtest.HTML(404)) }},
		"failed": {spoil: func(s *scene) {
			s.srv.Control(batchtest.OpRetrieve, func(http.ResponseWriter, *http.Request) bool {
				s.srv.FailBatch(s.batch().ID, "billing_hard_limit_reached", "no", 0)
				return false
			})
		}},
		"not submitted": {spoil: func(s *scene) { s.srv.Keep(batchtest.OpUpload, batchtest.HTML(403)) }},
	}
	for name, end := range ends {
		last := map[autobatcher.EventName]bool{autobatcher.BatchCompleted: true, autobatcher.BatchTerminal: true, autobatcher.BatchSubmissionFailed: true}
		var emitted time.Duration
		var s *scene
		u := end.setup
		u.options.OnEvent = func(e autobatcher.Event) {
			if last[e.Name] {
				time.Sleep(time.Hour)
				emitted = s.elapsed()
			}
		}
		u.run(t, name, func(now *scene) {
			s = now
			if end.spoil != nil {
				end.spoil(s)
			}
			r := s.chat("text").within(10 * time.Hour)
			s.until(12 * time.Hour)
			synctest.Wait()
			if emitted == 0 || r.at >= emitted {
				s.Errorf("the call ended at %v, the handler of the last event at %v; the handler must not delay the call", r.at, emitted)
			}
		})
	}
}
