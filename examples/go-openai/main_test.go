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
			BaseURL: server.URL, Key: "key", Model: "some-model",
			Options: autobatcher.Options{Base: server.Transport()},
		}, &stdout)
		if err != nil {
			t.Fatal(err)
		}

		want := "at once:  You said: Name a river.\nstreamed: You said: Name a mountain.\n"
		if diff := cmp.Diff(want, stdout.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
		batches := server.Batches()
		if len(batches) != 1 || batches[0].Completed != 2 {
			t.Fatalf("batches = %+v, want one in which two lines completed", batches)
		}
		for _, line := range batches[0].Lines {
			if strings.Contains(string(line.Body), `"stream"`) {
				t.Errorf("line %d asks for a stream: %s", line.Number, line.Body)
			}
		}
	})
}

func TestRunReturnsErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{FailRate: 1})
		err := run(t.Context(), demo.Provider{
			BaseURL: server.URL, Key: "key", Model: "some-model",
			Options: autobatcher.Options{Base: server.Transport()},
		}, new(strings.Builder))
		if err == nil || strings.Count(err.Error(), "status code: 500") != 2 {
			t.Errorf("err = %v, want a 500 from both calls", err)
		}
	})
}
