package sse_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/openai/openai-go/v3"
	goopenai "github.com/sashabaranov/go-openai"
	"pgregory.net/rapid"

	"github.com/autobatcher/autobatcher/internal/sse"
)

// completionBodies are finished text completions of OpenAI and of vLLM.
func completionBodies() map[string]string {
	head := `{"id":"cmpl-1","object":"text_completion","created":1,"model":"m","system_fingerprint":"fp","choices":[`
	tail := `],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}`
	long := strings.Repeat(`" word",`, 5_000) + `"!"`
	return map[string]string{
		"text":       head + `{"text":"Once upon a time","index":0,"logprobs":null,"finish_reason":"length"}` + tail,
		"two, mixed": head + `{"text":"b","index":1,"finish_reason":"stop"},{"text":"a","index":0,"finish_reason":"length"}` + tail,
		"empty":      head + `{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}` + tail,
		"long":       head + `{"text":"` + strings.Repeat("😀", 50_000) + `","index":0,"logprobs":null,"finish_reason":"stop"}` + tail,
		"logprobs": head + `{"text":" a b","index":0,"logprobs":{"tokens":[" a"," b"],"token_logprobs":[-0.5,-1e-7],"top_logprobs":[{" a":-0.5},{" b":-1}],"text_offset":[3,5]},"finish_reason":"stop"}` +
			tail,
		"long logprobs": head + `{"text":"` + strings.Repeat(" word", 5_000) + `!","index":0,"logprobs":{"tokens":[` + long + `],"token_logprobs":[null` + strings.Repeat(",-0.25", 5_000) +
			`],"top_logprobs":null,"text_offset":[` + strings.TrimSuffix(strings.Repeat("9,", 5_001), ",") + `]},"finish_reason":"stop"}` + tail,
		"vllm":       head + `{"text":"x","index":0,"logprobs":null,"finish_reason":"stop","stop_reason":128009,"prompt_logprobs":null}` + `],"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1},"kv":{"a":1}}`,
		"no choices": head + tail,
	}
}

type textChoice struct {
	Text     string
	Index    int
	Logprobs struct {
		Tokens        []string
		TokenLogprobs []json.Number     `json:"token_logprobs"`
		TopLogprobs   []json.RawMessage `json:"top_logprobs"`
		TextOffset    []int             `json:"text_offset"`
	}
	FinishReason string      `json:"finish_reason"`
	StopReason   json.Number `json:"stop_reason"`
}

type textCompletion struct {
	ID, Object, Model string
	Created           int
	Fingerprint       string `json:"system_fingerprint"`
	Choices           []textChoice
	Usage             map[string]json.Number
	KV                map[string]int
}

// What a client joins from the chunks is the completion.
func TestCompletionStreamMatchesCompletion(t *testing.T) {
	for name, body := range completionBodies() {
		t.Run(name, func(t *testing.T) {
			var want, got textCompletion
			if err := json.Unmarshal([]byte(body), &want); err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(want.Choices, func(a, b textChoice) int { return cmp.Compare(a.Index, b.Index) })
			stream, err := sse.AppendCompletion(nil, []byte(body), true)
			if err != nil {
				t.Fatal(err)
			}
			events, done := mustParseEvents(t, stream)
			if !done {
				t.Error("no [DONE]")
			}
			for _, e := range events {
				if len(e.line) > 60<<10 {
					t.Errorf("a line of %d bytes", len(e.line))
				}
				joinText(t, &got, e.line)
			}
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("joined (-want +got):\n%.2000s", diff)
			}
		})
	}
}

func joinText(t *testing.T, whole *textCompletion, line string) {
	t.Helper()
	var chunk textCompletion
	if err := json.Unmarshal([]byte(line), &chunk); err != nil {
		t.Fatal(err)
	}
	choices := whole.Choices
	for _, c := range chunk.Choices {
		if c.Index == len(choices) {
			choices = append(choices, textChoice{Index: c.Index})
		}
		to := &choices[c.Index]
		if to.FinishReason != "" {
			t.Errorf("a chunk behind the finish reason: %s", line)
		}
		if to.Text += c.Text; c.FinishReason != "" {
			to.FinishReason, to.StopReason = c.FinishReason, c.StopReason
		}
		to.Logprobs.Tokens = append(to.Logprobs.Tokens, c.Logprobs.Tokens...)
		to.Logprobs.TokenLogprobs = append(to.Logprobs.TokenLogprobs, c.Logprobs.TokenLogprobs...)
		to.Logprobs.TopLogprobs = append(to.Logprobs.TopLogprobs, c.Logprobs.TopLogprobs...)
		to.Logprobs.TextOffset = append(to.Logprobs.TextOffset, c.Logprobs.TextOffset...)
		if tokens := strings.Join(c.Logprobs.Tokens, ""); len(c.Logprobs.Tokens) > 0 && tokens != c.Text {
			t.Errorf("tokens %.100q with the text %.100q", tokens, c.Text)
		}
	}
	kv := whole.KV
	if whole.KV == nil {
		kv = chunk.KV
	}
	*whole = chunk
	whole.Choices, whole.KV = choices, kv
	if choices == nil {
		whole.Choices = []textChoice{}
	}
}

func TestCompletionUsageOnlyIfRequested(t *testing.T) {
	for _, usage := range []bool{false, true} {
		stream, err := sse.Append(nil, []byte(completionBodies()["text"]), sse.Completion, usage)
		if err != nil {
			t.Fatal(err)
		}
		events, _ := mustParseEvents(t, stream)
		for i, e := range events {
			value, named := e.data["usage"]
			last := i == len(events)-1
			if named != usage || usage && (value != nil) != last {
				t.Errorf("usage %v in event %d: %v, %v", usage, i, named, value)
			}
		}
	}
}

func TestCompletionRejectsOtherBodies(t *testing.T) {
	for _, body := range []string{``, `[]`, `{}`, `{"choices":null}`, `{"choices":{}}`, `{"error":{"message":"no"},"choices":[]}`, `{"error":{"message":"no"}}`} {
		if got, err := sse.AppendCompletion([]byte("x"), []byte(body), true); err == nil || string(got) != "x" {
			t.Errorf("%s: %q, %v", body, got, err)
		}
	}
	if got, err := sse.Append([]byte("x"), []byte(completionBodies()["text"]), sse.None, false); err == nil || string(got) != "x" {
		t.Errorf("no format: %q, %v", got, err)
	}
}

func TestOpenAIGoReadsTheCompletion(t *testing.T) {
	for _, name := range []string{"text", "two, mixed", "long", "logprobs", "vllm"} {
		stream, err := sse.AppendCompletion(nil, []byte(completionBodies()[name]), true)
		if err != nil {
			t.Fatal(err)
		}
		var want textCompletion
		if err := json.Unmarshal([]byte(completionBodies()[name]), &want); err != nil {
			t.Fatal(err)
		}
		texts, finish, usage := map[int64]string{}, map[int64]string{}, int64(0)
		s := server(stream).openai().Completions.NewStreaming(t.Context(), openai.CompletionNewParams{Model: "m"})
		for s.Next() {
			chunk := s.Current()
			for _, c := range chunk.Choices {
				texts[c.Index] += c.Text
				finish[c.Index] += string(c.FinishReason)
			}
			usage += chunk.Usage.TotalTokens
		}
		if err := s.Err(); err != nil {
			t.Fatal(err)
		}
		for _, c := range want.Choices {
			if i := int64(c.Index); texts[i] != c.Text || finish[i] != c.FinishReason {
				t.Errorf("%s: choice %d: %.50q %s", name, c.Index, texts[i], finish[i])
			}
		}
		if total, _ := want.Usage["total_tokens"].Int64(); usage != total {
			t.Errorf("%s: %d tokens, want %d", name, usage, total)
		}
	}
}

func TestGoOpenAIReadsTheCompletion(t *testing.T) {
	stream, err := sse.AppendCompletion(nil, []byte(completionBodies()["long logprobs"]), true)
	if err != nil {
		t.Fatal(err)
	}
	s, err := server(stream).goopenai().CreateCompletionStream(t.Context(), goopenai.CompletionRequest{Model: "m", Prompt: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // read only
	text, tokens, finish := "", 0, ""
	for {
		chunk, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range chunk.Choices {
			text, tokens, finish = text+c.Text, tokens+len(c.LogProbs.Tokens), finish+c.FinishReason
		}
	}
	if text != strings.Repeat(" word", 5_000)+"!" || tokens != 5_001 || finish != "stop" {
		t.Errorf("%.50q, %d tokens, %s", text, tokens, finish)
	}
}

func TestAnyCompletionTextIsComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := jsonText().Draw(t, "text")
		tokens := rapid.SliceOfN(jsonText(), 0, 4).Draw(t, "tokens")
		offsets := strings.TrimSuffix(strings.Repeat("1,", len(tokens)), ",")
		body := fmt.Sprintf(`{"choices":[{"index":0,"text":%s,"logprobs":{"tokens":[%s],"text_offset":[%s],"top_logprobs":null},"finish_reason":"stop"}]}`, raw, strings.Join(tokens, ","), offsets)
		stream, err := sse.AppendCompletion(nil, []byte(body), false)
		if err != nil {
			t.Fatal(err)
		}
		got, count := "", 0
		for _, e := range checkedEvents(t, stream) {
			var chunk textCompletion
			if err := json.Unmarshal([]byte(e.line), &chunk); err != nil {
				t.Fatal(err)
			}
			got, count = got+chunk.Choices[0].Text, count+len(chunk.Choices[0].Logprobs.Tokens)
		}
		if want := decoded(t, raw); got != want || count != len(tokens) {
			t.Fatalf("%.100q and %d tokens, want %.100q and %d", got, count, want, len(tokens))
		}
	})
}

func FuzzCompletion(f *testing.F) {
	for _, body := range completionBodies() {
		f.Add([]byte(body), true)
	}
	f.Fuzz(func(t *testing.T, body []byte, includeUsage bool) {
		stream, err := sse.AppendCompletion(nil, body, includeUsage)
		if err != nil {
			return
		}
		events, done := mustParseEvents(t, stream)
		if !done {
			t.Error("no [DONE]")
		}
		for _, e := range events {
			if _, ok := e.data["error"]; ok || e.name != "" {
				t.Errorf("event %q %s", e.name, e.line)
			}
		}
	})
}
