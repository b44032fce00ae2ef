package sse_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/internal/sse"
)

var update = flag.Bool("update", false, "rewrite the streams in testdata")

// fixtures returns the bodies in a folder of testdata. The keys are the file names without .json.
func fixtures(t testing.TB, folder string) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", folder, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures in testdata/%s: %v", folder, err)
	}
	bodies := map[string][]byte{}
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		bodies[strings.TrimSuffix(filepath.Base(file), ".json")] = body
	}
	return bodies
}

// chatBodies returns the chat fixtures, and generated bodies that are too large for a file.
func chatBodies(t testing.TB) map[string][]byte {
	t.Helper()
	bodies := fixtures(t, "chat")
	emoji := strings.Repeat("😀", 349<<10/4)
	bodies["large text"] = chatBody(`"content":"`+emoji+`","refusal":null`, `null`)
	bodies["large escaped text"] = chatBody(`"content":"`+strings.Repeat(`\ud83d\ude00\n\\`, 10_000)+`"`, `null`)
	bodies["large refusal"] = chatBody(`"content":null,"refusal":"`+emoji+`"`, `null`)
	bodies["large arguments"] = chatBody(`"content":null,"refusal":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"`+
		strings.Repeat(`{\"a\":\"é\"}`, 10_000)+`"}}]`, `null`)
	bodies["large audio"] = chatBody(`"content":null,"refusal":null,"audio":{"id":"a","data":"`+strings.Repeat("QUJD", 50_000)+
		`","expires_at":1,"transcript":"`+strings.Repeat("la ", 10_000)+`"}`, `null`)
	bodies["large logprobs"] = chatBody(`"content":"`+strings.Repeat(" word", 2_000)+`","refusal":null`,
		`{"content":[`+logprobs(" word", 2_000)+`],"refusal":null}`)
	return bodies
}

// chatBody returns a completion with one choice.
func chatBody(message, logprobs string) []byte {
	return []byte(`{"id":"chatcmpl-0","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",` +
		message + `},"logprobs":` + logprobs + `,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}`)
}

// logprobs returns n log probabilities for the token, as the elements of a JSON array.
func logprobs(token string, n int) string {
	element := fmt.Sprintf(`{"token":%q,"logprob":-0.5,"bytes":null,"top_logprobs":[{"token":%q,"logprob":-0.5,"bytes":null}]}`, token, token)
	return strings.TrimSuffix(strings.Repeat(element+",", n), ",")
}

// responseBodies returns the Responses fixtures, and a generated body that is too large for a file.
func responseBodies(t testing.TB) map[string][]byte {
	t.Helper()
	bodies := fixtures(t, "responses")
	bodies["large"] = []byte(`{"id":"resp_1","object":"response","created_at":1,"model":"m","status":"completed","output":[` +
		`{"id":"rs_1","type":"reasoning","summary":[{"type":"summary_text","text":"` + strings.Repeat("so ", 5_000) + `"}]},` +
		`{"id":"msg_1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"` +
		strings.Repeat(" word", 500) + strings.Repeat("😀", 20_000) + `","annotations":[],"logprobs":[` + logprobs(" word", 500) + `]}]},` +
		`{"id":"fc_1","type":"function_call","status":"completed","call_id":"c","name":"f","arguments":"` + strings.Repeat(`\"`, 10_000) + `"}]}`)
	return bodies
}

func appendChat(t testing.TB, body []byte, includeUsage bool) []byte {
	t.Helper()
	stream, err := sse.AppendChat(nil, body, includeUsage)
	if err != nil {
		t.Fatalf("AppendChat: %v", err)
	}
	return stream
}

func appendResponse(t testing.TB, body []byte) []byte {
	t.Helper()
	stream, err := sse.AppendResponse(nil, body)
	if err != nil {
		t.Fatalf("AppendResponse: %v", err)
	}
	return stream
}

func TestGolden(t *testing.T) {
	for name, body := range fixtures(t, "chat") {
		t.Run("chat/"+name, func(t *testing.T) {
			compareGolden(t, filepath.Join("testdata", "chat", name+".sse"), appendChat(t, body, true))
		})
	}
	for name, body := range fixtures(t, "responses") {
		t.Run("responses/"+name, func(t *testing.T) {
			compareGolden(t, filepath.Join("testdata", "responses", name+".sse"), appendResponse(t, body))
		})
	}
}

func compareGolden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; run with -update to rewrite the file):\n%s", file, diff)
	}
}

// An event is one server-sent event with decoded data.
type event struct {
	name string // value of the event line
	line string // the data
	data map[string]any
}

// parseEvents parses a stream strictly: each event has an optional event line, one data line with a JSON object, and a
// blank line. done reports whether the stream ends with [DONE].
func parseEvents(stream []byte) (events []event, done bool, err error) {
	blocks := strings.SplitAfter(string(stream), "\n\n")
	if last := blocks[len(blocks)-1]; last != "" {
		return nil, false, fmt.Errorf("stream ends in the middle of an event: %.100q", last)
	}
	for _, block := range blocks[:len(blocks)-1] {
		if done {
			return nil, true, fmt.Errorf("event after [DONE]: %.100q", block)
		}
		if block == "data: [DONE]\n\n" {
			done = true
			continue
		}
		e, err := parseEvent(strings.TrimSuffix(block, "\n\n"))
		if err != nil {
			return nil, done, err
		}
		events = append(events, e)
	}
	return events, done, nil
}

func parseEvent(block string) (e event, err error) {
	if name, rest, ok := strings.Cut(block, "\n"); ok {
		if e.name, ok = strings.CutPrefix(name, "event: "); !ok {
			return e, fmt.Errorf("not an event line: %.100q", name)
		}
		block = rest
	}
	var ok bool
	if e.line, ok = strings.CutPrefix(block, "data: "); !ok || strings.ContainsAny(e.line, "\r\n") {
		return e, fmt.Errorf("not one data line: %.100q", block)
	}
	e.data, err = decode([]byte(e.line))
	return e, err
}

// decode decodes a JSON object without rounding numbers.
func decode(data []byte) (map[string]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var object map[string]any
	if err := decoder.Decode(&object); err != nil {
		return nil, fmt.Errorf("%w in %.200q", err, data)
	}
	return object, nil
}

// mustParseEvents is parseEvents for streams that must be valid.
func mustParseEvents(t testing.TB, stream []byte) (events []event, done bool) {
	t.Helper()
	events, done, err := parseEvents(stream)
	if err != nil {
		t.Fatal(err)
	}
	return events, done
}
