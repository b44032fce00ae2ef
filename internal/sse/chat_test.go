package sse_test

import (
	"bufio"
	"bytes"
	stdcmp "cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/sse"
)

func TestChatStreamMatchesCompletion(t *testing.T) {
	for name, body := range chatBodies(t) {
		t.Run(name, func(t *testing.T) {
			want, err := decode(body)
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(want["choices"].([]any), byIndex)
			events, done := mustParseEvents(t, appendChat(t, body, true))
			if !done {
				t.Error("no [DONE]")
			}
			if diff := cmp.Diff(pruned(want), pruned(rebuild(t, events))); diff != "" {
				t.Errorf("rebuilt completion (-want +got):\n%s", diff)
			}
		})
	}
}

func byIndex(a, b any) int {
	return stdcmp.Compare(indexOf(a), indexOf(b))
}

func indexOf(value any) int64 {
	index, _ := value.(map[string]any)["index"].(json.Number)
	n, _ := index.Int64()
	return n
}

// streamed are the names of the strings that arrive in pieces. All other fields arrive once.
var streamed = []string{"content", "refusal", "arguments", "input", "transcript", "data"}

// rebuild joins chunks to a completion in the way of a client: rebuild concatenates texts, appends lists of log
// probabilities, and reports an error if any other field arrives twice with different values.
func rebuild(t *testing.T, chunks []event) map[string]any {
	t.Helper()
	completion := map[string]any{}
	choices := []any{}
	for _, chunk := range chunks {
		for name, value := range chunk.data {
			old, seen := completion[name]
			switch {
			case name == "choices":
			case name == "usage" && old != nil:
				t.Errorf("usage came twice or is not last")
			case seen && name != "usage" && !cmp.Equal(old, value):
				t.Errorf("%s was %v and is %v", name, old, value)
			default:
				completion[name] = value
			}
		}
		for _, value := range chunk.data["choices"].([]any) {
			choices = rebuildChoice(t, choices, value.(map[string]any))
		}
	}
	completion["object"] = "chat.completion"
	completion["choices"] = choices
	return completion
}

func rebuildChoice(t *testing.T, choices []any, chunk map[string]any) []any {
	t.Helper()
	current := indexOf(chunk)
	switch last := int64(len(choices)) - 1; {
	case current == last+1:
		choices = append(choices, map[string]any{"index": chunk["index"], "message": map[string]any{}, "logprobs": map[string]any{}})
	case current != last:
		t.Errorf("choice %d after choice %d", current, last)
	}
	choice := choices[len(choices)-1].(map[string]any)
	if choice["finish_reason"] != nil {
		t.Errorf("chunk after the finish reason: %v", chunk)
	}
	join(t, choice["message"].(map[string]any), chunk["delta"].(map[string]any))
	if probs, ok := chunk["logprobs"].(map[string]any); ok {
		join(t, choice["logprobs"].(map[string]any), probs)
	}
	for name, value := range chunk {
		if !slices.Contains([]string{"delta", "logprobs", "index"}, name) {
			choice[name] = value
		}
	}
	return choices
}

// join adds a delta to the fields of the earlier deltas.
func join(t *testing.T, whole, delta map[string]any) {
	t.Helper()
	for name, value := range delta {
		switch old := whole[name].(type) {
		case nil:
			whole[name] = value
			if name == "tool_calls" {
				whole[name] = joinCalls(t, nil, value.([]any))
			}
		case string:
			piece, ok := value.(string)
			if !ok || !slices.Contains(streamed, name) {
				t.Errorf("%s came twice: %v, %v", name, old, value)
			}
			whole[name] = old + piece
		case []any:
			if name == "tool_calls" {
				whole[name] = joinCalls(t, old, value.([]any))
			} else if value != nil {
				whole[name] = append(old, value.([]any)...)
			}
		case map[string]any:
			join(t, old, value.(map[string]any))
		default:
			t.Errorf("%s came twice: %v, %v", name, old, value)
		}
	}
}

func joinCalls(t *testing.T, calls, deltas []any) []any {
	t.Helper()
	if len(deltas) != 1 {
		t.Errorf("%d tool calls in a chunk, want 1", len(deltas))
	}
	for _, value := range deltas {
		delta := maps.Clone(value.(map[string]any))
		index := indexOf(delta)
		delete(delta, "index")
		if index == int64(len(calls)) {
			calls = append(calls, map[string]any{})
		}
		if index != int64(len(calls))-1 {
			t.Fatalf("tool call %d while call %d is written", index, len(calls)-1)
		}
		join(t, calls[index].(map[string]any), delta)
	}
	return calls
}

// pruned removes values that a stream omits: nulls, empty lists and empty objects.
func pruned(value any) any {
	switch value := value.(type) {
	case map[string]any:
		kept := map[string]any{}
		for name, v := range value {
			if v = pruned(v); v != nil {
				kept[name] = v
			}
		}
		if len(kept) > 0 {
			return kept
		}
		return nil
	case []any:
		var kept []any
		for _, v := range value {
			kept = append(kept, pruned(v))
		}
		if kept != nil {
			return kept
		}
		return nil
	default:
		return value
	}
}

func TestChatUsageOnlyIfRequested(t *testing.T) {
	for name, body := range chatBodies(t) {
		t.Run(name, func(t *testing.T) {
			without, _ := mustParseEvents(t, appendChat(t, body, false))
			for _, chunk := range without {
				if _, ok := chunk.data["usage"]; ok {
					t.Errorf("usage in %s", chunk.line)
				}
			}
			with, _ := mustParseEvents(t, appendChat(t, body, true))
			for _, chunk := range with {
				if _, ok := chunk.data["usage"]; !ok {
					t.Errorf("no usage in %s", chunk.line)
				}
			}
			wantMore := 0
			if gjson.GetBytes(body, "usage").IsObject() {
				wantMore = 1
			}
			if got := len(with) - len(without); got != wantMore {
				t.Errorf("%d more events with usage, want %d", got, wantMore)
			}
		})
	}
}

func TestChatChunksRepeatCompletionFields(t *testing.T) {
	for name, body := range chatBodies(t) {
		t.Run(name, func(t *testing.T) {
			events, _ := mustParseEvents(t, appendChat(t, body, true))
			for _, chunk := range events {
				if got := chunk.data["object"]; got != "chat.completion.chunk" {
					t.Errorf("object %v", got)
				}
				for _, field := range []string{"id", "created", "model", "service_tier", "system_fingerprint"} {
					want := gjson.GetBytes(body, field)
					if got := gjson.Get(chunk.line, field); got.String() != want.String() {
						t.Errorf("%s is %s, want %s", field, got.Raw, want.Raw)
					}
				}
			}
		})
	}
}

// TestChatToolCallsAreNotEmpty checks each tool_calls list, because some clients fail on an empty list.
func TestChatToolCallsAreNotEmpty(t *testing.T) {
	for name, body := range chatBodies(t) {
		t.Run(name, func(t *testing.T) {
			events, _ := mustParseEvents(t, appendChat(t, body, true))
			for _, chunk := range events {
				calls := gjson.Get(chunk.line, "choices.0.delta.tool_calls")
				if calls.Exists() && calls.Get("#").Int() != 1 {
					t.Errorf("tool_calls %s", calls.Raw)
				}
			}
		})
	}
}

// TestChatVendorFieldsShareAChunk checks that fields with the same reasoning arrive in one chunk. Clients show the
// reasoning twice if the fields arrive in two chunks.
func TestChatVendorFieldsShareAChunk(t *testing.T) {
	events, _ := mustParseEvents(t, appendChat(t, fixtures(t, "chat")["vllm"], false))
	want := `{"reasoning":"Six times seven.","reasoning_content":"Six times seven."}`
	if got := gjson.Get(events[1].line, "choices.0.delta").Raw; got != want {
		t.Errorf("second chunk %s, want %s", got, want)
	}
}

func TestChatVendorFieldsAreInFirstChunk(t *testing.T) {
	for _, choices := range []string{`[]`, `[{"index":0,"message":{"content":"x"}}]`} {
		body := `{"choices":` + choices + `,"provider":"Acme","usage":{"total_tokens":1}}`
		events, _ := mustParseEvents(t, appendChat(t, []byte(body), true))
		for i, chunk := range events {
			want := ""
			if i == 0 {
				want = `"Acme"`
			}
			if got := gjson.Get(chunk.line, "provider").Raw; got != want {
				t.Errorf("chunk %d of %s has the provider %s, want %s", i, body, got, want)
			}
		}
	}
}

// TestSuccessHasNoErrorField checks that no event of a success has a field "error", because openai-go ends a stream at an
// error field with any value.
func TestSuccessHasNoErrorField(t *testing.T) {
	streams := map[string][]byte{}
	for name, body := range chatBodies(t) {
		streams["chat/"+name] = appendChat(t, body, true)
	}
	for name, body := range responseBodies(t) {
		streams["responses/"+name] = appendResponse(t, body)
	}
	escaped := bytes.Replace(fixtures(t, "chat")["vllm"], []byte(`"error":null`), []byte(`"\u0065rror":null`), 1)
	streams["chat/escaped name"] = appendChat(t, escaped, true)
	both := `{"choices":[{"index":0,"message":{"content":"x"}}],"error":{"message":"no"}}`
	streams["chat/answer and error"] = appendChat(t, []byte(both), true)
	for name, stream := range streams {
		events, _ := mustParseEvents(t, stream)
		for _, e := range events {
			if _, ok := e.data["error"]; ok {
				t.Errorf("%s: %s", name, e.line)
			}
		}
	}
}

// TestChatLinesAreShort checks the length of lines. Some clients use a bufio.Scanner with the default buffer, which fails
// at lines of 64 KiB.
func TestChatLinesAreShort(t *testing.T) {
	for name, body := range chatBodies(t) {
		t.Run(name, func(t *testing.T) {
			scanner := bufio.NewScanner(bytes.NewReader(appendChat(t, body, true)))
			for scanner.Scan() {
				if n := len(scanner.Bytes()); n > 20<<10 {
					t.Errorf("line of %d bytes", n)
				}
			}
			if err := scanner.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestChatLogprobsMatchText(t *testing.T) {
	events, _ := mustParseEvents(t, appendChat(t, chatBodies(t)["large logprobs"], false))
	for _, chunk := range events {
		var tokens strings.Builder
		for _, token := range gjson.Get(chunk.line, "choices.0.logprobs.content.#.token").Array() {
			tokens.WriteString(token.String())
		}
		if text := gjson.Get(chunk.line, "choices.0.delta.content").String(); text != tokens.String() {
			t.Errorf("text %.50q... with the tokens of %.50q...", text, tokens.String())
		}
	}
}

func TestRejectsOtherBodies(t *testing.T) {
	type appendFunc func(dst, body []byte) ([]byte, error)
	chat := func(dst, body []byte) ([]byte, error) { return sse.AppendChat(dst, body, true) }
	tests := []struct {
		name, body string
		appendTo   appendFunc
	}{
		{"chat: empty", ``, chat},
		{"chat: not JSON", `{"choices":[`, chat},
		{"chat: two values", `{"choices":[]} {}`, chat},
		{"chat: array", `[{"choices":[]}]`, chat},
		{"chat: too deep", `{"choices":[],"x":` + strings.Repeat("[", 20_000_000) + strings.Repeat("]", 20_000_000) + `}`, chat},
		{"chat: error", `{"error":{"message":"no"}}`, chat},
		{"chat: error without a choice", `{"choices":[],"error":{"message":"no"}}`, chat},
		{"chat: choices null", `{"choices":null}`, chat},
		{"chat: a response", `{"object":"response","output":[]}`, chat},
		{"response: empty", ``, sse.AppendResponse},
		{"response: string", `"output"`, sse.AppendResponse},
		{"response: error", `{"error":{"message":"no"}}`, sse.AppendResponse},
		{"response: a completion", `{"choices":[]}`, sse.AppendResponse},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.appendTo([]byte("before"), []byte(test.body))
			if err == nil || string(got) != "before" {
				t.Errorf("got %q, %v, want an unmodified dst and an error", got, err)
			}
		})
	}
}

func TestAppendModifiesOnlyDst(t *testing.T) {
	body := fixtures(t, "chat")["pretty"]
	before := bytes.Clone(body)
	stream := appendChat(t, body, true)
	after, err := sse.AppendChat([]byte(": waiting\n"), body, true)
	if err != nil {
		t.Fatal(err)
	}
	if want := ": waiting\n" + string(stream); string(after) != want {
		t.Errorf("got %q, want %q", after, want)
	}
	if !bytes.Equal(body, before) {
		t.Error("the body was changed")
	}
}

func TestChatUnusualBodies(t *testing.T) {
	tests := []struct {
		name, body string
		want       []string // choices of each chunk
	}{
		{"no message", `{"choices":[{}]}`, []string{
			`[{"index":0,"delta":{"role":"assistant","content":null,"refusal":null},"logprobs":null,"finish_reason":null}]`,
			`[{"index":0,"delta":{},"logprobs":null,"finish_reason":null}]`,
		}},
		{"arguments are not a string", `{"choices":[{"index":0,"message":{"content":null,"tool_calls":[` +
			`{"index":7,"id":"c","function":{"name":"f","arguments":{"a":1.0}}}]},"finish_reason":"stop"}]}`, []string{
			`[{"index":0,"delta":{"role":"assistant","content":null,"refusal":null},"logprobs":null,"finish_reason":null}]`,
			`[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":{"a":1.0}}}]},"logprobs":null,"finish_reason":null}]`,
			`[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]`,
		}},
		{"repeated field: the last counts", `{"choices":[{"finish_reason":"length","finish_reason":"stop"}]}`, []string{
			`[{"index":0,"delta":{"role":"assistant","content":null,"refusal":null},"logprobs":null,"finish_reason":null}]`,
			`[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]`,
		}},
		{"log probabilities without text", `{"choices":[{"index":0,"message":{"content":null},"logprobs":{"content":[{"token":"x"}]},"finish_reason":"stop"}]}`, []string{
			`[{"index":0,"delta":{"role":"assistant","content":null,"refusal":null},"logprobs":null,"finish_reason":null}]`,
			`[{"index":0,"delta":{},"logprobs":{"content":[{"token":"x"}],"refusal":null},"finish_reason":null}]`,
			`[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]`,
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			events, _ := mustParseEvents(t, appendChat(t, []byte(test.body), false))
			var got []string
			for _, chunk := range events {
				got = append(got, gjson.Get(chunk.line, "choices").Raw)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("choices (-want +got):\n%s", diff)
			}
		})
	}
}
