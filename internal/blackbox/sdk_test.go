package blackbox_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	goopenai "github.com/sashabaranov/go-openai"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// official is openai-go as its users set it up, retries and all.
func (s *scene) official(opts ...option.RequestOption) openai.Client {
	return openai.NewClient(append([]option.RequestOption{
		option.WithHTTPClient(s.tr.Client()), option.WithBaseURL(s.srv.URL), option.WithAPIKey("sk-test"),
	}, opts...)...)
}

// community is sashabaranov/go-openai the same way.
func (s *scene) community() *goopenai.Client {
	config := goopenai.DefaultConfig("sk-test")
	config.BaseURL, config.HTTPClient = s.srv.URL, s.tr.Client()
	return goopenai.NewClientWithConfig(config)
}

func chatParams(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: "m", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)}}
}

// at checks that no time but a window and a poll went by.
func (s *scene) at(want time.Duration) {
	s.Helper()
	if got := s.elapsed(); got != want {
		s.Errorf("answered at %v, want %v", got, want)
	}
}

func TestOpenAIGo(t *testing.T) {
	setup{}.run(t, "chat", func(s *scene) {
		client := s.official()
		got, err := client.Chat.Completions.New(s.Context(), chatParams("Hello"))
		if err != nil || got.Choices[0].Message.Content != "You said: Hello" || got.Usage.TotalTokens == 0 {
			s.Errorf("%+v, %v", got, err)
		}
		s.at(15 * time.Second)
	})
	// seed: test_embeddings/embedding_result_parsed_correctly
	setup{}.run(t, "embedding_result_parsed_correctly", func(s *scene) {
		client := s.official()
		got, err := client.Embeddings.New(s.Context(), openai.EmbeddingNewParams{
			Model: "m", Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"a", "b"}},
		})
		if err != nil || len(got.Data) != 2 || len(got.Data[1].Embedding) == 0 {
			s.Errorf("%+v, %v", got, err)
		}
		s.at(15 * time.Second)
	})
	// seed: test_responses/response_result_parsed_correctly
	setup{}.run(t, "response_result_parsed_correctly", func(s *scene) {
		client := s.official()
		got, err := client.Responses.New(s.Context(), responses.ResponseNewParams{
			Model: "m", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Hello")},
		})
		if err != nil || got.OutputText() != "You said: Hello" {
			s.Errorf("%+v, %v", got, err)
		}
		s.at(15 * time.Second)
	})
	// seed: test_subclass/inherited_attributes_accessible
	setup{server: batchtest.Options{Models: []string{"m"}}}.run(t, "inherited_attributes_accessible", func(s *scene) {
		client := s.official()
		models, err := client.Models.List(s.Context())
		if err != nil || len(models.Data) != 1 {
			s.Errorf("models: %+v, %v", models, err)
		}
		batches, err := client.Batches.List(s.Context(), openai.BatchListParams{})
		if err != nil || len(batches.Data) != 0 {
			s.Errorf("batches: %+v, %v", batches, err)
		}
		file, err := client.Files.New(s.Context(), openai.FileNewParams{Purpose: "batch", File: strings.NewReader("{}")})
		if err != nil || file.ID == "" {
			s.Errorf("file: %+v, %v", file, err)
		}
		s.at(0)
	})
	// Per-call options were dropped: headers, query and body fields of one's own.
	setup{}.run(t, "extra body fields", func(s *scene) {
		client := s.official()
		_, err := client.Chat.Completions.New(s.Context(), chatParams("a"), option.WithJSONSet("vendor", map[string]any{"x": 1}))
		if err != nil || !strings.Contains(string(s.upload().Lines[0].Body), `"vendor":{"x":1}`) {
			s.Errorf("%v: %s", err, s.upload().Content)
		}
	})
}

// SDKs get typed errors. They retry a line only if its failure may have passed.
func TestTypedErrors(t *testing.T) {
	const bad = `{"error":{"message":"Unknown parameter","type":"invalid_request_error","param":"x","code":"unknown_parameter"}}`
	tests := []struct {
		name    string
		outcome batchtest.Outcome
		want    openai.Error
	}{
		{"400", batchtest.Outcome{Status: 400, Body: []byte(bad)}, openai.Error{StatusCode: 400, Code: "unknown_parameter", Param: "x", Type: "invalid_request_error", Message: "Unknown parameter"}},
		{"429", batchtest.Outcome{Status: 429}, openai.Error{StatusCode: 429, Type: "rate_limit_error", Message: "Too Many Requests."}},
		{"500", batchtest.Outcome{Status: 500}, openai.Error{StatusCode: 500, Type: "server_error", Message: "Internal Server Error."}},
		{"409", batchtest.Outcome{Status: 409}, openai.Error{StatusCode: 409, Type: "invalid_request_error", Message: "Conflict."}},
		{"text", batchtest.Outcome{Status: 503, Body: []byte("overloaded")}, openai.Error{StatusCode: 503, Type: "server_error", Message: "overloaded"}},
		{"a text under error", batchtest.Outcome{Status: 400, Body: []byte(`{"error":"why"}`)}, openai.Error{StatusCode: 400, Type: "invalid_request_error", Message: `{"error":"why"}`}},
		{"not HTTP's", batchtest.Outcome{Code: "request_timeout", Message: "slow"}, openai.Error{StatusCode: 424, Code: "request_timeout", Type: "batch_error"}},
	}
	for _, test := range tests {
		setup{server: batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return test.outcome }}}.run(t, test.name, func(s *scene) {
			client := s.official()
			_, err := client.Chat.Completions.New(s.Context(), chatParams("a"))
			var got *openai.Error
			if !errors.As(err, &got) {
				s.Fatalf("error %v, want an *openai.Error", err)
			}
			if test.want.Message == "" {
				test.want.Message = got.Message
			}
			if got.StatusCode != test.want.StatusCode || got.Code != test.want.Code || got.Param != test.want.Param || got.Type != test.want.Type || got.Message != test.want.Message {
				s.Errorf("got %d %q %q %q %q, want %+v", got.StatusCode, got.Code, got.Param, got.Type, got.Message, test.want)
			}
			if status := test.outcome.Status; status == 429 || status >= 500 {
				s.sent(1, 1, 1) // the SDK makes three calls
				return
			}
			s.at(15 * time.Second)
			s.sent(1)
		})
		setup{server: batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return test.outcome }}}.run(t, test.name+" at go-openai", func(s *scene) {
			_, err := s.community().CreateChatCompletion(s.Context(), goopenai.ChatCompletionRequest{Model: "m"})
			var got *goopenai.APIError
			if !errors.As(err, &got) || got.HTTPStatusCode != test.want.StatusCode {
				s.Errorf("error %v, want an APIError of %d", err, test.want.StatusCode)
			}
			s.sent(1)
		})
	}
	setup{}.run(t, "ours is retried where that is safe", func(s *scene) {
		s.srv.Control(batchtest.OpUpload, every(70, batchtest.Status(500, nil, "{}"))...)
		client := s.official()
		if _, err := client.Chat.Completions.New(s.Context(), chatParams("a")); err != nil {
			s.Error(err)
		}
		s.sent(1)
	})
	setup{}.run(t, "closed", func(s *scene) {
		s.tr.Close()
		client := s.official()
		if _, err := client.Chat.Completions.New(s.Context(), chatParams("a")); !errors.Is(err, autobatcher.ErrClosed) || s.elapsed() > 2*time.Second {
			s.Errorf("error %v after %v", err, s.elapsed())
		}
	})
	setup{server: batchtest.Options{Turnaround: time.Hour}}.run(t, "the caller's end", func(s *scene) {
		ctx, cancel := context.WithTimeout(s.Context(), 30*time.Second)
		defer cancel()
		client := s.official()
		if _, err := client.Chat.Completions.New(ctx, chatParams("a")); !errors.Is(err, context.DeadlineExceeded) {
			s.Errorf("error %v", err)
		}
		s.at(30 * time.Second)
	})
}

// The retries of an SDK after its own timeout share one line.
func TestAnSDKsRetriesArePaidOnce(t *testing.T) {
	setup{server: batchtest.Options{Turnaround: time.Minute}}.play(t, func(s *scene) {
		impatient := &http.Client{Transport: s.tr, Timeout: 30 * time.Second} // for each try
		client := s.official(option.WithHTTPClient(impatient))
		got, err := client.Chat.Completions.New(s.Context(), chatParams("a"))
		if err != nil || got.Choices[0].Message.Content != "You said: a" {
			s.Errorf("%+v, %v at %v", got, err, s.elapsed())
		}
		for work, n := range s.srv.Paid() {
			if n != 1 {
				s.Errorf("%s was paid for %d times", work, n)
			}
		}
		s.sent(1)
	})
}

// A raw response has the headers and the HTTP response of its line.
// seed: test_with_raw_response
func TestRawResponses(t *testing.T) {
	calls := map[string]func(ctx context.Context, c openai.Client, raw option.RequestOption) (parsed string, err error){
		"create_wraps_parsed_chat_completion": func(ctx context.Context, c openai.Client, raw option.RequestOption) (string, error) {
			got, err := c.Chat.Completions.New(ctx, chatParams("a"), raw)
			return got.RawJSON(), err
		},
		"create_wraps_parsed_embedding": func(ctx context.Context, c openai.Client, raw option.RequestOption) (string, error) {
			got, err := c.Embeddings.New(ctx, openai.EmbeddingNewParams{Model: "m", Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String("a")}}, raw)
			return got.RawJSON(), err
		},
		"create_wraps_parsed_response": func(ctx context.Context, c openai.Client, raw option.RequestOption) (string, error) {
			got, err := c.Responses.New(ctx, responses.ResponseNewParams{Model: "m", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("a")}}, raw)
			return got.RawJSON(), err
		},
	}
	for name, call := range calls {
		setup{}.run(t, name, func(s *scene) { // seed: parse_returns_underlying_value, headers_is_empty_dict, http_response_is_none
			var res *http.Response
			parsed, err := call(s.Context(), s.official(), option.WithResponseInto(&res))
			if err != nil {
				s.Fatal(err)
			}
			b := s.batch()
			got := []any{res.StatusCode, res.Header.Get("X-Request-Id"), res.Header.Get("Autobatcher-Batch-Id"), res.Header.Get("Autobatcher-Custom-Id"), parsed}
			want := []any{200, "req_" + b.ID + "-0", b.ID, b.Lines[0].CustomID, string(batchtest.Echo(b.Lines[0].Line).Body)}
			if diff := cmp.Diff(want, got); diff != "" {
				s.Error(diff)
			}
			if res.Request == nil || !strings.HasPrefix(res.Request.URL.String(), s.srv.URL) {
				s.Errorf("request %+v", res.Request)
			}
		})
	}
}

// SDKs read the streams that the Transport makes of finished answers.
func TestStreamingClients(t *testing.T) {
	setup{}.run(t, "openai-go chat", func(s *scene) {
		client := s.official()
		params := chatParams("Hello")
		params.StreamOptions.IncludeUsage = openai.Bool(true)
		stream := client.Chat.Completions.NewStreaming(s.Context(), params)
		defer stream.Close()
		var sum openai.ChatCompletionAccumulator
		for stream.Next() {
			if !sum.AddChunk(stream.Current()) {
				s.Errorf("the accumulator refuses %s", stream.Current().RawJSON())
			}
		}
		if stream.Err() != nil || len(sum.Choices) != 1 || sum.Choices[0].Message.Content != "You said: Hello" || sum.Choices[0].FinishReason != "stop" || sum.Usage.TotalTokens == 0 {
			s.Errorf("%+v, %v", sum.ChatCompletion, stream.Err())
		}
		s.at(15 * time.Second)
		if body := string(s.upload().Content); strings.Contains(body, "stream") {
			s.Errorf("the line says %s", body)
		}
	})
	setup{}.run(t, "openai-go responses", func(s *scene) {
		client := s.official()
		stream := client.Responses.NewStreaming(s.Context(), responses.ResponseNewParams{
			Model: "m", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Hello")},
		})
		defer stream.Close()
		text, last := "", responses.ResponseStreamEventUnion{}
		for n := int64(0); stream.Next(); n++ {
			last = stream.Current()
			text += last.Delta
			if last.SequenceNumber != n {
				s.Errorf("event %d has number %d", n, last.SequenceNumber)
			}
		}
		if stream.Err() != nil || text != "You said: Hello" || last.Type != "response.completed" || last.Response.OutputText() != text {
			s.Errorf("%q, last %s, %v", text, last.Type, stream.Err())
		}
	})
	setup{server: batchtest.Options{FailRate: 1}}.run(t, "openai-go, a failed line", func(s *scene) {
		client := s.official()
		stream := client.Chat.Completions.NewStreaming(s.Context(), chatParams("Hello"))
		var failed *openai.Error
		if stream.Next() || !errors.As(stream.Err(), &failed) || failed.StatusCode != 500 {
			s.Errorf("error %v", stream.Err())
		}
		s.sent(1, 1, 1)
	})
	setup{}.run(t, "go-openai", func(s *scene) {
		stream, err := s.community().CreateChatCompletionStream(s.Context(), goopenai.ChatCompletionRequest{
			Model: "m", Messages: []goopenai.ChatCompletionMessage{{Role: "user", Content: "Hello"}},
			StreamOptions: &goopenai.StreamOptions{IncludeUsage: true},
		})
		if err != nil {
			s.Fatal(err)
		}
		defer stream.Close()
		text, usage := "", 0
		for {
			chunk, err := stream.Recv()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					s.Error(err)
				}
				break
			}
			if chunk.Usage != nil {
				usage += chunk.Usage.TotalTokens
			}
			for _, c := range chunk.Choices {
				text += c.Delta.Content
			}
		}
		if text != "You said: Hello" || usage == 0 {
			s.Errorf("text %q, %d tokens", text, usage)
		}
	})
}

func TestGoOpenAI(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		chat, err := s.community().CreateChatCompletion(s.Context(), goopenai.ChatCompletionRequest{
			Model: "m", Messages: []goopenai.ChatCompletionMessage{{Role: "user", Content: "Hello"}},
		})
		if err != nil || chat.Choices[0].Message.Content != "You said: Hello" || chat.Header().Get("X-Request-Id") == "" {
			s.Errorf("%+v, %v", chat, err)
		}
		s.at(15 * time.Second)
		embedding, err := s.community().CreateEmbeddings(s.Context(), goopenai.EmbeddingRequest{Model: "m", Input: []string{"a"}})
		if err != nil || len(embedding.Data) != 1 {
			s.Errorf("%+v, %v", embedding, err)
		}
		s.at(30 * time.Second)
	})
}

// Fifty goroutines with one client are one batch: what the library is for.
func TestConcurrentSDKCalls(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		client := s.official()
		for range 50 {
			go func() {
				if _, err := client.Chat.Completions.New(s.Context(), chatParams("the same prompt, sampled")); err != nil {
					s.Error(err)
				}
			}()
		}
		s.until(16 * time.Second)
		synctest.Wait()
		s.sent(50)
	})
}
