//go:build !wasip1

package simulation

import (
	"context"
	"flag"
	"path/filepath"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/sqlite"
)

// Without a file system the machine plays with the journal in memory.
func init() {
	inFiles := flag.Bool("sqlite", false, "keep the journals in SQLite files, each process with its own hand on the file, instead of in memory")
	newJournal = func(w *world) func() journal.Store {
		if !*inFiles {
			return inMemory(w)
		}
		path := filepath.Join(w.TempDir(), "journal.db")
		return func() journal.Store {
			store, err := sqlite.Open(context.Background(), path)
			if err != nil {
				w.wrong("journal: %v", err)
			}
			return store
		}
	}
}
