package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
)

// isOpen is the condition that no living owner holds or runs the row t.
const isOpen = `not exists (select 1 from autobatcher.owners living where living.id = t.owner)`

// A batchID is a row of batches.
type batchID struct {
	id    int64
	large bool // runs index the lines
}

// How a transaction locks the row of a batch until the transaction ends.
const (
	joining  = "for key share"     // neither cancelled nor deleted meanwhile
	changing = "for no key update" // changed by no other transaction
	alone    = "for update"        // both, and no owner joins
)

// lookUp finds a batch and locks its row. The error is journal.ErrNoBatch if the
// journal has none.
func lookUp(ctx context.Context, tx pgx.Tx, ref, lock string) (b batchID, state journal.State, err error) {
	err = tx.QueryRow(ctx, `select id, large, state from autobatcher.batches where ref = $1 `+lock, ref).Scan(&b.id, &b.large, &state)
	if errors.Is(err, pgx.ErrNoRows) {
		err = journal.ErrNoBatch
	}
	return b, state, err
}

// owned finds a batch of the owner, and locks the row.
func owned(ctx context.Context, tx pgx.Tx, owner, ref, lock string) (id int64, err error) {
	var same bool
	err = tx.QueryRow(ctx, `
		select id, coalesce(owner = (select id from autobatcher.owners where name = $2), false)
		from autobatcher.batches where ref = $1 `+lock, ref, owner).Scan(&id, &same)
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
	return s.update(ctx, owner, func(tx pgx.Tx) error {
		id, err := owned(ctx, tx, owner, ref, changing)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			update autobatcher.batches set
				state = $2,
				input_file = coalesce(nullif($3, ''), input_file),
				batch_id = coalesce(nullif($4, ''), batch_id),
				status = coalesce(nullif($5, ''), status),
				cost = coalesce(nullif($8, ''), cost),
				savings = coalesce(nullif($9, ''), savings),
				created = case when $6 then coalesce(created, clock_timestamp()) else created end,
				ended = case when $7 then coalesce(ended, clock_timestamp()) else ended end
			where id = $1`,
			id, step.State, step.InputFileID, step.BatchID, step.Status,
			step.State == journal.Running, step.State == journal.Ended, step.Cost, step.Savings)
		return err
	})
}

// Claim implements journal.Store.
func (s *Store) Claim(ctx context.Context, owner, ref string) (claimed bool, err error) {
	err = s.update(ctx, owner, func(tx pgx.Tx) error {
		id, err := leased(ctx, tx, owner)
		if err != nil {
			return err
		}
		b, _, err := lookUp(ctx, tx, ref, changing)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `update autobatcher.batches t set owner = $1 where id = $2 and `+isOpen, id, b.id)
		if err != nil {
			return err
		}
		err = tx.QueryRow(ctx, `select owner = $1 from autobatcher.batches where id = $2`, id, b.id).Scan(&claimed)
		if err != nil || !claimed {
			return err
		}
		return confirm(ctx, tx, id)
	})
	return claimed && err == nil, err
}

// abandon is the statement of Abandon.
const abandon = `
	update autobatcher.batches set state = $1 where id = $2 and state = $3 and not exists (
		select 1 from autobatcher.holds h join autobatcher.owners o on o.id = h.owner where h.batch = $2 and h.lines > 0)`

// Abandon implements journal.Store.
func (s *Store) Abandon(ctx context.Context, owner, ref string) (abandoned bool, err error) {
	err = s.update(ctx, owner, func(tx pgx.Tx) error {
		id, err := owned(ctx, tx, owner, ref, alone)
		if err != nil {
			return err
		}
		done, err := tx.Exec(ctx, abandon, journal.Cancelling, id, journal.Running)
		abandoned = done.RowsAffected() > 0
		return err
	})
	return abandoned && err == nil, err
}

// columns are the columns for scanBatch.
const columns = `b.id, b.ref, coalesce(o.name, ''), b.account, b.upstream, b.provider, b.endpoint, b."window",
	b.models, b.traces, b.state, b.input_file, b.batch_id, b.status, b.began, b.created, b.ended, b.lines, b.cost, b.savings`

// scanBatch reads a batch without the counts of held and open lines.
func scanBatch(row pgx.Row, more ...any) (id int64, b journal.Batch, err error) {
	var account []byte
	var began, created, ended *time.Time
	err = row.Scan(append([]any{
		&id, &b.Ref, &b.Owner, &account, &b.Upstream, &b.Provider, &b.Endpoint, &b.Window,
		&b.Models, &b.Traces, &b.State, &b.InputFileID, &b.BatchID, &b.Status, &began, &created, &ended, &b.Lines, &b.Cost, &b.Savings,
	}, more...)...)
	copy(b.Account[:], account)
	b.Began, b.Created, b.Ended = moment(began), moment(created), moment(ended)
	return id, b, err
}

// Batches implements journal.Store.
func (s *Store) Batches(ctx context.Context, f journal.Filter) (all []journal.Batch, err error) {
	if err := s.removeDead(ctx, ""); err != nil {
		return nil, err
	}
	if f.Orphans {
		all, err = s.orphans(ctx, f)
	} else {
		all, err = s.batches(ctx, f)
	}
	return all, s.explain(err)
}

// listed is the statement of batches. The counts come from holds: no line is
// counted.
const listed = `
	select ` + columns + `, counts.held, counts.remaining
	from autobatcher.batches b
		left join autobatcher.owners o on o.id = b.owner
		cross join lateral (
			select coalesce(sum(h.lines) filter (where living.id is not null), 0)::bigint as held,
				coalesce(sum(h.lines), 0)::bigint as remaining
			from autobatcher.holds h left join autobatcher.owners living on living.id = h.owner
			where h.batch = b.id) counts
	where b.ref is not null and ($1 = '' or b.ref = $1) and ($2::bytea is null or b.account = $2)
		and (not $3 or b.state <> $4 or counts.remaining > 0)
	order by b.id`

// batches lists batches with their counts.
func (s *Store) batches(ctx context.Context, f journal.Filter) ([]journal.Batch, error) {
	rows, err := s.pool.Query(ctx, listed, f.Ref, accountOf(f), f.Unfinished, journal.Ended)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (journal.Batch, error) {
		var held, left int
		_, b, err := scanBatch(row, &held, &left)
		b.Held, b.Open, b.Delivered = held, left-held, b.Lines-left
		return b, err
	})
}

func accountOf(f journal.Filter) []byte {
	if f.Account == nil {
		return nil
	}
	return f.Account[:]
}

// orphaned is the statement of orphans. Each step of the recursion looks up the
// next owner that runs batches in an index.
const orphaned = `
	with recursive runners (id) as (
		select min(owner) from autobatcher.batches where state <> 'ended' and ref is not null
		union all
		select (select min(owner) from autobatcher.batches where state <> 'ended' and ref is not null and owner > runners.id)
		from runners where runners.id is not null)
	select ` + columns + `
	from runners
		left join autobatcher.owners o on o.id = runners.id
		join autobatcher.batches b on b.owner = runners.id
	where o.id is null and b.state <> 'ended' and b.ref is not null
		and ($1 = '' or b.ref = $1) and ($2::bytea is null or b.account = $2)
	order by b.id`

// orphans lists the batches before their end and without a living owner.
func (s *Store) orphans(ctx context.Context, f journal.Filter) ([]journal.Batch, error) {
	rows, err := s.pool.Query(ctx, orphaned, f.Ref, accountOf(f))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (journal.Batch, error) {
		_, b, err := scanBatch(row)
		return b, err
	})
}
