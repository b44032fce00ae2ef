package postgres

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/internal/runs"
)

// Begin implements journal.Store.
func (s *Store) Begin(ctx context.Context, b journal.Batch, lines []journal.Line) error {
	n := newBatch{Batch: b, lines: lines, runs: sync.OnceValue(func() []runs.Run { return nil })}
	if n.id.large = len(lines) >= runs.Large; n.id.large {
		n.runs = sync.OnceValue(func() []runs.Run { return runs.Pack(lines) })
		go n.runs() // while the database inserts the lines
	}
	return s.transact(ctx, func(tx pgx.Tx) error {
		return inOrder(
			func() error { return n.insert(ctx, tx) },
			func() error { return n.copyLines(ctx, tx) },
			func() error { return n.copyRuns(ctx, tx) },
			func() error { return gain(ctx, tx, n.id, n.owner, len(lines)) },
			func() error { return confirm(ctx, tx, n.owner) })
	})
}

// A newBatch is a batch during Begin.
type newBatch struct {
	journal.Batch
	lines []journal.Line
	runs  func() []runs.Run // of a large batch

	id    batchID
	owner int64
}

func (n *newBatch) insert(ctx context.Context, tx pgx.Tx) (err error) {
	if n.owner, err = leased(ctx, tx, n.Owner); err != nil {
		return err
	}
	err = tx.QueryRow(ctx, `
		insert into autobatcher.batches (ref, owner, account, upstream, provider, endpoint, "window", models, traces, state, lines, large)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
		returning id`,
		n.Ref, n.owner, n.Account[:], n.Upstream, n.Provider, n.Endpoint, n.Window, n.Models, n.Traces, journal.Uploading,
		len(n.lines), n.id.large).Scan(&n.id.id)
	var failed *pgconn.PgError
	if errors.As(err, &failed) && failed.Code == "23505" { // unique_violation
		err = journal.ErrExists
	}
	return err
}

// copyLines inserts the lines by COPY, the fastest way.
func (n *newBatch) copyLines(ctx context.Context, tx pgx.Tx) error {
	row := make([]any, 5)
	return copyIn(ctx, tx, "lines", []string{"batch", "n", "owner", "fingerprint", "custom_id"}, len(n.lines), func(i int) []any {
		l := &n.lines[i]
		row[0], row[1], row[2], row[3], row[4] = n.id.id, int32(i), n.owner, nil, l.CustomID
		if !n.id.large {
			row[3] = l.Fingerprint[:len(runs.Short{})]
		}
		return row
	})
}

func (n *newBatch) copyRuns(ctx context.Context, tx pgx.Tx) error {
	row, all := make([]any, 3), n.runs()
	return copyIn(ctx, tx, "runs", []string{"batch", "first", "entries"}, len(all), func(i int) []any {
		row[0], row[1], row[2] = n.id.id, int64(all[i].First), all[i].Entries
		return row
	})
}

// copyIn copies n rows into a table.
func copyIn(ctx context.Context, tx pgx.Tx, table string, columns []string, n int, row func(i int) []any) error {
	if n == 0 {
		return nil
	}
	next := 0
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"autobatcher", table}, columns,
		pgx.CopyFromFunc(func() ([]any, error) {
			if next == n {
				return nil, nil
			}
			next++
			return row(next - 1), nil
		}))
	return err
}
