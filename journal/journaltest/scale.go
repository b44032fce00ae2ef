package journaltest

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

const (
	// scaleVariable is the environment variable for the number of lines of
	// BenchScale.
	scaleVariable = "AUTOBATCHER_JOURNAL_LINES"

	// scaleLines is the default number, which is small enough for every test run.
	scaleLines = 50_000
)

// BenchScale measures a backend whose journal has as many lines as the environment
// variable AUTOBATCHER_JOURNAL_LINES says, by default 50,000. A tenth of the lines
// belonged to an owner that is dead. The journal is filled once. "max-ms" is the
// longest time that a heartbeat took while another request was at work.
func BenchScale(b *testing.B, fresh func(b *testing.B) journal.Store) {
	lines := scaleLines
	if text := os.Getenv(scaleVariable); text != "" {
		if _, err := fmt.Sscan(text, &lines); err != nil || lines < 10_000 {
			b.Fatalf("%s is %q, and must be a number from 10000", scaleVariable, text)
		}
	}
	s := &scale{TB: b, Store: fresh(b), lines: lines, batch: min(benchLines, lines/10)}
	s.fill()
	for _, measure := range []struct {
		name string
		run  func(b *testing.B)
	}{
		{"Orphans", s.orphans},
		{"Heartbeat", s.heartbeat},
		{"TakeOver1000", s.takeOver},
		{"TakeOver1000Miss", s.miss},
		{"Deliver1000", s.deliver},
		{"Begin", s.begins},
		{"BeginTenth", s.beginTenth},
		{"ForgetTenth", s.forgetTenth},
	} {
		b.Run(measure.name, func(b *testing.B) {
			s.TB = b
			measure.run(b)
		})
	}
}

// A scale is a journal of many lines. Its owner is "living"; "dead" is dead.
type scale struct {
	testing.TB
	journal.Store
	lines, batch int
	begun        int // batches
	taken        int // lines of the dead owner
	delivered    int // lines of the living owner
}

// fill fills the journal: the first tenth is the dead owner's.
func (s *scale) fill() {
	ctx := context.Background()
	s.must(beat(ctx, s.Store, "dead", long))
	s.must(beat(ctx, s.Store, "living", long))
	for begun := 0; begun < s.lines; begun += s.batch {
		owner := "living"
		if begun < s.lines/10 {
			owner = "dead"
		}
		s.begin(owner, s.newLines(s.batch))
	}
	s.must(beat(ctx, s.Store, "dead", 0))
}

func (s *scale) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// newLines makes the lines of the next batch.
func (s *scale) newLines(n int) []journal.Line {
	all := make([]journal.Line, n)
	for i := range all {
		all[i] = journal.Line{CustomID: customID(i), Fingerprint: scaleHash(s.begun, i)}
	}
	return all
}

// begin begins the next batch and returns its name.
func (s *scale) begin(owner string, lines []journal.Line) string {
	s.Helper()
	ref := fmt.Sprint("batch", s.begun)
	s.begun++
	s.must(s.Begin(context.Background(), batch(owner, ref), lines))
	return ref
}

// scaleHash is the fingerprint of a line: different for every line, and spread as
// hashes are.
func scaleHash(batch, n int) (h journal.Hash) {
	x := (uint64(batch)<<32 | uint64(n)) * 0x9e3779b97f4a7c15
	x ^= x >> 29
	binary.BigEndian.PutUint64(h[:], x*0xbf58476d1ce4e5b9)
	binary.BigEndian.PutUint64(h[8:], x)
	return h
}

func (s *scale) orphans(b *testing.B) {
	for b.Loop() {
		all, err := s.Batches(b.Context(), journal.Filter{Orphans: true})
		s.must(err)
		if want := (s.lines/10 + s.batch - 1) / s.batch; len(all) != want {
			b.Fatalf("%d orphans, want %d", len(all), want)
		}
	}
}

func (s *scale) heartbeat(b *testing.B) {
	for b.Loop() {
		s.must(beat(b.Context(), s.Store, "living", long))
	}
}

// takeOver takes over 1,000 lines of the dead owner, spread over its batches.
func (s *scale) takeOver(b *testing.B) {
	dead := (s.lines/10 + s.batch - 1) / s.batch
	for b.Loop() {
		all := make([]journal.Hash, 1000)
		for i := range all {
			all[i] = scaleHash(s.taken%dead, s.taken/dead%s.batch)
			s.taken++
		}
		taken, err := s.TakeOver(b.Context(), "living", account, all)
		s.must(err)
		if got, fits := len(names(taken)), s.taken <= dead*s.batch; fits && got != 1000 {
			b.Fatalf("took %d lines, want 1000", got)
		}
	}
}

func (s *scale) miss(b *testing.B) {
	all := make([]journal.Hash, 1000)
	for i := range all {
		all[i] = scaleHash(1<<20, i)
	}
	for b.Loop() {
		taken, err := s.TakeOver(b.Context(), "living", account, all)
		s.must(err)
		if len(taken) != 0 {
			b.Fatalf("took %d lines, want none", len(names(taken)))
		}
	}
}

// deliver delivers 1,000 lines of a batch in the middle of the journal.
func (s *scale) deliver(b *testing.B) {
	ref := fmt.Sprint("batch", s.begun/2)
	for b.Loop() {
		ns := make([]int, 1000)
		for i := range ns {
			ns[i] = (s.delivered + i) % s.batch
		}
		s.delivered += len(ns)
		s.must(s.Deliver(b.Context(), "living", ref, ns))
	}
}

func (s *scale) begins(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		lines := s.newLines(s.batch)
		b.StartTimer()
		s.begin("living", lines)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*s.batch), "ns/line")
}

// beginTenth begins a batch of a tenth of the journal.
func (s *scale) beginTenth(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		lines := s.newLines(s.lines / 10)
		s.must(beat(b.Context(), s.Store, "tenth", long))
		b.StartTimer()
		s.underHeartbeats(b, func() { s.begin("tenth", lines) })
	}
}

// forgetTenth forgets a batch of a tenth of the journal, which has ended.
func (s *scale) forgetTenth(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		s.must(beat(b.Context(), s.Store, "tenth", long))
		ref := s.begin("tenth", s.newLines(s.lines/10))
		s.must(s.Advance(b.Context(), "tenth", ref, journal.Step{State: journal.Ended}))
		s.must(beat(b.Context(), s.Store, "tenth", 0))
		b.StartTimer()
		s.underHeartbeats(b, func() {
			if n, err := s.Forget(b.Context(), 0, long); n != 1 || err != nil {
				b.Fatalf("Forget = %d, %v, want 1", n, err)
			}
		})
	}
}

// underHeartbeats runs f while an owner sends heartbeats, and reports the slowest.
func (s *scale) underHeartbeats(b *testing.B, f func()) {
	ctx, cancel := context.WithCancel(b.Context())
	slowest := make(chan time.Duration)
	go func() { slowest <- slowestHeartbeat(ctx, b, s.Store) }()
	f()
	cancel()
	b.ReportMetric(float64((<-slowest).Microseconds())/1000, "max-ms")
}

// slowestHeartbeat sends heartbeats until ctx ends.
func slowestHeartbeat(ctx context.Context, b *testing.B, store journal.Store) (slowest time.Duration) {
	for ctx.Err() == nil {
		began := time.Now()
		if err := beat(b.Context(), store, "living", long); err != nil {
			b.Error(err)
		}
		slowest = max(slowest, time.Since(began))
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return slowest
}
