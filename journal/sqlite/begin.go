package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/internal/runs"
)

// maxStep is the number of lines inserted or changed by a transaction. A step
// takes a few tenths of a second.
const maxStep = 100_000

// Begin implements journal.Store. A batch of many lines is inserted in steps. Until
// the last step the batch has no name, and no other request finds the batch.
func (s *Store) Begin(ctx context.Context, b journal.Batch, lines []journal.Line) error {
	return s.begin(ctx, b, lines, maxStep)
}

func (s *Store) begin(ctx context.Context, b journal.Batch, lines []journal.Line, step int) error {
	n := newBatch{Batch: b, lines: lines}
	if len(lines) >= runs.Large {
		n.runs = runs.Pack(lines)
	}
	if len(lines) <= step {
		return s.update(ctx, b.Owner, func(tx *sql.Tx) error {
			return inOrder(
				func() error { return n.insert(ctx, tx) },
				func() error { return n.insertLines(ctx, tx, 0, len(lines)) },
				func() error { return n.insertRuns(ctx, tx, n.runs) },
				func() error { return n.finish(ctx, tx) })
		})
	}
	err := s.inSteps(ctx, &n, step)
	if err != nil && n.id != 0 {
		s.giveUp(n.id)
	}
	return err
}

// inOrder calls functions in order until an error.
func inOrder(all ...func() error) error {
	for _, do := range all {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) inSteps(ctx context.Context, n *newBatch, step int) error {
	err := s.update(ctx, n.Owner, func(tx *sql.Tx) error { return n.insert(ctx, tx) })
	for from := 0; err == nil && from < len(n.lines); from += step {
		err = s.transact(ctx, func(tx *sql.Tx) error { return n.insertLines(ctx, tx, from, min(from+step, len(n.lines))) })
	}
	for some := range slices.Chunk(n.runs, step) {
		if err == nil {
			err = s.transact(ctx, func(tx *sql.Tx) error { return n.insertRuns(ctx, tx, some) })
		}
	}
	if err != nil {
		return err
	}
	return s.update(ctx, n.Owner, func(tx *sql.Tx) error { return n.finish(ctx, tx) })
}

// giveUpTimeout is how long giveUp tries. If giveUp fails, Forget removes the lines
// after the death of the owner.
const giveUpTimeout = time.Second

// giveUp lets Forget remove the lines of a failed Begin.
func (s *Store) giveUp(id int64) {
	ctx, cancel := context.WithTimeout(context.Background(), giveUpTimeout)
	defer cancel()
	_ = s.transact(ctx, func(tx *sql.Tx) error { // see giveUpTimeout
		_, err := tx.ExecContext(ctx, `update batches set owner = 0 where id = ? and ref is null`, id)
		return err
	})
}

// A newBatch is a batch during Begin.
type newBatch struct {
	journal.Batch
	lines []journal.Line
	runs  []runs.Run // of a large batch

	id, owner int64
}

// insert inserts the batch, without its name and lines.
func (n *newBatch) insert(ctx context.Context, tx *sql.Tx) (err error) {
	if n.owner, err = leased(ctx, tx, n.Owner); err != nil {
		return err
	}
	if _, err := lookUp(ctx, tx, n.Ref); !errors.Is(err, journal.ErrNoBatch) {
		if err == nil {
			err = journal.ErrExists
		}
		return err
	}
	models, err := json.Marshal(n.Models)
	if err != nil {
		return err
	}
	return tx.QueryRowContext(ctx, `
		insert into batches (owner, account, upstream, provider, endpoint, window, models, traces, state,
			input_file, batch_id, status, began, created, ended, lines, large)
		values (?, ?, ?, ?, ?, ?, ?, ?, ?, '', '', '', ?, 0, 0, ?, ?)
		returning id`,
		n.owner, n.Account[:], n.Upstream, n.Provider, n.Endpoint, n.Window, string(models), n.Traces, journal.Uploading,
		now(), len(n.lines), n.large()).Scan(&n.id)
}

func (n *newBatch) large() bool { return n.runs != nil }

// insertLines inserts the lines [from, to). It runs one prepared statement for each
// line, which is faster than statements that insert many lines.
func (n *newBatch) insertLines(ctx context.Context, tx *sql.Tx, from, to int) error {
	insert, err := tx.PrepareContext(ctx, `insert into lines (id, owner, fingerprint, custom_id) values (?, ?, ?, ?)`)
	if err != nil {
		return err
	}
	defer insert.Close()
	uncancelled := context.WithoutCancel(ctx) // or the driver starts a goroutine for each line
	for i := from; i < to; i++ {
		l := &n.lines[i]
		var fingerprint []byte
		if !n.large() {
			fingerprint = l.Fingerprint[:len(runs.Short{})]
		}
		if _, err := insert.ExecContext(uncancelled, rowOf(n.id, i), n.owner, fingerprint, l.CustomID); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (n *newBatch) insertRuns(ctx context.Context, tx *sql.Tx, some []runs.Run) error {
	if len(some) == 0 {
		return nil
	}
	insert, err := tx.PrepareContext(ctx, `insert into runs (id, entries) values (?, ?)`)
	if err != nil {
		return err
	}
	defer insert.Close()
	uncancelled := context.WithoutCancel(ctx) // as in insertLines
	for _, r := range some {
		if _, err := insert.ExecContext(uncancelled, runOf(n.id, r.First), r.Entries); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// runOf is the id of a run's row.
func runOf(batch int64, first uint32) int64 { return batch<<32 | int64(first) }

// finish gives the batch its name. From then on the batch is visible.
func (n *newBatch) finish(ctx context.Context, tx *sql.Tx) error {
	changed, err := execute(ctx, tx, `
		update batches set ref = ?, began = ?
		where id = ? and ref is null and owner in (select id from owners)`, n.Ref, now(), n.id)
	switch {
	case isDuplicate(err):
		return journal.ErrExists
	case err != nil:
		return err
	case changed == 0: // the owner died, and Forget may have removed the batch
		return journal.ErrLapsed
	case len(n.lines) == 0:
		return nil
	}
	return gain(ctx, tx, batchID{n.id, len(n.lines), n.large()}, n.owner, len(n.lines))
}
