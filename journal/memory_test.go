package journal_test

import (
	"testing"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/journaltest"
)

func TestMemory(t *testing.T) {
	journaltest.Run(t, func(*testing.T) func() journal.Store {
		m := journal.NewMemory()
		return func() journal.Store { return m }
	})
}
