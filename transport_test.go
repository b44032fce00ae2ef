package autobatcher_test

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
//	                      TestCollecting
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
//	                      poll_error_does_not_crash_loop, poller_exits_when_no_active_batches: TestWatching
//	                      failed_batch_sets_exceptions: TestEveryTerminalState
//	test_responses        jsonl_has_responses_url, batches_create_uses_responses_endpoint,
//	                      input_none_omitted_from_params: TestSubmitting/jsonl_has_responses_url
//	                      response_result_parsed_correctly: TestOpenAIGo
//	                      response_error_sets_exception, mixed_batch_parses_both_types:
//	                      TestEachCallGetsItsOwnKindOfAnswer
//	test_serve            health, chat_completions, embeddings, responses, chat_completions_extra_params,
//	                      chat_completions_stream, chat_completions_no_stream, responses_stream: internal/proxy
//	test_subclass         isinstance_async_openai, issubclass_async_openai: TestAnyClientTakesTheTransport
//	                      inherited_attributes_accessible: TestPassingThrough, TestOpenAIGo
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
//	                      empty_pending_is_noop: TestCollecting
//	                      mixed_endpoint_jsonl: TestWhoSharesABatch
//	                      files_create_retries_on_rate_limit, batches_create_retries_on_rate_limit,
//	                      rate_limit_uses_default_retry_when_no_header: TestRateLimitedSubmission
//	test_with_raw_response
//	                      parse_returns_underlying_value, headers_is_empty_dict, http_response_is_none,
//	                      with_raw_response_returns_accessor (three), create_forwards_kwargs,
//	                      create_wraps_parsed_chat_completion, create_wraps_parsed_embedding,
//	                      create_wraps_parsed_response: TestRawResponses

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
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

// seed: test_subclass
func TestAnyClientTakesTheTransport(t *testing.T) {
	var _ http.RoundTripper = (*autobatcher.Transport)(nil)
	setup{}.run(t, "Client", func(s *scene) {
		res, err := s.tr.Client().Do(s.request(s.Context(), "/chat/completions", chatBody("a")))
		if err != nil {
			s.Fatal(err)
		}
		defer res.Body.Close()
		if text, _ := io.ReadAll(res.Body); res.StatusCode != 200 || !strings.Contains(string(text), "You said: a") {
			s.Errorf("%s: %s", res.Status, text)
		}
		if s.tr.Client().Timeout != 0 {
			s.Error("the client has a timeout")
		}
	})
	setup{server: batchtest.Options{Turnaround: time.Hour}}.run(t, "a client with a timeout", func(s *scene) {
		client := &http.Client{Transport: s.tr, Timeout: 30 * time.Second}
		_, err := client.Do(s.request(s.Context(), "/chat/completions", chatBody("a"))) //nolint:bodyclose // there is none
		if timeout := (interface{ Timeout() bool })(nil); !errors.As(err, &timeout) || !timeout.Timeout() || s.elapsed() != 30*time.Second {
			s.Errorf("%v at %v, want a timeout at 30s", err, s.elapsed())
		}
	})
	// A client's timeout ends its contexts when the body is closed; a batch that
	// hung on one caller's context ended with the first of them.
	setup{}.run(t, "one caller's end is not the batch's", func(s *scene) {
		impatient := &http.Client{Transport: s.tr, Timeout: 12 * time.Second}
		go impatient.Do(s.request(s.Context(), "/chat/completions", chatBody("a"))) //nolint:errcheck,bodyclose // it times out
		synctest.Wait()
		s.chat("b").want(200, 15*time.Second)
	})
}

func TestCloseIdleConnections(t *testing.T) {
	closed := false
	tr, err := autobatcher.New(autobatcher.Options{Base: idler{&closed}})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	tr.Client().CloseIdleConnections()
	if !closed {
		t.Error("Options.Base was not told")
	}
}

type idler struct{ closed *bool }

func (i idler) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("unused") }
func (i idler) CloseIdleConnections()                           { *i.closed = true }

// Everything else passed through in name only: methods were lost, a query string
// was dropped or got a 404, and so did /v1/models.
func TestPassingThrough(t *testing.T) {
	tests := []struct{ name, method, path, body string }{
		{"another method", "GET", "/v1/chat/completions", ""},
		{"models", "GET", "/v1/models?limit=1&x=%2F", ""},
		{"a stored completion", "POST", "/v1/chat/completions/chatcmpl_1", `{"metadata":{}}`},
		{"compact", "POST", "/v1/responses/compact", `{"model":"m"}`},
		{"moderations", "POST", "/v1/moderations", `{"input":"x"}`},
		{"a file", "POST", "/v1/files", "multipart"},
		{"a slash at the end", "POST", "/v1/chat/completions/", `{"model":"m"}`},
		{"no body", "DELETE", "/v1/files/file-1", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got *http.Request
			answer := &http.Response{StatusCode: 299, Body: http.NoBody}
			tr, err := autobatcher.New(autobatcher.Options{Base: roundTripper(func(r *http.Request) (*http.Response, error) {
				got = r
				return answer, nil
			})})
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			req, err := http.NewRequest(test.method, "http://host.invalid"+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			res, err := tr.RoundTrip(req)
			if err != nil || res != answer || got != req {
				t.Errorf("got %p, %v for request %p, want the base's own answer %p to %p", res, err, got, answer, req)
			}
		})
	}
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
	}}.run(t, "background", func(s *scene) {
		s.post("/responses", `{"model":"m","background":true,"input":"a"}`, func(r *http.Request) {
			r.Body, r.GetBody, r.ContentLength = &body{text: `{"model":"m","background":true,"input":"a"}`}, nil, -1
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

// A query string got a 404, and a custom base URL was not seen.
func TestWhereCallsMayGo(t *testing.T) {
	setup{}.run(t, "a query string", func(s *scene) {
		s.post("/chat/completions?x=1", chatBody("a")).want(200, 15*time.Second)
	})
	azure := provider.AzureLegacy()
	manners := batchtest.Azure()
	manners.BasePath = "/openai"
	var queries []string
	setup{
		server: batchtest.Options{Manners: manners}, options: autobatcher.Options{Provider: &azure},
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
	for _, base := range []string{"", "/v1", "/a/b%20c", "/api/v3"} {
		var paths []string
		setup{base: func(http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				paths = append(paths, r.URL.Scheme+"://"+r.URL.Host+r.URL.EscapedPath())
				io.Copy(io.Discard, r.Body)
				r.Body.Close()
				return &http.Response{StatusCode: 403, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
			})
		}}.run(t, "base "+base, func(s *scene) {
			req, _ := http.NewRequest("POST", "https://gateway.invalid:8443"+base+"/chat/completions", strings.NewReader(chatBody("a")))
			s.do(req).want(403, 10*time.Second)
			if diff := cmp.Diff([]string{"https://gateway.invalid:8443" + base + "/files"}, paths); diff != "" {
				s.Error(diff)
			}
		})
	}
	u := setup{}
	u.run(t, "a provider without batches", func(s *scene) {
		req, _ := http.NewRequest("POST", "https://api.x.ai/v1/chat/completions", strings.NewReader(chatBody("a")))
		s.do(req).want(400, 0).fails("batch_unsupported")
	})
}

// A request may be made by hand.
func TestARequestWithoutHeaders(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		u, err := url.Parse(s.srv.URL + "/chat/completions")
		if err != nil {
			s.Fatal(err)
		}
		req := &http.Request{Method: "POST", URL: u, Body: io.NopCloser(strings.NewReader(chatBody("a")))}
		s.do(req).want(401, 10*time.Second)
	})
}

// Bad JSON was a 500, a missing model was sent as "".
func TestBadInput(t *testing.T) {
	deep := `{"model":"m","a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}"
	tests := []struct{ name, body, param string }{
		{"nothing", "", ""},
		{"blanks", " \n ", ""},
		{"no JSON", "nonsense", ""},
		{"half", `{"model":"m"`, ""},
		{"two", `{"model":"m"}{"model":"m"}`, ""},
		{"a list", `[{"model":"m"}]`, ""},
		{"a text", `"model"`, ""},
		{"no model", `{"messages":[]}`, "model"},
		{"an empty model", `{"model":""}`, "model"},
		{"a null model", `{"model":null}`, "model"},
		{"a model that is no text", `{"model":{"a":1}}`, "model"},
		{"not UTF-8", "{\"model\":\"\xff\"}", ""},
		{"a byte order mark", "\ufeff" + `{"model":"m"}`, ""},
		{"nested too deep", deep, ""},
	}
	for _, test := range tests {
		setup{}.run(t, test.name, func(s *scene) {
			b := &body{text: test.body}
			r := s.post("/chat/completions", "", func(r *http.Request) { r.Body, r.ContentLength, r.GetBody = b, -1, nil })
			r.want(400, 0).fails("invalid_request")
			if want := `"param":"` + test.param + `"`; test.param != "" && !strings.Contains(r.body, want) {
				s.Errorf("body = %s, want %s", r.body, want)
			}
			if r.header.Get("X-Should-Retry") != "false" || r.res.Request == nil || r.res.ContentLength != int64(len(r.body)) {
				s.Errorf("response = %+v", r.res)
			}
			if !b.closed.Load() {
				s.Error("the request's body was not closed")
			}
			if st := s.tr.Stats(); st.Queued != 0 || len(s.srv.Requests()) != 0 {
				s.Errorf("stats = %+v, requests %v", st, s.srv.Requests())
			}
		})
	}
	setup{}.run(t, "no body at all", func(s *scene) {
		s.post("/chat/completions", "", func(r *http.Request) { r.Body, r.ContentLength, r.GetBody = nil, 0, nil }).want(400, 0)
	})
}

func TestTooLarge(t *testing.T) {
	small := provider.Generic()
	small.MaxLineBytes = 100
	u := setup{options: autobatcher.Options{Provider: &small}}
	exact := chatBody(strings.Repeat("x", 100-len(chatBody(""))))
	for name, length := range map[string]int64{"announced": 101, "not announced": -1, "announced as less": 5} {
		u.run(t, name, func(s *scene) {
			b := &body{text: exact + " "}
			r := s.post("/chat/completions", "", func(r *http.Request) { r.Body, r.ContentLength, r.GetBody = b, length, nil })
			r.want(413, 0).fails("request_too_large")
			if !b.closed.Load() {
				s.Error("the request's body was not closed")
			}
		})
		u.run(t, name+", just small enough", func(s *scene) {
			s.post("/chat/completions", "", func(r *http.Request) {
				r.Body, r.ContentLength, r.GetBody = &body{text: exact}, min(length, 100), nil
			}).want(200, 15*time.Second)
		})
	}
	u.run(t, "a bomb", func(s *scene) {
		s.post("/chat/completions", string(gzipped(chatBody(strings.Repeat("x", 1<<20)))), with("Content-Encoding", "gzip")).want(413, 0)
	})
}

func gzipped(text string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, text)
	w.Close()
	return b.Bytes()
}

func TestContentEncoding(t *testing.T) {
	var deflated bytes.Buffer
	w := zlib.NewWriter(&deflated)
	io.WriteString(w, chatBody("a"))
	w.Close()
	for encoding, text := range map[string][]byte{
		"gzip": gzipped(chatBody("a")), "GZIP": gzipped(chatBody("a")), "deflate": deflated.Bytes(), "identity": []byte(chatBody("a")),
	} {
		setup{}.run(t, encoding, func(s *scene) {
			s.post("/chat/completions", string(text), with("Content-Encoding", encoding)).want(200, 15*time.Second).says("a")
			if got := string(s.upload().Lines[0].Body); got != chatBody("a") {
				s.Errorf("line = %q", got)
			}
		})
	}
	setup{}.run(t, "one we do not know", func(s *scene) {
		s.post("/chat/completions", "x", with("Content-Encoding", "br")).want(415, 0).fails("unsupported_content_encoding")
	})
	for name, text := range map[string]string{"not what it says": chatBody("a"), "torn": string(gzipped(chatBody("a"))[:20])} {
		setup{}.run(t, name, func(s *scene) {
			s.post("/chat/completions", text, with("Content-Encoding", "gzip")).want(400, 0).fails("invalid_request")
		})
	}
	setup{}.run(t, "passed through as it is", func(s *scene) {
		text := gzipped(`{"model":"m","background":true}`)
		var got []byte
		s.srv.Control(batchtest.OpRealtime, func(w http.ResponseWriter, r *http.Request) bool {
			got, _ = io.ReadAll(r.Body)
			w.WriteHeader(202)
			return true
		})
		s.post("/responses", string(text), with("Content-Encoding", "gzip")).want(202, 0)
		if !bytes.Equal(got, text) {
			s.Error("the body was changed")
		}
	})
}

// net/http's contract for a RoundTripper: the body is closed on every path, and
// the request is the caller's.
func TestTheRequestIsTheCallers(t *testing.T) {
	paths := map[string][]edit{
		"batched": nil, "realtime": {with("Autobatcher-Mode", "realtime")}, "bad header": {with("Autobatcher-Mode", "x")},
		"window": {with("Autobatcher-Completion-Window", "7d")}, "encoding": {with("Content-Encoding", "br")},
		"a broken body": {func(r *http.Request) { r.Body.(*body).err = errors.New("broken") }},
	}
	openAI := provider.OpenAI()
	for name, edits := range paths {
		setup{options: autobatcher.Options{Provider: &openAI}}.run(t, name, func(s *scene) {
			b := &body{text: chatBody("a")}
			req := s.request(s.Context(), "/chat/completions", "", with("Autobatcher-Deadline", "1h"))
			req.Body, req.ContentLength, req.GetBody = b, int64(len(b.text)), nil
			for _, e := range edits {
				e(req)
			}
			before := req.Clone(s.Context())
			s.do(req)
			if !b.closed.Load() {
				s.Error("the body was not closed")
			}
			if diff := cmp.Diff(before.Header, req.Header); diff != "" || req.Body != io.ReadCloser(b) || req.ContentLength != before.ContentLength || req.URL.String() != before.URL.String() {
				s.Errorf("the request was changed: %s", diff)
			}
		})
	}
	setup{}.run(t, "closed transport", func(s *scene) {
		s.tr.Close()
		b := &body{text: chatBody("a")}
		r := s.post("/chat/completions", "", func(r *http.Request) { r.Body = b })
		if !errors.Is(r.err, autobatcher.ErrClosed) || r.at != 0 || !b.closed.Load() {
			s.Errorf("error %v at %v, body closed: %v", r.err, r.at, b.closed.Load())
		}
	})
}

func TestHeadersPerCall(t *testing.T) {
	for name, bad := range map[string]edit{
		"mode": with("Autobatcher-Mode", "fast"), "deadline": with("Autobatcher-Deadline", "soon"), "no deadline": with("Autobatcher-Deadline", "0s"),
		"negative": with("Autobatcher-Deadline", "-1s"), "unknown": with("Autobatcher-Windows", "1h"),
	} {
		setup{}.run(t, "bad "+name, func(s *scene) { s.chat("a", bad).want(400, 0).fails("invalid_header") })
	}
	openAI := provider.OpenAI()
	setup{options: autobatcher.Options{Provider: &openAI}}.run(t, "a window the provider does not have", func(s *scene) {
		s.chat("a", with("Autobatcher-Completion-Window", "1h")).want(400, 0).fails("invalid_completion_window")
	})
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

// Callers that were cancelled stayed in the file and were billed.
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
	setup{}.run(t, "with a cause", func(s *scene) {
		cause := errors.New("the user closed the window")
		ctx, cancel := context.WithCancelCause(s.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		if r := s.do(s.request(ctx, "/chat/completions", chatBody("a"))); !errors.Is(r.err, context.Canceled) || !errors.Is(r.err, cause) {
			s.Errorf("error %v, want both the context's and its cause", r.err)
		}
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
		if diff := cmp.Diff(want, s.told()); diff != "" {
			s.Error(diff)
		}
	})
	setup{}.run(t, "close_safe_when_no_tasks", func(s *scene) {
		for range 3 {
			if err := s.tr.Close(); err != nil {
				s.Error(err)
			}
		}
		if diff := cmp.Diff([]autobatcher.EventName{autobatcher.ClientClosing}, s.told()); diff != "" {
			s.Error(diff)
		}
		r := s.chat("a").wait()
		if !errors.Is(r.err, autobatcher.ErrClosed) || r.at != 0 {
			s.Errorf("error %v at %v", r.err, r.at)
		}
	})
	// Callers hung for ever when Close came during an upload, and the batch made
	// of it ran on unknown to anybody.
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
			s.Error("the batch runs on, and nobody knows of it")
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
		call.closed(21*time.Second, "autobatcher: transport closed before batch "+s.batch().ID+" completed")
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

// Closing failed what was queued in one implementation and waited for up to a
// day in the other; neither let the caller choose.
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
		if last := s.told()[len(s.told())-1]; last != autobatcher.ClientClosing {
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
			s.Errorf("Shutdown = %v at %v; nobody waits for an answer", err, s.elapsed())
		}
	})
}

func TestBadOptions(t *testing.T) {
	refused, err := provider.ByName("xai")
	if err != nil {
		t.Fatal(err)
	}
	openAI := provider.OpenAI()
	many := map[string]string{}
	for i := range 17 {
		many[fmt.Sprint(i)] = "x"
	}
	tests := []struct {
		field, bound string
		options      autobatcher.Options
	}{
		{"BatchSize", "1", autobatcher.Options{BatchSize: -1}},
		{"BatchWindow", "negative", autobatcher.Options{BatchWindow: -1}},
		{"BatchBytes", "negative", autobatcher.Options{BatchBytes: -1}},
		{"PollInterval", "negative", autobatcher.Options{PollInterval: -1}},
		{"Provider", "xai", autobatcher.Options{Provider: &refused}},
		{"Provider", "", autobatcher.Options{Provider: &provider.Profile{}}},
		{"CompletionWindow", "24h", autobatcher.Options{Provider: &openAI, CompletionWindow: "1h"}},
		{"Metadata", "16", autobatcher.Options{Provider: &openAI, Metadata: many}},
		{"Metadata", "64", autobatcher.Options{Provider: &openAI, Metadata: map[string]string{strings.Repeat("k", 65): "x"}}},
		{"Metadata", "512", autobatcher.Options{Provider: &openAI, Metadata: map[string]string{"k": strings.Repeat("é", 513)}}},
	}
	for _, test := range tests {
		tr, err := autobatcher.New(test.options)
		if err == nil {
			tr.Close()
			t.Errorf("%s: New accepts what is out of bounds (%s)", test.field, test.bound)
			continue
		}
		if text := err.Error(); !strings.Contains(text, "Options."+test.field) || !strings.Contains(text, test.bound) {
			t.Errorf("error %q names not field %s and bound %s", text, test.field, test.bound)
		}
	}
}

func TestMetadataIsCopied(t *testing.T) {
	metadata := map[string]string{"a": "1"}
	setup{options: autobatcher.Options{Metadata: metadata}}.play(t, func(s *scene) {
		metadata["a"] = "2"
		s.chat("x").want(200, 15*time.Second)
		if got := s.batch().Metadata["a"]; got != "1" {
			s.Errorf("metadata follows the caller's map: %q", got)
		}
	})
}

// What leaks into a log leaks to everybody who reads logs.
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
		if diff := cmp.Diff(autobatcher.Stats{Answered: 3}, s.tr.Stats()); diff != "" {
			s.Error(diff)
		}
	})
}

// Nothing may be lost or mixed up when everything happens at once.
func TestManyCallsAtOnce(t *testing.T) {
	doubleword(batchtest.Options{Turnaround: 30 * time.Second}, autobatcher.Options{BatchSize: 64}).play(t, func(s *scene) {
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				ctx, leave := context.WithCancel(s.Context())
				defer leave()
				if i%7 == 0 {
					time.AfterFunc(time.Duration(i%50)*time.Second, leave)
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

// Waiters were stranded when something of theirs panicked.
func TestAPanickingBaseStrandsNobody(t *testing.T) {
	for _, part := range []string{"/files", "/batches", "/batches/", "/content"} {
		var panicked atomic.Bool
		setup{base: func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				if strings.Contains(r.URL.Path, part) && !panicked.Swap(true) {
					panic("base")
				}
				return next.RoundTrip(r)
			})
		}}.run(t, part, func(s *scene) {
			for _, c := range s.chats(3) {
				r := c.wait()
				if r.status != 424 || r.at > 15*time.Second {
					s.Errorf("status %d, error %v at %v", r.status, r.err, r.at)
				}
				r.fails("internal_error")
			}
			s.chat("b").wait().says("b")
		})
	}
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
	told := 0
	setup{options: autobatcher.Options{OnEvent: func(autobatcher.Event) { tr.Stats(); told++ }}}.play(t, func(s *scene) {
		tr = s.tr
		s.chat("a").want(200, 15*time.Second)
		synctest.Wait()
		s.tr.Close()
		if told != 4 {
			s.Errorf("%d events", told)
		}
	})
}

// Calls went to full price whenever a batch failed, or never.
func TestEscalation(t *testing.T) {
	failing := batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		if l.BatchID != "" {
			return batchtest.Outcome{Code: "request_timeout", Message: "slow"}
		}
		return batchtest.Outcome{}
	}}
	slow := batchtest.Options{Turnaround: 10 * time.Hour}
	poll := time.Hour
	setup{server: failing}.run(t, "never by default", func(s *scene) {
		s.chat("a").want(424, 15*time.Second)
		if n := s.count("POST", "/chat/completions"); n != 0 {
			s.Errorf("%d calls at full price", n)
		}
	})
	setup{server: failing, options: autobatcher.Options{Escalate: autobatcher.EscalateFailed}}.run(t, "a failed call", func(s *scene) {
		r := s.chat("a", with("Autobatcher-Deadline", "1h")).want(200, 15*time.Second).says("a")
		if r.header.Get("Autobatcher-Mode") != "realtime" || r.res.Request == nil {
			s.Errorf("header = %v", r.header)
		}
		for _, sent := range s.srv.Requests() {
			if sent.Header.Get("Autobatcher-Deadline") != "" {
				s.Error("a header of ours left the process")
			}
		}
		s.event(autobatcher.CallEscalated)
	})
	setup{server: failing, options: autobatcher.Options{Escalate: autobatcher.EscalateFailed}}.run(t, "a streamed call", func(s *scene) {
		r := s.post("/chat/completions", `{"model":"m","stream":true,"messages":[]}`).want(200, 15*time.Second)
		if !strings.HasPrefix(r.body, "data: ") {
			s.Errorf("body = %.100s", r.body)
		}
	})
	setup{server: failing, options: autobatcher.Options{Escalate: autobatcher.EscalateFailed, EscalateLimit: 2}}.run(t, "no more than allowed", func(s *scene) {
		statuses := map[int]int{}
		for _, c := range s.chats(5) {
			statuses[c.wait().status]++
		}
		if diff := cmp.Diff(map[int]int{200: 2, 424: 3}, statuses); diff != "" {
			s.Error(diff)
		}
	})
	late := setup{server: slow, options: autobatcher.Options{Escalate: autobatcher.EscalateDeadline, PollInterval: poll}}
	late.run(t, "a minute before its deadline", func(s *scene) {
		s.chat("a", with("Autobatcher-Deadline", "30m")).want(200, 29*time.Minute).says("a")
	})
	late.run(t, "a minute before its context's", func(s *scene) {
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
