package simulation

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// A hand is one process's hand on the journal. It keeps a record of what the
// journal was told, and of what it failed to be told.
type hand struct {
	journal.Store
	p *replica
}

var errJournal = errors.New("trouble with the journal")

// do makes a request to the journal. A request that fails may have been
// carried out all the same.
func (h *hand) do(kind string, f func() error) error {
	w := h.p.w
	if !h.p.step(kind, before) {
		return errDead
	}
	var lost, unheard bool
	if w.trouble > 0 && !w.calm.Load() {
		h.p.decide(kind, func(d dice) {
			lost, unheard = d.chance(w.trouble/2) || time.Now().Before(h.p.blind), d.chance(w.trouble/2)
		})
	}
	if lost || unheard {
		w.record.troubles.Add(1)
		h.p.tell("journal: %s fails; done: %v", kind, !lost)
	}
	if lost {
		return errJournal
	}
	err := f()
	if !h.p.step(kind, during) || !h.p.step(kind, after) {
		return errDead
	}
	if unheard {
		return errJournal
	}
	return err
}

func (h *hand) Heartbeat(ctx context.Context, owner string, lease time.Duration) (fresh bool, err error) {
	w := h.p.w
	if h.p.isDead() {
		return false, errDead
	}
	var fails, unheard bool
	if w.trouble > 0 && lease > 0 && !w.calm.Load() {
		h.p.decide("heartbeat", func(d dice) {
			if h.p.beaten.IsZero() {
				return // without the first there would be no journal at all
			}
			fails, unheard = d.chance(w.trouble/2), d.chance(w.trouble/2)
			if w.cuts && d.chance(0.002) {
				h.p.blind = time.Now().Add(d.between(time.Second, time.Minute))
			}
			fails = fails || time.Now().Before(h.p.blind)
		})
	}
	if fails {
		return false, errJournal
	}
	h.p.hasLapsed()
	h.p.mu.Lock()
	h.p.beaten = time.Now()
	h.p.mu.Unlock()
	fresh, err = h.Store.Heartbeat(ctx, owner, lease)
	if unheard {
		return false, errJournal
	}
	return fresh, err
}

// hasLapsed reports whether a process was ever without a lease.
func (p *replica) hasLapsed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lapsed = p.lapsed || !p.isDead() && !p.ending.Load() && !p.beaten.IsZero() && time.Since(p.beaten) >= 15*time.Second
	return p.lapsed
}

func (h *hand) Begin(ctx context.Context, b journal.Batch, lines []journal.Line) error {
	r := h.p.w.record
	err := h.do("begin", func() error { return h.Store.Begin(ctx, b, lines) })
	h.p.tell("begins %s with %d lines, %s first: %v", b.Ref, len(lines), lines[0].CustomID, err)
	r.note(func() {
		r.began(h.p, b.Ref, lines)
		if errors.Is(err, errJournal) {
			r.excuse(b.Ref)
		}
	})
	return err
}

func (h *hand) Advance(ctx context.Context, owner, ref string, s journal.Step) error {
	r := h.p.w.record
	err := h.do("advance", func() error {
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

func (h *hand) Discard(ctx context.Context, owner, ref string) error {
	r := h.p.w.record
	return h.do("discard", func() error {
		err := h.Store.Discard(ctx, owner, ref)
		if err == nil {
			r.note(func() { r.discarded[ref] = h.p.name })
		}
		return err
	})
}

func (h *hand) Claim(ctx context.Context, owner, ref string) (mine bool, err error) {
	err = h.do("claim", func() (err error) {
		mine, err = h.Store.Claim(ctx, owner, ref)
		return err
	})
	return mine && err == nil, err
}

func (h *hand) TakeOver(ctx context.Context, owner string, payer journal.Hash, prints []journal.Hash) (taken []journal.Taken, err error) {
	r := h.p.w.record
	err = h.do("take over", func() (err error) {
		taken, err = h.Store.TakeOver(ctx, owner, payer, prints)
		return err
	})
	if err != nil {
		if errors.Is(err, errJournal) {
			r.note(func() { r.excusePrints(prints) })
		}
		return nil, err
	}
	for _, t := range taken {
		h.p.tell("takes over %d lines of %s %q (%s, of %q), %v", len(t.Lines), t.Batch.Ref, t.Batch.BatchID, t.Batch.State, t.Batch.Owner, t.Lines[0].CustomID)
	}
	return taken, nil
}

func (h *hand) Hold(ctx context.Context, owner, ref string, lines []int) error {
	h.p.tell("holds lines %v of %s again", lines, ref)
	return h.do("hold", func() error { return h.Store.Hold(ctx, owner, ref, lines) })
}

func (h *hand) Release(ctx context.Context, owner, ref string, lines []int) error {
	r := h.p.w.record
	err := h.do("release", func() error { return h.Store.Release(ctx, owner, ref, lines) })
	h.p.tell("releases lines %v of %s: %v", lines, ref, err)
	if errors.Is(err, errJournal) {
		r.note(func() { r.excuseLines(ref, lines) })
	}
	return err
}

func (h *hand) Deliver(ctx context.Context, owner, ref string, lines []int) error {
	r := h.p.w.record
	h.p.tell("delivers lines %v of %s", lines, ref)
	return h.do("deliver", func() error {
		err := h.Store.Deliver(ctx, owner, ref, lines)
		if err == nil {
			r.note(func() { r.delivered(h.p, ref, lines) })
		}
		return err
	})
}

func (h *hand) Abandon(ctx context.Context, owner, ref string) (done bool, err error) {
	err = h.do("abandon", func() (err error) {
		if done, err = h.Store.Abandon(ctx, owner, ref); done {
			r := h.p.w.record
			r.note(func() { r.abandoned[ref] = true })
		}
		return err
	})
	return done && err == nil, err
}

func (h *hand) Owners(ctx context.Context) (owners []journal.Owner, err error) {
	err = h.do("owners", func() (err error) {
		owners, err = h.Store.Owners(ctx)
		return err
	})
	return owners, err
}

func (h *hand) Batches(ctx context.Context, f journal.Filter) (found []journal.Batch, err error) {
	err = h.do("batches", func() (err error) {
		found, err = h.Store.Batches(ctx, f)
		return err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func (h *hand) Forget(ctx context.Context, ended, begun time.Duration) (int, error) {
	if h.p.isDead() {
		return 0, errDead
	}
	before := h.p.w.known()
	n, err := h.Store.Forget(ctx, ended, begun)
	if n > 0 {
		h.p.w.noteForgotten(before, ended)
	}
	return n, err
}

// noteForgotten lets lines that the journal has forgotten be paid for again:
// nobody came back for them in time.
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
			w.tell("the journal forgets %s %q, with %d open lines", b.Ref, b.BatchID, b.Open)
			if b.State != journal.Ended || time.Since(b.Ended) < ended {
				w.forgot(b)
				continue
			}
			w.record.excuseUndelivered(b.Ref)
		}
	})
}

// forgot says that a batch was forgotten too early, unless it was discarded.
func (w *world) forgot(b journal.Batch) {
	if w.record.discarded[b.Ref] == "" {
		w.wrong("the journal forgets %s %q too early: %s, ended %v", b.Ref, b.BatchID, b.State, b.Ended)
	}
}

// A record is what processes told the journal, for the checks.
type record struct {
	mu        sync.Mutex
	lines     map[string][]journal.Line // by ref
	by        map[string]*replica       // who began it, by ref
	files     map[string]string         // refs, by input file
	ids       map[string]string         // refs, by batch id
	ended     map[string]bool           // refs
	discarded map[string]string         // refs, and by whom
	abandoned map[string]bool           // refs of batches to be cancelled, and ids of those a cancel was sent for
	told      map[lineID][]*replica     // who said that a line was delivered, by ref and custom id
	prints    map[string]journal.Hash   // by custom id
	blind     map[string]bool           // custom ids of lines the journal may not know
	excused   map[journal.Hash]int      // lines that may be paid for once more
	troubles  atomic.Int64
}

func newRecord() *record {
	return &record{
		lines: make(map[string][]journal.Line), by: make(map[string]*replica), files: make(map[string]string), ids: make(map[string]string),
		ended: make(map[string]bool), discarded: make(map[string]string), abandoned: make(map[string]bool), told: make(map[lineID][]*replica),
		prints: make(map[string]journal.Hash), blind: make(map[string]bool), excused: make(map[journal.Hash]int),
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
		r.prints[l.CustomID] = l.Print
	}
}

func (r *record) advanced(ref string, s journal.Step) {
	if s.InputFileID != "" {
		r.files[s.InputFileID] = ref
	}
	if s.BatchID != "" {
		r.ids[s.BatchID] = ref
	}
	r.ended[ref] = r.ended[ref] || s.State == journal.Ended
}

func (r *record) delivered(by *replica, ref string, lines []int) {
	for _, n := range lines {
		if n < len(r.lines[ref]) {
			id := lineID{ref, r.lines[ref][n].CustomID}
			r.told[id] = append(r.told[id], by)
		}
	}
}

// toldBy reports whether a process told the journal that it handed out a line.
func (r *record) toldBy(p *replica, id lineID) bool {
	return slices.Contains(r.told[lineID{r.ids[id.batch], id.custom}], p)
}

// beganBy is the process that wrote a batch down.
func (r *record) beganBy(ref string) *replica {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.by[ref]
}

// lineOf finds a line of the batch with one of these prints.
func (r *record) lineOf(ref string, prints []journal.Hash) (journal.Line, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, l := range r.lines[ref] {
		if slices.Contains(prints, l.Print) {
			l.N = n
			return l, true
		}
	}
	return journal.Line{}, false
}

// excuse lets the lines of a batch be paid for once more: the journal may not
// know of them, or not how far they got.
func (r *record) excuse(ref string) {
	for n := range r.lines[ref] {
		r.excuseLines(ref, []int{n})
	}
}

func (r *record) excuseUndelivered(ref string) {
	for n, l := range r.lines[ref] {
		if len(r.told[lineID{ref, l.CustomID}]) == 0 {
			r.excuseLines(ref, []int{n})
		}
	}
}

func (r *record) excuseLines(ref string, lines []int) {
	for _, n := range lines {
		if n < len(r.lines[ref]) {
			l := r.lines[ref][n]
			r.excused[l.Print]++
			r.blind[l.CustomID] = true
		}
	}
}

func (r *record) excusePrints(prints []journal.Hash) {
	for _, p := range prints {
		r.excused[p]++
	}
}
