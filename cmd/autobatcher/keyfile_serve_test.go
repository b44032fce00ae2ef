//go:build unix

package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/batchtest"
)

// serve sends new calls with the new key soon after the key file was replaced,
// and keeps the old key while the file is empty. No log line holds a key.
func TestServeReadsTheKeyFileAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	writeKey(t, path, "secret-one\n")
	s := step{provider: "openai", server: batchtest.Options{}, flags: []string{"--api-key-file", path}}
	w := newWorld(t, s, filepath.Join(t.TempDir(), "journal.db"))
	p := w.serve(freePort(t), "0")
	newestKey := func() string {
		uploads := w.srv.Uploads()
		return uploads[len(uploads)-1].APIKey
	}
	w.answers(p, "first")
	if got := newestKey(); got != "secret-one" {
		t.Errorf("the file was uploaded with %q, want the key of the file", got)
	}

	writeKey(t, path, "")
	w.until(func() bool {
		w.answers(p, "empty")
		return strings.Contains(p.log.String(), "the API key file is not valid")
	})
	if got := newestKey(); got != "secret-one" {
		t.Errorf("while the file is empty, the key is %q, want the last valid key", got)
	}

	writeKey(t, path, "secret-two")
	w.until(func() bool {
		w.answers(p, "changed")
		return newestKey() == "secret-two"
	})
	if got := newestKey(); got != "secret-two" {
		t.Errorf("after the change, the key is %q", got)
	}
	p.end()
	if log := p.log.String(); strings.Contains(log, "secret") {
		t.Errorf("the log holds a key:\n%s", log)
	}
}
