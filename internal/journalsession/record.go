package journalsession

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// Lines is what a Record asks the owner of a batch's lines in this process. A
// Record calls the methods without holding a lock. Lines are named by their
// place in the input file.
type Lines interface {
	// BeginRelease returns the detached lines that the journal is to release. From
	// now on this process does not give the lines to a retry. A line for which
	// FinishRelease was not called is returned again, unless a caller waits for
	// the line by then.
	BeginRelease() []int

	// FinishRelease says that the journal has confirmed the release: from now on
	// only the journal gives the lines away.
	FinishRelease(lines []int)

	// Waiting returns the lines that callers here wait for.
	Waiting() []int

	// Unanswered returns all lines without an answer that this process knows.
	Unanswered() []int
}

// A Record is the journal record of a single batch. A Record is safe for
// concurrent use. The journal may not know the batch, because no journal is
// configured or because the journal failed: then updates are dropped.
type Record struct {
	session *Session
	lines   Lines
	expired atomic.Bool   // the lease expired while this process had the batch
	mine    atomic.Bool   // the last Claim made this process own the batch
	sending chan struct{} // holds a token; the goroutine that sends updates has the token

	mu        sync.Mutex
	ref       string // the name of the batch in the journal; "" if the journal does not know the batch
	account   journal.Hash
	delivered []int   // outbox: lines whose callers have read their answers
	detached  bool    // outbox: BeginRelease may have lines to release
	state     *update // outbox: the last state of the batch
	waking    bool    // a goroutine was started to send the outbox
}

// An update is the state of a batch, to be sent until the journal confirms it.
type update struct {
	request string
	send    func(ctx context.Context, ref string) error
	deletes bool // the update deletes the record
}

// NewRecord returns the record of a batch that the journal does not know yet.
func (s *Session) NewRecord(lines Lines) *Record {
	r := &Record{session: s, lines: lines, sending: make(chan struct{}, 1)}
	r.sending <- struct{}{}
	return r
}

// Resume returns the record of a batch that another process began.
func (s *Session) Resume(known *journal.Batch, lines Lines) *Record {
	r := s.NewRecord(lines)
	if s.store != nil {
		r.attach(known)
	}
	return r
}

func (r *Record) attach(known *journal.Batch) {
	r.mu.Lock()
	r.ref, r.account = known.Ref, known.Account
	r.mu.Unlock()
	r.session.mu.Lock()
	defer r.session.mu.Unlock()
	r.session.records[r] = struct{}{}
}

// Ref is the name of the batch in the journal, or "" if the journal does not
// know the batch.
func (r *Record) Ref() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ref
}

// Begin stores a batch, under a new name that begins with b.Ref, before the provider is asked for anything that costs
// money. lines is called only if there is a journal. The error is not nil only
// where the journal is required.
func (r *Record) Begin(ctx context.Context, b journal.Batch, lines func() []journal.Line) error {
	s := r.session
	if s.store == nil {
		return nil
	}
	all := lines()
	b.Ref, b.Owner = b.Ref+rand.Text(), s.owner
	err := s.do(ctx, len(all), func(ctx context.Context) error { return s.store.Begin(ctx, b, all) })
	if err != nil { // the journal may have stored the batch all the same
		s.NewRecord(r.lines).forgetBatch(&b)
		return s.failed("begin", err)
	}
	r.attach(&b)
	r.Detached() // callers may have left while the journal did not know their lines
	return nil
}

// forgetBatch has the journal discard a batch that this process does not track.
func (r *Record) forgetBatch(b *journal.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ref, r.account, r.state = b.Ref, b.Account, r.discarding()
	r.setPendingLocked(true)
}

// Close ends the record: the batch has ended. Pending updates are still sent.
func (r *Record) Close() {
	r.session.mu.Lock()
	defer r.session.mu.Unlock()
	delete(r.session.records, r)
}

// Advance stores a step of the batch. The error is not nil where the journal is
// required and failed, and where the journal has given the batch to another
// process (ErrTaken).
func (r *Record) Advance(ctx context.Context, step journal.Step) error {
	s, ref := r.session, r.Ref()
	if ref == "" {
		return nil
	}
	err := s.do(ctx, 0, func(ctx context.Context) error { return s.store.Advance(ctx, s.owner, ref, step) })
	if errors.Is(err, journal.ErrNotOwner) || errors.Is(err, journal.ErrNoBatch) {
		return fmt.Errorf("%w: %w", ErrTaken, err)
	}
	return s.failed("advance", err)
}

// Refused stores that the provider refused the create of the batch, calls wait, and stores
// that the create is sent again. If the process ends while wait runs, another process
// knows that the batch does not exist. An error of wait ends Refused.
func (r *Record) Refused(ctx context.Context, inputFileID string, wait func() error) error {
	if err := r.Advance(ctx, journal.Step{State: journal.Uploaded, InputFileID: inputFileID}); err != nil {
		return err
	}
	if err := wait(); err != nil {
		return err
	}
	return r.Advance(ctx, journal.Step{State: journal.Creating, InputFileID: inputFileID})
}

// Running stores that the batch exists at the provider, or will not be cancelled
// after all.
func (r *Record) Running(ctx context.Context, batchID string) {
	r.setState(ctx, r.advancing("advance", journal.Step{State: journal.Running, BatchID: batchID}))
}

// End stores that the batch has ended.
func (r *Record) End(ctx context.Context, last journal.Step) {
	last.State = journal.Ended
	r.setState(ctx, r.advancing("end", last))
}

// Discard deletes the record of a batch that was never created.
func (r *Record) Discard(ctx context.Context) { r.setState(ctx, r.discarding()) }

func (r *Record) advancing(request string, step journal.Step) *update {
	s := r.session
	return &update{request, func(ctx context.Context, ref string) error { return s.store.Advance(ctx, s.owner, ref, step) }, false}
}

func (r *Record) discarding() *update {
	s := r.session
	return &update{"discard", func(ctx context.Context, ref string) error { return s.store.Discard(ctx, s.owner, ref) }, true}
}

// setState puts the state into the outbox, where it replaces an earlier state,
// and sends the outbox. A state that cannot be sent now is sent after the next
// heartbeat, since other replicas may wait for the state.
func (r *Record) setState(ctx context.Context, u *update) {
	r.mu.Lock()
	known := r.ref != ""
	if known {
		r.state = u
		r.setPendingLocked(true)
	}
	r.mu.Unlock()
	if known {
		r.Flush(ctx)
	}
}

// Delivered says that a caller has read the answer of a line to its end, or that
// the line is of no use to any caller.
func (r *Record) Delivered(line int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ref != "" {
		r.delivered = append(r.delivered, line)
		r.wakeLocked()
	}
}

// Detached says that lines may have lost their callers.
func (r *Record) Detached() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ref != "" {
		r.detached = true
		r.wakeLocked()
	}
}

// BeginRead says that a caller begins to read the answer of a line. It reports
// whether the journal waits for the end of the reading; then EndRead must be
// called once.
func (r *Record) BeginRead() bool {
	if r.Ref() == "" {
		return false
	}
	r.session.reading.Add(1)
	return true
}

// EndRead ends what BeginRead began.
func (r *Record) EndRead() { r.session.reading.Add(-1) }

// wakeLocked has the outbox sent soon. The caller holds r.mu.
func (r *Record) wakeLocked() {
	r.setPendingLocked(true)
	if !r.waking {
		r.waking = r.session.Start(func() { r.Flush(r.session.Context) })
	}
}

// setPendingLocked notes whether the outbox has updates. The caller holds r.mu.
func (r *Record) setPendingLocked(pending bool) {
	s := r.session
	s.mu.Lock()
	defer s.mu.Unlock()
	ofAccount := s.pending[r.account]
	switch {
	case !pending:
		delete(ofAccount, r)
		if len(ofAccount) == 0 {
			delete(s.pending, r.account)
		}
	case ofAccount == nil:
		s.pending[r.account] = map[*Record]struct{}{r: {}}
	default:
		ofAccount[r] = struct{}{}
	}
}

// Flush sends the outbox. It returns whether the journal confirmed all updates;
// if not, the session sends the rest later. Flush ends at the first request that the
// journal does not answer in time, and waits half a minute at the most for another
// goroutine that sends the outbox.
func (r *Record) Flush(ctx context.Context) (confirmed bool) { return r.flush(ctx) == nil }

// flush is Flush. The error is errBusy if other requests to the journal take too long.
func (r *Record) flush(ctx context.Context) (err error) {
	defer func() { // also if the user's Store exits the goroutine
		r.mu.Lock()
		defer r.mu.Unlock()
		r.waking = false
	}()
	if !takeToken(ctx, r.sending, 3*requestTimeout) {
		return busy(ctx)
	}
	defer func() { r.sending <- struct{}{} }()
	for more := true; more && err == nil; {
		more, err = r.sendNext(ctx)
	}
	return err
}

// sendNext sends what is in the outbox now. It returns whether to call sendNext
// again: false when the journal has confirmed everything.
func (r *Record) sendNext(ctx context.Context) (more bool, err error) {
	r.mu.Lock()
	ref, delivered, detached, state := r.ref, r.delivered, r.detached, r.state
	if ref == "" || len(delivered) == 0 && !detached && state == nil {
		r.delivered, r.detached, r.state = nil, false, nil
		r.setPendingLocked(false)
		r.mu.Unlock()
		return false, nil
	}
	r.mu.Unlock()
	if len(delivered) > 0 {
		err = r.sendDelivered(ctx, ref, delivered)
	}
	if err == nil && detached {
		err = r.sendReleases(ctx, ref)
	}
	if err == nil && state != nil {
		err = r.sendState(ctx, ref, state)
	}
	return true, err
}

func (r *Record) sendDelivered(ctx context.Context, ref string, lines []int) error {
	s := r.session
	err := s.do(ctx, len(lines), func(ctx context.Context) error { return s.store.Deliver(ctx, s.owner, ref, lines) })
	s.logError("deliver", err)
	if !final(err) {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delivered = append([]int(nil), r.delivered[len(lines):]...)
	return nil
}

func (r *Record) sendReleases(ctx context.Context, ref string) error {
	s := r.session
	if !s.take(ctx) {
		return busy(ctx)
	}
	defer s.give()
	r.setDetached(false)
	sent := false
	defer func() { // also if the user's Store exits the goroutine
		if !sent {
			r.setDetached(true)
		}
	}()
	lines := r.lines.BeginRelease()
	if sent = len(lines) == 0; sent {
		return nil
	}
	began := time.Now()
	err := s.do(ctx, len(lines), func(ctx context.Context) error { return s.store.Release(ctx, s.owner, ref, lines) })
	s.noteAlone(ctx, "release", began, err)
	s.logError("release", err)
	if sent = final(err); !sent {
		return err
	}
	r.lines.FinishRelease(lines)
	return nil
}

func (r *Record) setDetached(detached bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.detached = detached
}

// sendState sends the state of the batch. If no process owns the batch any more,
// this process claims the batch first; if another process owns the batch, that
// process finds out the state for itself. A batch that the process that owned the batch
// meanwhile may have created is not deleted, and stays without an owner, so that a process
// looks for the batch.
func (r *Record) sendState(ctx context.Context, ref string, u *update) error {
	s := r.session
	err := s.do(ctx, 0, func(ctx context.Context) error {
		err := u.send(ctx, ref)
		if !errors.Is(err, journal.ErrNotOwner) {
			return err
		}
		if may, err := s.mayExist(ctx, ref, u); err != nil || may {
			return err
		}
		if mine, err := s.store.Claim(ctx, s.owner, ref); err != nil || !mine {
			return err
		}
		if may, err := s.mayExist(ctx, ref, u); err != nil || may { // another process was between the two requests, and died
			return err
		}
		return u.send(ctx, ref)
	})
	if !final(err) {
		s.logError(u.request, err)
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == u {
		r.state = nil
	}
	return nil
}

// mayExist reports that an update would delete a batch that may exist at the provider, or
// that the journal does not have.
func (s *Session) mayExist(ctx context.Context, ref string, u *update) (bool, error) {
	if !u.deletes {
		return false, nil
	}
	found, err := s.store.Batches(ctx, journal.Filter{Ref: ref})
	return err != nil || len(found) == 0 || found[0].BatchID != "" || found[0].State == journal.Creating, err
}

// final reports whether sending the same update again would change nothing.
func final(err error) bool {
	return err == nil || errors.Is(err, journal.ErrNotOwner) || errors.Is(err, journal.ErrNoBatch)
}

// hold holds the lines again that callers here wait for, as far as no other
// process took them, and claims the batch if no process owns the batch. It
// returns whether the journal answered.
func (r *Record) hold(ctx context.Context) bool {
	s, ref := r.session, r.Ref()
	if ref == "" {
		return true
	}
	if _, err := r.Claim(ctx); err != nil {
		if errors.Is(err, journal.ErrNoBatch) {
			r.expired.Store(false)
			return true
		}
		return false
	}
	if !s.take(ctx) {
		return false
	}
	defer s.give()
	lines := r.lines.Waiting()
	if len(lines) == 0 {
		return true
	}
	err := s.do(ctx, len(lines), func(ctx context.Context) error { return s.store.Hold(ctx, s.owner, ref, lines) })
	s.logError("hold", err)
	return err == nil
}

// HoldLater has the session hold again the lines that callers here wait for,
// because the journal may have released them.
func (r *Record) HoldLater() { r.expired.Store(true) }

// Claim makes this process own the batch if no process does, and reports whether
// this process owns the batch now.
func (r *Record) Claim(ctx context.Context) (mine bool, err error) {
	ref := r.Ref()
	if ref == "" {
		return true, nil
	}
	if mine, err = r.session.Claim(ctx, ref); err == nil {
		r.mine.Store(mine)
	}
	return mine, err
}

// Claimed notes that this process owns the batch, by Session.Claim.
func (r *Record) Claimed() { r.mine.Store(true) }

// Mine reports whether the last Claim that the journal answered made this process own
// the batch.
func (r *Record) Mine() bool { return r.mine.Load() }

// Claim makes this process own a batch that no process owns, and reports whether
// this process owns the batch now. Without a journal the answer is yes.
func (s *Session) Claim(ctx context.Context, ref string) (mine bool, err error) {
	if s.store == nil {
		return true, nil
	}
	err = s.do(ctx, 0, func(ctx context.Context) (err error) {
		mine, err = s.store.Claim(ctx, s.owner, ref)
		return err
	})
	if !final(err) {
		s.logError("claim", err)
	}
	return mine, err
}

// ReleaseAll releases all lines without an answer, before a batch is cancelled
// for good.
func (r *Record) ReleaseAll(ctx context.Context) {
	r.Flush(ctx)
	s, ref := r.session, r.Ref()
	if ref == "" || !s.take(ctx) {
		return
	}
	defer s.give()
	lines := r.lines.Unanswered()
	if len(lines) > 0 {
		s.logError("release", s.do(ctx, len(lines), func(ctx context.Context) error { return s.store.Release(ctx, s.owner, ref, lines) }))
	}
}

// Abandon marks a batch whose lines no process holds as one to be cancelled, and
// reports whether the batch may be cancelled. Without a journal the answer is
// yes. While updates are pending the answer is no: a late update would mark the
// batch as running again.
func (r *Record) Abandon(ctx context.Context) (abandoned bool) {
	s, ref := r.session, r.Ref()
	if ref == "" {
		return true
	}
	if !r.Flush(ctx) {
		return false
	}
	err := s.do(ctx, 0, func(ctx context.Context) (err error) {
		abandoned, err = s.store.Abandon(ctx, s.owner, ref)
		return err
	})
	if errors.Is(err, journal.ErrNotOwner) {
		return false // the owner decides
	}
	s.logError("abandon", err)
	return abandoned
}

// Look returns the batch as the journal knows it. The error is
// [journal.ErrNoBatch] if the journal does not know the batch.
func (r *Record) Look(ctx context.Context) (journal.Batch, error) {
	ref := r.Ref()
	if ref == "" {
		return journal.Batch{}, journal.ErrNoBatch
	}
	found, err := r.session.list(ctx, journal.Filter{Ref: ref})
	r.session.logError("look", err)
	switch {
	case err != nil:
		return journal.Batch{}, err
	case len(found) == 0:
		return journal.Batch{}, journal.ErrNoBatch
	}
	return found[0], nil
}

// keptPrefix begins the names of batches whose lines callers may ask for later, at any
// process, so that no process cancels such a batch because no caller waits. The names of
// other batches are of capital letters and digits.
const keptPrefix = "background-"

// RefPrefix returns how the names of batches begin whose lines callers may ask for later
// (kept), and of all others.
func RefPrefix(kept bool) string {
	if kept {
		return keptPrefix
	}
	return ""
}

// IsKept reports whether a batch of the name has lines that callers may ask for later.
func IsKept(ref string) bool { return strings.HasPrefix(ref, keptPrefix) }

// Kept reports whether other processes may yet ask for answers of the batch: the name of
// the batch says so (IsKept), and some lines are not delivered. The answers are kept from
// the end of the batch on, and so the age of the batch does not matter.
func (r *Record) Kept(ctx context.Context) bool {
	if !IsKept(r.Ref()) {
		return false
	}
	b, err := r.Look(ctx)
	return err != nil || b.Delivered < b.Lines
}

// deliveryTimeout is how long AllDelivered waits for callers that are reading.
const deliveryTimeout = time.Minute

// AllDelivered reports whether the callers of all lines have read their answers,
// at this process or at another. It waits up to a minute for callers that are
// reading. Without a journal the answer is yes.
func (r *Record) AllDelivered(ctx context.Context) bool {
	if r.Ref() == "" {
		return true
	}
	for wait := time.Second; ; wait *= 2 {
		if b, err := r.Look(ctx); err == nil && b.Delivered == b.Lines {
			return true
		}
		if wait > deliveryTimeout/2 || sleep(ctx, wait) != nil {
			return false
		}
	}
}
