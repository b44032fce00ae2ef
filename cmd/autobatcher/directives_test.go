package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/batchtest"
)

func chatLine(prompt string) batchtest.Line {
	quoted, _ := json.Marshal(prompt)
	return batchtest.Line{URL: "/v1/chat/completions", Body: []byte(`{"model":"m","messages":[{"role":"user","content":` + string(quoted) + `}]}`)}
}

func TestAnswerLine(t *testing.T) {
	tests := []struct {
		prompt string
		want   batchtest.Outcome // without its body
	}{
		{"sandbox: status 429", batchtest.Outcome{Status: 429}},
		{"please, sandbox: status 404 now", batchtest.Outcome{Status: 404}},
		{"sandbox: error batch_expired", batchtest.Outcome{Code: "batch_expired", Message: "the prompt asks the sandbox to fail"}},
		{"sandbox: missing", batchtest.Outcome{Missing: true}},
		{"sandbox: never", batchtest.Outcome{Never: true}},
		{"sandbox: delay 3s", batchtest.Outcome{Status: 200, Delay: 3 * time.Second}},
		{"sandbox: delay 3s status 500", batchtest.Outcome{Status: 500, Delay: 3 * time.Second}},
		{"sandbox: status 99", batchtest.Outcome{Status: 200}},
		{"sandbox: dance", batchtest.Outcome{Status: 200}},
		{"status 429", batchtest.Outcome{Status: 200}},
	}
	for _, tt := range tests {
		got := answerLine(chatLine(tt.prompt))
		got.Body = nil
		if got.Status != tt.want.Status || got.Delay != tt.want.Delay || got.Code != tt.want.Code ||
			got.Message != tt.want.Message || got.Missing != tt.want.Missing || got.Never != tt.want.Never {
			t.Errorf("%q: %+v; want %+v", tt.prompt, got, tt.want)
		}
	}
}

func TestPrompt(t *testing.T) {
	for body, want := range map[string]string{
		`{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}]}`:                 "b",
		`{"messages":[{"role":"user","content":[{"type":"image_url"},{"type":"text","text":"c"}]}]}`: "c",
		`{"input":"d"}`:       "d",
		`{"input":["e","f"]}`: "f",
		`{"input":[1,2]}`:     "2",
		`{"input":[{"role":"user","content":[{"type":"input_text","text":"g"}]}]}`: "g",
		`{"prompt":"h"}`:       "h",
		`{"prompt":["i","j"]}`: "j",
		`{"messages":[]}`:      "[]",
		`{}`:                   "",
	} {
		if got := prompt([]byte(body)); got != want {
			t.Errorf("prompt of %s is %q, want %q", body, got, want)
		}
	}
}

func TestCallTool(t *testing.T) {
	chat := answerLine(chatLine(`sandbox: call f {"a":1}`)).Body
	if got := gjson.GetBytes(chat, "choices.0.message.tool_calls.0.function").Raw; got != `{"arguments":"{\"a\":1}","name":"f"}` {
		t.Errorf("the tool call is %s", got)
	}
	if gjson.GetBytes(chat, "choices.0.message.content").Type != gjson.Null {
		t.Errorf("the message has content in addition to the tool call: %s", chat)
	}
	for url, body := range map[string]string{
		"/v1/embeddings": `{"input":"sandbox: call f"}`, "/v1/completions": `{"prompt":"sandbox: call f"}`, "/v1/moderations": `{"input":"sandbox: call f"}`,
	} {
		if got := answerLine(batchtest.Line{URL: url, Body: []byte(body)}).Body; got != nil {
			t.Errorf("%s calls a tool: %s", url, got)
		}
	}
}

// The sandbox answers every prompt with valid JSON.
func FuzzAnswerLine(f *testing.F) {
	f.Add("/v1/chat/completions", "sandbox: call f {")
	f.Add("/v1/responses", "sandbox: delay 1s call f {\"a\":1}")
	f.Add("/v1/embeddings", "sandbox: status -1")
	f.Add("/v1/completions", "sandbox: call f {}")
	f.Add("/v1/moderations", "sandbox: missing")
	f.Add("/v1/images/generations", "a")
	f.Fuzz(func(t *testing.T, url, prompt string) {
		l := chatLine(prompt)
		l.URL = url
		if body := answerLine(l).Body; body != nil && !json.Valid(body) {
			t.Errorf("%q is answered with %q", prompt, body)
		}
	})
}
