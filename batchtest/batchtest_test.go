package batchtest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/batchtest"
)

// An api is a client of a Server that fails its test rather than return errors.
type api struct {
	t      testing.TB
	server *batchtest.Server
	client *http.Client
	key    string
}

func newAPI(t testing.TB, opts batchtest.Options) *api {
	t.Helper()
	s := batchtest.New(opts)
	t.Cleanup(s.Close)
	return &api{t, s, s.Client(), "sk-test"}
}

// An answer is a response that has been read.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) json(t testing.TB) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("answer is no JSON object: %v: %s", err, a.body)
	}
	return v
}

func (a *api) do(req *http.Request) answer {
	a.t.Helper()
	if a.key != "" && req.Header.Get("Authorization") == "" {
		req.Header.Set("Authorization", "Bearer "+a.key)
	}
	res, err := a.client.Do(req)
	if err != nil {
		a.t.Fatalf("%s %s: %v", req.Method, req.URL.Path, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Fatalf("%s %s: reading the answer: %v", req.Method, req.URL.Path, err)
	}
	return answer{res.StatusCode, res.Header, string(body)}
}

func (a *api) request(method, path string, body io.Reader) *http.Request {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.server.URL+path, body)
	if err != nil {
		a.t.Fatal(err)
	}
	return req
}

func (a *api) get(path string) answer {
	a.t.Helper()
	return a.do(a.request("GET", path, nil))
}

func (a *api) post(path, body string) answer {
	a.t.Helper()
	req := a.request("POST", path, strings.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	return a.do(req)
}

// form makes an upload of named fields, in order; the field "file" is the file.
func (a *api) form(path string, fields ...string) *http.Request {
	a.t.Helper()
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	for i := 0; i < len(fields); i += 2 {
		var part io.Writer
		var err error
		if fields[i] == "file" {
			part, err = w.CreateFormFile("file", "lines.jsonl")
		} else {
			part, err = w.CreateFormField(fields[i])
		}
		if err != nil {
			a.t.Fatal(err)
		}
		_, _ = io.WriteString(part, fields[i+1])
	}
	_ = w.Close()
	req := a.request("POST", path, &buf)
	req.Header.Set("Content-Type", w.FormDataContentType())
	return req
}

func (a *api) tryUpload(content string) answer {
	a.t.Helper()
	return a.do(a.form("/files", "purpose", "batch", "file", content))
}

func (a *api) upload(content string) (id string) {
	a.t.Helper()
	res := a.tryUpload(content)
	if res.status > 299 {
		a.t.Fatalf("upload: %d %s", res.status, res.body)
	}
	return res.json(a.t)["id"].(string)
}

const chat = "/v1/chat/completions"

func createBody(fileID, endpoint, window string) string {
	return fmt.Sprintf(`{"input_file_id":%q,"endpoint":%q,"completion_window":%q}`, fileID, endpoint, window)
}

// create makes a batch of the lines and returns the answer to it.
func (a *api) create(content string) map[string]any {
	a.t.Helper()
	res := a.post("/batches", createBody(a.upload(content), chat, "24h"))
	if res.status > 299 {
		a.t.Fatalf("create: %d %s", res.status, res.body)
	}
	return res.json(a.t)
}

func (a *api) retrieve(id any) map[string]any {
	a.t.Helper()
	res := a.get("/batches/" + id.(string))
	if res.status != 200 {
		a.t.Fatalf("retrieve: %d %s", res.status, res.body)
	}
	return res.json(a.t)
}

// results reads a result file into lines; a nil id has none.
func (a *api) results(id any) (lines []map[string]any) {
	a.t.Helper()
	if id == nil {
		return nil
	}
	res := a.get("/files/" + id.(string) + "/content")
	if res.status != 200 {
		a.t.Fatalf("content: %d %s", res.status, res.body)
	}
	for line := range strings.Lines(res.body) {
		lines = append(lines, answer{body: line}.json(a.t))
	}
	return lines
}

// chatLine is a line of an input file, with its newline.
func chatLine(id, text string) string {
	return fmt.Sprintf(`{"custom_id":%q,"method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":%q}]}}`+"\n", id, text)
}

func chatLines(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(chatLine(fmt.Sprintf("line-%d", i), fmt.Sprintf("Hello %d.", i)))
	}
	return b.String()
}

func TestBatchFromUploadToResults(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	b := a.create(chatLines(3))
	if b["status"] != "validating" {
		t.Errorf("status after create = %v, want validating", b["status"])
	}
	b = a.retrieve(b["id"])
	if b["status"] != "completed" {
		t.Fatalf("status = %v, want completed: %v", b["status"], b)
	}
	lines := a.results(b["output_file_id"])
	if len(lines) != 3 {
		t.Fatalf("got %d lines, want 3", len(lines))
	}
	for i, l := range lines {
		if want := fmt.Sprintf("line-%d", i); l["custom_id"] != want {
			t.Errorf("custom_id = %v, want %s", l["custom_id"], want)
		}
	}
}
