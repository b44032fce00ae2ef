package sqlite

import (
	"path/filepath"
	"testing"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/journaltest"
)

func TestStore(t *testing.T) {
	journaltest.Run(t, func(t *testing.T) func() journal.Store {
		path := filepath.Join(t.TempDir(), "journal")
		return func() journal.Store { return mustOpen(t, path) }
	})
}

func mustOpen(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
