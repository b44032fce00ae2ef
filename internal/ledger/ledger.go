// Package ledger is one Transport's hand on a journal: it holds the lease, and
// decides what happens when the journal fails.
package ledger

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

const (
	// Lease is how long lines stay held after the last sign of life. It is how
	// long the callers of a replica that died may have to wait.
	Lease = 15 * time.Second

	// beat is how often a sign of life is given.
	beat = 3 * time.Second

	// glance is how often the others are looked at while they are waited for.
	glance = beat / 6

	// patience ends a request to the journal.
	patience = 10 * time.Second

	// sweep is how often old batches are forgotten, and sweepPatience how long
	// that may take.
	sweep         = time.Hour
	sweepPatience = 5 * time.Minute

	// lifetime is how long a batch can be of use whose account nobody came back
	// with, so that its end was never seen: the longest completion window, two
	// weeks, and the 30 days for which OpenAI keeps results.
	lifetime = 45 * 24 * time.Hour
)

// ErrFailed is wrapped by the errors of a journal that is required.
var ErrFailed = errors.New("the journal is required, and it failed")

// A Ledger is safe for concurrent use. The methods of a nil Ledger, that of a
// Transport without a journal, do nothing and find nothing.
type Ledger struct {
	store    journal.Store
	owner    string
	key      journal.Hash
	keepFor  time.Duration
	required bool
	lapsed   func()
	log      *slog.Logger

	// turn holds a token. Whoever releases or takes over lines has it, so that
	// a call that comes back finds what its first try has just left.
	turn chan struct{}

	mu    sync.Mutex
	heard time.Time            // when the last sign of life surely arrived
	owed  map[string]*word     // by ref: the last word on a batch, while the journal has not got it
	said  map[string]time.Time // when an error was last logged, by what failed
}

// A word is something the journal is told of a batch again and again, until it
// has heard it.
type word struct {
	what string
	say  func(context.Context) error
}

// Options configure a Ledger.
type Options struct {
	Required bool          // fail rather than go on without the journal
	KeepFor  time.Duration // after which a batch that ended is forgotten
	Logger   *slog.Logger

	// Lapsed is told that the lease had run out, so that what was held is open:
	// Hold and Claim give back what nobody took yet. It must not wait.
	Lapsed func()
}

// Open takes out a lease under a new name.
func Open(store journal.Store, o Options) (*Ledger, error) {
	l := &Ledger{
		store: store, owner: rand.Text(), required: o.Required, keepFor: o.KeepFor, lapsed: o.Lapsed, log: o.Logger,
		turn: make(chan struct{}, 1), owed: make(map[string]*word), said: make(map[string]time.Time),
	}
	l.turn <- struct{}{}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	if l.key, err = store.Key(ctx); err != nil {
		return nil, err
	}
	l.heard = time.Now().Round(0)
	_, err = store.Heartbeat(ctx, l.owner, Lease)
	return l, err
}

// Key keys the hashes that go into the journal.
func (l *Ledger) Key() journal.Hash { return l.key }

// Live gives signs of life until ctx ends.
func (l *Ledger) Live(ctx context.Context) {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			err := l.beat(ctx)
			l.say("heartbeat", err)
			if err == nil {
				l.repeat(ctx, beat)
			}
		case <-ctx.Done():
			return
		}
	}
}

// Sweep forgets what is old until ctx ends.
func (l *Ledger) Sweep(ctx context.Context) {
	l.forget(ctx)
	for sleep(ctx, sweep) {
		l.forget(ctx)
	}
}

// beat renews the lease.
func (l *Ledger) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now().Round(0) // by the wall clock, which goes on while the machine sleeps
	fresh, err := l.store.Heartbeat(ctx, l.owner, Lease)
	if err != nil {
		return err
	}
	l.mu.Lock()
	// A beat that arrived although its answer did not has the news that we lapsed.
	fresh = fresh || time.Now().Round(0).Sub(l.heard) >= Lease
	l.heard = began
	l.mu.Unlock()
	if fresh {
		l.log.Warn("journal: it was out of reach for longer than the lease, so that others may have taken what callers wait for here")
		l.lapsed()
	}
	return nil
}

func (l *Ledger) forget(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sweepPatience)
	defer cancel()
	n, err := l.store.Forget(ctx, l.keepFor, max(l.keepFor, lifetime))
	if n > 0 {
		l.log.Info("journal: forgot batches nobody came back for", "batches", n)
	}
	l.say("forget", err)
}

// leavePatience is how long a process that ends waits for the journal.
const leavePatience = 5 * time.Second

// Leave ends the lease: what this owner holds is open at once.
func (l *Ledger) Leave() {
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leavePatience)
	defer cancel()
	l.repeat(ctx, leavePatience/2)
	_, err := l.store.Heartbeat(ctx, l.owner, 0)
	l.say("leave", err)
}

// Renew extends the lease for a Close that takes its time.
func (l *Ledger) Renew() {
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leavePatience/2)
	defer cancel()
	l.say("heartbeat", l.beat(ctx))
}

// sayInterval is how often the same trouble is told.
const sayInterval = time.Minute

// say logs an error, but for the end of a context.
func (l *Ledger) say(what string, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	level := slog.LevelError
	l.mu.Lock()
	if time.Since(l.said[what]) < sayInterval {
		level = slog.LevelDebug
	} else {
		l.said[what] = time.Now()
	}
	l.mu.Unlock()
	l.log.Log(context.Background(), level, "journal: "+what+" failed", "error", err)
}

// do makes a request to the journal, again after the lease had run out.
func (l *Ledger) do(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := f(ctx)
	if errors.Is(err, journal.ErrLapsed) {
		if err = l.beat(ctx); err == nil {
			err = f(ctx)
		}
	}
	return err
}

// Begin writes down a batch that is about to be uploaded. It reports whether
// it did; the error is not nil only where the journal is required.
func (l *Ledger) Begin(ctx context.Context, b journal.Batch, lines []journal.Line) (bool, error) {
	if l == nil {
		return false, nil
	}
	b.Owner = l.owner
	err := l.do(ctx, func(ctx context.Context) error { return l.store.Begin(ctx, b, lines) })
	if err != nil { // it may have been written down all the same
		l.owe(b.Ref, l.discard(b.Ref))
	}
	return err == nil, l.weigh("begin", err)
}

// weigh logs an error, and returns it where the journal is required.
func (l *Ledger) weigh(what string, err error) error {
	if err == nil {
		return nil
	}
	l.say(what, err)
	if l.required {
		return fmt.Errorf("%w: %s: %w", ErrFailed, what, err)
	}
	return nil
}

// Advance writes down how far a batch got. The error is not nil where the
// journal is required and failed, and where it has given the batch to another.
func (l *Ledger) Advance(ctx context.Context, ref string, s journal.Step) error {
	if l == nil || ref == "" {
		return nil
	}
	err := l.do(ctx, func(ctx context.Context) error { return l.store.Advance(ctx, l.owner, ref, s) })
	if errors.Is(err, journal.ErrNotOwner) || errors.Is(err, journal.ErrNoBatch) {
		return fmt.Errorf("%w: %w", ErrTaken, err)
	}
	return l.weigh("advance", err)
}

// ErrTaken is wrapped by the error of Advance for a batch that another owner
// has taken: this one's lease had run out.
var ErrTaken = errors.New("the batch was taken by another process")

// Runs writes down that a batch was created, or will not be cancelled after all.
func (l *Ledger) Runs(ctx context.Context, ref, batchID string) {
	l.insist(ctx, ref, &word{"advance", func(ctx context.Context) error {
		return l.store.Advance(ctx, l.owner, ref, journal.Step{State: journal.Running, BatchID: batchID})
	}})
}

// End writes down that a batch has ended.
func (l *Ledger) End(ctx context.Context, ref, batchID, status string) {
	l.insist(ctx, ref, &word{"end", func(ctx context.Context) error {
		return l.store.Advance(ctx, l.owner, ref, journal.Step{State: journal.Ended, BatchID: batchID, Status: status})
	}})
}

// Discard forgets a batch that never was created.
func (l *Ledger) Discard(ctx context.Context, ref string) {
	l.insist(ctx, ref, l.discard(ref))
}

func (l *Ledger) discard(ref string) *word {
	return &word{"discard", func(ctx context.Context) error { return l.store.Discard(ctx, l.owner, ref) }}
}

// insist tells the journal what became of a batch, unless another carries it on
// who will see for himself. If it cannot be told now, it is with the next sign of
// life that arrives, since other replicas may wait for it. Of several words on a
// batch the last is told.
func (l *Ledger) insist(ctx context.Context, ref string, w *word) {
	if l == nil || ref == "" {
		return
	}
	l.mu.Lock()
	_, behind := l.owed[ref]
	l.mu.Unlock()
	if behind || !l.tell(ctx, ref, w) {
		l.owe(ref, w)
	}
}

// owe lets the word be told with the next sign of life.
func (l *Ledger) owe(ref string, w *word) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owed[ref] = w
}

// tell reports whether the journal has heard the word, or will not hear it of
// this owner.
func (l *Ledger) tell(ctx context.Context, ref string, w *word) bool {
	err := l.do(ctx, func(ctx context.Context) error {
		err := w.say(ctx)
		if !errors.Is(err, journal.ErrNotOwner) {
			return err
		}
		if mine, err := l.store.Claim(ctx, l.owner, ref); err != nil || !mine {
			return err
		}
		return w.say(ctx) // nobody had it
	})
	if heard(err) {
		return true
	}
	l.say(w.what, err)
	return false
}

// heard reports whether telling the same again would be of no use.
func heard(err error) bool {
	return err == nil || errors.Is(err, journal.ErrNotOwner) || errors.Is(err, journal.ErrNoBatch)
}

// repeat tells the journal what it has not heard yet, as much as there is time for.
func (l *Ledger) repeat(ctx context.Context, within time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	l.mu.Lock()
	owed := maps.Clone(l.owed)
	l.mu.Unlock()
	for ref, w := range owed {
		if ctx.Err() != nil || !l.tell(ctx, ref, w) {
			return
		}
		l.mu.Lock()
		if l.owed[ref] == w {
			delete(l.owed, ref)
		}
		l.mu.Unlock()
	}
}

// Claim makes this owner carry the batch on if nobody does, and reports
// whether it does now.
func (l *Ledger) Claim(ctx context.Context, ref string) (mine bool, err error) {
	err = l.do(ctx, func(ctx context.Context) (err error) {
		mine, err = l.store.Claim(ctx, l.owner, ref)
		return err
	})
	if !heard(err) {
		l.say("claim", err)
	}
	return mine, err
}

// Deliver notes that lines have been answered for good. It reports whether the
// journal has heard it; if not, it is to be repeated.
func (l *Ledger) Deliver(ctx context.Context, ref string, lines []int) bool {
	if l == nil || ref == "" || len(lines) == 0 {
		return true
	}
	err := l.do(ctx, func(ctx context.Context) error { return l.store.Deliver(ctx, l.owner, ref, lines) })
	l.say("deliver", err)
	return heard(err)
}

// Hold holds lines again after the lease had run out, those of them that choose
// returns and nobody took meanwhile, and carries their batch on if nobody does.
// It is to be repeated, if it fails, or since those who took lines may leave them
// again. The error is ErrNoBatch if the journal does not have the batch.
func (l *Ledger) Hold(ctx context.Context, ref string, choose func() []int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := l.Claim(ctx, ref); err != nil {
		return err
	}
	if !l.take(ctx) {
		return context.Cause(ctx)
	}
	defer l.give()
	lines := choose()
	if len(lines) == 0 {
		return nil
	}
	err := l.do(ctx, func(ctx context.Context) error { return l.store.Hold(ctx, l.owner, ref, lines) })
	l.say("hold", err)
	return err
}

// Release makes lines open whose callers have gone: those that choose returns.
// From then on, and not before, TakeOver finds them. It reports whether the
// journal has heard it; if not, it is to be repeated with the same lines.
func (l *Ledger) Release(ctx context.Context, ref string, choose func() []int) bool {
	if l == nil || ref == "" {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if !l.take(ctx) {
		return false
	}
	defer l.give()
	lines := choose()
	if len(lines) == 0 {
		return true
	}
	err := l.do(ctx, func(ctx context.Context) error { return l.store.Release(ctx, l.owner, ref, lines) })
	l.say("release", err)
	return heard(err)
}

// Abandon marks a batch that nobody waits for, anywhere, as one to be
// cancelled, and reports whether it is one. Without a journal it always is.
func (l *Ledger) Abandon(ctx context.Context, ref string) bool {
	if l == nil || ref == "" {
		return true
	}
	var abandoned bool
	err := l.do(ctx, func(ctx context.Context) (err error) {
		abandoned, err = l.store.Abandon(ctx, l.owner, ref)
		return err
	})
	if errors.Is(err, journal.ErrNotOwner) {
		return false // its owner sees to it
	}
	l.say("abandon", err)
	return abandoned
}

// Look returns what the journal knows of a batch. The error is ErrNoBatch if
// that is nothing.
func (l *Ledger) Look(ctx context.Context, ref string) (journal.Batch, error) {
	if l == nil || ref == "" {
		return journal.Batch{}, journal.ErrNoBatch
	}
	var found []journal.Batch
	err := l.do(ctx, func(ctx context.Context) (err error) {
		found, err = l.store.Batches(ctx, journal.Filter{Ref: ref})
		return err
	})
	l.say("look", err)
	switch {
	case err != nil:
		return journal.Batch{}, err
	case len(found) == 0:
		return journal.Batch{}, journal.ErrNoBatch
	}
	return found[0], nil
}

// Settled reports whether every line of a batch was delivered, so that its
// files may go.
func (l *Ledger) Settled(ctx context.Context, ref string) bool {
	if l == nil || ref == "" {
		return true
	}
	b, err := l.Look(ctx, ref)
	return err == nil && b.Delivered == b.Lines
}

// Orphans lists the batches that have not ended and that nobody carries on.
func (l *Ledger) Orphans(ctx context.Context) []journal.Batch {
	var found []journal.Batch
	l.say("list", l.do(ctx, func(ctx context.Context) (err error) {
		found, err = l.store.Batches(ctx, journal.Filter{Unfinished: true})
		return err
	}))
	return slices.DeleteFunc(found, func(b journal.Batch) bool { return b.Owner != "" || b.State == journal.Ended })
}

// TakeOver finds lines that earlier tries of the same calls left behind, here,
// in a process that died or at another replica, and hands them to place before
// anybody can release them again. place returns the prints of those that were not
// what it wanted: others are looked for. Before it comes back with less than was
// asked for, every other owner must have given a sign of life, or have lapsed, and
// a journal that fails is asked again, as it is where tell, which is called first
// each time, could not tell it what callers left here: to wait costs seconds, and
// another line costs money. The error is not nil only where the journal is required.
func (l *Ledger) TakeOver(ctx context.Context, payer journal.Hash, prints []journal.Hash, tell func(context.Context) bool, place func([]journal.Taken) []journal.Hash) error {
	if l == nil {
		return nil
	}
	began := time.Now()
	for len(prints) > 0 {
		told := tell(ctx)
		taken, misplaced, err := l.takeOver(ctx, payer, prints, place)
		again := time.Since(began) < failPatience
		if err != nil {
			if again && sleep(ctx, glance) {
				continue
			}
			return l.weigh("take over", err)
		}
		prints = append(missing(prints, taken), misplaced...)
		switch {
		case len(prints) == 0, len(misplaced) > 0:
		case !told && again && sleep(ctx, glance):
		case !l.lapse(ctx, began):
			return nil
		}
	}
	return nil
}

// failPatience is how long a journal that fails is asked for lines.
const failPatience = Lease

// lapse waits until one of the other owners lapses that have given no sign of
// life since began, and reports whether one did. It does not when all of them
// live, or there are none.
func (l *Ledger) lapse(ctx context.Context, began time.Time) bool {
	var waitedFor map[string]bool
	for {
		silent, all, err := l.owners(ctx, began)
		if err == nil {
			for name := range waitedFor {
				if !all[name] {
					return true
				}
			}
			waitedFor = silent
		}
		if err == nil && len(silent) == 0 || err != nil && time.Since(began) > failPatience || !sleep(ctx, glance) {
			return false
		}
	}
}

// owners are the other owners that have not lapsed: those that have given no sign
// of life since began, and all.
func (l *Ledger) owners(ctx context.Context, began time.Time) (silent, all map[string]bool, err error) {
	age := time.Since(began) // before it is asked, since an answer can take its time
	var list []journal.Owner
	err = l.do(ctx, func(ctx context.Context) (err error) {
		list, err = l.store.Owners(ctx)
		return err
	})
	l.say("owners", err)
	silent, all = make(map[string]bool), make(map[string]bool)
	for _, o := range list {
		if o.Name == l.owner {
			continue
		}
		all[o.Name] = true
		if o.Silent >= age {
			silent[o.Name] = true
		}
	}
	return silent, all, err
}

func (l *Ledger) takeOver(ctx context.Context, payer journal.Hash, prints []journal.Hash, place func([]journal.Taken) []journal.Hash) (taken []journal.Taken, misplaced []journal.Hash, err error) {
	wait, cancel := context.WithTimeout(ctx, patience) // for a turn, which many may want while the journal hangs
	defer cancel()
	if !l.take(wait) {
		return nil, nil, context.Cause(wait)
	}
	defer l.give()
	err = l.do(ctx, func(ctx context.Context) (err error) {
		taken, err = l.store.TakeOver(ctx, l.owner, payer, prints)
		return err
	})
	if err == nil && len(taken) > 0 {
		misplaced = place(taken)
	}
	return taken, misplaced, err
}

// missing is prints without those of the lines taken, each once.
func missing(prints []journal.Hash, taken []journal.Taken) []journal.Hash {
	have := make(map[journal.Hash]int)
	for _, t := range taken {
		for _, line := range t.Lines {
			have[line.Print]++
		}
	}
	var rest []journal.Hash
	for _, print := range prints { //nolint:revive // what else to call a print
		if have[print]--; have[print] < 0 {
			rest = append(rest, print)
		}
	}
	return rest
}

func (l *Ledger) take(ctx context.Context) bool {
	select {
	case <-l.turn:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *Ledger) give() { l.turn <- struct{}{} }

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
