package main

import (
	"log/slog"
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	words := []string{"port", "batch-size", "batch-window", "sandbox"}
	for text, want := range map[string]string{
		"prot": "port", "batchsize": "batch-size", "batch-windw": "batch-window", "sandbx": "sandbox",
		"frob": "", "x": "", "": "",
	} {
		if got := nearest(text, words); got != want {
			t.Errorf("nearest(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "ab", 2}, {"ab", "", 2}, {"kitten", "sitting", 3}, {"ab", "ba", 2}, {"same", "same", 0}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// Unknown variables are reported, except for empty variables and the variables that
// Kubernetes sets for a Service named autobatcher.
func TestWarnAboutVariables(t *testing.T) {
	var log lockedBuffer
	p := process{env: []string{
		"AUTOBATCHER_BATCHSIZE=3", "AUTOBATCHER_BATCH_SIZE=3", "AUTOBATCHER_PORT=tcp://10.0.0.1:80", "AUTOBATCHER_SANDBOX_RATE=1",
		"AUTOBATCHER_SERVICE_HOST=10.0.0.1", "AUTOBATCHER_SERVICE_PORT_HTTP=80", "AUTOBATCHER_PORT_80_TCP_ADDR=10.0.0.1",
		"AUTOBATCHER_BATCHSIZES=", "AUTOBATCHER_FROB=secret", "OTHER=1",
	}}
	p.warnAboutVariables(slog.New(slog.NewTextHandler(&log, nil)))
	got := log.String()
	for _, want := range []string{"did you mean AUTOBATCHER_BATCH_SIZE?\" variable=AUTOBATCHER_BATCHSIZE\n", "lists the variables\" variable=AUTOBATCHER_FROB\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("the log lacks %q:\n%s", want, got)
		}
	}
	if n := strings.Count(got, "\n"); n != 2 || strings.Contains(got, "secret") {
		t.Errorf("%d messages, want 2, without values:\n%s", n, got)
	}
}
