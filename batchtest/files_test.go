package batchtest_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/google/go-cmp/cmp"
)

// line is a line of an input file with whatever fields, and no newline.
func line(fields string) string { return "{" + fields + "}" }

const goodBody = `"body":{"model":"m","messages":[]}`

// TestBadLines checks what makes a file unfit, and how each kind of provider
// reports the line: OpenAI by a failed batch, Doubleword at upload.
func TestBadLines(t *testing.T) {
	small := func(m batchtest.Behavior) batchtest.Behavior {
		m.MaxLines, m.MaxLineBytes, m.MaxInputs = 3, 200, 4
		return m
	}
	good := strings.TrimSpace(chatLine("good", "hi"))
	embed := func(id, input string) string {
		return fmt.Sprintf(`{"custom_id":%q,"method":"POST","url":"/v1/embeddings","body":{"model":"m","input":%s}}`, id, input)
	}
	long := strings.Repeat("x", 65)
	tests := []struct {
		name     string
		file     string
		endpoint string // default: chat
		code     string // OpenAI's; empty: good
		line     int
		upload   string // Doubleword's; empty: accepted
	}{
		{name: "good", file: good},
		{name: "good with a newline", file: good + "\n"},
		{name: "empty", code: "empty_file", upload: "The input file is empty"},
		{name: "not JSON", file: good + "\n{", code: "invalid_json_line", line: 2, upload: "Invalid JSON on line 2: "},
		{name: "not an object", file: `[]`, code: "invalid_json_line", line: 1, upload: "Invalid JSON on line 1: "},
		{name: "byte order mark", file: "\ufeff" + good, code: "invalid_json_line", line: 1, upload: "Invalid JSON on line 1: "},
		{name: "blank line", file: "\n" + good, code: "invalid_json_line", line: 1},
		{name: "blank lines do not count", file: "\n\n" + good + "\n{", code: "invalid_json_line", line: 1, upload: "Invalid JSON on line 2: "},
		{name: "no custom_id", file: line(`"method":"POST","url":"/v1/chat/completions",` + goodBody), code: "missing_required_parameter", line: 1, upload: "Line 1: Missing required parameter: 'custom_id'"},
		{name: "no method", file: line(`"custom_id":"a","url":"/v1/chat/completions",` + goodBody), code: "missing_required_parameter", line: 1, upload: "Line 1: Missing required parameter: 'method'"},
		{name: "no url", file: line(`"custom_id":"a","method":"POST",` + goodBody), code: "missing_required_parameter", line: 1, upload: "Line 1: Missing required parameter: 'url'"},
		{name: "no body", file: line(`"custom_id":"a","method":"POST","url":"/v1/chat/completions"`), code: "missing_required_parameter", line: 1, upload: "Line 1: Missing required parameter: 'body'"},
		{name: "no model", file: line(`"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{}`), code: "missing_required_parameter", line: 1, upload: "Line 1: Missing required parameter: 'body.model'"},
		{name: "custom_id a number", file: line(`"custom_id":1,"method":"POST","url":"/v1/chat/completions",` + goodBody), code: "invalid_request", line: 1, upload: "Line 1: 'custom_id' must be a string"},
		{name: "body a string", file: line(`"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":"x"`), code: "invalid_request", line: 1, upload: "Line 1: 'body' must be an object"},
		{name: "custom_id too long", file: chatLine(long, "hi"), code: "invalid_request", line: 1, upload: "Line 1: 'custom_id' must be"},
		{name: "custom_id as long as may be", file: chatLine(long[1:], "hi")},
		{name: "custom_id not ASCII", file: chatLine("ä", "hi"), code: "invalid_request", line: 1, upload: "Line 1: 'custom_id' must be"},
		{name: "GET", file: line(`"custom_id":"a","method":"GET","url":"/v1/chat/completions",` + goodBody), code: "invalid_method", line: 1, upload: "Line 1: The HTTP method must be POST"},
		{name: "unknown url", file: line(`"custom_id":"a","method":"POST","url":"/v1/cake",` + goodBody), code: "invalid_url", line: 1, upload: "Line 1: The URL provided is not supported"},
		{name: "unknown model", file: strings.ReplaceAll(good, `"m"`, `"gone"`), code: "model_not_found", line: 1, upload: "Line 1: The model 'gone' does not exist"},
		{name: "two models", file: good + "\n" + strings.ReplaceAll(chatLine("b", "hi"), `"m"`, `"m2"`), code: "model_mismatch", line: 2},
		{name: "two endpoints", file: good + "\n" + embed("b", `"x"`), code: "url_mismatch", line: 2},
		{name: "wrong endpoint", file: good, endpoint: "/v1/embeddings", code: "url_mismatch", line: 1},
		{name: "same custom_id", file: good + "\n" + good, code: "duplicate_custom_id", line: 2},
		{name: "stream", file: strings.Replace(good, `"model"`, `"stream":true,"model"`, 1), code: "invalid_request", line: 1},
		{name: "stream false", file: strings.Replace(good, `"model"`, `"stream":false,"model"`, 1)},
		{name: "too many lines", file: chatLines(4), code: "too_many_tasks", upload: "The input file has 4 requests"},
		{name: "body too large", file: chatLine("a", strings.Repeat("x", 200)), code: "invalid_request", line: 1, upload: "Line 1: The body has"},
		{name: "inputs at the limit", file: embed("a", `["x","y"]`) + "\n" + embed("b", `[[1,2],[3]]`), endpoint: "/v1/embeddings"},
		{name: "too many inputs", file: embed("a", `["x","y"]`) + "\n" + embed("b", `["x","y","z"]`), endpoint: "/v1/embeddings", code: "too_many_tasks", upload: "The input file has 5 embedding inputs"},
		{name: "tokens are one input", file: embed("a", `[1,2,3,4,5,6]`), endpoint: "/v1/embeddings"},
		{name: "not UTF-8", file: chatLine("a", "hi")[:60] + "\xff" + chatLine("a", "hi")[60:], code: "invalid_json_line", line: 1, upload: "Invalid JSON on line 1: "},
		{name: "escapes in the fields", file: `{"custom\u005fid":"b\"\u0041","method":"\u0050OST","url":"\/v1\/chat\/completions",` + goodBody + `}`},
	}
	for _, tt := range tests {
		endpoint := tt.endpoint
		if endpoint == "" {
			endpoint = chat
		}
		t.Run("OpenAI/"+tt.name, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{Behavior: small(batchtest.OpenAI()), Models: []string{"m", "m2"}})
			res := a.post("/batches", createBody(a.upload(tt.file), endpoint, "24h"))
			a.retrieve(res.json(t)["id"])
			b := a.server.Batches()[0]
			got := batchtest.BatchError{}
			if len(b.Errors) > 0 {
				got = b.Errors[0]
			}
			if (b.Status == "failed") != (tt.code != "") || got.Code != tt.code || got.Line != tt.line {
				t.Errorf("batch is %s with %+v, want %q at line %d", b.Status, got, tt.code, tt.line)
			}
		})
		t.Run("Doubleword/"+tt.name, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{Behavior: small(batchtest.Doubleword()), Models: []string{"m", "m2"}})
			res := a.tryUpload(tt.file)
			if tt.upload == "" {
				if res.status != 201 {
					t.Errorf("upload: %d %s", res.status, res.body)
				}
				return
			}
			wantStatus := 400
			if tt.code == "model_not_found" {
				wantStatus = 403
			}
			if res.status != wantStatus || !strings.HasPrefix(res.body, tt.upload) || len(a.server.Uploads()) != 0 {
				t.Errorf("upload: %d %s; want %d %s…", res.status, res.body, wantStatus, tt.upload)
			}
		})
	}
}

func TestBadUploads(t *testing.T) {
	m := batchtest.OpenAI()
	m.MaxFileBytes = 1000
	a := newAPI(t, batchtest.Options{Behavior: m})
	file := []string{"purpose", "batch", "file", chatLines(1)}
	huge := strings.Repeat("x", 1001)
	tests := []struct {
		name    string
		fields  []string
		status  int
		message string
	}{
		{"good", file, 200, ""},
		{"good in another order", []string{"file", chatLines(1), "purpose", "batch"}, 200, ""},
		{"no file", []string{"purpose", "batch"}, 400, "'file' is a required property"},
		{"no purpose", []string{"file", "{}"}, 400, "'purpose' is a required property"},
		{"wrong purpose", []string{"purpose", "fine-tune", "file", "{}"}, 400, "'fine-tune' is not one of"},
		{"two files", append(file, "file", "{}"), 400, "exactly one 'file'"},
		{"two purposes", append(file, "purpose", "batch"), 400, "Duplicate parameter: 'purpose'"},
		{"unknown field", append(file, "colour", "red"), 400, "Unknown parameter: 'colour'"},
		{"expiry", append(file, "expires_after[anchor]", "created_at", "expires_after[seconds]", "3600"), 200, ""},
		{"expiry too soon", append(file, "expires_after[anchor]", "created_at", "expires_after[seconds]", "3599"), 400, "between 3600 and 2592000"},
		{"expiry too late", append(file, "expires_after[anchor]", "created_at", "expires_after[seconds]", "2592001"), 400, "between 3600 and 2592000"},
		{"expiry no number", append(file, "expires_after[anchor]", "created_at", "expires_after[seconds]", "x"), 400, "must be an integer"},
		{"expiry without anchor", append(file, "expires_after[seconds]", "3600"), 400, "only 'created_at'"},
		{"as large as may be", []string{"purpose", "batch", "file", huge[1:]}, 200, ""},
		{"too large", []string{"purpose", "batch", "file", huge}, 413, "larger than the maximum of 1000"},
		{"far too large", []string{"purpose", "batch", "file", strings.Repeat(huge, 100)}, 413, "larger than the maximum of 1000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res := a.do(a.form("/files", tt.fields...))
			if res.status != tt.status || !strings.Contains(res.body, tt.message) {
				t.Errorf("got %d %s; want %d %s", res.status, res.body, tt.status, tt.message)
			}
		})
	}
	t.Run("not a form", func(t *testing.T) {
		if res := a.post("/files", "{}"); res.status != 400 {
			t.Errorf("got %d %s", res.status, res.body)
		}
	})
	t.Run("a form cut short", func(t *testing.T) {
		req := a.form("/files", file...)
		whole, err := io.ReadAll(req.Body)
		if err != nil {
			t.Fatal(err)
		}
		cut := a.request("POST", "/files", strings.NewReader(string(whole[:len(whole)-20])))
		cut.Header = req.Header
		if res := a.do(cut); res.status != 400 {
			t.Errorf("got %d %s", res.status, res.body)
		}
	})
}

func TestFileObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{})
		content := chatLines(1)
		id := a.upload(content)
		now := float64(time.Now().Unix())
		want := map[string]any{
			"id": id, "object": "file", "bytes": float64(len(content)), "created_at": now,
			"expires_at": now + 30*24*3600, "filename": "lines.jsonl", "purpose": "batch", "status": "processed",
		}
		if diff := cmp.Diff(want, a.get("/files/"+id).json(t)); diff != "" {
			t.Errorf("file (-want +got):\n%s", diff)
		}
		if got := a.get("/files/" + id + "/content").body; got != content {
			t.Errorf("content = %q", got)
		}
	})
}

func TestDeleteFile(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	id := a.upload(chatLines(1))
	res := a.do(a.request("DELETE", "/files/"+id, nil))
	want := map[string]any{"id": id, "object": "file", "deleted": true}
	if diff := cmp.Diff(want, res.json(t)); diff != "" {
		t.Errorf("delete (-want +got):\n%s", diff)
	}
	for _, res := range []answer{
		a.get("/files/" + id), a.get("/files/" + id + "/content"),
		a.do(a.request("DELETE", "/files/"+id, nil)), a.post("/batches", createBody(id, chat, "24h")),
	} {
		if res.status != 404 {
			t.Errorf("after deletion: %d %s", res.status, res.body)
		}
	}
	if ups := a.server.Uploads(); len(ups) != 1 || !ups[0].Deleted {
		t.Errorf("uploads = %+v", ups)
	}
}

func TestDeletingAnInputCancelsItsBatchAtDoubleword(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: time.Hour})
	b := a.create(chatLines(2))
	a.do(a.request("DELETE", "/files/"+b["input_file_id"].(string), nil))
	if got := a.retrieve(b["id"]); got["status"] != "cancelled" || got["input_file_id"] != nil {
		t.Errorf("batch = %v, want cancelled without an input", got)
	}
}

func TestFilesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{Turnaround: time.Hour})
		input := a.upload(chatLines(1))
		body := strings.TrimSuffix(createBody(input, chat, "24h"), "}") + `,"output_expires_after":{"anchor":"created_at","seconds":7200}}`
		id := a.post("/batches", body).json(t)["id"]
		time.Sleep(time.Hour)
		output := a.retrieve(id)["output_file_id"].(string)
		for _, step := range []struct {
			wait   time.Duration
			id     string
			status int
		}{
			{2*time.Hour - 1, output, 200},
			{1, output, 404},
			{0, input, 200},
			{30*24*time.Hour - 3*time.Hour - 1, input, 200},
			{1, input, 404},
		} {
			time.Sleep(step.wait)
			if got := a.get("/files/" + step.id + "/content").status; got != step.status {
				t.Errorf("%s: %d, want %d", step.id, got, step.status)
			}
		}
	})
}

func TestVisibleAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := batchtest.OpenAI()
		m.VisibleAfter = time.Minute
		a := newAPI(t, batchtest.Options{Behavior: m})
		file := a.upload(chatLines(1))
		if got := a.get("/files/" + file).status; got != 404 {
			t.Errorf("new file: %d, want 404", got)
		}
		time.Sleep(time.Minute)
		id := a.post("/batches", createBody(file, chat, "24h")).json(t)["id"].(string)
		if got := a.get("/batches/" + id).status; got != 404 {
			t.Errorf("new batch: %d, want 404", got)
		}
		if got := a.get("/batches").json(t)["data"].([]any); len(got) != 0 {
			t.Errorf("new batch is listed: %v", got)
		}
		time.Sleep(time.Minute)
		if got := a.get("/batches/" + id).status; got != 200 {
			t.Errorf("a minute later: %d, want 200", got)
		}
	})
}

func TestListFiles(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	first, second := a.upload(chatLines(1)), a.upload(chatLines(2))
	if diff := cmp.Diff([]string{second, first}, a.ids("/files")); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{first}, a.ids("/files?limit=5&after="+second)); diff != "" {
		t.Errorf("page (-want +got):\n%s", diff)
	}
	if got := a.ids("/files?purpose=vision"); len(got) != 0 {
		t.Errorf("other purpose: %v", got)
	}
	a.key = "sk-other"
	if got := a.ids("/files"); len(got) != 0 {
		t.Errorf("other key: %v", got)
	}
}

// ids are those of a list, in its order.
func (a *api) ids(path string) (ids []string) {
	a.t.Helper()
	res := a.get(path)
	if res.status != http.StatusOK {
		a.t.Fatalf("list: %d %s", res.status, res.body)
	}
	for _, v := range res.json(a.t)["data"].([]any) {
		ids = append(ids, v.(map[string]any)["id"].(string))
	}
	return ids
}
