// Package postgres keeps a journal in a PostgreSQL database, which any number of
// replicas may share. A call that is repeated at another replica finds its line,
// no line goes to two owners, and the lines of a dead replica are open as soon as
// its lease has run out.
//
// All tables are in a schema of their own, "autobatcher", so that the journal may
// share a database with other programs. The role must be allowed to create that
// schema, or own it. PostgreSQL 13 and later will do, poolers such as PgBouncer
// included: the journal keeps nothing in a session.
//
// The clock and the durability are the database's. A server whose
// synchronous_commit is off may lose what it confirmed just before a crash.
//
// # How races end
//
// Transactions are READ COMMITTED. Five rules make the outcome of a race certain:
//
//   - An owner is alive while its row in owners exists. A request that relies on a
//     death first deletes the rows of expired owners and commits. A heartbeat at the
//     same moment locks the row first and the owner lives, or waits for the deletion
//     and makes a new owner.
//   - A line is taken by comparison: the update names the released or dead owner
//     of the lookup, and ids of owners are never used again. If a different owner took
//     the line after the lookup, the update does not change the line.
//   - A withdrawn line is deleted by comparison, too. If the holder changed after the
//     lookup, Withdraw looks up again. A transaction of Withdraw changes the lines of
//     one holder, in the order of batches.
//   - A transaction that gives lines to its owner locks the row of its owner at the
//     end (FOR KEY SHARE). If the owner died meanwhile, the transaction is undone.
//   - Abandon, Discard and Forget lock the row of a batch FOR UPDATE; TakeOver, Hold
//     and Withdraw lock the row FOR KEY SHARE. A batch is cancelled or joined, never both.
package postgres

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/autobatcher/autobatcher/internal/retry"
	"github.com/autobatcher/autobatcher/journal"
)

// Store is a journal in a database. Its methods may be called concurrently.
type Store struct {
	pool  *pgxpool.Pool
	beats *pgxpool.Pool // a connection for heartbeats only
	name  string        // of the database, for errors; without the password
}

var _ journal.Store = (*Store)(nil)

// Open opens the journal in the database that url names, a connection string as
// libpq's "postgres://user@host/database?sslmode=require" or
// "host=… dbname=…". The string may contain options of pgxpool, for example
// pool_max_conns; heartbeats use one connection more. Open makes missing tables. A
// journal of an older version is migrated, unless a process of the older version
// has a lease: then the error is journal.ErrOlderInUse. The error wraps a sentinel
// of package journal where one fits, says what to do, and holds no password.
func Open(ctx context.Context, url string) (*Store, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err // pgx leaves the password out
	}
	s := &Store{name: nameOf(config.ConnConfig)}
	config.ConnConfig.RuntimeParams["application_name"] = "autobatcher"
	if err := s.connect(ctx, config); err != nil {
		return nil, s.explain(err)
	}
	if err := s.prepare(ctx); err != nil {
		s.Close() //nolint:errcheck // Close cannot fail
		return nil, err
	}
	return s, nil
}

func (s *Store) connect(ctx context.Context, config *pgxpool.Config) (err error) {
	beats := config.Copy()
	beats.MaxConns, beats.MinConns, beats.MinIdleConns = 1, 0, 0
	if s.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	if s.beats, err = pgxpool.NewWithConfig(ctx, beats); err != nil {
		s.pool.Close()
	}
	return err
}

// Close implements journal.Store.
func (s *Store) Close() error {
	s.beats.Close()
	s.pool.Close()
	return nil
}

// Key implements journal.Store.
func (s *Store) Key(ctx context.Context) (key journal.Hash, err error) {
	var text []byte
	if err := s.pool.QueryRow(ctx, `select key from autobatcher.secret`).Scan(&text); err != nil {
		return key, s.explain(err)
	}
	copy(key[:], text)
	return key, nil
}

const (
	// maxTries limits the attempts of a transaction that the database undoes because of
	// a deadlock, which is rare.
	maxTries = 5

	// maxPause bounds the random pause between two attempts, in which the other
	// transactions of the deadlock end. Without pauses the same transactions can meet
	// again in each attempt.
	maxPause = 200 * time.Millisecond
)

// update changes the journal for an owner, as a whole or not at all. Before the
// change, update removes other owners that expired.
func (s *Store) update(ctx context.Context, owner string, change func(tx pgx.Tx) error) error {
	if err := s.removeDead(ctx, owner); err != nil {
		return err
	}
	return s.transact(ctx, change)
}

func (s *Store) transact(ctx context.Context, change func(tx pgx.Tx) error) error {
	return s.within(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, change)
}

func (s *Store) within(ctx context.Context, options pgx.TxOptions, do func(tx pgx.Tx) error) error {
	return s.try(ctx, func() error { return pgx.BeginTxFunc(ctx, s.pool, options, do) })
}

// try repeats do after a deadlock, and explains the last error of do.
func (s *Store) try(ctx context.Context, do func() error) error {
	err := do()
	for range maxTries - 1 {
		if !givenUp(err) || retry.Sleep(ctx, rand.N(maxPause)) != nil {
			break
		}
		err = do()
	}
	return s.explain(err)
}

// givenUp reports whether the database undid a transaction because of a concurrent
// transaction.
func givenUp(err error) bool {
	var failed *pgconn.PgError
	return errors.As(err, &failed) && (failed.Code == "40P01" || failed.Code == "40001")
}

// inOrder calls functions in order until an error.
func inOrder(all ...func() error) error {
	for _, do := range all {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// moment is a time as journal.Batch has it.
func moment(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
