//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

// serve is stopped when the only caller of a running batch has disconnected and
// the journal has released the line. serve must cancel the batch, which would
// otherwise run to its end and be paid for.
func TestServeCancelsBatchWithoutCallers(t *testing.T) {
	s := step{
		provider: "openai", server: batchtest.Options{Turnaround: time.Hour},
		flags: []string{"--keep-active-batches-on-close=false"},
	}
	w := newWorld(t, s, filepath.Join(t.TempDir(), "journal.db"))
	p := w.serve(freePort(t), "0")
	ctx, disconnect := context.WithCancel(t.Context())
	defer disconnect()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		callUntilCancelled(ctx, p.url)
	}()
	w.until(func() bool { return strings.Contains(p.log.String(), "batch submitted") })
	disconnect()
	<-ended
	w.until(func() bool { return w.releasedLines() == 1 })
	if n := w.releasedLines(); n != 1 {
		t.Fatalf("the journal has %d released lines, want 1", n)
	}
	p.end()
	w.wantCancelled()
}

// callUntilCancelled makes a call and waits for the answer or for the end of ctx.
func callUntilCancelled(ctx context.Context, url string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/chat/completions", bytes.NewReader(chatBody("hi")))
	if err != nil {
		return
	}
	if res, err := http.DefaultClient.Do(req); err == nil {
		_ = res.Body.Close()
	}
}

// releasedLines returns how many lines of running batches the journal has
// released to the next caller.
func (w *world) releasedLines() int {
	w.Helper()
	out, err := exec.Command("autobatcher", "batches", "--json", "--journal", w.journal).Output()
	if err != nil {
		return 0
	}
	released := 0
	for line := range strings.Lines(string(out)) {
		var b batchRecord
		if err := json.Unmarshal([]byte(line), &b); err != nil {
			w.Fatal(err)
		}
		if b.State == "running" && b.Held == 0 {
			released += b.Open
		}
	}
	return released
}

// wantCancelled checks that each batch at the provider was cancelled.
func (w *world) wantCancelled() {
	w.Helper()
	batches := w.srv.Batches()
	if len(batches) == 0 {
		w.Error("the provider has no batch")
	}
	for _, b := range batches {
		if !b.CancelRequested {
			w.Errorf("%s runs on: no cancellation was requested", b.ID)
		}
	}
}

// Ctrl-C reaches run and its program at once. The program ends, and with it the
// callers; run must cancel their batch, and say so.
func TestRunInterruptedCancelsBatch(t *testing.T) {
	w := newWorld(t, step{server: batchtest.Options{Turnaround: time.Hour}}, filepath.Join(t.TempDir(), "journal.db"))
	log := w.interruptedRun()
	w.wantCancelled()
	want := "autobatcher: cancelled 1 batch (" + w.srv.Batches()[0].ID + "). Lines that had finished are paid for. The same command makes the calls again"
	if !strings.Contains(log, want) {
		t.Errorf("run does not say %q:\n%s", want, log)
	}
}

// With --keep-active-batches-on-close, the batch runs on after Ctrl-C, and the same
// command gets the result of the batch, as run says.
func TestRunInterruptedKeepsBatch(t *testing.T) {
	w := newWorld(t, step{server: batchtest.Options{Turnaround: 5 * time.Second}}, filepath.Join(t.TempDir(), "journal.db"))
	log := w.interruptedRun("--keep-active-batches-on-close")
	id := w.srv.Batches()[0].ID
	if want := "autobatcher: left running, and paid for: 1 batch (" + id + "). The same command picks up the results"; !strings.Contains(log, want) {
		t.Errorf("run does not say %q:\n%s", want, log)
	}
	cmd := w.runCommand("--keep-active-batches-on-close")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "You said: hi") {
		t.Errorf("the same command: %v\n%s", err, out)
	}
	if n := len(w.srv.Batches()); n != 1 {
		t.Errorf("the provider has %d batches, want 1: the call was paid for again\n%s", n, out)
	}
}

// Without a journal the same command cannot pick up results, and run does not say so.
func TestRunInterruptedWithoutJournal(t *testing.T) {
	w := newWorld(t, step{server: batchtest.Options{Turnaround: time.Hour}}, filepath.Join(t.TempDir(), "journal.db"))
	log := w.interruptedRun("--keep-active-batches-on-close", "--journal", "off")
	if !strings.Contains(log, "Without a journal, the same command makes the calls again") || strings.Contains(log, "picks up") {
		t.Errorf("run says:\n%s", log)
	}
}

// runCommand returns a command that runs a program with one call.
func (w *world) runCommand(flags ...string) *exec.Cmd {
	args := []string{
		"run", "--base-url", w.srv.URL, "--api-key", "key", "--batch-window", "0",
		"--poll-interval", "0.1", "--journal", w.journal, "--log-level", "info",
	}
	args = append(append(args, flags...), "--", "child", "ask", "hi")
	return exec.Command("autobatcher", args...)
}

// interruptedRun interrupts runCommand when the batch is submitted, and returns what
// run has written.
func (w *world) interruptedRun(flags ...string) string {
	w.Helper()
	cmd := w.runCommand(flags...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a process group to interrupt, without a terminal
	var log lockedBuffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // the group may have ended
	w.until(func() bool { return strings.Contains(log.String(), "batch submitted") })
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		w.Fatal(err)
	}
	_ = cmd.Wait() // checked below
	if got := cmd.ProcessState.ExitCode(); got != exitSignal+int(syscall.SIGINT) {
		w.Errorf("run ended with %d, want the code of an interrupted program:\n%s", got, log.String())
	}
	return log.String()
}
