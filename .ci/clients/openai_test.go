// Package clients tests openai-go with `autobatcher serve --sandbox`. Each kind of call
// is made at two proxies: at OPENAI_BASE_URL the answer is in time, at LATE_BASE_URL
// the answer comes after status 200 and several heartbeats. run.sh makes the calls once
// more at proxies that send calls at the flex tier.
package clients

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

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

// mayDiffer are the members of answers that may differ between lanes: ids, times, the tier,
// and the counts of tokens, since the sandbox counts the bytes of the whole body.
var mayDiffer = []string{"id", "created", "created_at", "completed_at", "service_tier", "background", "prompt_tokens", "input_tokens", "total_tokens"}

// same removes the members that may differ.
func same(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for name, member := range v {
			if slices.Contains(mayDiffer, name) {
				delete(v, name)
			} else {
				v[name] = same(member)
			}
		}
	case []any:
		for i := range v {
			v[i] = same(v[i])
		}
	}
	return value
}

// raw is an object that the SDK has put together.
type raw string

func (r raw) RawJSON() string { return string(r) }

// respondAsync is a middleware that makes a call of any endpoint in the background, and asks
// for the answer until it is there.
func respondAsync(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
	req.Header.Set("Prefer", "respond-async")
	res, err := next(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusAccepted {
		return nil, fmt.Errorf("the call was not made in the background: %s", res.Status)
	}
	place, err := res.Location()
	for err == nil && res.StatusCode == http.StatusAccepted {
		res.Body.Close()
		time.Sleep(100 * time.Millisecond)
		question := req.Clone(req.Context())
		question.Method, question.URL, question.Body, question.GetBody, question.ContentLength = http.MethodGet, place, nil, nil, 0
		res, err = next(question)
	}
	return res, err
}

// The same objects come in real time, in a batch, late, at the flex tier, and in the
// background.
func TestSameObjects(t *testing.T) {
	realtime := option.WithHeader("Autobatcher-Mode", "realtime")
	type object interface{ RawJSON() string }
	asChat := func(c openai.Client, o ...option.RequestOption) (object, error) {
		return c.Chat.Completions.New(t.Context(), chat("Hello there"), o...)
	}
	asResponse := func(c openai.Client, o ...option.RequestOption) (object, error) {
		return c.Responses.New(t.Context(), response("Hello there"), o...)
	}
	asStream := func(c openai.Client, o ...option.RequestOption) (object, error) {
		body := chat(`sandbox: call get_weather {"city":"Oslo"}`)
		body.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{Name: "get_weather"})}
		stream := c.Chat.Completions.NewStreaming(t.Context(), body, o...)
		defer stream.Close()
		var answer openai.ChatCompletionAccumulator
		for stream.Next() {
			if !answer.AddChunk(stream.Current()) {
				return nil, errors.New("the accumulator refused a chunk")
			}
		}
		if len(answer.Choices) == 0 || len(answer.Choices[0].Message.ToolCalls) != 1 {
			return nil, fmt.Errorf("no tool call: %w", stream.Err())
		}
		text, err := json.Marshal(answer.ChatCompletion)
		return raw(text), errors.Join(err, stream.Err())
	}
	asChatInBackground := func(c openai.Client, o ...option.RequestOption) (object, error) {
		return asChat(c, append(o, option.WithMiddleware(respondAsync))...)
	}
	inBackground := func(c openai.Client, o ...option.RequestOption) (object, error) {
		body := response("Hello there")
		body.Background = openai.Bool(true)
		r, err := c.Responses.New(t.Context(), body, o...)
		for err == nil && (r.Status == "queued" || r.Status == "in_progress") {
			time.Sleep(100 * time.Millisecond)
			r, err = c.Responses.Get(t.Context(), r.ID, responses.ResponseGetParams{})
		}
		return r, err
	}
	var want any
	for _, lane := range []struct {
		name, base string
		ask        func(openai.Client, ...option.RequestOption) (object, error)
		options    []option.RequestOption
	}{
		{"chat in real time", "OPENAI_BASE_URL", asChat, []option.RequestOption{realtime}},
		{"chat", "OPENAI_BASE_URL", asChat, nil},
		{"chat, late", "LATE_BASE_URL", asChat, nil},
		{"chat in the background", "BATCH_BASE_URL", asChatInBackground, nil},
		{"chat stream with a tool call in real time", "OPENAI_BASE_URL", asStream, []option.RequestOption{realtime}},
		{"chat stream with a tool call", "OPENAI_BASE_URL", asStream, nil},
		{"chat stream with a tool call, late", "LATE_BASE_URL", asStream, nil},
		{"response in real time", "OPENAI_BASE_URL", asResponse, []option.RequestOption{realtime}},
		{"response", "OPENAI_BASE_URL", asResponse, nil},
		{"response, late", "LATE_BASE_URL", asResponse, nil},
		{"response in the background", "BATCH_BASE_URL", inBackground, nil}, // sent in a batch in each mode
	} {
		answer, err := lane.ask(openai.NewClient(option.WithBaseURL(os.Getenv(lane.base))), lane.options...)
		var got any
		if err == nil {
			err = json.Unmarshal([]byte(answer.RawJSON()), &got)
		}
		if err != nil {
			t.Fatalf("%s: %v", lane.name, err)
		}
		if got = same(got); lane.options != nil {
			want = got
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%v, want\n%v", lane.name, got, want)
		}
	}
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
