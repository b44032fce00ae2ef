package blackbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/retry"
	"github.com/autobatcher/autobatcher/journal"
)

// A slowTakeOver is a journal whose take-overs take their time.
type slowTakeOver struct {
	journal.Store
	takes *atomic.Int64
}

func (s slowTakeOver) TakeOver(ctx context.Context, owner string, account journal.Hash, fingerprints []journal.Hash) ([]journal.Taken, error) {
	if err := retry.Sleep(ctx, time.Duration(s.takes.Load())); err != nil {
		return nil, err
	}
	return s.Store.TakeOver(ctx, owner, account, fingerprints)
}

// A journal that is slow, and works, is no journal that fails: calls wait for their
// turn, and find their lines.
func TestASlowJournalWorks(t *testing.T) {
	for _, tt := range []struct {
		accounts int
		takes    time.Duration
	}{{6, 9 * time.Second}, {60, time.Second}} {
		t.Run(fmt.Sprint(tt.accounts, " accounts, ", tt.takes), func(t *testing.T) {
			inFleet(t, batchtest.Options{Turnaround: time.Hour}, func(f *fleet) {
				var takes atomic.Int64
				f.store = slowTakeOver{f.store, &takes}
				ask := func(p *process) (all []<-chan outcome) {
					for i := range tt.accounts {
						all = append(all, p.ask(f.Context(), fmt.Sprint("prompt ", i), key(fmt.Sprint("key-", i))))
					}
					return all
				}
				first := f.start(autobatcher.Options{})
				ask(first)
				time.Sleep(time.Minute)
				first.cut()
				time.Sleep(time.Minute)
				takes.Store(int64(tt.takes))
				for _, answer := range ask(f.start(autobatcher.Options{})) {
					f.wantAnswer(answer, "prompt")
				}
				f.wantPaid(tt.accounts, tt.accounts)
			})
		})
	}
}

// A caller that hangs up while it reads an answer in real time, which it got because its
// batch failed, leaves the line as if the call had not been escalated: a retry pays for
// no further line.
func TestAnEscalatedCallWhoseCallerHangsUp(t *testing.T) {
	for _, withJournal := range []bool{false, true} {
		for name, tt := range map[string]struct {
			trouble func(s *scene) (end func())
			status  int // of the retry
		}{
			"a create that stays unknown": {func(s *scene) func() {
				s.srv.Control(batchtest.OpCreate, batchtest.LoseAnswer())
				return s.srv.Keep(batchtest.OpList, batchtest.HTML(403))
			}, 424},
			"results that are refused": {func(s *scene) func() { return s.srv.Keep(batchtest.OpContent, batchtest.HTML(403)) }, 200},
		} {
			o := autobatcher.Options{Escalate: autobatcher.EscalateFailed}
			if withJournal {
				o.Journal = journal.NewMemory()
			} else if tt.status == 200 {
				tt.status = 424 // without a journal nothing finds the results
			}
			setup{options: o}.run(t, fmt.Sprint(name, ", journal ", withJournal), func(s *scene) {
				end := tt.trouble(s)
				ctx, leave := context.WithCancel(s.Context())
				res, err := s.tr.RoundTrip(s.request(ctx, "/chat/completions", chatBody("a")))
				if err != nil || res.Header.Get("Autobatcher-Mode") != "realtime" {
					s.Fatalf("%v, %v; want an answer in real time", res, err)
				}
				leave()
				res.Body.Close()
				end()
				time.Sleep(time.Second)
				if r := s.chat("a").within(3 * time.Hour); r.status != tt.status {
					s.Errorf("the retry got %d, want %d", r.status, tt.status)
				}
				if n := len(s.srv.Batches()); n != 1 {
					s.Errorf("%d batches, want 1", n)
				}
			})
		}
	}
}

// A call whose batch may be paid for, and which then fails in real time, is not paid for
// in another batch when an SDK retries the call.
func TestARetryAfterAFailureInRealtime(t *testing.T) {
	for _, withJournal := range []bool{false, true} {
		for name, trouble := range map[string]func(s *scene) (end func()){
			"a create that stays unknown": func(s *scene) func() {
				s.srv.Control(batchtest.OpCreate, batchtest.LoseAnswer())
				return s.srv.Keep(batchtest.OpList, batchtest.HTML(403))
			},
			"a batch that is unknown": func(s *scene) func() { return s.srv.Keep(batchtest.OpRetrieve, batchtest.HTML(404)) },
		} {
			o := autobatcher.Options{Escalate: autobatcher.EscalateFailed}
			if withJournal {
				o.Journal = journal.NewMemory()
			}
			setup{options: o}.run(t, fmt.Sprint(name, ", journal ", withJournal), func(s *scene) {
				end := trouble(s)
				s.srv.Control(batchtest.OpRealtime, batchtest.Status(503, nil, `{"error":{"message":"busy"}}`))
				if r := s.chat("a").within(3 * time.Hour); r.status != 503 || r.header.Get("Autobatcher-Mode") != "realtime" {
					s.Fatalf("%d, %v; want the failure in real time", r.status, r.header)
				}
				end()
				time.Sleep(time.Second)
				if r := s.chat("a").within(3 * time.Hour); r.status != 424 {
					s.Errorf("the retry got %d, want 424", r.status)
				}
				if n := len(s.srv.Batches()); n != 1 {
					s.Errorf("%d batches, want 1", n)
				}
			})
		}
	}
}

// A caller that hangs up before it is known that its batch may be paid for gets the
// failure when it retries.
func TestARetryAfterACreateThatStaysUnknown(t *testing.T) {
	for _, withJournal := range []bool{false, true} {
		o := autobatcher.Options{}
		if withJournal {
			o.Journal = journal.NewMemory()
		}
		setup{options: o}.run(t, fmt.Sprint("journal ", withJournal), func(s *scene) {
			s.srv.Control(batchtest.OpCreate, batchtest.LoseAnswer())
			end := s.srv.Keep(batchtest.OpList, func(w http.ResponseWriter, r *http.Request) bool {
				time.Sleep(10 * time.Second)
				return batchtest.HTML(403)(w, r)
			})
			first := s.chat("a")
			s.until(15 * time.Second)
			first.left()
			s.until(time.Minute)
			s.event(autobatcher.BatchSubmissionFailed)
			end()
			if r := s.chat("a").within(3 * time.Hour); r.status != 424 {
				s.Errorf("the retry got %d, want 424", r.status)
			}
			if n := len(s.srv.Batches()); n != 1 {
				s.Errorf("%d batches, want 1", n)
			}
		})
	}
}

// A partlyFailing is a journal of which one kind of request fails.
type partlyFailing struct {
	journal.Store
	fails string
}

func (p partlyFailing) Release(ctx context.Context, owner, ref string, lines []int) error {
	if p.fails == "release" {
		return errors.New("no")
	}
	return p.Store.Release(ctx, owner, ref, lines)
}

func (p partlyFailing) Deliver(ctx context.Context, owner, ref string, lines []int) error {
	if p.fails == "deliver" {
		return errors.New("no")
	}
	return p.Store.Deliver(ctx, owner, ref, lines)
}

// A journal that refuses one kind of request holds up no call for long.
func TestAJournalThatFailsInPart(t *testing.T) {
	for _, fails := range []string{"release", "deliver"} {
		store := partlyFailing{journal.NewMemory(), fails}
		setup{options: autobatcher.Options{AbandonAfter: -1, Journal: store}, server: batchtest.Options{Turnaround: time.Hour}}.run(t, fails, func(s *scene) {
			first := s.chat("a")
			if fails == "release" {
				s.until(time.Minute)
				first.left()
			} else {
				first.wait()
			}
			s.chat("b").within(2 * time.Hour).says("b")
		})
	}
}

// The lines of batches that were cancelled before this process knew of them use up none
// of a call's resubmits.
func TestACallAfterSeveralCancelledBatches(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: time.Hour}, func(f *fleet) {
		o := autobatcher.Options{CancelOnClose: true, BatchSize: 1}
		for range 3 {
			p := f.start(o)
			answer := p.ask(f.Context(), "a")
			time.Sleep(10 * time.Minute)
			p.Close()
			<-answer
		}
		p := f.start(o)
		f.wantAnswer(p.ask(f.Context(), "other"), "other")
		time.Sleep(time.Minute)
		f.wantAnswer(p.ask(f.Context(), "a"), "a")
	})
}

// An answer in real time that breaks off was not read: a retry gets the line.
func TestARealtimeAnswerThatBreaksOff(t *testing.T) {
	breaks := func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if !strings.HasSuffix(r.URL.Path, "/chat/completions") {
				return next.RoundTrip(r)
			}
			body := io.NopCloser(io.MultiReader(strings.NewReader(`{"id":`), iotest.ErrReader(io.ErrUnexpectedEOF)))
			return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: -1, Body: body, Request: r}, nil
		})
	}
	o := autobatcher.Options{Escalate: autobatcher.EscalateDeadline, EscalateMargin: time.Minute}
	setup{server: batchtest.Options{Turnaround: time.Hour}, base: breaks, options: o}.play(t, func(s *scene) {
		if r := s.chat("a", with("Autobatcher-Deadline", "10m")).wait(); r.err == nil {
			s.Errorf("the broken answer was %d", r.status)
		}
		s.chat("a").within(3 * time.Hour).says("a")
		if n := len(s.srv.Batches()); n != 1 {
			s.Errorf("%d batches, want 1", n)
		}
	})
}

// Flush returns also while calls keep coming.
func TestFlushWhileCallsKeepComing(t *testing.T) {
	setup{options: autobatcher.Options{BatchSize: 1}}.play(t, func(s *scene) {
		s.srv.Keep(batchtest.OpUpload, batchtest.Delay(20*time.Second))
		ctx, stop := context.WithCancel(s.Context())
		var callers sync.WaitGroup
		callers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				callers.Go(func() { s.do(s.request(ctx, "/chat/completions", chatBody(fmt.Sprint(i)))) })
				time.Sleep(time.Second)
			}
		})
		time.Sleep(2500 * time.Millisecond)
		began := time.Now()
		if err := s.tr.Flush(s.Context()); err != nil || time.Since(began) > time.Minute {
			s.Errorf("Flush returned %v after %v", err, time.Since(began))
		}
		stop()
		callers.Wait()
	})
}
