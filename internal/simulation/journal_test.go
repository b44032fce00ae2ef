package simulation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// A replicaStore is the journal as one process reaches the journal. A replicaStore
// records for the checks which requests the journal carried out, and which failed.
type replicaStore struct {
	journal.Store
	p *replica
}

var errJournal = errors.New("the journal failed")

// do makes a request to the journal. A request that fails may have been
// carried out nevertheless.
func (h *replicaStore) do(ctx context.Context, kind string, f func() error) error {
	if !h.p.step(kind, before) {
		return errDead
	}
	lost, answerLost := h.fails(kind)
	if lost {
		return errJournal
	}
	if err := h.delay(ctx, kind); err != nil {
		return err
	}
	h.p.w.setJournalClock()
	err := f()
	if !h.p.step(kind, during) || !h.p.step(kind, after) {
		return errDead
	}
	if err := h.delay(ctx, kind); err != nil {
		return err
	}
	if answerLost {
		return errJournal
	}
	return err
}

// fails decides whether a request to the journal gets lost, or the answer to it.
func (h *replicaStore) fails(kind string) (lost, answerLost bool) {
	w := h.p.w
	lost = h.p.isCutOff(&h.p.noJournal)
	if w.trouble > 0 && !w.journalCalm.Load() {
		h.p.decide(kind, func(d dice) {
			unlucky := d.chance(w.trouble / 2)
			lost, answerLost = lost || unlucky, d.chance(w.trouble/2)
		})
	}
	if lost || answerLost {
		w.record.troubles.Add(1)
		h.p.logf("journal: %s fails; done: %v", kind, !lost)
	}
	return lost, answerLost
}

// delay takes half the time of a request to the journal, where the journal is
// slow. The error wraps errJournal if ctx ends first.
func (h *replicaStore) delay(ctx context.Context, kind string) error {
	w := h.p.w
	if w.journalDelay == 0 {
		return nil
	}
	var half time.Duration
	h.p.decide("slow "+kind, func(d dice) { half = d.between(0, w.journalDelay/2) })
	timer := time.NewTimer(half)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-h.p.dead:
		return errDead
	case <-ctx.Done():
		w.record.troubles.Add(1)
		h.p.logf("journal: %s fails: %v", kind, ctx.Err())
		return fmt.Errorf("%w: %w", errJournal, ctx.Err())
	}
}

func (h *replicaStore) Heartbeat(ctx context.Context, owner string, lease time.Duration) (fresh bool, err error) {
	if h.p.isDead() {
		return false, errDead
	}
	fails, answerLost := h.heartbeatFails(lease)
	if fails {
		return false, errJournal
	}
	if err := h.delay(ctx, "heartbeat"); err != nil {
		return false, err
	}
	h.p.hasLapsed()
	h.p.mu.Lock()
	h.p.lastBeat = time.Now()
	h.p.mu.Unlock()
	h.p.w.setJournalClock()
	fresh, err = h.Store.Heartbeat(ctx, owner, lease)
	if answerLost {
		return false, errJournal
	}
	return fresh, err
}

// heartbeatFails decides what becomes of a heartbeat. The first heartbeat
// succeeds, since without a lease there would be no journal at all.
func (h *replicaStore) heartbeatFails(lease time.Duration) (lost, answerLost bool) {
	w := h.p.w
	if lease > 0 {
		lost = h.p.isCutOff(&h.p.noJournal)
	}
	if w.trouble == 0 || lease <= 0 || w.journalCalm.Load() {
		return lost, false
	}
	h.p.decide("heartbeat", func(d dice) {
		if h.p.lastBeat.IsZero() {
			return
		}
		unlucky := d.chance(w.trouble / 2)
		answerLost = d.chance(w.trouble / 2)
		if w.journalCuts && d.chance(0.002) {
			h.p.noJournal = time.Now().Add(d.between(time.Second, time.Minute))
		}
		lost = lost || unlucky || time.Now().Before(h.p.noJournal)
	})
	return lost, answerLost
}

// hasLapsed reports whether a process was ever without a lease.
func (p *replica) hasLapsed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lapsed = p.lapsed || !p.isDead() && !p.ending.Load() && !p.lastBeat.IsZero() && time.Since(p.lastBeat) >= 15*time.Second
	return p.lapsed
}

func (h *replicaStore) Begin(ctx context.Context, b journal.Batch, lines []journal.Line) error {
	r := h.p.w.record
	err := h.do(ctx, "begin", func() error { return h.Store.Begin(ctx, b, lines) })
	h.p.logf("begins %s with %d lines, %s first: %v", b.Ref, len(lines), lines[0].CustomID, err)
	r.note(func() {
		r.began(h.p, b.Ref, lines)
		r.flex[b.Ref] = b.Window == provider.FlexWindow
		if errors.Is(err, errJournal) {
			r.excuse(b.Ref)
		}
	})
	return err
}

func (h *replicaStore) Advance(ctx context.Context, owner, ref string, s journal.Step) error {
	r := h.p.w.record
	err := h.do(ctx, "advance", func() error {
		err := h.Store.Advance(ctx, owner, ref, s)
		if err == nil {
			r.note(func() { r.advanced(ref, s) })
		}
		return err
	})
	if errors.Is(err, errJournal) {
		r.note(func() { r.excuse(ref) })
	}
	return err
}

func (h *replicaStore) Discard(ctx context.Context, owner, ref string) error {
	r := h.p.w.record
	return h.do(ctx, "discard", func() error {
		err := h.Store.Discard(ctx, owner, ref)
		if err == nil {
			r.note(func() { r.discarded[ref] = h.p.name })
		}
		return err
	})
}

func (h *replicaStore) Claim(ctx context.Context, owner, ref string) (mine bool, err error) {
	err = h.do(ctx, "claim", func() (err error) {
		if mine, err = h.Store.Claim(ctx, owner, ref); mine {
			r := h.p.w.record
			r.note(func() { r.resumed[ref] = r.resumed[ref] || r.by[ref] != h.p })
		}
		return err
	})
	return mine && err == nil, err
}

func (h *replicaStore) TakeOver(ctx context.Context, owner string, payer journal.Hash, prints []journal.Hash) (taken []journal.Taken, err error) {
	r := h.p.w.record
	err = h.do(ctx, "take over", func() (err error) {
		taken, err = h.Store.TakeOver(ctx, owner, payer, prints)
		return err
	})
	if err != nil {
		if errors.Is(err, errJournal) {
			r.doubtfulTakeOvers.Add(1)
			r.note(func() { r.excusePrints(prints) })
		}
		return nil, err
	}
	for _, t := range taken {
		h.p.logf("takes over %d lines of %s %q (%s, of %q), %v", len(t.Lines), t.Batch.Ref, t.Batch.BatchID, t.Batch.State, t.Batch.Owner, t.Lines[0].CustomID)
	}
	return taken, nil
}

func (h *replicaStore) Find(ctx context.Context, payer journal.Hash, prints []journal.Hash) (found []journal.Taken, err error) {
	err = h.do(ctx, "find", func() (err error) {
		found, err = h.Store.Find(ctx, payer, prints)
		return err
	})
	if err != nil {
		if errors.Is(err, errJournal) {
			h.p.w.record.note(func() { h.p.w.record.excusePrints(prints) }) // a call with an Idempotency-Key may be unknown
		}
		return nil, err
	}
	return found, nil
}

func (h *replicaStore) Withdraw(ctx context.Context, payer journal.Hash, prints []journal.Hash) (n int, err error) {
	err = h.do(ctx, "withdraw", func() (err error) {
		n, err = h.Store.Withdraw(ctx, payer, prints)
		return err
	})
	h.p.logf("withdraws %d lines: %v", n, err)
	return n, err
}

func (h *replicaStore) Hold(ctx context.Context, owner, ref string, lines []int) error {
	h.p.logf("holds lines %v of %s again", lines, ref)
	return h.do(ctx, "hold", func() error { return h.Store.Hold(ctx, owner, ref, lines) })
}

func (h *replicaStore) Release(ctx context.Context, owner, ref string, lines []int) error {
	r := h.p.w.record
	err := h.do(ctx, "release", func() error { return h.Store.Release(ctx, owner, ref, lines) })
	h.p.logf("releases lines %v of %s: %v", lines, ref, err)
	r.note(func() { r.releases(h.p, ref, lines) })
	if errors.Is(err, errJournal) {
		r.note(func() { r.excuseLines(ref, lines) })
	}
	return err
}

func (h *replicaStore) Deliver(ctx context.Context, owner, ref string, lines []int) error {
	r := h.p.w.record
	h.p.logf("delivers lines %v of %s", lines, ref)
	return h.do(ctx, "deliver", func() error {
		err := h.Store.Deliver(ctx, owner, ref, lines)
		if err == nil {
			r.note(func() { r.delivered(h.p, ref, lines) })
		}
		return err
	})
}

func (h *replicaStore) Abandon(ctx context.Context, owner, ref string) (done bool, err error) {
	err = h.do(ctx, "abandon", func() (err error) {
		if done, err = h.Store.Abandon(ctx, owner, ref); done {
			r := h.p.w.record
			r.note(func() { r.abandoned[ref] = decision{by: h.p, at: time.Now()} })
		}
		return err
	})
	if done && err == nil {
		r := h.p.w.record
		r.note(func() {
			d := r.abandoned[ref]
			d.known = true
			r.abandoned[ref] = d
		})
	}
	return done && err == nil, err
}

func (h *replicaStore) Owners(ctx context.Context) (owners []journal.Owner, err error) {
	err = h.do(ctx, "owners", func() (err error) {
		owners, err = h.Store.Owners(ctx)
		return err
	})
	return owners, err
}

func (h *replicaStore) Batches(ctx context.Context, f journal.Filter) (found []journal.Batch, err error) {
	err = h.do(ctx, "batches", func() (err error) {
		found, err = h.Store.Batches(ctx, f)
		return err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func (h *replicaStore) Forget(ctx context.Context, ended, begun time.Duration) (int, error) {
	if h.p.isDead() {
		return 0, errDead
	}
	before := h.p.w.known()
	h.p.w.setJournalClock()
	n, err := h.Store.Forget(ctx, ended, begun)
	if n > 0 {
		h.p.w.noteForgotten(before, ended)
	}
	return n, err
}

// noteForgotten lets lines be paid for again that the journal has forgotten, since
// no client retried in time.
func (w *world) noteForgotten(before []journal.Batch, ended time.Duration) {
	known := make(map[string]bool)
	for _, b := range w.known() {
		known[b.Ref] = true
	}
	w.record.note(func() {
		for _, b := range before {
			if known[b.Ref] {
				continue
			}
			w.logf("the journal forgets %s %q, with %d open lines", b.Ref, b.BatchID, b.Open)
			if b.State != journal.Ended || time.Since(b.Ended) < ended {
				w.forgot(b)
				continue
			}
			w.record.excuseUndelivered(b.Ref)
		}
	})
}

// forgot fails the schedule if the journal forgot a batch too early, unless a
// process discarded the batch.
func (w *world) forgot(b journal.Batch) {
	if w.record.discarded[b.Ref] == "" {
		w.failf("the journal forgets %s %q too early: %s, ended %v", b.Ref, b.BatchID, b.State, b.Ended)
	}
}

// A record holds what the journal carried out, for the checks. mu guards all but
// the counters.
type record struct {
	mu                sync.Mutex
	lines             map[string][]journal.Line // by ref
	by                map[string]*replica       // the process that began a batch, by ref
	files             map[string]string         // refs, by input file
	ids               map[string]string         // refs, by batch id
	ended             map[string]bool           // refs
	discarded         map[string]string         // the process that discarded a batch, by ref
	resumed           map[string]bool           // the batches that another process than the first has owned, by ref
	abandoned         map[string]decision       // when a process decided to cancel, by ref, or sent a cancel, by batch id
	deliveredTo       map[lineID][]*replica     // the processes that delivered a line, by ref and custom id
	released          map[lineID][]decision     // when processes released a line, by ref and custom id
	prints            map[string]journal.Hash   // by custom id
	unrecorded        map[string]bool           // custom ids of lines the journal may not know
	excused           map[journal.Hash]int      // lines that may be paid for once more
	flex              map[string]bool           // refs of calls at the flex tier
	sending           map[string]bool           // refs that were about to be created
	troubles          atomic.Int64
	doubtfulTakeOvers atomic.Int64 // take-overs that failed, and may have been carried out
}

func newRecord() *record {
	return &record{
		lines: make(map[string][]journal.Line), by: make(map[string]*replica), files: make(map[string]string), ids: make(map[string]string),
		ended: make(map[string]bool), discarded: make(map[string]string), abandoned: make(map[string]decision), resumed: make(map[string]bool), deliveredTo: make(map[lineID][]*replica), released: make(map[lineID][]decision),
		prints: make(map[string]journal.Hash), unrecorded: make(map[string]bool), excused: make(map[journal.Hash]int),
		flex: make(map[string]bool), sending: make(map[string]bool),
	}
}

func (r *record) note(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *record) began(by *replica, ref string, lines []journal.Line) {
	r.by[ref] = by
	r.lines[ref] = slices.Clone(lines)
	for _, l := range lines {
		r.prints[l.CustomID] = l.Fingerprint
	}
}

func (r *record) advanced(ref string, s journal.Step) {
	if s.InputFileID != "" {
		r.files[s.InputFileID] = ref
	}
	if s.BatchID != "" {
		r.ids[s.BatchID] = ref
	}
	r.sending[ref] = r.sending[ref] || s.State == journal.Uploaded || s.State == journal.Creating
	r.ended[ref] = r.ended[ref] || s.State == journal.Ended
}

func (r *record) delivered(by *replica, ref string, lines []int) {
	for _, n := range lines {
		if n < len(r.lines[ref]) {
			id := lineID{ref, r.lines[ref][n].CustomID}
			r.deliveredTo[id] = append(r.deliveredTo[id], by)
		}
	}
}

// releases notes that a process asked the journal to release lines. The caller holds mu.
func (r *record) releases(by *replica, ref string, lines []int) {
	for _, n := range lines {
		if n < len(r.lines[ref]) {
			id := lineID{ref, r.lines[ref][n].CustomID}
			r.released[id] = append(r.released[id], decision{by: by, at: time.Now()})
		}
	}
}

// isReleased reports whether a process asked the journal to release a line, not before a time.
func (r *record) isReleased(by *replica, id lineID, since time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.released[lineID{r.ids[id.batch], id.custom}], func(d decision) bool { return d.by == by && !d.at.Before(since) })
}

// deliveredBy reports whether a process wrote down that the process handed out a
// line.
func (r *record) deliveredBy(p *replica, id lineID) bool {
	return slices.Contains(r.deliveredTo[lineID{r.ids[id.batch], id.custom}], p)
}

// beganBy is the process that wrote a batch down.
func (r *record) beganBy(ref string) *replica {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.by[ref]
}

// isResumed reports whether another process than the first has owned a batch.
func (r *record) isResumed(ref string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resumed[ref]
}

// excuse lets the lines of a batch be paid for once more: the journal may not know
// the lines, or not their last state.
func (r *record) excuse(ref string) {
	for n := range r.lines[ref] {
		r.excuseLines(ref, []int{n})
	}
}

func (r *record) excuseUndelivered(ref string) {
	for n, l := range r.lines[ref] {
		if len(r.deliveredTo[lineID{ref, l.CustomID}]) == 0 {
			r.excuseLines(ref, []int{n})
		}
	}
}

func (r *record) excuseLines(ref string, lines []int) {
	for _, n := range lines {
		if n < len(r.lines[ref]) {
			l := r.lines[ref][n]
			r.excused[l.Fingerprint]++
			r.unrecorded[l.CustomID] = true
		}
	}
}

func (r *record) excusePrints(prints []journal.Hash) {
	for _, p := range prints {
		r.excused[p]++
	}
}
