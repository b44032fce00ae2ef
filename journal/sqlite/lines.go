package sqlite

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"strconv"

	"github.com/autobatcher/autobatcher/journal"
)

// A short is what the journal keeps of a line's Print. That is long enough that
// no two will be equal by chance.
type short [16]byte

func shorten(h journal.Hash) short { return short(h[:16]) }

// insertLines steps one prepared statement for each line, which is faster than
// statements that insert many.
func insertLines(ctx context.Context, tx *sql.Tx, batch, owner int64, lines []journal.Line) error {
	insert, err := tx.PrepareContext(ctx, `insert into lines (batch, n, owner, print, custom_id) values (?, ?, ?, ?, ?)`)
	if err != nil {
		return err
	}
	defer insert.Close()
	uncancelled := context.WithoutCancel(ctx) // or the driver would start a goroutine for each line
	for n := range lines {
		l := &lines[n]
		if _, err := insert.ExecContext(uncancelled, batch, n, owner, l.Print[:16], l.CustomID); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// TakeOver implements journal.Store.
func (s *Store) TakeOver(ctx context.Context, owner string, payer journal.Hash, prints []journal.Hash) (all []journal.Taken, err error) {
	err = s.update(ctx, func(tx *sql.Tx) error {
		id, err := leased(ctx, tx, owner)
		if err != nil {
			return err
		}
		found, err := findOpen(ctx, tx, payer, prints)
		if err != nil {
			return err
		}
		all, err = hold(ctx, tx, id, found)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// A found is the lines of one batch that are open and wanted.
type found struct {
	batch int64
	lines []journal.Line
}

// findOpen finds as many open lines for each print as it is wanted, the oldest
// first.
func findOpen(ctx context.Context, tx *sql.Tx, payer journal.Hash, prints []journal.Hash) ([]found, error) {
	var some bool
	err := tx.QueryRowContext(ctx, `select exists (select 1 from lines where owner is null)`).Scan(&some)
	if err != nil || !some || len(prints) == 0 {
		return nil, err // nearly always there is none
	}
	wanted := count(prints)
	list, err := json.Marshal(hexOf(wanted))
	if err != nil {
		return nil, err
	}
	rows, err := tx.QueryContext(ctx, `
		select l.batch, l.n, l.print, l.custom_id
		from json_each(?1) w
			cross join lines l indexed by open_lines on l.print = unhex(w.value) and l.owner is null
			join batches b on b.id = l.batch
		where b.payer = ?2 and b.state <> ?3
		order by l.batch, l.n`, string(list), payer[:], journal.Cancelling)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	return pick(rows, wanted)
}

// A want is a print that so many callers ask for.
type want struct {
	full  journal.Hash
	count int
}

func count(prints []journal.Hash) map[short]*want {
	wanted := make(map[short]*want, len(prints))
	for _, h := range prints {
		if w := wanted[shorten(h)]; w != nil {
			w.count++
			continue
		}
		wanted[shorten(h)] = &want{full: h, count: 1}
	}
	return wanted
}

func hexOf(wanted map[short]*want) []string {
	all := make([]string, 0, len(wanted))
	for p := range wanted {
		all = append(all, hex.EncodeToString(p[:]))
	}
	return all
}

// pick takes of the open lines as many as are wanted.
func pick(rows *sql.Rows, wanted map[short]*want) (all []found, err error) {
	for rows.Next() {
		var batch int64
		var l journal.Line
		var p sql.RawBytes
		if err := rows.Scan(&batch, &l.N, &p, &l.CustomID); err != nil {
			return nil, err
		}
		w := wanted[short(p)]
		if w.count == 0 {
			continue
		}
		w.count--
		l.Print = w.full
		if len(all) == 0 || all[len(all)-1].batch != batch {
			all = append(all, found{batch: batch})
		}
		last := &all[len(all)-1]
		last.lines = append(last.lines, l)
	}
	return all, rows.Err()
}

// hold makes the owner hold the lines, and adds what is known of their batches.
func hold(ctx context.Context, tx *sql.Tx, owner int64, all []found) ([]journal.Taken, error) {
	var taken []journal.Taken
	for _, f := range all {
		places := make([]int, len(f.lines))
		for i, l := range f.lines {
			places[i] = l.N
		}
		_, err := tx.ExecContext(ctx, `
			update lines set owner = ? where batch = ? and n in (select value from json_each(?))`,
			owner, f.batch, list(places))
		if err != nil {
			return nil, err
		}
		b, err := scanBatch(tx.QueryRowContext(ctx, `
			select `+columns+` from batches b left join owners o on o.id = b.owner where b.id = ?`, f.batch))
		if err != nil {
			return nil, err
		}
		b.Lines = 0
		taken = append(taken, journal.Taken{Batch: b, Lines: f.lines})
	}
	return taken, nil
}

// Hold implements journal.Store.
func (s *Store) Hold(ctx context.Context, owner, ref string, lines []int) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		id, err := leased(ctx, tx, owner)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `
			update lines set owner = ?
			where batch = (select id from batches where ref = ? and state <> ?)
				and n in (select value from json_each(?))
				and owner is null`,
			id, ref, journal.Cancelling, list(lines))
		return err
	})
}

// Release implements journal.Store.
func (s *Store) Release(ctx context.Context, owner, ref string, lines []int) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `
			update lines set owner = null
			where batch = (select id from batches where ref = ?)
				and n in (select value from json_each(?))
				and owner = (select id from owners where name = ?)`,
			ref, list(lines), owner)
		return err
	})
}

// Deliver implements journal.Store.
func (s *Store) Deliver(ctx context.Context, owner, ref string, lines []int) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `
			delete from lines
			where batch = (select id from batches where ref = ?)
				and n in (select value from json_each(?))
				and (owner is null or owner = (select id from owners where name = ?))`,
			ref, list(lines), owner)
		return err
	})
}

// list is the numbers as JSON, which is how SQLite takes many in one statement.
func list(lines []int) string {
	text := make([]byte, 0, 2+8*len(lines))
	text = append(text, '[')
	for i, n := range lines {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendInt(text, int64(n), 10)
	}
	return string(append(text, ']'))
}
