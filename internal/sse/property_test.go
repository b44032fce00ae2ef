package sse_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tidwall/gjson"
	"pgregory.net/rapid"

	"github.com/autobatcher/autobatcher/internal/sse"
)

// jsonText generates JSON strings as different encoders write strings: plain or escaped runes, short escapes, surrogate
// pairs, lone surrogates. Many of the strings are long enough to be split.
func jsonText() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		units := rapid.SliceOfN(rapid.OneOf(
			rapid.Map(rapid.StringN(1, 8, 32).Filter(utf8.ValidString), plainJSON),
			rapid.SampledFrom([]string{`\n`, `\"`, `\\`, `\/`, `\\u00e9`, `\u0000`, `\u2028`, `\uD83D\uDE00`, `\ud83d`, `\ude00`, "😀", "\u2028"}),
			rapid.Map(rapid.IntRange(0, 0xFFFF), func(n int) string { return fmt.Sprintf(`\u%04x`, n) }),
		), 0, 20).Draw(t, "units")
		text := strings.Join(units, "")
		shift := strings.Repeat("a", rapid.IntRange(0, 12).Draw(t, "shift"))
		return `"` + shift + strings.Repeat(text, rapid.IntRange(1, 400).Draw(t, "repeat")) + `"`
	})
}

// plainJSON returns the content of s as JSON, with as few escapes as Go's encoder allows.
func plainJSON(s string) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(s); err != nil {
		panic(err)
	}
	return strings.TrimSuffix(b.String(), "\n")[1 : b.Len()-2]
}

func decoded(t *rapid.T, raw string) string {
	var s string
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		t.Fatalf("%v in %.100q", err, raw)
	}
	return s
}

func checkedEvents(t *rapid.T, stream []byte) []event {
	events, _, err := parseEvents(stream)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func TestAnyChatTextIsComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		texts := map[string]string{}
		for _, path := range []string{"content", "refusal", "tool_calls.0.function.arguments", "audio.transcript"} {
			texts[path] = jsonText().Draw(t, path)
		}
		body := fmt.Sprintf(`{"id":"i","choices":[{"index":0,"message":{"role":"assistant","content":%s,"refusal":%s,`+
			`"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":%s}}],"audio":{"id":"a","transcript":%s}},`+
			`"logprobs":{"content":[%s]},"finish_reason":"stop"}]}`, texts["content"], texts["refusal"],
			texts["tool_calls.0.function.arguments"], texts["audio.transcript"],
			logprobs("token", rapid.IntRange(0, 300).Draw(t, "logprobs")))
		stream, err := sse.AppendChat(nil, []byte(body), false)
		if err != nil {
			t.Fatal(err)
		}
		tokens, got := int64(0), map[string]string{}
		for _, chunk := range checkedEvents(t, stream) {
			if len(chunk.line) >= 64<<10 {
				t.Errorf("line of %d bytes", len(chunk.line))
			}
			tokens += gjson.Get(chunk.line, "choices.0.logprobs.content.#").Int()
			for path := range texts {
				if value := gjson.Get(chunk.line, "choices.0.delta."+path); value.Type == gjson.String {
					got[path] += decoded(t, value.Raw)
				}
			}
		}
		for path, text := range texts {
			if want := decoded(t, text); got[path] != want {
				t.Errorf("%s is %.200q, want %.200q", path, got[path], want)
			}
		}
		if want := gjson.Get(body, "choices.0.logprobs.content.#").Int(); tokens != want {
			t.Errorf("%d tokens, want %d", tokens, want)
		}
	})
}

func TestAnyResponseTextIsComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		texts := map[string]string{}
		for _, event := range []string{
			"response.output_text", "response.refusal", "response.reasoning_summary_text", "response.reasoning_text",
			"response.function_call_arguments", "response.custom_tool_call_input",
		} {
			texts[event] = jsonText().Draw(t, event)
		}
		body := fmt.Sprintf(`{"id":"r","output":[{"id":"1","type":"message","content":[{"type":"output_text","text":%s},{"type":"refusal","refusal":%s}]},`+
			`{"id":"2","type":"reasoning","summary":[{"type":"summary_text","text":%s}],"content":[{"type":"reasoning_text","text":%s}]},`+
			`{"id":"3","type":"function_call","name":"f","arguments":%s},{"id":"4","type":"custom_tool_call","input":%s}]}`,
			texts["response.output_text"], texts["response.refusal"], texts["response.reasoning_summary_text"],
			texts["response.reasoning_text"], texts["response.function_call_arguments"], texts["response.custom_tool_call_input"])
		stream, err := sse.AppendResponse(nil, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, e := range checkedEvents(t, stream) {
			if name, ok := strings.CutSuffix(e.name, ".delta"); ok {
				got[name] += decoded(t, gjson.Get(e.line, "delta").Raw)
				if len(e.line) >= 64<<10 {
					t.Errorf("line of %d bytes", len(e.line))
				}
			}
		}
		for name, text := range texts {
			if want := decoded(t, text); got[name] != want {
				t.Errorf("%s is %.200q, want %.200q", name, got[name], want)
			}
		}
	})
}
