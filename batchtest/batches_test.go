package batchtest_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/google/go-cmp/cmp"
)

func TestBadCreates(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	file := a.upload(chatLines(1))
	with := func(extra string) string {
		return strings.TrimSuffix(createBody(file, chat, "24h"), "}") + "," + extra + "}"
	}
	pairs := func(n int) string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprintf("key-%d", i)] = "v"
		}
		raw, _ := json.Marshal(m)
		return `"metadata":` + string(raw)
	}
	output := a.retrieve(a.create(chatLines(1))["id"])["output_file_id"].(string)
	tests := []struct {
		name, body string
		status     int
		message    string
	}{
		{"good", createBody(file, chat, "24h"), 200, ""},
		{"not JSON", "{", 400, "could not parse"},
		{"an array", "[]", 400, "could not parse"},
		{"no file", createBody("", chat, "24h"), 400, "Missing required parameter: 'input_file_id'"},
		{"no endpoint", createBody(file, "", "24h"), 400, "Missing required parameter: 'endpoint'"},
		{"no window", createBody(file, chat, ""), 400, "Missing required parameter: 'completion_window'"},
		{"unknown file", createBody("file-1", chat, "24h"), 404, "No such File object: file-1"},
		{"a result file", createBody(output, chat, "24h"), 400, "must have the purpose"},
		{"unknown endpoint", createBody(file, "/v1/cake", "24h"), 400, "Invalid value: '/v1/cake'"},
		{"unknown window", createBody(file, chat, "1h"), 400, "Invalid value: '1h'"},
		{"unknown parameter", with(`"colour":"red"`), 400, "Unknown parameter: 'colour'"},
		{"wrong type", `{"input_file_id":7}`, 400, "Invalid type"},
		{"metadata", with(pairs(16)), 200, ""},
		{"too much metadata", with(pairs(17)), 400, "at most 16"},
		{"metadata of another type", with(`"metadata":{"a":1}`), 400, "expected a string"},
		{"metadata null", with(`"metadata":null`), 200, ""},
		{"long key", with(`"metadata":{"` + strings.Repeat("ä", 64) + `":"v"}`), 200, ""},
		{"key too long", with(`"metadata":{"` + strings.Repeat("k", 65) + `":"v"}`), 400, "longer than 64"},
		{"value too long", with(`"metadata":{"k":"` + strings.Repeat("v", 513) + `"}`), 400, "at most 512"},
		{"output expiry", with(`"output_expires_after":{"anchor":"created_at","seconds":3600}`), 200, ""},
		{"output expiry too soon", with(`"output_expires_after":{"anchor":"created_at","seconds":1}`), 400, "between 3600"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res := a.post("/batches", tt.body)
			if res.status != tt.status || !strings.Contains(res.body, tt.message) {
				t.Errorf("got %d %s; want %d %s", res.status, res.body, tt.status, tt.message)
			}
		})
	}
	t.Run("without a content type", func(t *testing.T) {
		res := a.do(a.request("POST", "/batches", strings.NewReader(createBody(file, chat, "24h"))))
		if res.status != 400 || !strings.Contains(res.body, "application/json") {
			t.Errorf("got %d %s", res.status, res.body)
		}
	})
}

func TestBatchObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{})
		file := a.upload(chatLines(2))
		body := strings.TrimSuffix(createBody(file, chat, "24h"), "}") + `,"metadata":{"nonce":"n1"}}`
		got := a.post("/batches", body).json(t)
		now := float64(time.Now().Unix())
		want := map[string]any{
			"id": got["id"], "object": "batch", "endpoint": chat, "completion_window": "24h", "status": "validating",
			"errors": nil, "input_file_id": file, "output_file_id": nil, "error_file_id": nil,
			"created_at": now, "expires_at": now + 86400, "in_progress_at": nil, "finalizing_at": nil,
			"completed_at": nil, "failed_at": nil, "expired_at": nil, "cancelling_at": nil, "cancelled_at": nil,
			"request_counts": map[string]any{"total": 2.0, "completed": 0.0, "failed": 0.0},
			"metadata":       map[string]any{"nonce": "n1"},
			"model":          "m", "usage": tokensUsed(0, 0),
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("batch (-want +got):\n%s", diff)
		}
	})
}

func tokensUsed(in, out float64) map[string]any {
	return map[string]any{
		"input_tokens": in, "input_tokens_details": map[string]any{"cached_tokens": 0.0},
		"output_tokens": out, "output_tokens_details": map[string]any{"reasoning_tokens": 0.0},
		"total_tokens": in + out,
	}
}

func TestBatchReportsUsage(t *testing.T) {
	a := newAPI(t, batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		return map[string]batchtest.Outcome{
			"chat":     {Body: []byte(`{"usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13}}`)},
			"response": {Body: []byte(`{"usage":{"input_tokens":100,"output_tokens":30}}`)},
			"failed":   {Status: 500, Body: []byte(`{"usage":{"prompt_tokens":1000}}`)},
			"silent":   {Body: []byte(`{}`)},
		}[l.CustomID]
	}})
	lines := chatLine("chat", "x") + chatLine("response", "x") + chatLine("failed", "x") + chatLine("silent", "x")
	b := a.retrieve(a.create(lines)["id"])
	if diff := cmp.Diff(any(tokensUsed(110, 33)), b["usage"]); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
}

func TestListBatches(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	var newest []string
	for range 5 {
		newest = append([]string{a.create(chatLines(1))["id"].(string)}, newest...)
	}
	if diff := cmp.Diff(newest, a.ids("/batches")); diff != "" {
		t.Errorf("all (-want +got):\n%s", diff)
	}
	var paged []string
	path := "/batches?limit=2"
	for {
		page := a.get(path).json(t)
		ids := a.ids(path)
		if page["first_id"] != ids[0] || page["last_id"] != ids[len(ids)-1] {
			t.Errorf("first and last id of %v: %v", ids, page)
		}
		paged = append(paged, ids...)
		if page["has_more"] != true {
			break
		}
		path = "/batches?limit=2&after=" + ids[len(ids)-1]
	}
	if diff := cmp.Diff(newest, paged); diff != "" {
		t.Errorf("page by page (-want +got):\n%s", diff)
	}
	for _, query := range []string{"limit=0", "limit=101", "limit=x", "after=batch_gone"} {
		if got := a.get("/batches?" + query).status; got != 400 {
			t.Errorf("%s: %d, want 400", query, got)
		}
	}
}

func TestListSearchAtDoubleword(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.Doubleword()})
	var ids []string
	for _, nonce := range []string{"xx11", "YY22"} {
		body := strings.TrimSuffix(createBody(a.upload(chatLines(1)), chat, "24h"), "}") + `,"metadata":{"nonce":"` + nonce + `"}}`
		ids = append(ids, a.post("/batches", body).json(t)["id"].(string))
	}
	for search, want := range map[string][]string{
		"xx11": {ids[0]}, "yy22": {ids[1]}, "y_2": {ids[1]}, "nonce%25xx": {ids[0]}, "zz": nil,
		"lines.jsonl": {ids[1], ids[0]}, ids[0]: {ids[0]},
	} {
		if diff := cmp.Diff(want, a.ids("/batches?search="+search)); diff != "" {
			t.Errorf("search %s (-want +got):\n%s", search, diff)
		}
	}
	if got := a.ids("/batches?limit=1&after=gone"); len(got) != 1 || got[0] != ids[1] {
		t.Errorf("unknown after: %v, want the first page again", got)
	}
}

func TestDoublewordBehavior(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: time.Hour})
	res := a.tryUpload(chatLines(1))
	file := res.json(t)["id"].(string)
	body := strings.TrimSuffix(createBody(file, "/v1/embeddings", "1h"), "}") +
		`,"colour":"red","metadata":{"k":"v","Created-By":"me"}}`
	created := a.post("/batches", body)
	if res.status != 201 || created.status != 201 {
		t.Fatalf("upload %d, create %d %s; want 201 twice", res.status, created.status, created.body)
	}
	b := created.json(t)
	if b["output_file_id"] == nil || b["error_file_id"] == nil {
		t.Errorf("result files are not there from the start: %v", b)
	}
	want := map[string]any{"k": "v", "request_source": "api"}
	if diff := cmp.Diff(any(want), b["metadata"]); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	for _, path := range []string{"/batches/batch_" + b["id"].(string), "/files/file-" + file} {
		if got := a.get(path); got.status != 400 || got.header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	bad := strings.TrimSuffix(createBody(file, chat, "1h"), "}") + `,"metadata":{"k":1}}`
	if got := a.post("/batches", bad); got.status != 422 {
		t.Errorf("metadata of another type: %d %s, want 422", got.status, got.body)
	}
}

func TestAzureBehavior(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{Behavior: batchtest.Azure()})
		if !strings.HasSuffix(a.server.URL, "/openai/v1") {
			t.Fatalf("URL = %s", a.server.URL)
		}
		res := a.post("/batches", createBody(a.upload(chatLines(1)), "/chat/completions", "24h"))
		if got := res.json(t)["status"]; got != "Validating" {
			t.Errorf("status = %v, want Validating", got)
		}
		b := a.retrieve(res.json(t)["id"])
		if b["status"] != "Completed" || b["created_at"] != time.Now().UTC().Format(time.RFC3339) {
			t.Errorf("batch = %v", b)
		}
		if got := a.get("/files/" + b["error_file_id"].(string) + "/content"); got.status != 200 || got.body != "" {
			t.Errorf("error file: %d %q, want an empty one", got.status, got.body)
		}
	})
}

func TestTogetherBehavior(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.Together()})
	up := a.do(a.form("/files/upload", "purpose", "batch-api", "file_name", "lines.jsonl", "file", chatLines(1)))
	if up.status != 200 {
		t.Fatalf("upload: %d %s", up.status, up.body)
	}
	res := a.post("/batches", createBody(up.json(t)["id"].(string), chat, "24h"))
	job := res.json(t)["job"].(map[string]any)
	if job["status"] != "VALIDATING" {
		t.Errorf("job = %v", job)
	}
	if got := a.retrieve(job["id"])["status"]; got != "COMPLETED" {
		t.Errorf("status = %v", got)
	}
}
