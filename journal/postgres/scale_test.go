//go:build unix

package postgres

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
)

// A death changes the owners table and nothing else.
func TestDeathRewritesNothing(t *testing.T) {
	s := mustOpen(t, newDatabase(t))
	for _, owner := range []string{"dead", "new"} {
		if err := beat(t.Context(), s, owner, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	for ref, lines := range map[string]int{"small": 10, "large": 1000} {
		b := journal.Batch{Ref: ref, Owner: "dead", Account: testAccount}
		if err := s.Begin(t.Context(), b, make([]journal.Line, lines)); err != nil {
			t.Fatal(err)
		}
	}
	if err := beat(t.Context(), s, "dead", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.TakeOver(t.Context(), "new", testAccount, make([]journal.Hash, 15)); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]int{
		`select count(*) from autobatcher.lines where owner = 1`:   995,
		`select count(*) from autobatcher.lines where owner = 2`:   15,
		`select count(*) from autobatcher.batches where owner = 1`: 2,
	} {
		got := 0
		if err := s.pool.QueryRow(t.Context(), query).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %d, %v, want %d", query, got, err, want)
		}
	}
}

// Heartbeats do not wait for the connections of other requests.
func TestHeartbeatHasItsOwnConnection(t *testing.T) {
	s := mustOpen(t, newDatabase(t)+"&pool_max_conns=1")
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if err := beat(t.Context(), s, "a", time.Hour); err != nil {
		t.Error(err)
	}
}

// An owner that dies during a request of its own gets ErrLapsed, and the request
// changes nothing. A lock of the test stops each request in the middle.
func TestDeathDuringARequest(t *testing.T) {
	const lockBatch = `select 1 from autobatcher.batches where ref = 'one' for update`
	for _, test := range []struct {
		name, lock string
		request    func(s *Store) error
	}{
		{"Begin", `insert into autobatcher.batches (ref, account, upstream, provider, endpoint, "window", state, lines)
			values ('two', '', '', '', '', '', '', 0)`, func(s *Store) error {
			return s.Begin(t.Context(), journal.Batch{Ref: "two", Owner: "a", Account: testAccount}, make([]journal.Line, 1))
		}},
		{"TakeOver", lockBatch, func(s *Store) error {
			_, err := s.TakeOver(t.Context(), "a", testAccount, make([]journal.Hash, 1))
			return err
		}},
		{"Hold", lockBatch, func(s *Store) error { return s.Hold(t.Context(), "a", "one", []int{0}) }},
		{"Claim", lockBatch, func(s *Store) error {
			_, err := s.Claim(t.Context(), "a", "one")
			return err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := mustOpen(t, newDatabase(t))
			err := errors.Join(
				beat(t.Context(), s, "a", time.Hour),
				beat(t.Context(), s, "dead", time.Hour),
				s.Begin(t.Context(), journal.Batch{Ref: "one", Owner: "dead", Account: testAccount}, make([]journal.Line, 1)),
				beat(t.Context(), s, "dead", 0))
			if err != nil {
				t.Fatal(err)
			}
			answer := make(chan error, 1)
			err = pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(t.Context(), test.lock); err != nil {
					return err
				}
				go func() { answer <- test.request(s) }()
				waitForLock(t, s)
				if err := beat(t.Context(), s, "a", 0); err != nil {
					return err
				}
				return errUndo
			})
			if !errors.Is(err, errUndo) {
				t.Fatal(err)
			}
			if err := <-answer; !errors.Is(err, journal.ErrLapsed) {
				t.Errorf("got %v, want ErrLapsed", err)
			}
			all, err := s.Batches(t.Context(), journal.Filter{})
			if err != nil || len(all) != 1 || all[0].Owner != "" || all[0].Open != 1 {
				t.Errorf("batches %v, %v, want one without an owner", all, err)
			}
		})
	}
}

// errUndo undoes a transaction of a test.
var errUndo = errors.New("undo")

// waitForLock waits until a request waits for a lock.
func waitForLock(t *testing.T, s *Store) {
	eventually(t, func() (waits bool) {
		err := s.pool.QueryRow(t.Context(), `
			select exists (select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')`).Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
		return waits
	})
}
