package postgres

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
)

// gain counts n more lines of a batch as the owner's.
func gain(ctx context.Context, tx pgx.Tx, b batchID, owner int64, n int) error {
	if n == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, `
		insert into autobatcher.holds as h (owner, large, batch, lines) values ($1, $2, $3, $4)
		on conflict (owner, large, batch) do update set lines = h.lines + excluded.lines`, owner, b.large, b.id, n)
	return err
}

// lose counts n lines of a batch as the owner's no longer.
func lose(ctx context.Context, tx pgx.Tx, b batchID, owner int64, n int) error {
	if n == 0 {
		return nil
	}
	left := 0
	err := tx.QueryRow(ctx, `
		update autobatcher.holds set lines = lines - $4 where owner = $1 and large = $2 and batch = $3 returning lines`,
		owner, b.large, b.id, n).Scan(&left)
	if err != nil || left > 0 {
		return err
	}
	_, err = tx.Exec(ctx, `delete from autobatcher.holds where owner = $1 and large = $2 and batch = $3`, owner, b.large, b.id)
	return err
}

// A place is a line and its holder, dead or alive; 0: released.
type place struct {
	batch batchID
	n     int
	owner int64
}

func comparePlaces(a, b place) int {
	return cmp.Or(cmp.Compare(a.batch.id, b.batch.id), cmp.Compare(a.n, b.n))
}

// takePlaces gives the lines with an unchanged holder to the owner $5. takePlaces
// skips lines locked by a concurrent transaction, and waits for a concurrent Abandon
// or deletion of the batch, which may be undone.
const takePlaces = `
	with seen as materialized (
		select l.batch, l.n, l.owner
		from unnest($1::bigint[], $2::integer[], $3::bigint[]) as w (batch, n, owner)
			join autobatcher.lines l on l.batch = w.batch and l.n = w.n and l.owner = w.owner
			join autobatcher.batches b on b.id = l.batch
		where b.ref is not null and b.state <> $4 and ` + fewRows + `
		order by l.batch, l.n
		for update of l skip locked for key share of b
	), taken as (
		update autobatcher.lines l set owner = $5 from seen where l.batch = seen.batch and l.n = seen.n
	)
	select batch, n, owner from seen`

// take makes the owner hold the lines with an unchanged holder, and returns the
// taken lines.
func take(ctx context.Context, tx pgx.Tx, owner int64, seen []place) (taken []place, err error) {
	if len(seen) == 0 {
		return nil, nil
	}
	batches, ns, owners := columnsOf(seen)
	large := make(map[int64]bool)
	for _, p := range seen {
		large[p.batch.id] = p.batch.large
	}
	rows, err := tx.Query(ctx, takePlaces, batches, ns, owners, journal.Cancelling, owner)
	if err != nil {
		return nil, err
	}
	taken, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p place, err error) {
		err = row.Scan(&p.batch.id, &p.n, &p.owner)
		p.batch.large = large[p.batch.id]
		return p, err
	})
	if err != nil {
		return nil, err
	}
	return taken, move(ctx, tx, taken, func(b batchID, n int) error { return gain(ctx, tx, b, owner, n) })
}

func columnsOf(places []place) (batches []int64, ns []int, owners []int64) {
	for _, p := range places {
		batches, ns, owners = append(batches, p.batch.id), append(ns, p.n), append(owners, p.owner)
	}
	return batches, ns, owners
}

// move counts the places as lost by the holders, and calls gained with the number of
// lines of each batch. All transactions go through the batches in the same order.
func move(ctx context.Context, tx pgx.Tx, places []place, gained func(b batchID, n int) error) error {
	type holding struct {
		batch batchID
		owner int64
	}
	counts := make(map[holding]int)
	for _, p := range places {
		counts[holding{p.batch, p.owner}]++
	}
	holdings := make([]holding, 0, len(counts))
	for h := range counts {
		holdings = append(holdings, h)
	}
	slices.SortFunc(holdings, func(a, b holding) int {
		return cmp.Or(cmp.Compare(a.batch.id, b.batch.id), cmp.Compare(a.owner, b.owner))
	})
	for _, h := range holdings {
		if err := lose(ctx, tx, h.batch, h.owner, counts[h]); err != nil {
			return err
		}
		if err := gained(h.batch, counts[h]); err != nil {
			return err
		}
	}
	return nil
}

// places are the lines $2 of the batch $1. A planner that knows little of a new batch
// likes to read the whole batch, or the whole table, and to filter. The planner looks
// up each line because the batch is joined, not a constant, and because a range
// condition makes the planner expect few rows.
const (
	places = `
		with places as materialized (
			select $1::bigint as batch, w.n from unnest($2::integer[]) as w (n) where ` + fewRows + `)`
	fewRows = `w.n between 0 and 2147483647`
)

// sorted returns the lines in order, without duplicates.
func sorted(lines []int) []int { return slices.Compact(slices.Sorted(slices.Values(lines))) }

// openLines finds the open lines among places.
const openLines = places + `
	select t.n, t.owner from places join autobatcher.lines t on t.batch = places.batch and t.n = places.n
	where ` + isOpen + ` order by t.n`

// open finds the open lines among lines, which have no duplicates.
func open(ctx context.Context, tx pgx.Tx, b batchID, lines []int) ([]place, error) {
	rows, err := tx.Query(ctx, openLines, b.id, lines)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (place, error) {
		p := place{batch: b}
		err := row.Scan(&p.n, &p.owner)
		return p, err
	})
}

// Hold implements journal.Store.
func (s *Store) Hold(ctx context.Context, owner, ref string, lines []int) error {
	return s.update(ctx, owner, func(tx pgx.Tx) error {
		id, err := leased(ctx, tx, owner)
		if err != nil {
			return err
		}
		b, state, err := lookUp(ctx, tx, ref, joining)
		if errors.Is(err, journal.ErrNoBatch) || err == nil && state == journal.Cancelling {
			return nil
		}
		if err != nil {
			return err
		}
		seen, err := open(ctx, tx, b, sorted(lines))
		if err != nil {
			return err
		}
		if _, err := take(ctx, tx, id, seen); err != nil {
			return err
		}
		return confirm(ctx, tx, id)
	})
}

// ofBatch calls change with a batch and an owner, 0 if unknown. ofBatch does nothing
// if the journal does not have the batch.
func (s *Store) ofBatch(ctx context.Context, owner, ref string, change func(tx pgx.Tx, b batchID, owner int64) error) error {
	return s.transact(ctx, func(tx pgx.Tx) error {
		b, _, err := lookUp(ctx, tx, ref, "")
		if errors.Is(err, journal.ErrNoBatch) {
			return nil
		}
		if err != nil {
			return err
		}
		id, err := idOf(ctx, tx, owner)
		if err != nil {
			return err
		}
		return change(tx, b, id)
	})
}

// release is the statement of Release.
const release = places + `
	update autobatcher.lines t set owner = 0 from places
	where t.batch = places.batch and t.n = places.n and t.owner = $3`

// Release implements journal.Store.
func (s *Store) Release(ctx context.Context, owner, ref string, lines []int) error {
	return s.ofBatch(ctx, owner, ref, func(tx pgx.Tx, b batchID, owner int64) error {
		if owner == 0 {
			return nil
		}
		done, err := tx.Exec(ctx, release, b.id, sorted(lines), owner)
		if err != nil {
			return err
		}
		n := int(done.RowsAffected())
		if err := lose(ctx, tx, b, owner, n); err != nil {
			return err
		}
		return gain(ctx, tx, b, 0, n)
	})
}

// SetResponse implements journal.Store.
func (s *Store) SetResponse(ctx context.Context, owner, ref string, line int, responseID string) error {
	return s.ofBatch(ctx, owner, ref, func(tx pgx.Tx, b batchID, owner int64) error {
		_, err := tx.Exec(ctx, `
			update autobatcher.lines set response_id = nullif($1, '')
			where batch = $2 and n = $3 and owner = $4 and owner <> 0`, responseID, b.id, line, owner)
		return err
	})
}

// deliverHeld returns the statement that deletes lines held by the owner named $3:
// nearly all delivered lines. gone is deleteRange or deleteEach. The lines $2 are
// between $4 and $5. The result is the number of deleted lines, and the number of
// lines of the batch still held by the owner.
func deliverHeld(gone string) string {
	return `
		with b as materialized (select id, large from autobatcher.batches where ref = $1),
		o as materialized (select id from autobatcher.owners where name = $3),
		places as materialized (select b.id as batch, w.n from b, unnest($2::integer[]) as w (n) where w.n between $4 and $5),
		gone as (` + gone + ` returning l.n),
		counted as materialized (select count(*) as n from gone),
		held as (
			update autobatcher.holds h set lines = h.lines - counted.n from counted, b, o
			where h.owner = o.id and h.large = b.large and h.batch = b.id and counted.n > 0
			returning h.lines
		)
		select counted.n, coalesce((select lines from held), 0) from counted`
}

const (
	// deleteRange deletes consecutive lines.
	deleteRange = `
		delete from autobatcher.lines l
		where l.batch = (select id from b) and l.n between $4 and $5 and l.owner = (select id from o)`

	// deleteEach looks up each line.
	deleteEach = `
		delete from autobatcher.lines l using places
		where l.batch = places.batch and l.n = places.n and l.owner = (select id from o)`

	// deliverOpen deletes the lines with an unchanged holder.
	deliverOpen = `
		with seen as materialized (
			select $1::bigint as batch, w.n, w.owner from unnest($2::integer[], $3::bigint[]) as w (n, owner) where ` + fewRows + `)
		delete from autobatcher.lines l using seen
		where l.batch = seen.batch and l.n = seen.n and l.owner = seen.owner
		returning l.n, l.owner`
)

// Deliver implements journal.Store. Usually one statement is enough: the owner holds
// all of the lines, and more lines of the batch.
func (s *Store) Deliver(ctx context.Context, owner, ref string, lines []int) error {
	lines = sorted(lines)
	if len(lines) == 0 {
		return nil
	}
	first, last := lines[0], lines[len(lines)-1]
	statement := deliverHeld(deleteEach)
	if last-first == len(lines)-1 {
		statement = deliverHeld(deleteRange)
	}
	var n, more int
	err := s.try(ctx, func() error {
		return s.pool.QueryRow(ctx, statement, ref, lines, owner, first, last).Scan(&n, &more)
	})
	if err != nil {
		return err
	}
	switch {
	case n == len(lines) && more > 0:
		return nil
	case n == len(lines):
		lines = nil // only clean
	default:
		if err := s.removeDead(ctx, owner); err != nil {
			return err
		}
	}
	return s.ofBatch(ctx, owner, ref, func(tx pgx.Tx, b batchID, _ int64) error {
		return inOrder(
			func() error { return deliverRest(ctx, tx, b, lines) },
			func() error { return clean(ctx, tx, b) })
	})
}

// deliverRest deletes open lines.
func deliverRest(ctx context.Context, tx pgx.Tx, b batchID, lines []int) error {
	if len(lines) == 0 {
		return nil
	}
	seen, err := open(ctx, tx, b, lines)
	if err != nil || len(seen) == 0 {
		return err
	}
	_, ns, owners := columnsOf(seen)
	rows, err := tx.Query(ctx, deliverOpen, b.id, ns, owners)
	if err != nil {
		return err
	}
	gone, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (place, error) {
		p := place{batch: b}
		err := row.Scan(&p.n, &p.owner)
		return p, err
	})
	if err != nil {
		return err
	}
	return move(ctx, tx, gone, func(batchID, int) error { return nil })
}

// withdrawPlaces deletes the lines with the unchanged holder $3. withdrawPlaces waits for
// a concurrent transaction that changes a line, or that deletes the batch.
const withdrawPlaces = `
	with seen as materialized (
		select l.batch, l.n
		from unnest($1::bigint[], $2::integer[]) as w (batch, n)
			join autobatcher.lines l on l.batch = w.batch and l.n = w.n
			join autobatcher.batches b on b.id = l.batch
		where l.owner = $3 and b.ref is not null and ` + fewRows + `
		order by l.batch, l.n
		for update of l for key share of b
	)
	delete from autobatcher.lines l using seen
	where l.batch = seen.batch and l.n = seen.n
	returning l.batch, l.n`

// Withdraw implements journal.Store. As long as lines change hands between the lookup
// and the deletion, Withdraw looks up again.
func (s *Store) Withdraw(ctx context.Context, account journal.Hash, fingerprints []journal.Hash) (withdrawn int, err error) {
	for more := true; more; {
		var seen []found
		err := s.within(ctx, oneMoment, func(tx pgx.Tx) (err error) {
			seen, err = undelivered(ctx, tx, account, fingerprints)
			return err
		})
		if err != nil {
			return withdrawn, err
		}
		n, err := s.withdraw(ctx, seen)
		withdrawn += n
		if err != nil {
			return withdrawn, err
		}
		more = n < len(seen)
	}
	return withdrawn, nil
}

// withdraw deletes the lines with an unchanged holder, in a transaction for each holder.
// A transaction for all holders could meet a Release, which goes from the owner's holds
// to the released lines', or a TakeOver, which goes the other way, in a deadlock.
func (s *Store) withdraw(ctx context.Context, seen []found) (withdrawn int, err error) {
	holders, large := make(map[int64][]place), make(map[batchID]bool)
	for _, f := range seen {
		holders[f.owner] = append(holders[f.owner], f.place)
		if f.batch.large {
			large[f.batch] = true
		}
	}
	for owner, places := range holders {
		n := 0
		err := s.transact(ctx, func(tx pgx.Tx) (err error) {
			n, err = withdrawHeld(ctx, tx, owner, places)
			return err
		})
		if err != nil {
			return withdrawn, err
		}
		withdrawn += n
	}
	return withdrawn, s.cleanAll(ctx, large)
}

// withdrawHeld deletes those of the places that the owner still holds.
func withdrawHeld(ctx context.Context, tx pgx.Tx, owner int64, places []place) (int, error) {
	batches, ns, _ := columnsOf(places)
	large := make(map[int64]bool)
	for _, p := range places {
		large[p.batch.id] = p.batch.large
	}
	rows, err := tx.Query(ctx, withdrawPlaces, batches, ns, owner)
	if err != nil {
		return 0, err
	}
	gone, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (place, error) {
		p := place{owner: owner}
		err := row.Scan(&p.batch.id, &p.n)
		p.batch.large = large[p.batch.id]
		return p, err
	})
	if err != nil {
		return 0, err
	}
	return len(gone), move(ctx, tx, gone, func(batchID, int) error { return nil })
}

// cleanAll cleans batches in order.
func (s *Store) cleanAll(ctx context.Context, batches map[batchID]bool) error {
	if len(batches) == 0 {
		return nil
	}
	ordered := slices.SortedFunc(maps.Keys(batches), func(a, b batchID) int { return cmp.Compare(a.id, b.id) })
	return s.transact(ctx, func(tx pgx.Tx) error {
		for _, b := range ordered {
			if err := clean(ctx, tx, b); err != nil {
				return err
			}
		}
		return nil
	})
}

// clean deletes useless rows of a batch: holds of 0 lines, and the runs after
// the last line was delivered. Where two owners deliver the last lines at the same
// moment the runs stay until the batch is forgotten.
func clean(ctx context.Context, tx pgx.Tx, b batchID) error {
	_, err := tx.Exec(ctx, `delete from autobatcher.holds where batch = $1 and lines = 0`, b.id)
	if err != nil || !b.large {
		return err
	}
	_, err = tx.Exec(ctx, `
		delete from autobatcher.runs where batch = $1
			and not exists (select 1 from autobatcher.holds where batch = $1)`, b.id)
	return err
}
