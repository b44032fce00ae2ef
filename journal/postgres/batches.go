package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/autobatcher/autobatcher/journal"
)

// Begin implements journal.Store.
func (s *Store) Begin(ctx context.Context, b journal.Batch, lines []journal.Line) error {
	return s.transact(ctx, func(tx pgx.Tx) error {
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

func insertBatch(ctx context.Context, tx pgx.Tx, owner int64, b journal.Batch, lines int) (id int64, err error) {
	err = tx.QueryRow(ctx, `
		insert into autobatcher.batches (ref, owner, payer, upstream, provider, endpoint, "window", models, state, lines)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
		returning id`,
		b.Ref, owner, b.Payer[:], b.Upstream, b.Provider, b.Endpoint, b.Window, b.Models, journal.Uploading, lines).Scan(&id)
	var failed *pgconn.PgError
	if errors.As(err, &failed) && failed.Code == "23505" { // unique_violation
		err = journal.ErrExists
	}
	return id, err
}

// How a transaction locks a batch's row until it ends. Against both, no other
// changes the row; only against alone can no other take over lines, either.
const (
	shared = "for no key update of b"
	alone  = "for update of b"
)

// owned finds a batch that the owner must be carrying on, and locks its row.
func owned(ctx context.Context, tx pgx.Tx, owner, ref, lock string) (id int64, err error) {
	var same bool
	err = tx.QueryRow(ctx, `
		select b.id, coalesce(o.name = $2, false)
		from autobatcher.batches b left join autobatcher.owners o on o.id = b.owner
		where b.ref = $1 `+lock, ref, owner).Scan(&id, &same)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, journal.ErrNoBatch
	case err == nil && !same:
		return 0, journal.ErrNotOwner
	}
	return id, err
}

// Advance implements journal.Store.
func (s *Store) Advance(ctx context.Context, owner, ref string, step journal.Step) error {
	return s.update(ctx, func(tx pgx.Tx) error {
		id, err := owned(ctx, tx, owner, ref, shared)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			update autobatcher.batches set
				state = $2,
				input_file = coalesce(nullif($3, ''), input_file),
				batch_id = coalesce(nullif($4, ''), batch_id),
				status = coalesce(nullif($5, ''), status),
				created = case when $6 then coalesce(created, clock_timestamp()) else created end,
				ended = case when $7 then coalesce(ended, clock_timestamp()) else ended end
			where id = $1`,
			id, step.State, step.InputFileID, step.BatchID, step.Status,
			step.State == journal.Running, step.State == journal.Ended)
		return err
	})
}

// Discard implements journal.Store.
func (s *Store) Discard(ctx context.Context, owner, ref string) error {
	return s.update(ctx, func(tx pgx.Tx) error {
		id, err := owned(ctx, tx, owner, ref, alone)
		if err != nil {
			return err
		}
		return deleteBatches(ctx, tx, []int64{id})
	})
}

func deleteBatches(ctx context.Context, tx pgx.Tx, ids []int64) error {
	if _, err := tx.Exec(ctx, `delete from autobatcher.lines where batch = any($1)`, ids); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `delete from autobatcher.batches where id = any($1)`, ids)
	return err
}

// Claim implements journal.Store.
func (s *Store) Claim(ctx context.Context, owner, ref string) (claimed bool, err error) {
	err = s.update(ctx, func(tx pgx.Tx) error {
		id, err := leased(ctx, tx, owner)
		if err != nil {
			return err
		}
		err = tx.QueryRow(ctx, `
			update autobatcher.batches set owner = coalesce(owner, $1) where ref = $2 returning owner = $1`,
			id, ref).Scan(&claimed)
		if errors.Is(err, pgx.ErrNoRows) {
			return journal.ErrNoBatch
		}
		return err
	})
	return claimed && err == nil, err
}

// Abandon implements journal.Store.
func (s *Store) Abandon(ctx context.Context, owner, ref string) (abandoned bool, err error) {
	err = s.update(ctx, func(tx pgx.Tx) error {
		id, err := owned(ctx, tx, owner, ref, alone)
		if err != nil {
			return err
		}
		done, err := tx.Exec(ctx, `
			update autobatcher.batches set state = $1 where id = $2 and state = $3
				and not exists (select 1 from autobatcher.lines where batch = $2 and owner is not null)`,
			journal.Cancelling, id, journal.Running)
		abandoned = done.RowsAffected() > 0
		return err
	})
	return abandoned && err == nil, err
}

// columns are what scanBatch reads.
const columns = `b.id, b.ref, coalesce(o.name, ''), b.payer, b.upstream, b.provider, b.endpoint, b."window",
	b.models, b.state, b.input_file, b.batch_id, b.status, b.began, b.created, b.ended, b.lines`

// scanBatch reads a batch without counts, and how many lines it has.
func scanBatch(row pgx.Row, more ...any) (id int64, b journal.Batch, err error) {
	var payer []byte
	var began, created, ended *time.Time
	err = row.Scan(append([]any{
		&id, &b.Ref, &b.Owner, &payer, &b.Upstream, &b.Provider, &b.Endpoint, &b.Window,
		&b.Models, &b.State, &b.InputFileID, &b.BatchID, &b.Status, &began, &created, &ended, &b.Lines,
	}, more...)...)
	copy(b.Payer[:], payer)
	b.Began, b.Created, b.Ended = moment(began), moment(created), moment(ended)
	return id, b, err
}

// Batches implements journal.Store.
func (s *Store) Batches(ctx context.Context, f journal.Filter) (all []journal.Batch, err error) {
	var payer []byte
	if f.Payer != nil {
		payer = f.Payer[:]
	}
	err = s.update(ctx, func(tx pgx.Tx) error {
		all = nil
		rows, err := tx.Query(ctx, `
			select `+columns+`, count(l.owner), count(l.batch)
			from autobatcher.batches b
				left join autobatcher.owners o on o.id = b.owner
				left join autobatcher.lines l on l.batch = b.id
			where ($1 = '' or b.ref = $1) and ($2::bytea is null or b.payer = $2)
			group by b.id, o.name
			having not $3 or b.state <> $4 or count(l.batch) > 0
			order by b.id`,
			f.Ref, payer, f.Unfinished, journal.Ended)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (journal.Batch, error) {
			var held, left int
			_, b, err := scanBatch(row, &held, &left)
			b.Held, b.Open, b.Delivered = held, left-held, b.Lines-left
			return b, err
		})
		return err
	})
	return all, err
}

// Forget implements journal.Store.
func (s *Store) Forget(ctx context.Context, ended, begun time.Duration) (forgotten int, err error) {
	err = s.update(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			select id from autobatcher.batches
			where state = $1 and ended <= clock_timestamp() - $2::interval
				or owner is null and began <= clock_timestamp() - $3::interval
			order by id for update`,
			journal.Ended, ended, begun)
		if err != nil {
			return err
		}
		old, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		if old, err = unheld(ctx, tx, old); err != nil {
			return err
		}
		forgotten = len(old)
		return deleteBatches(ctx, tx, old)
	})
	if err != nil {
		return 0, err
	}
	return forgotten, nil
}

// unheld leaves those of the batches of which nobody holds a line. They are
// locked by now, so that nobody will.
func unheld(ctx context.Context, tx pgx.Tx, batches []int64) ([]int64, error) {
	rows, err := tx.Query(ctx, `
		select id from unnest($1::bigint[]) id
		where not exists (select 1 from autobatcher.lines where batch = id and owner is not null)`, batches)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}
