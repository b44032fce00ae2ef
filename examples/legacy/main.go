// Legacy uses the Transport with old code that makes HTTP calls by hand and sends the
// calls with http.DefaultClient. The only change is the transport of
// http.DefaultClient, which the program sets once at the start. Calls that cannot be
// batched (here, the list of models) pass through unchanged.
//
//	go run ./examples/legacy
//
// runs offline, with an embedded Batch API server that returns hashes as vectors.
// With -real and OPENAI_API_KEY (and, optionally, OPENAI_BASE_URL and
// OPENAI_EMBEDDING_MODEL), the program calls a real provider and waits until the
// provider's batches have ended.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

var words = []string{"river", "mountain", "sea"}

func main() { demo.Main(run) }

func run(ctx context.Context, api demo.Provider, stdout io.Writer) error {
	transport, err := autobatcher.New(api.Options)
	if err != nil {
		return err
	}
	defer transport.Close()
	before := http.DefaultClient.Transport
	http.DefaultClient.Transport = transport // the only change
	defer func() { http.DefaultClient.Transport = before }()

	return legacy(ctx, api, stdout)
}

// All code below is old and independent of batches.

func legacy(ctx context.Context, api demo.Provider, stdout io.Writer) error {
	if err := checkKey(ctx, api); err != nil {
		return err
	}
	vectors := make([][]float64, len(words))
	errs := make([]error, len(words))
	var wg sync.WaitGroup
	for i, word := range words {
		wg.Go(func() { vectors[i], errs[i] = embed(ctx, api, word) })
	}
	wg.Wait()
	for i, vector := range vectors {
		fmt.Fprintf(stdout, "%-8s %d numbers: %.3f …\n", words[i], len(vector), vector[:min(3, len(vector))])
	}
	return errors.Join(errs...)
}

func embed(ctx context.Context, api demo.Provider, text string) ([]float64, error) {
	var reply struct {
		Data []struct{ Embedding []float64 }
	}
	body := map[string]any{"model": api.EmbeddingModel, "input": text}
	if err := call(ctx, api, http.MethodPost, "/embeddings", body, &reply); err != nil {
		return nil, err
	}
	if len(reply.Data) != 1 {
		return nil, fmt.Errorf("%d embeddings for one text", len(reply.Data))
	}
	return reply.Data[0].Embedding, nil
}

// checkKey lists the models, since the list costs nothing.
func checkKey(ctx context.Context, api demo.Provider) error {
	return call(ctx, api, http.MethodGet, "/models", nil, new(struct{}))
}

func call(ctx context.Context, api demo.Provider, method, path string, body, reply any) error {
	var payload io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return err
		}
		payload = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, api.BaseURL+path, payload)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+api.Key)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, text)
	}
	return json.NewDecoder(response.Body).Decode(reply)
}
