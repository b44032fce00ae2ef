package batchtest_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/batchtest"
)

func TestWindowsOnOffer(t *testing.T) {
	for _, tt := range []struct {
		behavior batchtest.Behavior
		good     []string
		bad      []string
	}{
		{batchtest.OpenAI(), []string{"24h"}, []string{"1h", "1d", "7d", ""}},
		{batchtest.Groq(), []string{"24h", "1d", "7d", "100h"}, []string{"1h", "8d", "soon", ""}},
		{batchtest.Moonshot(), []string{"12h", "7d"}, []string{"11h", "8d"}},
		{batchtest.SiliconFlow(), []string{"24h", "336h"}, []string{"1h", "337h"}},
		{batchtest.LLMD(), []string{"90m", "24h"}, []string{"soon", "-1h"}},
		{batchtest.LiteLLM(), []string{"24h"}, []string{"1h"}},
	} {
		t.Run(tt.behavior.Name, func(t *testing.T) {
			tt.behavior.UploadFields = nil
			a := newAPI(t, batchtest.Options{Behavior: tt.behavior})
			file := a.upload(chatLines(1))
			for _, window := range tt.good {
				if got := a.post("/batches", createBody(file, chat, window)); got.status != 200 {
					t.Errorf("window %q: %d %s", window, got.status, got.body)
				}
			}
			for _, window := range tt.bad {
				if got := a.post("/batches", createBody(file, chat, window)); got.status != 400 {
					t.Errorf("window %q: %d, want 400", window, got.status)
				}
			}
		})
	}
}

func TestZhipuBehavior(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.Zhipu()})
	file := a.upload(strings.ReplaceAll(chatLines(1), "/v1/", "/v4/"))
	if got := a.post("/batches", createBody(file, "/v4/chat/completions", "24h")); got.status != 400 {
		t.Errorf("a window: %d, want 400", got.status)
	}
	res := a.post("/batches", `{"input_file_id":"`+file+`","endpoint":"/v4/chat/completions"}`)
	if got := a.retrieve(res.json(t)["id"])["status"]; got != "completed" {
		t.Errorf("status = %v", got)
	}
	a.post("/chat/completions", `{"model":"m"}`)
	if got := a.server.Executed()[1].URL; got != "/v4/chat/completions" {
		t.Errorf("url of a realtime call = %s", got)
	}
}

// Voyage refuses lines with more than the texts, and a create without a model or with
// another window.
func TestVoyageBehavior(t *testing.T) {
	const good = `{"custom_id":"1","body":{"input":["a","b"]}}`
	create := func(params, window string) string {
		return `"endpoint":"/v1/embeddings","completion_window":"` + window + `"` + params + `}`
	}
	const model = `,"request_params":{"model":"m","input_type":"document"}`
	for _, tt := range []struct{ name, lines, create, status, code string }{
		{"good", good, create(model, "12h"), "completed", ""},
		{"a method", strings.Replace(good, `,"body"`, `,"method":"POST","body"`, 1), create(model, "12h"), "failed", "invalid_request"},
		{"a model on the line", strings.Replace(good, `{"input"`, `{"model":"m","input"`, 1), create(model, "12h"), "failed", "invalid_request"},
		{"no texts", `{"custom_id":"1","body":{}}`, create(model, "12h"), "failed", "invalid_request"},
		{"no parameters", good, create("", "12h"), "", "request_params"},
		{"no model", good, create(`,"request_params":{"input_type":"document"}`, "12h"), "", "request_params"},
		{"another window", good, create(model, "24h"), "", "completion_window"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{Behavior: batchtest.Voyage()})
			res := a.post("/batches", `{"input_file_id":"`+a.upload(tt.lines)+`",`+tt.create)
			if tt.status == "" {
				if res.status != 400 || !strings.Contains(res.body, tt.code) {
					t.Errorf("%d %s, want 400 and %s", res.status, res.body, tt.code)
				}
				return
			}
			if got := a.retrieve(res.json(t)["id"]); got["status"] != tt.status {
				t.Errorf("%v", got)
			}
			if b := a.server.Batches()[0]; tt.code != "" && (len(b.Errors) == 0 || b.Errors[0].Code != tt.code || b.Errors[0].Line != 1) {
				t.Errorf("errors %v", b.Errors)
			}
			if tt.code == "" {
				want := `{"input":["a","b"],"model":"m","input_type":"document"}`
				if e := a.server.Executed()[0]; string(e.Body) != want || e.URL != "/v1/embeddings" || e.Model != "m" {
					t.Errorf("executed %+v", e.Line)
				}
			}
		})
	}
}

func TestAzureLegacyBehavior(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.AzureLegacy()})
	if got := a.get("/batches"); got.status != 400 || !strings.Contains(got.body, "api-version") {
		t.Errorf("without a version: %d %s", got.status, got.body)
	}
	if got := a.get("/batches?api-version=2024-10-21"); got.status != 200 {
		t.Errorf("with a version: %d %s", got.status, got.body)
	}
	if got := a.post("/deployments/d/chat/completions?api-version=2024-10-21", `{"model":"m"}`); got.status != 200 {
		t.Errorf("a call: %d %s", got.status, got.body)
	}
	if got := a.server.Executed()[0].URL; got != "/chat/completions" {
		t.Errorf("url of a realtime call = %s", got)
	}
}

func TestUploadFields(t *testing.T) {
	litellm, together := batchtest.LiteLLM(), batchtest.Together()
	for _, tt := range []struct {
		behavior batchtest.Behavior
		fields   []string
		want     int
	}{
		{litellm, []string{"purpose", "batch"}, 400},
		{litellm, []string{"purpose", "batch", "model", "m"}, 200},
		{litellm, []string{"purpose", "batch", "target_model_names", "m"}, 500},
		{together, []string{"purpose", "batch-api"}, 400},
		{together, []string{"purpose", "batch-api", "file_name", "other"}, 400},
		{together, []string{"purpose", "batch-api", "file_name", "lines.jsonl"}, 200},
	} {
		a := newAPI(t, batchtest.Options{Behavior: tt.behavior})
		path := strings.TrimSpace(tt.behavior.UploadPath)
		if path == "" {
			path = "/files"
		}
		if got := a.do(a.form(path, append(tt.fields, "file", chatLines(1))...)); got.status != tt.want {
			t.Errorf("%s %v: %d %s, want %d", tt.behavior.Name, tt.fields, got.status, got.body, tt.want)
		}
	}
}

func TestResultURLs(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.SiliconFlow()})
	address, _ := a.retrieve(a.create(chatLines(2))["id"])["output_file_id"].(string)
	if !strings.HasPrefix(address, "https://results.batchtest.invalid/") {
		t.Fatalf("output_file_id = %q", address)
	}
	fetch := func(address, key string) answer {
		req, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", key)
		if key == "" {
			a.key = ""
			req.Header.Del("Authorization")
		}
		return a.do(req)
	}
	if got := fetch(address, "Bearer sk-test"); got.status != 400 {
		t.Errorf("with a key: %d, want 400", got.status)
	}
	if got := fetch(strings.Replace(address, "signature=", "signature=0", 1), ""); got.status != 404 {
		t.Errorf("with a wrong signature: %d, want 404", got.status)
	}
	if got := fetch(address, ""); got.status != 200 || strings.Count(got.body, "\n") != 2 {
		t.Errorf("%d %s, want two lines", got.status, got.body)
	}
}

func TestLists(t *testing.T) {
	t.Run("by offset", func(t *testing.T) {
		behavior := batchtest.LLMD()
		behavior.ListOrder = batchtest.NewestFirst
		a := newAPI(t, batchtest.Options{Behavior: behavior})
		first := a.create(chatLines(1))["id"]
		a.create(chatLines(1))
		res := a.get("/batches?limit=1&after=1").json(t)
		if data := res["data"].([]any); len(data) != 1 || data[0].(map[string]any)["id"] != first || res["has_more"] != false {
			t.Errorf("second page = %v", res)
		}
		if got := a.get("/batches?after=" + first.(string)); got.status != 400 {
			t.Errorf("an id: %d, want 400", got.status)
		}
	})
	t.Run("bare", func(t *testing.T) {
		a := newAPI(t, batchtest.Options{Behavior: batchtest.Together()})
		if got := a.get("/batches").body; got != "[]" {
			t.Errorf("list = %s, want an array", got)
		}
	})
}

func TestCreationsPerHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		behavior := batchtest.OpenAI()
		behavior.CreationsPerHour = 2
		a := newAPI(t, batchtest.Options{Behavior: behavior})
		file := a.upload(chatLines(1))
		create := func() answer { return a.post("/batches", createBody(file, chat, "24h")) }
		create()
		time.Sleep(10 * time.Minute)
		create()
		if got := create(); got.status != 429 || got.header.Get("Retry-After") != "3000" {
			t.Errorf("third: %d, Retry-After %s; want 429, 3000", got.status, got.header.Get("Retry-After"))
		}
		a.key = "sk-other"
		if got := a.post("/batches", createBody(a.upload(chatLines(1)), chat, "24h")); got.status != 200 {
			t.Errorf("another key's: %d", got.status)
		}
		a.key = "sk-test"
		time.Sleep(50 * time.Minute)
		if got := create(); got.status != 200 {
			t.Errorf("an hour after the first: %d", got.status)
		}
	})
}

func TestShowTokenLimit(t *testing.T) {
	for _, show := range []bool{true, false} {
		behavior := batchtest.OpenAI()
		behavior.ShowTokenLimit = show
		a := newAPI(t, batchtest.Options{Behavior: behavior, MaxEnqueuedTokens: 1234})
		a.create(chatLine("a", strings.Repeat("x", 6000)))
		got := a.server.Batches()[0].Errors
		if len(got) != 1 || strings.Contains(got[0].Message, "Limit: 1,234 enqueued tokens") != show {
			t.Errorf("ShowTokenLimit %v: errors = %v", show, got)
		}
	}
}

// TestPendingFiles checks Azure's rule that a new file must be processed first.
func TestPendingFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		behavior := batchtest.Azure()
		behavior.FileProcessing = 30 * time.Second
		a := newAPI(t, batchtest.Options{Behavior: behavior})
		up := a.tryUpload(chatLines(1)).json(t)
		file := up["id"].(string)
		create := func() answer { return a.post("/batches", createBody(file, "/chat/completions", "24h")) }
		if up["status"] != "pending" {
			t.Errorf("status in the answer to the upload = %v, want pending", up["status"])
		}
		time.Sleep(30*time.Second - 1)
		if got := create(); got.status != 400 || !strings.Contains(got.body, "Only files with status 'Processed' are accepted") {
			t.Errorf("create with a pending file: %d %s", got.status, got.body)
		}
		time.Sleep(time.Nanosecond)
		if got := a.get("/files/" + file).json(t)["status"]; got != "processed" {
			t.Errorf("status after 30 seconds = %v, want processed", got)
		}
		if got := create(); got.status != 200 {
			t.Errorf("create with a processed file: %d %s", got.status, got.body)
		}
		if n := len(a.server.Batches()); n != 1 {
			t.Errorf("%d batches, want 1", n)
		}
	})
}

// TestSilentFailure checks that one bad line fails the whole batch at llm-d, and
// that the answer hides the line.
func TestSilentFailure(t *testing.T) {
	parts := strings.Replace(chatLine("b", "x"), `"content":"x"`, `"content":[{"type":"text","text":"x"}]`, 1)
	refuse := func(l batchtest.Line) (o batchtest.Outcome) {
		if l.CustomID == "bad" {
			o.Refused = &batchtest.BatchError{Code: "invalid_request", Message: "no"}
		}
		return o
	}
	for name, file := range map[string]string{
		"content is a list": chatLine("a", "x") + parts,
		"duplicate id":      chatLine("a", "x") + chatLine("a", "y"),
		"not JSON":          chatLine("a", "x") + "{\n",
		"refused":           chatLine("a", "x") + chatLine("bad", "y"),
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{Behavior: batchtest.LLMD(), Answer: refuse})
			b := a.retrieve(a.create(file)["id"])
			if b["status"] != "failed" || counts(b) != "0/0/0" || b["errors"] != nil || b["output_file_id"] != nil || b["error_file_id"] != nil {
				t.Errorf("batch = %v, want failed without a reason", b)
			}
			if got := a.server.Batches()[0]; len(got.Errors) != 1 || got.Errors[0].Line != 2 {
				t.Errorf("errors in the log = %v, want line 2", got.Errors)
			}
			if n := len(a.server.Executed()); n != 0 {
				t.Errorf("%d lines were executed, want none", n)
			}
		})
	}
	a := newAPI(t, batchtest.Options{Behavior: batchtest.LLMD(), Turnaround: time.Hour})
	id := a.create(chatLines(2))["id"].(string)
	if err := a.server.FailBatch(id, "x", "y", 1); err != nil {
		t.Fatal(err)
	}
	if b := a.retrieve(id); counts(b) != "0/0/0" || b["errors"] != nil {
		t.Errorf("after FailBatch: counts %s, errors %v", counts(b), b["errors"])
	}
}

// TestRefusedLines checks that other providers name the refused line.
func TestRefusedLines(t *testing.T) {
	a := newAPI(t, batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		if strings.Contains(string(l.Body), "bad") {
			return batchtest.Outcome{Refused: &batchtest.BatchError{Code: "invalid_request", Message: "no", Param: "messages"}}
		}
		return batchtest.Outcome{}
	}})
	b := a.retrieve(a.create(chatLine("a", "good") + chatLine("b", "bad"))["id"])
	want := map[string]any{"object": "list", "data": []any{
		map[string]any{"code": "invalid_request", "message": "no", "line": 2.0, "param": "messages"},
	}}
	if diff := cmp.Diff(any(want), b["errors"]); diff != "" || b["status"] != "failed" {
		t.Errorf("status %v, errors (-want +got):\n%s", b["status"], diff)
	}
	if got := a.post("/chat/completions", `{"model":"m","messages":[{"role":"user","content":"bad"}]}`); got.status != 400 {
		t.Errorf("a realtime call: %d, want 400", got.status)
	}
	if n := len(a.server.Paid()); n != 0 {
		t.Errorf("%d lines were paid for, want none", n)
	}
}

func TestDoublewordRefusesLoneSurrogates(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.Doubleword()})
	for text, want := range map[string]int{
		`\ud83d\ude00`:        201, // a pair
		`\uD83D\uDE00 \u00e9`: 201,
		`\\ud83d`:             201, // an escaped backslash
		`\ud83d`:              400,
		`\ude00`:              400,
		`\ud83d\ud83d\ude00`:  400,
		`\ud83d \ude00`:       400,
		`\ud83d\n\ude00`:      400,
		`\ude00\ud83d`:        400,
	} {
		got := a.tryUpload(strings.Replace(chatLine("a", "TEXT"), "TEXT", text, 1))
		if got.status != want || want == 400 && !strings.HasPrefix(got.body, "Invalid JSON on line 1: ") {
			t.Errorf("%s: %d %s, want %d", text, got.status, got.body, want)
		}
	}
}

func TestDoublewordWindows(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.Doubleword()})
	file := a.upload(chatLines(1))
	for window, want := range map[string]struct {
		status int
		text   string
	}{
		"1h":   {201, ""},
		"7d":   {400, "'24h', '1h'"},
		"soon": {500, ""},
	} {
		got := a.post("/batches", createBody(file, chat, window))
		if got.status != want.status || !strings.Contains(got.body, want.text) {
			t.Errorf("%s: %d %s, want %d %s", window, got.status, got.body, want.status, want.text)
		}
	}
	if n := len(a.server.Batches()); n != 1 {
		t.Errorf("%d batches, want 1: a refused create makes none", n)
	}
}

func TestLLMDMixesModelsAndEndpoints(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.LLMD()})
	embedding := `{"custom_id":"e","method":"POST","url":"/v1/embeddings","body":{"model":"other","input":"x"}}` + "\n"
	if b := a.retrieve(a.create(chatLines(1) + embedding)["id"]); b["status"] != "completed" || counts(b) != "2/2/0" {
		t.Errorf("batch = %v, want two completed lines", b)
	}
}
