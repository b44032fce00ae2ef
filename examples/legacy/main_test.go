package main

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

func TestRun(t *testing.T) {
	// The same calls without batches give the expected answers.
	server := batchtest.New(batchtest.Options{})
	api := demo.Provider{BaseURL: server.URL, Key: "key", EmbeddingModel: "some-model"}
	var want strings.Builder
	http.DefaultClient.Transport = server.Transport()
	err := legacy(t.Context(), api, &want)
	http.DefaultClient.Transport = nil
	if err != nil {
		t.Fatal(err)
	}

	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{})
		api.Options = autobatcher.Options{Base: server.Transport()}
		var stdout strings.Builder
		if err := run(t.Context(), api, &stdout); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.String(), stdout.String()); diff != "" {
			t.Errorf("output, with and without batches (-want +got):\n%s", diff)
		}
		batches := server.Batches()
		if len(batches) != 1 || batches[0].Completed != len(words) || batches[0].Endpoint != "/v1/embeddings" {
			t.Errorf("batches = %+v, want one of embeddings in which %d lines completed", batches, len(words))
		}
		if first := server.Requests()[0]; first.Path != "/v1/models" || first.Status != http.StatusOK {
			t.Errorf("first request = %s %s (%d), want the models passed through", first.Method, first.Path, first.Status)
		}
		if http.DefaultClient.Transport != nil {
			t.Error("http.DefaultClient still uses the closed Transport")
		}
	})
}

func TestRunReturnsErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{FailRate: 1})
		err := run(t.Context(), demo.Provider{
			BaseURL: server.URL, Key: "key", EmbeddingModel: "some-model",
			Options: autobatcher.Options{Base: server.Transport()},
		}, new(strings.Builder))
		if err == nil || strings.Count(err.Error(), "500 Internal Server Error") != len(words) {
			t.Errorf("err = %v, want a 500 for each of %d words", err, len(words))
		}
	})
}
