// Package results reads the results of a batch. A Reader records how far each
// source was read, and whether a source was complete, truncated, missing or
// refused.
package results

import (
	"context"
	"errors"
	"hash/maphash"
	"io"
	"log/slog"
	"slices"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/retry"
)

// A Server has the results of batches; see the methods of backend.Backend.
type Server interface {
	Status(ctx context.Context, hs []backend.Handle) ([]backend.Status, error)
	Results(ctx context.Context, h backend.Handle, source string, from backend.Position) (*backend.Stream, error)
}

// Deliver receives a result, and may keep the parts of the Result, but not the Result
// itself. Deliver reports whether the result holds the answer to a line of the batch.
type Deliver func(*line.Result) (answered bool)

// A Verdict is the outcome of reading. A greater Verdict is worse.
type Verdict int

// The verdicts of ReadAll.
const (
	Complete  Verdict = iota // every source was read to its end
	Missing                  // the provider does not find a source (404, 410)
	Refused                  // the provider refused to hand out the results
	Truncated                // reading failed or broke off; the results are there
)

// maxLines is the number of lines after which a transfer is broken off: a hundred
// times as many as the largest batch of any provider. A server that sends more
// repeats itself, and the callers would wait for ever.
const maxLines = 10_000_000

var errEndless = errors.New("the results do not end")

// A Reader reads the sources of one batch. It must not be used by several
// goroutines at once.
type Reader struct {
	server  Server
	batch   backend.Handle
	reread  func() bool
	log     *slog.Logger
	sources []*source

	limit    int // of lines in one transfer
	seed     maphash.Seed
	answered map[uint64]struct{} // hashes of the ids of all answered lines
	err      error               // of the last ReadAll
}

// A source is an output or error file, and how far it was read.
type source struct {
	id        string
	at        backend.Position
	read      bool // at least once, if not to its end
	torn      bool // the last transfer broke off
	stale     bool // results before the position are wanted again
	partial   bool // the server shows partial results, and resumes
	more      bool // more lines will come
	results   int  // since the beginning
	malformed int  // lines since the beginning
}

// NewReader returns a Reader without sources. reread reports, once, that results which
// were read already are wanted again: a call has taken over a line. A nil log
// discards.
func NewReader(server Server, reread func() bool, log *slog.Logger) *Reader {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Reader{server: server, reread: reread, log: log, limit: maxLines, seed: maphash.MakeSeed(), answered: make(map[uint64]struct{})}
}

// SetSources sets the sources of a batch in reading order. A source that is known keeps its
// position. SetSources may be called at any time. An empty list changes nothing,
// since a provider may omit the names.
func (r *Reader) SetSources(batch backend.Handle, ids []string) {
	r.batch = batch
	if len(ids) == 0 {
		return
	}
	known := make(map[string]*source, len(r.sources))
	for _, s := range r.sources {
		known[s.id] = s
	}
	sources := make([]*source, len(ids))
	for i, id := range ids {
		if sources[i] = known[id]; sources[i] == nil {
			sources[i] = &source{id: id}
		}
	}
	r.sources = sources
}

// ReadNew reads new results while the batch runs. ReadNew resumes a source if the
// server can, and reads any other source only once, since the server would send
// the whole source each time. A source whose results are wanted again is read from
// the beginning. The error has the worst verdict.
func (r *Reader) ReadNew(ctx context.Context, deliver Deliver) error {
	r.noteReread()
	var worst error
	for _, s := range r.sources {
		switch {
		case s.stale:
			s.restart()
		case s.read && !s.resumable():
			continue
		}
		worst = worse(worst, r.read(ctx, s, readable(deliver)))
	}
	return worst
}

// readable skips a malformed line without an answer: while the batch runs, the
// server may still be writing the line. ReadAll reads the line again.
func readable(deliver Deliver) Deliver {
	return func(result *line.Result) bool {
		return (!result.Malformed || result.Answered()) && deliver(result)
	}
}

// ReadAll reads each source once after the batch has ended, from the position of
// the source or, with fromStart or if results are wanted again, from the beginning:
// Doubleword can sort a late line before lines that were read already. After a
// broken transfer ReadAll resumes the source in any case; otherwise a connection
// that always breaks would never reach the end. A source whose results are wanted
// again does not count as read until ReadAll has read the source from its beginning.
// ReadAll skips the remaining sources when waiting says that no line waits for a
// result. The error has the worst verdict.
func (r *Reader) ReadAll(ctx context.Context, fromStart bool, waiting func() int, deliver Deliver) error {
	r.err = nil
	r.noteReread()
	fromStart = fromStart || r.stale()
	if fromStart && !r.torn() {
		clear(r.answered) // only what this look shows counts: a replica may lag behind
	}
	for _, s := range r.sources {
		if waiting() == 0 {
			break
		}
		if !s.torn && (fromStart || !s.partial) || s.malformed > 0 {
			s.restart()
		}
		r.err = worse(r.err, r.read(ctx, s, deliver))
	}
	return r.err
}

// noteReread marks the sources if results that were read already are wanted again.
func (r *Reader) noteReread() {
	if r.reread() {
		for _, s := range r.sources {
			s.stale = true
		}
	}
}

// torn reports whether the next look resumes a source.
func (r *Reader) torn() bool {
	return slices.ContainsFunc(r.sources, func(s *source) bool { return s.torn })
}

// Verdict returns the worst verdict of the last ReadAll, and Complete before the
// first ReadAll.
func (r *Reader) Verdict() Verdict { return verdict(r.err) }

// Err returns the error of the last ReadAll.
func (r *Reader) Err() error { return r.err }

// SawAll reports whether the number of answered lines has reached the promised
// number, no source will grow, and no results are wanted again. Lines with the same
// id count once. SawAll is false if promised is zero or negative.
func (r *Reader) SawAll(promised int) bool {
	return promised > 0 && !r.More() && !r.stale() && len(r.answered) >= promised
}

func (r *Reader) stale() bool {
	return slices.ContainsFunc(r.sources, func(s *source) bool { return s.stale })
}

// Answered is the number of lines whose answers were read.
func (r *Reader) Answered() int { return len(r.answered) }

// More reports whether a source will grow, according to the server, or a transfer
// broke off.
func (r *Reader) More() bool {
	for _, s := range r.sources {
		if s.more {
			return true
		}
	}
	return false
}

// Malformed is the number of lines without a readable answer in the latest
// reading of each source.
func (r *Reader) Malformed() int {
	n := 0
	for _, s := range r.sources {
		n += s.malformed
	}
	return n
}

// read reads a source from the position to the end, and delivers each result, also
// before a transfer breaks off.
func (r *Reader) read(ctx context.Context, s *source, deliver Deliver) error {
	stream, err := r.server.Results(ctx, r.batch, s.id, s.at)
	if err != nil {
		return err
	}
	defer stream.Close()
	if stream.From == (backend.Position{}) {
		s.results, s.malformed = 0, 0
	}
	var result line.Result // one for all lines
	for read := 0; ; read++ {
		result, err = stream.Next()
		switch {
		case read >= r.limit && (err == nil || errors.Is(err, line.ErrMalformed) || errors.Is(err, line.ErrTooLong)):
			s.note(stream, false)
			return errEndless
		case err == nil:
			r.deliver(s, &result, deliver)
		case errors.Is(err, line.ErrMalformed), errors.Is(err, line.ErrTooLong):
			s.malformed++
			r.log.Warn("result line skipped", "source", s.id, "error", err)
		default:
			whole := errors.Is(err, io.EOF)
			s.note(stream, whole)
			if whole {
				return nil
			}
			return err
		}
	}
}

// deliver delivers a result and counts it.
func (r *Reader) deliver(s *source, result *line.Result, deliver Deliver) {
	s.results++
	if result.Malformed {
		r.log.Warn("result line is not valid JSON", "source", s.id, "custom_id", result.ID)
		if !result.Answered() {
			s.malformed++
		}
	}
	id := maphash.String(r.seed, result.ID)
	if deliver(result) {
		r.answered[id] = struct{}{}
	}
}

// note keeps how far a stream was read.
func (s *source) note(stream *backend.Stream, whole bool) {
	s.read, s.torn, s.partial = true, !whole, stream.Partial
	s.more = stream.Incomplete || !whole
	s.at = stream.Position()
}

func (s *source) restart() { s.at, s.torn, s.stale = backend.Position{}, false, false }

// empty reports that a source was read and holds nothing.
func (s *source) empty() bool { return s.read && s.results == 0 && s.malformed == 0 }

// resumable reports that the next transfer holds only unread lines.
func (s *source) resumable() bool { return s.partial || s.torn && s.at.Ranges }

// worse returns the error with the worse verdict, or a if the verdicts are equal.
func worse(a, b error) error {
	if verdict(b) > verdict(a) {
		return b
	}
	return a
}

func verdict(err error) Verdict {
	if err == nil {
		return Complete
	}
	switch class, _ := backend.Classify(err); class {
	case retry.NotFound:
		return Missing
	case retry.Permanent, retry.Unauthorized, retry.NotReady:
		return Refused
	}
	return Truncated
}
