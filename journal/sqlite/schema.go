package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"

	"github.com/autobatcher/autobatcher/journal"
)

// The versions of the schema, each as the step from the version before.
//
//go:embed schema/*.sql
var schema embed.FS

const (
	// version is the newest known version of the schema.
	version = 3

	// applicationID tells a journal from other SQLite files: "abjr".
	applicationID = 0x61626a72
)

// errForeign is the error for a file that another program made.
var errForeign = errors.New("not a journal, but some other SQLite database")

// prepare checks that the file is a sound journal, and migrates the journal to the
// newest version.
func (s *Store) prepare(ctx context.Context) error {
	if err := s.retryWhileBusy(ctx, func() error { return s.check(ctx) }); err != nil {
		return err
	}
	return s.transact(ctx, func(tx *sql.Tx) error {
		have, err := versionOf(ctx, tx)
		if err != nil {
			return err
		}
		if have == 1 {
			if err := s.unused(ctx, tx); err != nil {
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

// check reads the whole file. Other processes may write meanwhile.
func (s *Store) check(ctx context.Context) error {
	var found string
	if err := s.db.QueryRowContext(ctx, `pragma quick_check(1)`).Scan(&found); err != nil {
		return err
	}
	if found != "ok" {
		return fmt.Errorf("%w: %s", journal.ErrDamaged, found)
	}
	return nil
}

// versionOf returns the version of the file's schema, 0 if the file is empty.
func versionOf(ctx context.Context, tx *sql.Tx) (v int, err error) {
	var application, tables int
	err = tx.QueryRowContext(ctx, `
		select user_version, application_id, (select count(*) from sqlite_schema)
		from pragma_user_version, pragma_application_id`).Scan(&v, &application, &tables)
	switch {
	case err != nil:
		return 0, err
	case tables == 0:
		return 0, nil
	case application != applicationID:
		return 0, errForeign
	case v > version:
		return 0, fmt.Errorf("%w: its schema has version %d, and this program knows %d", journal.ErrNewer, v, version)
	}
	return v, nil
}

// unused returns ErrOlderInUse if a process of the old version is alive: the process
// would continue with changed tables. Processes with a locked file are alive; on
// systems without locks, processes with a running lease.
func (s *Store) unused(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, `select id, until > ? from owners`, now())
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var leased bool
		if err := rows.Scan(&id, &leased); err != nil {
			return err
		}
		if locked(s.lockPath(id)) && (canLock || leased) {
			return journal.ErrOlderInUse
		}
	}
	return rows.Err()
}

func migrate(ctx context.Context, tx *sql.Tx, v int) error {
	step, err := schema.ReadFile(fmt.Sprintf("schema/%03d.sql", v))
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, string(step)); err != nil {
		return fmt.Errorf("schema version %d: %w", v, err)
	}
	_, err = tx.ExecContext(ctx, fmt.Sprintf(`pragma user_version = %d; pragma application_id = %d`, v, applicationID))
	return err
}
