package proxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	goopenai "github.com/sashabaranov/go-openai"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

const question = `"messages":[{"role":"user","content":"Why? Because."}]`

// TestServe checks each endpoint with an autobatcher.Transport and a batchtest
// server.
func TestServe(t *testing.T) {
	for _, test := range []struct {
		name, path, body string
		line             string // body of the batch line
		kind             string
		want             []string // parts of the response, in order
	}{
		{
			name: "chat_completions", path: "/v1/chat/completions", body: `{"model":"m",` + question + `}`,
			line: `{"model":"m",` + question + `}`, kind: "application/json", want: []string{`"object":"chat.completion"`, "Why?"},
		},
		{
			name: "embeddings", path: "/v1/embeddings", body: `{"model":"m","input":["a","b"]}`,
			line: `{"model":"m","input":["a","b"]}`, kind: "application/json", want: []string{`"embedding"`, `"embedding"`},
		},
		{
			name: "responses", path: "/v1/responses", body: `{"model":"m","input":"Why? Because."}`,
			line: `{"model":"m","input":"Why? Because."}`, kind: "application/json", want: []string{`"object":"response"`, "Why?"},
		},
		{
			name: "chat_completions_extra_params", path: "/v1/chat/completions?trace=1",
			body: `{"model":"m","temperature":0.70,"max_tokens":12345678901234567890,` + question + `}`,
			line: `{"model":"m","temperature":0.70,"max_tokens":12345678901234567890,` + question + `}`,
			kind: "application/json", want: []string{"Why?"},
		},
		{
			name: "chat_completions_stream", path: "/v1/chat/completions",
			body: `{"model":"m","stream":true,"stream_options":{"include_usage":true},` + question + `}`,
			line: `{"model":"m",` + question + `}`, kind: events,
			want: []string{`data: {`, `"object":"chat.completion.chunk"`, "Why?", `"finish_reason":"stop"`, `"total_tokens"`, "data: [DONE]\n\n"},
		},
		{
			name: "chat_completions_no_stream", path: "/v1/chat/completions", body: `{"model":"m","stream":false,` + question + `}`,
			line: `{"model":"m",` + question + `}`, kind: "application/json", want: []string{`"object":"chat.completion"`},
		},
		{
			name: "responses_stream", path: "/v1/responses", body: `{"model":"m","stream":true,"input":"Why? Because."}`,
			line: `{"model":"m","input":"Why? Because."}`, kind: events,
			want: []string{"response.created", "response.output_text.delta", "response.completed"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, p, upstream := newBatchingProxy(t, batchtest.Options{Turnaround: time.Minute}, proxy.Options{})
				res := post(t, client, test.path, test.body)
				rest := readAll(t, res)
				if res.StatusCode != 200 || res.Header.Get("Content-Type") != test.kind || res.Header.Get("Autobatcher-Batch-Id") == "" {
					t.Errorf("%s %v", res.Status, res.Header)
				}
				for _, want := range test.want {
					_, after, found := strings.Cut(rest, want)
					if !found {
						t.Fatalf("no %s in %s", want, rest)
					}
					rest = after
				}
				upload := upstream.Uploads()[0]
				if upload.APIKey != "sk-upstream" || len(upload.Lines) != 1 {
					t.Errorf("%d lines with the key %s", len(upload.Lines), upload.APIKey)
				}
				if diff := cmp.Diff(test.line, string(upload.Lines[0].Body)); diff != "" {
					t.Error(diff)
				}
				synctest.Wait()
				if u := p.Usage(); u.Answered != 1 || u.Waiting != 0 || u.BytesIn != int64(len(test.body)) || u.BytesOut == 0 {
					t.Errorf("%+v", u)
				}
			})
		})
	}
}

// slowServer completes batches after several heartbeats.
var slowServer = batchtest.Options{Turnaround: 20 * time.Minute}

// newOpenAIClient returns an openai-go client for the proxy.
func newOpenAIClient(client *http.Client, more ...option.RequestOption) openai.Client {
	return openai.NewClient(append([]option.RequestOption{
		option.WithBaseURL("http://proxy/v1"), option.WithAPIKey("dummy"), option.WithHTTPClient(client),
	}, more...)...)
}

var chatParams = openai.ChatCompletionNewParams{
	Model:    "m",
	Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Why? Because.")},
}

// TestOpenAIGo sends each kind of call with openai-go, with heartbeats before the
// response.
func TestOpenAIGo(t *testing.T) {
	for name, ask := range map[string]func(context.Context, openai.Client) (string, error){
		"chat": func(ctx context.Context, c openai.Client) (string, error) {
			res, err := c.Chat.Completions.New(ctx, chatParams)
			if err != nil {
				return "", err
			}
			return res.Choices[0].Message.Content, nil
		},
		"chat with a timeout": func(ctx context.Context, c openai.Client) (string, error) {
			res, err := c.Chat.Completions.New(ctx, chatParams, option.WithRequestTimeout(time.Hour))
			if err != nil {
				return "", err
			}
			return res.Choices[0].Message.Content, nil
		},
		"chat stream": func(ctx context.Context, c openai.Client) (string, error) {
			stream := c.Chat.Completions.NewStreaming(ctx, chatParams)
			var acc openai.ChatCompletionAccumulator
			for stream.Next() {
				if !acc.AddChunk(stream.Current()) {
					return "", errors.New("the chunk belongs to a different completion")
				}
			}
			if stream.Err() != nil {
				return "", stream.Err()
			}
			return acc.Choices[0].Message.Content, nil
		},
		"response": func(ctx context.Context, c openai.Client) (string, error) {
			res, err := c.Responses.New(ctx, responses.ResponseNewParams{Model: "m", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Why? Because.")}})
			if err != nil {
				return "", err
			}
			return res.OutputText(), nil
		},
		"response stream": func(ctx context.Context, c openai.Client) (string, error) {
			stream := c.Responses.NewStreaming(ctx, responses.ResponseNewParams{Model: "m", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Why? Because.")}})
			var text string
			for stream.Next() {
				text += stream.Current().AsResponseOutputTextDelta().Delta
			}
			return text, stream.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, p, upstream := newBatchingProxy(t, slowServer, proxy.Options{})
				got, err := ask(t.Context(), newOpenAIClient(client))
				if err != nil || !strings.Contains(got, "Why?") {
					t.Errorf("%q, %v", got, err)
				}
				synctest.Wait()
				if n := len(upstream.Executed()); n != 1 || p.Usage().Answered != 1 {
					t.Errorf("%d lines, %+v", n, p.Usage())
				}
			})
		})
	}
}

// TestEmbeddingsOpenAIGo checks that openai-go can parse an embeddings response
// after heartbeats.
func TestEmbeddingsOpenAIGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, _ := newBatchingProxy(t, slowServer, proxy.Options{})
		ai := newOpenAIClient(client)
		res, err := ai.Embeddings.New(t.Context(), openai.EmbeddingNewParams{Model: "m", Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"a", "b"}}})
		if err != nil || len(res.Data) != 2 || len(res.Data[1].Embedding) == 0 {
			t.Errorf("%v %v", res, err)
		}
	})
}

// TestErrorOpenAIGo checks that an error within the grace becomes openai-go's typed
// error, and that openai-go does not retry.
func TestErrorOpenAIGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: 400} }
		client, _, upstream := newBatchingProxy(t, batchtest.Options{Turnaround: time.Minute, Answer: answer}, proxy.Options{})
		ai := newOpenAIClient(client)
		_, err := ai.Chat.Completions.New(t.Context(), chatParams)
		var typed *openai.Error
		if !errors.As(err, &typed) || typed.StatusCode != 400 || typed.Message == "" {
			t.Errorf("%v", err)
		}
		if n := len(upstream.Executed()); n != 1 {
			t.Errorf("%d lines", n)
		}
	})
}

// TestErrorAfterCommitOpenAIGo checks that openai-go reports an error also after
// 200 was committed.
func TestErrorAfterCommitOpenAIGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := slowServer
		server.Answer = func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: 400} }
		client, _, _ := newBatchingProxy(t, server, proxy.Options{})
		ai := newOpenAIClient(client)
		if res, err := ai.Chat.Completions.New(t.Context(), chatParams); err == nil {
			t.Errorf("JSON: got %v, want an error", res)
		}
		stream := ai.Chat.Completions.NewStreaming(t.Context(), chatParams)
		for stream.Next() {
			if chunk := stream.Current(); chunk.Choices[0].FinishReason != "" || chunk.Choices[0].Delta.RawJSON() != "{}" {
				t.Fatalf("unexpected chunk: %v", chunk.RawJSON())
			}
		}
		if stream.Err() == nil {
			t.Error("stream: no error")
		}
	})
}

// newGoOpenAIClient returns a go-openai client for the proxy.
func newGoOpenAIClient(client *http.Client) *goopenai.Client {
	config := goopenai.DefaultConfig("dummy")
	config.BaseURL = "http://proxy/v1"
	config.HTTPClient = client
	return goopenai.NewClientWithConfig(config)
}

var goOpenAIParams = goopenai.ChatCompletionRequest{
	Model:    "m",
	Messages: []goopenai.ChatCompletionMessage{{Role: "user", Content: "Why? Because."}},
}

// TestGoOpenAIStream holds a stream for over 900 heartbeats, because go-openai fails
// after 300 empty messages.
func TestGoOpenAIStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, _ := newBatchingProxy(t, slowServer, proxy.Options{Heartbeat: time.Second})
		ai := newGoOpenAIClient(client)
		res, err := ai.CreateChatCompletion(t.Context(), goOpenAIParams)
		if err != nil || !strings.Contains(res.Choices[0].Message.Content, "Why?") {
			t.Errorf("%v %v", res, err)
		}
		stream, err := ai.CreateChatCompletionStream(t.Context(), goOpenAIParams)
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		ids, text := map[string]bool{}, ""
		for {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			ids[chunk.ID] = true
			text += chunk.Choices[0].Delta.Content
		}
		if !strings.Contains(text, "Why?") || len(ids) != 1 {
			t.Errorf("%q under the ids %v", text, ids)
		}
	})
}

// TestErrorAfterCommitGoOpenAI checks that go-openai reports the error message
// after chunks that were heartbeats.
func TestErrorAfterCommitGoOpenAI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := slowServer
		server.Answer = func(batchtest.Line) batchtest.Outcome {
			return batchtest.Outcome{Status: 400, Body: json.RawMessage(`{"error":{"message":"no such thing","type":"t","param":null,"code":null}}`)}
		}
		client, _, _ := newBatchingProxy(t, server, proxy.Options{})
		stream, err := newGoOpenAIClient(client).CreateChatCompletionStream(t.Context(), goOpenAIParams)
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		for err == nil {
			_, err = stream.Recv()
		}
		var typed *goopenai.APIError
		if !errors.As(err, &typed) || typed.Message != "no such thing" {
			t.Errorf("%v", err)
		}
	})
}

// TestRetryIsPaidOnce checks that a retry after a client timeout takes over the
// line of the first attempt.
func TestRetryIsPaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, upstream := newBatchingProxy(t, slowServer, proxy.Options{Grace: -1})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://proxy/v1/embeddings", strings.NewReader(`{"model":"m","input":"a"}`))
		if _, err := client.Do(r); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		res := post(t, client, "/v1/embeddings", `{"model":"m","input":"a"}`)
		if readAll(t, res); res.StatusCode != 200 {
			t.Error(res.Status)
		}
		for key, n := range upstream.Paid() {
			if n != 1 {
				t.Errorf("%s was paid %d times", key, n)
			}
		}
	})
}

// TestConcurrentCallsShareBatch checks that concurrent calls share a batch, and
// that each call gets its own result.
func TestConcurrentCallsShareBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, p, upstream := newBatchingProxy(t, slowServer, proxy.Options{})
		ai := newOpenAIClient(client)
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				word := strings.Repeat("x", i+1)
				params := chatParams
				params.Messages = []openai.ChatCompletionMessageParamUnion{openai.UserMessage(word + ". Or not.")}
				res, err := ai.Chat.Completions.New(t.Context(), params)
				if err != nil || !strings.HasSuffix(res.Choices[0].Message.Content, " "+word+".") {
					t.Errorf("%s: %v %v", word, res, err)
				}
			})
		}
		wg.Wait()
		if n := len(upstream.Batches()); n != 1 {
			t.Errorf("%d batches", n)
		}
		synctest.Wait()
		if u := p.Usage(); u.Answered != 50 || u.TotalTokens == 0 || u.TotalTokens != u.PromptTokens+u.CompletionTokens {
			t.Errorf("%+v", u)
		}
	})
}
