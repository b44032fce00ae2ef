package endpoint

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/requestbody"
	"github.com/autobatcher/autobatcher/internal/sse"
	"github.com/autobatcher/autobatcher/provider"
)

// unread is a body that must not be read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

func TestBatches(t *testing.T) {
	const form = "multipart/form-data; boundary=x"
	for _, tt := range []struct {
		name, url, contentType string
		batchOnly              bool
		want                   bool
		code                   string
	}{
		{"chat", "https://api.openai.com/v1/chat/completions", "application/json", true, true, ""},
		{"no content type", "https://api.openai.com/v1/moderations", "", true, true, ""},
		{"the type of curl -d", "https://api.openai.com/v1/completions", "application/x-www-form-urlencoded", true, true, ""},
		{"other endpoint", "https://api.openai.com/v1/models", "application/json", true, false, ""},
		{"a form", "https://api.openai.com/v1/images/generations", form, false, false, ""},
		{"a form in upper case", "https://api.openai.com/v1/images/generations", " Multipart/Mixed", false, false, ""},
		{"a form, batch only", "https://api.openai.com/v1/images/generations", form, true, false, "multipart_closed"},
		{"a form to an endpoint without batches, batch only", "https://api.openai.com/v1/audio/transcriptions", form, true, false, ""},
		{"a form with a recording", "https://api.groq.com/openai/v1/audio/transcriptions", form, false, false, ""},
		{"a recording by its URL", "https://api.groq.com/openai/v1/audio/transcriptions", "application/json", true, true, ""},
		{"an edit in JSON", "https://api.openai.com/v1/images/edits", "application/json", true, true, ""},
		{"no batches", "https://api.mistral.ai/v1/chat/completions", "application/json", false, false, "batch_unsupported"},
		{"a form where there are no batches", "https://api.mistral.ai/v1/chat/completions", form, false, false, ""},
	} {
		req, err := http.NewRequestWithContext(caller.With(t.Context(), &caller.Caller{BatchOnly: tt.batchOnly}), http.MethodPost, tt.url, unread{t})
		if err != nil {
			t.Fatal(err)
		}
		if tt.contentType != "" {
			req.Header.Set("Content-Type", tt.contentType)
		}
		got, err := New(Options{}).Of(req.URL).Batches(req, slog.New(slog.DiscardHandler))
		if code := codeOf(err); got != tt.want || code != tt.code {
			t.Errorf("%s: %v, code %q; want %v, %q", tt.name, got, code, tt.want, tt.code)
		}
	}
}

func codeOf(err error) string {
	if refused := (*reply.RequestError)(nil); errors.As(err, &refused) {
		return refused.Code
	}
	return ""
}

// The operator learns of each reason why calls to a URL cost the full price, and the log
// is not flooded.
func TestWhatPassesThroughIsLogged(t *testing.T) {
	var log bytes.Buffer
	table := New(Options{})
	for _, u := range []string{"https://api.openai.com/v1/images/generations", "https://api.openai.com/v1/images/generations", "https://api.openai.com/v1/completions"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, u, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "multipart/form-data")
		_, _ = table.Of(req.URL).Batches(req, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	}
	at := table.Of(&url.URL{Scheme: "https", Host: "api.openai.com", Path: "/v1/completions"})
	at.PassesThrough(slog.New(slog.NewTextHandler(&log, nil)), "stream", "stream: true")
	var levels []string
	for line := range strings.Lines(log.String()) {
		_, rest, _ := strings.Cut(line, "level=")
		level, _, _ := strings.Cut(rest, " ")
		_, endpoint, _ := strings.Cut(strings.TrimSpace(line), "endpoint=")
		levels = append(levels, level+" "+endpoint)
	}
	want := []string{"INFO /images/generations", "DEBUG /images/generations", "INFO /completions", "INFO /completions"}
	if !slices.Equal(levels, want) {
		t.Errorf("%q, want %q", levels, want)
	}
}

func TestRealtime(t *testing.T) {
	for _, tt := range []struct{ suffix, body, want string }{
		{"/chat/completions", `{"model":"m","stream":true}`, ""},
		{"/completions", `{"model":"m","stream":true}`, ""},
		{"/responses", `{"model":"m","stream":true}`, ""},
		{"/embeddings", `{"model":"m","stream":true}`, ""},
		{"/images/generations", `{"model":"m","stream":true}`, "stream true"},
		{"/images/generations", `{"model":"m","stream":false}`, ""},
		{"/images/edits", `{"model":"m","stream":true}`, "stream true"},
		{"/images/edits", `{"model":"m","response_format":"url"}`, ""},
		{"/audio/transcriptions", `{"model":"m"}`, ""},
		{"/audio/transcriptions", `{"model":"m","response_format":"verbose_json"}`, ""},
		{"/audio/transcriptions", `{"model":"m","response_format":"srt"}`, "response_format srt"},
		{"/audio/translations", `{"model":"m","response_format":"text"}`, "response_format text"},
		{"/chat/completions", `{"model":"m","response_format":{"type":"text"}}`, ""},
		{"/moderations", `{"stream":true}`, "stream true"},
		{"/rerank", `{"model":"m","stream":true}`, "stream true"},
		{"/responses", `{"model":"m","background":true}`, ""},
		{"/completions", `{"model":"m","service_tier":"flex","stream":true}`, "service_tier flex"},
		{"/completions", `{"model":"m","service_tier":"auto"}`, ""},
	} {
		p := provider.OpenAI()
		k := KindOf(&p, tt.suffix)
		asked := requestbody.Call{NoModel: k.NoModel}
		if err := asked.Parse([]byte(tt.body), ""); err != nil {
			t.Fatal(err)
		}
		member, value := k.Realtime(&asked)
		if got := strings.TrimSpace(member + " " + value); got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.suffix, tt.body, got, tt.want)
		}
	}
	if err := Closed("stream", "true"); codeOf(err) != "stream_closed" || !strings.Contains(err.Error(), "stream: true would not be") {
		t.Error(err)
	}
}

// Only OpenAI says which model answers a moderation that names none.
func TestDefaultModel(t *testing.T) {
	for _, tt := range []struct {
		p            provider.Profile
		suffix, want string
	}{
		{provider.OpenAI(), "/moderations", "omni-moderation-latest"}, {provider.Generic(), "/moderations", ""}, {provider.OpenAI(), "/completions", ""},
	} {
		if got := KindOf(&tt.p, tt.suffix).DefaultModel; got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.p.Name, tt.suffix, got, tt.want)
		}
	}
}

func TestRoutes(t *testing.T) {
	for _, tt := range []struct {
		p    provider.Profile
		want []string
	}{
		{provider.OpenAI(), []string{"/images/generations", "/chat/completions", "/images/edits", "/completions", "/moderations", "/embeddings", "/responses"}},
		{provider.Groq(), []string{"/audio/transcriptions", "/audio/translations", "/chat/completions", "/embeddings", "/responses"}},
		{provider.Profile{Endpoints: []string{"/rerank"}}, []string{"/chat/completions", "/embeddings", "/responses", "/rerank"}},
		{provider.DashScopeBatchChat(), []string{"/chat/completions", "/embeddings", "/responses"}},
	} {
		if got := Routes(&tt.p); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.p.Name, got, tt.want)
		}
	}
	if _, known := kinds["/images/generations"]; known || KindOf(&provider.Profile{}, "/rerank").Stream != sse.None {
		t.Error("an endpoint without streams has a format")
	}
}
