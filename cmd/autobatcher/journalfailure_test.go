//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/pgtest"
)

// A journalFailure makes the open journal of a serve process fail, and repairs the
// journal.
type journalFailure struct {
	journal      string
	fail, repair func()
	logged       string // part of the log message
	code         string // error code of a call if the journal is required
}

// testJournalFailure checks that serve logs a failure of the journal and answers
// calls without the journal, or fails calls if the journal is required, and that
// serve uses the repaired journal.
func testJournalFailure(t *testing.T, newFailure func(t *testing.T) journalFailure) {
	for _, required := range []bool{false, true} {
		t.Run(fmt.Sprint("required=", required), func(t *testing.T) {
			t.Parallel()
			f := newFailure(t)
			w := newWorld(t, step{provider: "openai", flags: []string{fmt.Sprint("--journal-required=", required)}}, f.journal)
			proxy := w.serve(freePort(t), "0")
			w.answers(proxy, "before")
			w.delivered(1)
			f.fail()
			if required {
				w.refuses(proxy, "during", f.code)
			} else {
				w.answers(proxy, "during")
			}
			w.until(func() bool { return strings.Contains(proxy.log.String(), f.logged) })
			if !strings.Contains(proxy.log.String(), f.logged) {
				t.Errorf("the log does not contain %q", f.logged)
			}
			f.repair()
			w.answers(proxy, "after")
			w.delivered(2)
			proxy.end()
		})
	}
}

// answers makes a call, which must get the answer.
func (w *world) answers(p *proxyProcess, prompt string) {
	w.Helper()
	text, _, err := new(callers).callOnce(p.url, chatBody(prompt))
	if err != nil || !strings.Contains(text, prompt) {
		w.Errorf("%s: %s, %v", prompt, text, err)
	}
}

// refuses makes a call, which must get a 503 with this code.
func (w *world) refuses(p *proxyProcess, prompt, code string) {
	w.Helper()
	_, _, err := new(callers).callOnce(p.url, chatBody(prompt))
	if err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), code) {
		w.Errorf("%s: %v; want 503 and %q", prompt, err, code)
	}
	if n := len(w.srv.Batches()); n != 1 {
		w.Errorf("%d batches; a refused call must not create a batch", n)
	}
}

// delivered waits until the journal has this number of batches, all of them ended
// and delivered.
func (w *world) delivered(batches int) {
	w.Helper()
	var out []byte
	var err error
	done := func() bool {
		out, err = exec.Command("autobatcher", "batches", "--json", "--journal", w.journal).Output()
		n := 0
		for line := range strings.Lines(string(out)) {
			var b batchRecord
			if json.Unmarshal([]byte(line), &b) == nil && b.State == "ended" && b.Delivered == 1 {
				n++
			}
		}
		return err == nil && n == batches
	}
	if w.until(done); !done() {
		w.Errorf("the journal has:\n%s%v; want %d delivered batches", out, err, batches)
	}
}

func TestPostgresIsDown(t *testing.T) {
	testJournalFailure(t, func(t *testing.T) journalFailure {
		postgres := pgtest.Run(t)
		url, err := postgres.NewDatabase(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		must := func(f func() error) func() {
			return func() {
				if err := f(); err != nil {
					t.Fatal(err)
				}
			}
		}
		return journalFailure{
			journal: url, fail: must(postgres.Down), repair: must(postgres.Up),
			logged: "journal: take over failed", code: "journal_failed",
		}
	})
}

func chatBody(prompt string) []byte {
	return []byte(`{"model":"m","messages":[{"role":"user","content":"` + prompt + `"}]}`)
}

// Another file takes the place of the journal.
func TestJournalFileIsReplaced(t *testing.T) {
	testJournalFailure(t, func(t *testing.T) journalFailure {
		path := filepath.Join(t.TempDir(), "journal.db")
		must := func(errs ...error) {
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
		}
		return journalFailure{
			journal: path,
			fail:    func() { must(os.Rename(path, path+".old"), os.WriteFile(path, nil, 0o600)) },
			repair:  func() { must(os.Rename(path+".old", path)) },
			logged:  "deleted or replaced while in use", code: "journal_failed",
		}
	})
}
