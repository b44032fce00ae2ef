package journaltest

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
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
// belonged to an owner that is dead. The journal is filled once.
//
// The floor is the same request to a journal of two batches, in the same run. A take-over
// looks into each large batch without an owner that the account has, so that its floor is
// multiplied by the number of these batches, of which the floor's journal has one. With
// "x-small" the benchmark reports how many times the floor a request took. Where the
// variable is set, a request that took longer than maxGrowth times the floor, and more
// than minGrowth longer, fails the benchmark. "max-ms" is the longest time that a
// heartbeat took while another request was at work.
func BenchScale(b *testing.B, fresh func(b *testing.B) journal.Store) {
	lines, limited := scaleLines, false
	if text := os.Getenv(scaleVariable); text != "" {
		limited = true
		if _, err := fmt.Sscan(text, &lines); err != nil || lines < 10_000 {
			b.Fatalf("%s is %q, and must be a number from 10000", scaleVariable, text)
		}
	}
	size := min(benchLines, lines/10)
	floor := newScale(b, fresh(b), 2*size, size)
	s := newScale(b, fresh(b), lines, size)
	for _, request := range []struct {
		name    string
		prepare func(s *scale) (request func())
		parts   int // of the dead owner's batches, each of which the request looks into
	}{
		{"Orphans", (*scale).orphans, s.dead},
		{"Heartbeat", (*scale).heartbeat, 1},
		{"TakeOver1000", (*scale).takeOver, s.dead},
		{"TakeOver1000Miss", (*scale).miss, s.dead},
		{"Deliver1000", (*scale).deliver, 1},
		{"Begin", (*scale).begins, 1},
	} {
		b.Run(request.name, func(b *testing.B) {
			s.TB, floor.TB = b, b
			least := floor.median(request.prepare) * time.Duration(request.parts)
			for b.Loop() {
				b.StopTimer()
				run := request.prepare(s)
				b.StartTimer()
				run()
			}
			each := b.Elapsed() / time.Duration(b.N)
			b.ReportMetric(float64(each)/float64(least), "x-small")
			if limited && each > maxGrowth*least && each-least > minGrowth {
				b.Errorf("a request takes %v with %d lines, and %v with %d lines, for %d batches without an owner", each, lines, least, floor.lines, request.parts)
			}
		})
	}
	b.Run("BeginTenth", func(b *testing.B) { s.beginTenth(b) })
	b.Run("ForgetTenth", func(b *testing.B) { s.forgetTenth(b) })
}

const (
	// maxGrowth is how many times longer a request may take with all lines than with two
	// batches: an index of ten million lines has a level or two more, and no longer fits
	// into the cache of the backend.
	maxGrowth = 4

	// minGrowth is a difference that the disk makes by itself.
	minGrowth = 20 * time.Millisecond

	// floorRuns is the number of requests whose median is the floor.
	floorRuns = 3
)

// A scale is a journal of many lines. Its owner is "living"; "dead" is dead.
type scale struct {
	testing.TB
	journal.Store
	lines, batch int
	dead         int // batches of the dead owner
	begun        int // batches
	taken        int // lines of the dead owner
	delivered    int // lines of the living owner
}

// newScale fills a journal with batches of so many lines: the first tenth, and one batch
// at least, is the dead owner's.
func newScale(b *testing.B, store journal.Store, lines, batch int) *scale {
	s := &scale{TB: b, Store: store, lines: lines, batch: batch, dead: (lines/10 + batch - 1) / batch}
	s.must(beat(b.Context(), s.Store, "dead", long))
	s.must(beat(b.Context(), s.Store, "living", long))
	for s.begun*batch < lines {
		owner := "living"
		if s.begun < s.dead {
			owner = "dead"
		}
		s.begin(owner, s.newLines(batch))
	}
	s.must(beat(b.Context(), s.Store, "dead", 0))
	return s
}

// median is the median time of a request.
func (s *scale) median(prepare func(s *scale) (request func())) time.Duration {
	times := make([]time.Duration, floorRuns)
	for i := range times {
		request := prepare(s)
		began := time.Now()
		request()
		times[i] = time.Since(began)
	}
	slices.Sort(times)
	return times[floorRuns/2]
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

func (s *scale) orphans() (request func()) {
	return func() {
		all, err := s.Batches(context.Background(), journal.Filter{Orphans: true})
		s.must(err)
		if len(all) != s.dead {
			s.Fatalf("%d orphans, want %d", len(all), s.dead)
		}
	}
}

func (s *scale) heartbeat() (request func()) {
	return func() { s.must(beat(context.Background(), s.Store, "living", long)) }
}

// takeOver takes over 1,000 lines of the dead owner, spread over its batches.
func (s *scale) takeOver() (request func()) {
	all := make([]journal.Hash, 1000)
	for i := range all {
		all[i] = scaleHash(s.taken%s.dead, s.taken/s.dead%s.batch)
		s.taken++
	}
	return func() {
		taken, err := s.TakeOver(context.Background(), "living", account, all)
		s.must(err)
		if got, fits := len(names(taken)), s.taken <= s.dead*s.batch; fits && got != 1000 {
			s.Fatalf("took %d lines, want 1000", got)
		}
	}
}

func (s *scale) miss() (request func()) {
	all := make([]journal.Hash, 1000)
	for i := range all {
		all[i] = scaleHash(1<<20, i)
	}
	return func() {
		taken, err := s.TakeOver(context.Background(), "living", account, all)
		s.must(err)
		if len(taken) != 0 {
			s.Fatalf("took %d lines, want none", len(names(taken)))
		}
	}
}

// deliver delivers 1,000 lines of a batch in the middle of the journal.
func (s *scale) deliver() (request func()) {
	ns := make([]int, 1000)
	for i := range ns {
		ns[i] = (s.delivered + i) % s.batch
	}
	s.delivered += len(ns)
	return func() {
		s.must(s.Deliver(context.Background(), "living", fmt.Sprint("batch", s.lines/s.batch/2), ns))
	}
}

func (s *scale) begins() (request func()) {
	lines := s.newLines(s.batch)
	return func() { s.begin("living", lines) }
}

// beginTenth begins a batch of a tenth of the journal.
func (s *scale) beginTenth(b *testing.B) {
	s.TB = b
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
	s.TB = b
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
