package batchtest

import (
	"maps"
	"math/bits"
	"slices"
	"sort"
	"strconv"
	"time"
)

// The states of a batch, in OpenAI's spelling.
const (
	validating = "validating"
	inProgress = "in_progress"
	finalizing = "finalizing"
	completed  = "completed"
	failed     = "failed"
	expired    = "expired"
	cancelling = "cancelling"
	cancelled  = "cancelled"
)

// never is later than any line finishes.
const never = time.Duration(1<<63 - 1)

// A side is one of a batch's two result files.
type side int

const (
	outputs side = iota
	failures
)

// A fate is how a line ended.
type fate uint8

const (
	executed fate = iota
	ranOut        // of time: the batch expired first
	calledOff
)

// A result is one line of a result file.
type result struct {
	line int32
	fate fate
}

// results is one result file as far as it has come.
type results struct {
	id    string
	lines []result
	bytes int64
}

// A batch is the life of one batch. Nothing happens to it by itself: advance
// works out what should have happened by now.
type batch struct {
	server                    *Server
	id, key, endpoint, window string
	input                     *file
	inputGone                 bool
	metadata                  map[string]string
	created, starts, expires  time.Time
	problems                  []BatchError // the batch fails with these once it starts

	lines    []Line
	outcomes []Outcome
	due      []time.Duration // since starts, per line
	queue    []int32         // lines in the order in which they finish
	settled  int             // queue[:settled] have finished
	tokens   map[string]int64

	results           [2]results
	completed, failed int
	usage             usage
	scratch           []byte // to measure results in

	cancelAt time.Time // asked to cancel
	stuck    bool      // cancelling for ever
	ended    time.Time
	end      string // the status it ended with
}

// plan asks once what will become of every line, and when.
func (b *batch) plan() {
	n := len(b.lines)
	b.outcomes, b.due, b.queue = make([]Outcome, n), make([]time.Duration, n), make([]int32, n)
	for i := range n {
		o := b.server.outcome(b.lineAt(i))
		b.outcomes[i], b.queue[i] = o, int32(i)
		switch {
		case o.Never:
			b.due[i] = never
		case o.Delay > 0:
			b.due[i] = o.Delay
		default:
			b.due[i] = fraction(b.server.opts.Turnaround, i+1, n)
		}
	}
	b.sortQueue()
}

func (b *batch) sortQueue() {
	rest := b.queue[b.settled:]
	slices.SortStableFunc(rest, func(x, y int32) int { return int(min(1, max(-1, b.due[x]-b.due[y]))) })
}

// fraction returns d*i/n without overflow and without rounding up to it early.
func fraction(d time.Duration, i, n int) time.Duration {
	hi, lo := bits.Mul64(uint64(d), uint64(i))
	q, _ := bits.Div64(hi, lo, uint64(n))
	return time.Duration(q)
}

// lineAt returns a line as callers see it.
func (b *batch) lineAt(i int) Line {
	l := b.lines[i]
	l.BatchID = b.id
	return l
}

// advance brings the batch up to now. It needs the Server's mu.
func (b *batch) advance(now time.Time) {
	if b.end != "" || now.Before(b.starts) && b.cancelAt.IsZero() {
		return
	}
	if len(b.problems) > 0 && b.cancelAt.IsZero() {
		b.finish(failed, b.starts)
		return
	}
	if !b.cancelAt.IsZero() {
		b.advanceCancel(now)
		return
	}
	m := &b.server.manners
	last := now
	if !m.NoExpiry && now.After(b.expires) {
		last = b.expires
	}
	b.settle(last)
	switch done := b.doneAt(); {
	case !done.IsZero() && !now.Before(done):
		b.finish(b.verdict(), done)
	case done.IsZero() && !m.NoExpiry && !now.Before(b.expires):
		b.abandon(ranOut)
		b.finish(expired, b.expires)
	}
}

func (b *batch) advanceCancel(now time.Time) {
	b.settle(b.cancelAt)
	if end := b.cancelAt.Add(b.server.manners.CancelTime); !b.stuck && !now.Before(end) {
		b.abandon(calledOff)
		b.finish(cancelled, end)
	}
}

// settle finishes the lines that are due by a moment.
func (b *batch) settle(by time.Time) {
	since := by.Sub(b.starts)
	due := sort.Search(len(b.queue)-b.settled, func(i int) bool { return b.due[b.queue[b.settled+i]] > since })
	for ; due > 0; due-- {
		b.record(result{b.queue[b.settled], executed})
		b.settled++
	}
}

// record counts a line that has ended, and files its result.
func (b *batch) record(r result) {
	o := &b.outcomes[r.line]
	m := &b.server.manners
	ok := r.fate == executed && o.ok()
	switch {
	case ok:
		b.completed++
		b.usage.add(o.Body)
	case r.fate != calledOff || !m.DropUnfinished:
		b.failed++
	}
	if r.fate == executed && o.Missing || r.fate != executed && m.DropUnfinished {
		return
	}
	to := &b.results[failures]
	if ok || r.fate == executed && o.Code == "" && m.FailedLines == AsOutput {
		to = &b.results[outputs]
	}
	if o.Displaced && r.fate == executed {
		to.lines = slices.Concat([]result{r}, to.lines) // a copy: downloads hold the old one
	} else {
		to.lines = append(to.lines, r)
	}
	b.scratch = b.appendResult(b.scratch[:0], r)
	to.bytes += int64(len(b.scratch))
}

// abandon ends all lines that have not finished.
func (b *batch) abandon(f fate) {
	for _, i := range b.queue[b.settled:] {
		b.record(result{i, f})
	}
}

// doneAt is when the batch is complete, or zero while lines are missing.
func (b *batch) doneAt() time.Time {
	if b.settled < len(b.queue) {
		return time.Time{}
	}
	return b.finalizingAt().Add(b.server.opts.Finalizing)
}

// finalizingAt is when the last line finished.
func (b *batch) finalizingAt() time.Time {
	return b.starts.Add(b.due[b.queue[len(b.queue)-1]])
}

func (b *batch) verdict() string {
	if b.completed == 0 && b.server.manners.FailWhenAllFail {
		return failed
	}
	return completed
}

func (b *batch) finish(status string, at time.Time) { b.end, b.ended = status, at }

// cancel does what the provider does when asked to. It needs mu.
func (b *batch) cancel(now time.Time) {
	b.advance(now)
	m := &b.server.manners
	switch {
	case b.end != "" && m.CancelAtOnce && !b.inputGone:
		b.cancelAt = now
		b.finish(cancelled, now)
	case b.end != "" || !b.cancelAt.IsZero():
	default:
		b.cancelAt = now
		b.stuck = m.StuckCancelling && now.Before(b.starts)
		if m.CancelAtOnce {
			b.advance(now)
		}
	}
}

// status is where the batch stands after an advance to now.
func (b *batch) status(now time.Time) string {
	switch {
	case b.end != "":
		return b.end
	case !b.cancelAt.IsZero():
		return cancelling
	case now.Before(b.starts):
		return validating
	case b.settled == len(b.queue):
		return finalizing
	}
	return inProgress
}

// resultID is the id of a result file, or empty while there is none.
func (b *batch) resultID(s side) string {
	m := &b.server.manners
	switch r := &b.results[s]; {
	case m.PartialResults, b.end != "" && len(r.lines) > 0:
		return r.id
	case s == failures && m.EmptyErrorFile && b.end == completed:
		return r.id
	}
	return ""
}

func (b *batch) snapshot() Batch {
	snap := Batch{
		ID: b.id, InputFileID: b.input.id, Endpoint: b.endpoint, Window: b.window,
		Metadata: maps.Clone(b.metadata), Status: b.status(time.Now()),
		Total: len(b.lines), Completed: b.completed, Failed: b.failed,
		CancelRequested: !b.cancelAt.IsZero(), Errors: b.errors(), APIKey: b.key, Created: b.created, Ended: b.ended,
		Lines: make([]BatchLine, len(b.queue)),
	}
	for i := range b.queue {
		snap.Lines[i] = BatchLine{Line: b.lineAt(i), Outcome: b.outcomes[i]}
	}
	for _, i := range b.queue[:b.settled] {
		snap.Lines[i].Finished = true
	}
	return snap
}

// errors is what the batch failed with.
func (b *batch) errors() []BatchError {
	if b.end != failed {
		return nil
	}
	return slices.Clone(b.problems)
}

// change finds a batch by id for a test, brings it up to date, and changes it.
func (s *Server) change(id string, f func(b *batch, now time.Time)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.batches[id]
	if b == nil {
		return errNoSuchBatch
	}
	now := time.Now()
	if b.advance(now); b.end == "" {
		f(b, now)
	}
	return nil
}

// Finish makes every line of a batch that is still running finish now, those
// with [Outcome.Never] included; Options.Finalizing still takes its time. On a batch that has ended it does nothing; the
// error is about an unknown id only.
func (s *Server) Finish(batchID string) error {
	return s.change(batchID, func(b *batch, now time.Time) {
		b.starts = earlier(b.starts, now)
		for _, i := range b.queue[b.settled:] {
			b.due[i] = now.Sub(b.starts)
		}
		b.advance(now)
	})
}

// Expire ends a running batch as if its window had passed now.
func (s *Server) Expire(batchID string) error {
	return s.change(batchID, func(b *batch, now time.Time) {
		b.expires = now
		b.abandon(ranOut)
		b.finish(expired, now)
	})
}

// FailBatch ends a running batch now as one whose file was found wanting; line
// may be zero. What has finished so far is lost.
func (s *Server) FailBatch(batchID, code, message string, line int) error {
	return s.change(batchID, func(b *batch, now time.Time) {
		b.problems = append(b.problems, BatchError{Code: code, Message: message, Line: line})
		for i := range b.results {
			b.results[i].lines, b.results[i].bytes = nil, 0
		}
		b.completed, b.failed = 0, 0
		b.finish(failed, now)
	})
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// windowLength is how long a window is; what says no length counts as a day.
func windowLength(window string) time.Duration {
	if d, ok := parseWindow(window); ok {
		return d
	}
	return 24 * time.Hour
}

// parseWindow turns "24h" or "7d" into a duration.
func parseWindow(window string) (time.Duration, bool) {
	if days, ok := cutSuffixInt(window, "d"); ok {
		return time.Duration(days) * 24 * time.Hour, true
	}
	d, err := time.ParseDuration(window)
	return d, err == nil && d > 0
}

func cutSuffixInt(s, suffix string) (int, bool) {
	if len(s) <= len(suffix) || s[len(s)-len(suffix):] != suffix {
		return 0, false
	}
	n, err := strconv.Atoi(s[:len(s)-len(suffix)])
	return n, err == nil && n > 0
}
