//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/pgtest"
)

// A trouble breaks a journal that a serve has open, and mends it.
type trouble struct {
	journal        string
	spoil, mend    func()
	says, required string // what the log says, and the answer to a call where the journal is required
}

// failsWhileServing checks that calls go on without the journal, and that the
// log says so; that they fail instead where it is required; and that it is used
// again when it is mended.
func failsWhileServing(t *testing.T, begin func(t *testing.T) trouble) {
	for _, required := range []bool{false, true} {
		t.Run(fmt.Sprint("required=", required), func(t *testing.T) {
			t.Parallel()
			x := begin(t)
			w := newWorld(t, step{provider: "openai", flags: []string{fmt.Sprint("--journal-required=", required)}}, x.journal)
			proxy := w.serve(freePort(t), "0")
			w.answers(proxy, "before")
			w.delivered(1)
			x.spoil()
			if required {
				w.refuses(proxy, "meanwhile", x.required)
			} else {
				w.answers(proxy, "meanwhile")
			}
			w.until(func() bool { return strings.Contains(proxy.log.String(), x.says) })
			if !strings.Contains(proxy.log.String(), x.says) {
				t.Errorf("the log does not say %q", x.says)
			}
			x.mend()
			w.answers(proxy, "after")
			w.delivered(2)
			proxy.end()
		})
	}
}

// answers makes a call that must be answered.
func (w *world) answers(p *proxyProcess, prompt string) {
	w.Helper()
	text, _, err := new(callers).askOnce(p.url, chatBody(prompt))
	if err != nil || !strings.Contains(text, prompt) {
		w.Errorf("%s: %s, %v", prompt, text, err)
	}
}

// refuses makes a call that must not be answered.
func (w *world) refuses(p *proxyProcess, prompt, says string) {
	w.Helper()
	_, _, err := new(callers).askOnce(p.url, chatBody(prompt))
	if err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), says) {
		w.Errorf("%s: %v; want 503 and %q", prompt, err, says)
	}
	if n := len(w.srv.Batches()); n != 1 {
		w.Errorf("%d batches; a call that is refused buys nothing", n)
	}
}

// delivered waits until the journal knows so many batches, all delivered.
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
		w.Errorf("the journal says:\n%s%v; want %d batches that were delivered", out, err, batches)
	}
}

func TestPostgresGoesAway(t *testing.T) {
	failsWhileServing(t, func(t *testing.T) trouble {
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
		return trouble{
			journal: url, spoil: must(postgres.Down), mend: must(postgres.Up),
			says: "journal: take over failed", required: "journal_failed",
		}
	})
}

func chatBody(prompt string) []byte {
	return []byte(`{"model":"m","messages":[{"role":"user","content":"` + prompt + `"}]}`)
}
