// Background submits prompts with one Transport and collects the answers with another,
// as a program may do that runs tonight and again tomorrow. A journal connects the two.
// The calls are OpenAI's background responses: each returns at once with an id, and the
// answer comes at the price of a batch.
//
//	go run ./examples/background
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
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
	"github.com/autobatcher/autobatcher/journal/sqlite"
)

var questions = []string{
	"Why is the sky blue?",
	"Why is the sea salty?",
	"Why is grass green?",
}

func main() { demo.Main(run) }

// run does tonight's work and tomorrow's.
func run(ctx context.Context, api demo.Provider, stdout io.Writer) error {
	dir, err := os.MkdirTemp("", "background-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	journal := filepath.Join(dir, "journal.db")

	var ids []string
	err = withClient(ctx, api, journal, func(client openai.Client) error {
		ids, err = submit(ctx, client, api.Model)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, "submitted", len(ids), "calls; the first process ends")
	return withClient(ctx, api, journal, func(client openai.Client) error {
		return collect(ctx, client, ids, stdout)
	})
}

// withClient calls f with a client whose calls are batched, and whose batches are in the
// journal.
func withClient(ctx context.Context, api demo.Provider, path string, f func(openai.Client) error) (err error) {
	journal, err := sqlite.Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	o := api.Options
	o.Journal = journal
	transport, err := autobatcher.New(o)
	if err != nil {
		return err
	}
	defer transport.Close()
	return f(openai.NewClient(
		option.WithHTTPClient(transport.Client()),
		option.WithBaseURL(api.BaseURL),
		option.WithAPIKey(api.Key),
	))
}

// submit makes the calls at the same time, so that they share a batch, and returns their
// ids when the provider has created the batch.
func submit(ctx context.Context, client openai.Client, model string) ([]string, error) {
	ids := make([]string, len(questions))
	errs := make([]error, len(questions))
	var wg sync.WaitGroup
	for i, question := range questions {
		wg.Go(func() {
			response, err := client.Responses.New(ctx, responses.ResponseNewParams{
				Model:      model,
				Background: openai.Bool(true),
				Input:      responses.ResponseNewParamsInputUnion{OfString: openai.String(question)},
			})
			if err == nil {
				ids[i] = response.ID
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return ids, errors.Join(errs...)
}

// collect asks for each answer until the answer is there.
func collect(ctx context.Context, client openai.Client, ids []string, stdout io.Writer) error {
	for i, id := range ids {
		response, err := client.Responses.Get(ctx, id, responses.ResponseGetParams{})
		for err == nil && (response.Status == responses.ResponseStatusQueued || response.Status == responses.ResponseStatusInProgress) {
			select {
			case <-time.After(time.Second):
				response, err = client.Responses.Get(ctx, id, responses.ResponseGetParams{})
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		switch {
		case err != nil:
			return err
		case response.Status != responses.ResponseStatusCompleted:
			return fmt.Errorf("%s: %s: %s", questions[i], response.Status, response.Error.Message)
		}
		fmt.Fprintf(stdout, "%s\n  %s\n", questions[i], response.OutputText())
	}
	return nil
}
