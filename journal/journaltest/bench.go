package journaltest

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/autobatcher/autobatcher/journal"
)

// benchLines is the number of lines of a batch in the benchmarks.
const benchLines = 50_000

// Bench measures a backend with batches of 50,000 lines. The metric ns/line is the
// time for a single call.
func Bench(b *testing.B, fresh func(b *testing.B) journal.Store) {
	for _, bench := range []struct {
		name string
		run  func(b *testing.B, s *bench)
	}{
		{"Begin", benchBegin},
		{"TakeOverMiss", benchMiss},
		{"TakeOverMissAmongOpen", benchMissAmongOpen},
		{"TakeOverHit", benchHit},
		{"Deliver", benchDeliver},
		{"Life", benchLife},
	} {
		b.Run(bench.name, func(b *testing.B) {
			s := newBench(b, fresh(b))
			bench.run(b, s)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchLines, "ns/line")
		})
	}
}

// A bench is the journal of a benchmark, with a single owner.
type bench struct {
	*testing.B
	journal.Store
	numbers []int
	begun   int
}

func newBench(b *testing.B, store journal.Store) *bench {
	s := &bench{B: b, Store: store, numbers: make([]int, benchLines)}
	for n := range s.numbers {
		s.numbers[n] = n
	}
	s.must(beat(b.Context(), s.Store, "a", long))
	return s
}

func (s *bench) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// lines makes the lines of the next batch, with different fingerprints.
func (s *bench) lines() []journal.Line {
	s.begun++
	all := make([]journal.Line, benchLines)
	for n := range all {
		all[n] = journal.Line{CustomID: customID(n)}
		binary.LittleEndian.PutUint64(all[n].Fingerprint[:], uint64(s.begun*benchLines+n)*0x9e3779b97f4a7c15)
	}
	return all
}

func (s *bench) ref() string { return fmt.Sprint("batch", s.begun) }

func fingerprints(lines []journal.Line) []journal.Hash {
	all := make([]journal.Hash, len(lines))
	for n, l := range lines {
		all[n] = l.Fingerprint
	}
	return all
}

// take takes lines over, and checks their number.
func (s *bench) take(lines []journal.Line, want int) {
	s.Helper()
	taken, err := s.TakeOver(s.Context(), "a", account, fingerprints(lines))
	s.must(err)
	got := 0
	for _, t := range taken {
		got += len(t.Lines)
	}
	if got != want {
		s.Fatalf("took %d lines, want %d", got, want)
	}
}

func (s *bench) begin() []journal.Line {
	s.Helper()
	lines := s.lines()
	s.must(s.Begin(s.Context(), batch("a", s.ref()), lines))
	return lines
}

func (s *bench) deliver() {
	s.Helper()
	s.must(s.Deliver(s.Context(), "a", s.ref(), s.numbers))
}

// aside runs f while the timer is stopped.
func (s *bench) aside(f func()) {
	s.StopTimer()
	f()
	s.StartTimer()
}

func benchBegin(b *testing.B, s *bench) {
	var lines []journal.Line
	for b.Loop() {
		s.aside(func() { lines = s.lines() })
		s.must(s.Begin(b.Context(), batch("a", s.ref()), lines))
		s.aside(s.deliver)
	}
}

func benchMiss(b *testing.B, s *bench) {
	s.begin()
	others := s.lines()
	for b.Loop() {
		s.take(others, 0)
	}
}

func benchMissAmongOpen(b *testing.B, s *bench) {
	s.begin()
	s.must(s.Release(b.Context(), "a", s.ref(), s.numbers))
	others := s.lines()
	for b.Loop() {
		s.take(others, 0)
	}
}

func benchHit(b *testing.B, s *bench) {
	lines := s.begin()
	for b.Loop() {
		s.aside(func() { s.must(s.Release(b.Context(), "a", s.ref(), s.numbers)) })
		s.take(lines, benchLines)
	}
}

func benchDeliver(b *testing.B, s *bench) {
	for b.Loop() {
		s.aside(func() { s.begin() })
		s.deliver()
	}
}

// benchLife is the work of the journal for a batch whose callers stay connected. The
// results come in groups of a thousand.
func benchLife(b *testing.B, s *bench) {
	ctx := b.Context()
	for b.Loop() {
		var lines []journal.Line
		s.aside(func() { lines = s.lines() })
		s.take(lines, 0)
		s.must(s.Begin(ctx, batch("a", s.ref()), lines))
		for _, step := range []journal.Step{
			{State: journal.Uploaded, InputFileID: "file-1"},
			{State: journal.Creating},
			{State: journal.Running, BatchID: "batch-1"},
			{State: journal.Ended, Status: "completed"},
		} {
			s.must(s.Advance(ctx, "a", s.ref(), step))
		}
		for n := 0; n < benchLines; n += 1000 {
			s.must(s.Deliver(ctx, "a", s.ref(), s.numbers[n:n+1000]))
		}
	}
}
