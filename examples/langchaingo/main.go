// Langchaingo uses the Transport with github.com/tmc/langchaingo. The option
// openai.WithHTTPClient sets the HTTP client of the OpenAI model, for chat calls and
// for embeddings.
//
//	go run ./examples/langchaingo
//
// runs offline, with an embedded Batch API server that echoes each prompt. With -real
// and OPENAI_API_KEY (and, optionally, OPENAI_BASE_URL, OPENAI_MODEL and
// OPENAI_EMBEDDING_MODEL), the program calls a real provider and waits until the
// provider's batches have ended.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/tmc/langchaingo/llms"
	"github.com/tmc/langchaingo/llms/openai"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

var subjects = []string{"rivers", "mountains", "seas"}

func main() { demo.Main(run) }

func run(ctx context.Context, api demo.Provider, stdout io.Writer) error {
	transport, err := autobatcher.New(api.Options)
	if err != nil {
		return err
	}
	defer transport.Close()
	model, err := openai.New(
		openai.WithHTTPClient(transport.Client()), // the only change
		openai.WithBaseURL(api.BaseURL),
		openai.WithToken(api.Key),
		openai.WithModel(api.Model),
		openai.WithEmbeddingModel(api.EmbeddingModel),
	)
	if err != nil {
		return err
	}

	poems := make([]string, len(subjects))
	errs := make([]error, len(subjects)+1)
	var vectors [][]float32
	var wg sync.WaitGroup
	for i, subject := range subjects {
		wg.Go(func() {
			poems[i], errs[i] = llms.GenerateFromSinglePrompt(ctx, model, "Write one line on "+subject+".")
		})
	}
	wg.Go(func() { vectors, errs[len(subjects)] = model.CreateEmbedding(ctx, subjects) })
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for i, subject := range subjects {
		fmt.Fprintf(stdout, "%-10s %s (%d numbers)\n", subject, poems[i], len(vectors[i]))
	}
	return nil
}
