package sqlite

import (
	"database/sql"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/journaltest"
)

func BenchmarkStore(b *testing.B) {
	journaltest.Bench(b, newJournal)
	b.Run("LifeFloor", benchmarkLifeFloor)
}

func BenchmarkScale(b *testing.B) { journaltest.BenchScale(b, newJournal) }

func newJournal(b *testing.B) journal.Store {
	return mustOpen(b, filepath.Join(b.TempDir(), "journal"))
}

// benchmarkLifeFloor is the floor of Life: the same lines by plain SQL, with an index
// by fingerprint, without owners and searches. One transaction inserts 50,000 lines,
// and fifty transactions delete 1,000 lines each. Each transaction is on disk when it
// ends, as in the journal.
func benchmarkLifeFloor(b *testing.B) {
	const lines, group = 50_000, 1000
	db, err := sql.Open("sqlite", writing(filepath.Join(b.TempDir(), "plain")))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	p := plain{b, db}
	numbers, ids := make([]int, lines), make([]string, lines)
	for n := range numbers {
		numbers[n], ids[n] = n, fmt.Sprintf("11111111-2222-4333-8444-%012d", n)
	}
	p.transact(func(tx *sql.Tx) {
		p.exec(tx.Exec(`create table lines (id integer primary key, owner integer not null, fingerprint blob not null, custom_id text not null) strict`))
		p.exec(tx.Exec(`create index lines_fingerprint on lines (fingerprint)`))
	})
	for batch := int64(1); b.Loop(); batch++ {
		p.transact(func(tx *sql.Tx) { p.insert(tx, batch, ids) })
		for some := range slices.Chunk(numbers, group) {
			rows := list(some, func(n int) (int64, bool) { return rowOf(batch, n), true })
			p.transact(func(tx *sql.Tx) { p.exec(tx.Exec(deliverHeld, rows, 1)) })
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/lines, "ns/line")
	var left int
	if err := db.QueryRow(`select count(*) from lines`).Scan(&left); err != nil || left != 0 {
		b.Fatalf("%d lines are left, %v", left, err)
	}
}

// A plain is a database without a journal.
type plain struct {
	*testing.B
	db *sql.DB
}

func (p plain) transact(do func(tx *sql.Tx)) {
	p.Helper()
	tx, err := p.db.Begin()
	if err != nil {
		p.Fatal(err)
	}
	do(tx)
	if err := tx.Commit(); err != nil {
		p.Fatal(err)
	}
}

func (p plain) exec(_ sql.Result, err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p plain) insert(tx *sql.Tx, batch int64, ids []string) {
	insert, err := tx.Prepare(`insert into lines (id, owner, fingerprint, custom_id) values (?, 1, ?, ?)`)
	if err != nil {
		p.Fatal(err)
	}
	defer insert.Close()
	for n, id := range ids {
		var fingerprint [16]byte // spread as hashes are
		binary.LittleEndian.PutUint64(fingerprint[:], uint64(batch*int64(len(ids))+int64(n))*0x9e3779b97f4a7c15)
		p.exec(insert.Exec(rowOf(batch, n), fingerprint[:], id))
	}
}
