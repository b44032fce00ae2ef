package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
)

const (
	// maxPage is the number of lines deleted by a transaction.
	maxPage = 5000

	// maxMark is the number of batches marked for deletion by a transaction.
	maxMark = 1000
)

// Discard implements journal.Store.
func (s *Store) Discard(ctx context.Context, owner, ref string) error {
	var id int64
	err := s.update(ctx, owner, func(tx pgx.Tx) (err error) {
		if id, err = owned(ctx, tx, owner, ref, alone); err != nil {
			return err
		}
		return mark(ctx, tx, []int64{id})
	})
	if err != nil {
		return err
	}
	_, err = s.delete(ctx, id)
	return err
}

// mark makes batches invisible. A later step deletes the rows.
func mark(ctx context.Context, tx pgx.Tx, ids []int64) error {
	if _, err := tx.Exec(ctx, `update autobatcher.batches set ref = null, owner = 0 where id = any($1)`, ids); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `delete from autobatcher.holds where batch = any($1)`, ids)
	return err
}

const (
	// isOld is the condition of Forget for a batch t. An index can only find a time
	// with a fixed value during the statement, unlike clock_timestamp().
	isOld = `
		ref is not null
		and (state = $1 and ended <= statement_timestamp() - $2::interval
			or began <= statement_timestamp() - $3::interval and ` + isOpen + `)
		and not exists (
			select 1 from autobatcher.holds h join autobatcher.owners o on o.id = h.owner
			where h.batch = t.id and h.lines > 0)`

	// lockOld finds old batches, at most $4, and locks the rows against TakeOver and
	// Hold.
	lockOld = `
		select id from autobatcher.batches
		where id in (select id from autobatcher.batches t where ` + isOld + ` limit $4)
		order by id for update`

	// stillOld selects old batches again after the lock.
	stillOld = `select id from autobatcher.batches t where id = any($4::bigint[]) and ` + isOld

	unfinished = `select id from autobatcher.batches where ref is null order by id limit 1`
)

// Forget implements journal.Store.
func (s *Store) Forget(ctx context.Context, ended, begun time.Duration) (forgotten int, err error) {
	for found := maxMark; found == maxMark && err == nil; {
		found, err = s.markOld(ctx, ended, begun)
		for more := true; more && err == nil; {
			var deleted bool
			deleted, more, err = s.deleteNext(ctx)
			if deleted {
				forgotten++
			}
		}
	}
	return forgotten, err
}

// markOld marks old batches and returns the number of found batches.
func (s *Store) markOld(ctx context.Context, ended, begun time.Duration) (found int, err error) {
	err = s.update(ctx, "", func(tx pgx.Tx) error {
		ids, err := numbers(tx.Query(ctx, lockOld, journal.Ended, ended, begun, maxMark))
		if err != nil || len(ids) == 0 {
			return err
		}
		found = len(ids)
		if ids, err = numbers(tx.Query(ctx, stillOld, journal.Ended, ended, begun, ids)); err != nil {
			return err
		}
		return mark(ctx, tx, ids)
	})
	return found, err
}

// numbers reads a column of numbers.
func numbers(rows pgx.Rows, err error) ([]int64, error) {
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

// deleteNext deletes a marked batch, if any, and reports the deletion and whether a
// marked batch was found.
func (s *Store) deleteNext(ctx context.Context) (deleted, found bool, err error) {
	ids, err := numbers(s.pool.Query(ctx, unfinished))
	if err != nil || len(ids) == 0 {
		return false, false, s.explain(err)
	}
	deleted, err = s.delete(ctx, ids[0])
	return deleted, true, err
}

// deletePage deletes the lines of a batch from $2 on, at most $3 of them, and
// returns the next line.
const deletePage = `
	with page as materialized (
		select n from autobatcher.lines where batch = $1 and n >= $2 order by n limit $3
	), gone as (
		delete from autobatcher.lines l using page where l.batch = $1 and l.n = page.n
	)
	select max(n) + 1 from page`

// delete deletes a marked batch page by page, and reports whether the call deleted
// the last row. Every page is a separate transaction.
func (s *Store) delete(ctx context.Context, id int64) (deleted bool, err error) {
	for next := new(int64(0)); next != nil; {
		if err := s.pool.QueryRow(ctx, deletePage, id, *next, maxPage).Scan(&next); err != nil {
			return false, s.explain(err)
		}
	}
	err = s.transact(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `delete from autobatcher.runs where batch = $1`, id); err != nil {
			return err
		}
		done, err := tx.Exec(ctx, `delete from autobatcher.batches where id = $1 and ref is null`, id)
		deleted = done.RowsAffected() > 0
		return err
	})
	return deleted && err == nil, err
}
