//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/autobatcher/autobatcher/journal"
)

// Files that other users can read or write are reported with their mode.
func TestFileModes(t *testing.T) {
	for _, test := range []struct {
		mode         os.FileMode
		journal, key bool // wants a warning
	}{
		{0o600, false, false},
		{0o400, false, false},
		{0o640, true, false}, // Kubernetes gives a key to the group of the pod
		{0o644, true, true},
		{0o666, true, true},
		{0o602, true, true},
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := errors.Join(os.WriteFile(path, []byte("sk-key"), 0o600), os.Chmod(path, test.mode)); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		process{}.warnAboutMode(log, path)
		if got := strings.Contains(out.String(), "journal; chmod 600"); got != test.journal {
			t.Errorf("journal with mode %o: warning %v: %s", test.mode, got, out.String())
		}
		out.Reset()
		if _, err := openKeyFile(path, log); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(out.String(), "API key file; chmod 600"); got != test.key {
			t.Errorf("key file with mode %o: warning %v: %s", test.mode, got, out.String())
		}
		if strings.Contains(out.String(), "sk-key") {
			t.Error("the warning contains the key")
		}
	}
}

// A new journal must be readable by this user only.
func TestNewJournalIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	store, err := process{}.openStore(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := store.Heartbeat(t.Context(), "owner", time.Minute); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || openTo(info, 0o077) {
			t.Errorf("%s: %v %v", file, info.Mode(), err)
		}
	}
}

// failingJournal fails heartbeats while err is not nil.
type failingJournal struct {
	journal.Store
	err error
}

func (f *failingJournal) Heartbeat(context.Context, string, time.Duration) (bool, error) {
	return false, f.err
}

func TestJournalMetric(t *testing.T) {
	store := &failingJournal{}
	m, metrics := &monitoredJournal{Store: store}, prometheus.NewRegistry()
	m.register(metrics)
	for _, err := range []error{nil, errors.New("down"), nil} {
		store.err = err
		if _, got := m.Heartbeat(t.Context(), "", 0); !errors.Is(got, err) {
			t.Error(got)
		}
		want := 1.0
		if err != nil {
			want = 0
		}
		families, gathered := metrics.Gather()
		if gathered != nil || families[0].GetName() != "autobatcher_journal_up" || families[0].GetMetric()[0].GetGauge().GetValue() != want {
			t.Errorf("after %v: %v %v", err, families, gathered)
		}
	}
}
