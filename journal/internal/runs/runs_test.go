package runs_test

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/internal/runs"
)

// testLines returns n lines with random fingerprints of a limited number.
func testLines(n int, among uint64) []journal.Line {
	r := rand.New(rand.NewPCG(1, 2))
	all := make([]journal.Line, n)
	for i := range all {
		binary.BigEndian.PutUint64(all[i].Fingerprint[:], r.Uint64N(among)*0x9e3779b97f4a7c15)
	}
	return all
}

// find looks for fingerprints in the same way as a backend.
func find(all []runs.Run, wanted ...runs.Short) (found []runs.Entry) {
	for _, w := range wanted {
		i, exact := slices.BinarySearchFunc(all, w.First(), func(r runs.Run, first uint32) int {
			return int(int64(r.First) - int64(first))
		})
		if !exact {
			i--
		}
		if i >= 0 {
			found = runs.Find(found, all[i].Entries, []runs.Short{w})
		}
	}
	return found
}

func TestEveryLineIsFound(t *testing.T) {
	for _, test := range []struct {
		lines int
		among uint64
	}{{0, 1}, {1, 1}, {1000, 1}, {1000, 3}, {1000, 500}, {5000, 1 << 62}} {
		lines := testLines(test.lines, test.among)
		packed := runs.Pack(lines)
		want := make(map[runs.Short][]runs.Entry)
		for n, l := range lines {
			s := runs.Shorten(l.Fingerprint)
			want[s] = append(want[s], runs.Entry{Short: s, N: n})
		}
		for s, entries := range want {
			if diff := cmp.Diff(entries, find(packed, s)); diff != "" {
				t.Fatalf("%d lines among %d (-want +got)\n%s", test.lines, test.among, diff)
			}
		}
		if got := find(packed, runs.Short{1, 2, 3}, runs.Short{0xff, 15: 1}); got != nil {
			t.Errorf("found %v, which is not there", got)
		}
	}
}

// A lookup of many fingerprints goes through whole runs.
func TestManyAtOnce(t *testing.T) {
	lines := testLines(3000, 2000)
	var asked []journal.Hash
	want := 0
	for n, l := range lines {
		if n%7 == 0 {
			asked = append(asked, l.Fingerprint)
		}
	}
	wanted := runs.All(asked)
	for _, l := range lines {
		if wanted.Open(runs.Shorten(l.Fingerprint)) {
			want++
		}
	}
	var found []runs.Entry
	for _, r := range runs.Pack(lines) {
		found = runs.Find(found, r.Entries, wanted.Sorted())
	}
	if len(found) != want {
		t.Errorf("found %d lines, want %d", len(found), want)
	}
}

func TestFirstOrdersRuns(t *testing.T) {
	packed := runs.Pack(testLines(10_000, 1<<62))
	for i := 1; i < len(packed); i++ {
		if packed[i-1].First >= packed[i].First {
			t.Fatalf("run %d begins at %d, run %d at %d", i-1, packed[i-1].First, i, packed[i].First)
		}
	}
}

func TestDamagedRun(t *testing.T) {
	r := runs.Pack(testLines(10, 1<<62))[0]
	wanted := runs.All([]journal.Hash{{1}, testLines(10, 1<<62)[3].Fingerprint}).Sorted()
	for n := range len(r.Entries) {
		runs.Find(nil, r.Entries[:n], wanted) // must not panic
	}
	if got := runs.Find(nil, r.Entries, wanted); len(got) != 1 || got[0].N != 3 {
		t.Errorf("found %v, want line 3", got)
	}
}

func TestWanted(t *testing.T) {
	p, q := journal.Hash{1}, journal.Hash{2}
	w := runs.Count([]journal.Hash{p, q, p})
	for i, want := range []bool{true, true, false} {
		if got := w.Take(runs.Shorten(p)); got != want {
			t.Errorf("Take %d = %v, want %v", i, got, want)
		}
	}
	if diff := cmp.Diff([]runs.Short{runs.Shorten(q)}, w.Sorted()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if w.Take(runs.Shorten(journal.Hash{3})) {
		t.Error("took what is not wanted")
	}
	all := runs.All([]journal.Hash{p})
	for range 3 {
		if !all.Take(runs.Shorten(p)) {
			t.Error("All has an end")
		}
	}
}
