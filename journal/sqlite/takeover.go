package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/internal/runs"
)

// maxPrints is the number of fingerprints for a transaction.
const maxPrints = 20_000

// TakeOver implements journal.Store.
func (s *Store) TakeOver(ctx context.Context, owner string, account journal.Hash, fingerprints []journal.Hash) ([]journal.Taken, error) {
	return s.takeOver(ctx, owner, account, fingerprints, maxPrints)
}

func (s *Store) takeOver(ctx context.Context, owner string, account journal.Hash, fingerprints []journal.Hash, step int) ([]journal.Taken, error) {
	if len(fingerprints) == 0 {
		return nil, s.checkLease(ctx, owner)
	}
	var all []found
	for some := range slices.Chunk(fingerprints, step) {
		var taken []found
		err := s.update(ctx, owner, func(tx *sql.Tx) error {
			id, err := leased(ctx, tx, owner)
			if err != nil {
				return err
			}
			l := lookup{ctx: ctx, tx: tx, account: account, count: func() runs.Wanted { return runs.Count(some) }}
			if taken, err = l.find(); err != nil {
				return err
			}
			return give(ctx, tx, id, taken)
		})
		if err != nil {
			return nil, err
		}
		all = append(all, taken...)
	}
	return s.describe(ctx, all)
}

// Held implements journal.Store.
func (s *Store) Held(ctx context.Context, owner string, account journal.Hash, fingerprints []journal.Hash) ([]journal.Taken, error) {
	var all []found
	err := s.view(ctx, func(tx *sql.Tx) error {
		id, err := idOf(ctx, tx, owner)
		if err != nil || id == 0 {
			return err
		}
		l := lookup{ctx: ctx, tx: tx, account: account, count: func() runs.Wanted { return runs.All(fingerprints) }, holder: id}
		all, err = l.find()
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.describe(ctx, all)
}

// Find implements journal.Store.
func (s *Store) Find(ctx context.Context, account journal.Hash, fingerprints []journal.Hash) (taken []journal.Taken, err error) {
	err = s.view(ctx, func(tx *sql.Tx) error {
		all, err := undelivered(ctx, tx, account, fingerprints)
		if err != nil {
			return err
		}
		taken, err = describe(ctx, tx, all)
		return err
	})
	if err != nil {
		return nil, err
	}
	return taken, nil
}

// undelivered finds the undelivered lines of each fingerprint.
func undelivered(ctx context.Context, tx *sql.Tx, account journal.Hash, fingerprints []journal.Hash) ([]found, error) {
	l := lookup{ctx: ctx, tx: tx, account: account, count: func() runs.Wanted { return runs.All(fingerprints) }, holder: anyone}
	return l.find()
}

// A found is a line found by a lookup.
type found struct {
	row   int64
	owner int64 // the holder, dead or alive; 0: released
	large bool  // the batch is
	short runs.Short
	line  journal.Line
}

func (f *found) batch() int64 { return f.row >> 32 }

func compareRows(a, b found) int { return cmp.Compare(a.row, b.row) }

// A lookup finds lines by fingerprint, in a transaction.
type lookup struct {
	ctx     context.Context
	tx      *sql.Tx
	account journal.Hash
	count   func() runs.Wanted // counts the fingerprints
	wanted  runs.Wanted        // the counted fingerprints
	holder  int64              // find the lines of the owner; 0: find open lines; anyone: find all lines
}

// anyone is the holder of a lookup of all undelivered lines.
const anyone = -1

// find returns as many lines of each fingerprint as are wanted, the oldest first.
func (l *lookup) find() (all []found, err error) {
	holders, err := l.holders()
	if err != nil || len(holders) == 0 {
		return nil, err // nearly always no line is open
	}
	l.wanted = l.count()
	small, err := l.inSmall()
	if err != nil {
		return nil, err
	}
	large, err := l.inLarge(holders)
	if err != nil {
		return nil, err
	}
	for _, f := range slices.SortedFunc(slices.Values(append(small, large...)), compareRows) {
		if l.wanted.Take(f.short) {
			f.line.N, f.line.Fingerprint = int(f.row&(1<<32-1)), l.wanted[f.short].Full
			all = append(all, f)
		}
	}
	return all, nil
}

// allHolders finds the owners with lines, dead or alive, and 0 if lines are released.
// Each step of the recursion looks up the next id in an index.
const allHolders = `
	with recursive holders (id) as (
		select min(owner) from holds
		union all
		select (select min(owner) from holds where owner > holders.id) from holders where holders.id is not null)
	select id from holders where id is not null`

// deadHolders leaves out the owners that are alive.
const deadHolders = allHolders + ` and id not in (select id from owners)`

// holders are the owners of the lines to find.
func (l *lookup) holders() ([]int64, error) {
	switch l.holder {
	case 0:
		return numbers(l.tx.QueryContext(l.ctx, deadHolders))
	case anyone:
		return numbers(l.tx.QueryContext(l.ctx, allHolders))
	}
	return []int64{l.holder}, nil
}

// matching is the condition on a line of the batch b. ?1 is the holder, -1 for anyone,
// ?2 the account, ?3 the state in which a batch gives no lines away.
const matching = `
	case ?1 when 0 then s.owner not in (select id from owners) when -1 then true else s.owner = ?1 end
	and b.account = ?2 and b.ref is not null and (?1 <> 0 or b.state <> ?3)`

// inSmallBatches looks the fingerprints ?4 up in the index of small batches.
const inSmallBatches = `
	select s.id, s.owner, s.fingerprint, s.custom_id, coalesce(s.response_id, '')
	from json_each(?4) w
		cross join lines s indexed by lines_fingerprint on s.fingerprint = unhex(w.value)
		cross join batches b on b.id = s.id >> 32
	where ` + matching

func (l *lookup) inSmall() (all []found, err error) {
	names := make([]string, 0, len(l.wanted))
	for s := range l.wanted {
		names = append(names, hex.EncodeToString(s[:]))
	}
	text, err := json.Marshal(names)
	if err != nil {
		return nil, err
	}
	rows, err := l.tx.QueryContext(l.ctx, inSmallBatches, l.holder, l.account[:], journal.Cancelling, string(text))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var f found
		var short sql.RawBytes
		if err := rows.Scan(&f.row, &f.owner, &short, &f.line.CustomID, &f.line.ResponseID); err != nil {
			return nil, err
		}
		f.short = runs.Short(short)
		all = append(all, f)
	}
	return all, rows.Err()
}

// largeBatches finds the large batches of which the holders ?4 have lines.
const largeBatches = `
	select distinct s.batch, b.lines
	from json_each(?4) w cross join holds s on s.owner = w.value and s.large = 1 join batches b on b.id = s.batch
	where ` + matching + `
	order by s.batch`

// inLarge looks lines up in the runs of large batches.
func (l *lookup) inLarge(holders []int64) (all []found, err error) {
	list := list(holders, func(id int64) (int64, bool) { return id, true })
	lines, err := pairs(l.tx.QueryContext(l.ctx, largeBatches, l.holder, l.account[:], journal.Cancelling, list))
	if err != nil {
		return nil, err
	}
	wanted := l.wanted.Clone()
	for _, batch := range slices.Sorted(maps.Keys(lines)) {
		shorts := wanted.Sorted()
		if len(shorts) == 0 {
			break
		}
		entries, err := l.entries(batch, int(lines[batch]), shorts)
		if err != nil {
			return nil, err
		}
		if all, err = l.inBatch(all, batch, entries, wanted); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// runCost is the number of runs read in sequence in the time of a lookup.
const runCost = 4

// entries returns the wanted entries of a large batch, ordered by line.
func (l *lookup) entries(batch int64, lines int, wanted []runs.Short) (found []runs.Entry, err error) {
	if len(wanted)*runCost < runs.Number(lines) {
		found, err = l.lookUpRuns(batch, wanted)
	} else {
		found, err = l.readRuns(batch, wanted)
	}
	slices.SortFunc(found, func(a, b runs.Entry) int { return cmp.Compare(a.N, b.N) })
	return found, err
}

// lookUpRun finds the run of a batch that may contain a fingerprint.
const lookUpRun = `select entries from runs where id >= ? and id <= ? order by id desc limit 1`

// lookUpRuns reads one run for each fingerprint.
func (l *lookup) lookUpRuns(batch int64, wanted []runs.Short) (found []runs.Entry, err error) {
	run, err := l.tx.PrepareContext(l.ctx, lookUpRun)
	if err != nil {
		return nil, err
	}
	defer run.Close()
	for i := range wanted {
		var entries []byte
		err := run.QueryRowContext(l.ctx, runOf(batch, 0), runOf(batch, wanted[i].First())).Scan(&entries)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = runs.Find(found, entries, wanted[i:i+1])
	}
	return found, nil
}

// readAllRuns is the statement of readRuns.
const readAllRuns = `select entries from runs where id >= ? and id < ? order by id`

// readRuns reads all runs of a batch.
func (l *lookup) readRuns(batch int64, wanted []runs.Short) (found []runs.Entry, err error) {
	rows, err := l.tx.QueryContext(l.ctx, readAllRuns, runOf(batch, 0), runOf(batch+1, 0))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var entries sql.RawBytes
		if err := rows.Scan(&entries); err != nil {
			return nil, err
		}
		found = runs.Find(found, entries, wanted)
	}
	return found, rows.Err()
}

// maxEntries is the number of entries for a statement that reads lines.
const maxEntries = 10_000

// inBatch appends the lines of the entries of a large batch to all.
func (l *lookup) inBatch(all []found, batch int64, entries []runs.Entry, wanted runs.Wanted) ([]found, error) {
	for some := range slices.Chunk(entries, maxEntries) {
		shorts := make(map[int64]runs.Short, len(some))
		rows := list(some, func(e runs.Entry) (int64, bool) {
			row := rowOf(batch, e.N)
			shorts[row] = e.Short
			return row, wanted.Open(e.Short)
		})
		lines, err := l.linesOf(rows)
		if err != nil {
			return nil, err
		}
		for _, f := range lines {
			if f.short = shorts[f.row]; wanted.Take(f.short) {
				all = append(all, f)
			}
		}
	}
	return all, nil
}

// linesByRow reads those of the rows ?2 that match.
const linesByRow = `
	select id, owner, custom_id, coalesce(response_id, '') from lines
	where id in (select value from json_each(?2))
		and case ?1 when 0 then ` + isOpen + ` when -1 then true else owner = ?1 end
	order by id`

func (l *lookup) linesOf(list string) (all []found, err error) {
	rows, err := l.tx.QueryContext(l.ctx, linesByRow, l.holder, list)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		f := found{large: true}
		if err := rows.Scan(&f.row, &f.owner, &f.line.CustomID, &f.line.ResponseID); err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, rows.Err()
}

const giveRows = `update lines set owner = ? where id in (select value from json_each(?))`

// give makes the owner hold the lines.
func give(ctx context.Context, tx *sql.Tx, owner int64, all []found) error {
	if len(all) == 0 {
		return nil
	}
	rows := list(all, func(f found) (int64, bool) { return f.row, true })
	if _, err := tx.ExecContext(ctx, giveRows, owner, rows); err != nil {
		return err
	}
	for from, n := range holdings(all) {
		if err := lose(ctx, tx, from.b, from.owner, n); err != nil {
			return err
		}
		if err := gain(ctx, tx, from.b, owner, n); err != nil {
			return err
		}
	}
	return nil
}

// A holding is a batch and an owner with lines of the batch, dead or alive; 0: released.
type holding struct {
	b     batchID
	owner int64
}

// holdings counts lines by batch and holder.
func holdings(all []found) map[holding]int {
	counts := make(map[holding]int)
	for _, f := range all {
		counts[holding{batchID{id: f.batch(), large: f.large}, f.owner}]++
	}
	return counts
}

// describe groups lines by batch, and adds the records of the batches.
func (s *Store) describe(ctx context.Context, all []found) (taken []journal.Taken, err error) {
	if len(all) == 0 {
		return nil, nil
	}
	err = s.view(ctx, func(tx *sql.Tx) error {
		taken, err = describe(ctx, tx, all)
		return err
	})
	return taken, err
}

// describe is Store.describe in the transaction that found the lines, which no other
// process can delete meanwhile.
func describe(ctx context.Context, tx *sql.Tx, all []found) (taken []journal.Taken, err error) {
	slices.SortFunc(all, compareRows)
	for i := range all {
		if i == 0 || all[i].batch() != all[i-1].batch() {
			b, err := scanBatch(tx.QueryRowContext(ctx, `
				select `+columns+` from batches b left join owners o on o.id = b.owner where b.id = ?`, all[i].batch()))
			if err != nil {
				return nil, err
			}
			b.Lines = 0
			taken = append(taken, journal.Taken{Batch: b})
		}
		last := &taken[len(taken)-1]
		last.Lines = append(last.Lines, all[i].line)
	}
	return taken, nil
}
