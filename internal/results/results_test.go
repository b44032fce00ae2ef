package results_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/results"
)

// A shelf holds the sources of a provider by their ids.
type shelf struct {
	sources map[string]*source
	opened  []string // "id@line"
}

// A source is a result file of a provider.
type source struct {
	ids        []string // "!" is a line that is not a result, "?a" a line of which only the id is readable
	cut        int      // the transfer breaks off behind so many lines; 0: never
	partial    bool
	ranges     bool
	incomplete bool
	err        error
}

func (s *shelf) Status(context.Context, []backend.Handle) ([]backend.Status, error) {
	return nil, errCut // nothing new is known about the batch
}

func (s *shelf) Results(_ context.Context, _ backend.Handle, id string, from backend.Position) (*backend.Stream, error) {
	s.opened = append(s.opened, fmt.Sprintf("%s@%d", id, from.Line))
	src := s.sources[id]
	if src == nil {
		return nil, &backend.Error{Op: "GET", Status: 404, RetryAfter: -1}
	}
	if src.err != nil {
		return nil, src.err
	}
	if !src.partial && !src.ranges {
		from = backend.Position{}
	}
	return &backend.Stream{
		Lines: &lines{source: src, at: from.Line}, From: from, Partial: src.partial, Incomplete: src.incomplete,
	}, nil
}

// lines are the lines of a source.
type lines struct {
	source   *source
	at, read int
}

var errCut = &backend.Error{Op: "GET", RetryAfter: -1, Err: io.ErrUnexpectedEOF}

func (l *lines) Next() (line.Result, error) {
	if l.source.cut > 0 && l.read == l.source.cut {
		return line.Result{}, errCut
	}
	if l.at >= len(l.source.ids) {
		return line.Result{}, io.EOF
	}
	id := l.source.ids[l.at]
	l.at, l.read = l.at+1, l.read+1
	switch id[0] {
	case '!':
		return line.Result{}, line.ErrMalformed
	case '?':
		return line.Result{ID: id[1:], Malformed: true}, nil
	}
	return line.Result{ID: id, Status: 200, Body: []byte("{}")}, nil
}

func (l *lines) Position() backend.Position {
	return backend.Position{Line: l.at, Partial: l.source.partial, Ranges: l.source.ranges}
}

func (l *lines) Close() error { return nil }

// A reading is a Reader and what it delivered.
type reading struct {
	*results.Reader
	shelf     *shelf
	reread    func() bool
	delivered []string
}

func never() bool { return false }

func newReading(sources map[string]*source) *reading {
	r := &reading{shelf: &shelf{sources: sources}, reread: never}
	r.Reader = results.NewReader(r.shelf, func() bool { return r.reread() }, nil)
	var ids []string
	for id := range sources {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	r.SetSources(backend.Handle{}, ids)
	return r
}

func (r *reading) deliver(result *line.Result) bool {
	r.delivered = append(r.delivered, result.ID)
	return result.Answered()
}

func (r *reading) readNew(reread bool) error {
	r.reread = func() bool { return reread }
	defer func() { r.reread = never }()
	return r.ReadNew(context.Background(), r.deliver)
}

func (r *reading) readAll(fromStart bool) error {
	return r.ReadAll(context.Background(), fromStart, func() int { return 1 }, r.deliver)
}

func (r *reading) check(t *testing.T, opened, delivered []string) {
	t.Helper()
	if diff := cmp.Diff(opened, r.shelf.opened); diff != "" {
		t.Errorf("opened (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(delivered, r.delivered); diff != "" {
		t.Errorf("delivered (-want +got)\n%s", diff)
	}
	r.shelf.opened, r.delivered = nil, nil
}

// While a batch runs, a source that cannot be resumed is read once only.
func TestReadNew(t *testing.T) {
	t.Run("partial", func(t *testing.T) {
		src := &source{ids: []string{"a"}, partial: true, incomplete: true}
		r := newReading(map[string]*source{"o": src})
		r.readNew(false)
		r.check(t, []string{"o@0"}, []string{"a"})
		src.ids = append(src.ids, "b")
		r.readNew(false)
		r.check(t, []string{"o@1"}, []string{"b"})
		r.readNew(true)
		r.check(t, []string{"o@0"}, []string{"a", "b"})
		if !r.More() || r.SawAll(2) {
			t.Error("more lines will come")
		}
	})
	t.Run("whole", func(t *testing.T) {
		src := &source{ids: []string{"a"}}
		r := newReading(map[string]*source{"o": src})
		r.readNew(false)
		r.readNew(false)
		r.check(t, []string{"o@0"}, []string{"a"})
		r.readNew(true)
		r.check(t, []string{"o@0"}, []string{"a"})
	})
	t.Run("not there yet", func(t *testing.T) {
		r := newReading(map[string]*source{"o": nil})
		if err := r.readNew(false); err == nil {
			t.Error("no error")
		}
		r.readNew(false)
		r.check(t, []string{"o@0", "o@0"}, nil)
	})
	t.Run("broken off", func(t *testing.T) {
		r := newReading(map[string]*source{"o": {ids: []string{"a", "b"}, cut: 1, ranges: true}, "p": {ids: []string{"c", "d"}, cut: 1}})
		r.readNew(false)
		r.check(t, []string{"o@0", "p@0"}, []string{"a", "c"})
		r.readNew(false)
		r.check(t, []string{"o@1"}, []string{"b"})
	})
}

func TestReadAll(t *testing.T) {
	t.Run("from where ReadNew ended", func(t *testing.T) {
		src := &source{ids: []string{"a"}, partial: true}
		r := newReading(map[string]*source{"o": src})
		r.readNew(false)
		src.ids = append(src.ids, "b")
		r.readAll(false)
		r.check(t, []string{"o@0", "o@1"}, []string{"a", "b"})
		r.readAll(true)
		r.check(t, []string{"o@0"}, []string{"a", "b"})
		if !r.SawAll(2) || r.SawAll(3) || r.SawAll(0) {
			t.Error("two lines were answered")
		}
	})
	t.Run("a whole file from its beginning", func(t *testing.T) {
		r := newReading(map[string]*source{"o": {ids: []string{"a"}}})
		r.readNew(false)
		r.readAll(false)
		r.check(t, []string{"o@0", "o@0"}, []string{"a", "a"})
	})
	t.Run("until no line waits", func(t *testing.T) {
		r := newReading(map[string]*source{"e": {ids: []string{"b"}}, "o": {ids: []string{"a"}}})
		r.ReadAll(context.Background(), true, func() int { return 1 - len(r.delivered) }, r.deliver)
		r.check(t, []string{"e@0"}, []string{"b"})
	})
	t.Run("a transfer that always breaks off gets to the end", func(t *testing.T) {
		r := newReading(map[string]*source{"o": {ids: []string{"a", "b", "c", "d", "e"}, cut: 2, ranges: true}})
		for want, looks := results.Truncated, 1; looks <= 3; looks++ {
			if looks == 3 {
				want = results.Complete
			}
			if err := r.readAll(true); r.Verdict() != want {
				t.Errorf("look %d: %v, %v", looks, r.Verdict(), err)
			}
		}
		r.check(t, []string{"o@0", "o@2", "o@4"}, []string{"a", "b", "c", "d", "e"})
		if !r.SawAll(5) {
			t.Error("all lines were read")
		}
	})
}

// Results in two places, or twice in a place, do not stand for results that are
// missing.
func TestSawAllCountsIDs(t *testing.T) {
	r := newReading(map[string]*source{"e": {ids: []string{"a", "b"}}, "o": {ids: []string{"a", "a", "b"}}})
	r.readAll(true)
	r.readAll(true)
	if !r.SawAll(2) || r.SawAll(3) {
		t.Error("two lines were answered")
	}
}

func TestMalformedLines(t *testing.T) {
	src := &source{ids: []string{"a", "!", "?b", "c"}, partial: true}
	r := newReading(map[string]*source{"o": src})
	r.readNew(false)
	r.check(t, []string{"o@0"}, []string{"a", "c"}) // b may still be written
	if r.Malformed() != 2 {
		t.Errorf("%d malformed lines, want two", r.Malformed())
	}
	r.readAll(false)
	r.check(t, []string{"o@0"}, []string{"a", "b", "c"})
	if r.Malformed() != 2 || r.SawAll(3) {
		t.Errorf("%d malformed lines, want two", r.Malformed())
	}
	src.ids = []string{"a", "b", "c"}
	r.readAll(true)
	r.check(t, []string{"o@0"}, []string{"a", "b", "c"})
	if r.Malformed() != 0 || !r.SawAll(3) {
		t.Errorf("%d malformed lines in a file that was mended", r.Malformed())
	}
}

func TestVerdict(t *testing.T) {
	status := func(n int) *source { return &source{err: &backend.Error{Op: "GET", Status: n, RetryAfter: -1}} }
	whole, cut := &source{ids: []string{"a"}}, &source{ids: []string{"a", "b"}, cut: 1}
	for _, tt := range []struct {
		name    string
		sources map[string]*source
		want    results.Verdict
	}{
		{"whole", map[string]*source{"o": whole}, results.Complete},
		{"no sources", nil, results.Complete},
		{"missing", map[string]*source{"e": nil, "o": whole}, results.Missing},
		{"gone", map[string]*source{"o": status(410)}, results.Missing},
		{"refused", map[string]*source{"e": nil, "o": status(403)}, results.Refused},
		{"unauthorized", map[string]*source{"o": status(401)}, results.Refused},
		{"broken off", map[string]*source{"e": status(403), "o": cut}, results.Truncated},
		{"busy", map[string]*source{"o": status(503), "p": nil}, results.Truncated},
		{"too fast", map[string]*source{"o": status(429)}, results.Truncated},
		{"another error", map[string]*source{"o": {err: errors.New("boom")}}, results.Truncated},
		{"endless", map[string]*source{"o": {ids: slices.Repeat([]string{"a"}, 11)}}, results.Truncated},
		{"as many as allowed", map[string]*source{"o": {ids: slices.Repeat([]string{"a"}, 10)}}, results.Complete},
	} {
		r := newReading(tt.sources)
		r.SetLimit(10)
		err := r.readAll(true)
		if got := r.Verdict(); got != tt.want || (err == nil) != (tt.want == results.Complete) || !errors.Is(r.Err(), err) {
			t.Errorf("%s: verdict %v, %v, want %v", tt.name, got, err, tt.want)
		}
		r.SetSources(backend.Handle{}, []string{"other"})
		r.shelf.sources = map[string]*source{"other": whole}
		if err := r.readAll(true); err != nil || r.Verdict() != results.Complete {
			t.Errorf("%s: %v, %v afterwards", tt.name, r.Verdict(), err)
		}
	}
}

func TestSetSources(t *testing.T) {
	src := &source{ids: []string{"a"}, partial: true}
	r := newReading(map[string]*source{"o": src})
	r.readNew(false)
	r.SetSources(backend.Handle{}, nil)
	r.shelf.sources["e"] = &source{ids: []string{"x"}}
	r.SetSources(backend.Handle{}, []string{"o", "e"})
	r.readNew(false)
	r.check(t, []string{"o@0", "o@1", "e@0"}, []string{"a", "x"})
}

// A call takes over a line whose result was read before the transfer broke off.
// The source is read to its end, and then again from its beginning, before the
// result counts as missing.
func TestAResultBeforeTheBreakIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &source{ids: []string{"a", "b", "c"}, cut: 2, partial: true}
		r := newReading(map[string]*source{"f": src})
		if err := r.readNew(false); err == nil {
			t.Fatal("the transfer did not break off")
		}
		src.cut = 0
		waits := 1 // for the result of a
		reread := []bool{true, false, false}
		attempts := 0
		r.reread = func() bool { attempts++; return reread[attempts-1] }
		err := r.ReadEnded(t.Context(), &results.Ended{
			Status:  backend.Status{Phase: backend.Ended, Word: "completed", Counts: backend.Counts{Completed: 3, Total: 3}, Sources: []string{"f"}},
			Waiting: func() int { return waits },
			Deliver: func(result *line.Result) bool {
				if result.ID == "a" {
					waits = 0
				}
				return true
			},
		})
		if err != nil || waits > 0 {
			t.Errorf("error %v; %d lines wait, after %d looks", err, waits, attempts)
		}
	})
}

// An output file, or all files, without results are a broken download where the provider
// counts completed lines and a line waits; otherwise they hold nothing that a caller
// misses.
func TestEmptyFiles(t *testing.T) {
	nothing, one := []string(nil), []string{"a"}
	for _, tt := range []struct {
		name               string
		waiting, completed int
		output, failures   []string
		want               results.Verdict
	}{
		{"a line waits", 1, 2, nothing, nothing, results.Truncated},
		{"no line waits", 0, 2, nothing, nothing, results.Complete},
		{"no line was completed", 1, 0, nothing, nothing, results.Complete},
		{"only the output is empty", 1, 1, nothing, one, results.Truncated},
		{"only the file of errors is empty", 1, 2, one, nothing, results.Complete},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newReading(map[string]*source{"o": {ids: tt.output}, "e": {ids: tt.failures}})
			err := r.ReadEnded(t.Context(), &results.Ended{
				Status: backend.Status{
					Phase: backend.Ended, Word: "completed", Counts: backend.Counts{Completed: tt.completed, Total: 2},
					OutputFileID: "o", ErrorFileID: "e", Sources: []string{"o", "e"},
				},
				Waiting: func() int { return tt.waiting },
				Deliver: func(*line.Result) bool { return true },
			})
			if err != nil || r.Verdict() != tt.want {
				t.Errorf("%s: verdict %v, %v; want %v", tt.name, r.Verdict(), err, tt.want)
			}
		})
	}
}
