//go:build unix

package postgres

import (
	"context"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/journaltest"
)

func TestStore(t *testing.T) {
	journaltest.Run(t, func(t *testing.T) func() journal.Store {
		url := newDatabase(t)
		return func() journal.Store { return mustOpen(t, url) }
	})
}

func beat(ctx context.Context, s *Store, owner string, lease time.Duration) error {
	_, err := s.Heartbeat(ctx, owner, lease)
	return err
}

func mustOpen(t testing.TB, url string) *Store {
	t.Helper()
	s, err := Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
