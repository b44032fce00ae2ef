// Go-openai uses the Transport with github.com/sashabaranov/go-openai: the program
// sets HTTPClient of the ClientConfig. Streams work too. The line in the batch does
// not ask for a stream; the caller gets the finished answer as a stream.
//
//	go run ./examples/go-openai
//
// runs offline, with an embedded Batch API server that echoes each prompt. With -real
// and OPENAI_API_KEY (and, optionally, OPENAI_BASE_URL and OPENAI_MODEL), the program
// calls a real provider and waits until the provider's batches have ended.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/sashabaranov/go-openai"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

const (
	whole    = "Name a river."
	streamed = "Name a mountain."
)

func main() { demo.Main(run) }

func run(ctx context.Context, api demo.Provider, stdout io.Writer) error {
	transport, err := autobatcher.New(api.Options)
	if err != nil {
		return err
	}
	defer transport.Close()
	config := openai.DefaultConfig(api.Key)
	config.BaseURL = api.BaseURL
	config.HTTPClient = transport.Client() // the only change
	client := openai.NewClientWithConfig(config)

	var river, mountain string
	var riverErr, mountainErr error
	var wg sync.WaitGroup
	wg.Go(func() { river, riverErr = ask(ctx, client, request(api.Model, whole)) })
	wg.Go(func() { mountain, mountainErr = askStream(ctx, client, request(api.Model, streamed)) })
	wg.Wait()
	fmt.Fprintf(stdout, "at once:  %s\nstreamed: %s\n", river, mountain)
	return errors.Join(riverErr, mountainErr)
}

func request(model, question string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{
		Model:    model,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: question}},
	}
}

func ask(ctx context.Context, client *openai.Client, request openai.ChatCompletionRequest) (string, error) {
	completion, err := client.CreateChatCompletion(ctx, request)
	if err != nil {
		return "", err
	}
	if len(completion.Choices) == 0 {
		return "", errors.New("the answer has no choices")
	}
	return completion.Choices[0].Message.Content, nil
}

func askStream(ctx context.Context, client *openai.Client, request openai.ChatCompletionRequest) (string, error) {
	stream, err := client.CreateChatCompletionStream(ctx, request)
	if err != nil {
		return "", err
	}
	defer stream.Close()
	var text strings.Builder
	for {
		chunk, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return text.String(), nil
		case err != nil:
			return text.String(), err
		}
		for _, choice := range chunk.Choices {
			text.WriteString(choice.Delta.Content)
		}
	}
}
