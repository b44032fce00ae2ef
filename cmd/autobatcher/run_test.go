package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
)

func TestChildEnv(t *testing.T) {
	tests := []struct {
		name string
		env  []string
		want []string
	}{
		{
			"ours replace what was there",
			[]string{"A=1", "OPENAI_API_KEY=secret", "OPENAI_BASE_URL=x", "OPENAI_API_BASE=y", "OPENAI_ORG_ID=o"},
			[]string{"A=1", "OPENAI_ORG_ID=o", "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1"},
		},
		{
			"exceptions from a proxy are kept",
			[]string{"NO_PROXY=a,b", "no_proxy=*"},
			[]string{"NO_PROXY=a,b", "no_proxy=*", "NO_PROXY=a,b,127.0.0.1"},
		},
		{
			"and not doubled",
			[]string{"NO_PROXY=127.0.0.1,b", "no_proxy=127.0.0.1"},
			[]string{"NO_PROXY=127.0.0.1,b", "no_proxy=127.0.0.1"},
		},
	}
	for _, tt := range tests {
		want := slices.Concat(tt.want, []string{"OPENAI_BASE_URL=u", "OPENAI_API_BASE=u", "OPENAI_API_KEY=k"})
		if diff := cmp.Diff(want, childEnv(tt.env, "u", "k")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestSummary(t *testing.T) {
	s := status{Waiting: 1, Answered: 1234, Failed: 2, Batches: 1, PromptTokens: 5678, CompletionTokens: 9, Elapsed: 61234 * time.Millisecond}
	want := "autobatcher: 1,237 calls (1,234 answered, 3 failed) in 1 batch; 5,678 prompt and 9 completion tokens; 1m1.2s"
	if got := s.summary(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	want = "autobatcher: 1 waiting, 0 in flight, 1,234 answered, 2 failed; 1 batch; 1m1s"
	if got := s.line(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A line for each change, but none sooner than two seconds after the last, and
// none where nothing changed.
func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		look := func() status {
			elapsed := time.Since(began)
			s := status{Elapsed: elapsed}
			if elapsed >= time.Second {
				s.Waiting = int(min(elapsed, 4*time.Second) / (500 * time.Millisecond))
			}
			return s
		}
		var out bytes.Buffer
		p := showProgress(&out, look)
		time.Sleep(time.Minute)
		p.stop()
		p.stop() // again does nothing
		want := "autobatcher: 2 waiting, 0 in flight, 0 answered; 0 batches; 1s\n" +
			"autobatcher: 6 waiting, 0 in flight, 0 answered; 0 batches; 3s\n" +
			"autobatcher: 8 waiting, 0 in flight, 0 answered; 0 batches; 5s\n"
		if got := out.String(); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}

// The bar leaves the terminal as it was.
func TestBarInFooter(t *testing.T) {
	var out lockedBuffer
	f := &footer{out: &out, size: func() (int, int, error) { return 100, 24, nil }}
	p := &progress{quit: make(chan struct{})}
	p.work.Go(func() { p.bar(f, func() status { return status{InFlight: 3, Answered: 4, Batches: 2} }) })
	for deadline := time.Now().Add(patience); !strings.Contains(out.String(), "3 in flight, 4 answered; 2 batches"); {
		if time.Now().After(deadline) {
			t.Fatalf("no bar came: %q", out.String())
		}
		time.Sleep(time.Millisecond)
	}
	p.stop()
	got := out.String()
	if !strings.HasPrefix(got, "\n\x1b7\x1b[1;23r\x1b8\x1b[1A\x1b7\x1b[?7l\x1b[24;1H\x1b[2K") {
		t.Errorf("the terminal is not divided first: %q", got)
	}
	if !strings.HasSuffix(got, "\x1b7\x1b[r\x1b[24;1H\x1b[2K\x1b8") {
		t.Errorf("the terminal is not whole again at the end: %q", got)
	}
	if n := strings.Count(got, "\n"); n != 1 {
		t.Errorf("%d lines scroll, and only the first may: %q", n, got)
	}
}

func TestFooter(t *testing.T) {
	var out bytes.Buffer
	height := 24
	f := &footer{out: &out, size: func() (int, int, error) { return 80, height, nil }}
	show := func(text string) string {
		out.Reset()
		_, _ = f.WriteString(text)
		if err := f.Flush(1); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := show("one\n"); !strings.Contains(got, "one\x1b[?7h\x1b8") {
		t.Errorf("one is not shown: %q", got)
	}
	if got := show("one\n"); got != "" {
		t.Errorf("the same is drawn again: %q", got)
	}
	if got := show("two\n"); strings.Contains(got, "r\x1b8") || !strings.Contains(got, "two") {
		t.Errorf("two is not all that is drawn: %q", got)
	}
	height = 30
	if got := show("two\n"); !strings.Contains(got, "\x1b[1;29r") {
		t.Errorf("a larger terminal is not divided anew: %q", got)
	}
	height = 2
	if got := show("three\n"); got != "" {
		t.Errorf("two lines are divided: %q", got)
	}
}

// Each event is a line of its own, whole, with its keys sorted, however many
// batches tell at once.
func TestEventLines(t *testing.T) {
	r, w := io.Pipe()
	tell := eventLines(w, slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			tell(autobatcher.Event{Name: autobatcher.BatchCancelledUpstream, BatchID: "b", Endpoint: "/v1/embeddings", Time: time.Unix(1, 5e8)})
		})
	}
	go func() { wg.Wait(); w.Close() }()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"batch_id":"b","endpoint":"/v1/embeddings","event":"batch_cancelled_upstream","source":"autobatcher","ts":1.5}`
	lines := strings.Split(strings.TrimSuffix(string(all), "\n"), "\n")
	if len(lines) != 20 {
		t.Errorf("%d lines, want 20", len(lines))
	}
	for _, line := range lines {
		if line != want || !json.Valid([]byte(line)) {
			t.Errorf("got  %s\nwant %s", line, want)
		}
	}
}

// A log collector that dies must not take the callers' answers with it.
func TestServeOutlivesItsReader(t *testing.T) {
	cmd := exec.Command("autobatcher", "serve", "--sandbox", "--port", "0", "--batch-window", "0", "--poll-interval", "0.02")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()         //nolint:errcheck // it is killed
	defer cmd.Process.Kill() //nolint:errcheck // it runs
	stdout.Close()
	var base []string
	for deadline := time.Now().Add(patience); base == nil; time.Sleep(time.Millisecond) {
		if base = baseURL.FindStringSubmatch(log.String()); time.Now().After(deadline) {
			t.Fatalf("it does not listen: %s", log.String())
		}
	}
	for range 3 { // the second event would be its end
		res, err := http.Post(base[1]+"/embeddings", "application/json", strings.NewReader(`{"model":"m","input":"hi"}`))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("a call is answered with %s", res.Status)
		}
	}
	if !strings.Contains(log.String(), "an event could not be written to stdout") {
		t.Errorf("the log does not say that events are lost: %s", log.String())
	}
}
