package autobatcher_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/journal"
)

// A replica is a Transport with a way to the provider and a hand on the
// journal. When it dies both fall silent, at once and in the middle of what
// they do; what it thinks from then on nobody hears.
type replica struct {
	w    *world
	name string
	tr   *autobatcher.Transport

	gone context.Context // ends shortly after its death
	cut  context.CancelFunc
	dead chan struct{}
	die  sync.Once

	fuse   fuse
	lapsed bool // it could not renew its lease in time
	beaten time.Time
	blind  time.Time // until then it does not reach the journal; guarded by mu
	ending atomic.Bool

	mu   sync.Mutex
	luck map[string]dice // decides about its requests, by kind
}

var errDead = errors.New("this process is dead")

// start starts a process that takes calls.
func (w *world) start(name string) *replica {
	ctx, cut := context.WithCancel(context.Background())
	p := &replica{w: w, name: name, dead: make(chan struct{}), gone: ctx, cut: cut, luck: make(map[string]dice)}
	o := w.options
	o.Base = &way{p: p}
	if w.mutant.base != nil {
		o.Base = w.mutant.base(o.Base)
	}
	if w.journal {
		o.Journal = &hand{Store: w.store, p: p}
		if w.mutant.store != nil {
			o.Journal = w.mutant.store(w, o.Journal)
		}
	}
	if *oneSeed != 0 {
		o.Logger = slog.New(slog.NewTextHandler(teller{p}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var err error
	if p.tr, err = autobatcher.New(o); err != nil {
		w.wrong("New: %v", err)
	}
	w.tally.starts.Add(1)
	w.tell("%s starts", name)
	if w.recovers {
		w.recoverAll(p)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.up, w.all = append(w.up, p), append(w.all, p)
	return p
}

// recoverAll lets a process resume the batches of all keys.
func (w *world) recoverAll(p *replica) {
	for _, key := range w.keys {
		if err := p.tr.Recover(w.srv.URL, http.Header{"Authorization": {"Bearer " + key}}); err != nil && !p.isDead() {
			w.wrong("Recover: %v", err)
		}
	}
}

// A teller makes a process's log part of the story.
type teller struct{ p *replica }

func (t teller) Write(text []byte) (int, error) {
	_, text2, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	t.p.w.tell("  %s: %s", t.p.name, text2)
	return len(text), nil
}

func (p *replica) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

func (p *replica) crash() {
	p.die.Do(func() {
		p.w.tell("%s CRASHES", p.name)
		p.w.tally.crashes.Add(1)
		p.leave()
		close(p.dead)
		go p.decay()
	})
}

// decay ends what is left of a process. What was answered in the instant of
// its death still arrives, since a client reads what is in its socket.
func (p *replica) decay() {
	time.Sleep(time.Millisecond)
	p.cut()
	p.conclude(func() { p.tr.Close() })
}

// conclude ends the Transport, once: a bubble cannot wait for another goroutine
// that is inside Close, since a mutex is in the way.
func (p *replica) conclude(f func()) {
	if p.ending.CompareAndSwap(false, true) {
		f()
	}
}

// leave takes the process off the load balancer.
func (p *replica) leave() {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.w.up = slices.DeleteFunc(p.w.up, func(other *replica) bool { return other == p })
}

// liveFor waits for that long, or until the process has died by itself, or
// until all clients are done.
func (p *replica) liveFor(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.dead:
	case <-p.w.over:
	}
}

// end ends the process in one way or another.
func (p *replica) end(d dice) {
	w := p.w
	how := d.IntN(4)
	if d.chance(0.5) {
		p.leave()
	} else {
		defer p.leave()
	}
	switch patience := d.of(0, time.Second, d.between(time.Second, w.server.Turnaround)); how {
	case 0, 1:
		p.crash()
	case 2:
		w.tell("%s is closed", p.name)
		w.tally.closes.Add(1)
		p.conclude(func() { p.tr.Close() })
	case 3:
		w.tell("%s is shut down within %v", p.name, patience)
		w.tally.shutdowns.Add(1)
		ctx, cancel := context.WithTimeout(p.gone, patience)
		defer cancel()
		p.conclude(func() { _ = p.tr.Shutdown(ctx) }) // ctx may well have ended
	}
}

// A fuse ends a process at a certain one of its steps: requests to the provider
// and to the journal. The zero fuse never does.
type fuse struct {
	kind  string // of step; "": of any kind
	at    moment
	steps atomic.Int64 // until then
}

// A moment is when, at a step, a process dies.
type moment int

const (
	before moment = iota
	during        // the request is on its way
	after
)

// light sets the fuse.
func (f *fuse) light(d dice) {
	kinds := []string{
		"", "", "POST files", "POST batches", "POST batches", "GET files content", "POST batches cancel", "DELETE files",
		"begin", "advance", "advance", "deliver", "deliver", "take over", "release", "claim", "discard", "abandon",
	}
	f.kind, f.at = kinds[d.IntN(len(kinds))], moment(d.IntN(3))
	steps := 1 + d.Int64N(4)
	if f.kind == "" {
		steps = 1 + d.Int64N(40)
	}
	f.steps.Store(steps)
}

// step reports whether the process still lives at that moment of a step.
func (p *replica) step(kind string, at moment) bool {
	f := &p.fuse
	if f.kind == "" || f.kind == kind {
		if at == before {
			f.steps.Add(-1)
		}
		if at == f.at && f.steps.Load() == 0 {
			p.tell("dies at %q (%d)", kind, at)
			p.crash()
		}
	}
	return !p.isDead()
}

func (p *replica) tell(format string, args ...any) {
	p.w.tell("  "+p.name+": "+format, args...)
}

// decide draws from the luck that a process has with requests of a kind.
func (p *replica) decide(kind string, f func(dice)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, ok := p.luck[kind]
	if !ok {
		d = newDice(p.w.seed, p.name, kind)
		p.luck[kind] = d
	}
	f(d)
}

// A way leads from a process to the provider. What was sent may arrive even
// though its sender has died, or stopped waiting; the answer then does not.
type way struct{ p *replica }

type passage struct {
	there, back time.Duration
	arrives     bool // though its sender has gone
	shuffled    uint64
}

func (v *way) RoundTrip(req *http.Request) (*http.Response, error) {
	var text []byte
	if req.Body != nil {
		var err error
		text, err = io.ReadAll(req.Body)
		req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	kind := kindOf(req)
	if !v.p.step(kind, before) {
		return nil, errDead
	}
	v.p.w.watchCancel(v.p, req)
	sent := req.Clone(context.WithoutCancel(req.Context()))
	sent.Body = io.NopCloser(bytes.NewReader(text))
	done := make(chan *http.Response, 1)
	lost := make(chan error, 1)
	go func() {
		if res, err := v.pass(req.Context(), sent); err != nil {
			lost <- err
		} else {
			done <- res
		}
	}()
	v.p.step(kind, during)
	select {
	case res := <-done:
		if !v.p.step(kind, after) {
			return nil, errDead
		}
		return res, nil
	case err := <-lost:
		return nil, err
	case <-req.Context().Done():
		return nil, req.Context().Err()
	case <-v.p.dead:
		return nil, errDead
	}
}

// pass brings a request to the provider, and its answer back.
func (v *way) pass(sender context.Context, req *http.Request) (*http.Response, error) {
	w := v.p.w
	var how passage
	v.p.decide(kindOf(req), func(d dice) {
		how = passage{d.between(0, w.latency), d.between(0, w.latency), d.chance(0.5), d.Uint64()}
	})
	time.Sleep(how.there)
	if (sender.Err() != nil || v.p.isDead()) && !how.arrives {
		return nil, errDead
	}
	res, err := w.srv.Transport().RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, torn := io.ReadAll(res.Body)
	if !w.server.Manners.PartialResults && strings.HasSuffix(req.URL.Path, "/content") && torn == nil {
		text = shuffle(text, how.shuffled)
	}
	time.Sleep(how.back)
	res.Body = io.NopCloser(io.MultiReader(bytes.NewReader(text), failing{torn}))
	return res, nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err == nil {
		return 0, io.EOF
	}
	return 0, f.err
}

func kindOf(req *http.Request) string {
	kind := req.Method
	for _, word := range []string{"files", "batches", "content", "cancel"} {
		if strings.Contains(req.URL.Path, word) {
			kind += " " + word
		}
	}
	return kind
}

// shuffle puts lines into another order.
func shuffle(text []byte, seed uint64) []byte {
	lines := bytes.SplitAfter(text, []byte("\n"))
	if n := len(lines); n > 0 && len(lines[n-1]) == 0 {
		lines = lines[:n-1]
		newDice(seed).Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	}
	return bytes.Join(lines, nil)
}

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
		w.record.note(func() { w.record.troubles++ })
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

func (h *hand) Heartbeat(ctx context.Context, owner string, lease time.Duration) error {
	w := h.p.w
	if h.p.isDead() {
		return errDead
	}
	fails := false
	if w.trouble > 0 && lease > 0 && h.p.tr != nil && !w.calm.Load() {
		h.p.decide("heartbeat", func(d dice) {
			fails = d.chance(w.trouble)
			if w.cuts && d.chance(0.002) {
				h.p.blind = time.Now().Add(d.between(time.Second, time.Minute))
			}
			fails = fails || time.Now().Before(h.p.blind)
		})
	}
	if fails {
		return errJournal
	}
	h.p.hasLapsed()
	h.p.mu.Lock()
	h.p.beaten = time.Now()
	h.p.mu.Unlock()
	return h.Store.Heartbeat(ctx, owner, lease)
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
	r.note(func() {
		r.began(h.p, b.Ref, lines)
		if err != nil && !h.p.isDead() {
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
	if err != nil && !h.p.isDead() {
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

func (h *hand) Release(ctx context.Context, owner, ref string, lines []int) error {
	r := h.p.w.record
	err := h.do("release", func() error { return h.Store.Release(ctx, owner, ref, lines) })
	if errors.Is(err, errJournal) {
		r.note(func() { r.excuseLines(ref, lines) })
	}
	return err
}

func (h *hand) Deliver(ctx context.Context, owner, ref string, lines []int) error {
	r := h.p.w.record
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

func (h *hand) Forget(ctx context.Context, age time.Duration) (int, error) {
	if h.p.isDead() {
		return 0, errDead
	}
	return h.Store.Forget(ctx, age)
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
	troubles  int
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
