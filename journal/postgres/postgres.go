// Package postgres keeps a journal in a PostgreSQL database, which any number
// of replicas may share: a call that is tried again at another replica finds
// its line, no line is taken by two, and what a dead replica held is open as
// soon as its lease has run out.
//
// All tables are in a schema of their own, "autobatcher", so that the journal
// may live in a database with other things in it. The role must be allowed to
// create that schema, or own it. PostgreSQL 13 and later will do, poolers such
// as PgBouncer included: nothing is kept in a session.
//
// The clock is the database's alone, and so is durability: a server whose
// synchronous_commit is off may lose what it confirmed just before it crashed.
package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/autobatcher/autobatcher/journal"
)

// Store is a journal in a database. Its methods may be called concurrently.
type Store struct {
	pool *pgxpool.Pool
	name string // of the database, for errors; without the password
}

var _ journal.Store = (*Store)(nil)

// Open opens the journal in the database that url names, a connection string
// as libpq's "postgres://user@host/database?sslmode=require" or as
// "host=… dbname=…"; options of pgxpool such as pool_max_conns may be among it.
// Tables that are missing are made. The error wraps one of package journal's
// where one of them fits, and says what to do; it holds no password.
func Open(ctx context.Context, url string) (*Store, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err // pgx leaves the password out
	}
	s := &Store{name: nameOf(config.ConnConfig)}
	config.ConnConfig.RuntimeParams["application_name"] = "autobatcher"
	if s.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, s.explain(err)
	}
	if err := s.prepare(ctx); err != nil {
		s.pool.Close()
		return nil, err
	}
	return s, nil
}

// Close implements journal.Store.
func (s *Store) Close() error {
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

// maxTries bounds how often a change is tried that the database gave up for the
// sake of another: a deadlock is the only reason, and a rare one.
const maxTries = 5

// update changes the journal, wholly or not at all. What belongs to owners
// whose lease ran out is opened first.
func (s *Store) update(ctx context.Context, change func(tx pgx.Tx) error) error {
	return s.transact(ctx, func(tx pgx.Tx) error {
		if err := bury(ctx, tx); err != nil {
			return err
		}
		return change(tx)
	})
}

func (s *Store) transact(ctx context.Context, change func(tx pgx.Tx) error) error {
	var err error
	for range maxTries {
		err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, change)
		if !givenUp(err) {
			break
		}
	}
	return s.explain(err)
}

// givenUp reports whether the database undid a change so that another could go
// on.
func givenUp(err error) bool {
	var failed *pgconn.PgError
	return errors.As(err, &failed) && (failed.Code == "40P01" || failed.Code == "40001")
}

// moment is a time as journal.Batch has it.
func moment(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
