package main

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{})
		var stdout strings.Builder
		err := run(t.Context(), demo.Provider{
			BaseURL: server.URL, Key: "key", Model: "some-model", EmbeddingModel: "another-model",
			Options: autobatcher.Options{Base: server.Transport()},
		}, &stdout)
		if err != nil {
			t.Fatal(err)
		}

		want := `rivers     You said: Write one line on rivers. (8 numbers)
mountains  You said: Write one line on mountains. (8 numbers)
seas       You said: Write one line on seas. (8 numbers)
`
		if diff := cmp.Diff(want, stdout.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
		lines := make(map[string]int)
		for _, batch := range server.Batches() {
			lines[batch.Endpoint] += batch.Completed
		}
		// langchaingo sends the texts of one CreateEmbedding in one call.
		if diff := cmp.Diff(map[string]int{"/v1/chat/completions": 3, "/v1/embeddings": 1}, lines); diff != "" {
			t.Errorf("lines in batches, by endpoint (-want +got):\n%s", diff)
		}
		if n := len(server.Batches()); n != 2 {
			t.Errorf("%d batches, want one for each endpoint", n)
		}
	})
}

func TestRunReturnsErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{FailRate: 1})
		err := run(t.Context(), demo.Provider{
			BaseURL: server.URL, Key: "key", Model: "some-model", EmbeddingModel: "another-model",
			Options: autobatcher.Options{Base: server.Transport()},
		}, new(strings.Builder))
		if err == nil || strings.Count(err.Error(), "500") != len(subjects)+1 {
			t.Errorf("err = %v, want a 500 from each of %d calls", err, len(subjects)+1)
		}
	})
}
