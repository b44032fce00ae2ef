package batchtest_test

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/google/go-cmp/cmp"
	"github.com/tidwall/gjson"
)

func echo(url, body string) answer {
	o := batchtest.Echo(batchtest.Line{URL: url, Model: "m", Body: []byte(body)})
	return answer{status: o.Status, body: string(o.Body)}
}

func TestEchoChat(t *testing.T) {
	user := func(content string) string {
		return `{"model":"m","messages":[{"role":"user","content":"First."},{"role":"assistant","content":"No."},{"role":"user","content":` + content + `}]}`
	}
	tests := []struct{ name, body, want string }{
		{"text", user(`"Hello there. And more."`), "You said: Hello there."},
		{"escapes", user(`"\u00e4 \"b\"\nc"`), `You said: ä "b"`},
		{"parts", user(`[{"type":"text","text":"Look!"},{"type":"image_url","image_url":{}}]`), "You said: Look!"},
		{"no user", `{"model":"m","messages":[]}`, "You said nothing."},
		{"no messages", `{"model":"m"}`, "You said nothing."},
		{"long", user(`"` + strings.Repeat("é", 300) + `"`), "You said: " + strings.Repeat("é", 200) + "…"},
		{"JSON", `{"model":"m","response_format":{"type":"json_object"},"messages":[{"role":"user","content":"Hi."}]}`, `{"echo":"Hi."}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := echo(chat, tt.body).json(t)
			want := map[string]any{
				"id": got["id"], "object": "chat.completion", "created": got["created"], "model": "m",
				"service_tier": "default", "system_fingerprint": nil, "usage": got["usage"],
				"choices": []any{map[string]any{
					"index": 0.0, "finish_reason": "stop", "logprobs": nil,
					"message": map[string]any{"role": "assistant", "content": tt.want, "refusal": nil, "annotations": []any{}},
				}},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			u := got["usage"].(map[string]any)
			if u["total_tokens"] != u["prompt_tokens"].(float64)+u["completion_tokens"].(float64) || u["total_tokens"] == 0.0 {
				t.Errorf("usage = %v", u)
			}
		})
	}
	if a, b := echo(chat, user(`"x"`)), echo(chat, user(`"x"`)); a.body != b.body {
		t.Error("equal bodies got different answers")
	}
	if n := len(echo(chat, `{"n":3}`).json(t)["choices"].([]any)); n != 3 {
		t.Errorf("n=3: %d choices", n)
	}
}

func TestEchoEmbeddings(t *testing.T) {
	tests := []struct {
		name, fields string
		count, size  int
	}{
		{"one text", `"input":"a"`, 1, 8},
		{"texts", `"input":["a","b","a"]`, 3, 8},
		{"one text in a list", `"input":["a"]`, 1, 8},
		{"tokens", `"input":[1,2,3]`, 1, 8},
		{"lists of tokens", `"input":[[1],[2,3]]`, 2, 8},
		{"dimensions", `"input":"a","dimensions":256`, 1, 256},
		{"base64", `"input":["a","b"],"encoding_format":"base64","dimensions":16`, 2, 16},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := echo("/v1/embeddings", `{"model":"m",`+tt.fields+`}`).json(t)
			data := got["data"].([]any)
			if got["object"] != "list" || got["model"] != "m" || len(data) != tt.count {
				t.Fatalf("got %v", got)
			}
			for i, d := range data {
				item := d.(map[string]any)
				v := floats(t, item["embedding"])
				if item["index"] != float64(i) || item["object"] != "embedding" || len(v) != tt.size || math.Abs(length(v)-1) > 1e-5 {
					t.Errorf("item %d = %v, of length %v", i, item, length(v))
				}
			}
		})
	}
	plain := echo("/v1/embeddings", `{"input":"a"}`).json(t)["data"].([]any)[0].(map[string]any)["embedding"]
	coded := echo("/v1/embeddings", `{"input":"a","encoding_format":"base64"}`).json(t)["data"].([]any)[0].(map[string]any)["embedding"]
	if diff := cmp.Diff(floats(t, plain), floats(t, coded)); diff != "" {
		t.Errorf("float and base64 differ:\n%s", diff)
	}
	if none := echo("/v1/embeddings", `{}`); none.status != 200 {
		t.Errorf("no input: %d", none.status)
	}
}

// floats reads an embedding in either encoding.
func floats(t *testing.T, v any) (out []float32) {
	t.Helper()
	if list, ok := v.([]any); ok {
		for _, x := range list {
			out = append(out, float32(x.(float64)))
		}
		return out
	}
	raw, err := base64.StdEncoding.DecodeString(v.(string))
	if err != nil {
		t.Fatal(err)
	}
	for ; len(raw) > 0; raw = raw[4:] {
		out = append(out, math.Float32frombits(binary.LittleEndian.Uint32(raw)))
	}
	return out
}

func length(v []float32) float64 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum)
}

func TestEchoResponses(t *testing.T) {
	for _, input := range []string{
		`"Hello. More."`, `[{"role":"user","content":"Hello. More."}]`,
		`[{"role":"user","content":[{"type":"input_text","text":"Hello. More."}]}]`,
	} {
		got := echo("/v1/responses", `{"model":"m","input":`+input+`}`).json(t)
		item := got["output"].([]any)[0].(map[string]any)
		part := item["content"].([]any)[0].(map[string]any)
		if got["object"] != "response" || got["status"] != "completed" || part["type"] != "output_text" || part["text"] != "You said: Hello." {
			t.Errorf("%s: got %v", input, got)
		}
	}
	if got := echo("/v1/completions", `{"prompt":"Once."}`).json(t)["choices"].([]any)[0].(map[string]any)["text"]; got != "You said: Once." {
		t.Errorf("completion = %v", got)
	}
}

func TestRealtime(t *testing.T) {
	onBothTransports(t, batchtest.Options{Models: []string{"m"}}, func(t *testing.T, a *api) {
		body := `{"model":"m","messages":[{"role":"user","content":"Hi there."}]}`
		if got := a.post("/chat/completions", body); got.status != 200 || got.body != echo(chat, body).body {
			t.Errorf("chat: %d %s", got.status, got.body)
		}
		for path, body := range map[string]string{
			"/embeddings": `{"model":"m","input":"x"}`, "/responses": `{"model":"m","input":"x"}`, "/completions": `{"model":"m","prompt":"x"}`,
		} {
			if got := a.post(path, body); got.status != 200 || got.body != echo("/v1"+path, body).body {
				t.Errorf("%s: %d %s", path, got.status, got.body)
			}
		}
		if got := a.post("/chat/completions", `{}`); got.status != 400 {
			t.Errorf("no model: %d", got.status)
		}
		if got := a.post("/chat/completions", `{"model":"x"}`); got.status != 404 {
			t.Errorf("unknown model: %d", got.status)
		}
		if got := a.get("/models").json(t)["data"].([]any); len(got) != 1 {
			t.Errorf("models = %v", got)
		}
		if got := a.get("/cake"); got.status != 404 || got.json(t)["error"] == nil {
			t.Errorf("unknown path: %d %s", got.status, got.body)
		}
	})
}

func TestRealtimeStream(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(t *testing.T, a *api) {
		res := a.post("/chat/completions", `{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Hi there you."}]}`)
		if got := res.header.Get("Content-Type"); got != "text/event-stream; charset=utf-8" {
			t.Errorf("Content-Type = %s", got)
		}
		events := strings.Split(strings.TrimSuffix(res.body, "\n\n"), "\n\n")
		if events[len(events)-1] != "data: [DONE]" {
			t.Fatalf("last event = %s", events[len(events)-1])
		}
		var text strings.Builder
		usage := 0
		for _, e := range events[:len(events)-1] {
			v := answer{body: strings.TrimPrefix(e, "data: ")}.json(t)
			if v["usage"] != nil {
				usage++
			}
			for _, c := range v["choices"].([]any) {
				word, _ := c.(map[string]any)["delta"].(map[string]any)["content"].(string)
				text.WriteString(word)
			}
		}
		if text.String() != "You said: Hi there you." || usage != 1 {
			t.Errorf("text %q, usage %d times", text.String(), usage)
		}
	})
}

func TestRealtimeOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var next batchtest.Outcome
		a := newAPI(t, batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return next }})
		tests := []struct {
			outcome batchtest.Outcome
			status  int
			body    string
			after   time.Duration
		}{
			{batchtest.Outcome{Status: 429, Body: []byte("{}")}, 429, "{}", 0},
			{batchtest.Outcome{Body: []byte("{}"), Delay: time.Minute}, 200, "{}", time.Minute},
			{batchtest.Outcome{Garbage: "<"}, 200, "<", 0},
			{batchtest.Outcome{Code: "c", Message: "m"}, 500, `{"error":{"message":"m","type":"server_error","param":null,"code":"c"}}`, 0},
		}
		for _, tt := range tests {
			next = tt.outcome
			start := time.Now()
			res := a.post("/chat/completions", `{"model":"m"}`)
			if res.status != tt.status || res.body != tt.body || time.Since(start) != tt.after {
				t.Errorf("%+v: %d %s after %v", tt.outcome, res.status, res.body, time.Since(start))
			}
		}
		a.client.Timeout = time.Hour
		for name, outcome := range map[string]batchtest.Outcome{"Never": {Never: true}, "Missing": {Missing: true}} {
			next = outcome
			req := a.request("POST", "/chat/completions", strings.NewReader(`{"model":"m"}`))
			req.Header.Set("Content-Type", "application/json")
			if res, err := a.attempt(req); err == nil {
				t.Errorf("%s: %s", name, fmt.Sprint(res))
			}
		}
	})
}

// Tool calls come in pieces, as at OpenAI.
func TestRealtimeStreamOfToolCalls(t *testing.T) {
	const arguments = `{"city":"Oslo","days":2}`
	answer := func(l batchtest.Line) batchtest.Outcome {
		o := batchtest.Outcome{Body: []byte(`{"id":"chatcmpl-1","choices":[{"index":0,"finish_reason":"tool_calls","message":{"role":"assistant","content":null,
			"tool_calls":[{"id":"call_1","type":"function","function":{"name":"a","arguments":"{}"}},{"id":"call_2","type":"function","function":{"name":"b","arguments":` + strconv.Quote(arguments) + `}}]}}]}`)}
		if strings.HasSuffix(l.URL, "/responses") {
			o.Body = []byte(`{"id":"resp_1","status":"completed","output":[{"id":"fc_1","type":"function_call","status":"completed","call_id":"call_1","name":"b","arguments":` + strconv.Quote(arguments) + `}]}`)
		}
		return o
	}
	onBothTransports(t, batchtest.Options{Answer: answer}, func(t *testing.T, a *api) {
		text := a.post("/chat/completions", `{"model":"m","stream":true,"messages":[{"role":"user","content":"Hi"}]}`).body
		got, finish := map[int64]string{}, ""
		for event := range strings.SplitSeq(text, "\n\n") {
			choice := gjson.Get(strings.TrimPrefix(event, "data: "), "choices.0")
			for _, call := range choice.Get("delta.tool_calls").Array() {
				got[call.Get("index").Int()] += call.Get("id").String() + call.Get("function.name").String() + call.Get("function.arguments").String()
			}
			finish += choice.Get("finish_reason").String()
		}
		if want := (map[int64]string{0: "call_1a{}", 1: "call_2b" + arguments}); !maps.Equal(got, want) || finish != "tool_calls" {
			t.Errorf("calls %v, finish %q:\n%s", got, finish, text)
		}
		text = a.post("/responses", `{"model":"m","stream":true,"input":"Hi"}`).body
		var whole strings.Builder
		pieces := 0
		for line := range strings.Lines(text) {
			event := gjson.Parse(strings.TrimPrefix(line, "data: "))
			switch event.Get("type").String() {
			case "response.output_item.added":
				whole.WriteString(event.Get("item.arguments").String())
			case "response.function_call_arguments.delta":
				whole.WriteString(event.Get("delta").String())
				pieces++
			}
		}
		if whole.String() != arguments || pieces < 2 {
			t.Errorf("arguments %q in %d pieces:\n%s", whole.String(), pieces, text)
		}
	})
}
