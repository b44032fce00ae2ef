package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
	"github.com/autobatcher/autobatcher/provider"
)

var twelve = func() []string {
	paragraphs := make([]string, 12)
	for i := range paragraphs {
		paragraphs[i] = fmt.Sprintf("Paragraph %d. It goes on.", i+1)
	}
	return paragraphs
}()

func apiOf(server *batchtest.Server) demo.Provider {
	return demo.Provider{
		BaseURL: server.URL, Key: "key", Model: "talker", EmbeddingModel: "embedder",
		Options: autobatcher.Options{Base: server.Transport(), CancelOnClose: true},
	}
}

func TestThreeBatchesLikeOpenAI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{Turnaround: time.Minute})
		var stdout, stderr strings.Builder
		began := time.Now()
		if err := askAbout(t.Context(), apiOf(server), twelve, &stdout, &stderr); err != nil {
			t.Fatal(err)
		}
		// A second in which no call comes, a batch of a minute, and at most five seconds until a poll.
		if took := time.Since(began); took < 61*time.Second || took > 67*time.Second {
			t.Errorf("took %v, want 61 s to 67 s", took)
		}

		type batch struct{ Total, Completed int }
		got := make(map[string]batch)
		for _, b := range server.Batches() {
			got[b.Endpoint] = batch{b.Total, b.Completed}
		}
		want := map[string]batch{
			"/v1/chat/completions": {12, 12}, "/v1/embeddings": {12, 12}, "/v1/responses": {12, 12},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("batches (-want +got):\n%s", diff)
		}
		answers, summary, _ := strings.Cut(stdout.String(), "\n\n")
		if diff := cmp.Diff(wantAnswers(), sorted(answers)); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		if line, _, _ := strings.Cut(summary, "\n"); !strings.HasPrefix(line, "36 calls in 3 batches took 1m") {
			t.Errorf("summary = %q", summary)
		}
		if last := "s  3 batches, 36 of 36 calls done\n"; !strings.HasSuffix(stderr.String(), last) {
			t.Errorf("progress = %q, want it to end in %q", stderr.String(), last)
		}
	})
}

// wantAnswers returns the lines about the twelve paragraphs, without the vectors.
func wantAnswers() []string {
	var lines []string
	for n := 1; n <= 12; n++ {
		lines = append(lines,
			fmt.Sprintf("%3d chat       You said: Paragraph %d.", n, n),
			fmt.Sprintf("%3d embedding  8 numbers: […] …", n),
			fmt.Sprintf("%3d response   You said: Paragraph %d.", n, n))
	}
	slices.Sort(lines)
	return lines
}

var vector = regexp.MustCompile(`\[-?\d.*\]`)

func sorted(answers string) []string {
	lines := strings.Split(vector.ReplaceAllString(answers, "[…]"), "\n")
	slices.Sort(lines)
	return lines
}

func TestOneBatchLikeDoubleword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: time.Minute})
		api := apiOf(server)
		profile := provider.Doubleword()
		api.Options.Provider = &profile
		var stdout strings.Builder
		if err := askAbout(t.Context(), api, twelve, &stdout, io.Discard); err != nil {
			t.Fatal(err)
		}
		if batches := server.Batches(); len(batches) != 1 || batches[0].Completed != 36 {
			t.Errorf("batches = %+v, want one in which 36 lines completed", batches)
		}
		if want := "\n36 calls in 1 batch took 1m"; !strings.Contains(stdout.String(), want) {
			t.Errorf("output has no %q:\n%s", want, stdout.String())
		}
	})
}

func TestFailedCallsAreToldOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
			if strings.HasSuffix(l.URL, "/embeddings") {
				return batchtest.Outcome{Status: 400, Body: []byte(`{"error":{"message":"no vectors today","type":"invalid_request_error"}}`)}
			}
			return batchtest.Echo(l)
		}})
		var stdout strings.Builder
		err := askAbout(t.Context(), apiOf(server), twelve[:2], &stdout, io.Discard)
		if err == nil || err.Error() != "2 of 6 calls failed" {
			t.Errorf("err = %v, want that 2 of 6 calls failed", err)
		}
		for _, want := range []string{
			"  1 embedding  failed: 400 no vectors today\n",
			"  2 embedding  failed: 400 no vectors today\n",
			"  2 chat       You said: Paragraph 2.\n",
		} {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("output has no %q:\n%s", want, stdout.String())
			}
		}
	})
}

func TestInterruptCancelsTheBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{Turnaround: time.Hour})
		ctx, interrupt := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, interrupt)
		began := time.Now()
		var stdout strings.Builder
		err := askAbout(ctx, apiOf(server), twelve, &stdout, io.Discard)
		if err == nil || err.Error() != "interrupted when 0 of 36 calls were answered" {
			t.Errorf("err = %v", err)
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("took %v, want to end with the interrupt after 1m", took)
		}
		if stdout.Len() > 0 {
			t.Errorf("output = %q, want none", stdout.String())
		}
		for _, b := range server.Batches() {
			if !b.CancelRequested {
				t.Errorf("batch %s for %s runs on", b.ID, b.Endpoint)
			}
		}
	})
}

// TestRun runs the program with a socket and in real time.
func TestRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "poem.md")
	if err := os.WriteFile(file, []byte("# Title\n\nOne.\n\nTwo.\n\nThree.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, like := range []string{"openai", "doubleword"} {
		t.Run(like, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr strings.Builder
			args := []string{"-like", like, "-n", "2", "-window", "200ms", "-turnaround", "200ms", file}
			if err := run(t.Context(), args, exportedKey, &stdout, &stderr); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{
				"  1 chat       You said: One.\n", "  2 response   You said: Two.\n", "\n6 calls in ",
			} {
				if !strings.Contains(stdout.String(), want) {
					t.Errorf("output has no %q:\n%s", want, stdout.String())
				}
			}
			if want := "6 calls about 2 of the 3 paragraphs in "; !strings.Contains(stderr.String(), want) {
				t.Errorf("progress has no %q:\n%s", want, stderr.String())
			}
		})
	}
}

func TestRunRefuses(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.txt")
	if err := os.WriteFile(empty, []byte("\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		env  map[string]string
		want string
	}{
		{name: "help", args: []string{"-h"}, want: flag.ErrHelp.Error()},
		{name: "unknown flag", args: []string{"-x"}, want: "not defined: -x"},
		{name: "two files", args: []string{"a", "b"}, want: "2 files; quickstart takes one file"},
		{name: "no paragraphs", args: []string{"-n", "0"}, want: "-n is 0; it must be at least 1"},
		{name: "negative window", args: []string{"-window", "-1s"}, want: "must not be negative"},
		{name: "negative turnaround", args: []string{"-turnaround", "-1s"}, want: "must not be negative"},
		{name: "unknown behavior", args: []string{"-like", "x"}, want: `-like is "x"; it must be openai or doubleword`},
		{name: "missing file", args: []string{"missing"}, want: "missing"},
		{name: "empty file", args: []string{empty}, want: "has no paragraphs of text"},
		{name: "real without key", args: []string{"-real", "main_test.go"}, env: map[string]string{"OPENAI_BASE_URL": "http://localhost/v1"}, want: "-real needs OPENAI_API_KEY"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := run(t.Context(), test.args, func(name string) string { return test.env[name] }, io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("err = %v, want %q in it", err, test.want)
			}
		})
	}
}

// exportedKey is an environment with a key, which the quickstart must not use without
// -real.
func exportedKey(name string) string {
	return map[string]string{"OPENAI_API_KEY": "secret", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}[name]
}
