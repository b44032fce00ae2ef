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

// TestServe holds the seed's test_serve, on a real Transport and a Batch API.
func TestServe(t *testing.T) {
	for _, test := range []struct {
		name, path, body string
		line             string // what was sent upstream
		kind             string
		want             []string // in the answer, in this order
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
			// The seed sent [DONE] too, which this API does not have.
			want: []string{"response.created", "response.output_text.delta", "response.completed"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, p, upstream := batching(t, batchtest.Options{Turnaround: time.Minute}, proxy.Options{})
				res := post(t, client, test.path, test.body)
				rest := all(t, res)
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
					t.Errorf("%d lines as %s", len(upload.Lines), upload.APIKey)
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

// slow is a Batch API whose answers come after several heartbeats.
var slow = batchtest.Options{Turnaround: 20 * time.Minute}

// openAI is an openai-go client at the proxy.
func openAI(client *http.Client, more ...option.RequestOption) openai.Client {
	return openai.NewClient(append([]option.RequestOption{
		option.WithBaseURL("http://proxy/v1"), option.WithAPIKey("dummy"), option.WithHTTPClient(client),
	}, more...)...)
}

var chatParams = openai.ChatCompletionNewParams{
	Model:    "m",
	Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Why? Because.")},
}

// TestOpenAIGo: the official client, through heartbeats, in all it can ask.
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
			var all openai.ChatCompletionAccumulator
			for stream.Next() {
				if !all.AddChunk(stream.Current()) {
					return "", errors.New("a chunk of another completion")
				}
			}
			if stream.Err() != nil {
				return "", stream.Err()
			}
			return all.Choices[0].Message.Content, nil
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
				client, p, upstream := batching(t, slow, proxy.Options{})
				got, err := ask(t.Context(), openAI(client))
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

// TestEmbeddingsOpenAIGo needs no heartbeat to differ, but must parse after them.
func TestEmbeddingsOpenAIGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, _ := batching(t, slow, proxy.Options{})
		ai := openAI(client)
		res, err := ai.Embeddings.New(t.Context(), openai.EmbeddingNewParams{Model: "m", Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"a", "b"}}})
		if err != nil || len(res.Data) != 2 || len(res.Data[1].Embedding) == 0 {
			t.Errorf("%v %v", res, err)
		}
	})
}

// TestErrorsOpenAIGo: an error in the grace is the typed error that it would
// have been without a batch, and is asked for once.
func TestErrorsOpenAIGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: 400} }
		client, _, upstream := batching(t, batchtest.Options{Turnaround: time.Minute, Answer: answer}, proxy.Options{})
		ai := openAI(client)
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

// TestLateErrorsOpenAIGo: after the grace it still is an error.
func TestLateErrorsOpenAIGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := slow
		server.Answer = func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: 400} }
		client, _, _ := batching(t, server, proxy.Options{})
		ai := openAI(client)
		if res, err := ai.Chat.Completions.New(t.Context(), chatParams); err == nil {
			t.Errorf("JSON: no error but %v", res)
		}
		stream := ai.Chat.Completions.NewStreaming(t.Context(), chatParams)
		for stream.Next() {
			t.Errorf("a chunk: %v", stream.Current())
		}
		if stream.Err() == nil {
			t.Error("stream: no error")
		}
	})
}

// goOpenAIClient is a go-openai client at the proxy.
func goOpenAIClient(client *http.Client) *goopenai.Client {
	config := goopenai.DefaultConfig("dummy")
	config.BaseURL = "http://proxy/v1"
	config.HTTPClient = client
	return goopenai.NewClientWithConfig(config)
}

var goOpenAIRequest = goopenai.ChatCompletionRequest{
	Model:    "m",
	Messages: []goopenai.ChatCompletionMessage{{Role: "user", Content: "Why? Because."}},
}

// TestGoOpenAI counts the empty messages of a stream and gives up at 300: this
// one is held for more than a hundred heartbeats a minute.
func TestGoOpenAI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, _ := batching(t, slow, proxy.Options{Heartbeat: time.Second})
		ai := goOpenAIClient(client)
		res, err := ai.CreateChatCompletion(t.Context(), goOpenAIRequest)
		if err != nil || !strings.Contains(res.Choices[0].Message.Content, "Why?") {
			t.Errorf("%v %v", res, err)
		}
		stream, err := ai.CreateChatCompletionStream(t.Context(), goOpenAIRequest)
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

// TestLateErrorsGoOpenAI: the message arrives, after chunks that were heartbeats.
func TestLateErrorsGoOpenAI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := slow
		server.Answer = func(batchtest.Line) batchtest.Outcome {
			return batchtest.Outcome{Status: 400, Body: json.RawMessage(`{"error":{"message":"no such thing","type":"t","param":null,"code":null}}`)}
		}
		client, _, _ := batching(t, server, proxy.Options{})
		stream, err := goOpenAIClient(client).CreateChatCompletionStream(t.Context(), goOpenAIRequest)
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

// TestRetryPaysOnce: a client that gives up and asks again gets the line of its
// first try.
func TestRetryPaysOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, upstream := batching(t, slow, proxy.Options{Grace: -1})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://proxy/v1/embeddings", strings.NewReader(`{"model":"m","input":"a"}`))
		if _, err := client.Do(r); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		res := post(t, client, "/v1/embeddings", `{"model":"m","input":"a"}`)
		if all(t, res); res.StatusCode != 200 {
			t.Error(res.Status)
		}
		for key, n := range upstream.Paid() {
			if n != 1 {
				t.Errorf("%s was paid %d times", key, n)
			}
		}
	})
}

// TestManyCallersOneBatch: concurrent calls ride together, each with its own answer.
func TestManyCallersOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, p, upstream := batching(t, slow, proxy.Options{})
		ai := openAI(client)
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
