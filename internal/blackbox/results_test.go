package blackbox_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// answers makes a model of what it says to each text; others are echoed.
func answers(by map[string]batchtest.Outcome) func(batchtest.Line) batchtest.Outcome {
	return func(l batchtest.Line) batchtest.Outcome {
		for text, outcome := range by {
			if bytes.Contains(l.Body, []byte(`"`+text+`"`)) {
				return outcome
			}
		}
		return batchtest.Outcome{}
	}
}

// rawLine makes a model that writes the same line for every call; ID stands for
// the custom_id.
func rawLine(text string) func(batchtest.Line) batchtest.Outcome {
	return func(l batchtest.Line) batchtest.Outcome {
		return batchtest.Outcome{Garbage: strings.ReplaceAll(text, "ID", l.CustomID)}
	}
}

// Both result files are read: a failed line costs its own caller only.
func TestMixedSuccessAndError(t *testing.T) {
	outcomes := map[string]batchtest.Outcome{
		"bad":     {Status: 400, Body: []byte(`{"error":{"message":"bad","type":"invalid_request_error","param":"messages","code":"x"}}`)},
		"limited": {Status: 429}, "broken": {Status: 500},
		"garbage": {Garbage: "<html>"}, "garbage2": {Garbage: `{"custom_id":7,"response":[]}`}, "garbage3": {Garbage: "null"},
		"timeout": {Code: "request_timeout", Message: "took too long"},
	}
	for name, behavior := range map[string]batchtest.Behavior{
		"OpenAI": batchtest.OpenAI(), "Doubleword": batchtest.Doubleword(), "llm-d": batchtest.LLMD(),
	} {
		o := batchtest.Options{Behavior: behavior, Answer: answers(outcomes)}
		setup{server: o}.run(t, name, func(s *scene) { // seed: test_fetch_partial_results/mixed_success_and_error, /error_lines_set_exceptions
			good, bad, limited := s.chat("good"), s.chat("bad"), s.chat("limited")
			broken, timeout, also := s.chat("broken"), s.chat("timeout"), s.chat("also good")
			for _, text := range []string{"garbage", "garbage2", "garbage3"} {
				s.chat(text)
			}
			good.want(200, 15*time.Second).says("good")
			also.want(200, 15*time.Second).says("also good")
			b := bad.want(400, 15*time.Second)
			if b.body != string(outcomes["bad"].Body) {
				s.Errorf("body = %s", b.body)
			}
			for _, r := range []reply{b, limited.want(429, 15*time.Second), broken.want(500, 15*time.Second), timeout.want(424, 15*time.Second)} {
				again := r.status == 429 || r.status == 500 // the provider's fault may have passed
				if (r.header.Get("X-Should-Retry") != "false") != again || r.header.Get("Retry-After") != "" {
					s.Errorf("headers of a %d: %v; SDKs may retry: want %v", r.status, r.header, again)
				}
			}
		})
	}
}

// Finished lines are paid for, so the results of a batch that expired, failed or was
// cancelled are read, and the other callers get the reason.
func TestEveryTerminalState(t *testing.T) {
	u := setup{server: batchtest.Options{Answer: answers(map[string]batchtest.Outcome{
		"done": {Delay: time.Second}, "refused": {Delay: time.Second, Status: 400}, "late": {Never: true},
	})}}
	// seed: test_poll_batches/failed_batch_sets_exceptions
	ends := map[string]func(s *scene, id string){
		"expired":   func(s *scene, id string) { s.srv.Expire(id) },
		"cancelled": func(s *scene, id string) { s.cancel(id) },
	}
	for status, end := range ends {
		u.run(t, status, func(s *scene) {
			done, refused, late := s.chat("done"), s.chat("refused"), s.chat("late")
			s.until(12 * time.Second)
			end(s, s.batch().ID)
			done.want(200, 15*time.Second).says("done")
			refused.want(400, 15*time.Second)
			r := late.want(424, 15*time.Second)
			if m := r.fails("batch_" + status); !strings.Contains(m, s.batch().ID) {
				s.Errorf("message %q does not name the batch", m)
			}
			if r.header.Get("X-Should-Retry") != "false" || r.header.Get("Autobatcher-Batch-Id") != s.batch().ID {
				s.Errorf("header = %v", r.header)
			}
		})
	}
	u.run(t, "failed", func(s *scene) {
		call := s.chat("late")
		s.until(12 * time.Second)
		s.srv.FailBatch(s.batch().ID, "model_not_found", "no such model", 7)
		m := call.want(424, 15*time.Second).fails("batch_failed")
		for _, part := range []string{s.batch().ID, "failed", "model_not_found", "no such model", "line 7"} {
			if !strings.Contains(m, part) {
				s.Errorf("message %q does not say %q", m, part)
			}
		}
	})
	doubleword(batchtest.Options{Answer: u.server.Answer}, autobatcher.Options{}).run(t, "cancelled without lines", func(s *scene) {
		done, late := s.chat("done"), s.chat("late")
		s.until(12 * time.Second)
		s.cancel(s.batch().ID)
		done.want(200, 15*time.Second)
		r := late.wait()
		if r.status != 424 || r.at > 3*time.Minute {
			s.Errorf("status %d at %v", r.status, r.at)
		}
		if m := r.fails("batch_cancelled"); !strings.Contains(m, s.batch().ID) {
			s.Errorf("message %q does not name the batch", m)
		}
	})
	// With all lines failed there is no output file: "completed but no output
	// file" was all that callers got to know.
	for name, behavior := range map[string]batchtest.Behavior{"OpenAI": batchtest.OpenAI(), "Doubleword": batchtest.Doubleword()} {
		all := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: 422} }
		setup{server: batchtest.Options{Behavior: behavior, Answer: all}}.run(t, "all lines failed/"+name, func(s *scene) {
			for _, c := range s.chats(3) {
				c.want(422, 15*time.Second)
			}
		})
	}
}

// A failed or incomplete download of a finished batch is repeated.
func TestFinalDownload(t *testing.T) {
	for name, f := range map[string]batchtest.Fault{
		"reset": batchtest.Reset(), "500": batchtest.HTML(500), "torn": batchtest.Tear(200), "429": batchtest.RateLimit(time.Second),
		"404": batchtest.HTML(404), "cut within a line": batchtest.Truncate(200), "a page": batchtest.HTML(200), "empty": batchtest.Truncate(0),
	} {
		setup{}.run(t, name, func(s *scene) {
			s.srv.Control(batchtest.OpContent, every(5, f)...)
			for i, c := range s.chats(3) {
				r := c.wait().says(fmt.Sprintf("call %d", i))
				if r.status != 200 || r.at > time.Minute {
					s.Errorf("status %d at %v", r.status, r.at)
				}
			}
			s.sent(3)
		})
	}
	// Doubleword says 404 for any trouble with its storage.
	setup{again: true}.run(t, "not found for five minutes", func(s *scene) {
		s.srv.Control(batchtest.OpContent, every(16, batchtest.HTML(404))...)
		if r := s.chat("a").wait(); r.status != 200 || r.at < 5*time.Minute || r.at > 10*time.Minute {
			s.Errorf("status %d at %v", r.status, r.at)
		}
		s.sent(1)
	})
	setup{}.run(t, "broken for half an hour", func(s *scene) {
		s.srv.Control(batchtest.OpContent, every(65, batchtest.HTML(503))...)
		if r := s.chat("a").wait(); r.status != 200 || r.at < 25*time.Minute {
			s.Errorf("status %d at %v", r.status, r.at)
		}
	})
	setup{}.run(t, "broken for half an hour, and then not whole at first", func(s *scene) {
		s.srv.Control(batchtest.OpContent, every(65, batchtest.HTML(503))...)
		s.srv.Control(batchtest.OpContent, rewriteOutput(func([]byte, http.Header) []byte { return nil }))
		if r := s.chat("a").wait(); r.status != 200 || r.at < 25*time.Minute {
			s.Errorf("status %d at %v", r.status, r.at)
		}
		s.sent(1)
	})
	doubleword(batchtest.Options{}, autobatcher.Options{}).run(t, "incomplete after completion", func(s *scene) {
		s.srv.Control(batchtest.OpContent, rewriteOutput(func(body []byte, h http.Header) []byte {
			first, _, _ := bytes.Cut(body, []byte("\n"))
			h.Set("X-Incomplete", "true")
			h.Set("X-Last-Line", "1")
			return append(first, '\n')
		}))
		for i, c := range s.chats(3) {
			r := c.wait().says(fmt.Sprintf("call %d", i))
			if r.status != 200 || r.at > 17*time.Second {
				s.Errorf("status %d at %v", r.status, r.at)
			}
		}
	})
	// What sorts before lines that were read already moves those behind what was read.
	late := batchtest.Options{Turnaround: time.Minute, Answer: func(l batchtest.Line) batchtest.Outcome {
		if o := batchtest.Echo(l); strings.Contains(string(l.Body), "late") {
			o.Displaced, o.Delay = true, 30*time.Second
			return o
		}
		return batchtest.Echo(l)
	}}
	doubleword(late, autobatcher.Options{}).run(t, "a line that sorts before those that were read", func(s *scene) {
		early, late := s.chat("early"), s.chat("late")
		early.wait().want(200, s.elapsed())
		if r := late.wait(); r.status != 200 {
			s.Errorf("status %d at %v", r.status, r.at)
		}
		s.sent(2)
	})
	// The result is paid for, and so the call is not resubmitted.
	setup{again: true}.run(t, "never whole", func(s *scene) {
		s.srv.Keep(batchtest.OpContent, batchtest.Tear(10))
		r := s.chat("a").wait()
		if r.status != 424 || r.at < 23*time.Hour || r.at > 25*time.Hour {
			s.Errorf("status %d at %v", r.status, r.at)
		}
		r.fails("batch_results_unread")
		s.sent(1)
	})
}

// A call whose line is missing from the results ends with an error.
func TestMissingLines(t *testing.T) {
	missing := answers(map[string]batchtest.Outcome{"missing": {Missing: true}})
	for name, behavior := range map[string]batchtest.Behavior{"OpenAI": batchtest.OpenAI(), "Doubleword": batchtest.Doubleword()} {
		setup{server: batchtest.Options{Behavior: behavior, Answer: missing}}.run(t, name, func(s *scene) {
			good, gone := s.chat("good"), s.chat("missing")
			good.want(200, 15*time.Second)
			r := gone.wait()
			if r.status != 424 || r.at > 3*time.Minute {
				s.Errorf("status %d at %v", r.status, r.at)
			}
			if m := r.fails("batch_line_missing"); !strings.Contains(m, s.batch().ID) {
				s.Errorf("message %q does not name the batch", m)
			}
		})
	}
}

// seed: test_embeddings/mixed_batch_parses_both_types, test_responses/mixed_batch_parses_both_types,
// test_fetch_partial_results/per_request_result_type_parsing, test_submit_batch/active_batch_has_result_types
// seed: test_embeddings/embedding_error_sets_exception, test_responses/response_error_sets_exception
func TestEachCallGetsItsOwnKindOfAnswer(t *testing.T) {
	failing := answers(map[string]batchtest.Outcome{"bad": {Status: 400}})
	doubleword(batchtest.Options{Answer: failing}, autobatcher.Options{}).run(t, "mixed_batch_parses_both_types", func(s *scene) {
		chat, embedding, response := s.chat("a"), s.send("/embeddings", embeddingBody("b")), s.send("/responses", `{"model":"m","input":"c"}`)
		badEmbedding, badResponse := s.send("/embeddings", embeddingBody("bad")), s.send("/responses", `{"model":"m","input":"bad"}`)
		for p, want := range map[*pending]string{
			chat: `"object":"chat.completion"`, embedding: `"object":"embedding"`, response: `"object":"response"`,
		} {
			if r := p.want(200, 15*time.Second); !strings.Contains(r.body, want) {
				s.Errorf("body = %s, want %s", r.body, want)
			}
		}
		badEmbedding.want(400, 15*time.Second)
		badResponse.want(400, 15*time.Second)
		s.sent(5)
	})
}

// A retry takes over the line or the answer of the earlier attempt.
func TestReconnecting(t *testing.T) {
	u := setup{server: batchtest.Options{Turnaround: time.Minute}}
	// orphan leaves a line behind: sent at 10 s, left at 20 s, answered at 70 s.
	orphan := func(s *scene, edits ...edit) {
		call := s.chat("a", edits...)
		s.until(20 * time.Second)
		call.leave()
		call.wait()
	}
	u.run(t, "a retry takes over the line", func(s *scene) {
		orphan(s)
		s.until(21 * time.Second)
		r := s.chat("a").want(200, 70*time.Second)
		s.sent(1)
		if id := s.batch().Lines[0].CustomID; r.header.Get("Autobatcher-Custom-Id") != id || r.header.Get("Autobatcher-Batch-Id") != s.batch().ID {
			s.Errorf("header = %v, want line %s", r.header, id)
		}
		for work, n := range s.srv.Paid() {
			if n != 1 {
				s.Errorf("%s was paid for %d times", work, n)
			}
		}
	})
	u.run(t, "a retry that comes before its first try is seen to end", func(s *scene) {
		first := s.chat("a")
		s.until(15 * time.Second)
		retry := s.chat("a")
		s.until(20 * time.Second)
		first.leave()
		retry.want(200, 70*time.Second)
		s.sent(1)
	})
	u.run(t, "a retry of a retry", func(s *scene) {
		orphan(s)
		retry := s.chat("a")
		s.until(31 * time.Second) // it has the line since 30 s
		retry.leave()
		s.chat("a").want(200, 70*time.Second)
		s.sent(1)
		if st := s.tr.Stats(); st.Left != 2 || st.Answered != 1 || st.Running != 0 {
			s.Errorf("stats = %+v", st)
		}
	})
	u.run(t, "as many retries as there were calls", func(s *scene) {
		var first, retries []*pending
		for range 5 {
			first = append(first, s.chat("a"))
		}
		s.until(20 * time.Second)
		for _, c := range first {
			c.leave()
		}
		for range 7 {
			retries = append(retries, s.chat("a"))
		}
		ids := map[string]bool{}
		for _, c := range retries {
			ids[c.wait().header.Get("Autobatcher-Custom-Id")] = true
		}
		if len(ids) != 7 {
			s.Errorf("%d lines for 7 calls", len(ids))
		}
		s.sent(5, 2)
	})
	u.run(t, "an answer that was read is not given again", func(s *scene) {
		ctx, leave := context.WithCancel(s.Context())
		r := s.do(s.request(ctx, "/chat/completions", chatBody("a"))).want(200, 70*time.Second)
		leave()
		r.res.Body.Close()
		s.chat("a").want(200, 140*time.Second)
		s.sent(1, 1)
	})
	u.run(t, "a retry gets the answer that came meanwhile", func(s *scene) {
		orphan(s)
		s.until(100 * time.Second)
		s.chat("a").want(200, 100*time.Second).says("a")
		s.sent(1)
	})
	u.run(t, "an answer is given once", func(s *scene) {
		orphan(s)
		s.until(100 * time.Second)
		one, two := s.chat("a"), s.chat("a")
		a, b := one.wait(), two.wait()
		if min(a.at, b.at) != 100*time.Second || max(a.at, b.at) != 170*time.Second {
			s.Errorf("answers at %v and %v; want one kept and one new", a.at, b.at)
		}
		s.sent(1, 1)
	})
	keep := setup{server: u.server, options: autobatcher.Options{KeepFor: time.Minute}}
	for name, test := range map[string]struct {
		retry, at time.Duration
		batches   []int
	}{"just in time": {130*time.Second - 1, 130*time.Second - 1, []int{1}}, "too late": {130 * time.Second, 200 * time.Second, []int{1, 1}}} {
		keep.run(t, "kept for a minute/"+name, func(s *scene) {
			orphan(s)
			s.until(test.retry)
			s.chat("a").want(200, test.at)
			s.sent(test.batches...)
		})
	}
	none := setup{server: u.server, options: autobatcher.Options{KeepFor: -1}}
	none.run(t, "none is kept if negative", func(s *scene) {
		orphan(s)
		s.until(100 * time.Second)
		s.chat("a").want(200, 170*time.Second)
		s.sent(1, 1)
	})
	for name, other := range map[string]edit{
		"another credential": key("other"),
		"another body": func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(chatBody("a")+" ")), -1
		},
		"another URL": func(r *http.Request) { r.URL.RawQuery = "x=1" },
	} {
		u.run(t, name+" never sees it", func(s *scene) {
			orphan(s)
			s.until(100 * time.Second)
			s.chat("a", other).want(200, 170*time.Second)
			s.sent(1, 1)
		})
	}
	setup{server: batchtest.Options{Turnaround: time.Minute, FailRate: 1}}.run(t, "failures are not kept", func(s *scene) {
		orphan(s)
		s.until(100 * time.Second)
		s.chat("a").want(500, 170*time.Second)
		s.sent(1, 1)
	})
	u.run(t, "calls alive side by side are never merged", func(s *scene) {
		calls := make([]*pending, 5)
		for i := range calls {
			calls[i] = s.chat("a")
		}
		s.until(15 * time.Second)
		later := s.chat("a")
		for _, c := range calls {
			c.want(200, 70*time.Second)
		}
		later.want(200, 85*time.Second)
		s.sent(5, 1)
	})
	u.run(t, "an answer that its caller did not live to read", func(s *scene) {
		ctx, leave := context.WithCancel(s.Context())
		res, err := s.tr.RoundTrip(s.request(ctx, "/chat/completions", chatBody("a")))
		if err != nil {
			s.Fatal(err)
		}
		leave()
		res.Body.Close()
		s.chat("a").want(200, 70*time.Second).says("a")
		s.sent(1)
	})
	setup{server: batchtest.Options{Turnaround: time.Hour}, options: autobatcher.Options{PollInterval: time.Minute}}.run(t, "the line of a cancelled batch is not taken over", func(s *scene) {
		s.srv.Control(batchtest.OpCancel, field("status", `"cancelling"`))
		s.srv.Control(batchtest.OpRetrieve, every(5, field("status", `"in_progress"`))...)
		orphan(s)
		s.until(141 * time.Second) // cancelled upstream a second ago
		if r := s.chat("a").wait(); r.status != 200 {
			s.Errorf("status %d at %v: %s", r.status, r.at, r.body)
		}
	})
	u.run(t, "a retry's stream is its own", func(s *scene) {
		call := s.send("/chat/completions", `{"model":"m","stream":true,"messages":[]}`)
		s.until(20 * time.Second)
		call.leave()
		s.until(100 * time.Second)
		r := s.post("/chat/completions", `{"model":"m","stream":true,"messages":[]}`).want(200, 100*time.Second)
		if !strings.HasPrefix(r.body, "data: ") {
			s.Errorf("body = %.100s", r.body)
		}
		s.sent(1)
	})
}

// A response body must not be shared between callers.
func TestABodyIsReadByOneCaller(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		a, b := s.chat("a"), s.chat("a")
		if x, y := a.wait(), b.wait(); x.body != y.body || x.body == "" {
			s.Errorf("bodies %q and %q", x.body, y.body)
		}
		synctest.Wait()
	})
}

// Calls that a batch left without an answer are resubmitted, and a bad line costs its
// own caller only.
func TestResubmitting(t *testing.T) {
	once := func(outcome batchtest.Outcome) func(batchtest.Line) batchtest.Outcome {
		var seen sync.Map
		return func(l batchtest.Line) batchtest.Outcome {
			if _, again := seen.LoadOrStore(l.CustomID, true); again || !bytes.Contains(l.Body, []byte("unlucky")) {
				return batchtest.Outcome{}
			}
			return outcome
		}
	}
	for name, outcome := range map[string]batchtest.Outcome{
		"missing": {Missing: true}, "garbage": {Garbage: "{"}, "timeout": {Code: "request_timeout", Message: "slow"},
	} {
		u := setup{again: true, server: batchtest.Options{Answer: once(outcome)}}
		u.run(t, name, func(s *scene) {
			lucky, unlucky := s.chat("lucky"), s.chat("unlucky")
			lucky.want(200, 15*time.Second)
			r := unlucky.wait().says("unlucky")
			if r.status != 200 || r.at > 5*time.Minute {
				s.Errorf("status %d at %v", r.status, r.at)
			}
			s.sent(2, 1)
		})
	}
	setup{again: true, server: batchtest.Options{Turnaround: time.Hour}}.run(t, "not for those who left", func(s *scene) {
		call := s.chat("a")
		s.until(11 * time.Second)
		call.leave()
		s.srv.Expire(s.batch().ID)
		s.until(time.Minute)
		s.sent(1)
	})
	doubleword(batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		if bytes.Contains(l.Body, []byte("slow")) {
			return batchtest.Outcome{Delay: time.Hour}
		}
		return batchtest.Outcome{Code: "request_timeout", Message: "slow", Delay: time.Second}
	}}, autobatcher.Options{Resubmits: 1, PollInterval: time.Minute}).run(t, "without waiting for the slowest of its batch", func(s *scene) {
		slow, failed := s.chat("slow"), s.chat("a")
		if r := failed.wait(); r.status != 424 || r.at > 10*time.Minute {
			s.Errorf("status %d at %v, want the end of the second attempt within minutes", r.status, r.at)
		}
		slow.leave()
	})
	models := batchtest.Options{Models: []string{"m"}}
	for name, u := range map[string]setup{
		"named at upload": doubleword(models, autobatcher.Options{}), "named while validating": {server: models},
	} {
		p := u.options.Provider
		if p == nil {
			generic := provider.Generic()
			generic.OneModel, p = false, &generic
		}
		u.options.Provider = p
		u.run(t, "a bad line costs its caller alone/"+name, func(s *scene) {
			good, also := s.chat("a"), s.chat("b")
			bad := s.send("/chat/completions", `{"model":"nonesuch","messages":[]}`)
			if r := bad.wait(); r.status < 400 || r.status > 404 || !strings.Contains(r.body, "nonesuch") {
				s.Errorf("status %d: %s", r.status, r.body)
			}
			for _, c := range []*pending{good, also} {
				if r := c.wait(); r.status != 200 {
					s.Errorf("status %d at %v: %s", r.status, r.at, r.body)
				}
			}
		})
	}
}

// The answers kept for callers that disconnected are bounded, and the oldest are
// dropped first.
func TestKeptAnswersAreBounded(t *testing.T) {
	setup{options: autobatcher.Options{BatchSize: 1}}.play(t, func(s *scene) {
		s.srv.Keep(batchtest.OpContent, rewrite(func(body []byte, _ http.Header) []byte {
			return bytes.Replace(body, []byte("You said"), bytes.Repeat([]byte("x"), 30<<20), 1)
		}))
		for i := range 3 {
			call := s.chat(fmt.Sprint("call ", i))
			call.left()
			s.until(s.elapsed() + time.Minute)
		}
		mine := func(i int) int {
			before := len(s.srv.Batches())
			s.chat(fmt.Sprint("call ", i)).leave()
			s.until(s.elapsed() + time.Minute)
			return len(s.srv.Batches()) - before
		}
		for _, i := range []int{2, 1} { // two answers fit
			if n := mine(i); n != 0 {
				s.Errorf("call %d was bought again, though its answer was among the newest 64 MiB", i)
			}
		}
		if n := mine(0); n != 1 {
			s.Errorf("%d batches for a call whose answer no longer fitted, want 1", n)
		}
	})
}

// A failure that could not be passed on, since the proxy had begun its answer, is
// kept for two minutes. The SDK's retry gets the failure, and no line is bought.
func TestAFailureThatWasNotPassedOnIsKept(t *testing.T) {
	bad := answers(map[string]batchtest.Outcome{"text": {Status: 400}})
	setup{server: batchtest.Options{Answer: bad}}.play(t, func(s *scene) {
		ask := func(end func(*http.Response)) {
			s.Helper()
			res, err := s.tr.RoundTrip(s.request(s.Context(), "/chat/completions", chatBody("text")))
			if err != nil || res.StatusCode != http.StatusBadRequest {
				s.Fatalf("%v, %v; want the line's 400", res, err)
			}
			io.Copy(io.Discard, res.Body)
			end(res)
		}
		keep := func(res *http.Response) { keepAnswer(s.T, res) }
		read := func(res *http.Response) { res.Body.Close() }
		ask(keep)
		ask(read)
		if n := len(s.srv.Executed()); n != 1 {
			s.Errorf("%d lines were executed for a call and its retry, want 1", n)
		}
		ask(keep)
		s.until(s.elapsed() + 2*time.Minute)
		ask(read)
		if n := len(s.srv.Executed()); n != 3 {
			s.Errorf("%d lines were executed, want 3: two minutes later the call is a new call", n)
		}
	})
}
