package sqlite

import (
	"path/filepath"
	"testing"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/journaltest"
)

func BenchmarkStore(b *testing.B) { journaltest.Bench(b, newJournal) }

func BenchmarkScale(b *testing.B) { journaltest.BenchScale(b, newJournal) }

func newJournal(b *testing.B) journal.Store {
	return mustOpen(b, filepath.Join(b.TempDir(), "journal"))
}
