package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

// The second process answers what the first was asked, and each line is paid for once.
func TestRun(t *testing.T) {
	server := batchtest.NewServer(batchtest.Options{Turnaround: 2 * time.Second})
	defer server.Close()
	api := demo.Provider{BaseURL: server.URL, Key: "key", Model: "m", Options: autobatcher.Options{
		BatchWindow: time.Hour, PollInterval: 50 * time.Millisecond,
	}}
	var out bytes.Buffer
	if err := run(t.Context(), api, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"has ended with 3 tasks", "task 0: You said: Summarize: the first text", "task 2: You said: Summarize: the third text"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output has no %q:\n%s", want, out.String())
		}
	}
	if n := len(server.Executed()); n != 3 {
		t.Errorf("%d lines were paid for, want 3", n)
	}
}
