package batchtest_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/google/go-cmp/cmp"
)

func TestCredentials(t *testing.T) {
	a := newAPI(t, batchtest.Options{APIKeys: []string{"k1", "k2"}})
	tests := []struct {
		header, value string
		status        int
	}{
		{"Authorization", "Bearer k1", 200},
		{"api-key", "k2", 200},
		{"Authorization", "Bearer k3", 401},
		{"Authorization", "Basic k1", 401},
		{"Authorization", "Bearer ", 401},
		{"Accept", "*/*", 401},
	}
	a.key = ""
	for _, tt := range tests {
		req := a.request("GET", "/models", nil)
		req.Header.Set(tt.header, tt.value)
		if got := a.do(req); got.status != tt.status {
			t.Errorf("%s: %s: %d %s, want %d", tt.header, tt.value, got.status, got.body, tt.status)
		}
	}
	want := map[string]any{"error": map[string]any{
		"message": "Incorrect API key provided.", "type": "authentication_error", "param": nil, "code": "invalid_api_key",
	}}
	if diff := cmp.Diff(want, a.get("/models").json(t)); diff != "" {
		t.Errorf("refusal (-want +got):\n%s", diff)
	}
}

func TestAKeySeesOnlyItsAccount(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: time.Hour})
	b := a.create(chatLines(1))
	batch, input, output := b["id"].(string), b["input_file_id"].(string), b["output_file_id"].(string)
	a.key = "sk-other"
	for name, res := range map[string]answer{
		"file":     a.get("/files/" + input),
		"input":    a.get("/files/" + input + "/content"),
		"output":   a.get("/files/" + output + "/content"),
		"delete":   a.do(a.request("DELETE", "/files/"+input, nil)),
		"create":   a.post("/batches", createBody(input, chat, "24h")),
		"retrieve": a.get("/batches/" + batch),
		"cancel":   a.post("/batches/"+batch+"/cancel", ""),
	} {
		if res.status != 404 {
			t.Errorf("%s: %d %s, want 404", name, res.status, res.body)
		}
	}
	if got := a.ids("/batches"); len(got) != 0 {
		t.Errorf("list: %v", got)
	}
}

func TestRequestsPerMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{RequestsPerMinute: 2})
		ask := func(key string, wantStatus int, wantRetry string) {
			t.Helper()
			a.key = key
			res := a.get("/models")
			if got := res.header.Get("Retry-After"); res.status != wantStatus || got != wantRetry {
				t.Errorf("%s: %d, Retry-After %q; want %d, %q", key, res.status, got, wantStatus, wantRetry)
			}
		}
		ask("k1", 200, "")
		ask("k1", 200, "")
		time.Sleep(10*time.Second + time.Millisecond)
		ask("k1", 429, "50")
		ask("k2", 200, "")
		time.Sleep(50 * time.Second)
		ask("k1", 200, "")
	})
}

func TestUploads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{})
		content := chatLine("a", "hi") + chatLine("b", "ho")
		id := a.do(a.form("/files", "purpose", "batch", "expires_after[anchor]", "created_at", "expires_after[seconds]", "7200", "file", content)).json(t)["id"]
		got := a.server.Uploads()[0]
		if got.Header.Get("Authorization") != "Bearer sk-test" {
			t.Errorf("header = %v", got.Header)
		}
		got.Header = nil
		want := batchtest.Upload{
			ID: id.(string), Filename: "lines.jsonl", Purpose: "batch", Content: []byte(content), APIKey: "sk-test", Account: "sk-test", Time: time.Now(),
			Form: map[string][]string{"purpose": {"batch"}, "expires_after[anchor]": {"created_at"}, "expires_after[seconds]": {"7200"}},
			Lines: []batchtest.Line{
				{Number: 1, CustomID: "a", Method: "POST", URL: chat, Model: "m", Body: []byte(`{"model":"m","messages":[{"role":"user","content":"hi"}]}`)},
				{Number: 2, CustomID: "b", Method: "POST", URL: chat, Model: "m", Body: []byte(`{"model":"m","messages":[{"role":"user","content":"ho"}]}`)},
			},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("upload (-want +got):\n%s", diff)
		}
	})
}

func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{Turnaround: 2 * time.Hour})
		body := strings.TrimSuffix(createBody(a.upload(chatLines(2)), chat, "24h"), "}") + `,"metadata":{"k":"v"}}`
		b := a.post("/batches", body).json(t)
		created := time.Now()
		time.Sleep(time.Hour)
		got := a.server.Batches()[0]
		want := batchtest.Batch{
			ID: b["id"].(string), InputFileID: b["input_file_id"].(string), Endpoint: chat, Window: "24h",
			Metadata: map[string]string{"k": "v"}, Status: "in_progress", Total: 2, Completed: 1, APIKey: "sk-test", Account: "sk-test", Created: created,
		}
		lines := got.Lines
		got.Lines = nil
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("batch (-want +got):\n%s", diff)
		}
		if len(lines) != 2 || !lines[0].Finished || lines[1].Finished || lines[0].CustomID != "line-0" || lines[0].BatchID != want.ID || lines[0].Outcome.Status != 200 {
			t.Errorf("lines = %+v", lines)
		}
	})
}

func TestRequestsAreLogged(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	a.get("/files?purpose=batch")
	a.get("/cake")
	a.server.Control(batchtest.OpModels, batchtest.Status(503, nil, ""), batchtest.Reset())
	a.get("/models")
	if _, err := a.attempt(a.request("GET", "/models", nil)); err == nil {
		t.Error("reset: no error")
	}
	type entry struct {
		Method, Path, Purpose string
		Status                int
	}
	var got []entry
	for _, r := range a.server.Requests() {
		if r.Header.Get("Authorization") != "Bearer sk-test" || r.Time.IsZero() {
			t.Errorf("request = %+v", r)
		}
		got = append(got, entry{r.Method, r.Path, r.Query.Get("purpose"), r.Status})
	}
	want := []entry{
		{"GET", "/v1/files", "batch", 200}, {"GET", "/v1/cake", "", 404}, {"GET", "/v1/models", "", 503}, {"GET", "/v1/models", "", 0},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestRequestLogIsBounded(t *testing.T) {
	s := batchtest.New(batchtest.Options{})
	for range 10_500 {
		s.ServeHTTP(discard{}, &http.Request{Method: "GET", URL: mustURL(t, s.URL+"/models"), Header: http.Header{}})
	}
	if n := len(s.Requests()); n > 10_000 || n < 9_000 {
		t.Errorf("%d requests kept", n)
	}
}

func TestPaid(t *testing.T) {
	a := newAPI(t, batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		switch {
		case strings.Contains(string(l.Body), "fail"):
			return batchtest.Outcome{Status: 500}
		case strings.Contains(string(l.Body), "lost"):
			return batchtest.Outcome{Missing: true}
		case strings.Contains(string(l.Body), "late"):
			return batchtest.Outcome{Never: true}
		}
		return batchtest.Outcome{}
	}})
	a.create(chatLine("a", "once") + chatLine("b", "twice") + chatLine("c", "fail") + chatLine("d", "lost") + chatLine("e", "late"))
	a.create(chatLine("z", "twice"))
	a.post("/chat/completions", `{"model":"m","messages":[{"role":"user","content":"once"}]}`)
	got := map[string]int{}
	counts := a.server.Paid()
	for _, e := range a.server.Executed() {
		reply := batchtest.Echo(e.Line).Body
		for _, word := range []string{"once", "twice", "fail", "lost", "late"} {
			if strings.Contains(string(reply), word) {
				got[word] = counts[e.Key()]
			}
		}
	}
	want := map[string]int{"once": 2, "twice": 2, "fail": 0, "lost": 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("paid (-want +got):\n%s", diff)
	}
}

// discard is a ResponseWriter that drops the answer.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) WriteHeader(int)             {}
func (discard) Write(p []byte) (int, error) { return len(p), nil }

func mustURL(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestPaidPrompts(t *testing.T) {
	a := newAPI(t, batchtest.Options{Answer: func(l batchtest.Line) (o batchtest.Outcome) {
		if l.Prompt() == "fail" {
			o.Status = 500
		}
		return o
	}})
	a.create(chatLine("a", "twice") + chatLine("b", "fail"))
	for path, body := range map[string]string{
		"/chat/completions": `{"model":"m","temperature":1,"messages":[{"role":"user","content":"twice"}]}`,
		"/responses":        `{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"response"}]}]}`,
		"/embeddings":       `{"model":"m","input":["embedding"]}`,
		"/completions":      `{"model":"m","prompt":"completion"}`,
	} {
		if got := a.post(path, body); got.status != 200 {
			t.Fatalf("%s: %d %s", path, got.status, got.body)
		}
	}
	want := map[string]int{"twice": 2, "response": 1, `["embedding"]`: 1, "completion": 1}
	if diff := cmp.Diff(want, a.server.PaidPrompts()); diff != "" {
		t.Errorf("paid prompts (-want +got):\n%s", diff)
	}
}
