package blackbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// stuck is a provider whose batches never get to their lines, while real time
// works.
var stuck = batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
	return batchtest.Outcome{Never: l.BatchID != ""}
}}

// hopeless is one whose batches answer no line.
var hopeless = batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
	if l.BatchID == "" {
		return batchtest.Outcome{}
	}
	return batchtest.Outcome{Code: "request_timeout", Message: "slow"}
}}

func escalating(server batchtest.Options, when autobatcher.Escalation) setup {
	return setup{server: server, options: autobatcher.Options{Escalate: when, PollInterval: time.Minute}}
}

// realtimeCalls are the calls that went out at full price.
func (s *scene) realtimeCalls() int {
	return s.count("POST", "/chat/completions") + s.count("POST", "/embeddings") + s.count("POST", "/responses")
}

// Calls went to full price whenever a batch failed, or never.
func TestWhenACallEscalates(t *testing.T) {
	slow := batchtest.Options{Turnaround: 10 * time.Hour}
	setup{server: hopeless}.run(t, "never by default", func(s *scene) {
		s.chat("a").want(424, 15*time.Second)
		if n := s.count("POST", "/chat/completions"); n != 0 {
			s.Errorf("%d calls at full price", n)
		}
	})
	late := setup{server: slow, options: autobatcher.Options{Escalate: autobatcher.EscalateDeadline, PollInterval: time.Hour}}
	late.run(t, "a minute before its context's", func(s *scene) {
		ctx, cancel := context.WithTimeout(s.Context(), 20*time.Minute)
		defer cancel()
		s.do(s.request(ctx, "/chat/completions", chatBody("a"))).want(200, 19*time.Minute)
		s.until(25 * time.Minute)
		if !s.batch().CancelRequested {
			s.Error("the batch of an escalated call runs on, and is paid for")
		}
	})
	kept := late
	kept.options.Journal = journal.NewMemory()
	kept.run(t, "a minute before its context's, with a journal", func(s *scene) {
		ctx, cancel := context.WithTimeout(s.Context(), 20*time.Minute)
		defer cancel()
		s.do(s.request(ctx, "/chat/completions", chatBody("a"))).want(200, 19*time.Minute)
		s.until(25 * time.Minute)
		if !s.batch().CancelRequested {
			s.Error("the batch of an escalated call runs on, and is paid for")
		}
	})
	setup{server: batchtest.Options{}, options: autobatcher.Options{Escalate: autobatcher.EscalateDeadline}}.run(t, "not if the batch is in time", func(s *scene) {
		s.chat("a", with("Autobatcher-Deadline", "30m")).want(200, 15*time.Second)
		s.until(time.Hour)
		if n := s.count("POST", "/chat/completions"); n != 0 {
			s.Errorf("%d calls at full price", n)
		}
	})
}

func TestCallsAreResubmittedBeforeTheyEscalate(t *testing.T) {
	u := escalating(hopeless, autobatcher.EscalateFailed)
	u.again = true
	u.run(t, "once by default", func(s *scene) {
		r := s.chat("a").wait().says("a")
		if r.status != 200 || r.header.Get("Autobatcher-Mode") != "realtime" || s.realtimeCalls() != 1 {
			s.Errorf("status %d, %v, %d calls in real time", r.status, r.header, s.realtimeCalls())
		}
		s.sent(1, 1)
	})
	u.options.Resubmits = 3
	u.run(t, "as often as asked", func(s *scene) {
		s.chat("a").wait().says("a")
		s.sent(1, 1, 1, 1)
	})
}

// A call whose batch ended without an answer is resubmitted as often as the Options say.
func TestResubmits(t *testing.T) {
	for name, end := range map[string]func(s *scene, id string) error{
		"expired":   func(s *scene, id string) error { return s.srv.Expire(id) },
		"cancelled": func(s *scene, id string) error { s.cancel(id); return nil },
		"failed without a word": func(s *scene, id string) error {
			return s.srv.FailBatch(id, "", "", 0)
		},
	} {
		code := map[string]string{"expired": "batch_expired", "cancelled": "batch_cancelled", "failed without a word": "batch_failed"}[name]
		for _, resubmits := range []int{-1, 0, 2} {
			u := setup{again: true, server: stuck, options: autobatcher.Options{Resubmits: resubmits}}
			u.run(t, fmt.Sprintf("%s/%d", name, resubmits), func(s *scene) {
				if name == "failed without a word" {
					s.srv.Keep(batchtest.OpRetrieve, rewrite(func(body []byte, _ http.Header) []byte {
						return bytes.Replace(body, []byte(`"errors":{"data":[{"code":"","line":null,"message":"","param":null}],"object":"list"}`), []byte(`"errors":null`), 1)
					}))
				}
				call := s.chat("a")
				attempts := max(resubmits, 0) + 1
				if resubmits == 0 {
					attempts = 2 // the default
				}
				for n := 1; n <= attempts; n++ {
					s.until(s.elapsed() + 12*time.Second)
					if got := len(s.srv.Batches()); got != n {
						s.Fatalf("%d batches, want %d", got, n)
					}
					if err := end(s, s.srv.Batches()[n-1].ID); err != nil {
						s.Fatal(err)
					}
				}
				call.wait().want(424, s.elapsed()).fails(code)
			})
		}
	}
}

// A half-finished batch: what is there is delivered, the rest goes again, and
// nothing is paid for twice.
func TestHalfFinishedBatches(t *testing.T) {
	for _, state := range []string{"expired", "cancelled"} {
		attempts := map[string]int{}
		u := setup{again: true, server: batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
			attempts[l.Key()]++
			late := bytes.Contains(l.Body, []byte("late"))
			return batchtest.Outcome{Never: late && attempts[l.Key()] == 1}
		}}}
		u.run(t, state, func(s *scene) {
			var early, late []*pending
			for i := range 4 {
				early, late = append(early, s.chat(fmt.Sprint("early ", i))), append(late, s.chat(fmt.Sprint("late ", i)))
			}
			s.until(12 * time.Second)
			if state == "expired" {
				if err := s.srv.Expire(s.batch().ID); err != nil {
					s.Fatal(err)
				}
			} else {
				s.cancel(s.batch().ID)
			}
			for i := range 4 {
				early[i].want(200, 15*time.Second).says(fmt.Sprint("early ", i))
				late[i].wait().want(200, s.elapsed()).says(fmt.Sprint("late ", i))
			}
			s.sent(8, 4)
			s.paidOnce()
		})
	}
}

func TestTheEscalationBudget(t *testing.T) {
	u := escalating(hopeless, autobatcher.EscalateFailed)
	u.options.EscalateLimit = 2
	tally := func(s *scene, n int) map[string]int {
		outcomes := map[string]int{}
		for _, r := range s.rush(n, numbered) {
			mode := r.header.Get("Autobatcher-Mode")
			if r.status != 200 {
				r.fails("request_timeout")
			}
			outcomes[fmt.Sprint(r.status, mode)]++
		}
		return outcomes
	}
	u.run(t, "anew each hour", func(s *scene) {
		for _, want := range []map[string]int{{"200realtime": 2, "424": 1}, {"424": 3}} {
			if diff := cmp.Diff(want, tally(s, 3)); diff != "" {
				s.Error(diff)
			}
		}
		s.until(63 * time.Minute)
		if diff := cmp.Diff(map[string]int{"200realtime": 2, "424": 1}, tally(s, 3)); diff != "" {
			s.Error(diff)
		}
		if n := s.realtimeCalls(); n != 4 {
			s.Errorf("%d calls in real time", n)
		}
	})
	u.options.EscalateLimit = 0
	u.run(t, "a hundred by default", func(s *scene) {
		if diff := cmp.Diff(map[string]int{"200realtime": 100, "424": 20}, tally(s, 120)); diff != "" {
			s.Error(diff)
		}
	})
	u.options.EscalateLimit = -1
	u.run(t, "none", func(s *scene) {
		if diff := cmp.Diff(map[string]int{"200realtime": 120}, tally(s, 120)); diff != "" {
			s.Error(diff)
		}
	})
	late := escalating(stuck, autobatcher.EscalateDeadline)
	late.options.EscalateLimit = 1
	late.run(t, "past it a call is late after all", func(s *scene) {
		a, b := s.chat("a", with("Autobatcher-Deadline", "30m")), s.chat("b", with("Autobatcher-Deadline", "30m"))
		ended := []reply{a.wait(), b.wait()}
		slices.SortFunc(ended, func(x, y reply) int { return x.status - y.status })
		ended[0].want(200, 29*time.Minute)
		ended[1].want(424, 30*time.Minute).fails("batch_deadline_exceeded")
	})
	u.options.EscalateLimit = 1
	u.run(t, "a caller who left uses up no budget", func(s *scene) {
		gone, stays := s.chat("gone"), s.chat("stays")
		s.until(20 * time.Second)
		gone.leave()
		stays.wait().want(200, s.elapsed())
	})
}

func TestTheEscalationMargin(t *testing.T) {
	for _, tt := range []struct {
		margin, deadline, want time.Duration
	}{
		{0, 2 * time.Hour, 2*time.Hour - time.Minute}, // a minute by default
		{10 * time.Minute, 2 * time.Hour, 110 * time.Minute},
		{time.Second, time.Hour, time.Hour - time.Second},
	} {
		u := escalating(stuck, autobatcher.EscalateDeadline)
		u.options.EscalateMargin = tt.margin
		u.run(t, tt.margin.String(), func(s *scene) {
			s.chat("a", with("Autobatcher-Deadline", tt.deadline.String())).want(200, tt.want)
		})
	}
	u := escalating(stuck, autobatcher.EscalateDeadline)
	u.run(t, "a deadline within it", func(s *scene) {
		if r := s.chat("a", with("Autobatcher-Deadline", "30s")).wait(); r.status != 200 || r.at > time.Second {
			s.Errorf("status %d at %v; want an answer at once, in real time", r.status, r.at)
		}
		s.until(time.Minute)
		if n := len(s.srv.Uploads()); n != 0 {
			s.Errorf("%d uploads for a call that was answered", n)
		}
	})
	u.run(t, "the earlier of two deadlines", func(s *scene) {
		ctx, cancel := context.WithTimeout(s.Context(), 20*time.Minute)
		defer cancel()
		s.do(s.request(ctx, "/chat/completions", chatBody("a"), with("Autobatcher-Deadline", "30m"))).want(200, 19*time.Minute)
		long, cancel := context.WithTimeout(s.Context(), 40*time.Minute)
		defer cancel()
		s.do(s.request(long, "/chat/completions", chatBody("b"), with("Autobatcher-Deadline", "10m"))).want(200, 28*time.Minute)
	})
	u.run(t, "no deadline", func(s *scene) {
		call := s.chat("a")
		s.until(20 * time.Hour)
		if len(call.done) != 0 || s.realtimeCalls() != 0 {
			s.Error("a call without a deadline was sent in real time")
		}
		call.leave()
	})
	failed := escalating(stuck, autobatcher.EscalateFailed)
	failed.run(t, "only where it is asked for", func(s *scene) {
		s.chat("a", with("Autobatcher-Deadline", "30m")).want(424, 30*time.Minute).fails("batch_deadline_exceeded")
		if n := s.realtimeCalls(); n != 0 {
			s.Errorf("%d calls in real time", n)
		}
	})
}

// The batch's answer to a call that was escalated is dropped when it comes.
func TestALateAnswerIsDropped(t *testing.T) {
	u := escalating(batchtest.Options{Turnaround: 100 * time.Minute}, autobatcher.EscalateDeadline)
	u.run(t, "while others wait for theirs", func(s *scene) {
		hasty, patient := s.chat("hasty", with("Autobatcher-Deadline", "30m")), s.chat("patient")
		hasty.want(200, 29*time.Minute).says("hasty")
		if r := patient.wait().says("patient"); r.status != 200 || r.at < 100*time.Minute {
			s.Errorf("status %d at %v", r.status, r.at)
		}
		s.sent(2)
		if n := s.realtimeCalls(); n != 1 {
			s.Errorf("%d calls in real time", n)
		}
		// The same prompt again is a new call: the late answer was not kept.
		began := s.elapsed()
		if r := s.chat("hasty").wait().says("hasty"); r.at-began < time.Hour {
			s.Errorf("answered after %v with an answer that was paid for before", r.at-began)
		}
	})
	u.run(t, "its line is not taken over", func(s *scene) {
		first := s.chat("same", with("Autobatcher-Deadline", "30m"))
		other := s.chat("other")
		first.want(200, 29*time.Minute)
		again := s.chat("same")
		other.wait().want(200, s.elapsed()).says("other")
		again.wait().want(200, s.elapsed()).says("same")
		s.sent(2, 1)
	})
}

func TestTheEventNamesTheLine(t *testing.T) {
	u := escalating(stuck, autobatcher.EscalateDeadline)
	u.run(t, "of a batch", func(s *scene) {
		s.chat("a", with("Autobatcher-Deadline", "30m")).want(200, 29*time.Minute)
		want := s.batch()
		e := s.event(autobatcher.CallEscalated)
		if e.BatchID != want.ID || e.CustomID != want.Lines[0].CustomID || e.Endpoint != "/v1/chat/completions" || e.Error == "" || !slices.Equal(e.Models, []string{"m"}) {
			s.Errorf("event = %+v; want line %s of %s", e, want.Lines[0].CustomID, want.ID)
		}
	})
	u.run(t, "taken over from an earlier try", func(s *scene) {
		first := s.chat("a")
		s.until(20 * time.Second)
		first.leave()
		s.chat("a", with("Autobatcher-Deadline", "30m")).wait().want(200, s.elapsed())
		want := s.batch()
		if e := s.event(autobatcher.CallEscalated); e.BatchID != want.ID || e.CustomID != want.Lines[0].CustomID {
			s.Errorf("event names line %s of batch %q; want line %s of %s", e.CustomID, e.BatchID, want.Lines[0].CustomID, want.ID)
		}
	})
	u.run(t, "as JSON", func(s *scene) {
		s.chat("a", with("Autobatcher-Deadline", "30m")).wait()
		text, err := s.event(autobatcher.CallEscalated).MarshalJSON()
		if err != nil || !bytes.Contains(text, []byte(`"event":"call_escalated"`)) || !bytes.Contains(text, []byte(`"custom_id":`)) {
			s.Errorf("%s, %v", text, err)
		}
	})
}

// What is sent in real time is the very request that its caller made.
func TestAnEscalatedCallIsTheCallers(t *testing.T) {
	var sent []*http.Request
	var bodies []string
	u := escalating(stuck, autobatcher.EscalateDeadline)
	u.base = func(base http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if strings.HasSuffix(req.URL.Path, "/chat/completions") {
				body, _ := io.ReadAll(req.Body)
				req.Body.Close()
				sent, bodies = append(sent, req), append(bodies, string(body))
				req = req.Clone(req.Context())
				req.Body = io.NopCloser(bytes.NewReader(body))
			}
			return base.RoundTrip(req)
		})
	}
	u.play(t, func(s *scene) {
		body := "{\n \"stream\": true, \"stream_options\": {\"include_usage\": true},\n \"model\": \"m\", \"messages\": [{\"role\":\"user\",\"content\":\"flow\"}] }"
		call := s.send("/chat/completions", body, with("Autobatcher-Deadline", "30m"), with("X-Mine", "yes"))
		r := call.want(200, 29*time.Minute)
		if !strings.HasPrefix(r.body, "data: ") || !strings.HasSuffix(r.body, "data: [DONE]\n\n") || !strings.Contains(r.body, `"usage"`) {
			s.Errorf("stream = %s", r.body)
		}
		if len(sent) != 1 || bodies[0] != body || sent[0].Header.Get("X-Mine") != "yes" || sent[0].ContentLength != int64(len(body)) {
			s.Fatalf("sent %q, %v", bodies, sent)
		}
		for name := range sent[0].Header {
			if strings.HasPrefix(name, "Autobatcher-") {
				s.Errorf("%s left the process", name)
			}
		}
	})
}

func TestRealtimeTrouble(t *testing.T) {
	u := escalating(stuck, autobatcher.EscalateDeadline)
	u.run(t, "the provider's error is the call's", func(s *scene) {
		s.srv.Control(batchtest.OpRealtime, batchtest.Status(429, nil, `{"error":{"message":"busy","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}`))
		r := s.chat("a", with("Autobatcher-Deadline", "30m")).want(429, 29*time.Minute)
		if r.header.Get("Autobatcher-Mode") != "realtime" || s.realtimeCalls() != 1 {
			s.Errorf("%v, %d calls", r.header, s.realtimeCalls())
		}
	})
	u.run(t, "no answer is an error response", func(s *scene) {
		s.srv.Control(batchtest.OpRealtime, batchtest.Reset())
		s.chat("a", with("Autobatcher-Deadline", "30m")).want(502, 29*time.Minute).fails("realtime_failed")
	})
	bare := u
	bare.base = func(base http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if strings.HasSuffix(req.URL.Path, "/chat/completions") {
				return &http.Response{StatusCode: 503}, nil
			}
			return base.RoundTrip(req)
		})
	}
	bare.run(t, "an answer without header and body", func(s *scene) {
		r := s.chat("a", with("Autobatcher-Deadline", "30m")).want(503, 29*time.Minute)
		if r.header.Get("Autobatcher-Mode") != "realtime" || r.body != "" {
			s.Errorf("%v, %q", r.header, r.body)
		}
	})
	u.run(t, "a deadline of its own", func(s *scene) {
		s.srv.Keep(batchtest.OpRealtime, batchtest.Delay(5*time.Hour))
		r := s.chat("a", with("Autobatcher-Deadline", "30m")).wait()
		if r.at > 31*time.Minute {
			s.Errorf("ended at %v with %d; its deadline was 30m", r.at, r.status)
		}
	})
	u.run(t, "the context's deadline", func(s *scene) {
		s.srv.Keep(batchtest.OpRealtime, batchtest.Hang())
		ctx, cancel := context.WithTimeout(s.Context(), 20*time.Minute)
		defer cancel()
		r := s.do(s.request(ctx, "/chat/completions", chatBody("a")))
		if !errors.Is(r.err, context.DeadlineExceeded) || r.at != 20*time.Minute {
			s.Errorf("status %d, error %v at %v", r.status, r.err, r.at)
		}
	})
	u.run(t, "not while closing", func(s *scene) {
		call := s.chat("a", with("Autobatcher-Deadline", "30m"))
		s.until(time.Minute)
		s.tr.Close()
		if r := call.wait(); !errors.Is(r.err, autobatcher.ErrClosed) || s.realtimeCalls() != 0 {
			s.Errorf("error %v, %d calls in real time", r.err, s.realtimeCalls())
		}
	})
}

// An answer that is there in the very moment of escalation is the one to take.
func TestNoEscalationOfWhatIsAnswered(t *testing.T) {
	for range 20 {
		u := escalating(batchtest.Options{}, autobatcher.EscalateDeadline)
		u.options.PollInterval, u.options.EscalateMargin = 5*time.Second, time.Minute
		u.play(t, func(s *scene) {
			// The poll at 15 s, and the margin's beginning at 15 s.
			r := s.chat("a", with("Autobatcher-Deadline", "75s")).want(200, 15*time.Second).says("a")
			synctest.Wait()
			batched := r.header.Get("Autobatcher-Mode") == ""
			if batched && s.realtimeCalls() != 0 {
				s.Error("answered by the batch, and sent in real time too")
			}
		})
	}
}

func TestStatsOfEscalatedCalls(t *testing.T) {
	escalating(hopeless, autobatcher.EscalateFailed).play(t, func(s *scene) {
		s.rush(3, numbered)
		synctest.Wait()
		if got := s.tr.Stats(); got.Queued != 0 || got.Running != 0 || got.Failed != 0 {
			s.Errorf("stats = %+v", got)
		}
	})
}

// A call that was sent in real time while its batch was held back is not sent
// again with it.
func TestEscalatedWhileHeldBack(t *testing.T) {
	p := provider.OpenAI()
	p.CreationsPerHour = 1
	u := setup{options: autobatcher.Options{Escalate: autobatcher.EscalateDeadline, BatchSize: 1, Provider: &p}}
	u.play(t, func(s *scene) {
		s.chat("first").wait().want(200, s.elapsed())
		began := s.elapsed()
		r := s.chat("second", with("Autobatcher-Deadline", "10m")).want(200, began+9*time.Minute)
		if r.header.Get("Autobatcher-Mode") != "realtime" {
			s.Errorf("header = %v", r.header)
		}
		s.until(3 * time.Hour)
		s.sent(1)
		s.paidOnce()
	})
}

// At Doubleword the results of what was under way still come after a cancel,
// and are paid for: they are waited for before anything is sent again.
func TestResultsThatComeAfterACancel(t *testing.T) {
	u := doubleword(batchtest.Options{}, autobatcher.Options{Resubmits: 1})
	u.play(t, func(s *scene) {
		a, b := s.chat("a"), s.chat("b")
		s.until(12 * time.Second)
		s.cancel(s.batch().ID)
		// At the first look one of two has been written.
		s.srv.Control(batchtest.OpRetrieve, field("request_counts", `{"total":2,"completed":1,"failed":0}`))
		s.srv.Control(batchtest.OpContent, rewrite(func(body []byte, h http.Header) []byte {
			h.Set("X-Last-Line", "1")
			return body[:bytes.IndexByte(body, '\n')+1]
		}))
		for text, call := range map[string]*pending{"a": a, "b": b} {
			if r := call.wait().says(text); r.status != 200 {
				s.Errorf("%s: status %d", text, r.status)
			}
		}
		s.until(s.elapsed() + time.Hour)
		s.sent(2)
		s.paidOnce()
	})
}
