package blackbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// A call that no file of the provider can hold is refused at once.
func TestACallThatNoFileCanHold(t *testing.T) {
	behavior := batchtest.OpenAI()
	behavior.MaxLines, behavior.MaxInputs, behavior.MaxFileBytes = 4, 6, 2000
	p := provider.OpenAI()
	p.MaxLines, p.MaxInputs, p.MaxBytes = 4, 6, 2000
	u := setup{server: batchtest.Options{Behavior: behavior}, options: autobatcher.Options{Provider: &p}}
	u.run(t, "a line that no file can hold", func(s *scene) {
		s.chat(strings.Repeat("x", 2000)).want(413, 0).fails("request_too_large")
		if n := len(s.srv.Requests()); n != 0 {
			s.Errorf("%d requests for a call that cannot be batched", n)
		}
	})
}

// A slow upload, create or rate limit of one batch holds up no other call.
func TestTheQueueNeverWaitsForTheNetwork(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		s.srv.Control(batchtest.OpUpload, batchtest.Delay(time.Minute))
		s.srv.Control(batchtest.OpCreate, batchtest.RateLimit(100*time.Second))
		slow := s.chat("slow")
		s.until(11 * time.Second)
		same, other := s.chat("same"), s.send("/embeddings", embeddingBody("other"))
		s.until(20 * time.Second)
		if queued := s.tr.Stats().Queued; queued != 3 {
			s.Errorf("%d calls queued, want 3", queued)
		}
		rs := []reply{same.wait(), other.wait()}
		slices.SortFunc(rs, func(a, b reply) int { return int(a.at - b.at) })
		if rs[0].at != 26*time.Second || rs[0].status != 200 || rs[1].status != 200 {
			s.Errorf("answers at %v and %v; want one at 26s and the rate-limited one later", rs[0].at, rs[1].at)
		}
		slow.want(200, 75*time.Second)
	})
}

func TestMixedBatches(t *testing.T) {
	mixed := func(s *scene) []*pending {
		return []*pending{
			s.chat("a"), s.send("/embeddings", embeddingBody("b")), s.send("/responses", `{"model":"n","input":"c"}`),
			s.send("/chat/completions", `{"model":"other","messages":[{"role":"user","content":"d"}]}`),
		}
	}
	// seed: test_submit_batch/mixed_endpoint_jsonl, test_submit_batch/mixed_endpoint_result_types
	doubleword(batchtest.Options{}, autobatcher.Options{}).run(t, "mixed_endpoint_jsonl", func(s *scene) {
		for _, c := range mixed(s) {
			c.want(200, 15*time.Second)
		}
		var urls []string
		for _, l := range s.upload().Lines {
			urls = append(urls, l.URL)
		}
		want := []string{"/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/chat/completions"}
		if diff := cmp.Diff(want, urls); diff != "" {
			s.Error(diff)
		}
		if got := s.batch().Endpoint; got != "/v1/chat/completions" {
			s.Errorf("endpoint = %s, want the first line's", got)
		}
	})
}

// Calls with different credentials go into different batches, each with its own
// credential.
func TestCredentialsNeverShareABatch(t *testing.T) {
	headers := []string{
		"Authorization", "Api-Key", "X-Api-Key", "OpenAI-Organization", "OpenAI-Project", "X-Goog-User-Project",
		"Cookie", "X-Auth-Token", "Cf-Access-Client-Secret", "X-Tenant-Id", "Proxy-Authorization",
	}
	for _, name := range headers {
		setup{}.run(t, name, func(s *scene) {
			a := s.chat("same", with(name, "Bearer alice"))
			b := s.chat("same", with(name, "Bearer bob"))
			a.want(200, 15*time.Second)
			b.want(200, 15*time.Second)
			s.sent(1, 1)
			got := []string{s.srv.Uploads()[0].Header.Get(name), s.srv.Uploads()[1].Header.Get(name)}
			slices.Sort(got)
			if diff := cmp.Diff([]string{"Bearer alice", "Bearer bob"}, got); diff != "" {
				s.Error(diff)
			}
		})
	}
}

// Every request about a batch carries the credential of its callers, and none from the
// environment.
func TestEveryRequestCarriesTheCallersCredentialAlone(t *testing.T) {
	t.Setenv("OPENAI_API_KEY", "sk-environment")
	t.Setenv("OPENAI_ORG_ID", "org-environment")
	t.Setenv("OPENAI_BASE_URL", "http://elsewhere.invalid/v1")
	setup{}.run(t, "a key", func(s *scene) {
		s.chat("a", key("alice"), with("OpenAI-Organization", "org-alice")).want(200, 15*time.Second)
		for _, r := range s.srv.Requests() {
			if a, o := r.Header.Values("Authorization"), r.Header.Values("OpenAI-Organization"); !slices.Equal(a, []string{"Bearer alice"}) || !slices.Equal(o, []string{"org-alice"}) {
				s.Errorf("%s %s has the credentials %q and %q", r.Method, r.Path, a, o)
			}
			for name := range r.Header {
				if strings.HasPrefix(name, "Autobatcher-") {
					s.Errorf("%s %s has the header %s", r.Method, r.Path, name)
				}
			}
		}
	})
	setup{}.run(t, "no key", func(s *scene) {
		anonymous := func(r *http.Request) { r.Header.Del("Authorization") }
		s.chat("a", anonymous).want(401, 10*time.Second).fails("invalid_api_key")
	})
}

func TestSubmitting(t *testing.T) {
	t.Run("jsonl_format", func(t *testing.T) {
		setup{}.play(t, func(s *scene) {
			calls := s.chats(2)
			for _, c := range calls {
				c.want(200, 15*time.Second)
			}
			u := s.upload()
			pattern := regexp.MustCompile(`^\{"custom_id":"([0-9a-f-]{36})","method":"POST","url":"/v1/chat/completions","body":(.*)\}$`)
			for i, text := range lines(u) {
				m := pattern.FindStringSubmatch(text)
				if m == nil {
					s.Fatalf("line %d = %s", i+1, text)
				}
				// seed: test_enqueue/custom_id_is_valid_uuid
				if id, err := uuid.Parse(m[1]); err != nil || id.Version() != 4 {
					s.Errorf("custom_id = %q: %v", m[1], err)
				}
				if want := chatBody(fmt.Sprintf("call %d", i)); m[2] != want {
					s.Errorf("body = %s, want %s", m[2], want)
				}
			}
		})
	})
	setup{}.run(t, "files_create_called_with_batch_purpose", func(s *scene) {
		s.chat("a").want(200, 15*time.Second)
		u := s.upload()
		if u.Purpose != "batch" || !regexp.MustCompile(`^batch-[0-9a-f-]{36}\.jsonl$`).MatchString(u.Filename) {
			s.Errorf("purpose %q, file name %q", u.Purpose, u.Filename)
		}
	})
	setup{}.run(t, "batches_create_called_correctly", func(s *scene) {
		s.chat("a").want(200, 15*time.Second)
		b := s.batch()
		if b.InputFileID != s.upload().ID || b.Endpoint != "/v1/chat/completions" || b.Window != "24h" || len(b.Metadata) != 0 {
			s.Errorf("batch = %+v", b)
		}
	})
	anyWindow := batchtest.OpenAI()
	anyWindow.Windows = nil
	setup{
		server: batchtest.Options{Behavior: anyWindow}, options: autobatcher.Options{CompletionWindow: "72h"},
	}.run(t, "batches_create_passes_through_arbitrary_completion_window", func(s *scene) {
		s.chat("a").want(200, 15*time.Second)
		if w := s.batch().Window; w != "72h" {
			s.Errorf("window = %q", w)
		}
	})
	setup{options: autobatcher.Options{Metadata: map[string]string{"team": "a", "job": "b"}}}.run(t, "batches_create_passes_metadata", func(s *scene) {
		s.chat("a").want(200, 15*time.Second)
		if diff := cmp.Diff(map[string]string{"team": "a", "job": "b"}, s.batch().Metadata); diff != "" {
			s.Error(diff)
		}
	})
	doubleword(batchtest.Options{}, autobatcher.Options{}).run(t, "Doubleword's window is an hour unless the call says otherwise", func(s *scene) {
		s.chat("a").want(200, 15*time.Second)
		s.chat("b", with("Autobatcher-Completion-Window", "24h")).want(200, 30*time.Second)
		if a, b := s.srv.Batches()[0].Window, s.srv.Batches()[1].Window; a != "1h" || b != "24h" {
			s.Errorf("windows %q and %q", a, b)
		}
	})
	// seed: test_embeddings/jsonl_has_embeddings_url, test_embeddings/batches_create_uses_embeddings_endpoint,
	// test_embeddings/embedding_body_with_list_input
	setup{}.run(t, "embedding_body_with_list_input", func(s *scene) {
		body := `{"model":"m","input":["a","b"],"encoding_format":"base64"}`
		s.send("/embeddings", body).want(200, 15*time.Second)
		l := s.upload().Lines[0]
		if l.URL != "/v1/embeddings" || l.Method != "POST" || string(l.Body) != body || s.batch().Endpoint != "/v1/embeddings" {
			s.Errorf("line %s %s %s in a batch for %s", l.Method, l.URL, l.Body, s.batch().Endpoint)
		}
	})
	// seed: test_responses/jsonl_has_responses_url, test_responses/batches_create_uses_responses_endpoint,
	// test_responses/input_none_omitted_from_params
	// Calls to /responses were not intercepted by one implementation: silently full price.
	setup{}.run(t, "jsonl_has_responses_url", func(s *scene) {
		body := `{"model":"m","prompt":{"id":"pmpt_1"}}`
		s.send("/responses", body).want(200, 15*time.Second)
		l := s.upload().Lines[0]
		if l.URL != "/v1/responses" || l.Method != "POST" || string(l.Body) != body || s.batch().Endpoint != "/v1/responses" {
			s.Errorf("line %s %s %s in a batch for %s", l.Method, l.URL, l.Body, s.batch().Endpoint)
		}
		if n := s.count("POST", "/responses"); n != 0 {
			s.Errorf("%d calls at full price", n)
		}
	})
	// seed: test_submit_batch/active_batches_populated, test_submit_batch/poller_task_started
	setup{server: batchtest.Options{Turnaround: time.Minute}}.run(t, "active_batches_populated", func(s *scene) {
		call := s.chat("a")
		s.until(11 * time.Second)
		if st := s.tr.Stats(); st.Running != 1 || st.Queued != 0 || len(st.Queues) != 0 {
			s.Errorf("stats = %+v", st)
		}
		s.until(15 * time.Second)
		if n := s.count("GET", "/batches/"); n != 1 {
			s.Errorf("%d polls after five seconds, want 1", n)
		}
		call.want(200, 70*time.Second)
		if st := s.tr.Stats(); st.Running != 0 || st.Answered != 1 {
			s.Errorf("stats = %+v", st)
		}
	})
}

// The body of a call went through structs or objects, which dropped unknown
// fields, rounded numbers and added nulls; "stream": false was put into every
// body, and stream_options was left in.
func TestTheBodyIsSentTokenForToken(t *testing.T) {
	tests := []struct{ name, sent, want string }{
		{"numbers", `{"model":"m","a":1e400,"b":0.10,"c":-0,"d":12345678901234567890,"e":1E+2}`, ""},
		{"duplicate keys", `{"model":"m","a":1,"a":2}`, ""},
		{"escapes", `{"model":"m","a":"\u00e9é\/\ud83d\ude00\n<>&"}`, ""},
		{"unknown fields and order", `{"zzz":null,"model":"m","aaa":{"b":[],"a":{}},"stream_x":true,"x.stream":1}`, ""},
		{"nested stream stays", `{"model":"m","metadata":{"stream":true,"stream_options":{}},"messages":[{"content":"\"stream\":true"}]}`, ""},
		{"blanks", "{ \"model\" : \"m\" ,\t\"a\" : [ 1 , 2 ] }", ""},
		{"pretty-printed", "{\n  \"model\": \"m\",\r\n  \"a\": [\n    1\n  ]\n}\n", `{  "model": "m",  "a": [    1  ]}`},
		{"stream true", `{"model":"m","stream":true,"a":1e400}`, `{"model":"m","a":1e400}`},
		{"stream false", `{"stream":false,"model":"m"}`, `{"model":"m"}`},
		{"stream null and options", `{"model":"m","stream":null,"stream_options":null}`, `{"model":"m"}`},
		{"streams in number", `{"stream":true,"model":"m","stream":false,"stream_options":{"include_usage":true},"stream":true}`, `{"model":"m"}`},
		{"none of OpenAI's limits on text", `{"model":"m","a":"` + "\u2028\u2029\x7f" + `"}`, `{"model":"m","a":"\u2028\u2029` + "\x7f" + `"}`},
	}
	for _, test := range tests {
		doubleword(batchtest.Options{}, autobatcher.Options{}).run(t, test.name, func(s *scene) {
			call := s.send("/embeddings", test.sent)
			s.tr.Flush(s.Context())
			call.leave()
			if call.wait(); test.want == "" {
				test.want = test.sent
			}
			if got := string(s.upload().Lines[0].Body); got != test.want {
				s.Errorf("sent %s\n got %s\nwant %s", test.sent, got, test.want)
			}
		})
	}
}

// seed: test_enqueue/request_params_passed_correctly
func TestRequestParamsPassedCorrectly(t *testing.T) {
	setup{}.run(t, "request_params_passed_correctly", func(s *scene) {
		body := `{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hi"}],"temperature":0.7,"max_tokens":50}`
		s.send("/chat/completions", body).want(200, 15*time.Second)
		if got := string(s.upload().Lines[0].Body); got != body {
			s.Errorf("body = %s", got)
		}
	})
}

// A rate limit was waited out for ever, without jitter, and a date in
// Retry-After was not understood.
func TestRateLimitedSubmission(t *testing.T) {
	date := func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", time.Now().Add(90*time.Second).UTC().Format(http.TimeFormat))
		w.WriteHeader(429)
		return true
	}
	tests := []struct {
		name  string
		op    batchtest.Op
		fault batchtest.Fault
		wait  time.Duration
	}{
		{"files_create_retries_on_rate_limit", batchtest.OpUpload, batchtest.RateLimit(20 * time.Second), 20 * time.Second},
		{"batches_create_retries_on_rate_limit", batchtest.OpCreate, batchtest.RateLimit(20 * time.Second), 20 * time.Second},
		{"rate_limit_uses_default_retry_when_no_header", batchtest.OpUpload, batchtest.RateLimit(0), time.Minute},
		{"a date", batchtest.OpUpload, date, 90 * time.Second},
		{"milliseconds", batchtest.OpUpload, batchtest.Status(429, http.Header{"Retry-After-Ms": {"20000"}}, "{}"), 20 * time.Second},
	}
	for _, test := range tests {
		setup{}.run(t, test.name, func(s *scene) {
			s.srv.Control(test.op, test.fault)
			r := s.chat("a").wait()
			least := 15*time.Second + test.wait
			if r.status != 200 || r.at < least || r.at > least+test.wait/10 {
				s.Errorf("status %d at %v, want 200 at %v or up to a tenth of the wait later", r.status, r.at, least)
			}
			s.sent(1)
		})
	}
}

func TestRefusedSubmission(t *testing.T) {
	const refusal = `{"error":{"message":"no","type":"invalid_request_error","param":"p","code":"c"}}`
	tests := []struct {
		name   string
		op     batchtest.Op
		fault  batchtest.Fault
		status int
		code   string
		body   string // "": anything
	}{
		{"upload 401", batchtest.OpUpload, batchtest.Status(401, nil, refusal), 401, "c", refusal},
		{"upload 403", batchtest.OpUpload, batchtest.Status(403, nil, refusal), 403, "c", refusal},
		{"create 400", batchtest.OpCreate, batchtest.Status(400, nil, refusal), 400, "c", refusal},
		{"create 402 as text", batchtest.OpCreate, batchtest.Status(402, http.Header{"Content-Type": {"text/plain"}}, "Insufficient balance"), 402, "batch_refused", ""},
		{"upload 403 as a page", batchtest.OpUpload, batchtest.HTML(403), 403, "batch_refused", ""},
		// An exhausted quota is refused at once and never waited out.
		{
			"insufficient_quota fails fast", batchtest.OpUpload,
			batchtest.Status(429, http.Header{"Retry-After": {"1"}}, `{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`),
			429, "insufficient_quota", "",
		},
	}
	for _, test := range tests {
		setup{}.run(t, test.name, func(s *scene) {
			s.srv.Control(test.op, test.fault)
			calls := s.chats(3)
			for _, c := range calls { // seed: test_submit_batch/submission_failure_propagates_to_futures, test_submit_batch/non_rate_limit_error_still_propagates
				r := c.want(test.status, 10*time.Second)
				r.fails(test.code)
				if test.body != "" && r.body != test.body {
					s.Errorf("body = %s, want the provider's", r.body)
				}
				if got := r.header.Get("X-Should-Retry"); got != "false" {
					s.Errorf("X-Should-Retry = %q", got)
				}
			}
			e := s.event(autobatcher.BatchSubmissionFailed)
			if e.RequestCount != 3 || e.Error == "" || e.Endpoint != "/v1/chat/completions" {
				s.Errorf("event = %+v", e)
			}
			if n := len(s.srv.Batches()); n != 0 {
				s.Errorf("%d batches", n)
			}
		})
	}
}

// A passing failure of an upload is retried.
func TestTransientSubmissionFailures(t *testing.T) {
	for name, fault := range map[string]batchtest.Fault{
		"502 page": batchtest.HTML(502), "500": batchtest.Status(500, nil, "{}"), "reset": batchtest.Reset(),
		"lost answer": batchtest.LoseAnswer(), "page instead of JSON": batchtest.HTML(200), "torn": batchtest.Tear(10),
	} {
		setup{}.run(t, "upload/"+name, func(s *scene) {
			s.srv.Control(batchtest.OpUpload, fault)
			r := s.chat("a").wait()
			if r.status != 200 || r.at <= 15*time.Second || r.at > 16*time.Second {
				s.Errorf("status %d at %v, want 200 up to a second late: %s", r.status, r.at, r.body)
			}
			s.sent(1)
		})
	}
	setup{}.run(t, "upload that hangs", func(s *scene) {
		s.srv.Control(batchtest.OpUpload, batchtest.Hang())
		if r := s.chat("a").wait(); r.status != 200 || r.at < 5*time.Minute || r.at > 6*time.Minute {
			s.Errorf("status %d at %v", r.status, r.at)
		}
	})
	setup{}.run(t, "in vain", func(s *scene) {
		s.srv.Control(batchtest.OpUpload, every(1000, batchtest.Status(500, nil, "{}"))...)
		r := s.chat("a").wait()
		if r.status != 503 || r.at < 29*time.Minute || r.at > 31*time.Minute || r.header.Get("Retry-After") != "5" {
			s.Errorf("status %d at %v, header %v; want 503 after half an hour", r.status, r.at, r.header)
		}
		if r.fails("batch_not_submitted"); r.header.Get("X-Should-Retry") == "false" {
			s.Error("a retry would be safe, but is forbidden")
		}
		if s.event(autobatcher.BatchSubmissionFailed).RequestCount != 1 {
			s.Error("the event miscounts")
		}
	})
}

// A create whose answer was lost is not repeated before its batch was looked for.
func TestLostCreateIsAdopted(t *testing.T) {
	for name, fault := range map[string]batchtest.Fault{
		"lost answer": batchtest.LoseAnswer(),
		"torn answer": batchtest.Tear(20),
		"502 behind the work": func(w http.ResponseWriter, r *http.Request) bool {
			batchtest.Proceed(&recorded{header: http.Header{}}, r)
			return batchtest.HTML(502)(w, r)
		},
	} {
		setup{}.run(t, name, func(s *scene) {
			s.srv.Control(batchtest.OpCreate, fault)
			s.chat("a").want(200, 13*time.Second).says("a") // window, 3 s until the list is searched, which shows that the batch has ended
			s.sent(1)
			if s.event(autobatcher.BatchSubmitted).BatchID != s.batch().ID {
				s.Error("the event names another batch")
			}
		})
	}
	setup{}.run(t, "no answer for a minute", func(s *scene) {
		s.srv.Control(batchtest.OpCreate, func(_ http.ResponseWriter, r *http.Request) bool {
			batchtest.Proceed(&recorded{header: http.Header{}}, r)
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		})
		s.chat("a").want(200, 73*time.Second)
		s.sent(1)
	})
	setup{}.run(t, "the list fails at first", func(s *scene) {
		s.srv.Control(batchtest.OpCreate, batchtest.LoseAnswer())
		s.srv.Control(batchtest.OpList, batchtest.HTML(502), batchtest.Reset(), batchtest.RateLimit(time.Second))
		if r := s.chat("a").wait(); r.status != 200 {
			s.Errorf("status %d: %s", r.status, r.body)
		}
		s.sent(1)
	})
	setup{}.run(t, "among many others", func(s *scene) {
		for i := range 3 {
			s.chat(fmt.Sprint("other ", i))
			s.tr.Flush(s.Context())
		}
		s.srv.Control(batchtest.OpCreate, batchtest.LoseAnswer())
		s.chat("a").want(200, 13*time.Second).says("a")
		s.sent(1, 1, 1, 1)
	})
	setup{}.run(t, "not created after all", func(s *scene) {
		s.srv.Control(batchtest.OpCreate, batchtest.Reset())
		if r := s.chat("a").wait(); r.status != 200 || r.at > 45*time.Second {
			s.Errorf("status %d at %v", r.status, r.at)
		}
		s.sent(1)
	})
}

// lateCreate is a gateway that gives up the first create, which arrives later.
func lateCreate(late time.Duration) func(http.RoundTripper) http.RoundTripper {
	first := true
	return func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if !first || req.Method != http.MethodPost || !strings.HasSuffix(req.URL.Path, "/batches") {
				return next.RoundTrip(req)
			}
			first = false
			body, _ := io.ReadAll(req.Body)
			go func() {
				time.Sleep(late)
				again := req.Clone(context.Background())
				again.Body = io.NopCloser(bytes.NewReader(body))
				if res, err := next.RoundTrip(again); err == nil {
					res.Body.Close()
				}
			}()
			return nil, errors.New("gateway timeout")
		})
	}
}

// A create can arrive after the search for its batch. The input file is deleted before
// the search ends, so that a late create fails.
func TestACreateThatArrivesLateFindsNoFile(t *testing.T) {
	for _, late := range []time.Duration{time.Second, 5 * time.Second, 14 * time.Second, 20 * time.Second, time.Minute, time.Hour} {
		setup{base: lateCreate(late)}.run(t, late.String(), func(s *scene) {
			if r := s.chat("a").wait(); r.status != 200 || r.at > time.Minute {
				s.Errorf("status %d at %v", r.status, r.at)
			}
			s.until(2 * time.Hour)
			if n := len(s.srv.Executed()); n != 1 {
				s.Errorf("%d lines were paid for, want 1", n)
			}
		})
	}
}

// A file or batch may become visible some time after its creation.
func TestLaggingReplica(t *testing.T) {
	behavior := batchtest.OpenAI()
	behavior.VisibleAfter = 4 * time.Second
	u := setup{server: batchtest.Options{Behavior: behavior}}
	u.run(t, "the file is not found yet by create", func(s *scene) {
		if r := s.chat("a").wait(); r.status != 200 || r.at > time.Minute {
			s.Errorf("status %d at %v: %s", r.status, r.at, r.body)
		}
		s.sent(1)
	})
	behavior.VisibleAfter = 0
	setup{}.run(t, "the batch is not found yet by retrieve", func(s *scene) {
		s.srv.Control(batchtest.OpRetrieve, every(6, batchtest.Status(404, nil, `{"error":{"message":"no such batch","type":"x","param":null,"code":null}}`))...)
		if r := s.chat("a").wait(); r.status != 200 || r.at > 2*time.Minute {
			s.Errorf("status %d at %v: %s", r.status, r.at, r.body)
		}
	})
	setup{}.run(t, "the batch is not listed yet when it is looked for", func(s *scene) {
		s.srv.Control(batchtest.OpCreate, batchtest.LoseAnswer())
		s.srv.Control(batchtest.OpList, batchtest.Status(200, nil, `{"object":"list","data":[],"has_more":false}`))
		if r := s.chat("a").wait(); r.status != 200 || r.at > time.Minute {
			s.Errorf("status %d at %v: %s", r.status, r.at, r.body)
		}
		s.sent(1)
	})
}

// The caller whose call fills the batch may leave: the submission goes on.
func TestTheCallerThatFillsTheBatchMayLeave(t *testing.T) {
	setup{options: autobatcher.Options{BatchSize: 2}}.play(t, func(s *scene) {
		s.srv.Control(batchtest.OpUpload, batchtest.Delay(time.Minute))
		stays, leaves := s.chat("stays"), s.chat("leaves")
		s.until(time.Second)
		leaves.leave()
		if r := leaves.wait(); !errors.Is(r.err, context.Canceled) || r.at != time.Second {
			s.Errorf("error %v at %v", r.err, r.at)
		}
		stays.want(200, 65*time.Second).says("stays")
	})
}

// A call whose body breaks or is no JSON costs the other calls of its window nothing.
func TestABadCallHurtsNoOtherCaller(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		good := s.chat("good")
		broken := s.chat("x", func(r *http.Request) { r.Body = &body{err: errors.New("pipe burst")} })
		if r := broken.wait(); r.err == nil || !strings.Contains(r.err.Error(), "pipe burst") || r.at != 0 {
			s.Errorf("status %d, error %v at %v; want the body's own error at once", r.status, r.err, r.at)
		}
		s.send("/chat/completions", "nonsense").want(400, 0)
		good.want(200, 15*time.Second)
		s.sent(1)
	})
}

// A body that never ends must not hold a caller whose context does.
func TestCallerLeavesWhileItsBodyIsRead(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		stuck := &body{hang: make(chan struct{})}
		call := s.chat("x", func(r *http.Request) { r.Body = stuck })
		time.AfterFunc(time.Hour, func() { stuck.Close() })
		s.until(time.Second)
		call.leave()
		if r := call.wait(); !errors.Is(r.err, context.Canceled) || r.at != time.Second {
			s.Errorf("error %v at %v, want the context's at 1s", r.err, r.at)
		}
		synctest.Wait()
		if !stuck.closed.Load() {
			s.Error("the body was not closed")
		}
	})
}

// Where the existence of a batch stays unknown, no other batch is created.
func TestACreateThatStaysUnknown(t *testing.T) {
	for name, list := range map[string]batchtest.Fault{"forbidden": batchtest.HTML(403), "broken": batchtest.HTML(500), "reset": batchtest.Reset()} {
		setup{again: true}.run(t, "the list is "+name, func(s *scene) {
			s.srv.Control(batchtest.OpCreate, batchtest.LoseAnswer())
			s.srv.Control(batchtest.OpList, every(500, list)...)
			r := s.chat("a").wait()
			if r.status != 424 || r.at > 2*time.Hour || r.header.Get("X-Should-Retry") != "false" {
				s.Errorf("status %d at %v, header %v; want a 424 that forbids a retry", r.status, r.at, r.header)
			}
			r.fails("batch_create_unknown")
			s.sent(1)
		})
	}
	setup{base: lateCreate(time.Minute)}.run(t, "its file may not be deleted", func(s *scene) {
		s.srv.Keep(batchtest.OpDeleteFile, batchtest.HTML(403))
		s.chat("a").wait().fails("batch_create_unknown")
		s.until(2 * time.Hour)
		if n := len(s.srv.Executed()); n != 1 {
			s.Errorf("%d lines were paid for, want the one of the late batch", n)
		}
	})
	setup{}.run(t, "found on a later page", func(s *scene) {
		s.srv.Control(batchtest.OpCreate, func(w http.ResponseWriter, r *http.Request) bool {
			batchtest.Proceed(&recorded{header: http.Header{}}, r)
			for range 150 { // others create batches meanwhile
				s.stray()
			}
			panic(http.ErrAbortHandler)
		})
		s.chat("a").want(200, 13*time.Second).says("a")
	})
}

// stray creates a batch that is no business of the Transport.
func (s *scene) stray() {
	s.Helper()
	s.strayOf("sk-test")
}

// strayOf does the same with a key.
func (s *scene) strayOf(key string) {
	s.Helper()
	ctx := s.Context()
	client := openai.NewClient(option.WithHTTPClient(s.srv.Client()), option.WithBaseURL(s.srv.URL), option.WithAPIKey(key))
	text := `{"custom_id":"1","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}`
	file, err := client.Files.New(ctx, openai.FileNewParams{Purpose: "batch", File: strings.NewReader(text)})
	if err != nil {
		s.Fatal(err)
	}
	if _, err = client.Batches.New(ctx, openai.BatchNewParams{InputFileID: file.ID, Endpoint: "/v1/embeddings", CompletionWindow: "24h"}); err != nil {
		s.Fatal(err)
	}
}
