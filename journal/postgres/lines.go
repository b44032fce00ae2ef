package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
)

// A short is what the journal keeps of a line's Print. That is long enough that
// no two will be equal by chance.
type short [16]byte

func shorten(h journal.Hash) short { return short(h[:16]) }

// insertLines copies the lines in, which is the fastest that PostgreSQL has.
func insertLines(ctx context.Context, tx pgx.Tx, batch, owner int64, lines []journal.Line) error {
	row := make([]any, 5)
	next := 0
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"autobatcher", "lines"},
		[]string{"batch", "n", "owner", "print", "custom_id"},
		pgx.CopyFromFunc(func() ([]any, error) {
			if next == len(lines) {
				return nil, nil
			}
			l := &lines[next]
			row[0], row[1], row[2], row[3], row[4] = batch, int32(next), owner, l.Print[:16], l.CustomID
			next++
			return row, nil
		}))
	return err
}

// TakeOver implements journal.Store.
func (s *Store) TakeOver(ctx context.Context, owner string, payer journal.Hash, prints []journal.Hash) (all []journal.Taken, err error) {
	err = s.update(ctx, func(tx pgx.Tx) error {
		id, err := leased(ctx, tx, owner)
		if err != nil {
			return err
		}
		var found []found
		if found, err = hold(ctx, tx, id, payer, prints); err != nil {
			return err
		}
		all, err = describe(ctx, tx, found)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// A found is the lines of one batch that were taken over.
type found struct {
	batch int64
	lines []journal.Line
}

// hold makes the owner hold as many open lines of each print as it is wanted,
// the oldest first. Lines that another takes in this very moment are passed
// over. A batch that is being abandoned or forgotten is waited for, since it
// may turn out not to be.
func hold(ctx context.Context, tx pgx.Tx, owner int64, payer journal.Hash, prints []journal.Hash) ([]found, error) {
	var some bool
	err := tx.QueryRow(ctx, `select exists (select 1 from autobatcher.lines where owner is null)`).Scan(&some)
	if err != nil || !some || len(prints) == 0 {
		return nil, err // nearly always there is none
	}
	full, list, counts := count(prints)
	rows, err := tx.Query(ctx, `
		with open as materialized (
			select l.batch, l.n
			from unnest($1::bytea[], $2::integer[]) as w (print, count)
			cross join lateral (
				select l.batch, l.n
				from autobatcher.lines l join autobatcher.batches b on b.id = l.batch
				where l.print = w.print and l.owner is null and b.payer = $3 and b.state <> $4
				order by l.batch, l.n
				limit w.count
				for update of l skip locked for key share of b
			) l
		), held as (
			update autobatcher.lines l set owner = $5 from open
			where l.batch = open.batch and l.n = open.n
			returning l.batch, l.n, l.print, l.custom_id
		)
		select batch, n, print, custom_id from held order by batch, n`,
		list, counts, payer[:], journal.Cancelling, owner)
	if err != nil {
		return nil, err
	}
	return group(rows, full)
}

// count says how often each print is wanted, and which hash it was.
func count(prints []journal.Hash) (full map[short]journal.Hash, list [][]byte, counts []int32) {
	full = make(map[short]journal.Hash, len(prints))
	place := make(map[short]int, len(prints))
	for i := range prints {
		p := shorten(prints[i])
		at, again := place[p]
		if again {
			counts[at]++
			continue
		}
		place[p], full[p] = len(list), prints[i]
		list, counts = append(list, prints[i][:16]), append(counts, 1)
	}
	return full, list, counts
}

func group(rows pgx.Rows, full map[short]journal.Hash) (all []found, err error) {
	defer rows.Close()
	for rows.Next() {
		var batch int64
		var l journal.Line
		var p []byte
		if err := rows.Scan(&batch, &l.N, &p, &l.CustomID); err != nil {
			return nil, err
		}
		l.Print = full[short(p)]
		if len(all) == 0 || all[len(all)-1].batch != batch {
			all = append(all, found{batch: batch})
		}
		last := &all[len(all)-1]
		last.lines = append(last.lines, l)
	}
	return all, rows.Err()
}

// describe adds what is known of the batches.
func describe(ctx context.Context, tx pgx.Tx, all []found) ([]journal.Taken, error) {
	if len(all) == 0 {
		return nil, nil
	}
	lines := make(map[int64][]journal.Line, len(all))
	ids := make([]int64, len(all))
	for i, f := range all {
		ids[i], lines[f.batch] = f.batch, f.lines
	}
	rows, err := tx.Query(ctx, `
		select `+columns+` from autobatcher.batches b left join autobatcher.owners o on o.id = b.owner
		where b.id = any($1) order by b.id`, ids)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (journal.Taken, error) {
		id, b, err := scanBatch(row)
		b.Lines = 0
		return journal.Taken{Batch: b, Lines: lines[id]}, err
	})
}

// Hold implements journal.Store.
func (s *Store) Hold(ctx context.Context, owner, ref string, lines []int) error {
	return s.update(ctx, func(tx pgx.Tx) error {
		id, err := leased(ctx, tx, owner)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			with b as materialized (select id from autobatcher.batches where ref = $2 and state <> $4 for key share)
			update autobatcher.lines set owner = $1
			where batch = (select id from b) and n = any($3::integer[]) and owner is null`,
			id, ref, lines, journal.Cancelling)
		return err
	})
}

// Release implements journal.Store.
func (s *Store) Release(ctx context.Context, owner, ref string, lines []int) error {
	return s.transact(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			update autobatcher.lines set owner = null
			where batch = (select id from autobatcher.batches where ref = $1) and n = any($2::integer[])
				and owner = (select id from autobatcher.owners where name = $3)`,
			ref, lines, owner)
		return err
	})
}

// Deliver implements journal.Store.
func (s *Store) Deliver(ctx context.Context, owner, ref string, lines []int) error {
	return s.transact(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			delete from autobatcher.lines
			where batch = (select id from autobatcher.batches where ref = $1) and n = any($2::integer[])
				and (owner is null or owner = (select id from autobatcher.owners where name = $3))`,
			ref, lines, owner)
		return err
	})
}
