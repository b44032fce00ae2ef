package blackbox_test

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// cancels counts the requests to cancel a batch.
func (s *scene) cancels() int { return s.count("POST", "/cancel") }

// boughtOnce checks that the line with that text was executed once, and that no
// batch was cancelled.
func (s *scene) boughtOnce(text string) {
	s.Helper()
	n := 0
	for _, l := range s.srv.Executed() {
		if strings.Contains(string(l.Body), text) {
			n++
		}
	}
	if n != 1 {
		s.Errorf("the line of %q was executed %d times, want 1", text, n)
	}
	if n := s.cancels(); n != 0 {
		s.Errorf("%d requests to cancel a batch, want none", n)
	}
}

// A batch must not be cancelled while a retry of one of its lines waits in a queue:
// for the batch window to end, for the provider's hourly limit, or for room
// among the enqueued tokens.
func TestAQueuedRetryKeepsItsBatchAlive(t *testing.T) {
	setup{
		again:   true,
		server:  batchtest.Options{Turnaround: 30 * time.Minute},
		options: autobatcher.Options{BatchWindow: 5 * time.Minute},
	}.run(t, "in the batch window", func(s *scene) {
		for attempt := 1; attempt <= 8; attempt++ {
			call := s.chat("text")
			s.until(s.elapsed() + 10*time.Minute) // the SDK's timeout
			if r := call.left(); r.err == nil {
				break
			}
		}
		s.boughtOnce("text")
		s.sent(1)
	})

	hourly := provider.OpenAI()
	hourly.CreationsPerHour = 1
	setup{
		again:   true,
		server:  batchtest.Options{Turnaround: 30 * time.Minute},
		options: autobatcher.Options{BatchSize: 1, Provider: &hourly},
	}.run(t, "for the hourly limit", func(s *scene) {
		first := s.chat("text")
		s.until(5 * time.Minute)
		first.left()
		s.chat("text").within(2 * time.Hour).says("text")
		s.boughtOnce("text")
		s.sent(1)
	})

	u := queueOf(10_500, true, 10*time.Minute)
	u.again = true
	u.run(t, "for room among the tokens", func(s *scene) {
		large := strings.Repeat("x", 32_000)
		one := s.chat("one " + large)
		s.until(11 * time.Second)
		two := s.chat("two " + large) // teaches the Transport the limit
		one.within(time.Hour)
		two.within(2 * time.Hour)
		before := s.cancels()
		first := s.chat("text " + large)
		s.until(s.elapsed() + time.Minute)
		first.left()
		s.chat("text " + large).within(2 * time.Hour).says("text")
		if n := s.cancels() - before; n != 0 {
			s.Errorf("%d requests to cancel a batch, want none", n)
		}
		s.boughtOnce("text ")
	})
}

// A retry that waits in the queue of another replica keeps the batch alive as well.
func TestARetryQueuedAtAnotherReplicaKeepsTheBatchAlive(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: 30 * time.Minute}, func(f *fleet) {
		a := f.start(autobatcher.Options{})
		b := f.start(autobatcher.Options{BatchWindow: 5 * time.Minute})
		ctx, leave := context.WithCancel(f.Context())
		first := a.ask(ctx, "one")
		time.Sleep(time.Minute)
		leave()
		<-first
		f.wantAnswer(b.ask(f.Context(), "one"), "one")
		f.wantPaid(1, 1)
		if n := f.cancels(); n != 0 {
			f.Errorf("%d requests to cancel the batch, want none", n)
		}
	})
}

// A slowLog delays whoever logs an information, as a log on a slow disk does.
type slowLog struct{ slog.Handler }

func (slowLog) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (slowLog) Handle(context.Context, slog.Record) error    { time.Sleep(20 * time.Second); return nil }

// The decision that no caller waits for a batch, and the decision to cancel the
// batch, are one: a caller who comes in between must not take over a line that is
// about to be cancelled.
func TestNoLineIsTakenOverBetweenDecidingAndCancelling(t *testing.T) {
	setup{
		server:  batchtest.Options{Turnaround: time.Hour},
		options: autobatcher.Options{Logger: slog.New(slowLog{slog.DiscardHandler}), PollInterval: time.Minute},
	}.play(t, func(s *scene) {
		first := s.chat("text")
		s.until(60 * time.Second)
		first.left()
		s.until(172 * time.Second) // the batch is cancelled at 180 s, and logged until 200 s
		s.chat("text").within(3 * time.Hour).says("text")
	})
}

// An answer that is there already is delivered when the retry enters, and not at
// the end of the retry's batch window.
func TestARetryGetsAKeptAnswerAtOnce(t *testing.T) {
	setup{
		server:  batchtest.Options{Turnaround: time.Minute},
		options: autobatcher.Options{BatchWindow: time.Minute},
	}.run(t, "a success", func(s *scene) {
		first := s.chat("text")
		s.until(90 * time.Second)
		first.left()
		s.until(5 * time.Minute)
		s.chat("text").within(time.Hour).want(200, 5*time.Minute).says("text")
		s.sent(1)
	})

	bad := batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: 400} }}
	for _, window := range []time.Duration{60 * time.Second, 125 * time.Second} {
		u := setup{server: bad, options: autobatcher.Options{BatchWindow: window}}
		u.run(t, "a failure that could not be passed on, window "+window.String(), func(s *scene) {
			for range 3 {
				res, err := s.tr.RoundTrip(s.request(s.Context(), "/chat/completions", chatBody("text")))
				if err != nil || res.StatusCode != http.StatusBadRequest {
					s.Fatalf("%v, %v; want the line's 400", res, err)
				}
				keepAnswer(s.T, res)
				res.Body.Close()
			}
			if n := len(s.srv.Executed()); n != 1 {
				s.Errorf("%d lines were executed for a call and two retries, want 1", n)
			}
			if s.elapsed() > window+time.Minute {
				s.Errorf("the retries were answered at %v, want the kept answer at once", s.elapsed())
			}
		})
	}
}

// A streamed answer that was sent in real time counts as read once its client has
// read the last event: SDKs close the body there. The line in the batch is then
// of no use, and a later call with the same body is a new call.
func TestAnEscalatedStreamThatIsClosedAtItsLastEvent(t *testing.T) {
	u := escalating(batchtest.Options{Turnaround: 40 * time.Minute}, autobatcher.EscalateDeadline)
	u.play(t, func(s *scene) {
		body := strings.Replace(chatBody("text"), `{`, `{"stream":true,`, 1)
		other := s.chat("other") // keeps the batch alive
		res, err := s.tr.RoundTrip(s.request(s.Context(), "/chat/completions", body, with("Autobatcher-Deadline", "30m")))
		if err != nil {
			s.Fatal(err)
		}
		var text strings.Builder
		for one := make([]byte, 1); !strings.HasSuffix(text.String(), "data: [DONE]\n\n"); {
			n, err := res.Body.Read(one)
			if text.Write(one[:n]); err != nil {
				s.Fatalf("%v in %s", err, text.String())
			}
		}
		res.Body.Close()
		other.within(2 * time.Hour)
		synctest.Wait()
		before := len(s.srv.Batches())
		s.post("/chat/completions", body)
		if n := len(s.srv.Batches()) - before; n != 1 {
			s.Errorf("%d new batches for a new call, want 1: the late answer was not to be kept", n)
		}
	})
}

// keepAnswer does with an answer what the proxy does that could not pass it on.
func keepAnswer(t *testing.T, res *http.Response) {
	t.Helper()
	body, ok := res.Body.(interface{ MarkUndelivered() })
	if !ok {
		t.Fatalf("the answer of %d cannot be kept", res.StatusCode)
	}
	body.MarkUndelivered()
}
