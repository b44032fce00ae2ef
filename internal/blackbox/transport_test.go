package blackbox_test

// Where the tests of autobatcher's Python implementation, by their names, have
// their equals. Those named in backquotes are subtests of that very name;
// "cmd/autobatcher" and "internal/proxy" are the packages that test the command
// and its server.
//
//	test_cli              mode_async_default, mode_batch,
//	                      passes_batch_metadata_and_shutdown_policy: cmd/autobatcher
//	test_embeddings       jsonl_has_embeddings_url, batches_create_uses_embeddings_endpoint,
//	                      embedding_body_with_list_input: TestSubmitting/embedding_body_with_list_input
//	                      embedding_result_parsed_correctly: TestOpenAIGo
//	                      embedding_error_sets_exception, mixed_batch_parses_both_types:
//	                      TestEachCallGetsItsOwnKindOfAnswer
//	test_enqueue          single_request_starts_window_timer, batch_size_triggers_immediate_submit,
//	                      window_timer_fires_for_undersized_batch, concurrent_requests_batched_together:
//	                      TestWhenABatchIsSent
//	                      request_params_passed_correctly: TestRequestParamsPassedCorrectly
//	                      custom_id_is_valid_uuid: TestSubmitting/jsonl_format
//	test_fetch_partial_results
//	                      partial_results_resolve_futures, offset_appended_when_nonzero,
//	                      offset_not_appended_when_zero, x_last_line_updates_offset,
//	                      x_incomplete_true_returns_true, x_incomplete_false_returns_false,
//	                      http_404_returns_true, other_exception_returns_true,
//	                      already_done_futures_not_overwritten: TestPartialResults
//	                      error_lines_set_exceptions, mixed_success_and_error: TestMixedSuccessAndError
//	                      per_request_result_type_parsing: TestEachCallGetsItsOwnKindOfAnswer
//	test_lifecycle        close_cancels_window_task, close_cancels_poller_task, close_calls_http_aclose,
//	                      close_safe_when_no_tasks, close_fails_pending_requests,
//	                      close_cancels_active_upstream_batches_when_enabled: TestClose
//	test_poll_batches     poll_emits_progress_and_completed_events, completed_batch_resolves_futures,
//	                      in_progress_fetches_partial_results, output_file_id_updated_when_available,
//	                      poller_exits_when_no_active_batches: TestWatching
//	                      poll_error_does_not_crash_loop: TestFailedPolls
//	                      failed_batch_sets_exceptions: TestEveryTerminalState
//	test_responses        jsonl_has_responses_url, batches_create_uses_responses_endpoint,
//	                      input_none_omitted_from_params: TestSubmitting/jsonl_has_responses_url
//	                      response_result_parsed_correctly: TestOpenAIGo
//	                      response_error_sets_exception, mixed_batch_parses_both_types:
//	                      TestEachCallGetsItsOwnKindOfAnswer
//	test_serve            health, chat_completions, embeddings, responses, chat_completions_extra_params,
//	                      chat_completions_stream, chat_completions_no_stream, responses_stream: internal/proxy
//	test_subclass         isinstance_async_openai, issubclass_async_openai: TestClients
//	                      inherited_attributes_accessible: TestWhatIsBatched, TestOpenAIGo
//	                      batched_proxies_override_parent: TestSubmitting
//	test_submit_batch     jsonl_format, files_create_called_with_batch_purpose, batches_create_called_correctly,
//	                      batches_create_passes_through_arbitrary_completion_window,
//	                      batches_create_passes_metadata, active_batches_populated, poller_task_started:
//	                      TestSubmitting
//	                      active_batch_has_result_types, mixed_endpoint_result_types:
//	                      TestEachCallGetsItsOwnKindOfAnswer
//	                      submission_emits_structured_batch_event: TestEvents
//	                      submission_failure_propagates_to_futures, non_rate_limit_error_still_propagates:
//	                      TestRefusedSubmission
//	                      empty_pending_is_noop: TestFlush
//	                      mixed_endpoint_jsonl: TestMixedBatches
//	                      files_create_retries_on_rate_limit, batches_create_retries_on_rate_limit,
//	                      rate_limit_uses_default_retry_when_no_header: TestRateLimitedSubmission
//	test_with_raw_response
//	                      parse_returns_underlying_value, headers_is_empty_dict, http_response_is_none,
//	                      with_raw_response_returns_accessor (three), create_forwards_kwargs,
//	                      create_wraps_parsed_chat_completion, create_wraps_parsed_embedding,
//	                      create_wraps_parsed_response: TestRawResponses

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// A body is a request's body that notes its end. Once its text is read, it
// breaks, or hangs until it is closed.
type body struct {
	text   string
	err    error
	hang   chan struct{}
	once   sync.Once
	reader *strings.Reader
	closed atomic.Bool
}

func (b *body) Read(p []byte) (int, error) {
	b.once.Do(func() { b.reader = strings.NewReader(b.text) })
	if n, err := b.reader.Read(p); err == nil {
		return n, nil
	}
	switch {
	case b.hang != nil:
		<-b.hang
		return 0, io.ErrClosedPipe
	case b.err != nil:
		return 0, b.err
	}
	return 0, io.EOF
}

func (b *body) Close() error {
	if !b.closed.Swap(true) && b.hang != nil {
		close(b.hang)
	}
	return nil
}

// Everything else passed through in name only: methods were lost, a query string
// was dropped or got a 404, and so did /v1/models.
func TestPassingThrough(t *testing.T) {
	realtime := with("Autobatcher-Mode", "realtime")
	setup{}.run(t, "on request", func(s *scene) {
		s.chat("a", realtime).want(200, 0).says("a")
		if n := s.count("POST", "/chat/completions"); n != 1 {
			s.Errorf("%d calls", n)
		}
		for name := range s.srv.Requests()[0].Header {
			if strings.HasPrefix(name, "Autobatcher-") {
				s.Errorf("header %s left the process", name)
			}
		}
	})
	// Retries re-sent a body that was drained already.
	setup{base: func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.GetBody == nil {
				return nil, errors.New("the body cannot be sent again")
			}
			text, _ := io.ReadAll(r.Body)
			again, _ := r.GetBody()
			if copied, _ := io.ReadAll(again); !bytes.Equal(text, copied) || r.ContentLength != int64(len(text)) {
				return nil, fmt.Errorf("body %s, again %s, length %d", text, copied, r.ContentLength)
			}
			r = r.Clone(r.Context())
			r.Body, _ = r.GetBody()
			return next.RoundTrip(r)
		})
	}}.run(t, "a tier", func(s *scene) {
		s.post("/responses", `{"model":"m","service_tier":"priority","input":"a"}`, func(r *http.Request) {
			r.Body, r.GetBody, r.ContentLength = &body{text: `{"model":"m","service_tier":"priority","input":"a"}`}, nil, -1
		}).want(200, 0)
	})
	setup{}.run(t, "background false", func(s *scene) {
		s.post("/responses", `{"model":"m","background":false,"input":"a"}`).want(200, 15*time.Second)
	})
	groq := provider.Groq()
	setup{options: autobatcher.Options{Provider: &groq}}.run(t, "what the provider does not batch", func(s *scene) {
		s.post("/embeddings", embeddingBody("a")).want(200, 0)
	})
	setup{base: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(*http.Request) (*http.Response, error) { return nil, errors.New("unreachable") })
	}}.run(t, "an error of the base", func(s *scene) {
		if r := s.chat("a", realtime).wait(); r.err == nil || r.err.Error() != "unreachable" {
			s.Errorf("error %v", r.err)
		}
	})
}

// Query strings and deployment paths keep working.
func TestWhereCallsMayGo(t *testing.T) {
	setup{}.run(t, "a query string", func(s *scene) {
		s.post("/chat/completions?x=1", chatBody("a")).want(200, 15*time.Second)
	})
	azure := provider.AzureLegacy()
	behavior := batchtest.Azure()
	behavior.BasePath = "/openai"
	var queries []string
	setup{
		server: batchtest.Options{Behavior: behavior}, options: autobatcher.Options{Provider: &azure},
		base: func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				queries = append(queries, r.URL.RawQuery)
				return next.RoundTrip(r)
			})
		},
	}.run(t, "Azure's deployments", func(s *scene) {
		s.post("/deployments/d/chat/completions?api-version=2024-10-21", chatBody("a"), with("api-key", "k")).want(200, 70*time.Second)
		for _, q := range queries {
			if q != "api-version=2024-10-21" {
				s.Errorf("query %q", q)
			}
		}
	})
	u := setup{}
	u.run(t, "a provider without batches", func(s *scene) {
		req, _ := http.NewRequest("POST", "https://api.x.ai/v1/chat/completions", strings.NewReader(chatBody("a")))
		s.do(req).want(400, 0).fails("batch_unsupported")
	})
}

func TestHeadersPerCall(t *testing.T) {
	setup{}.run(t, "mode batch", func(s *scene) { s.chat("a", with("Autobatcher-Mode", "batch")).want(200, 15*time.Second) })
	setup{server: batchtest.Options{Turnaround: time.Hour}}.run(t, "deadline", func(s *scene) {
		call := s.chat("a", with("Autobatcher-Deadline", "30s"))
		r := call.want(424, 30*time.Second)
		if m := r.fails("batch_deadline_exceeded"); !strings.Contains(m, s.batch().ID) || !strings.Contains(m, "30s") {
			s.Errorf("message %q names neither batch nor deadline", m)
		}
		if r.header.Get("X-Should-Retry") != "false" || r.header.Get("Autobatcher-Batch-Id") != s.batch().ID {
			s.Errorf("header = %v", r.header)
		}
	})
	setup{}.run(t, "deadline before the batch is sent", func(s *scene) {
		m := s.chat("a", with("Autobatcher-Deadline", "5s")).want(424, 5*time.Second).fails("batch_deadline_exceeded")
		if strings.Contains(m, "batch  ") || strings.Contains(m, "takes over") {
			s.Errorf("message %q speaks of a batch there never was", m)
		}
		s.until(time.Minute)
		if n := len(s.srv.Requests()); n != 0 {
			s.Errorf("%d requests for a call that is over", n)
		}
	})
	setup{}.run(t, "an answer in time", func(s *scene) {
		s.chat("a", with("Autobatcher-Deadline", "16s")).want(200, 15*time.Second)
		s.until(time.Hour)
	})
}

// A caller who leaves gets its error at once, and a call that was not sent is never sent.
func TestCallersLeave(t *testing.T) {
	setup{}.run(t, "before the batch is sent", func(s *scene) {
		stays, leaves := s.chat("stays"), s.chat("leaves")
		s.until(3 * time.Second)
		leaves.leave()
		if r := leaves.wait(); !errors.Is(r.err, context.Canceled) || r.at != 3*time.Second {
			s.Errorf("error %v at %v", r.err, r.at)
		}
		if st := s.tr.Stats(); st.Queued != 1 || st.Left != 1 {
			s.Errorf("stats = %+v", st)
		}
		stays.want(200, 15*time.Second)
		if text := string(s.upload().Content); strings.Contains(text, "leaves") || len(lines(s.upload())) != 1 {
			s.Errorf("uploaded %s", text)
		}
	})
	setup{}.run(t, "after the batch is sent", func(s *scene) {
		stays, leaves := s.chat("stays"), s.chat("leaves")
		s.until(12 * time.Second)
		leaves.leave()
		if r := leaves.wait(); !errors.Is(r.err, context.Canceled) || r.at != 12*time.Second {
			s.Errorf("error %v at %v", r.err, r.at)
		}
		stays.want(200, 15*time.Second)
	})
	setup{}.run(t, "with a deadline", func(s *scene) {
		ctx, cancel := context.WithTimeout(s.Context(), time.Second)
		defer cancel()
		if r := s.do(s.request(ctx, "/chat/completions", chatBody("a"))); !errors.Is(r.err, context.DeadlineExceeded) || r.at != time.Second {
			s.Errorf("error %v at %v", r.err, r.at)
		}
	})
	setup{}.run(t, "by the channel of old", func(s *scene) {
		req := s.request(s.Context(), "/chat/completions", chatBody("a"))
		gone := make(chan struct{})
		req.Cancel = gone //nolint:staticcheck // old code sets it
		time.AfterFunc(time.Second, func() { close(gone) })
		if r := s.do(req); !errors.Is(r.err, context.Canceled) || r.at != time.Second {
			s.Errorf("error %v at %v", r.err, r.at)
		}
	})
	setup{}.run(t, "before they come", func(s *scene) {
		ctx, cancel := context.WithCancel(s.Context())
		cancel()
		if r := s.do(s.request(ctx, "/chat/completions", chatBody("a"))); !errors.Is(r.err, context.Canceled) || r.at != 0 {
			s.Errorf("error %v at %v", r.err, r.at)
		}
		s.until(time.Minute)
		s.sent()
	})
}

func TestClose(t *testing.T) {
	running := setup{server: batchtest.Options{Turnaround: time.Hour}, options: autobatcher.Options{CancelOnClose: true}}
	// seed: test_lifecycle/close_cancels_window_task
	setup{}.run(t, "close_fails_pending_requests", func(s *scene) {
		call := s.chat("a")
		s.until(3 * time.Second)
		if err := s.tr.Close(); err != nil {
			s.Error(err)
		}
		call.closed(3*time.Second, "autobatcher: transport closed before the request to /v1/chat/completions was submitted")
		s.until(time.Hour)
		if n := len(s.srv.Requests()); n != 0 {
			s.Errorf("%d requests after Close", n)
		}
	})
	// seed: test_lifecycle/close_cancels_poller_task, test_lifecycle/close_calls_http_aclose
	setup{server: running.server}.run(t, "close_cancels_poller_task", func(s *scene) {
		call := s.chat("a")
		s.until(16 * time.Second)
		s.tr.Close()
		call.closed(16*time.Second, "autobatcher: transport closed before batch "+s.batch().ID+" completed")
		n := len(s.srv.Requests())
		s.until(time.Hour)
		if got := len(s.srv.Requests()); got != n || s.batch().CancelRequested {
			s.Errorf("%d requests after Close, cancelled: %v", got-n, s.batch().CancelRequested)
		}
	})
	running.run(t, "close_cancels_active_upstream_batches_when_enabled", func(s *scene) {
		call := s.chat("a")
		s.until(11 * time.Second)
		s.tr.Close()
		call.closed(11*time.Second, "autobatcher: transport closed before batch "+s.batch().ID+" completed")
		if !s.batch().CancelRequested {
			s.Error("the batch runs on")
		}
		want := []autobatcher.EventName{
			autobatcher.BatchSubmitted, autobatcher.ClientClosing, autobatcher.BatchCancelRequested, autobatcher.BatchCancelledUpstream,
		}
		if diff := cmp.Diff(want, s.eventNames()); diff != "" {
			s.Error(diff)
		}
	})
	setup{}.run(t, "close_safe_when_no_tasks", func(s *scene) {
		for range 3 {
			if err := s.tr.Close(); err != nil {
				s.Error(err)
			}
		}
		if diff := cmp.Diff([]autobatcher.EventName{autobatcher.ClientClosing}, s.eventNames()); diff != "" {
			s.Error(diff)
		}
		r := s.chat("a").wait()
		if !errors.Is(r.err, autobatcher.ErrClosed) || r.at != 0 {
			s.Errorf("error %v at %v", r.err, r.at)
		}
	})
	// Close ends calls whose batch is being uploaded or created.
	running.run(t, "during an upload", func(s *scene) {
		s.srv.Control(batchtest.OpUpload, batchtest.Delay(time.Minute))
		call := s.chat("a")
		s.until(11 * time.Second)
		s.tr.Close()
		call.closed(11*time.Second, "autobatcher: transport closed before the request to /v1/chat/completions was submitted")
		s.until(time.Hour)
		s.sent()
	})
	running.run(t, "while a rate limit is waited out", func(s *scene) {
		s.srv.Control(batchtest.OpCreate, batchtest.RateLimit(time.Minute))
		call := s.chat("a")
		s.until(11 * time.Second)
		s.tr.Close()
		if r := call.wait(); !errors.Is(r.err, autobatcher.ErrClosed) || r.at > 16*time.Second {
			s.Errorf("error %v at %v", r.err, r.at)
		}
		s.until(time.Hour)
		s.sent()
	})
	running.run(t, "during a create", func(s *scene) {
		s.srv.Control(batchtest.OpCreate, batchtest.Delay(3*time.Second))
		call := s.chat("a")
		s.until(11 * time.Second)
		s.tr.Close()
		call.closed(13*time.Second, "autobatcher: transport closed before batch "+s.batch().ID+" completed")
		if !s.batch().CancelRequested {
			s.Error("the batch runs on unknown")
		}
	})
	running.run(t, "during a create that hangs", func(s *scene) {
		s.srv.Control(batchtest.OpCreate, batchtest.Hang())
		call := s.chat("a")
		s.until(11 * time.Second)
		s.tr.Close()
		call.closed(16*time.Second, "autobatcher: transport closed before the request to /v1/chat/completions was submitted")
	})
	running.run(t, "a cancel that hangs", func(s *scene) {
		s.srv.Control(batchtest.OpCancel, every(10, batchtest.Hang())...)
		call := s.chat("a")
		s.until(11 * time.Second)
		s.tr.Close()
		call.closed(19*time.Second, "autobatcher: transport closed before batch "+s.batch().ID+" completed")
		if s.event(autobatcher.BatchCancelFailed).Error == "" {
			s.Error("the event does not say why")
		}
	})
	running.run(t, "while a result is downloaded", func(s *scene) {
		s.srv.Control(batchtest.OpContent, batchtest.Hang())
		call := s.chat("a")
		s.until(11 * time.Second)
		s.srv.Finish(s.batch().ID)
		s.until(16 * time.Second)
		s.tr.Close()
		call.closed(16*time.Second, "autobatcher: transport closed before batch "+s.batch().ID+" completed")
	})
	running.run(t, "with calls in every state", func(s *scene) {
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 700 * time.Millisecond)
				if r := s.do(s.request(s.Context(), "/chat/completions", chatBody("x"))); !errors.Is(r.err, autobatcher.ErrClosed) || r.at > 45*time.Second {
					s.Errorf("call %d: status %d, error %v at %v", i, r.status, r.err, r.at)
				}
			})
		}
		s.until(30 * time.Second)
		s.tr.Close()
		wg.Wait()
		for _, b := range s.srv.Batches() {
			if !b.CancelRequested {
				s.Errorf("batch %s runs on", b.ID)
			}
		}
	})
}

// closed checks that the call ended with ErrClosed and that text.
func (p *pending) closed(at time.Duration, text string) {
	p.s.Helper()
	if r := p.wait(); !errors.Is(r.err, autobatcher.ErrClosed) || r.err.Error() != text || r.at != at {
		p.s.Errorf("status %d, error %v at %v; want %q at %v", r.status, r.err, r.at, text, at)
	}
}

// Shutdown sends what is queued and waits for every answer, or until its context ends.
func TestShutdown(t *testing.T) {
	setup{server: batchtest.Options{Turnaround: time.Minute}}.run(t, "sends and waits", func(s *scene) {
		call := s.chat("a")
		s.until(3 * time.Second)
		if err := s.tr.Shutdown(s.Context()); err != nil {
			s.Error(err)
		}
		if s.elapsed() != 63*time.Second {
			s.Errorf("took until %v", s.elapsed())
		}
		call.want(200, 63*time.Second)
		if last := s.eventNames()[len(s.eventNames())-1]; last != autobatcher.ClientClosing {
			s.Errorf("last event %s", last)
		}
	})
	setup{server: batchtest.Options{Turnaround: time.Hour}}.run(t, "takes no new calls", func(s *scene) {
		old := s.chat("a")
		ctx, cancel := context.WithTimeout(s.Context(), 30*time.Second)
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- s.tr.Shutdown(ctx) }()
		s.until(time.Second)
		if r := s.chat("b").wait(); !errors.Is(r.err, autobatcher.ErrClosed) || r.at != time.Second {
			s.Errorf("error %v at %v", r.err, r.at)
		}
		if err := <-ended; !errors.Is(err, context.DeadlineExceeded) || s.elapsed() != 30*time.Second {
			s.Errorf("Shutdown = %v at %v", err, s.elapsed())
		}
		old.closed(30*time.Second, "autobatcher: transport closed before batch "+s.batch().ID+" completed")
	})
	setup{}.run(t, "idle", func(s *scene) {
		if err := s.tr.Shutdown(s.Context()); err != nil || s.elapsed() != 0 {
			s.Errorf("Shutdown = %v at %v", err, s.elapsed())
		}
		if err := s.tr.Shutdown(s.Context()); err != nil {
			s.Error(err)
		}
	})
	setup{server: batchtest.Options{Turnaround: time.Hour}}.run(t, "does not wait for those who left", func(s *scene) {
		call := s.chat("a")
		s.until(12 * time.Second)
		call.leave()
		call.wait()
		if err := s.tr.Shutdown(s.Context()); err != nil || s.elapsed() > 13*time.Second {
			s.Errorf("Shutdown = %v at %v; no caller waits for an answer", err, s.elapsed())
		}
	})
}

// The log names no credential, prompt or answer.
func TestLogsHoldNoSecrets(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	u := setup{
		server:  batchtest.Options{Answer: answers(map[string]batchtest.Outcome{"PROMPT": {Garbage: `{"ANSWER`}})},
		options: autobatcher.Options{Logger: logger},
	}
	u.play(t, func(s *scene) {
		s.srv.Control(batchtest.OpUpload, batchtest.HTML(500), batchtest.RateLimit(0))
		s.srv.Control(batchtest.OpCreate, batchtest.LoseAnswer())
		s.chat("PROMPT", key("SECRET"), with("Cookie", "SECRET")).wait()
		s.chat("PROMPT", key("SECRET"), with("Autobatcher-Mode", "realtime")).wait()
		if s.tr.Close(); log.Len() == 0 {
			s.Error("nothing was logged")
		}
		for _, secret := range []string{"SECRET", "PROMPT", "ANSWER"} {
			if strings.Contains(log.String(), secret) {
				s.Errorf("the log tells %s:\n%s", secret, log.String())
			}
		}
		if q := fmt.Sprintf("%+v", s.tr.Stats()); strings.Contains(q, "SECRET") {
			s.Errorf("stats tell the key: %s", q)
		}
	})
}

func TestStats(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		a, b := s.chat("a", key("SECRET")), s.chat("b", key("SECRET"))
		c := s.send("/embeddings", embeddingBody("c"))
		st := s.tr.Stats()
		if st.Queued != 3 || len(st.Queues) != 2 {
			s.Fatalf("stats = %+v", st)
		}
		q := st.Queues[0]
		if q.Endpoint != "/v1/chat/completions" || q.Calls != 2 || q.Bytes == 0 || !cmp.Equal(q.Models, []string{"m"}) ||
			q.Upstream != s.srv.URL || !q.Opened.Equal(s.begin) || q.Payer == "" || q.Payer == st.Queues[1].Payer {
			s.Errorf("queue = %+v", q)
		}
		if text := fmt.Sprintf("%+v", st); strings.Contains(text, "SECRET") {
			s.Errorf("stats tell the key: %s", text)
		}
		a.want(200, 15*time.Second)
		b.want(200, 15*time.Second)
		c.want(200, 15*time.Second)
		synctest.Wait()
		st = s.tr.Stats()
		st.Cost, st.Costs = autobatcher.Cost{}, nil
		want := autobatcher.Stats{Answered: 3, Times: []autobatcher.TurnaroundStats{
			{Provider: "generic", Model: "m", Window: "24h", Count: 2, Median: 5 * time.Second, P90: 5 * time.Second},
		}}
		if diff := cmp.Diff(want, st); diff != "" {
			s.Error(diff)
		}
	})
}

// Every caller gets its own answer when many calls, credentials and departures mix.
func TestManyCallsAtOnce(t *testing.T) {
	doubleword(batchtest.Options{Turnaround: 30 * time.Second}, autobatcher.Options{BatchSize: 64}).play(t, func(s *scene) {
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				ctx, leave := context.WithCancel(s.Context())
				defer leave()
				if i%7 == 0 {
					time.AfterFunc(time.Duration(1+i%50)*time.Second, leave)
				}
				text := fmt.Sprintf("call %d", i)
				r := s.do(s.request(ctx, "/chat/completions", chatBody(text), key(fmt.Sprint("key ", i%3))))
				if ctx.Err() == nil && (r.status != 200 || !strings.Contains(r.body, "You said: "+text+`"`)) {
					s.Errorf("call %d: status %d, error %v: %s", i, r.status, r.err, r.body)
				}
			})
		}
		wg.Wait()
		for work, n := range s.srv.Paid() {
			if n != 1 {
				s.Errorf("%s was paid for %d times", work, n)
			}
		}
	})
}

// A panic in Options.Base is a request that failed, and Options.Base that exits the
// goroutine ends the calls of its batch with an error.
func TestAPanickingBaseStrandsNoCaller(t *testing.T) {
	for _, part := range []string{"/files", "/batches", "/batches/", "/content"} {
		for name, leave := range map[string]func(){"panic": func() { panic("base") }, "exit": runtime.Goexit} {
			var left atomic.Bool
			setup{base: func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(r *http.Request) (*http.Response, error) {
					if strings.Contains(r.URL.Path, part) && !left.Swap(true) {
						leave()
					}
					return next.RoundTrip(r)
				})
			}}.run(t, part+", "+name, func(s *scene) {
				for _, c := range s.chats(3) {
					r := c.within(time.Hour)
					if name == "panic" {
						if r.status != 200 {
							s.Errorf("status %d, error %v at %v", r.status, r.err, r.at)
						}
						continue
					}
					if r.status != 424 || r.at > 15*time.Second {
						s.Errorf("status %d, error %v at %v", r.status, r.err, r.at)
					}
					r.fails("internal_error")
				}
				s.chat("b").wait().says("b")
				if n := len(s.srv.Executed()); name == "panic" && n != 4 {
					s.Errorf("%d lines were paid for, want 4", n)
				}
			})
		}
	}
}

// A panic in Options.Base while a batch ends, or while Close cancels it, ends only
// that request.
func TestAPanicAtTheEndOfABatch(t *testing.T) {
	panics := func(method, part string) func(http.RoundTripper) http.RoundTripper {
		return func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				if r.Method == method && strings.HasSuffix(r.URL.Path, part) {
					panic("base")
				}
				return next.RoundTrip(r)
			})
		}
	}
	setup{base: panics("DELETE", ""), options: autobatcher.Options{Files: autobatcher.FilesDelete}}.run(t, "while it deletes files", func(s *scene) {
		s.chat("a").wait().says("a")
		time.Sleep(time.Minute)
		s.chat("b").wait().says("b")
	})
	setup{
		base: panics("POST", "/cancel"), server: batchtest.Options{Turnaround: time.Hour},
		options: autobatcher.Options{CancelOnClose: true},
	}.run(t, "while Close cancels", func(s *scene) {
		call := s.chat("a")
		time.Sleep(time.Minute)
		s.tr.Close()
		if r := call.wait(); !errors.Is(r.err, autobatcher.ErrClosed) {
			s.Errorf("%v, want ErrClosed", r.err)
		}
	})
}

// A create that the provider refuses for a while is not sent again for callers who
// have left, and does not delay Close.
func TestARefusedCreateIsNotSentAgainForNobody(t *testing.T) {
	begin := func(s *scene) *pending {
		s.srv.Keep(batchtest.OpCreate, batchtest.RateLimit(10*time.Minute))
		call := s.chat("a")
		s.until(time.Minute)
		return call
	}
	setup{}.run(t, "the callers leave", func(s *scene) {
		begin(s).left()
		s.until(time.Hour)
		if n := s.count("POST", "/batches"); n != 1 {
			s.Errorf("%d creates, want 1", n)
		}
		if n := s.count("DELETE", "/files"); n != 1 {
			s.Errorf("%d files deleted, want the input file", n)
		}
	})
	setup{}.run(t, "the Transport closes", func(s *scene) {
		call := begin(s)
		s.tr.Close()
		if r := call.wait(); !errors.Is(r.err, autobatcher.ErrClosed) || s.elapsed() != time.Minute {
			s.Errorf("%v at %v", r.err, s.elapsed())
		}
	})
}

// Flush waits also for the batches in which calls are resubmitted.
func TestFlushOfAFileThatIsHalved(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		s.srv.Control(batchtest.OpUpload, batchtest.HTML(413))
		calls := s.chats(2)
		if err := s.tr.Flush(s.Context()); err != nil {
			s.Errorf("Flush: %v; the calls were resubmitted", err)
		}
		if n := s.count("POST", "/batches"); n != 2 {
			s.Errorf("%d creates when Flush returned, want 2", n)
		}
		for _, c := range calls {
			c.wait().says("")
		}
	})
}

// With real connections, as programs have them.
func TestOverSockets(t *testing.T) {
	srv := batchtest.NewServer(batchtest.Options{Turnaround: 20 * time.Millisecond})
	defer srv.Close()
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	tr, err := autobatcher.New(autobatcher.Options{Base: base, BatchSize: 50, PollInterval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			text := fmt.Sprintf("call %d. %s", i, strings.Repeat("x", i*2000))
			req, err := http.NewRequest("POST", srv.URL+"/chat/completions", strings.NewReader(chatBody(text)))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer k")
			res, err := tr.Client().Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if body, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 200 || !strings.Contains(string(body), fmt.Sprintf("call %d.", i)) {
				t.Errorf("%s, %v: %s", res.Status, err, body)
			}
		})
	}
	wg.Wait()
	if n := len(srv.Batches()); n != 2 {
		t.Errorf("%d batches, want 2", n)
	}
}

// A handler may ask the Transport how it stands.
func TestAHandlerMayUseStats(t *testing.T) {
	var tr *autobatcher.Transport
	events := 0
	setup{options: autobatcher.Options{OnEvent: func(autobatcher.Event) { tr.Stats(); events++ }}}.play(t, func(s *scene) {
		tr = s.tr
		s.chat("a").want(200, 15*time.Second)
		synctest.Wait()
		s.tr.Close()
		if events != 4 {
			s.Errorf("%d events", events)
		}
	})
}
