package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
)

// Heartbeat implements journal.Store.
func (s *Store) Heartbeat(ctx context.Context, owner string, lease time.Duration) (fresh bool, err error) {
	if lease <= 0 {
		return true, s.transact(ctx, func(tx pgx.Tx) error {
			return end(ctx, tx, `delete from autobatcher.owners where name = $1 returning id`, owner)
		})
	}
	err = s.pool.QueryRow(ctx, `
		insert into autobatcher.owners (name, heard, until)
		values ($1, clock_timestamp(), clock_timestamp() + $2)
		on conflict (name) do update set heard = clock_timestamp(), until = clock_timestamp() + $2
		returning xmax = 0`, // a row that was there before has been locked
		owner, lease).Scan(&fresh)
	return fresh, s.explain(err)
}

// bury ends the leases of owners that were not heard of for too long.
func bury(ctx context.Context, tx pgx.Tx) error {
	return end(ctx, tx, `delete from autobatcher.owners where until <= clock_timestamp() returning id`)
}

// end ends the leases that a statement deletes, and opens what their owners
// held. The deleting waits for Begin and TakeOver to end, which lock the row of
// their owner; so the opening, which comes after, sees what they did.
func end(ctx context.Context, tx pgx.Tx, deleting string, args ...any) error {
	rows, err := tx.Query(ctx, deleting, args...)
	if err != nil {
		return err
	}
	dead, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil || len(dead) == 0 {
		return err
	}
	if _, err := tx.Exec(ctx, `update autobatcher.batches set owner = null where owner = any($1)`, dead); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `update autobatcher.lines set owner = null where owner = any($1)`, dead)
	return err
}

// leased finds an owner that must have a lease, and keeps it from ending before
// the transaction does.
func leased(ctx context.Context, tx pgx.Tx, owner string) (id int64, err error) {
	err = tx.QueryRow(ctx, `
		select id from autobatcher.owners where name = $1 and until > clock_timestamp() for key share`,
		owner).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		err = journal.ErrLapsed
	}
	return id, err
}

// Owners implements journal.Store.
func (s *Store) Owners(ctx context.Context) ([]journal.Owner, error) {
	rows, err := s.pool.Query(ctx, `
		select name, now() - heard, until - now() from autobatcher.owners where until > now() order by name collate "C"`)
	if err != nil {
		return nil, s.explain(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[journal.Owner])
	return all, s.explain(err)
}
