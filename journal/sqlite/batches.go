package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/autobatcher/autobatcher/journal"
)

// isOpen is the condition that no living owner holds or runs a row.
const isOpen = `owner not in (select id from owners)`

// A batchID is a row of batches.
type batchID struct {
	id    int64
	lines int
	large bool // runs index the lines
}

// rowOf is the id of a line's row.
func rowOf(batch int64, n int) int64 { return batch<<32 | int64(n) }

// lookUp finds a batch, journal.ErrNoBatch if the journal has none.
func lookUp(ctx context.Context, tx *sql.Tx, ref string) (b batchID, err error) {
	err = tx.QueryRowContext(ctx, `select id, lines, large from batches where ref = ?`, ref).Scan(&b.id, &b.lines, &b.large)
	if errors.Is(err, sql.ErrNoRows) {
		err = journal.ErrNoBatch
	}
	return b, err
}

// owned finds a batch of the owner.
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
	return s.update(ctx, owner, func(tx *sql.Tx) error {
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
				cost = coalesce(nullif(?9, ''), cost),
				savings = coalesce(nullif(?10, ''), savings),
				created = iif(?2 = ?6 and created = 0, ?8, created),
				ended = iif(?2 = ?7 and ended = 0, ?8, ended)
			where id = ?1`,
			id, step.State, step.InputFileID, step.BatchID, step.Status, journal.Running, journal.Ended, now(), step.Cost, step.Savings)
		return err
	})
}

// Claim implements journal.Store.
func (s *Store) Claim(ctx context.Context, owner, ref string) (claimed bool, err error) {
	err = s.update(ctx, owner, func(tx *sql.Tx) error {
		id, err := leased(ctx, tx, owner)
		if err != nil {
			return err
		}
		b, err := lookUp(ctx, tx, ref)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `update batches set owner = ? where id = ? and `+isOpen, id, b.id); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `select owner = ? from batches where id = ?`, id, b.id).Scan(&claimed)
	})
	return claimed && err == nil, err
}

// abandon is the statement of Abandon.
const abandon = `
	update batches set state = ? where id = ? and state = ?
		and not exists (select 1 from holds where batch = batches.id and owner in (select id from owners))`

// Abandon implements journal.Store.
func (s *Store) Abandon(ctx context.Context, owner, ref string) (abandoned bool, err error) {
	err = s.update(ctx, owner, func(tx *sql.Tx) error {
		id, err := owned(ctx, tx, owner, ref)
		if err != nil {
			return err
		}
		n, err := execute(ctx, tx, abandon, journal.Cancelling, id, journal.Running)
		abandoned = n > 0
		return err
	})
	return abandoned && err == nil, err
}

// execute runs a statement and returns the number of rows that changed.
func execute(ctx context.Context, tx *sql.Tx, statement string, args ...any) (int, error) {
	done, err := tx.ExecContext(ctx, statement, args...)
	if err != nil {
		return 0, err
	}
	n, err := done.RowsAffected()
	return int(n), err
}

// columns are the columns for scanBatch.
const columns = `b.ref, coalesce(o.name, ''), b.account, b.upstream, b.provider, b.endpoint, b.window,
	b.models, b.traces, b.state, b.input_file, b.batch_id, b.status, b.began, b.created, b.ended, b.lines, b.cost, b.savings`

// scanBatch reads a batch without the counts of held and open lines.
func scanBatch(rows interface{ Scan(...any) error }, more ...any) (b journal.Batch, err error) {
	var account, models []byte
	var began, created, ended int64
	err = rows.Scan(append([]any{
		&b.Ref, &b.Owner, &account, &b.Upstream, &b.Provider, &b.Endpoint, &b.Window,
		&models, &b.Traces, &b.State, &b.InputFileID, &b.BatchID, &b.Status, &began, &created, &ended, &b.Lines, &b.Cost, &b.Savings,
	}, more...)...)
	if err != nil {
		return b, err
	}
	copy(b.Account[:], account)
	b.Began, b.Created, b.Ended = moment(began), moment(created), moment(ended)
	return b, json.Unmarshal(models, &b.Models)
}

// Batches implements journal.Store.
func (s *Store) Batches(ctx context.Context, f journal.Filter) (all []journal.Batch, err error) {
	if err := s.removeDeadBeforeReading(ctx); err != nil {
		return nil, err
	}
	err = s.view(ctx, func(tx *sql.Tx) (err error) {
		if f.Orphans {
			all, err = orphans(ctx, tx, f)
		} else {
			all, err = batches(ctx, tx, f)
		}
		return err
	})
	return all, err
}

// batches lists batches with their counts, which come from holds: no line is
// counted.
func batches(ctx context.Context, tx *sql.Tx, f journal.Filter) ([]journal.Batch, error) {
	rows, err := tx.QueryContext(ctx, listing(f), f.Ref, accountOf(f), f.Unfinished, journal.Ended)
	return scanBatches(rows, err, func(rows *sql.Rows) (journal.Batch, error) {
		var held, left int
		b, err := scanBatch(rows, &held, &left)
		b.Held, b.Open, b.Delivered = held, left-held, b.Lines-left
		return b, err
	})
}

// listing is the statement of batches. Only a literal condition uses the index of
// the names.
func listing(f journal.Filter) string {
	named := `b.ref is not null and ?1 = ''`
	if f.Ref != "" {
		named = `b.ref = ?1`
	}
	return `
		select ` + columns + `,
			(select coalesce(sum(lines), 0) from holds where batch = b.id and owner in (select id from owners)),
			(select coalesce(sum(lines), 0) from holds where batch = b.id)
		from batches b left join owners o on o.id = b.owner
		where ` + named + ` and (?2 is null or b.account = ?2)
			and (not ?3 or b.state <> ?4 or exists (select 1 from holds where batch = b.id))
		order by b.id`
}

func accountOf(f journal.Filter) []byte {
	if f.Account == nil {
		return nil
	}
	return f.Account[:]
}

// deadRunners are the ids of dead owners that run batches which have not ended.
// Each step of the recursion looks up the next id in an index.
const deadRunners = `
	runners (id) as (
		select min(owner) from batches where state <> 'ended' and ref is not null
		union all
		select (select min(owner) from batches where state <> 'ended' and ref is not null and owner > runners.id)
		from runners where runners.id is not null),
	dead (id) as (select id from runners where id is not null and id not in (select id from owners))`

// orphaned is the statement of orphans.
const orphaned = `
	with recursive ` + deadRunners + `
	select b.ref, '', b.account, b.upstream, b.provider, b.endpoint, b.window,
		b.models, b.traces, b.state, b.input_file, b.batch_id, b.status, b.began, b.created, b.ended, b.lines, b.cost, b.savings
	from dead cross join batches b on b.owner = dead.id
	where b.state <> 'ended' and b.ref is not null and (?1 = '' or b.ref = ?1) and (?2 is null or b.account = ?2)
	order by b.id`

// orphans lists the batches before their end and without a living owner.
func orphans(ctx context.Context, tx *sql.Tx, f journal.Filter) ([]journal.Batch, error) {
	rows, err := tx.QueryContext(ctx, orphaned, f.Ref, accountOf(f))
	return scanBatches(rows, err, func(rows *sql.Rows) (journal.Batch, error) { return scanBatch(rows) })
}

func scanBatches(rows *sql.Rows, err error, scan func(*sql.Rows) (journal.Batch, error)) (all []journal.Batch, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		b, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, rows.Err()
}

// isDuplicate reports whether a unique column has the value already.
func isDuplicate(err error) bool {
	var failed *sqlite.Error
	return errors.As(err, &failed) && failed.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE
}
