package main

import (
	"strings"
	"testing"
)

func TestHint(t *testing.T) {
	tests := []struct {
		name                 string
		calls, peak, batches int64
		want                 string
	}{
		{"no calls", 0, 0, 0, ""},
		{"two calls in turn may be a coincidence", 2, 1, 2, ""},
		{"calls in turn", 3, 1, 3, "3 calls in 3 batches: the program waits for each answer"},
		{"all at once", 100, 100, 1, ""},
		{"all at once, several models", 100, 100, 5, ""},
		{"a limit of 8", 24, 8, 3, "24 calls in 3 batches: the program makes at most 8 calls at once"},
		{"Python's connections", 1500, 1000, 2, "http_client=DefaultAsyncHttpxClient("},
		{"1,000 calls and no more", 1000, 1000, 1, ""},
	}
	for _, tt := range tests {
		c := &callCounter{calls: tt.calls, peak: tt.peak}
		got := c.hint(tt.batches)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
