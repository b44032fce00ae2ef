// Package clients tests openai-go with `autobatcher serve --sandbox`. Each kind of call
// is made at two proxies: at OPENAI_BASE_URL the answer is in time, at LATE_BASE_URL
// the answer comes after status 200 and several heartbeats.
package clients

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/ssestream"
	"github.com/openai/openai-go/v3/responses"
)

const model = "gpt-4o-mini"

// The clients by name. An error ends the call; the text is what arrived before.
var clients = map[string]func(t *testing.T, c openai.Client, prompt string) (text string, err error){
	"chat complete": func(t *testing.T, c openai.Client, prompt string) (string, error) {
		answer, err := c.Chat.Completions.New(t.Context(), chat(prompt))
		if err != nil {
			return "", err
		}
		return answer.Choices[0].Message.Content, nil
	},
	"chat stream": func(t *testing.T, c openai.Client, prompt string) (string, error) {
		stream := c.Chat.Completions.NewStreaming(t.Context(), chat(prompt))
		defer stream.Close()
		var answer openai.ChatCompletionAccumulator
		for stream.Next() {
			if !answer.AddChunk(stream.Current()) {
				return "", errors.New("the accumulator refused a chunk")
			}
		}
		if len(answer.Choices) == 0 {
			return "", stream.Err()
		}
		return answer.Choices[0].Message.Content, stream.Err()
	},
	"responses complete": func(t *testing.T, c openai.Client, prompt string) (string, error) {
		answer, err := c.Responses.New(t.Context(), response(prompt))
		if err != nil {
			return "", err
		}
		return answer.OutputText(), nil
	},
	"responses stream": func(t *testing.T, c openai.Client, prompt string) (string, error) {
		stream := c.Responses.NewStreaming(t.Context(), response(prompt))
		defer stream.Close()
		var text string
		for stream.Next() {
			if e := stream.Current(); e.Type == "response.completed" {
				text = e.Response.OutputText()
			}
		}
		return text, stream.Err()
	},
}

func chat(prompt string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)}}
}

func response(prompt string) responses.ResponseNewParams {
	return responses.ResponseNewParams{Model: model, Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(prompt)}}
}

func TestOpenAIGo(t *testing.T) {
	for name, ask := range clients {
		for _, late := range []bool{false, true} {
			for _, failure := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/late=%t/failure=%t", name, late, failure), func(t *testing.T) {
					t.Parallel()
					base, prompt := os.Getenv("OPENAI_BASE_URL"), name+" in Go"
					if failure {
						prompt = "status 400 " + prompt
					}
					if late {
						base, prompt = os.Getenv("LATE_BASE_URL"), "delay 3s "+prompt
					}
					if base == "" {
						t.Fatal("run.sh starts the proxies for this test")
					}
					prompt = "sandbox: " + prompt
					text, err := ask(t, openai.NewClient(option.WithBaseURL(base)), prompt)
					if !failure {
						if want := "You said: " + prompt; err != nil || text != want {
							t.Fatalf("got %q and error %v, want %q", text, err, want)
						}
						return
					}
					if err == nil {
						t.Fatalf("a failure became the answer %q", text)
					}
					status, hasStatus := errors.AsType[*openai.Error](err)
					streamed, isStreamError := errors.AsType[*ssestream.StreamError](err)
					switch {
					case !late:
						if !hasStatus || status.StatusCode != 400 {
							t.Errorf("got error %v, want status 400", err)
						}
					case strings.HasSuffix(name, "stream"): // docs/operations.md says the same of late failures
						if !isStreamError || hasStatus || !strings.Contains(streamed.Message, "Bad Request.") {
							t.Errorf("got %T: %v; want a StreamError with the provider's message", err, err)
						}
					case !errors.Is(err, io.ErrUnexpectedEOF) || hasStatus:
						t.Errorf("got %T: %v; want an unexpected EOF", err, err)
					}
				})
			}
		}
	}
}
