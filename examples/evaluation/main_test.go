package main

import (
	"bytes"
	"regexp"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

func TestRun(t *testing.T) {
	server := batchtest.NewServer(batchtest.Options{Turnaround: 3 * time.Second})
	defer server.Close()
	api := demo.Provider{BaseURL: server.URL, Key: "key", Model: demo.DefaultModel, Options: autobatcher.Options{
		BatchWindow: time.Minute, PollInterval: 50 * time.Millisecond,
	}}
	var out bytes.Buffer
	if err := run(t.Context(), api, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`0 queued, 1000 running, 0 answered; the provider has finished \d+ of 1000`,
		`1000 right, 0 wrong, 0 failed`,
		`about \$0\.0\d+, and \$0\.0\d+ less than in real time \(an estimate, by prices of 20\d\d-\d\d-\d\d\)`,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("the output has no %s:\n%s", want, out.String())
		}
	}
	if n := len(server.Batches()); n != 1 {
		t.Errorf("%d batches, want 1", n)
	}
}
