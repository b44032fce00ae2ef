package batchapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/credential"
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
		shared  string
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
			fields:  []part{{"purpose", "", "batch"}, {"model", "", "m"}},
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
		{
			profile: provider.Voyage(), base: "https://api.voyageai.com/v1",
			upload:  "https://api.voyageai.com/v1/files",
			fields:  []part{{"purpose", "", "batch"}},
			batches: "https://api.voyageai.com/v1/batches",
			shared:  `{"model":"m"}`,
			create: map[string]any{
				"input_file_id": "f", "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": map[string]any{"k": "v"},
				"request_params": map[string]any{"model": "m"},
			},
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
			if id, err := c.UploadOnce(t.Context(), backend.Params{Name: "batch-1.jsonl", Models: []string{"m"}, FileExpiry: 2 * time.Hour}, file(3)); id != "b" || err != nil {
				t.Fatalf("Upload: %q, %v", id, err)
			}
			params := backend.Params{
				Endpoint: "/v1/chat/completions", Window: "24h",
				Metadata: map[string]string{"k": "v"}, OutputExpiry: 2 * time.Hour,
			}
			content := file(3)
			if tt.shared != "" {
				params.Shared, content.Bare = json.RawMessage(tt.shared), true
			}
			if b, err := c.CreateOnce(t.Context(), "f", params); b.Handle.BatchID != "b" || err != nil {
				t.Fatalf("Create: %+v, %v", b, err)
			}
			up, create := w.requests()[0], w.requests()[1]
			if up.method != "POST" || up.url != tt.upload || create.method != "POST" || create.url != tt.batches {
				t.Errorf("%s %s, then %s %s", up.method, up.url, create.method, create.url)
			}
			want := slices.Concat(tt.fields, []part{{"file", "batch-1.jsonl", text(content)}})
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

// Every request carries the headers of the credential and no other credential.
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
			set := credential.NewSet(nil)
			set.Add(header)
			c := batchapi.New(base, set.Transport(w), provider.OpenAI(), nil)
			c.UploadOnce(t.Context(), backend.Params{Name: "x"}, file(1))
			c.CreateOnce(t.Context(), "f", backend.Params{})
			c.Retrieve(t.Context(), "b")
			c.Cancel(t.Context(), backend.Handle{BatchID: "b"}) // two requests
			c.ReadList(t.Context(), "f", time.Now())
			c.DeleteOnce(t.Context(), "f")
			if s, err := c.Results(t.Context(), backend.Handle{}, "f", backend.Position{}); err == nil {
				s.Close()
			}
			if n := len(w.requests()); n != 8 {
				t.Errorf("%d requests, want eight", n)
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
	c.Cancel(t.Context(), backend.Handle{BatchID: "a b"})
	c.DeleteOnce(t.Context(), "../batches/x")
	var got []string
	for _, s := range w.requests() {
		got = append(got, strings.TrimPrefix(s.url, "https://api.openai.com/v1/"))
	}
	want := []string{"batches/a%2F..%2Fb%3Fx=1%23y", "batches/a%20b", "batches/a%20b/cancel", "files/..%2Fbatches%2Fx"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
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
			_, err := openai(t, w).CreateOnce(t.Context(), "f", backend.Params{})
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
	var failed *backend.Error
	if !errors.Is(err, enough) || errors.As(err, &failed) {
		t.Errorf("error %v (%T), want the context's cause", err, err)
	}
	if _, err := c.UploadOnce(ctx, backend.Params{Name: "x"}, file(1)); !errors.Is(err, enough) {
		t.Errorf("upload: %v", err)
	}
}

// Providers attribute a batch to the program that the User-Agent names.
func TestUserAgent(t *testing.T) {
	w := always(200, `{"id":"b"}`)
	c := openai(t, w)
	c.UploadOnce(t.Context(), backend.Params{Name: "x"}, file(1))
	c.CreateOnce(t.Context(), "f", backend.Params{})
	c.Retrieve(t.Context(), "b")
	open(t, c, "f")
	open(t, client(t, "https://api.siliconflow.cn/v1", provider.SiliconFlow(), w), signed)
	if n := len(w.requests()); n != 5 {
		t.Errorf("%d requests, want five", n)
	}
	for _, s := range w.requests() {
		if agent := s.header.Get("User-Agent"); !strings.HasPrefix(agent, "autobatcher ") {
			t.Errorf("%s %s: User-Agent %q", s.method, s.url, agent)
		}
		for name := range s.header {
			if strings.HasPrefix(name, "X-Stainless") {
				t.Errorf("%s %s: %s", s.method, s.url, name)
			}
		}
	}
}
