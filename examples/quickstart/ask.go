package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

// askAbout makes all calls about all paragraphs concurrently, prints each answer
// when the answer arrives, and prints a list of the batches at the end.
func askAbout(ctx context.Context, api demo.Provider, paragraphs []string, stdout, stderr io.Writer) error {
	began := time.Now()
	total := len(kinds) * len(paragraphs)
	progress := newProgress(total, stdout, stderr)
	defer progress.stop()
	api.Options.OnEvent = progress.onEvent
	api.Options.Logger = slog.New(slog.NewTextHandler(progress, &slog.HandlerOptions{Level: slog.LevelWarn}))
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

	succeeded := 0
	for a := range askAll(ctx, client, api, paragraphs) {
		switch {
		case a.err == nil:
			succeeded++
		case ctx.Err() != nil:
			continue // the interrupt is reported once, below
		}
		progress.print(a)
	}
	progress.stop()
	if ctx.Err() != nil {
		fmt.Fprintln(progress, "cancelling the batches") // Close does, in ten seconds at most
		return fmt.Errorf("interrupted when %d of %d calls were answered", succeeded, total)
	}
	fmt.Fprintf(stdout, "\n%d calls in %s took %v.\n%s",
		total, count(progress.batches(), "batch", "batches"), time.Since(began).Round(100*time.Millisecond), progress.report())
	if succeeded < total {
		return fmt.Errorf("%d of %d calls failed", total-succeeded, total)
	}
	return nil
}

// An answer is the result of one call.
type answer struct {
	paragraph int // from 1
	kind      string
	text      string
	err       error
}

// String returns the answer as one line of text.
func (a answer) String() string {
	line := clip(strings.Join(strings.Fields(a.text), " "), 64)
	if a.err != nil {
		line = "failed: " + explain(a.err)
	}
	return fmt.Sprintf("%3d %-10s %s", a.paragraph, a.kind, line)
}

// explain formats an error with the provider's message, which the text of
// openai-go's error omits.
func explain(err error) string {
	if failed := (*openai.Error)(nil); errors.As(err, &failed) {
		return fmt.Sprintf("%d %s", failed.StatusCode, cmp.Or(failed.Message, failed.Code))
	}
	return err.Error()
}

// askAll makes each call in its own goroutine, since only concurrent calls share a
// batch. The channel is closed after the last answer.
func askAll(ctx context.Context, client openai.Client, api demo.Provider, paragraphs []string) <-chan answer {
	answers := make(chan answer)
	var calls sync.WaitGroup
	for i, paragraph := range paragraphs {
		for _, kind := range kinds {
			calls.Go(func() {
				text, err := kind.ask(ctx, client, api, paragraph)
				answers <- answer{i + 1, kind.name, text, err}
			})
		}
	}
	go func() {
		calls.Wait()
		close(answers)
	}()
	return answers
}

// kinds are the calls for each paragraph: one call for each endpoint that is
// batched.
var kinds = []struct {
	name string
	ask  func(ctx context.Context, client openai.Client, api demo.Provider, paragraph string) (string, error)
}{
	{"chat", summarize},
	{"embedding", embed},
	{"response", entitle},
}

func summarize(ctx context.Context, client openai.Client, api demo.Provider, paragraph string) (string, error) {
	completion, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
		Model: api.Model,
		Messages: []openai.ChatCompletionMessageParamUnion{
			openai.SystemMessage("Summarize the paragraph in one short sentence."),
			openai.UserMessage(paragraph),
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

func embed(ctx context.Context, client openai.Client, api demo.Provider, paragraph string) (string, error) {
	reply, err := client.Embeddings.New(ctx, openai.EmbeddingNewParams{
		Model: api.EmbeddingModel,
		Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String(paragraph)},
	})
	switch {
	case err != nil:
		return "", err
	case len(reply.Data) == 0:
		return "", errors.New("the answer has no embedding")
	}
	vector := reply.Data[0].Embedding
	return fmt.Sprintf("%d numbers: %.3f …", len(vector), vector[:min(5, len(vector))]), nil
}

func entitle(ctx context.Context, client openai.Client, api demo.Provider, paragraph string) (string, error) {
	response, err := client.Responses.New(ctx, responses.ResponseNewParams{
		Model:        api.Model,
		Instructions: openai.String("Give the paragraph a title of at most six words."),
		Input:        responses.ResponseNewParamsInputUnion{OfString: openai.String(paragraph)},
	})
	if err != nil {
		return "", err
	}
	return response.OutputText(), nil
}

// count formats n with the singular or the plural of a noun.
func count(n int, singular, plural string) string {
	if n == 1 {
		return "1 " + singular
	}
	return fmt.Sprintf("%d %s", n, plural)
}
