package sqlite

import (
	"database/sql"
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

// edit executes a statement in a journal's file.
func edit(t *testing.T, path, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

// holdLock holds the write lock until unlock or the end of the test.
func holdLock(t *testing.T, path string) (unlock func()) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(`begin immediate`); err != nil {
		t.Fatal(err)
	}
	unlock = func() { db.Close() }
	t.Cleanup(unlock)
	return unlock
}
