package main

import (
	"fmt"
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

		batches := server.Batches()
		if len(batches) != 1 || batches[0].Total != len(questions) || batches[0].Completed != len(questions) {
			t.Fatalf("batches = %+v, want one in which %d lines completed", batches, len(questions))
		}
		var want strings.Builder
		for _, question := range questions {
			fmt.Fprintf(&want, "%s\n  You said: %[1]s (%s)\n", question, batches[0].ID)
		}
		if diff := cmp.Diff(want.String(), stdout.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
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
		if err == nil || strings.Count(err.Error(), "500") != len(questions) {
			t.Errorf("err = %v, want a 500 for each of %d questions", err, len(questions))
		}
	})
}
