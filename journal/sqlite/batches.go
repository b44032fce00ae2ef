package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/autobatcher/autobatcher/journal"
)

// Begin implements journal.Store.
func (s *Store) Begin(ctx context.Context, b journal.Batch, lines []journal.Line) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		owner, err := leased(ctx, tx, b.Owner)
		if err != nil {
			return err
		}
		id, err := insertBatch(ctx, tx, owner, b, len(lines))
		if err != nil {
			return err
		}
		return insertLines(ctx, tx, id, owner, lines)
	})
}

func insertBatch(ctx context.Context, tx *sql.Tx, owner int64, b journal.Batch, lines int) (id int64, err error) {
	models, err := json.Marshal(b.Models)
	if err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, `
		insert into batches (ref, owner, payer, upstream, provider, endpoint, window, models, state,
			input_file, batch_id, status, began, created, ended, lines)
		values (?, ?, ?, ?, ?, ?, ?, ?, ?, '', '', '', ?, 0, 0, ?)
		returning id`,
		b.Ref, owner, b.Payer[:], b.Upstream, b.Provider, b.Endpoint, b.Window, string(models), journal.Uploading,
		now(), lines).Scan(&id)
	var failed *sqlite.Error
	if errors.As(err, &failed) && failed.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE {
		err = journal.ErrExists
	}
	return id, err
}

// owned finds a batch that the owner must be carrying on.
func owned(ctx context.Context, tx *sql.Tx, owner, ref string) (id int64, err error) {
	var name sql.NullString
	err = tx.QueryRowContext(ctx, `
		select b.id, o.name from batches b left join owners o on o.id = b.owner where b.ref = ?`,
		ref).Scan(&id, &name)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, journal.ErrNoBatch
	case err == nil && (!name.Valid || name.String != owner):
		return 0, journal.ErrNotOwner
	}
	return id, err
}

// Advance implements journal.Store.
func (s *Store) Advance(ctx context.Context, owner, ref string, step journal.Step) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		id, err := owned(ctx, tx, owner, ref)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `
			update batches set
				state = ?2,
				input_file = coalesce(nullif(?3, ''), input_file),
				batch_id = coalesce(nullif(?4, ''), batch_id),
				status = coalesce(nullif(?5, ''), status),
				created = iif(?2 = ?6 and created = 0, ?8, created),
				ended = iif(?2 = ?7 and ended = 0, ?8, ended)
			where id = ?1`,
			id, step.State, step.InputFileID, step.BatchID, step.Status, journal.Running, journal.Ended, now())
		return err
	})
}

// Discard implements journal.Store.
func (s *Store) Discard(ctx context.Context, owner, ref string) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		id, err := owned(ctx, tx, owner, ref)
		if err != nil {
			return err
		}
		return deleteBatch(ctx, tx, id)
	})
}

func deleteBatch(ctx context.Context, tx *sql.Tx, id int64) error {
	if _, err := tx.ExecContext(ctx, `delete from lines where batch = ?`, id); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `delete from batches where id = ?`, id)
	return err
}

// Claim implements journal.Store.
func (s *Store) Claim(ctx context.Context, owner, ref string) (claimed bool, err error) {
	err = s.update(ctx, func(tx *sql.Tx) error {
		id, err := leased(ctx, tx, owner)
		if err != nil {
			return err
		}
		err = tx.QueryRowContext(ctx, `
			update batches set owner = coalesce(owner, ?1) where ref = ?2 returning owner = ?1`,
			id, ref).Scan(&claimed)
		if errors.Is(err, sql.ErrNoRows) {
			return journal.ErrNoBatch
		}
		return err
	})
	return claimed && err == nil, err
}

// Abandon implements journal.Store.
func (s *Store) Abandon(ctx context.Context, owner, ref string) (abandoned bool, err error) {
	err = s.update(ctx, func(tx *sql.Tx) error {
		id, err := owned(ctx, tx, owner, ref)
		if err != nil {
			return err
		}
		done, err := tx.ExecContext(ctx, `
			update batches set state = ? where id = ? and state = ?
				and not exists (select 1 from lines where batch = batches.id and owner is not null)`,
			journal.Cancelling, id, journal.Running)
		if err != nil {
			return err
		}
		n, err := done.RowsAffected()
		abandoned = n > 0
		return err
	})
	return abandoned && err == nil, err
}

// columns are what scanBatch reads.
const columns = `b.ref, coalesce(o.name, ''), b.payer, b.upstream, b.provider, b.endpoint, b.window,
	b.models, b.state, b.input_file, b.batch_id, b.status, b.began, b.created, b.ended, b.lines`

// scanBatch reads a batch without counts, and how many lines it has.
func scanBatch(rows interface{ Scan(...any) error }, more ...any) (b journal.Batch, err error) {
	var payer, models []byte
	var began, created, ended int64
	err = rows.Scan(append([]any{
		&b.Ref, &b.Owner, &payer, &b.Upstream, &b.Provider, &b.Endpoint, &b.Window,
		&models, &b.State, &b.InputFileID, &b.BatchID, &b.Status, &began, &created, &ended, &b.Lines,
	}, more...)...)
	if err != nil {
		return b, err
	}
	copy(b.Payer[:], payer)
	b.Began, b.Created, b.Ended = moment(began), moment(created), moment(ended)
	return b, json.Unmarshal(models, &b.Models)
}

// Batches implements journal.Store.
func (s *Store) Batches(ctx context.Context, f journal.Filter) (all []journal.Batch, err error) {
	var payer []byte
	if f.Payer != nil {
		payer = f.Payer[:]
	}
	err = s.update(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `
			select `+columns+`, count(l.owner), count(l.batch)
			from batches b left join owners o on o.id = b.owner left join lines l on l.batch = b.id
			where (?1 = '' or b.ref = ?1) and (?2 is null or b.payer = ?2)
			group by b.id
			having not ?3 or b.state <> ?4 or count(l.batch) > 0
			order by b.id`,
			f.Ref, payer, f.Unfinished, journal.Ended)
		if err != nil {
			return err
		}
		defer rows.Close()
		all = nil
		for rows.Next() {
			var held, left int
			b, err := scanBatch(rows, &held, &left)
			if err != nil {
				return err
			}
			b.Held, b.Open, b.Delivered = held, left-held, b.Lines-left
			all = append(all, b)
		}
		return rows.Err()
	})
	return all, err
}

// Forget implements journal.Store.
func (s *Store) Forget(ctx context.Context, ended, begun time.Duration) (forgotten int, err error) {
	err = s.update(ctx, func(tx *sql.Tx) error {
		old, err := numbers(tx.QueryContext(ctx, `
			select id from batches b where (state = ? and ended <= ? or owner is null and began <= ?)
				and not exists (select 1 from lines where batch = b.id and owner is not null)`,
			journal.Ended, now()-ended.Microseconds(), now()-begun.Microseconds()))
		if err != nil {
			return err
		}
		for _, id := range old {
			if err := deleteBatch(ctx, tx, id); err != nil {
				return err
			}
		}
		forgotten = len(old)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return forgotten, nil
}

// numbers reads a column of them.
func numbers(rows *sql.Rows, err error) (all []int64, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, rows.Err()
}
