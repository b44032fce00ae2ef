package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// maxPage is the number of lines deleted by a transaction. A page takes some
// ten milliseconds.
const maxPage = 5000

// maxMark is the number of batches marked for deletion by a transaction.
const maxMark = 1000

// Discard implements journal.Store.
func (s *Store) Discard(ctx context.Context, owner, ref string) error {
	var id int64
	err := s.update(ctx, owner, func(tx *sql.Tx) (err error) {
		if id, err = owned(ctx, tx, owner, ref); err != nil {
			return err
		}
		return mark(ctx, tx, id)
	})
	if err != nil {
		return err
	}
	_, err = s.delete(ctx, id)
	return err
}

// mark makes a batch invisible. A later step deletes the rows.
func mark(ctx context.Context, tx *sql.Tx, id int64) error {
	if _, err := tx.ExecContext(ctx, `update batches set ref = null, owner = 0 where id = ?`, id); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `delete from holds where batch = ?`, id)
	return err
}

// old finds batches that Forget deletes.
const old = `
	select id from batches b
	where ref is not null
		and (state = ?1 and ended > 0 and ended <= ?2 or began <= ?3 and owner not in (select id from owners))
		and not exists (select 1 from holds where batch = b.id and owner in (select id from owners))
	limit ?4`

const (
	// isUnfinished is the condition on a batch whose deletion, or whose Begin by an
	// owner that is dead, was interrupted.
	isUnfinished = `ref is null and ` + isOpen

	unfinished      = `select id from batches where ` + isUnfinished + ` limit 1`
	stillUnfinished = `select id from batches where id = ? and ` + isUnfinished
)

// Forget implements journal.Store.
func (s *Store) Forget(ctx context.Context, ended, begun time.Duration) (forgotten int, err error) {
	return s.forget(ctx, ended, begun, maxMark)
}

func (s *Store) forget(ctx context.Context, ended, begun time.Duration, marks int) (forgotten int, err error) {
	for marked := marks; marked == marks && err == nil; {
		marked, err = s.markOld(ctx, ended, begun, marks)
		for more := true; more && err == nil; {
			var deleted bool
			deleted, more, err = s.deleteNext(ctx)
			if deleted {
				forgotten++
			}
		}
	}
	if forgotten > 0 && err == nil {
		s.shrink(ctx)
	}
	return forgotten, err
}

// markOld marks at most limit old batches, and returns the number.
func (s *Store) markOld(ctx context.Context, ended, begun time.Duration, limit int) (marked int, err error) {
	err = s.update(ctx, "", func(tx *sql.Tx) error {
		ids, err := numbers(tx.QueryContext(ctx, old,
			journal.Ended, now()-ended.Microseconds(), now()-begun.Microseconds(), limit))
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := mark(ctx, tx, id); err != nil {
				return err
			}
		}
		marked = len(ids)
		return nil
	})
	return marked, err
}

// deleteNext deletes a marked batch, if any, and reports the deletion and whether a
// marked batch was found.
func (s *Store) deleteNext(ctx context.Context) (deleted, found bool, err error) {
	var ids []int64
	err = s.view(ctx, func(tx *sql.Tx) (err error) {
		ids, err = numbers(tx.QueryContext(ctx, unfinished))
		return err
	})
	if err != nil || len(ids) == 0 {
		return false, false, err
	}
	deleted, err = s.delete(ctx, ids[0])
	return deleted, true, err
}

// delete deletes a marked batch page by page, and reports whether the call deleted
// the last row. After each page delete waits for the duration of the page, and other
// writers get the lock: another process may delete the rest, and begin a batch with the
// same id.
func (s *Store) delete(ctx context.Context, id int64) (deleted bool, err error) {
	for {
		began := time.Now()
		var n int
		err := s.transact(ctx, func(tx *sql.Tx) error {
			n, deleted = 0, false
			marked, err := numbers(tx.QueryContext(ctx, stillUnfinished, id))
			if err != nil || len(marked) == 0 {
				return err
			}
			if n, err = deletePage(ctx, tx, id, maxPage); n > 0 || err != nil {
				return err
			}
			last, err := execute(ctx, tx, `delete from batches where id = ? and ref is null`, id)
			deleted = last > 0
			return err
		})
		if err != nil || n == 0 {
			return deleted && err == nil, err
		}
		if err := pause(ctx, time.Since(began)); err != nil {
			return false, err
		}
	}
}

// deletePages delete lines and runs of a batch, at most ?3 of them.
var deletePages = []string{
	`delete from lines where id in (select id from lines where id >= ?1 and id < ?2 limit ?3)`,
	`delete from runs where id in (select id from runs where id >= ?1 and id < ?2 limit ?3)`,
}

// deletePage deletes a page of a batch and returns the number of deleted rows.
func deletePage(ctx context.Context, tx *sql.Tx, batch int64, limit int) (deleted int, err error) {
	for _, page := range deletePages {
		n, err := execute(ctx, tx, page, rowOf(batch, 0), rowOf(batch+1, 0), limit-deleted)
		if err != nil {
			return 0, err
		}
		if deleted += n; deleted >= limit {
			break
		}
	}
	return deleted, nil
}

// pause waits, and returns the error of a context that ends meanwhile.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// maxShrink is the number of free pages returned to the file system by a
// transaction.
const maxShrink = 2000

// shrink returns the space of deleted batches to the file system: the free pages of
// the file, where the file was made with auto_vacuum, and the write-ahead log.
// shrink is an economy: its errors are ignored.
func (s *Store) shrink(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		before, after := 0, 0
		err := s.transact(ctx, func(tx *sql.Tx) error {
			return inOrder(
				func() error { return tx.QueryRowContext(ctx, `pragma freelist_count`).Scan(&before) },
				func() error {
					_, err := tx.ExecContext(ctx, fmt.Sprintf(`pragma incremental_vacuum(%d)`, maxShrink))
					return err
				},
				func() error { return tx.QueryRowContext(ctx, `pragma freelist_count`).Scan(&after) })
		})
		if err != nil || after >= before || after == 0 || pause(ctx, time.Since(began)) != nil {
			break
		}
	}
	_, _ = s.db.ExecContext(ctx, `pragma wal_checkpoint(truncate)`)
}

// numbers reads a column of numbers.
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
