package sse_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	openai "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	goopenai "github.com/sashabaranov/go-openai"

	"github.com/autobatcher/autobatcher/internal/sse"
)

// A server is a RoundTripper that responds to every request with the same bytes.
type server []byte

func (s server) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK,
		Header:     http.Header{"Content-Type": {"text/event-stream; charset=utf-8"}},
		Body:       io.NopCloser(bytes.NewReader(s)),
		Request:    req,
	}, nil
}

func (s server) openai() *openai.Client {
	client := openai.NewClient(option.WithAPIKey("key"), option.WithBaseURL("http://server.test/v1"),
		option.WithHTTPClient(&http.Client{Transport: s}))
	return &client
}

func (s server) goopenai() *goopenai.Client {
	config := goopenai.DefaultConfig("key")
	config.HTTPClient = &http.Client{Transport: s}
	return goopenai.NewClientWithConfig(config)
}

// ignoring excludes struct fields with the given names from a comparison.
func ignoring(names ...string) cmp.Option {
	return cmp.FilterPath(func(path cmp.Path) bool {
		field, ok := path.Last().(cmp.StructField)
		return ok && slices.Contains(names, field.Name())
	}, cmp.Ignore())
}

// sourceJSON is the name of the field that holds the source JSON in openai-go's types.
const sourceJSON = "JSON"

func TestOpenAIGoAccumulatesTheCompletion(t *testing.T) {
	for name, body := range chatBodies(t) {
		t.Run(name, func(t *testing.T) {
			var want openai.ChatCompletion
			if err := json.Unmarshal(body, &want); err != nil {
				t.Fatal(err)
			}
			acc := openai.ChatCompletionAccumulator{}
			stream := server(appendChat(t, body, true)).openai().Chat.Completions.NewStreaming(t.Context(), openai.ChatCompletionNewParams{})
			for stream.Next() {
				if !acc.AddChunk(stream.Current()) {
					t.Fatalf("chunk refused: %s", stream.Current().RawJSON())
				}
			}
			if err := stream.Err(); err != nil {
				t.Fatal(err)
			}
			// openai-go's accumulator does not support the ignored fields.
			options := ignoring(sourceJSON, "Annotations", "Audio", "FunctionCall", "Custom")
			slices.SortFunc(want.Choices, func(a, b openai.ChatCompletionChoice) int { return int(a.Index - b.Index) })
			if diff := cmp.Diff(want, acc.ChatCompletion, options, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("accumulated completion (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGoOpenAIJoinsTheCompletion(t *testing.T) {
	for name, body := range chatBodies(t) {
		if name == "content_parts" {
			continue // go-openai's stream type has no list of parts
		}
		t.Run(name, func(t *testing.T) {
			var want goopenai.ChatCompletionResponse
			if err := json.Unmarshal(body, &want); err != nil {
				t.Fatal(err)
			}
			stream, err := server(appendChat(t, body, true)).goopenai().CreateChatCompletionStream(t.Context(), goopenai.ChatCompletionRequest{Model: "m"})
			if err != nil {
				t.Fatal(err)
			}
			got := goopenai.ChatCompletionResponse{Object: "chat.completion"}
			for {
				chunk, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				joinGoOpenAI(&got, chunk)
			}
			// go-openai's chunk type lacks the ignored fields, or has a different type for the fields.
			options := ignoring("httpHeader", "ServiceTier", "ContentFilterResults", "Bytes")
			slices.SortFunc(want.Choices, func(a, b goopenai.ChatCompletionChoice) int { return a.Index - b.Index })
			if diff := cmp.Diff(want, got, options, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("joined completion (-want +got):\n%s", diff)
			}
		})
	}
}

// joinGoOpenAI adds a chunk to a completion. go-openai has no accumulator, so programs contain code like joinGoOpenAI.
func joinGoOpenAI(whole *goopenai.ChatCompletionResponse, chunk goopenai.ChatCompletionStreamResponse) {
	whole.ID, whole.Created, whole.Model, whole.SystemFingerprint = chunk.ID, chunk.Created, chunk.Model, chunk.SystemFingerprint
	if chunk.Usage != nil {
		whole.Usage = *chunk.Usage
	}
	for _, choice := range chunk.Choices {
		for len(whole.Choices) <= choice.Index {
			whole.Choices = append(whole.Choices, goopenai.ChatCompletionChoice{Index: len(whole.Choices)})
		}
		into := &whole.Choices[choice.Index]
		into.FinishReason = choice.FinishReason
		joinGoOpenAIMessage(&into.Message, choice.Delta)
		if choice.Logprobs != nil {
			if into.LogProbs == nil {
				into.LogProbs = &goopenai.LogProbs{}
			}
			into.LogProbs.Content = append(into.LogProbs.Content, goOpenAILogprobs(choice.Logprobs.Content)...)
		}
	}
}

func joinGoOpenAIMessage(message *goopenai.ChatCompletionMessage, delta goopenai.ChatCompletionStreamChoiceDelta) {
	message.Role += delta.Role
	message.Content += delta.Content
	message.Refusal += delta.Refusal
	message.ReasoningContent += delta.ReasoningContent
	if delta.FunctionCall != nil {
		if message.FunctionCall == nil {
			message.FunctionCall = &goopenai.FunctionCall{}
		}
		message.FunctionCall.Name += delta.FunctionCall.Name
		message.FunctionCall.Arguments += delta.FunctionCall.Arguments
	}
	for _, call := range delta.ToolCalls {
		if *call.Index == len(message.ToolCalls) {
			message.ToolCalls = append(message.ToolCalls, goopenai.ToolCall{})
		}
		into := &message.ToolCalls[*call.Index]
		into.ID += call.ID
		into.Type += call.Type
		into.Function.Name += call.Function.Name
		into.Function.Arguments += call.Function.Arguments
	}
}

func goOpenAILogprobs(tokens []goopenai.ChatCompletionTokenLogprob) []goopenai.LogProb {
	var logprobs []goopenai.LogProb
	for _, token := range tokens {
		logprob := goopenai.LogProb{Token: token.Token, LogProb: token.Logprob}
		for _, top := range token.TopLogprobs {
			logprob.TopLogProbs = append(logprob.TopLogProbs, goopenai.TopLogProbs{Token: top.Token, LogProb: top.Logprob})
		}
		logprobs = append(logprobs, logprob)
	}
	return logprobs
}

func TestOpenAIGoReadsTheResponse(t *testing.T) {
	for name, body := range responseBodies(t) {
		t.Run(name, func(t *testing.T) {
			stream := server(appendResponse(t, body)).openai().Responses.NewStreaming(t.Context(), responses.ResponseNewParams{})
			text := ""
			var last responses.ResponseStreamEventUnion
			for n := int64(0); stream.Next(); n++ {
				last = stream.Current()
				if last.AsAny() == nil {
					t.Errorf("unknown event %s", last.Type)
				}
				if last.SequenceNumber != n {
					t.Errorf("event %d has the number %d", n, last.SequenceNumber)
				}
				if last.Type == "response.output_text.delta" {
					text += last.Delta
				}
			}
			if err := stream.Err(); err != nil {
				t.Fatal(err)
			}
			var want responses.Response
			if err := json.Unmarshal(body, &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, last.Response, ignoring(sourceJSON)); diff != "" {
				t.Errorf("final response (-want +got):\n%s", diff)
			}
			if text != want.OutputText() {
				t.Errorf("the deltas' text is not the response's text")
			}
		})
	}
}

func TestGoOpenAIReadsTheResponse(t *testing.T) {
	for name, body := range responseBodies(t) {
		t.Run(name, func(t *testing.T) {
			var want goopenai.CreateResponseResponse
			if err := json.Unmarshal(body, &want); err != nil {
				t.Fatal(err)
			}
			stream, err := server(appendResponse(t, body)).goopenai().CreateResponseStream(t.Context(), goopenai.CreateResponseRequest{Model: "m"})
			if err != nil {
				t.Fatal(err)
			}
			var got goopenai.CreateResponseResponse
			for {
				event, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if event.Response != nil {
					got = *event.Response
				}
			}
			if diff := cmp.Diff(jsonValue(t, want), jsonValue(t, got)); diff != "" {
				t.Errorf("final response (-want +got):\n%s", diff)
			}
		})
	}
}

// jsonValue encodes and decodes a value, to compare types with unexported fields.
func jsonValue(t *testing.T, value any) any {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	object, err := decode(data)
	if err != nil {
		t.Fatal(err)
	}
	return object
}

func TestClientsReportErrorEvents(t *testing.T) {
	object := []byte("{\n  \"message\": \"the batch expired\",\n  \"type\": \"server_error\", \"param\": null, \"code\": \"batch_expired\"}")
	chat := server(sse.AppendChatError([]byte(": waiting\n"), object))
	response := server(sse.AppendResponseError([]byte(": waiting\n"), object))
	tests := map[string]func() error{
		"openai-go chat": func() error {
			stream := chat.openai().Chat.Completions.NewStreaming(t.Context(), openai.ChatCompletionNewParams{})
			for stream.Next() {
				t.Errorf("event %s", stream.Current().RawJSON())
			}
			return stream.Err()
		},
		"openai-go responses": func() error {
			stream := response.openai().Responses.NewStreaming(t.Context(), responses.ResponseNewParams{})
			for stream.Next() {
				t.Errorf("event %s", stream.Current().RawJSON())
			}
			return stream.Err()
		},
		"go-openai chat": func() error {
			// No comments before the error: go-openai's decoder mixes comments into the error, and the proxy sends no comments
			// to go-openai.
			stream, err := server(sse.AppendChatError(nil, object)).goopenai().CreateChatCompletionStream(t.Context(), goopenai.ChatCompletionRequest{Model: "m"})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		},
		"go-openai responses": func() error {
			stream, err := response.goopenai().CreateResponseStream(t.Context(), goopenai.CreateResponseRequest{Model: "m"})
			if err != nil {
				return err
			}
			event, err := stream.Recv()
			if err == nil && event.Error != nil {
				return errors.New(event.Error.Message)
			}
			return err
		},
	}
	for name, read := range tests {
		t.Run(name, func(t *testing.T) {
			if err := read(); err == nil || !strings.Contains(err.Error(), "the batch expired") {
				t.Errorf("got error %v, want the error of the event", err)
			}
		})
	}
}
