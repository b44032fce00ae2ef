package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
)

// renew gives an owner a lease. If a concurrent transaction deletes the row, renew
// waits and inserts a new row with a new id.
const renew = `
	insert into autobatcher.owners (name, heard, until)
	values ($1, clock_timestamp(), clock_timestamp() + $2)
	on conflict (name) do update set heard = clock_timestamp(), until = clock_timestamp() + $2
	returning xmax = 0` // false if the row existed before

// Heartbeat implements journal.Store.
func (s *Store) Heartbeat(ctx context.Context, owner string, lease time.Duration) (expired bool, err error) {
	if lease <= 0 {
		_, err := s.beats.Exec(ctx, `delete from autobatcher.owners where name = $1`, owner)
		return true, s.explain(err)
	}
	err = s.beats.QueryRow(ctx, renew, owner, lease).Scan(&expired)
	return expired, s.explain(err)
}

// deleteExpired deletes the expired owners, except for the owner named $1. Locks in the
// order of ids avoid a deadlock of two deletions. An owner with an earlier heartbeat
// stays alive, since the lock repeats the comparison.
const deleteExpired = `
	with dead as materialized (
		select id from autobatcher.owners where until <= clock_timestamp() and name <> $1 order by id for update)
	delete from autobatcher.owners o using dead where o.id = dead.id`

// removeDead removes the expired owners, except for the owner of the request. Lines and
// batches of a removed owner do not change: they are open because no owner of the id
// exists. removeDead commits before the request relies on the death. A long request
// therefore keeps no lock on the rows of other owners.
func (s *Store) removeDead(ctx context.Context, except string) error {
	_, err := s.pool.Exec(ctx, deleteExpired, except)
	return s.explain(err)
}

// leased finds an owner with a running lease.
func leased(ctx context.Context, tx pgx.Tx, owner string) (id int64, err error) {
	return lapsedIfNone(tx.QueryRow(ctx, `
		select id from autobatcher.owners where name = $1 and until > clock_timestamp()`, owner))
}

// confirm returns ErrLapsed if the owner died during the transaction. Otherwise the
// owner stays alive until the transaction ends.
func confirm(ctx context.Context, tx pgx.Tx, id int64) error {
	_, err := lapsedIfNone(tx.QueryRow(ctx, `select id from autobatcher.owners where id = $1 for key share`, id))
	return err
}

func lapsedIfNone(row pgx.Row) (id int64, err error) {
	err = row.Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		err = journal.ErrLapsed
	}
	return id, err
}

// idOf finds an owner, 0 if the name is unknown.
func idOf(ctx context.Context, tx pgx.Tx, owner string) (id int64, err error) {
	err = tx.QueryRow(ctx, `select id from autobatcher.owners where name = $1`, owner).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
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
