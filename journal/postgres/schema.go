package postgres

import (
	"context"
	"embed"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
)

// The versions of the schema, each as the step from the version before.
//
//go:embed schema/*.sql
var schema embed.FS

const (
	// version is the newest known version of the schema.
	version = 3

	// migrating is the advisory lock for changes of the schema. Replicas starting at
	// the same time change the schema once.
	migrating = 0x61626a72
)

// prepare migrates the schema to the newest version.
func (s *Store) prepare(ctx context.Context) error {
	if have, err := s.peek(ctx); err != nil || have == version {
		return s.explain(err)
	}
	return s.transact(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, migrating); err != nil {
			return err
		}
		have, err := makeSchema(ctx, tx)
		if err != nil {
			return err
		}
		if have == 1 {
			if err := unused(ctx, tx); err != nil {
				return err
			}
		}
		for v := have + 1; v <= version; v++ {
			if err := migrate(ctx, tx, v); err != nil {
				return err
			}
		}
		return nil
	})
}

// peek returns the version of the schema, 0 without a schema, and changes nothing:
// a role that may not create tables can use existing tables.
func (s *Store) peek(ctx context.Context) (have int, err error) {
	var exists bool
	err = s.pool.QueryRow(ctx, `select to_regclass('autobatcher.schema_version') is not null`).Scan(&exists)
	if err != nil || !exists {
		return 0, err
	}
	err = s.pool.QueryRow(ctx, `select coalesce(max(version), 0) from autobatcher.schema_version`).Scan(&have)
	if err == nil && have > version {
		err = fmt.Errorf("%w: its schema has version %d, and this program knows %d", journal.ErrNewer, have, version)
	}
	return have, err
}

// makeSchema makes the schema of the tables, and returns the version of the tables.
func makeSchema(ctx context.Context, tx pgx.Tx) (have int, err error) {
	_, err = tx.Exec(ctx, `
		create schema if not exists autobatcher;
		create table if not exists autobatcher.schema_version (
			version integer     primary key,
			since   timestamptz not null default clock_timestamp()
		)`)
	if err != nil {
		return 0, err
	}
	err = tx.QueryRow(ctx, `select coalesce(max(version), 0) from autobatcher.schema_version`).Scan(&have)
	return have, err
}

// unused returns ErrOlderInUse if a process of the old version is alive. Until the
// end of the transaction no process can renew a lease.
func unused(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, `lock table autobatcher.owners in access exclusive mode`); err != nil {
		return err
	}
	var used bool
	err := tx.QueryRow(ctx, `select exists (select 1 from autobatcher.owners where until > clock_timestamp())`).Scan(&used)
	if err == nil && used {
		err = journal.ErrOlderInUse
	}
	return err
}

func migrate(ctx context.Context, tx pgx.Tx, v int) error {
	step, err := schema.ReadFile(fmt.Sprintf("schema/%03d.sql", v))
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "set local search_path to autobatcher, pg_catalog"); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, string(step)); err != nil {
		return fmt.Errorf("schema version %d: %w", v, err)
	}
	_, err = tx.Exec(ctx, `insert into autobatcher.schema_version (version) values ($1)`, v)
	return err
}
