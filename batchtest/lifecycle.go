package batchtest

import (
	"maps"
	"math/bits"
	"slices"
	"sort"
	"strconv"
	"time"
)

// The statuses of a batch, in OpenAI's spelling.
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

// A side says which of the two result files of a batch is meant.
type side int

const (
	outputs side = iota
	failures
)

// An ending is how a line ended.
type ending uint8

const (
	executed ending = iota
	byExpiry        // the batch expired first
	byCancel        // the batch was cancelled first
)

// A result is a line of a result file.
type result struct {
	line   int32
	ending ending
}

// results is a result file with the lines so far.
type results struct {
	id    string
	lines []result
	bytes int64
}

// A batch is the state of one batch. The state does not change by itself: advanceLocked
// computes the state at a moment. After enqueueLocked, the Server's mu guards the
// fields from settled on, so every method that reads or changes these fields needs
// mu. The other fields do not change, and downloads read them without mu.
type batch struct {
	server                   *Server
	id, endpoint, window     string
	owner                    caller
	input                    *file
	inputGone                bool
	metadata                 map[string]string
	created, starts, expires time.Time
	problems                 []BatchError // if any, the errors that the batch fails with after validating

	lines    []Line
	outcomes []Outcome
	due      []time.Duration // since starts, per line
	queue    []int32         // the lines in the order of finishing
	settled  int             // queue[:settled] have finished
	tokens   map[string]int64

	results           [2]results
	completed, failed int
	usage             usage
	scratch           []byte // a buffer to measure results

	cancelAt time.Time // when the client asked to cancel
	stuck    bool      // cancelling for ever
	ended    time.Time
	end      string // the final status; empty while the batch runs
}

// endsAtLocked is when the batch ends unless the batch is changed, or zero if the batch
// then never ends. The batch must be up to date, and the caller holds mu.
func (b *batch) endsAtLocked() time.Time {
	rules := &b.server.behavior
	switch {
	case b.end != "":
		return b.ended
	case b.stuck:
		return time.Time{}
	case !b.cancelAt.IsZero():
		return b.cancelAt.Add(rules.CancelTime)
	case len(b.problems) > 0:
		return b.starts
	}
	last := b.due[b.queue[len(b.queue)-1]]
	inTime := last != never && (rules.NoExpiry || !b.starts.Add(last).After(b.expires))
	switch {
	case inTime:
		return b.finalizingAt().Add(b.server.opts.Finalizing)
	case rules.NoExpiry:
		return time.Time{}
	}
	return b.expires
}

// plan decides the outcome of every line, and when the line finishes.
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

// refuseLines makes the batch fail if the provider's check refuses one of the
// lines. See [Outcome].Refused.
func (b *batch) refuseLines() {
	for i := range b.outcomes {
		if refusal := b.outcomes[i].Refused; refusal != nil && len(b.problems) < maxErrors {
			problem := *refusal
			problem.Line = b.lines[i].Number
			b.problems = append(b.problems, problem)
		}
	}
	if len(b.problems) > 0 {
		b.lines, b.outcomes, b.due, b.queue = nil, nil, nil, nil
		clear(b.tokens)
	}
}

func (b *batch) sortQueue() {
	rest := b.queue[b.settled:]
	slices.SortStableFunc(rest, func(x, y int32) int { return int(min(1, max(-1, b.due[x]-b.due[y]))) })
}

// fraction returns d*i/n, rounded down, without overflow.
func fraction(d time.Duration, i, n int) time.Duration {
	hi, lo := bits.Mul64(uint64(d), uint64(i))
	q, _ := bits.Div64(hi, lo, uint64(n))
	return time.Duration(q)
}

// lineAt returns a line with the id of the batch.
func (b *batch) lineAt(i int) Line {
	l := b.lines[i]
	l.BatchID = b.id
	return l
}

// advanceLocked brings the batch up to now. The caller holds the Server's mu.
func (b *batch) advanceLocked(now time.Time) {
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
	rules := &b.server.behavior
	last := now
	if !rules.NoExpiry && now.After(b.expires) {
		last = b.expires
	}
	b.settle(last)
	switch done := b.doneAt(); {
	case !done.IsZero() && !now.Before(done):
		b.finish(b.verdict(), done)
	case done.IsZero() && !rules.NoExpiry && !now.Before(b.expires):
		b.endRest(byExpiry)
		b.finish(expired, b.expires)
	}
}

func (b *batch) advanceCancel(now time.Time) {
	b.settle(b.cancelAt)
	if end := b.cancelAt.Add(b.server.behavior.CancelTime); !b.stuck && !now.Before(end) {
		b.endRest(byCancel)
		b.finish(cancelled, end)
	}
}

// settle finishes the lines that are due at the given time.
func (b *batch) settle(by time.Time) {
	since := by.Sub(b.starts)
	due := sort.Search(len(b.queue)-b.settled, func(i int) bool { return b.due[b.queue[b.settled+i]] > since })
	for ; due > 0; due-- {
		b.record(result{b.queue[b.settled], executed})
		b.settled++
	}
}

// record counts a line that has ended, and adds the result to a result file.
func (b *batch) record(r result) {
	o := &b.outcomes[r.line]
	rules := &b.server.behavior
	ok := r.ending == executed && o.ok()
	switch {
	case ok:
		b.completed++
		b.usage.add(o.Body)
	case r.ending != byCancel || !rules.DropUnfinished:
		b.failed++
	}
	if r.ending == executed && o.Missing || r.ending != executed && rules.DropUnfinished {
		return
	}
	to := &b.results[failures]
	if ok || r.ending == executed && o.Code == "" && rules.FailedLines == AsOutput {
		to = &b.results[outputs]
	}
	b.scratch = b.appendResult(b.scratch[:0], r)
	for range 1 + max(0, o.Duplicates) {
		to.bytes += int64(len(b.scratch))
		if o.Displaced && r.ending == executed {
			to.lines = slices.Concat([]result{r}, to.lines) // a copy, since a download may read the old slice
		} else {
			to.lines = append(to.lines, r)
		}
	}
}

// endRest ends all lines that have not finished.
func (b *batch) endRest(f ending) {
	for _, i := range b.queue[b.settled:] {
		b.record(result{i, f})
	}
}

// doneAt is when the batch is complete, or zero while a line is unfinished.
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
	if b.completed == 0 && b.server.behavior.FailWhenAllFail {
		return failed
	}
	return completed
}

func (b *batch) finish(status string, at time.Time) { b.end, b.ended = status, at }

// cancelLocked cancels the batch as the provider does. The caller holds mu.
func (b *batch) cancelLocked(now time.Time) {
	b.advanceLocked(now)
	rules := &b.server.behavior
	switch {
	case b.end != "" && rules.CancelAtOnce && !b.inputGone:
		b.cancelAt = now
		b.finish(cancelled, now)
	case b.end != "" || !b.cancelAt.IsZero():
	default:
		b.cancelAt = now
		b.stuck = rules.StuckCancelling && now.Before(b.starts)
		if rules.CancelAtOnce {
			b.advanceLocked(now)
		}
	}
}

// status is the status at now. The batch must be up to date.
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

// resultID is the id of a result file, or empty if the batch names no such file.
func (b *batch) resultID(s side) string {
	rules := &b.server.behavior
	switch r := &b.results[s]; {
	case rules.PartialResults, b.end != "" && len(r.lines) > 0:
		return r.id
	case s == failures && rules.EmptyErrorFile && b.end == completed:
		return r.id
	}
	return ""
}

func (b *batch) snapshot() Batch {
	snap := Batch{
		ID: b.id, InputFileID: b.input.id, Endpoint: b.endpoint, Window: b.window,
		Metadata: maps.Clone(b.metadata), Status: b.status(time.Now()),
		Total: len(b.lines), Completed: b.completed, Failed: b.failed,
		CancelRequested: !b.cancelAt.IsZero(), Errors: b.errors(), APIKey: b.owner.key, Account: b.owner.account, Created: b.created, Ended: b.ended,
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

// errors are the errors that the batch failed with.
func (b *batch) errors() []BatchError {
	if b.end != failed {
		return nil
	}
	return slices.Clone(b.problems)
}

// change calls f with the batch of the id, up to date, if the batch still runs.
func (s *Server) change(id string, f func(b *batch, now time.Time)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.batches[id]
	if b == nil {
		return errNoSuchBatch
	}
	now := time.Now()
	if b.advanceLocked(now); b.end == "" {
		f(b, now)
		s.hooks.wake()
	}
	return nil
}

// Finish makes all lines of a running batch finish now, including lines with
// [Outcome.Never]. The batch ends after Options.Finalizing. Finish does nothing
// to a batch that has ended. The only error is that the id is unknown.
func (s *Server) Finish(batchID string) error {
	return s.change(batchID, func(b *batch, now time.Time) {
		b.starts = earlier(b.starts, now)
		for _, i := range b.queue[b.settled:] {
			b.due[i] = now.Sub(b.starts)
		}
		b.advanceLocked(now)
	})
}

// Expire ends a running batch as if the window had passed now. Expire does nothing
// to a batch that has ended. The only error is that the id is unknown.
func (s *Server) Expire(batchID string) error {
	return s.change(batchID, func(b *batch, now time.Time) {
		b.expires = now
		b.endRest(byExpiry)
		b.finish(expired, now)
	})
}

// FailBatch ends a running batch now, as if the check of the input file had failed
// with the error; line may be zero. Finished lines are lost. FailBatch does nothing
// to a batch that has ended. The only error is that the id is unknown.
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

// windowLength is the length of a window, or a day if the window is no duration.
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
