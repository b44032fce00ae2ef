package postgres

import (
	"cmp"
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/internal/runs"
)

// TakeOver implements journal.Store.
func (s *Store) TakeOver(ctx context.Context, owner string, account journal.Hash, fingerprints []journal.Hash) (all []journal.Taken, err error) {
	err = s.update(ctx, owner, func(tx pgx.Tx) error {
		id, err := leased(ctx, tx, owner)
		if err != nil {
			return err
		}
		l := lookup{
			ctx: ctx, tx: tx, account: account, passed: make(map[lineID]bool),
			count: func() runs.Wanted { return runs.Count(fingerprints) },
		}
		taken, err := l.take(id)
		if err != nil || len(taken) == 0 {
			return err
		}
		if all, err = describe(ctx, tx, taken); err != nil {
			return err
		}
		return confirm(ctx, tx, id)
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Held implements journal.Store.
func (s *Store) Held(ctx context.Context, owner string, account journal.Hash, fingerprints []journal.Hash) (all []journal.Taken, err error) {
	err = s.within(ctx, oneMoment, func(tx pgx.Tx) error {
		id, err := idOf(ctx, tx, owner)
		if err != nil || id == 0 {
			return err
		}
		l := lookup{ctx: ctx, tx: tx, account: account, count: func() runs.Wanted { return runs.All(fingerprints) }, holder: id}
		found, err := l.find()
		if err != nil {
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

// oneMoment is a transaction whose reads all see the same state.
var oneMoment = pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}

// Find implements journal.Store.
func (s *Store) Find(ctx context.Context, account journal.Hash, fingerprints []journal.Hash) (all []journal.Taken, err error) {
	err = s.within(ctx, oneMoment, func(tx pgx.Tx) error {
		found, err := undelivered(ctx, tx, account, fingerprints)
		if err != nil {
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

// undelivered finds the undelivered lines of each fingerprint.
func undelivered(ctx context.Context, tx pgx.Tx, account journal.Hash, fingerprints []journal.Hash) ([]found, error) {
	l := lookup{ctx: ctx, tx: tx, account: account, count: func() runs.Wanted { return runs.All(fingerprints) }, holder: anyone}
	return l.find()
}

// A found is a line found by a lookup.
type found struct {
	place
	short runs.Short
	line  journal.Line
}

func (f *found) id() lineID { return lineID{f.batch.id, f.n} }

type lineID struct {
	batch int64
	n     int
}

// A lookup finds lines by fingerprint, in a transaction.
type lookup struct {
	ctx     context.Context
	tx      pgx.Tx
	account journal.Hash
	count   func() runs.Wanted // counts the fingerprints
	wanted  runs.Wanted        // the counted fingerprints
	holder  int64              // find the lines of the owner; 0: find open lines; anyone: find all lines
	passed  map[lineID]bool    // found lines taken by concurrent transactions
}

// anyone is the holder of a lookup of all undelivered lines.
const anyone = -1

// take finds lines and makes the owner hold the lines. If concurrent transactions
// take some of the lines, take finds more lines.
func (l *lookup) take(owner int64) (all []found, err error) {
	for {
		seen, err := l.find()
		if err != nil {
			return nil, err
		}
		places := make([]place, len(seen))
		for i := range seen {
			places[i] = seen[i].place
		}
		taken, err := take(l.ctx, l.tx, owner, places)
		if err != nil {
			return nil, err
		}
		all = append(all, l.passOver(seen, taken)...)
		if len(taken) == len(seen) {
			return all, nil
		}
	}
}

// passOver returns the taken lines. The fingerprints of the rest are wanted again.
func (l *lookup) passOver(seen []found, taken []place) (got []found) {
	ours := make(map[lineID]bool, len(taken))
	for _, p := range taken {
		ours[lineID{p.batch.id, p.n}] = true
	}
	for _, f := range seen {
		if ours[f.id()] {
			got = append(got, f)
			continue
		}
		l.passed[f.id()] = true
		l.wanted[f.short].Count++
	}
	return got
}

// find returns as many lines of each fingerprint as are wanted, the oldest first.
func (l *lookup) find() (all []found, err error) {
	holders, err := l.holders()
	if err != nil || len(holders) == 0 {
		return nil, err // nearly always no line is open
	}
	if l.wanted == nil {
		l.wanted = l.count()
	}
	shorts := l.wanted.Sorted()
	if len(shorts) == 0 {
		return nil, nil
	}
	small, err := l.inSmall(shorts)
	if err != nil {
		return nil, err
	}
	large, err := l.inLarge(holders)
	if err != nil {
		return nil, err
	}
	both := slices.Concat(small, large)
	slices.SortFunc(both, func(a, b found) int { return comparePlaces(a.place, b.place) })
	for _, f := range both {
		if !l.passed[f.id()] && l.wanted.Take(f.short) {
			f.line.N, f.line.Fingerprint = f.n, l.wanted[f.short].Full
			all = append(all, f)
		}
	}
	return all, nil
}

// allHolders finds the owners with lines, dead or alive, and 0 if lines are released.
// Each step of the recursion looks up the next id in an index.
const allHolders = `
	with recursive holders (id) as (
		select min(owner) from autobatcher.holds
		union all
		select (select min(owner) from autobatcher.holds where owner > holders.id) from holders where holders.id is not null)
	select id from holders where id is not null`

// deadHolders leaves out the owners that are alive.
const deadHolders = allHolders + `
		and not exists (select 1 from autobatcher.owners o where o.id = holders.id)`

// holders are the owners of the lines to find.
func (l *lookup) holders() ([]int64, error) {
	switch l.holder {
	case 0:
		return numbers(l.tx.Query(l.ctx, deadHolders))
	case anyone:
		return numbers(l.tx.Query(l.ctx, allHolders))
	}
	return []int64{l.holder}, nil
}

// matching is the condition on a line or hold t of the batch b. $1 is the holder, -1 for
// anyone, $2 the account, $3 the state in which a batch gives no lines away.
const matching = `
	case $1::bigint when 0 then ` + isOpen + ` when -1 then true else t.owner = $1 end
	and b.account = $2 and b.ref is not null and ($1 <> 0 or b.state <> $3)`

// inSmallBatches looks fingerprints up in the index of small batches. $5 is how many
// lines are wanted of each; null: all.
const inSmallBatches = `
	select t.batch, t.n, t.owner, t.fingerprint, t.custom_id, coalesce(t.response_id, '')
	from unnest($4::bytea[], $5::bigint[]) as w (fingerprint, count)
	cross join lateral (
		select t.*
		from autobatcher.lines t join autobatcher.batches b on b.id = t.batch
		where t.fingerprint = w.fingerprint and ` + matching + `
		order by t.batch, t.n
		limit w.count
	) t`

func (l *lookup) inSmall(shorts []runs.Short) (all []found, err error) {
	names, counts := make([][]byte, len(shorts)), make([]*int, len(shorts))
	for i := range shorts {
		names[i] = shorts[i][:]
		if n := l.wanted[shorts[i]].Count; n > 0 {
			counts[i] = new(n + len(l.passed))
		}
	}
	rows, err := l.tx.Query(l.ctx, inSmallBatches, l.holder, l.account[:], journal.Cancelling, names, counts)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (f found, err error) {
		var short []byte
		err = row.Scan(&f.batch.id, &f.n, &f.owner, &short, &f.line.CustomID, &f.line.ResponseID)
		if err == nil {
			f.short = runs.Short(short)
		}
		return f, err
	})
}

// largeBatches finds the large batches of which the holders $4 have lines.
const largeBatches = `
	select distinct t.batch, b.lines
	from autobatcher.holds t join autobatcher.batches b on b.id = t.batch
	where t.owner = any($4) and t.large and ` + matching + `
	order by t.batch`

// A largeBatch is a batch with runs.
type largeBatch struct {
	id    int64
	lines int
}

// inLarge looks lines up in the runs of large batches.
func (l *lookup) inLarge(holders []int64) (all []found, err error) {
	rows, err := l.tx.Query(l.ctx, largeBatches, l.holder, l.account[:], journal.Cancelling, holders)
	if err != nil {
		return nil, err
	}
	batches, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (b largeBatch, err error) {
		err = row.Scan(&b.id, &b.lines)
		return b, err
	})
	if err != nil {
		return nil, err
	}
	wanted := l.wanted.Clone()
	for _, b := range batches {
		shorts := wanted.Sorted()
		if len(shorts) == 0 {
			break
		}
		entries, err := l.entries(b, shorts)
		if err != nil {
			return nil, err
		}
		if all, err = l.inBatch(all, b.id, entries, wanted); err != nil {
			return nil, err
		}
	}
	return all, nil
}

const (
	// runCost is the number of runs read in sequence in the time of a lookup.
	runCost = 4

	// lookUpRuns finds the runs of a batch that may contain fingerprints, which
	// begin with $2.
	lookUpRuns = `
		select distinct r."first", r.entries
		from unnest($2::bigint[]) w
		cross join lateral (
			select "first", entries from autobatcher.runs
			where batch = $1 and "first" <= w order by "first" desc limit 1
		) r`

	readRuns = `select "first", entries from autobatcher.runs where batch = $1`
)

// entries returns the wanted entries of a large batch, ordered by line.
func (l *lookup) entries(b largeBatch, wanted []runs.Short) (found []runs.Entry, err error) {
	statement, args := readRuns, []any{b.id}
	if len(wanted)*runCost < runs.Number(b.lines) {
		firsts := make([]int64, len(wanted))
		for i, s := range wanted {
			firsts[i] = int64(s.First())
		}
		statement, args = lookUpRuns, append(args, firsts)
	}
	rows, err := l.tx.Query(l.ctx, statement, args...)
	if err != nil {
		return nil, err
	}
	var first int64
	var entries pgtype.DriverBytes
	_, err = pgx.ForEachRow(rows, []any{&first, &entries}, func() error {
		found = runs.Find(found, entries, wanted)
		return nil
	})
	slices.SortFunc(found, func(a, b runs.Entry) int { return cmp.Compare(a.N, b.N) })
	return found, err
}

// maxEntries is the number of entries for a statement that reads lines.
const maxEntries = 10_000

// linesByN reads the matching lines among places. $3 is the holder, -1 for anyone.
const linesByN = places + `
	select t.n, t.owner, t.custom_id, coalesce(t.response_id, '')
	from places join autobatcher.lines t on t.batch = places.batch and t.n = places.n
	where case $3::bigint when 0 then ` + isOpen + ` when -1 then true else t.owner = $3 end
	order by t.n`

// inBatch appends the lines of the entries of a large batch to all.
func (l *lookup) inBatch(all []found, batch int64, entries []runs.Entry, wanted runs.Wanted) ([]found, error) {
	for some := range slices.Chunk(entries, maxEntries) {
		shorts := make(map[int]runs.Short, len(some))
		var ns []int
		for _, e := range some {
			if wanted.Open(e.Short) {
				ns = append(ns, e.N)
				shorts[e.N] = e.Short
			}
		}
		if len(ns) == 0 {
			continue
		}
		lines, err := l.linesOf(batch, ns)
		if err != nil {
			return nil, err
		}
		for _, f := range lines {
			if f.short = shorts[f.n]; !l.passed[f.id()] && wanted.Take(f.short) {
				all = append(all, f)
			}
		}
	}
	return all, nil
}

func (l *lookup) linesOf(batch int64, ns []int) ([]found, error) {
	rows, err := l.tx.Query(l.ctx, linesByN, batch, ns, l.holder)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (f found, err error) {
		f.batch = batchID{batch, true}
		err = row.Scan(&f.n, &f.owner, &f.line.CustomID, &f.line.ResponseID)
		return f, err
	})
}

// describe groups lines by batch, and adds the records of the batches.
func describe(ctx context.Context, tx pgx.Tx, all []found) ([]journal.Taken, error) {
	if len(all) == 0 {
		return nil, nil
	}
	slices.SortFunc(all, func(a, b found) int { return comparePlaces(a.place, b.place) })
	lines := make(map[int64][]journal.Line)
	var ids []int64
	for _, f := range all {
		if lines[f.batch.id] == nil {
			ids = append(ids, f.batch.id)
		}
		lines[f.batch.id] = append(lines[f.batch.id], f.line)
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
