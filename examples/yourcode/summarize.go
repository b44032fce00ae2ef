// Package yourcode is a typical part of a program. The test file shows how to test
// the program with package batchtest: without a network, without a key, and in
// virtual time, so that a batch of a day takes no real time.
//
//	go test -v ./examples/yourcode
package yourcode

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/openai/openai-go/v3"
)

// Summarize returns a summary of each document, in the order of the documents. If a
// call fails, the summary is "" and the error names the document.
func Summarize(ctx context.Context, client openai.Client, documents []string) ([]string, error) {
	summaries := make([]string, len(documents))
	errs := make([]error, len(documents))
	var calls sync.WaitGroup
	for i, document := range documents {
		calls.Go(func() {
			var err error
			if summaries[i], err = summarize(ctx, client, document); err != nil {
				errs[i] = fmt.Errorf("document %d: %w", i+1, err)
			}
		})
	}
	calls.Wait()
	return summaries, errors.Join(errs...)
}

func summarize(ctx context.Context, client openai.Client, document string) (string, error) {
	completion, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
		Model: "gpt-4.1-mini",
		Messages: []openai.ChatCompletionMessageParamUnion{
			openai.SystemMessage("Summarize the document in one sentence."),
			openai.UserMessage(document),
		},
	})
	switch {
	case err != nil:
		return "", err
	case len(completion.Choices) == 0:
		return "", errors.New("the answer has no choices")
	}
	return completion.Choices[0].Message.Content, nil
}
