package batchapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/provider"
)

// Where each provider's files and batches are, and how they are asked for.
func TestSpelling(t *testing.T) {
	const batch = `{"id":"b","status":"validating"}`
	for _, tt := range []struct {
		profile provider.Profile
		base    string
		upload  string
		fields  []part // beside the file
		batches string
		create  map[string]any
		answer  string
	}{
		{
			profile: provider.OpenAI(), base: "https://api.openai.com/v1",
			upload:  "https://api.openai.com/v1/files",
			fields:  []part{{"purpose", "", "batch"}, {"expires_after[anchor]", "", "created_at"}, {"expires_after[seconds]", "", "7200"}},
			batches: "https://api.openai.com/v1/batches",
			create: map[string]any{
				"input_file_id": "f", "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": map[string]any{"k": "v"},
				"output_expires_after": map[string]any{"anchor": "created_at", "seconds": 7200.0},
			},
		},
		{
			profile: provider.Azure(), base: "https://r.openai.azure.com/openai/v1/?api-version=preview",
			upload:  "https://r.openai.azure.com/openai/v1/files?api-version=preview",
			fields:  []part{{"purpose", "", "batch"}, {"expires_after[anchor]", "", "created_at"}, {"expires_after[seconds]", "", "1209600"}},
			batches: "https://r.openai.azure.com/openai/v1/batches?api-version=preview",
			create: map[string]any{
				"input_file_id": "f", "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": map[string]any{"k": "v"},
				"output_expires_after": map[string]any{"anchor": "created_at", "seconds": 1209600.0},
			},
		},
		{
			profile: provider.AzureLegacy(), base: "https://r.openai.azure.com/openai?api-version=2024-10-21",
			upload:  "https://r.openai.azure.com/openai/files?api-version=2024-10-21",
			fields:  []part{{"purpose", "", "batch"}, {"expires_after[anchor]", "", "created_at"}, {"expires_after[seconds]", "", "1209600"}},
			batches: "https://r.openai.azure.com/openai/batches?api-version=2024-10-21",
			create: map[string]any{
				"input_file_id": "f", "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": map[string]any{"k": "v"},
				"output_expires_after": map[string]any{"anchor": "created_at", "seconds": 1209600.0},
			},
		},
		{
			profile: provider.Together(), base: "https://api.together.xyz/v1",
			upload:  "https://api.together.xyz/v1/files/upload",
			fields:  []part{{"purpose", "", "batch-api"}, {"file_name", "", "batch-1.jsonl"}},
			batches: "https://api.together.xyz/v1/batches",
			create:  plainCreate(),
			answer:  `{"job":` + batch + `}`,
		},
		{
			profile: provider.Zhipu(), base: "https://open.bigmodel.cn/api/paas/v4",
			upload:  "https://open.bigmodel.cn/api/paas/v4/files",
			fields:  []part{{"purpose", "", "batch"}},
			batches: "https://open.bigmodel.cn/api/paas/v4/batches",
			create:  map[string]any{"input_file_id": "f", "endpoint": "/v1/chat/completions", "metadata": map[string]any{"k": "v"}},
		},
		{
			profile: provider.LiteLLM(), base: "http://proxy:4000/v1",
			upload:  "http://proxy:4000/v1/files",
			fields:  []part{{"purpose", "", "batch"}, {"target_model_names", "", "m"}},
			batches: "http://proxy:4000/v1/batches",
			create:  plainCreate(),
		},
		{
			profile: provider.Groq(), base: "https://api.groq.com/openai/v1",
			upload:  "https://api.groq.com/openai/v1/files",
			fields:  []part{{"purpose", "", "batch"}},
			batches: "https://api.groq.com/openai/v1/batches",
			create:  plainCreate(),
		},
	} {
		t.Run(tt.profile.Name, func(t *testing.T) {
			w := &wire{answer: func(s sent, _ int) (*http.Response, error) {
				if strings.Contains(s.url, "/batches") && s.method == "POST" && tt.answer != "" {
					return answer(200, tt.answer), nil
				}
				return answer(200, batch), nil
			}}
			c := client(t, tt.base, tt.profile, w)
			if id, err := c.Upload(t.Context(), batchapi.Upload{Name: "batch-1.jsonl", Model: "m", Expiry: 2 * time.Hour}, file(3)); id != "b" || err != nil {
				t.Fatalf("Upload: %q, %v", id, err)
			}
			params := batchapi.CreateParams{
				InputFileID: "f", Endpoint: "/v1/chat/completions", CompletionWindow: "24h",
				Metadata: map[string]string{"k": "v"}, OutputExpiry: 2 * time.Hour,
			}
			if b, err := c.Create(t.Context(), params); b.ID != "b" || err != nil {
				t.Fatalf("Create: %+v, %v", b, err)
			}
			up, create := w.requests()[0], w.requests()[1]
			if up.method != "POST" || up.url != tt.upload || create.method != "POST" || create.url != tt.batches {
				t.Errorf("%s %s, then %s %s", up.method, up.url, create.method, create.url)
			}
			want := slices.Concat(tt.fields, []part{{"file", "batch-1.jsonl", text(file(3))}})
			if diff := cmp.Diff(want, parts(t, up), cmp.AllowUnexported(part{})); diff != "" {
				t.Errorf("upload (-want +got)\n%s", diff)
			}
			if up.length != int64(len(up.body)) {
				t.Errorf("Content-Length %d of a body of %d bytes", up.length, len(up.body))
			}
			if diff := cmp.Diff(tt.create, object(t, create)); diff != "" {
				t.Errorf("create (-want +got)\n%s", diff)
			}
			if kind := create.header.Get("Content-Type"); kind != "application/json" {
				t.Errorf("Content-Type = %q", kind)
			}
		})
	}
}

func plainCreate() map[string]any {
	return map[string]any{
		"input_file_id": "f", "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": map[string]any{"k": "v"},
	}
}

// Every request carries the payer's headers and no other credential.
func TestCredentials(t *testing.T) {
	t.Setenv("OPENAI_API_KEY", "sk-environment")
	t.Setenv("OPENAI_ORG_ID", "org-environment")
	t.Setenv("OPENAI_PROJECT_ID", "project-environment")
	t.Setenv("OPENAI_BASE_URL", "https://elsewhere.example/v1")
	for name, header := range map[string]http.Header{
		"a bearer":        {"Authorization": {"Bearer sk-a"}, "Openai-Organization": {"org"}},
		"an api-key":      {"Api-Key": {"k"}},
		"several values":  {"X-Goog-Api-Key": {"a", "b"}},
		"nothing at all":  {},
		"odd spelling":    {"x-tenant": {"t"}},
		"an empty header": {"Authorization": {""}},
	} {
		t.Run(name, func(t *testing.T) {
			w := always(200, `{"id":"b"}`)
			base, _ := url.Parse("https://api.openai.com/v1")
			c := batchapi.New(base, header, w, provider.OpenAI())
			c.Upload(t.Context(), batchapi.Upload{Name: "x"}, file(1))
			c.Create(t.Context(), batchapi.CreateParams{InputFileID: "f"})
			c.Retrieve(t.Context(), "b")
			c.Cancel(t.Context(), "b")
			c.Find(t.Context(), "f", time.Now())
			c.Delete(t.Context(), "f")
			if content, err := c.Content(t.Context(), "f", 0); err == nil {
				content.Body.Close()
			}
			if n := len(w.requests()); n != 7 {
				t.Errorf("%d requests, want seven", n)
			}
			for _, s := range w.requests() {
				if !strings.HasPrefix(s.url, "https://api.openai.com/v1/") {
					t.Errorf("%s %s", s.method, s.url)
				}
				for name, values := range header {
					if diff := cmp.Diff(values, valuesOf(s.header, name)); diff != "" {
						t.Errorf("%s %s: %s (-want +got)\n%s", s.method, s.url, name, diff)
					}
				}
				for name, values := range s.header {
					if strings.Contains(fmt.Sprint(values), "environment") {
						t.Errorf("%s %s: %s comes from the environment", s.method, s.url, name)
					}
				}
			}
		})
	}
}

// valuesOf are a header's values, however its name is spelt.
func valuesOf(h http.Header, name string) []string {
	for other, values := range h {
		if strings.EqualFold(other, name) {
			return values
		}
	}
	return nil
}

func TestPathsAreEscaped(t *testing.T) {
	w := always(200, `{"id":"b"}`)
	c := openai(t, w)
	c.Retrieve(t.Context(), "a/../b?x=1#y")
	c.Cancel(t.Context(), "a b")
	c.Delete(t.Context(), "../batches/x")
	var got []string
	for _, s := range w.requests() {
		got = append(got, strings.TrimPrefix(s.url, "https://api.openai.com/v1/"))
	}
	want := []string{"batches/a%2F..%2Fb%3Fx=1%23y", "batches/a%20b/cancel", "files/..%2Fbatches%2Fx"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestBatchObjects(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		want       batchapi.Batch
	}{
		{
			"OpenAI's",
			`{"id":"b","status":"in_progress","input_file_id":"i","output_file_id":"o","error_file_id":"e","expires_at":1700000000,
			  "request_counts":{"total":3,"completed":1,"failed":1}}`,
			batchapi.Batch{
				ID: "b", Status: "in_progress", InputFileID: "i", OutputFileID: "o", ErrorFileID: "e",
				Counts: batchapi.Counts{Completed: 1, Failed: 1, Total: 3}, ExpiresAt: time.Unix(1700000000, 0),
			},
		},
		{
			"Azure's",
			`{"id":"b","status":"Completed","output_file_id":"o","error_file_id":"","expires_at":"2023-11-14T22:13:20Z","request_counts":{"total":null,"completed":null,"failed":null}}`,
			batchapi.Batch{ID: "b", Status: "completed", OutputFileID: "o", ExpiresAt: time.Unix(1700000000, 0).UTC()},
		},
		{"Together's", `{"id":"b","status":"CANCELING"}`, batchapi.Batch{ID: "b", Status: "cancelling"}},
		{"American", `{"id":"b","status":"canceled"}`, batchapi.Batch{ID: "b", Status: "cancelled"}},
		{"null for none", `{"id":"b","output_file_id":null,"errors":null,"request_counts":null,"expires_at":null}`, batchapi.Batch{ID: "b"}},
		{
			"failed",
			`{"id":"b","status":"failed","errors":{"object":"list","data":[{"code":"c","line":7,"message":"m","param":null},{"message":"alone"},{"line":null}]}}`,
			batchapi.Batch{ID: "b", Status: "failed", Problems: []batchapi.Problem{{Code: "c", Message: "m", Line: 7}, {Message: "alone"}, {}}},
		},
		{"errors of another shape", `{"id":"b","status":"failed","errors":{"message":"no"}}`, batchapi.Batch{ID: "b", Status: "failed"}},
		{"milliseconds", `{"id":"b","expires_at":1700000000000}`, batchapi.Batch{ID: "b"}},
		{"a future field", `{"id":"b","status":"paused","new":{"id":"x"}}`, batchapi.Batch{ID: "b", Status: "paused"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := openai(t, always(200, tt.body)).Retrieve(t.Context(), "b")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestTerminal(t *testing.T) {
	for status, want := range map[string]bool{
		"completed": true, "failed": true, "expired": true, "cancelled": true,
		"validating": false, "in_progress": false, "finalizing": false, "cancelling": false, "": false, "paused": false,
	} {
		if got := (batchapi.Batch{Status: status}).Terminal(); got != want {
			t.Errorf("%q: %v, want %v", status, got, want)
		}
	}
}

func TestErrorsAreClassified(t *testing.T) {
	quota := `{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`
	for _, tt := range []struct {
		name    string
		status  int
		body    string
		limited bool
		passes  bool // Transient
		message string
		code    string
	}{
		{"rate limit", 429, `{"error":{"message":"slow down","code":"rate_limit_exceeded"}}`, true, false, "slow down", "rate_limit_exceeded"},
		{"quota", 429, quota, false, false, "You exceeded your current quota", "insufficient_quota"},
		{"unverified", 429, `{"error":"too_many_requests","message":"Unverified accounts may not"}`, false, false, "Unverified accounts may not", ""},
		{"text", 400, "Line 3: no\n", false, false, "Line 3: no", ""},
		{"spend cap", 402, "Insufficient balance", false, false, "Insufficient balance", ""},
		{"detail", 422, `{"detail":"no window"}`, false, false, "no window", ""},
		{"a page", 502, "<html>bad gateway</html>", false, true, "<html>bad gateway</html>", ""},
		{"timeout", 408, ``, false, true, "", ""},
		{"gone", 404, `{"error":{"message":"No such batch"}}`, false, false, "No such batch", ""},
		{"an error that is text", 500, `{"error":"boom"}`, false, true, "boom", ""},
		{"broken JSON", 500, `{"error":{"message":"half`, false, true, `{"error":{"message":"half`, ""},
		{"a number for a code", 400, `{"code":1210,"message":"bad"}`, false, false, "bad", ""},
		{"not UTF-8", 500, "\xff\xfeoops", false, true, "oops", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := openai(t, always(tt.status, tt.body)).Retrieve(t.Context(), "b")
			e := failure(t, err)
			if e.Status != tt.status || e.RateLimited() != tt.limited || e.Transient() != tt.passes || e.Message() != tt.message || e.Code() != tt.code {
				t.Errorf("status %d, limited %v, transient %v, message %q, code %q", e.Status, e.RateLimited(), e.Transient(), e.Message(), e.Code())
			}
			if e.Ambiguous() != tt.passes || !strings.Contains(e.Error(), "GET /batches/b") {
				t.Errorf("ambiguous %v: %v", e.Ambiguous(), e)
			}
		})
	}
}

func TestNoAnswerIsAnError(t *testing.T) {
	broken := errors.New("connection reset")
	for name, w := range map[string]*wire{
		"reset":           {answer: func(sent, int) (*http.Response, error) { return nil, broken }},
		"a page":          always(200, "<html>hello</html>", "Content-Type", "text/html"),
		"nothing":         always(200, ""),
		"half an object":  always(200, `{"id":"b","status":`),
		"a number":        always(200, `7`),
		"no id":           always(200, `{"status":"completed"}`),
		"deeper than sky": always(200, strings.Repeat("[", 200_000)),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := openai(t, w).Create(t.Context(), batchapi.CreateParams{InputFileID: "f"})
			if e := failure(t, err); !e.Ambiguous() || !e.Transient() {
				t.Errorf("%v: ambiguous %v, transient %v; the batch may exist", e, e.Ambiguous(), e.Transient())
			}
			if n := len(w.requests()); n != 1 {
				t.Errorf("%d requests; a create must never be repeated blindly", n)
			}
		})
	}
}

// The end of the caller's context is not the provider's fault.
func TestTheCallersContext(t *testing.T) {
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	w := &wire{answer: func(sent, int) (*http.Response, error) {
		cancel(enough)
		return nil, ctx.Err()
	}}
	c := openai(t, w)
	_, err := c.Retrieve(ctx, "b")
	var failed *batchapi.Error
	if !errors.Is(err, enough) || errors.As(err, &failed) {
		t.Errorf("error %v (%T), want the context's cause", err, err)
	}
	if _, err := c.Upload(ctx, batchapi.Upload{Name: "x"}, file(1)); !errors.Is(err, enough) {
		t.Errorf("upload: %v", err)
	}
}

func TestTheLineOfARefusal(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
		want   int
	}{
		{400, "Line 3: missing model", 3},
		{400, "Invalid JSON on line 12: expected value", 12},
		{403, "Line 1: The model 'x' does not exist", 1},
		{400, `{"error":{"message":"Line 40000: no"}}`, 40000},
		{422, "Line 2: no", 2},
		{402, "Line 2: no", 0},
		{401, "Line 2: no", 0},
		{429, "Line 2: no", 0},
		{500, "Line 2: no", 0},
		{400, "Credit line 1 is used up", 0},
		{400, "Deadline 5: passed", 0},
		{400, "Lines 3 to 5", 0},
		{400, "Line 99999999999: no", 0},
		{400, "no line at all", 0},
	} {
		_, err := openai(t, always(tt.status, tt.body)).Upload(t.Context(), batchapi.Upload{Name: "x"}, file(1))
		if got := failure(t, err).Line(); got != tt.want {
			t.Errorf("%d %s: line %d, want %d", tt.status, tt.body, got, tt.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		name   string
		header []string
		min    time.Duration
		max    time.Duration
	}{
		{"seconds", []string{"Retry-After", "7"}, 7 * time.Second, 7 * time.Second},
		{"a fraction", []string{"Retry-After", "0.5"}, 500 * time.Millisecond, 500 * time.Millisecond},
		{"milliseconds", []string{"Retry-After-Ms", "1500"}, 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"milliseconds win", []string{"Retry-After-Ms", "1500", "Retry-After", "7"}, 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"a date", []string{"Retry-After", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)}, 59 * time.Minute, time.Hour},
		{"a date of old", []string{"Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 0},
		{"nothing", nil, -1, -1},
		{"nonsense", []string{"Retry-After", "soon"}, -1, -1},
		{"not a number", []string{"Retry-After", "NaN"}, -1, -1},
		{"negative", []string{"Retry-After", "-5"}, -1, -1},
		{"beyond all", []string{"Retry-After", "1e300"}, 24 * time.Hour, 24 * time.Hour},
		{"a date beyond all", []string{"Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"}, time.Hour, 24 * time.Hour},
		{"for ever", []string{"Retry-After", "Inf"}, 24 * time.Hour, 24 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := openai(t, always(429, `{}`, tt.header...)).Retrieve(t.Context(), "b")
			if got := failure(t, err).RetryAfter; got < tt.min || got > tt.max {
				t.Errorf("%v, want %v to %v", got, tt.min, tt.max)
			}
		})
	}
}

func TestErrorBodiesAreBounded(t *testing.T) {
	for name, status := range map[string]int{"an error": 500, "a refusal": 400, "a redirect to nowhere": 304} {
		t.Run(name, func(t *testing.T) {
			read := 0
			w := &wire{answer: func(sent, int) (*http.Response, error) {
				res := answer(status, "")
				res.Body, res.ContentLength = io.NopCloser(counting{&read}), -1
				return res, nil
			}}
			_, err := openai(t, w).Retrieve(t.Context(), "b")
			e := failure(t, err)
			if len(e.Body) > 64<<10 || read > 1<<20 || len(e.Error()) > 2000 {
				t.Errorf("kept %d bytes, read %d, text of %d", len(e.Body), read, len(e.Error()))
			}
		})
	}
	t.Run("an object", func(t *testing.T) {
		read := 0
		w := &wire{answer: func(sent, int) (*http.Response, error) {
			res := answer(200, "")
			res.Body, res.ContentLength = io.NopCloser(counting{&read}), -1
			return res, nil
		}}
		if _, err := openai(t, w).Retrieve(t.Context(), "b"); err == nil || read > 16<<20 {
			t.Errorf("read %d bytes, %v", read, err)
		}
	})
}

// counting is an endless body.
type counting struct{ n *int }

func (c counting) Read(p []byte) (int, error) {
	*c.n += len(p)
	if *c.n > 64<<20 {
		return 0, io.EOF // enough to have failed
	}
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}
