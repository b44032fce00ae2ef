package blackbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

func TestWatching(t *testing.T) {
	setup{server: batchtest.Options{Turnaround: 8 * time.Second}}.run(t, "poll_emits_progress_and_completed_events", func(s *scene) {
		for _, c := range s.chats(2) {
			c.want(200, 20*time.Second)
		}
		synctest.Wait()
		want := []autobatcher.EventName{
			autobatcher.BatchSubmitted, autobatcher.BatchProgress, autobatcher.BatchProgress, autobatcher.BatchCompleted,
		}
		if diff := cmp.Diff(want, s.eventNames()); diff != "" {
			s.Fatal(diff)
		}
		counts := []autobatcher.Counts{s.events[1].Counts, s.events[2].Counts, s.events[3].Counts}
		if diff := cmp.Diff([]autobatcher.Counts{{Completed: 1, Total: 2}, {Completed: 2, Total: 2}, {Completed: 2, Total: 2}}, counts); diff != "" {
			s.Error(diff)
		}
	})
	setup{server: batchtest.Options{Turnaround: time.Hour}, options: autobatcher.Options{PollInterval: time.Minute}}.run(t, "progress is emitted only when it changes", func(s *scene) {
		s.chat("a").want(200, 3610*time.Second)
		synctest.Wait()
		if n := len(s.eventNames()); n != 4 { // submitted, in progress, completed twice
			s.Errorf("events %v", s.eventNames())
		}
	})
	setup{}.run(t, "completed_batch_resolves_futures", func(s *scene) {
		for i, c := range s.chats(3) {
			c.want(200, 15*time.Second).says(fmt.Sprintf("call %d", i))
		}
	})
	doubleword(batchtest.Options{Turnaround: 20 * time.Second}, autobatcher.Options{}).run(t, "in_progress_fetches_partial_results", func(s *scene) {
		calls := s.chats(2)
		calls[0].want(200, 20*time.Second).says("call 0")
		calls[1].want(200, 30*time.Second).says("call 1")
	})
	setup{}.run(t, "output_file_id_updated_when_available", func(s *scene) {
		s.srv.Control(batchtest.OpRetrieve, field("output_file_id", "null"))
		r := s.chat("a").wait()
		if r.status != 200 || r.at <= 15*time.Second || r.at > 17*time.Second {
			s.Errorf("status %d at %v, want 200 soon after 15s", r.status, r.at)
		}
	})
	setup{}.run(t, "poller_exits_when_no_active_batches", func(s *scene) {
		s.chat("a").want(200, 15*time.Second)
		n := len(s.srv.Requests())
		s.until(24 * time.Hour)
		if got := len(s.srv.Requests()); got != n {
			s.Errorf("%d requests after the batch had ended", got-n)
		}
	})
}

func TestStatuses(t *testing.T) {
	for _, status := range []string{"paused", "IN_PROGRESS", "", "queued", "Validating"} {
		setup{server: batchtest.Options{Turnaround: 18 * time.Second}}.run(t, "not terminal: "+status, func(s *scene) {
			s.srv.Control(batchtest.OpRetrieve, every(3, field("status", `"`+status+`"`))...)
			s.chat("a").want(200, 30*time.Second)
		})
	}
	azure, together := provider.Azure(), provider.Together()
	setup{
		server: batchtest.Options{Behavior: batchtest.Azure()}, options: autobatcher.Options{Provider: &azure},
	}.run(t, "Azure", func(s *scene) {
		s.chat("a").want(200, 70*time.Second).says("a") // it wants a minute between polls
	})
	setup{
		server: batchtest.Options{Behavior: batchtest.Together()}, options: autobatcher.Options{Provider: &together},
	}.run(t, "Together", func(s *scene) {
		s.chat("a").want(200, 40*time.Second).says("a")
	})
}

// A batch that was gone, or a key that was revoked, was polled for ever.
func TestABatchThatIsLost(t *testing.T) {
	never := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Never: true} }
	doubleword(batchtest.Options{Answer: never}, autobatcher.Options{PollInterval: time.Hour}).run(t, "never ends", func(s *scene) {
		r := s.chat("a").wait()
		if r.status != 424 || r.at < 25*time.Hour || r.at > 27*time.Hour {
			s.Errorf("status %d at %v, want 424 a day past the window", r.status, r.at)
		}
		r.fails("batch_overdue")
	})
	u := doubleword(batchtest.Options{Validating: time.Hour}, autobatcher.Options{PollInterval: time.Minute})
	u.run(t, "cancelling for ever", func(s *scene) {
		call := s.chat("a")
		s.until(11 * time.Second)
		s.cancel(s.batch().ID)
		r := call.wait()
		if r.status != 424 || r.at < 20*time.Minute || r.at > 25*time.Minute {
			s.Errorf("status %d at %v, want 424 after twenty minutes", r.status, r.at)
		}
		r.fails("batch_cancelled")
	})
}

// cancel cancels a batch as its owner could, behind the Transport's back.
func (s *scene) cancel(batchID string) {
	s.Helper()
	req := s.request(s.Context(), "/batches/"+batchID+"/cancel", "{}")
	res, err := s.srv.Client().Do(req)
	if err != nil || res.StatusCode != 200 {
		s.Fatalf("cancel: %v, %v", res, err)
	}
	res.Body.Close()
}

// A slow download delays its own batch only.
func TestBatchesDoNotWaitForEachOther(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		s.srv.Control(batchtest.OpContent, batchtest.Delay(2*time.Minute))
		a, b := s.chat("a"), s.chat("b", key("other"))
		first, second := a.wait(), b.wait()
		if min(first.at, second.at) != 15*time.Second || max(first.at, second.at) != 135*time.Second {
			s.Errorf("answers at %v and %v, want 15s and 2m15s", first.at, second.at)
		}
	})
}

// Results are read while the batch runs, each line once where the server allows that.
func TestPartialResults(t *testing.T) {
	u := doubleword(batchtest.Options{Turnaround: 20 * time.Second}, autobatcher.Options{})
	// seed: test_fetch_partial_results/offset_appended_when_nonzero, /offset_not_appended_when_zero,
	// /x_incomplete_true_returns_true, /x_incomplete_false_returns_false, /partial_results_resolve_futures
	u.run(t, "offset_appended_when_nonzero", func(s *scene) {
		var asked []string
		watchContent(s, &asked)
		calls := s.chats(4)
		for i, c := range calls {
			c.want(200, time.Duration(15+5*i)*time.Second)
		}
		s.until(time.Minute)
		want := []string{"", "offset=1&skip=1", "offset=2&skip=2", "offset=3&skip=3"}
		if diff := cmp.Diff(want, asked); diff != "" {
			s.Error(diff)
		}
	})
	u.run(t, "x_last_line_updates_offset", func(s *scene) {
		var asked []string
		s.srv.Control(batchtest.OpContent, rewriteOutput(func(body []byte, h http.Header) []byte {
			h.Set("X-Last-Line", "42")
			return body
		}))
		calls := s.chats(2)
		calls[0].want(200, 20*time.Second)
		synctest.Wait()
		watchContent(s, &asked)
		if r := calls[1].wait(); r.status != 200 {
			s.Errorf("status %d: a line was lost behind a wrong promise", r.status)
		}
		if len(asked) == 0 || asked[0] != "offset=42&skip=42" {
			s.Errorf("asked for %q, want to go on at 42", asked)
		}
	})
	u.run(t, "http_404_returns_true", func(s *scene) {
		s.srv.Control(batchtest.OpContent, every(4, batchtest.HTML(404))...)
		calls := s.chats(2)
		calls[0].want(200, 25*time.Second)
		calls[1].want(200, 30*time.Second)
	})
	for name, f := range map[string]batchtest.Fault{
		"reset": batchtest.Reset(), "500": batchtest.HTML(500), "torn": batchtest.Tear(30), "torn at once": batchtest.Tear(0),
		"429": batchtest.RateLimit(time.Second), "cut": batchtest.Truncate(30),
	} {
		u.run(t, "other_exception_returns_true/"+name, func(s *scene) {
			s.srv.Control(batchtest.OpContent, every(4, f)...) // both files, two polls
			calls := s.chats(2)
			for i, c := range calls {
				r := c.wait().says(fmt.Sprintf("call %d", i))
				if r.status != 200 || r.at > 40*time.Second {
					s.Errorf("call %d: status %d at %v", i, r.status, r.at)
				}
			}
		})
	}
	u.run(t, "already_done_futures_not_overwritten", func(s *scene) {
		twice := rewriteOutput(func(body []byte, _ http.Header) []byte {
			other := strings.Replace(string(body), "You said", "You did not say", 1)
			return append(body, other+`{"custom_id":"nobody","response":{"status_code":200,"body":{}}}`+"\n"...)
		})
		s.srv.Control(batchtest.OpContent, twice)
		calls := s.chats(2)
		calls[0].want(200, 20*time.Second).says("call 0")
		calls[1].want(200, 30*time.Second).says("call 1")
	})
	// A download torn after whole lines resumes behind them.
	u.run(t, "torn downloads keep their whole lines", func(s *scene) {
		s.srv.Control(batchtest.OpContent, tornBehindALine)
		calls := s.chats(10)
		calls[0].want(200, 15*time.Second)
		for _, c := range calls[1:] {
			if r := c.wait(); r.status != 200 || r.at > 30*time.Second {
				s.Errorf("status %d at %v", r.status, r.at)
			}
		}
	})
	// Doubleword can commit a line late, so that it sorts before lines already read.
	u.run(t, "a line that turns up before those already read", func(s *scene) {
		s.srv.Control(batchtest.OpContent, rewriteOutput(func(body []byte, h http.Header) []byte {
			_, rest, _ := strings.Cut(string(body), "\n")
			return []byte(rest) // X-Last-Line counts the missing line
		}))
		calls := s.chats(4)
		if r := calls[0].wait().says("call 0"); r.status != 200 || r.at > 40*time.Second {
			s.Errorf("the late line: status %d at %v", r.status, r.at)
		}
	})
}

// rewriteOutput changes the next download that brings anything.
func rewriteOutput(change func(body []byte, h http.Header) []byte) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		rec := &recorded{header: http.Header{}, status: 200}
		batchtest.Proceed(rec, r)
		if rec.body.Len() == 0 {
			return false
		}
		return rewrite(change)(w, r)
	}
}

// tornBehindALine breaks the next download that has lines off in the second.
func tornBehindALine(w http.ResponseWriter, r *http.Request) bool {
	rec := &recorded{header: http.Header{}, status: 200}
	batchtest.Proceed(rec, r)
	end := strings.IndexByte(rec.body.String(), '\n') + 1
	if end == 0 {
		return false
	}
	return batchtest.Tear(end+10)(w, r)
}

// watchContent notes the queries of downloads of the first file asked for.
func watchContent(s *scene, asked *[]string) {
	file := ""
	s.srv.Control(batchtest.OpContent, func(_ http.ResponseWriter, r *http.Request) bool {
		if id := r.PathValue("id"); file == "" || file == id {
			file = id
			*asked = append(*asked, r.URL.Query().Encode())
		}
		return false
	})
}

// A batch that has had no callers for a while is cancelled.
func TestAbandonedBatches(t *testing.T) {
	slow := batchtest.Options{Turnaround: time.Hour}
	setup{server: slow}.run(t, "cancelled after exactly two minutes", func(s *scene) {
		calls := s.chats(3)
		s.until(20 * time.Second)
		calls[0].leave()
		s.until(30 * time.Second)
		calls[1].leave()
		calls[2].leave()
		s.until(150*time.Second - 1)
		if n := s.count("POST", "/cancel"); n != 0 {
			s.Errorf("%d cancels before the time", n)
		}
		s.until(150 * time.Second)
		if n := s.count("POST", "/cancel"); n != 1 {
			s.Errorf("%d cancels, want one", n)
		}
		s.until(10 * time.Minute)
		want := []autobatcher.EventName{autobatcher.BatchCancelRequested, autobatcher.BatchCancelledUpstream, autobatcher.BatchProgress, autobatcher.BatchTerminal}
		if diff := cmp.Diff(want, s.eventNames()[2:]); diff != "" {
			s.Error(diff)
		}
		if st := s.tr.Stats(); st.Left != 3 || st.Running != 0 {
			s.Errorf("stats = %+v", st)
		}
	})
	setup{server: slow, options: autobatcher.Options{PollInterval: time.Minute}}.run(t, "not while one caller is left", func(s *scene) {
		calls := s.chats(3)
		s.until(20 * time.Second)
		calls[0].leave()
		calls[1].leave()
		calls[2].want(200, 3610*time.Second)
	})
	setup{server: slow, options: autobatcher.Options{AbandonAfter: -1, PollInterval: time.Minute}}.run(t, "never if negative", func(s *scene) {
		call := s.chat("a")
		s.until(20 * time.Second)
		call.leave()
		s.until(2 * time.Hour)
		if b := s.batch(); b.CancelRequested || b.Status != "completed" {
			s.Errorf("batch is %s, cancel requested: %v", b.Status, b.CancelRequested)
		}
	})
	setup{server: slow, options: autobatcher.Options{PollInterval: time.Minute}}.run(t, "not if the caller comes back in time", func(s *scene) {
		call := s.chat("a")
		s.until(20 * time.Second)
		call.leave()
		s.until(129 * time.Second)
		s.chat("a").want(200, 3610*time.Second) // takes the line over at 139 s
		s.sent(1)
	})
	setup{server: slow}.run(t, "a failed cancel is tried again", func(s *scene) {
		s.srv.Control(batchtest.OpCancel, batchtest.HTML(502))
		call := s.chat("a")
		s.until(20 * time.Second)
		call.leave()
		s.until(8 * time.Minute)
		if b := s.batch(); !b.CancelRequested {
			s.Error("the batch runs on, and will be paid for")
		}
	})
	setup{server: slow}.run(t, "while it is uploaded", func(s *scene) {
		s.srv.Control(batchtest.OpUpload, batchtest.Delay(time.Minute))
		call := s.chat("a")
		s.until(20 * time.Second)
		call.leave()
		s.until(10 * time.Minute)
		if b := s.srv.Batches(); len(b) > 0 && !b[0].CancelRequested {
			s.Error("the batch runs on")
		}
	})
	setup{server: slow}.run(t, "1000 callers vanish", func(s *scene) {
		ctx, leave := context.WithCancel(s.Context())
		ends := make(chan reply, 1000)
		for i := range 1000 {
			req := s.request(ctx, "/chat/completions", chatBody(fmt.Sprint(i)))
			go func() { ends <- s.do(req) }()
		}
		s.until(7 * time.Second)
		s.sent(1000)
		leave()
		for range 1000 {
			if r := <-ends; !errors.Is(r.err, context.Canceled) || r.at != 7*time.Second {
				s.Fatalf("error %v at %v", r.err, r.at)
			}
		}
		s.until(127 * time.Second)
		if b := s.batch(); !b.CancelRequested {
			s.Error("the batch was not cancelled")
		}
	})
}

func TestEvents(t *testing.T) {
	u := setup{
		server: batchtest.Options{Turnaround: 7 * time.Second},
		options: autobatcher.Options{
			Metadata: map[string]string{"job": "j"}, CancelOnClose: true,
		},
	}
	// seed: test_submit_batch/submission_emits_structured_batch_event
	u.run(t, "submission_emits_structured_batch_event", func(s *scene) {
		s.chat("a").want(200, 20*time.Second)
		synctest.Wait()
		s.wantEvents(
			`{"batch_id":"BATCH","completion_window":"24h","endpoint":"/v1/chat/completions","error_file_id":null,"event":"batch_submitted","input_file_id":"INPUT","metadata":{"job":"j"},"models":["m"],"output_file_id":null,"request_count":1,"source":"autobatcher","ts":946684810}`,
			`{"batch_id":"BATCH","completion_window":"24h","counts":{"completed":0,"failed":0,"total":1},"elapsed_seconds":5,"endpoint":"/v1/chat/completions","error_file_id":null,"event":"batch_progress","input_file_id":"INPUT","metadata":{"job":"j"},"models":["m"],"output_file_id":null,"request_count":1,"source":"autobatcher","status":"in_progress","ts":946684815}`,
			`{"batch_id":"BATCH","completion_window":"24h","counts":{"completed":1,"failed":0,"total":1},"elapsed_seconds":10,"endpoint":"/v1/chat/completions","error_file_id":null,"event":"batch_progress","input_file_id":"INPUT","metadata":{"job":"j"},"models":["m"],"output_file_id":"OUTPUT","request_count":1,"source":"autobatcher","status":"completed","ts":946684820}`,
			`{"batch_id":"BATCH","completion_window":"24h","counts":{"completed":1,"failed":0,"total":1},"elapsed_seconds":10,"endpoint":"/v1/chat/completions","error_file_id":null,"event":"batch_completed","input_file_id":"INPUT","metadata":{"job":"j"},"models":["m"],"output_file_id":"OUTPUT","request_count":1,"source":"autobatcher","ts":946684820}`,
		)
	})
	u.run(t, "terminal", func(s *scene) {
		call := s.chat("a")
		s.until(11 * time.Second)
		s.srv.FailBatch(s.batch().ID, "model_not_found", "no such model", 0)
		call.want(424, 15*time.Second)
		synctest.Wait()
		s.skipEvents(2)
		s.wantEvents(`{"batch_id":"BATCH","completion_window":"24h","counts":{"completed":0,"failed":0,"total":1},"elapsed_seconds":5,"endpoint":"/v1/chat/completions","error_file_id":null,"event":"batch_terminal","input_file_id":"INPUT","metadata":{"job":"j"},"models":["m"],"output_file_id":null,"request_count":1,"source":"autobatcher","status":"failed","ts":946684815}`)
	})
	setup{}.run(t, "batch_submission_failed", func(s *scene) {
		s.srv.Control(batchtest.OpUpload, batchtest.Status(403, nil, `{"error":{"message":"no","type":"x","param":null,"code":null}}`))
		s.chat("a").want(403, 10*time.Second)
		s.wantEvents(`{"completion_window":"24h","endpoint":"/v1/chat/completions","error":"POST /files: 403 Forbidden: no","event":"batch_submission_failed","metadata":null,"models":["m"],"request_count":1,"source":"autobatcher","ts":946684810}`)
	})
	u.run(t, "closing", func(s *scene) {
		running := s.chat("a")
		s.until(11 * time.Second)
		queued := s.chat("b")
		s.tr.Close()
		running.wait()
		queued.wait()
		s.skipEvents(1)
		s.wantEvents(
			`{"active_batch_ids":["BATCH"],"cancel_active_batches_on_close":true,"event":"client_closing","pending_request_count":1,"source":"autobatcher","ts":946684811}`,
			`{"batch_id":"BATCH","completion_window":"24h","endpoint":"/v1/chat/completions","error_file_id":null,"event":"batch_cancel_requested","input_file_id":"INPUT","metadata":{"job":"j"},"models":["m"],"output_file_id":null,"request_count":1,"source":"autobatcher","ts":946684811}`,
			`{"batch_id":"BATCH","endpoint":"/v1/chat/completions","event":"batch_cancelled_upstream","source":"autobatcher","ts":946684811}`,
		)
	})
	u.run(t, "batch_cancel_failed", func(s *scene) {
		s.srv.Control(batchtest.OpCancel, every(10, batchtest.Status(409, nil, `{"error":{"message":"too late","type":"x","param":null,"code":null}}`))...)
		call := s.chat("a")
		s.until(11 * time.Second)
		s.tr.Close()
		call.wait()
		s.skipEvents(3)
		s.wantEvents(`{"batch_id":"BATCH","endpoint":"/v1/chat/completions","error":"POST /batches/BATCH/cancel: 409 Conflict: too late","event":"batch_cancel_failed","source":"autobatcher","ts":946684811}`)
	})
	setup{}.run(t, "idle", func(s *scene) {
		s.tr.Close()
		s.wantEvents(`{"active_batch_ids":[],"cancel_active_batches_on_close":false,"event":"client_closing","pending_request_count":0,"source":"autobatcher","ts":946684800}`)
	})
	doubleword(batchtest.Options{}, autobatcher.Options{}).run(t, "models are sorted, each once", func(s *scene) {
		for _, m := range []string{"b", "a", "b"} {
			s.send("/embeddings", `{"model":"`+m+`","input":"x"}`)
		}
		s.tr.Flush(s.Context())
		synctest.Wait()
		if got := s.event(autobatcher.BatchSubmitted).Models; !slices.Equal(got, []string{"a", "b"}) {
			s.Errorf("models %v", got)
		}
	})
}

// skipEvents drops the first n events.
func (s *scene) skipEvents(n int) {
	s.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = s.events[n:]
}

// wantEvents compares the events with their JSON, the ids aside. The handler runs
// in a goroutine of its own, and so may be called after a call has its answer.
func (s *scene) wantEvents(want ...string) {
	s.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	var got []string
	for _, e := range s.events {
		text, err := json.Marshal(e)
		if err != nil {
			s.Fatal(err)
		}
		got = append(got, s.anonymous(string(text), e))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		s.Error(diff)
	}
}

func (s *scene) anonymous(text string, e autobatcher.Event) string {
	for _, b := range s.srv.Batches() {
		text = strings.ReplaceAll(text, b.ID, "BATCH")
		text = strings.ReplaceAll(text, b.InputFileID, "INPUT")
	}
	if e.OutputFileID != "" {
		text = strings.ReplaceAll(text, e.OutputFileID, "OUTPUT")
	}
	return text
}

// A handler that panics costs no caller an answer.
func TestAPanickingHandlerHurtsNoCaller(t *testing.T) {
	calls := 0
	panicking := func(autobatcher.Event) { calls++; panic("handler") }
	setup{options: autobatcher.Options{OnEvent: panicking}}.play(t, func(s *scene) {
		s.chat("a").want(200, 15*time.Second)
		synctest.Wait()
		s.tr.Close()
		if calls != 4 { // submitted, progress, completed, closing
			s.Errorf("%d events, want 4", calls)
		}
	})
}

// A download that stalls is tried again; what it brought before counts.
func TestAStalledDownload(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		s.srv.Control(batchtest.OpContent, func(w http.ResponseWriter, r *http.Request) bool {
			rec := &recorded{header: http.Header{}, status: 200}
			batchtest.Proceed(rec, r)
			first, _, _ := strings.Cut(rec.body.String(), "\n")
			fmt.Fprintln(w, first)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		})
		calls := s.chats(2)
		calls[0].want(200, 15*time.Second)
		if r := calls[1].wait(); r.status != 200 || r.at < 5*time.Minute || r.at > 6*time.Minute {
			s.Errorf("status %d at %v", r.status, r.at)
		}
	})
}
