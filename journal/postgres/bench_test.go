//go:build unix

package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/journaltest"
)

func BenchmarkStore(b *testing.B) {
	journaltest.Bench(b, newJournal)
	b.Run("LifeFloor", benchmarkLifeFloor)
}

func BenchmarkScale(b *testing.B) { journaltest.BenchScale(b, newJournal) }

func newJournal(b *testing.B) journal.Store { return mustOpen(b, newDatabase(b)) }

// benchmarkLifeFloor is the floor of Life: the same lines by plain SQL, with a primary key
// and an index by fingerprint, without owners and searches. One transaction copies 50,000
// lines, and fifty statements delete 1,000 lines each. Each transaction is on disk when it
// ends, as in the journal.
func benchmarkLifeFloor(b *testing.B) {
	const lines, group = 50_000, 1000
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, newDatabase(b))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(ctx) //nolint:errcheck // the database is temporary
	execute := func(sql string, args ...any) {
		b.Helper()
		if _, err := conn.Exec(ctx, sql, args...); err != nil {
			b.Fatal(err)
		}
	}
	execute(`create table lines (batch bigint, n integer, owner bigint not null, fingerprint bytea not null, custom_id text not null, primary key (batch, n))`)
	execute(`create index lines_fingerprint on lines (fingerprint)`)
	for batch := int64(1); b.Loop(); batch++ {
		rows := pgx.CopyFromSlice(lines, func(n int) ([]any, error) {
			fingerprint := make([]byte, 16) // spread as hashes are
			binary.LittleEndian.PutUint64(fingerprint, uint64(batch*lines+int64(n))*0x9e3779b97f4a7c15)
			return []any{batch, n, 1, fingerprint, fmt.Sprintf("11111111-2222-4333-8444-%012d", n)}, nil
		})
		if _, err := conn.CopyFrom(ctx, pgx.Identifier{"lines"}, []string{"batch", "n", "owner", "fingerprint", "custom_id"}, rows); err != nil {
			b.Fatal(err)
		}
		for first := 0; first < lines; first += group {
			execute(`delete from lines where batch = $1 and n between $2 and $3 and owner = 1`, batch, first, first+group-1)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/lines, "ns/line")
	var left int
	if err := conn.QueryRow(ctx, `select count(*) from lines`).Scan(&left); err != nil || left != 0 {
		b.Fatalf("%d lines are left, %v", left, err)
	}
}
