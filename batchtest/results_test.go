package batchtest_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/google/go-cmp/cmp"
)

// TestResultLines checks the very text of result lines.
func TestResultLines(t *testing.T) {
	teapot := batchtest.Outcome{Status: 418, Body: []byte(`{"error":"tea"}`)}
	tests := []struct {
		name     string
		behavior batchtest.Behavior
		outcome  batchtest.Outcome
		file     string
		want     string // ID stands for the batch's
	}{
		{
			"success", batchtest.OpenAI(),
			batchtest.Outcome{Body: []byte(`{"n": 1.0}`)},
			"output", `{"id":"batch_req_ID-0","custom_id":"a \"b\" \\","response":{"status_code":200,"request_id":"req_ID-0","body":{"n": 1.0}},"error":null}`,
		},
		{
			"success at Doubleword", batchtest.Doubleword(),
			batchtest.Outcome{Body: []byte(`{"n": 1.0}`)},
			"output", `{"id":"batch_req_ID-0","custom_id":"a \"b\" \\","response":{"status_code":200,"request_id":null,"body":{"n": 1.0}},"error":null}`,
		},
		{
			"failure", batchtest.OpenAI(), teapot,
			"error", `{"id":"batch_req_ID-0","custom_id":"a \"b\" \\","response":{"status_code":418,"request_id":"req_ID-0","body":{"error":"tea"}},"error":null}`,
		},
		{
			"failure at llm-d", batchtest.LLMD(), teapot,
			"output", `{"id":"batch_req_ID-0","custom_id":"a \"b\" \\","response":{"status_code":418,"request_id":"req_ID-0","body":{"error":"tea"}},"error":null}`,
		},
		{
			"failure at Doubleword", batchtest.Doubleword(), teapot,
			"error", `{"id":"batch_req_ID-0","custom_id":"a \"b\" \\","response":null,"error":{"code":null,"message":"{\"details\":{\"body\":\"{\\\"error\\\":\\\"tea\\\"}\",\"status\":418},\"type\":\"NonRetriableHttpStatus\"}"}}`,
		},
		{
			"failure without a body", batchtest.OpenAI(),
			batchtest.Outcome{Status: 429},
			"error", `{"id":"batch_req_ID-0","custom_id":"a \"b\" \\","response":{"status_code":429,"request_id":"req_ID-0","body":{"error":{"message":"Too Many Requests.","type":"rate_limit_error","param":null,"code":null}}},"error":null}`,
		},
		{
			"no response", batchtest.OpenAI(),
			batchtest.Outcome{Code: "request_timeout", Message: "took too long"},
			"error", `{"id":"batch_req_ID-0","custom_id":"a \"b\" \\","response":null,"error":{"code":"request_timeout","message":"took too long"}}`,
		},
		{
			"no response at Doubleword", batchtest.Doubleword(),
			batchtest.Outcome{Code: "Timeout", Message: "took too long"},
			"error", `{"id":"batch_req_ID-0","custom_id":"a \"b\" \\","response":null,"error":{"code":null,"message":"{\"details\":{\"error\":\"took too long\"},\"type\":\"Timeout\"}"}}`,
		},
		{
			"body as a string", batchtest.OpenAI(),
			batchtest.Outcome{Body: []byte(`{"n":1}`), BodyAsString: true},
			"output", `{"id":"batch_req_ID-0","custom_id":"a \"b\" \\","response":{"status_code":200,"request_id":"req_ID-0","body":"{\"n\":1}"},"error":null}`,
		},
		{
			"body that is no JSON", batchtest.OpenAI(),
			batchtest.Outcome{Body: []byte("data: x\n")},
			"output", `{"id":"batch_req_ID-0","custom_id":"a \"b\" \\","response":{"status_code":200,"request_id":"req_ID-0","body":"data: x\n"},"error":null}`,
		},
		{
			"body over several lines", batchtest.OpenAI(),
			batchtest.Outcome{Body: []byte("{\n \"n\": 1.0\n}\n")},
			"output", `{"id":"batch_req_ID-0","custom_id":"a \"b\" \\","response":{"status_code":200,"request_id":"req_ID-0","body":{"n":1.0}},"error":null}`,
		},
		{"garbage", batchtest.OpenAI(), batchtest.Outcome{Garbage: `{"id":`}, "output", `{"id":`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{
				Behavior: tt.behavior,
				Answer:   func(batchtest.Line) batchtest.Outcome { return tt.outcome },
			})
			b := a.retrieve(a.create(chatLine(`a "b" \`, "hi"))["id"])
			res := a.get("/files/" + b[tt.file+"_file_id"].(string) + "/content")
			want := strings.ReplaceAll(tt.want, "ID", b["id"].(string)) + "\n"
			if diff := cmp.Diff(want, res.body); diff != "" {
				t.Errorf("line (-want +got):\n%s", diff)
			}
			size := a.get("/files/" + b[tt.file+"_file_id"].(string)).json(t)["bytes"]
			if size != float64(len(want)) {
				t.Errorf("size of the file = %v, want %d", size, len(want))
			}
		})
	}
}

// TestPartialResults reads a running Doubleword batch as its clients do.
func TestPartialResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: 200 * time.Minute})
		path := "/files/" + a.create(chatLines(200))["output_file_id"].(string) + "/content"
		tests := []struct {
			at         time.Duration
			query      string
			first, n   int
			incomplete string
			last       string
		}{
			{0, "", 0, 0, "true", "0"},
			{3 * time.Minute, "", 0, 3, "true", "3"},
			{3 * time.Minute, "?skip=2", 2, 1, "true", "3"},
			{3 * time.Minute, "?skip=99", 0, 0, "true", "99"},
			{3 * time.Minute, "?offset=2", 0, 3, "true", "3"},
			{3 * time.Minute, "?limit=2", 0, 2, "true", "2"},
			{3 * time.Minute, "?limit=0", 0, 1, "true", "1"},
			{150 * time.Minute, "?limit=1000", 0, 101, "true", "101"},
			{150 * time.Minute, "?search=line-149", 149, 1, "true", ""},
			{150 * time.Minute, "?search=line-14&skip=1&limit=2", 140, 2, "true", "3"},
			{200 * time.Minute, "", 0, 200, "false", "200"},
			{200 * time.Minute, "?skip=198&limit=2", 198, 2, "false", "200"},
			{200 * time.Minute, "?skip=197&limit=2", 197, 2, "true", "199"},
		}
		start := time.Now()
		for _, tt := range tests {
			time.Sleep(time.Until(start.Add(tt.at)))
			res := a.get(path + tt.query)
			var got []string
			for l := range strings.Lines(res.body) {
				got = append(got, answer{body: l}.json(t)["custom_id"].(string))
			}
			var want []string
			for i := range tt.n {
				want = append(want, "line-"+strconv.Itoa(tt.first+i))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("at %v %s: (-want +got):\n%s", tt.at, tt.query, diff)
			}
			if i, l := res.header.Get("X-Incomplete"), res.header.Get("X-Last-Line"); i != tt.incomplete || l != tt.last {
				t.Errorf("at %v %s: X-Incomplete %s, X-Last-Line %s; want %s, %s", tt.at, tt.query, i, l, tt.incomplete, tt.last)
			}
		}
	})
}

func TestDisplacedLineComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{
			Behavior: batchtest.Doubleword(), Turnaround: 3 * time.Minute,
			Answer: func(l batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Displaced: l.Number == 3} },
		})
		id := a.create(chatLines(3))["output_file_id"]
		for i, want := range [][]string{nil, {"line-0"}, {"line-0", "line-1"}, {"line-2", "line-0", "line-1"}} {
			var got []string
			for _, l := range a.results(id) {
				got = append(got, l["custom_id"].(string))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("after %d minutes (-want +got):\n%s", i, diff)
			}
			time.Sleep(time.Minute)
		}
	})
}

func TestResultsAreHiddenUntilTheEndAtOpenAI(t *testing.T) {
	a := newAPI(t, batchtest.Options{Turnaround: time.Hour})
	id := a.create(chatLines(2))["id"].(string)
	if b := a.retrieve(id); b["output_file_id"] != nil || b["error_file_id"] != nil {
		t.Errorf("running batch shows result files: %v", b)
	}
	if err := a.server.Finish(id); err != nil {
		t.Fatal(err)
	}
	b := a.retrieve(id)
	if b["output_file_id"] == nil || b["error_file_id"] != nil {
		t.Errorf("output %v, error %v; want an output file only", b["output_file_id"], b["error_file_id"])
	}
}

func TestFailRate(t *testing.T) {
	failing := func(seed int64) (ids []string) {
		a := newAPI(t, batchtest.Options{FailRate: 0.2, Seed: seed})
		for id, fate := range a.outcomes(a.retrieve(a.create(chatLines(500))["id"])) {
			if fate == "error 500" {
				ids = append(ids, id)
			}
		}
		return ids
	}
	first, again, other := failing(1), failing(1), failing(2)
	if n := len(first); n < 70 || n > 130 {
		t.Errorf("%d of 500 lines failed, want about 100", n)
	}
	sorted := func(ids []string) string { return fmt.Sprint(toSet(ids)) }
	if sorted(first) != sorted(again) {
		t.Error("the same seed fails other lines")
	}
	if sorted(first) == sorted(other) {
		t.Error("another seed fails the same lines")
	}
}

func toSet(ids []string) map[string]bool {
	set := map[string]bool{}
	for _, id := range ids {
		set[id] = true
	}
	return set
}

// FuzzUpload looks for bytes that break the server, or pass although encoding/json
// cannot read them.
func FuzzUpload(f *testing.F) {
	f.Add([]byte(chatLines(2)))
	f.Add([]byte("{}\n\n[]\n\xff"))
	f.Add([]byte(`{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":[]}}`))
	f.Add([]byte(`{"custom_id":"a","method":"POST","url":"/v1/responses","body":{"model":"m","input":[{"role":"user","content":[{"text":"x"}]}]}}`))
	m := batchtest.LLMD()
	m.OneEndpoint = false
	f.Fuzz(func(t *testing.T, content []byte) {
		a := newAPI(t, batchtest.Options{Behavior: m})
		b := a.retrieve(a.create(string(content))["id"])
		if b["status"] != "completed" {
			return
		}
		lines := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
		for _, l := range lines {
			if !json.Valid([]byte(l)) {
				t.Errorf("accepted %q", l)
			}
		}
		if got := len(a.results(b["output_file_id"])); got != len(lines) {
			t.Errorf("%d results of %d lines", got, len(lines))
		}
	})
}
