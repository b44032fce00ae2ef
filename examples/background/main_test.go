package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

// TestRun needs real time, since SQLite's locks do.
func TestRun(t *testing.T) {
	server := batchtest.NewServer(batchtest.Options{Turnaround: time.Second})
	defer server.Close()
	var stdout strings.Builder
	err := run(t.Context(), demo.Provider{
		BaseURL: server.URL, Key: "key", Model: "some-model",
		Options: autobatcher.Options{CancelOnClose: true, BatchWindow: time.Second, PollInterval: 100 * time.Millisecond},
	}, &stdout)
	if err != nil {
		t.Fatal(err)
	}
	batches := server.Batches()
	if len(batches) != 1 || batches[0].Total != len(questions) || batches[0].Completed != len(questions) {
		t.Errorf("batches = %+v, want one in which %d lines completed", batches, len(questions))
	}
	var want strings.Builder
	fmt.Fprintf(&want, "submitted %d calls; the first process ends\n", len(questions))
	for _, question := range questions {
		fmt.Fprintf(&want, "%s\n  You said: %[1]s\n", question)
	}
	if diff := cmp.Diff(want.String(), stdout.String()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}
