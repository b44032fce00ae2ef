package autobatcher

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/ledger"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/payer"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

const (
	// gonePatience is how long a batch may be unknown, or our credential
	// refused, before it is given up: a fresh batch may not be visible yet, and
	// Doubleword says 404 for any trouble with its storage.
	gonePatience = 10 * time.Minute

	// overduePatience is how long a batch may run past its completion window.
	// OpenAI expires it there; Doubleword goes on working.
	overduePatience = 24 * time.Hour

	// cancelPatienceUpstream bounds "cancelling": OpenAI says up to ten
	// minutes, and a Doubleword batch can stay so for ever.
	cancelPatienceUpstream = 20 * time.Minute

	// cancelRetries is how long cancelling is tried.
	cancelRetries = 10 * time.Minute

	// maxPollWait bounds the wait after a failed look at a batch.
	maxPollWait = time.Minute
)

// errOverdue is why a batch that never ends is given up.
var errOverdue = errors.New("it ran a day past its completion window")

// watch looks at the batch until it has ended, reads what results there are
// already, and cancels the batch when nobody waits for it any more. The error
// is why the batch was given up.
func (b *batch) watch() error {
	var trouble troubles
	defer b.lookout().Watch()()
	wait := b.pollInterval()
	if b.past != "" {
		wait = 0 // it has run for a while
	}
	limit := b.created.Add(windowLength(b.key.window) + overduePatience)
	for {
		if err := b.pause(wait); err != nil {
			return err
		}
		state, err := b.lookout().Look(b.t.ctx, b.api, b.id, b.pollInterval())
		if wait, err = trouble.next(err, b.pollInterval()); err != nil {
			return err
		}
		if state.ID != "" {
			b.observe(state)
			if b.ended() {
				b.closeToOthers()
				return nil
			}
			b.harvestPartial()
			if time.Now().After(limit) {
				return errOverdue
			}
		}
	}
}

// A long batch is looked at less often: every 60th of its age, but at least
// once in maxPollWait.
const pollShare = 60

// pollInterval is how long to wait between two looks.
func (b *batch) pollInterval() time.Duration {
	slower := min(time.Since(b.created)/pollShare, maxPollWait)
	return max(b.t.opts.PollInterval, b.profile.MinPoll, slower)
}

// lookout is shared by the batches of one account, so that many of them are
// looked at with one listing.
func (b *batch) lookout() *batchapi.Lookout {
	return b.t.lookouts.Of(b.key.account(), batchapi.NewLookout)
}

// pause waits until the next look at the batch is due, and cancels the batch
// meanwhile if it was abandoned.
func (b *batch) pause(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return nil
		case <-b.abandoned:
			b.cancelIfLonely()
		case <-b.t.ctx.Done():
			return context.Cause(b.t.ctx)
		}
	}
}

// cancelIfLonely cancels a batch that nobody waits for, here or at another
// replica.
func (b *batch) cancelIfLonely() {
	b.writeNotes(b.t.lasting)
	if !b.isLonely() {
		return
	}
	if b.t.ledger.Abandon(b.t.ctx, b.ref) {
		b.t.log.Info("nobody waits for the batch, cancelling it", "batch", b.id)
		b.cancelUpstream(b.t.ctx)
		return
	}
	b.t.mu.Lock() // another replica's callers wait; they may leave, too
	defer b.t.mu.Unlock()
	b.lonely = nil
	b.watchLonely()
}

// observe notes what the provider says of the batch, and tells what changed.
func (b *batch) observe(state batchapi.Batch) {
	before := b.state
	b.state = state
	b.output.named(state.OutputFileID)
	b.errors.named(state.ErrorFileID)
	if state.Status == "cancelling" && b.cancelling.IsZero() {
		b.cancelling = time.Now()
		b.doom()
	}
	if !b.seen || before.Status != state.Status || before.Counts != state.Counts {
		b.seen = true
		b.emit(BatchProgress)
	}
}

// ended reports whether nothing more is to be expected of the batch.
func (b *batch) ended() bool {
	return b.state.Terminal() ||
		b.state.Status == "cancelling" && time.Since(b.cancelling) > cancelPatienceUpstream
}

// troubles are the failed looks at a batch since the last that succeeded.
type troubles struct {
	since time.Time
	tries int
}

// next is the wait until the next look, given how this one went. It returns
// the error where looking again is pointless: the batch is gone, or the
// credential is.
func (t *troubles) next(err error, interval time.Duration) (time.Duration, error) {
	var failed *batchapi.Error
	if err == nil {
		*t = troubles{}
		return interval, nil
	}
	if !errors.As(err, &failed) {
		return 0, err
	}
	if t.tries == 0 {
		t.since = time.Now()
	}
	t.tries++
	switch {
	case failed.RateLimited():
		return max(batchapi.RateLimitWait(failed), interval), nil
	case failed.Transient():
		return max(batchapi.Backoff(t.tries), failed.RetryAfter, min(interval, maxPollWait)), nil
	case time.Since(t.since) >= gonePatience:
		return 0, err
	}
	return max(interval, batchapi.Backoff(t.tries)), nil
}

// windowLength reads a completion window such as "24h" or "7d"; one that says
// no length counts as a day.
func windowLength(window string) time.Duration {
	if d, err := time.ParseDuration(window); err == nil && d > 0 {
		return d
	}
	if days, err := strconv.Atoi(strings.TrimSuffix(window, "d")); err == nil && days > 0 && days < 366 {
		return time.Duration(days) * 24 * time.Hour
	}
	return 24 * time.Hour
}

// lost ends a batch that could not be watched to its end.
func (b *batch) lost(err error) {
	if b.t.ctx.Err() != nil {
		return // Close tells the callers
	}
	if errors.Is(err, errOverdue) && !b.readResults() {
		return // what there is of results was paid for
	}
	b.t.log.Error("batch given up", "batch", b.id, "error", err)
	code := "batch_lost"
	switch {
	case errors.Is(err, errOverdue):
		code = "batch_overdue"
	case errors.Is(err, batchapi.ErrUnsure):
		code = "batch_create_unknown"
	}
	b.closeToOthers()
	b.emit(BatchTerminal)
	a := failure(http.StatusFailedDependency, code, strings.TrimSuffix("batch "+b.id, " ")+" was given up: "+err.Error())
	if b.paidUnread() {
		a = b.unreadable()
	} else if failed := (*batchapi.Error)(nil); errors.As(err, &failed) && weigh(err) == refused {
		a.reopen = true // it runs, for a credential that may be good again
	}
	b.giveUpRest(a)
	b.respawn(b.takeAgain(), 0)
	b.writeNotes(b.t.lasting)
	if b.id != "" {
		b.t.ledger.End(b.t.ctx, b.ref, b.id, code)
	}
}

// cancelUpstream asks the provider to cancel the batch, again where that may
// help, and tells how it went. From then on nobody takes over its lines.
func (b *batch) cancelUpstream(ctx context.Context) {
	if b.doom() {
		return // it was asked before
	}
	b.emit(BatchCancelRequested)
	r := batchapi.Retries{Patience: cancelRetries}
	for {
		err := b.api.Cancel(ctx, b.id)
		if err == nil {
			b.emit(BatchCancelledUpstream)
			return
		}
		wait, again := r.Next(err)
		again = again && batchapi.Sleep(ctx, wait) == nil
		if b.endedMeanwhile(ctx) {
			b.emitError(BatchCancelFailed, errEnded)
			return
		}
		if !again {
			b.t.log.Warn("batch could not be cancelled", "batch", b.id, "error", err)
			b.emitError(BatchCancelFailed, err)
			b.runOn()
			return
		}
	}
}

// errEnded is why a batch is not cancelled after all. At Doubleword that would
// make a batch that has completed a cancelled one.
var errEnded = errors.New("it has ended meanwhile")

// endedMeanwhile reports whether somebody else has seen the batch's end.
func (b *batch) endedMeanwhile(ctx context.Context) bool {
	past, err := b.t.ledger.Look(ctx, b.ref)
	return err == nil && past.State == journal.Ended
}

// runOn takes back that the batch would be cancelled: it runs, and costs, and so
// its lines are worth coming back to.
func (b *batch) runOn() {
	b.t.mu.Lock()
	b.doomed = false
	b.t.mu.Unlock()
	b.t.ledger.Runs(b.t.lasting, b.ref, b.id)
}

// doom marks the batch as one that will be cancelled, and reports whether it
// was marked before.
func (b *batch) doom() (before bool) {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	before = b.doomed
	b.doomed = true
	return before
}

// journalBegin writes the batch down before anything of it can be paid for.
func (b *batch) journalBegin() error {
	if b.t.ledger == nil {
		return nil
	}
	lines := make([]journal.Line, len(b.calls))
	for i, c := range b.calls {
		lines[i] = journal.Line{CustomID: c.ID, Print: journal.Hash(c.print)}
	}
	upstream, _, _ := strings.Cut(b.key.base, "?")
	ref := rand.Text()
	ok, err := b.t.ledger.Begin(b.t.ctx, journal.Batch{
		Ref: ref, Payer: b.t.payerHash(b.key), Upstream: upstream, Provider: b.profile.Name,
		Endpoint: b.path, Window: b.key.window, Models: b.models,
	}, lines)
	if err != nil || !ok {
		return err
	}
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	b.ref = ref
	b.t.byRef[ref] = b
	for _, c := range b.open {
		if c.waiter == nil {
			b.noteLeft(c) // while the journal did not know the line yet
		}
	}
	return nil
}

// payerHash is the key's account as the journal knows it.
func (t *Transport) payerHash(k key) journal.Hash {
	mac := hmac.New(sha256.New, t.secret[:])
	mac.Write([]byte(k.account()))
	return journal.Hash(mac.Sum(nil))
}

// rejoin lets calls ride in batches that the journal knows: those of earlier
// tries of theirs, in this process, in one that died, or at another replica.
func (b *batch) rejoin() error {
	if b.t.ledger == nil {
		return nil
	}
	own := account{b.key, b.profile, b.suffix}
	b.t.recover(own)
	prints := make([]journal.Hash, len(b.calls))
	for i, c := range b.calls {
		prints[i] = journal.Hash(c.print)
	}
	err := b.t.ledger.TakeOver(b.t.ctx, b.t.payerHash(b.key), prints, b.t.writeUntold, func(taken []journal.Taken) []journal.Hash { return b.spread(own, taken) })
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	b.number()
	return err
}

// spread lets calls wait for lines that were taken over. It returns the prints of
// those that callers here wait for already: we lost them with our lease, and have
// them again now.
func (b *batch) spread(own account, taken []journal.Taken) (ours []journal.Hash) {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	for _, part := range taken {
		var lines []journal.Line
		awaited := b.t.awaited(part.Batch.Ref)
		for _, l := range part.Lines {
			if awaited(l.CustomID) {
				ours = append(ours, l.Print)
			} else {
				lines = append(lines, l)
			}
		}
		if len(lines) > 0 {
			b.moveTo(b.t.batchOf(own, part.Batch), lines)
		}
	}
	return ours
}

// An account is what it takes to resume a batch: what any of the account's calls
// has.
type account struct {
	key     key
	profile *provider.Profile
	suffix  string
}

// batchOf is the batch of ours that the journal's is, or a new one that
// resumes it. The caller holds t.mu.
func (t *Transport) batchOf(of account, past journal.Batch) *batch {
	if b := t.byRef[past.Ref]; b != nil {
		return b
	}
	b := t.newBatch(&call{key: of.key, profile: of.profile, suffix: of.suffix, Line: line.Line{URL: past.Endpoint}})
	b.key.window = past.Window
	b.ref, b.past, b.id = past.Ref, past.State, past.BatchID
	b.state = batchapi.Batch{ID: past.BatchID, InputFileID: past.InputFileID}
	b.models, b.created = past.Models, cmp.Or(past.Created, past.Began)
	b.open = make(map[string]*call)
	b.sealed = true
	close(b.submitted)
	t.byRef[past.Ref] = b
	t.work.Go(b.resume)
	return b
}

// moveTo lets calls of b wait for lines of another batch that are the same
// calls'. The caller holds t.mu.
func (b *batch) moveTo(other *batch, lines []journal.Line) {
	waiting := make(map[journal.Hash][]*call) // of each print, in the order they came
	for _, c := range b.calls {
		if b.open[c.ID] == c {
			waiting[journal.Hash(c.print)] = append(waiting[journal.Hash(c.print)], c)
		}
	}
	for _, l := range lines {
		alike := waiting[l.Print]
		if len(alike) == 0 { // taken for a call that was settled meanwhile
			other.freeing = append(other.freeing, &call{Line: line.Line{ID: l.CustomID}, place: l.N})
			other.tellJournal()
			continue
		}
		if first := other.open[l.CustomID]; first != nil {
			first.ended, first.open = true, true // its line is c's now, and not to be released
			b.t.forget(first)
		}
		c := alike[0]
		waiting[l.Print] = alike[1:]
		delete(b.open, c.ID)
		if c.waiter != nil {
			b.waiting--
		}
		c.ID, c.batch, c.place, c.open = l.CustomID, other, l.N, false
		other.open[c.ID] = c
		other.freed = max(other.freed-1, 0)
		other.reread = true
		if c.waiter != nil {
			other.waiting++
		} else {
			other.noteLeft(c)
		}
		other.watchLonely()
	}
}

// awaited returns what tells whether a caller waits here for a line of a batch
// that the journal knows. More than one of ours can be that batch: one may be past
// reading its results when the next callers come back. The caller holds t.mu, now
// and when it asks.
func (t *Transport) awaited(ref string) func(customID string) bool {
	var same []*batch
	for b := range t.batches {
		if b.ref == ref {
			same = append(same, b)
		}
	}
	return func(customID string) bool {
		return slices.ContainsFunc(same, func(b *batch) bool {
			c := b.open[customID]
			return c != nil && c.waiter != nil
		})
	}
}

// recover watches the batches again that the account has left open, when it is
// first heard of, and from then on those that other replicas leave when they die.
func (t *Transport) recover(of account) {
	payer := t.payerHash(of.key)
	t.mu.Lock()
	_, known := t.accounts[payer]
	t.accounts[payer] = of
	t.mu.Unlock()
	if !known {
		t.adoptOrphans()
	}
}

// adoptOrphans resumes the batches that nobody carries on, as far as their
// account's credential is known here.
func (t *Transport) adoptOrphans() {
	for _, past := range t.ledger.Orphans(t.ctx) {
		t.mu.Lock()
		of, known := t.accounts[past.Payer]
		t.mu.Unlock()
		if !known {
			continue
		}
		if mine, _ := t.ledger.Claim(t.ctx, past.Ref); mine {
			t.mu.Lock()
			t.batchOf(of, past)
			t.mu.Unlock()
		}
	}
}

// tend does again, as long as the Transport lives, what may be of use later: the
// journal may fail at first, a replica that dies holds on to its lines until its
// lease runs out, and one that took lines of ours may leave them.
func (t *Transport) tend() {
	for batchapi.Sleep(t.ctx, ledger.Lease) == nil {
		t.writeUntold(t.ctx)
		t.holdAgain()
		t.adoptOrphans()
	}
}

// Recover resumes, with a journal, the batches that an earlier process left
// running: those of the account that header (Authorization, and whatever else
// says who pays) and baseURL ("https://api.openai.com/v1", with the query that
// its calls have) stand for. Without it they are resumed by the account's first
// call. What is asked of the provider runs in the background; errors are logged.
func (t *Transport) Recover(baseURL string, header http.Header) error {
	u, err := url.Parse(baseURL)
	if err != nil {
		return err
	}
	if t.ledger == nil {
		return nil
	}
	base := strings.TrimSuffix(u.EscapedPath(), "/")
	of := account{key{base: upstreamOf(u, base), payer: payer.Of(header)}, t.profileFor(u, base), endpoints[0]}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ending {
		return ErrClosed
	}
	t.work.Go(func() { t.recover(of) })
	return nil
}

// resume is the life of a batch that another process, or another replica,
// brought into the world.
func (b *batch) resume() {
	defer b.finish()
	var err error
	if b.api, err = b.client(); err != nil {
		b.lost(err)
		return
	}
	if !b.settlePast() {
		return
	}
	b.t.log.Info("batch resumed", "batch", b.id)
	b.emit(BatchResumed)
	if b.past == journal.Cancelling {
		b.cancelUpstream(b.t.ctx)
	}
	if err := b.watch(); err != nil {
		b.lost(err)
		return
	}
	if b.rejected() {
		return
	}
	b.harvest()
}

// How long the journal is asked what became of a batch that another process was
// about to create, and how often. Uploading and creating take half an hour each
// at the most, and what the journal knows changes with each.
const (
	pastPatience = 3 * time.Hour
	pastInterval = time.Second
)

// settlePast finds out whether the batch was created, and reports whether it
// was. If not, the calls that took over its lines ride in a new one. Others may
// be at work on the batch meanwhile, so that only what the journal says after
// it was claimed counts.
func (b *batch) settlePast() bool {
	news := time.Now()
	for {
		mine, _ := b.t.ledger.Claim(b.t.ctx, b.ref)
		past, err := b.t.ledger.Look(b.t.ctx, b.ref)
		switch {
		case err == nil:
			if past.State != b.past || past.InputFileID != b.state.InputFileID {
				news = time.Now()
			}
			b.learn(past)
		case b.id != "":
			b.past = journal.Running // for all that is known
		case errors.Is(err, journal.ErrNoBatch):
			b.startOver()
			return false
		}
		switch {
		case b.id != "":
			return true
		case err == nil && b.past == journal.Ended, time.Since(news) > pastPatience:
			b.lost(batchapi.ErrUnsure)
			return false
		case err == nil && mine:
			return b.lookForPast()
		}
		// Its owner lives, and is about to create it.
		if batchapi.Sleep(b.t.ctx, pastInterval) != nil {
			return false
		}
	}
}

// learn notes what the journal knows of the batch.
func (b *batch) learn(past journal.Batch) {
	b.past, b.size, b.created = past.State, past.Lines, cmp.Or(past.Created, past.Began)
	b.state.InputFileID = past.InputFileID
	b.become(cmp.Or(past.BatchID, b.id))
}

// lookForPast looks for a batch whose owner died before it wrote down its id: one
// that was about to be created or, since a journal can fail, had its input file.
func (b *batch) lookForPast() bool {
	if b.past == journal.Creating || b.state.InputFileID != "" {
		found, err := b.api.Settle(b.t.ctx, b.state.InputFileID, b.created, b.t.log)
		switch {
		case err == nil:
			b.spent = found.FileDeleted
			b.become(found.ID)
			b.t.ledger.Runs(b.t.ctx, b.ref, b.id)
			return true
		case errors.Is(err, batchapi.ErrUnsure):
			b.lost(err) // it may exist: better no answer than to pay twice
			return false
		}
	}
	b.t.ledger.Discard(b.t.ctx, b.ref)
	b.startOver()
	return false
}

func (b *batch) become(id string) {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	b.id = id
}

// startOver lets the calls of a batch that never was ride in a new one.
func (b *batch) startOver() {
	b.closeToOthers()
	b.t.mu.Lock()
	calls := slices.Collect(maps.Values(b.open))
	b.ref = "" // it is forgotten, or another's
	b.t.mu.Unlock()
	b.respawn(calls, 0)
}

// closeToOthers makes callers who come back from now on read the results for
// themselves: this batch may be past reading them.
func (b *batch) closeToOthers() {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	b.over = true
	b.t.unlist(b)
}

// unlist takes the batch out of those that others may join. The caller holds
// t.mu.
func (t *Transport) unlist(b *batch) {
	if t.byRef[b.ref] == b {
		delete(t.byRef, b.ref)
	}
}

func (b *batch) wantsReread() bool {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	again := b.reread
	b.reread = false
	return again
}

// noteDelivered and noteLeft remember what the journal is to be told, and have
// it told soon. The caller holds t.mu.
func (b *batch) noteDelivered(c *call) {
	if b.ref != "" {
		b.told = append(b.told, c.place)
		b.tellJournal()
	}
}

func (b *batch) noteLeft(c *call) {
	switch {
	case c.unwanted:
		b.noteDelivered(c)
	case b.ref != "":
		b.leaving = append(b.leaving, c)
		b.tellJournal()
	}
}

func (b *batch) tellJournal() {
	b.t.untold[b] = struct{}{}
	if !b.noting && !b.t.ending {
		b.noting = true
		b.t.work.Go(func() { b.writeNotes(b.t.lasting) })
	}
}

// writeNotes tells the journal which lines were answered and which callers
// have gone. It reports whether that was heard; if not, tend tells it again.
func (b *batch) writeNotes(ctx context.Context) bool {
	select {
	case <-b.note:
	case <-ctx.Done():
		b.t.mu.Lock()
		defer b.t.mu.Unlock()
		b.noting = false
		return false
	}
	defer func() { b.note <- struct{}{} }()
	for {
		b.t.mu.Lock()
		if b.ref == "" { // the journal has forgotten the batch
			b.told, b.leaving, b.freeing = nil, nil, nil
		}
		delivered, ref := b.told, b.ref
		b.noting = len(delivered)+len(b.leaving)+len(b.freeing) > 0
		if !b.noting {
			delete(b.t.untold, b)
			b.t.mu.Unlock()
			return true
		}
		b.t.mu.Unlock()
		freed := 0
		heard := b.t.ledger.Deliver(ctx, ref, delivered) && b.t.ledger.Release(ctx, ref, func() []int {
			lines := b.takeLeaving()
			freed = len(lines)
			return lines
		})
		b.t.mu.Lock()
		if !heard {
			b.noting = false
			b.t.mu.Unlock()
			return false
		}
		b.told, b.freeing = slices.Clone(b.told[len(delivered):]), slices.Clone(b.freeing[freed:])
		b.t.mu.Unlock()
	}
}

// takeLeaving returns the lines that are to be made open. From now on only the
// journal hands them out.
func (b *batch) takeLeaving() []int {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	for _, c := range b.leaving {
		if c.waiter == nil && c.batch == b && !c.open {
			c.open = true
			b.t.forget(c)
			if b.open[c.ID] == c {
				delete(b.open, c.ID)
				b.freed++
			}
			b.freeing = append(b.freeing, c)
		}
	}
	b.leaving = nil
	awaited := b.t.awaited(b.ref)
	b.freeing = slices.DeleteFunc(b.freeing, func(c *call) bool { return awaited(c.ID) }) // it has come back
	lines := make([]int, len(b.freeing))
	for i, c := range b.freeing {
		lines[i] = c.place
	}
	return lines
}

// writeUntold tells the journal what it has not heard yet, and reports whether it
// has now.
func (t *Transport) writeUntold(ctx context.Context) bool {
	t.mu.Lock()
	untold := slices.Collect(maps.Keys(t.untold))
	t.mu.Unlock()
	for _, b := range untold {
		if !b.writeNotes(ctx) {
			return false // and nor would it hear the others
		}
	}
	return true
}

// releaseAll makes all lines open that have no answer, as before a batch is
// cancelled for good.
func (b *batch) releaseAll(ctx context.Context) {
	b.writeNotes(ctx)
	b.t.ledger.Release(ctx, b.ref, func() []int {
		b.t.mu.Lock()
		defer b.t.mu.Unlock()
		var lines []int
		for _, c := range b.open {
			lines = append(lines, c.place)
		}
		return lines
	})
}

// lapsed holds again, in the background, what callers wait for here: the journal
// took this process for dead, and opened all it held.
func (t *Transport) lapsed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for b := range t.batches {
		b.lapsed = b.lapsed || b.ref != ""
	}
	if !t.ending {
		t.work.Go(t.holdAgain)
	}
}

// holdAgain holds what callers wait for in the batches that were lost with a
// lease. Others may have taken their lines, and leave them later, so that once is
// not enough.
func (t *Transport) holdAgain() {
	t.mu.Lock()
	lost := make(map[*batch]string)
	for b := range t.batches {
		if b.lapsed && b.ref != "" {
			lost[b] = b.ref
		}
	}
	t.mu.Unlock()
	for b, ref := range lost {
		err := t.ledger.Hold(t.ctx, ref, b.awaitedLines)
		switch {
		case errors.Is(err, journal.ErrNoBatch):
			t.mu.Lock()
			b.lapsed = false
			t.mu.Unlock()
		case err != nil:
			return // and so would the others
		}
	}
}

// awaitedLines are the lines that callers wait for here.
func (b *batch) awaitedLines() []int {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	var lines []int
	for _, c := range b.open {
		if c.waiter != nil {
			lines = append(lines, c.place)
		}
	}
	return lines
}

// EventName says what happened.
type EventName string

// The events, in the order of a batch's life.
const (
	BatchSubmitted         EventName = "batch_submitted"
	BatchSubmissionFailed  EventName = "batch_submission_failed"
	BatchProgress          EventName = "batch_progress"  // status or counts changed
	BatchCompleted         EventName = "batch_completed" // and its results were delivered
	BatchTerminal          EventName = "batch_terminal"  // failed, expired or cancelled; what there was is delivered
	BatchCancelRequested   EventName = "batch_cancel_requested"
	BatchCancelledUpstream EventName = "batch_cancelled_upstream"
	BatchCancelFailed      EventName = "batch_cancel_failed"
	ClientClosing          EventName = "client_closing"
	CallEscalated          EventName = "call_escalated" // sent in real time; Error says why
	BatchResumed           EventName = "batch_resumed"  // found in the journal, and watched again
)

// An Event tells what happened to a batch. It marshals to the JSON object that
// log collectors of autobatcher's other implementations know: only the fields
// that belong to its Name, keys sorted.
type Event struct {
	Name EventName
	Time time.Time

	BatchID, Endpoint                      string
	InputFileID, OutputFileID, ErrorFileID string // "" is null in JSON
	RequestCount                           int
	Models                                 []string // sorted, each once
	CompletionWindow                       string
	Metadata                               map[string]string // shared by all events: not to be changed
	Counts                                 Counts
	Status                                 string
	Elapsed                                time.Duration // since the batch was created
	Error                                  string
	CustomID                               string // of CallEscalated

	// Of ClientClosing.
	PendingRequests int      // calls not sent yet
	ActiveBatchIDs  []string // in the order the batches were opened
	CancelOnClose   bool
}

// Counts are a batch's request counts, as the provider last said them.
type Counts struct {
	Completed, Failed, Total int
}

// fields are the JSON keys of each event beyond source, event and ts.
var fields = map[EventName][]string{
	BatchSubmitted:         slices.Concat(identity, []string{"models", "completion_window", "metadata"}),
	BatchSubmissionFailed:  {"endpoint", "request_count", "models", "completion_window", "metadata", "error"},
	BatchProgress:          slices.Concat(progress, []string{"status"}),
	BatchCompleted:         progress,
	BatchTerminal:          slices.Concat(progress, []string{"status"}),
	BatchCancelRequested:   slices.Concat(identity, []string{"models", "completion_window", "metadata"}),
	BatchCancelledUpstream: {"batch_id", "endpoint"},
	BatchCancelFailed:      {"batch_id", "endpoint", "error"},
	BatchResumed:           slices.Concat(identity, []string{"models", "completion_window", "metadata"}),
	CallEscalated:          {"batch_id", "endpoint", "custom_id", "models", "error"},
	ClientClosing:          {"pending_request_count", "active_batch_ids", "cancel_active_batches_on_close"},
}

var (
	identity = []string{"batch_id", "endpoint", "input_file_id", "output_file_id", "error_file_id", "request_count"}
	progress = slices.Concat(identity, []string{"counts", "models", "completion_window", "metadata", "elapsed_seconds"})
)

// MarshalJSON returns the event as one JSON object, keys sorted.
func (e Event) MarshalJSON() ([]byte, error) {
	all := map[string]any{
		"batch_id": e.BatchID, "endpoint": e.Endpoint,
		"input_file_id": orNull(e.InputFileID), "output_file_id": orNull(e.OutputFileID), "error_file_id": orNull(e.ErrorFileID),
		"request_count": e.RequestCount, "models": orEmpty(e.Models),
		"completion_window": e.CompletionWindow, "metadata": e.Metadata,
		"counts": batchapi.Counts(e.Counts), "status": e.Status,
		"elapsed_seconds": math.Round(e.Elapsed.Seconds()*1000) / 1000,
		"error":           e.Error,
		"custom_id":       e.CustomID,

		"pending_request_count": e.PendingRequests, "active_batch_ids": orEmpty(e.ActiveBatchIDs),
		"cancel_active_batches_on_close": e.CancelOnClose,
	}
	object := map[string]any{
		"source": "autobatcher", "event": e.Name,
		"ts": float64(e.Time.UnixMicro()) / 1e6,
	}
	for _, name := range fields[e.Name] {
		object[name] = all[name]
	}
	return json.Marshal(object)
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// emit tells what happened to the batch.
func (b *batch) emit(name EventName) { b.emitError(name, nil) }

func (b *batch) emitError(name EventName, err error) {
	e := Event{
		Name: name, BatchID: b.id, Endpoint: b.path,
		InputFileID: b.state.InputFileID, OutputFileID: b.state.OutputFileID, ErrorFileID: b.state.ErrorFileID,
		RequestCount: b.size, Models: b.models, CompletionWindow: b.key.window, Metadata: b.t.opts.Metadata,
		Counts: Counts(b.state.Counts), Status: b.state.Status,
	}
	if !b.created.IsZero() {
		e.Elapsed = time.Since(b.created)
	}
	if err != nil {
		e.Error = err.Error()
	}
	b.t.emit(e)
}

// emit calls the handler, which must not be able to hurt anybody.
func (t *Transport) emit(e Event) {
	if t.opts.OnEvent == nil {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			t.log.Error("OnEvent panicked", "event", e.Name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	e.Time = time.Now()
	t.opts.OnEvent(e)
}
