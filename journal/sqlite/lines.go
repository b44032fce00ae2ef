package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strconv"

	"github.com/autobatcher/autobatcher/journal"
)

// gain counts n more lines of a batch as the owner's.
func gain(ctx context.Context, tx *sql.Tx, b batchID, owner int64, n int) error {
	if n == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, `
		insert into holds (owner, large, batch, lines) values (?, ?, ?, ?)
		on conflict do update set lines = lines + excluded.lines`, owner, b.large, b.id, n)
	return err
}

// lose counts n lines of a batch as the owner's no longer.
func lose(ctx context.Context, tx *sql.Tx, b batchID, owner int64, n int) error {
	if n == 0 {
		return nil
	}
	left := 0
	err := tx.QueryRowContext(ctx, `
		update holds set lines = lines - ? where owner = ? and large = ? and batch = ? returning lines`,
		n, owner, b.large, b.id).Scan(&left)
	if err != nil || left > 0 {
		return err
	}
	_, err = tx.ExecContext(ctx, `delete from holds where owner = ? and large = ? and batch = ?`, owner, b.large, b.id)
	return err
}

// ofBatch runs change for some lines of a batch, in steps of limited size. A batch
// that the journal does not have is left out.
func (s *Store) ofBatch(ctx context.Context, owner, ref string, lines []int, change func(tx *sql.Tx, b batchID, rows string, asked int) error) error {
	for some := range slices.Chunk(lines, maxStep) {
		err := s.update(ctx, owner, func(tx *sql.Tx) error {
			b, err := lookUp(ctx, tx, ref)
			if err != nil {
				return err
			}
			return change(tx, b, b.rows(some), len(some))
		})
		switch {
		case errors.Is(err, journal.ErrNoBatch):
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

// rows are the ids of the rows of lines as JSON, which is how SQLite takes many
// values in one statement. Numbers that are no line of the batch are left out.
func (b batchID) rows(lines []int) string {
	return list(lines, func(n int) (int64, bool) { return rowOf(b.id, n), n >= 0 && n < b.lines })
}

func list[T any](all []T, row func(T) (int64, bool)) string {
	text := make([]byte, 0, 2+16*len(all))
	text = append(text, '[')
	for _, each := range all {
		if id, ok := row(each); ok {
			text = append(strconv.AppendInt(text, id, 10), ',')
		}
	}
	if len(text) > 1 {
		text = text[:len(text)-1] // the last comma
	}
	return string(append(text, ']'))
}

// openCounts counts open lines by dead holder, 0 for released.
const openCounts = `
	select owner, count(*) from lines
	where id in (select value from json_each(?)) and ` + isOpen + ` group by owner`

// giveOpen makes the owner hold the open lines among the rows.
func giveOpen(ctx context.Context, tx *sql.Tx, owner int64, b batchID, rows string) error {
	total, err := loseOpen(ctx, tx, b, rows)
	if err != nil || total == 0 {
		return err
	}
	_, err = tx.ExecContext(ctx, `
		update lines set owner = ? where id in (select value from json_each(?)) and `+isOpen, owner, rows)
	if err != nil {
		return err
	}
	return gain(ctx, tx, b, owner, total)
}

// loseOpen counts the open lines among the rows as lost by the dead holders, and
// returns the number of open lines.
func loseOpen(ctx context.Context, tx *sql.Tx, b batchID, rows string) (total int, err error) {
	counts, err := pairs(tx.QueryContext(ctx, openCounts, rows))
	for owner, n := range counts {
		if err := lose(ctx, tx, b, owner, int(n)); err != nil {
			return 0, err
		}
		total += int(n)
	}
	return total, err
}

// pairs reads two columns of numbers.
func pairs(rows *sql.Rows, err error) (map[int64]int64, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := make(map[int64]int64)
	for rows.Next() {
		var key, value int64
		if err := rows.Scan(&key, &value); err != nil {
			return nil, err
		}
		all[key] = value
	}
	return all, rows.Err()
}

// Hold implements journal.Store.
func (s *Store) Hold(ctx context.Context, owner, ref string, lines []int) error {
	if err := s.checkLease(ctx, owner); err != nil {
		return err // also without lines, and without the batch
	}
	return s.ofBatch(ctx, owner, ref, lines, func(tx *sql.Tx, b batchID, rows string, _ int) error {
		id, err := leased(ctx, tx, owner)
		if err != nil {
			return err
		}
		var cancelling bool
		err = tx.QueryRowContext(ctx, `select state = ? from batches where id = ?`, journal.Cancelling, b.id).Scan(&cancelling)
		if err != nil || cancelling {
			return err
		}
		return giveOpen(ctx, tx, id, b, rows)
	})
}

// checkLease returns ErrLapsed if the owner has no lease, for requests that have
// nothing else to do.
func (s *Store) checkLease(ctx context.Context, owner string) error {
	return s.view(ctx, func(tx *sql.Tx) error {
		_, err := leased(ctx, tx, owner)
		return err
	})
}

// release is the statement of Release.
const release = `update lines set owner = 0 where id in (select value from json_each(?)) and owner = ?`

// Release implements journal.Store.
func (s *Store) Release(ctx context.Context, owner, ref string, lines []int) error {
	return s.ofBatch(ctx, owner, ref, lines, func(tx *sql.Tx, b batchID, rows string, _ int) error {
		id, err := idOf(ctx, tx, owner)
		if err != nil || id == 0 {
			return err
		}
		n, err := execute(ctx, tx, release, rows, id)
		if err != nil {
			return err
		}
		if err := lose(ctx, tx, b, id, n); err != nil {
			return err
		}
		return gain(ctx, tx, b, 0, n)
	})
}

// SetResponse implements journal.Store.
func (s *Store) SetResponse(ctx context.Context, owner, ref string, line int, responseID string) error {
	return s.ofBatch(ctx, owner, ref, []int{line}, func(tx *sql.Tx, _ batchID, rows string, _ int) error {
		_, err := tx.ExecContext(ctx, `
			update lines set response_id = nullif(?, '')
			where id in (select value from json_each(?)) and owner = (select id from owners where name = ?)`,
			responseID, rows, owner)
		return err
	})
}

const (
	// deliverHeld deletes lines of a holder: nearly all delivered lines. deliverOpen
	// deletes open lines.
	deliverHeld = `delete from lines where id in (select value from json_each(?)) and owner = ?`
	deliverOpen = `delete from lines where id in (select value from json_each(?)) and ` + isOpen
)

// Deliver implements journal.Store.
func (s *Store) Deliver(ctx context.Context, owner, ref string, lines []int) error {
	return s.ofBatch(ctx, owner, ref, lines, func(tx *sql.Tx, b batchID, rows string, asked int) error {
		id, err := idOf(ctx, tx, owner)
		if err != nil {
			return err
		}
		n, err := deliver(ctx, tx, id, b, rows, asked)
		if err != nil || n == 0 || !b.large {
			return err
		}
		return deleteRuns(ctx, tx, b)
	})
}

// deliver deletes lines and returns their number.
func deliver(ctx context.Context, tx *sql.Tx, owner int64, b batchID, rows string, asked int) (n int, err error) {
	if owner != 0 {
		if n, err = execute(ctx, tx, deliverHeld, rows, owner); err != nil {
			return 0, err
		}
		if err := lose(ctx, tx, b, owner, n); err != nil || n == asked {
			return n, err
		}
	}
	open, err := loseOpen(ctx, tx, b, rows)
	if err != nil || open == 0 {
		return n, err
	}
	_, err = tx.ExecContext(ctx, deliverOpen, rows)
	return n + open, err
}

// Withdraw implements journal.Store.
func (s *Store) Withdraw(ctx context.Context, account journal.Hash, fingerprints []journal.Hash) (int, error) {
	return s.withdraw(ctx, account, fingerprints, maxPrints, maxStep)
}

// withdraw withdraws at most step lines of at most prints fingerprints in a transaction.
func (s *Store) withdraw(ctx context.Context, account journal.Hash, fingerprints []journal.Hash, prints, step int) (withdrawn int, err error) {
	for some := range slices.Chunk(fingerprints, prints) {
		for more := true; more; {
			var all []found
			err := s.transact(ctx, func(tx *sql.Tx) (err error) {
				if all, err = undelivered(ctx, tx, account, some); err != nil {
					return err
				}
				more = len(all) > step
				all = all[:min(step, len(all))]
				return withdrawLines(ctx, tx, all)
			})
			if err != nil {
				return withdrawn, err
			}
			withdrawn += len(all)
		}
	}
	return withdrawn, nil
}

// deleteRows is the statement of withdrawLines.
const deleteRows = `delete from lines where id in (select value from json_each(?))`

// withdrawLines deletes lines that the transaction has found.
func withdrawLines(ctx context.Context, tx *sql.Tx, all []found) error {
	if len(all) == 0 {
		return nil
	}
	rows := list(all, func(f found) (int64, bool) { return f.row, true })
	if _, err := tx.ExecContext(ctx, deleteRows, rows); err != nil {
		return err
	}
	for from, n := range holdings(all) {
		if err := lose(ctx, tx, from.b, from.owner, n); err != nil {
			return err
		}
		if !from.b.large {
			continue
		}
		if err := deleteRuns(ctx, tx, from.b); err != nil {
			return err
		}
	}
	return nil
}

// deleteRuns deletes the runs of a batch whose last line was delivered.
func deleteRuns(ctx context.Context, tx *sql.Tx, b batchID) error {
	var more bool
	err := tx.QueryRowContext(ctx, `select exists (select 1 from holds where batch = ?)`, b.id).Scan(&more)
	if err != nil || more {
		return err
	}
	_, err = tx.ExecContext(ctx, `delete from runs where id >= ? and id < ?`, runOf(b.id, 0), runOf(b.id+1, 0))
	return err
}
