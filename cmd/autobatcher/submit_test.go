//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/batchtest"
)

// A submit that is killed while its batches run goes on where it ended: no line is paid
// for twice, and the results are whole and in order.
func TestSubmitIsKilled(t *testing.T) {
	const requests = 60
	srv := batchtest.NewServer(batchtest.Options{Turnaround: 3 * time.Second, Logf: t.Logf})
	defer srv.Close()
	dir := t.TempDir()
	input, out := filepath.Join(dir, "in.jsonl"), filepath.Join(dir, "out.jsonl")
	var lines strings.Builder
	for i := range requests {
		fmt.Fprintf(&lines, `{"custom_id":"%d","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"%d"}]}}`+"\n", i, i)
	}
	if err := os.WriteFile(input, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	command := func() *exec.Cmd {
		cmd := exec.Command("autobatcher", "submit", "--base-url", srv.URL, "--api-key", "key", "--batch-size", "20",
			"--poll-interval", "0.1", "--journal", filepath.Join(dir, "journal.db"), "-o", out, input)
		cmd.Env = []string{"GORACE=" + raceOptions}
		return cmd
	}
	for range 2 { // killed while the batches run, and while the results of an earlier run are waited for
		first := command()
		if err := first.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(testTimeout); len(srv.Batches()) < requests/20; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d batches", len(srv.Batches()))
			}
		}
		time.Sleep(300 * time.Millisecond)
		_ = first.Process.Kill()
		_ = first.Wait() // "signal: killed"
	}
	text, err := command().CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if !strings.Contains(string(text), "60 of 60 requests have results (0 failed); 3 batches of an earlier run; ") {
		t.Errorf("%s", text)
	}
	if n := len(srv.Executed()); n != requests {
		t.Errorf("%d lines were paid for, want %d", n, requests)
	}
	results, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for l := range strings.Lines(string(results)) {
		if answer := gjson.Get(l, "response.body.choices.0.message.content").String(); gjson.Get(l, "custom_id").Int() != int64(i) || answer != fmt.Sprintf("You said: %d", i) {
			t.Errorf("result %d is %s", i, l)
		}
		i++
	}
	if i != requests {
		t.Errorf("%d results, want %d", i, requests)
	}
}

// A file that changes while submit runs ends the job with 1. When the file has its old
// contents, the same command goes on.
func TestSubmitInputGrows(t *testing.T) {
	const requests = 1500 // more than --max-memory lets submit send at once
	srv := batchtest.NewServer(batchtest.Options{Turnaround: time.Second, Logf: t.Logf})
	defer srv.Close()
	dir := t.TempDir()
	input, out := filepath.Join(dir, "in.jsonl"), filepath.Join(dir, "out.jsonl")
	line := func(i int) string {
		return fmt.Sprintf(`{"custom_id":"%d","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"%0500d"}]}}`+"\n", i, i)
	}
	var text strings.Builder
	for i := range requests {
		text.WriteString(line(i))
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(input, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	submit := func() *exec.Cmd {
		cmd := exec.Command("autobatcher", "submit", "--base-url", srv.URL, "--api-key", "key", "--batch-size", "100", "--max-memory", "32MB",
			"--batch-window", "0.1", "--poll-interval", "0.1", "--journal", filepath.Join(dir, "journal.db"), "-o", out, input)
		cmd.Env = []string{"GORACE=" + raceOptions}
		return cmd
	}
	write(text.String())
	first := submit()
	var printed strings.Builder
	first.Stderr = &printed
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(testTimeout); len(srv.Batches()) == 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	file, err := os.OpenFile(input, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(line(requests)); err != nil {
		t.Fatal(err)
	}
	file.Close()
	_ = first.Wait()
	if first.ProcessState.ExitCode() != 1 || !strings.Contains(printed.String(), "the input file has changed while it was read: it had 1500 lines, and has more") {
		t.Errorf("exit code %d: %s", first.ProcessState.ExitCode(), &printed)
	}
	if _, err := os.Stat(out + ".part"); err != nil {
		t.Error(err)
	}
	write(text.String())
	if text, err := submit().CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	results, err := os.ReadFile(out)
	if n := strings.Count(string(results), "\n"); err != nil || n != requests {
		t.Errorf("%d results, %v", n, err)
	}
}
