//go:build !wasip1 && !nodatabase

package simulation

import (
	"context"
	"flag"
	"path/filepath"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/sqlite"
)

// The machine has no file system, so that its journals are in memory.
func init() {
	inSQLite := flag.Bool("sqlite", false, "keep each schedule's journal in a SQLite file, which each process opens, instead of in memory")
	otherwise := newJournal
	newJournal = func(w *world) func() journal.Store {
		if *inSQLite {
			return sqliteJournal(w)
		}
		return otherwise(w)
	}
}

func sqliteJournal(w *world) func() journal.Store {
	path := filepath.Join(w.TempDir(), "journal.db")
	return func() journal.Store {
		store, err := sqlite.Open(context.Background(), path)
		if err != nil {
			w.failf("journal: %v", err)
		}
		return store
	}
}
