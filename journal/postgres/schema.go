package postgres

import (
	"context"
	"embed"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
)

// The schema's versions, each as the step from the one before.
//
//go:embed schema/*.sql
var schema embed.FS

const (
	// version is the newest version of the schema that this code knows.
	version = 1

	// migrating is the advisory lock under which the schema is changed, so that
	// replicas that start together do not meet.
	migrating = 0x61626a72
)

// prepare brings the schema to the newest version.
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
		for v := have + 1; v <= version; v++ {
			if err := migrate(ctx, tx, v); err != nil {
				return err
			}
		}
		return nil
	})
}

// peek says which version the schema has, 0 if there is none, and changes
// nothing: a role that may not create anything can use what is there.
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

// makeSchema makes what holds the tables, and says which version they have.
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
