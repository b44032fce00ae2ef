// Openai-go uses the Transport with OpenAI's own Go client. The only change is the
// option option.WithHTTPClient.
//
//	go run ./examples/openai-go
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
	"net/http"
	"sync"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

var questions = []string{
	"Why is the sky blue?",
	"Why is the sea salty?",
	"Why is grass green?",
}

func main() { demo.Main(run) }

func run(ctx context.Context, api demo.Provider, stdout io.Writer) error {
	transport, err := autobatcher.New(api.Options)
	if err != nil {
		return err
	}
	defer transport.Close()
	client := openai.NewClient(
		option.WithHTTPClient(transport.Client()), // the only change
		option.WithBaseURL(api.BaseURL),
		option.WithAPIKey(api.Key),
	)

	// One goroutine per call: sequential calls would be sent in one batch each.
	answers := make([]string, len(questions))
	errs := make([]error, len(questions))
	var wg sync.WaitGroup
	for i, question := range questions {
		wg.Go(func() { answers[i], errs[i] = ask(ctx, client, api.Model, question) })
	}
	wg.Wait()
	for i, answer := range answers {
		fmt.Fprintf(stdout, "%s\n  %s\n", questions[i], answer)
	}
	return errors.Join(errs...)
}

// ask is ordinary code. Only the header of the response shows that a batch answered
// the call.
func ask(ctx context.Context, client openai.Client, model, question string) (string, error) {
	var response *http.Response
	completion, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
		Model:    model,
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)},
	}, option.WithResponseInto(&response))
	if err != nil {
		return "", err
	}
	if len(completion.Choices) == 0 {
		return "", errors.New("the answer has no choices")
	}
	return fmt.Sprintf("%s (%s)", completion.Choices[0].Message.Content, response.Header.Get("Autobatcher-Batch-Id")), nil
}
