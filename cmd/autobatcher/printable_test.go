package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/journal"
)

// hostile is text that would clear a terminal, set its title and reorder its text.
const hostile = "m\x1b[2J\x1b]0;title\a\r\u009b31m\u202etxt\u2066\x00\x7f"

// wantPrintable checks that output has no character that controls a terminal.
func wantPrintable(t *testing.T, output string) {
	t.Helper()
	for _, r := range output {
		if r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069) {
			t.Errorf("the output contains %U: %q", r, output)
			return
		}
	}
	if !strings.Contains(output, `\u001b[2J`) {
		t.Errorf("the text is missing: %q", output)
	}
}

// The text of callers and providers must not control the terminal.
func TestTerminalOutput(t *testing.T) {
	batch := journal.Batch{BatchID: hostile + "\nnext", State: journal.Ended, Status: hostile, Provider: hostile, Endpoint: hostile, Models: []string{hostile}}
	for name, write := range map[string]func(*bytes.Buffer) error{
		"batches":        func(w *bytes.Buffer) error { return writeTable(w, []journal.Batch{batch}, time.Now()) },
		"batches --json": func(w *bytes.Buffer) error { return writeJSON(w, []journal.Batch{batch}) },
		"run --dry-run": func(w *bytes.Buffer) error {
			prices, err := price.NewMeter(nil, nil, nil)
			if err != nil {
				return err
			}
			d := &dryRun{size: 1, prices: prices, tallies: map[share]*tally{{"/embeddings", hostile}: {calls: 1}}}
			_, err = w.WriteString(d.summary())
			return err
		},
		"an error": func(w *bytes.Buffer) error {
			process{stderr: w}.printError(errors.New(hostile))
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := write(&out); err != nil {
				t.Fatal(err)
			}
			wantPrintable(t, out.String())
			if name == "batches" && strings.Count(out.String(), "\n") != 2 {
				t.Errorf("the id of a batch adds lines: %q", out.String())
			}
		})
	}
}

// JSON for a terminal must keep the values.
func TestPrintableJSON(t *testing.T) {
	want := map[string]string{"id": hostile + "é日\U0001f600\U000e0001"}
	line, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := (terminalWriter{&out}).Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
	wantPrintable(t, out.String())
	var got map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got["id"] != want["id"] {
		t.Errorf("%v: %q", err, out.String())
	}
	if plain := "é 日\n"; printable(plain) != plain {
		t.Errorf("%q", printable(plain))
	}
}

// The text log must not pass control characters on.
func TestTextLogOnTerminal(t *testing.T) {
	var out bytes.Buffer
	s := newSettings()
	s.logFormat = "text"
	log, err := s.logger(process{stderr: &out, env: []string{"NO_COLOR=1"}})
	if err != nil {
		t.Fatal(err)
	}
	log.Warn("batch failed", "model", hostile, "error", errors.New(hostile))
	for _, r := range out.String() {
		if r == 0x1b || r == 0x9b || r == 0x202e {
			t.Fatalf("%q", out.String())
		}
	}
}
