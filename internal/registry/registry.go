// Package registry decides which caller waits for which line of a batch.
package registry

import (
	"crypto/sha256"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/autobatcher/autobatcher/internal/answercache"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/journal"
)

// keptBytes bounds the answers kept for callers that disconnected.
const keptBytes = 64 << 20

// A Registry decides which caller waits for which line, which lines are
// detached, and which call may take a line over. It is complete for this
// process: a line leaves the registry when the line has an answer, or when the
// journal has confirmed the release of the line.
//
// A detached line never waits beside a queued call with the same fingerprint:
// the line is given to the call when the call enters, when the caller of the
// line leaves, or when a release turns out to have failed.
//
// The Registry holds mu for map operations only. Lock order: registry.mu, then
// the locks of the collector and of the journal session.
type Registry[R any] struct {
	// dropped is called, with the lock held, for a queued call that left the queue:
	// its caller has gone, or the call has the line of an earlier call.
	dropped   func(*Call[R])
	keepFor   time.Duration
	idleAfter time.Duration // until a batch without callers is cancelled; negative: never

	mu       sync.Mutex
	closed   bool          // takes no new calls
	callers  int           // inside RoundTrip, or reading an answer that was sent in real time
	drained  chan struct{} // closed when no caller is left after Close
	queued   chains[R]     // calls that wait to be sent
	detached chains[R]     // detached lines, and answers kept for a retry
	sets     map[string]*Lines[R]
	kept     map[string]*Call[R] // the calls with kept answers, by custom id: the journal may give their lines away
	reading  map[string]struct{} // custom ids of journalled lines whose answers callers are reading
	cache    *answercache.Cache
	flex     func(*R) bool
	counters Counters
	atFlex   Counters // of counters: calls at the flex tier
}

// Counters count callers since New.
type Counters struct {
	Answered int64 // got the answer of their line
	Errors   int64 // of Answered: got an answer with a status of 400 or more
	Failed   int64 // got an error of their batch or of autobatcher
	Left     int64 // stopped waiting before their answer came
}

// Drained is closed when no caller is left after Close.
func (r *Registry[R]) Drained() <-chan struct{} { return r.drained }

// New returns an empty Registry. dropped is described at Registry. flex reports whether a
// call is sent at the flex tier, for the counters; flex is called with the lock of the
// Registry, and must not block.
func New[R any](keepFor, idleAfter time.Duration, dropped func(*Call[R]), flex func(*R) bool) *Registry[R] {
	r := &Registry[R]{
		keepFor: keepFor, idleAfter: idleAfter, dropped: dropped, flex: flex, drained: make(chan struct{}),
		queued: make(chains[R]), detached: make(chains[R]),
		sets: make(map[string]*Lines[R]), kept: make(map[string]*Call[R]), reading: make(map[string]struct{}),
	}
	r.cache = answercache.New(keptBytes, func(c any) { r.dropKeptLocked(c.(*Call[R])) }) //nolint:forcetypeassert // keepLocked puts calls
	return r
}

// Enter registers a call. The waiter has the answer already if an answer was
// kept, or waits for a detached line; otherwise queue is true, and the user of
// the Registry queues the call. ok is false after Close.
func (r *Registry[R]) Enter(c *Call[R]) (w *Waiter[R], queue, ok bool) {
	c.ID = uuid.NewString()
	w = &c.asked
	*w = Waiter[R]{Ready: make(chan struct{}, 1), call: c}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		c.freeBodyLocked()
		return nil, false, false
	}
	c.waiter = w
	r.callers++
	r.cache.Prune()
	if r.takeOverLocked(c, false) {
		return w, false, true
	}
	r.queued.push(c)
	return w, true, true
}

// takeOverLocked gives c a kept answer or a detached line of an earlier call, and
// reports whether there was one. uncertain includes the lines that the journal
// was asked to release without an answer. A line whose caller waits with a Fork is not
// given away. The caller holds r.mu.
func (r *Registry[R]) takeOverLocked(c *Call[R], uncertain bool) bool {
	for old := r.detached[c.Fingerprint].first; old != nil; old = old.next {
		if old.fork != nil || old.releasing && !uncertain {
			continue
		}
		if old.answer != nil {
			r.takeKeptLocked(c, old)
			return true
		}
		if old.lines.joinableLocked() {
			if old.releasing {
				old.lines.record.HoldLater()
			}
			r.attachLocked(c, old)
			return true
		}
	}
	return false
}

// takeKeptLocked answers c with the answer kept for old. The caller holds r.mu.
func (r *Registry[R]) takeKeptLocked(c, old *Call[R]) {
	a := old.answer
	r.cache.Remove(old.kept)
	r.dropKeptLocked(old)
	old.releasing = false
	r.giveLocked(c, a)
}

// giveLocked ends a call that was not sent with the answer to another call's line. The
// caller of a Fork that gets a failure waits for the first line again. The caller holds r.mu.
func (r *Registry[R]) giveLocked(c *Call[R], a *Answer[R]) {
	c.state = stateDone
	c.Reservation.Release()
	if !a.isSuccess() && r.returnLocked(c) {
		c.freeBodyLocked()
		return
	}
	r.answerLocked(c, a)
}

// dropKeptLocked forgets the answer kept for c. The caller holds r.mu.
func (r *Registry[R]) dropKeptLocked(c *Call[R]) {
	c.answer = nil
	r.detached.remove(c)
	if r.kept[c.ID] == c {
		delete(r.kept, c.ID)
	}
}

// answerLocked hands the waiter of c its answer. The caller holds r.mu.
func (r *Registry[R]) answerLocked(c *Call[R], a *Answer[R]) {
	if (!c.Recalled || !a.Counted) && (!c.unfollowed || a.isSuccess()) { // else the caller gets another answer
		r.countAnswerLocked(a)
	}
	if a.FromLine() && a.line.lines.record.BeginRead() {
		a.line.reading = true
		r.reading[a.line.ID] = struct{}{}
	}
	c.waiter.answer = a
	c.waiter.Ready <- struct{}{}
	r.endWaitLocked(c)
	c.freeBodyLocked()
	if !a.Realtime { // the caller stays until the call was answered in real time
		r.leftLocked()
	}
}

// endWaitLocked notes that no caller waits with c, nor with the call that c was forked
// from. The caller holds r.mu.
func (r *Registry[R]) endWaitLocked(c *Call[R]) {
	c.waiter = nil
	if e := c.Earlier; e != nil && e.fork == c {
		e.fork = nil
		if !r.offerLocked(e) {
			e.lines.releaseLocked(e)
		}
	}
}

// returnLocked has the caller of c, whose line does not answer the caller, wait for the
// line of the call that c was forked from, and reports whether that line may answer. The
// caller holds r.mu.
func (r *Registry[R]) returnLocked(c *Call[R]) bool {
	if !c.returnsLocked() {
		return false
	}
	e, w := c.Earlier, c.waiter
	e.waiter, e.fork, w.call = w, nil, e
	c.waiter, c.returned = nil, true
	if e.Body == nil { // for a resubmission
		e.Body, e.Freed, c.Freed = c.Body, c.Freed, nil
	}
	r.detached.remove(e)
	delete(e.lines.leaving, e.ID)
	e.lines.waiting++
	e.lines.watchIdleLocked()
	return true
}

// answerForkLocked gives the answer to the line of c to the caller that waits with another
// line instead, which is of no use any more. It reports false if no caller waits, or if
// the other line may have a better answer. The caller holds r.mu.
func (r *Registry[R]) answerForkLocked(c *Call[R], a *Answer[R]) bool {
	fork := c.fork
	if fork == nil || !a.isSuccess() {
		return false
	}
	c.fork = nil
	r.answerLocked(fork, a)
	r.detachLocked(fork)
	r.dismissLocked(fork)
	return true
}

// countAnswerLocked counts the answer to a call, in the lane of its line. The caller holds r.mu.
func (r *Registry[R]) countAnswerLocked(a *Answer[R]) {
	a.Counted = true
	switch {
	case a.Local || a.Err != nil:
		r.countInLocked(a.Flex, func(n *Counters) { n.Failed++ })
	case !a.Realtime:
		r.countInLocked(a.Flex, func(n *Counters) {
			n.Answered++
			if a.Status >= http.StatusBadRequest {
				n.Errors++
			}
		})
	}
}

// leftLocked counts a caller out. The caller holds r.mu.
func (r *Registry[R]) leftLocked() {
	r.callers--
	if r.closed && r.callers == 0 {
		close(r.drained)
	}
}

// CallerLeft counts a caller out whose call was sent in real time.
func (r *Registry[R]) CallerLeft() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leftLocked()
}

// Close takes no new calls from now on. drained is closed when the last caller
// has left.
func (r *Registry[R]) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.closed = true
		if r.callers == 0 {
			close(r.drained)
		}
	}
}

// attachLocked makes c the call of old's line. The caller holds r.mu.
func (r *Registry[R]) attachLocked(c, old *Call[R]) {
	r.replaceLocked(c, old)
	c.attempts = max(c.attempts, old.attempts)
	old.lines.addLocked(c, old.ID, old.place)
}

// replaceLocked ends a call whose line c takes over. The caller holds r.mu.
func (r *Registry[R]) replaceLocked(c, old *Call[R]) {
	r.detached.remove(old)
	old.state, old.replaced = stateDone, true
	c.forked = c.forked || old.forked
	c.inheritLocked(old.Reservation)
}

// HasWaiter reports whether a caller waits for the call.
func (r *Registry[R]) HasWaiter(c *Call[R]) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.waiter != nil
}

// Returns reports whether the caller of the call, a Fork, waits for the first line again if
// the call fails.
func (r *Registry[R]) Returns(c *Call[R]) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.returnsLocked()
}

// HasForked reports whether the call, or an earlier call with its line, has a Fork that was
// sent, and so may be paid for.
func (r *Registry[R]) HasForked(c *Call[R]) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.forked
}

// InRealtime returns what a call may cost in real time, in US dollars; 0 without a
// reservation. It calls read with the lock held, because the request may change while
// the call is requeued.
func (r *Registry[R]) InRealtime(c *Call[R], read func(request *R)) (usd float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c = c.currentLocked()
	read(&c.Request)
	return c.Reservation.Realtime()
}

// Fork returns a further call with the line and the cost of c, or nil if c has no caller, or
// waits for a line that is at the flex tier already, as a retry may.
// The further call has a fingerprint of its own, so that a retry finds the line of c.
// read makes the request of the further call, with the lock held, or reports false, and
// then Fork returns nil.
func (r *Registry[R]) Fork(c *Call[R], read func(*R) (R, bool)) *Call[R] {
	r.mu.Lock()
	defer r.mu.Unlock()
	request, ok := read(&c.Request)
	if !ok || c.waiter == nil || c.lines != nil && c.lines.flex {
		return nil
	}
	return &Call[R]{
		Line: line.Line{URL: c.URL, Body: c.Body}, Fingerprint: sha256.Sum256(append([]byte("fork "), c.Fingerprint[:]...)),
		Request: request, Reservation: c.Reservation.Again(), Earlier: c, unfollowed: true,
	}
}

// LinesOf returns the lines of the batch that has this name in the journal. create
// makes the lines if no batch of this process has the name.
func (r *Registry[R]) LinesOf(ref string, create func() *Lines[R]) *Lines[R] {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sets[ref]
	if s == nil {
		s = create()
		s.ref, r.sets[ref] = ref, s
	}
	return s
}

// NameOf returns how the provider knows a call, as far as the call was sent.
func (r *Registry[R]) NameOf(c *Call[R]) (batchID, customID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c = c.currentLocked(); c.lines != nil {
		batchID = c.lines.id
	}
	return batchID, c.ID
}

// Counters returns the counters of all calls, and of the calls at the flex tier.
func (r *Registry[R]) Counters() (all, flex Counters) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counters, r.atFlex
}

// countLocked counts what happened to a call. The caller holds r.mu.
func (r *Registry[R]) countLocked(c *Call[R], count func(*Counters)) {
	r.countInLocked(r.flex(&c.Request), count)
}

func (r *Registry[R]) countInLocked(flex bool, count func(*Counters)) {
	count(&r.counters)
	if flex {
		count(&r.atFlex)
	}
}

// Withdraw takes back a call that is not to be queued. It reports false if the
// call has the line of an earlier call meanwhile.
func (r *Registry[R]) Withdraw(c *Call[R]) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.state != stateQueued {
		return false
	}
	r.queued.remove(c)
	r.endWaitLocked(c)
	c.state = stateDone
	c.endBeforeLocked()
	c.freeBodyLocked()
	c.Reservation.Release()
	r.leftLocked()
	return true
}

// Refuse answers those of the calls that are still queued and whose reservation
// cannot be taken, with the answer for the error. The caller of a Fork waits for the first
// line again.
func (r *Registry[R]) Refuse(calls []*Call[R], answer func(error) *Answer[R]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range calls {
		if c == nil || c.state != stateQueued {
			continue
		}
		if err := c.Reservation.Take(); err != nil {
			r.unqueueLocked(c)
			if r.takeOverLocked(c, true) {
				continue // the line may be paid for
			}
			c.state = stateDone
			c.endBeforeLocked()
			c.Reservation.Release()
			if r.returnLocked(c) {
				c.Earlier.forked = false
				c.freeBodyLocked()
				continue
			}
			a := answer(err) // which counts the refusal
			a.Flex = r.flex(&c.Request)
			r.answerLocked(c, a)
		}
	}
}

// Leave says that a caller waits no longer. A call that was not sent never will
// be; a line is detached. Leave returns the answer that came at the same moment, or nil.
func (r *Registry[R]) Leave(w *Waiter[R], escalated bool) (found *Answer[R]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-w.Ready:
		return w.answer
	default:
	}
	if !w.call.unfollowed { // else the caller waits elsewhere
		r.countLocked(w.call, func(n *Counters) { n.Left++ })
	}
	r.leaveLocked(w.call, escalated)
	return nil
}

// Follow has a caller wait with next from now on, the waiter of a Fork of its call. It
// reports false, and changes nothing, if the caller has its answer, or if the Fork has
// failed. The line of the call stays at this process until the caller leaves or has its
// answer. The caller gets the answer of the line if that comes first, or if the Fork fails.
func (r *Registry[R]) Follow(w, next *Waiter[R]) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := w.call
	c.forked = true
	if c.waiter != w || next.answer != nil && !next.answer.isSuccess() {
		return false
	}
	next.call.unfollowed = false
	if c.state == stateOpen && next.answer == nil {
		c.fork = next.call
	}
	r.leaveLocked(c, false)
	return true
}

// leaveLocked has a call go on without its caller. The caller holds r.mu.
func (r *Registry[R]) leaveLocked(c *Call[R], escalated bool) {
	r.endWaitLocked(c)
	if !escalated {
		r.leftLocked()
	}
	r.detachLocked(c)
	c.freeBodyLocked() // a retry has the body; without a retry the call is not sent again
}

// detachLocked has a call go on without its caller: a call that was not sent never will
// be, and a line is detached. The caller holds r.mu.
func (r *Registry[R]) detachLocked(c *Call[R]) {
	switch c.state {
	case stateQueued:
		r.queued.remove(c)
		c.state = stateDone
		c.Reservation.Release()
		r.dropped(c)
		if !r.closed { // else another process says what became of the call
			c.endBeforeLocked()
		}
	case stateOpen:
		c.lines.waiting--
		r.detachLineLocked(c)
	default:
		c.lines.waiting--
		c.lines.watchIdleLocked()
	}
}

// detachLineLocked gives the line of c to a queued retry, or makes the line a
// detached one, which the journal is asked to release, unless the caller waits with a Fork.
// The caller holds r.mu.
func (r *Registry[R]) detachLineLocked(c *Call[R]) {
	if c.fork == nil && r.offerLocked(c) {
		return
	}
	r.detached.push(c)
	if c.fork == nil {
		c.lines.releaseLocked(c)
	}
	c.lines.watchIdleLocked()
}

// offerLocked gives the line of c, for which no caller waits, to a queued retry, and reports
// whether there was one. The caller holds r.mu.
func (r *Registry[R]) offerLocked(c *Call[R]) bool {
	retry := r.queued[c.Fingerprint].first
	if retry == nil || c.state != stateOpen || c.releasing || !c.lines.joinableLocked() {
		return false
	}
	r.unqueueLocked(retry)
	r.attachLocked(retry, c)
	return true
}

func (r *Registry[R]) unqueueLocked(c *Call[R]) {
	r.queued.remove(c)
	r.dropped(c)
}

// Complete ends a call. It is the only place where a line gets its answer. If a Fork
// fails, its caller waits for the first line again.
func (r *Registry[R]) Complete(c *Call[R], a *Answer[R]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.state == stateDone {
		a.Spending.End(false) // the call has ended meanwhile
		return
	}
	s := c.lines
	returned := !a.isSuccess() && r.returnLocked(c)
	if a.Realtime && c.waiter == nil { // the caller has left meanwhile, or has returned
		a.Spending.End(false)
		a = a.Instead
	}
	a.BatchID, a.CustomID, a.Flex, a.line = s.id, c.ID, s.flex, c
	s.removeLocked(c)
	c.state, c.sending = stateDone, false
	c.endBeforeLocked()
	c.Reservation.Release()
	if returned {
		s.returnedLocked(c, a)
	}
	if c.waiter == nil {
		c.freeBodyLocked()
		r.detached.remove(c)
		switch {
		case c.unwanted:
			s.record.Delivered(c.place)
		case r.answerForkLocked(c, a):
		case a.Paid, !a.Local && !a.Retry:
			r.keepLocked(a)
		}
		return
	}
	if !a.Realtime { // EndRealtime decides
		s.settleLocked(c, a)
	}
	s.waiting--
	r.answerLocked(c, a)
	s.watchIdleLocked()
}

// keepLocked gives an answer to a queued retry, or keeps the answer for a retry to
// come, and reports whether a queued retry has the answer. The caller holds r.mu.
func (r *Registry[R]) keepLocked(a *Answer[R]) (given bool) {
	c, keepFor := a.line, r.keepTime(a)
	switch {
	case c.unwanted, c.answer != nil, a.Err != nil, a.Realtime:
		return false
	case a.Reopen && c.lines.record.Ref() != "":
		return false // the retry finds the line, which may have an answer by then
	}
	if retry := r.queued[c.Fingerprint].first; retry != nil && !c.releasing && c.fork == nil {
		r.unqueueLocked(retry)
		r.giveLocked(retry, a)
		return true
	}
	if keepFor <= 0 {
		return false
	}
	c.answer = a
	r.kept[c.ID] = c
	r.detached.push(c)
	c.kept = r.cache.Put(c, int64(len(a.Body)), keepFor)
	return false
}

// keepTime is how much longer an answer is kept for a retry, counted from when the answer
// was kept first: a failure for failureKeepTime in all, at the most.
func (r *Registry[R]) keepTime(a *Answer[R]) time.Duration {
	if a.came.IsZero() {
		a.came = time.Now()
	}
	keepFor := r.keepFor
	if a.Local || a.Status >= http.StatusBadRequest {
		keepFor = min(keepFor, failureKeepTime)
	}
	return keepFor - time.Since(a.came)
}

// KeepReleased keeps the answer to a line of a batch for a retry to come. The
// journal has released the line, so that the retry gets the answer once the journal has
// given the line back to this process, or by Kept. With count, the answer counts as one
// that a caller got.
func (r *Registry[R]) KeepReleased(s *Lines[R], customID string, a *Answer[R], count bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	keepFor := r.keepTime(a)
	if keepFor <= 0 || r.kept[customID] != nil {
		return
	}
	c := &Call[R]{state: stateDone, lines: s, answer: a}
	c.ID = customID
	if count {
		r.countAnswerLocked(a)
	}
	a.BatchID, a.CustomID, a.line = s.id, customID, c
	r.kept[customID] = c
	c.kept = r.cache.Put(c, int64(len(a.Body)), keepFor)
}

// Kept returns the provider's answer to a line that is kept for a retry, or nil. The
// answer stays, and the journal is not changed: Kept is for calls that the journal has
// been asked for. With forget, the answer is kept no longer.
func (r *Registry[R]) Kept(customID string, forget bool) *reply.Answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cache.Prune()
	c := r.kept[customID]
	if c == nil || !c.answer.FromLine() {
		return nil
	}
	a := c.answer.Answer
	if forget {
		r.cache.Remove(c.kept)
		r.dropKeptLocked(c)
	}
	return &a
}

// Read says that a caller has read an answer to its end. The journal is not asked to release
// the line any more, which an earlier caller left: a release may overtake the delivery, and
// then another call would get the line.
func (r *Registry[R]) Read(a *Answer[R]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := a.line; r.endReadingLocked(c) {
		if !c.releasing {
			delete(c.lines.leaving, c.ID)
		}
		c.lines.record.Delivered(c.place)
	}
}

// endReadingLocked reports whether the journal waits for the end of the reading of
// c's answer. The caller holds r.mu.
func (r *Registry[R]) endReadingLocked(c *Call[R]) bool {
	was := c.reading
	if was {
		c.reading = false
		delete(r.reading, c.ID)
		c.lines.record.EndRead()
	}
	return was
}

// Unread says that a caller disconnected before it read its answer: the answer
// is kept for a retry, and the journal is asked to release the line. An answer of Refuse
// belongs to no line, and is not kept.
func (r *Registry[R]) Unread(a *Answer[R]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.line == nil {
		return
	}
	r.endReadingLocked(a.line)
	r.keepLocked(a)
	if a.FromLine() {
		a.line.lines.releaseLocked(a.line)
	}
}

// EndRealtime ends a call that was answered in real time because its batch failed.
// served says that the caller has read a successful answer, and left that the caller
// disconnected before it read an answer: then, unless a retry may be answered otherwise, and
// if the line may be paid for, the failure of the batch is kept for a retry, which would
// otherwise pay for another line.
func (r *Registry[R]) EndRealtime(a *Answer[R], served, left bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a.Spending.End(false) // unless it has ended
	c := a.line
	if served {
		c.lines.record.Delivered(c.place)
		return
	}
	failure := a.Instead
	failure.BatchID, failure.CustomID, failure.Flex, failure.line = a.BatchID, a.CustomID, a.Flex, c
	given := (left && !failure.Retry || failure.Paid) && r.keepLocked(failure)
	if failure.Paid && !given {
		c.lines.releaseLocked(c) // a retry at another replica finds the line
	} else {
		c.lines.settleLocked(c, failure)
	}
}

// Dismiss says that no retry will come for a detached line, since its caller has
// an answer from elsewhere. Nil is no line.
func (r *Registry[R]) Dismiss(c *Call[R]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dismissLocked(c)
}

// dismissLocked is Dismiss. The caller holds r.mu.
func (r *Registry[R]) dismissLocked(c *Call[R]) {
	if c == nil || c.lines == nil || c.waiter != nil || c.replaced { // was not sent, has a caller again, or a retry has taken over the line
		return
	}
	s := c.lines
	if current := s.open[c.ID]; current != nil && current != c {
		return // the journal has given the line to a retry
	}
	c.unwanted, s.dismissed = true, true
	r.detached.remove(c)
	if c.answer != nil {
		r.cache.Remove(c.kept)
		r.dropKeptLocked(c)
	}
	s.record.Delivered(c.place)
}

// A Queue holds calls that were not sent yet.
type Queue[R any] interface {
	Seal() // makes the Queue take no more calls
	Calls() []*Call[R]
	Take() []*Call[R] // empties the Queue
}

// ClaimQueue is Claim for the calls of a queue. The calls leave the queue afterwards, so
// that each call is found at each moment.
func (r *Registry[R]) ClaimQueue(q Queue[R], s *Lines[R]) []*Call[R] {
	q.Seal()
	claimed := r.Claim(q.Calls(), s)
	q.Take()
	return claimed
}

// Claim makes the calls that are still queued the lines of a batch, in order, and
// returns them. A call whose earlier line the journal may have released without
// saying so takes that line over: the line may be paid for.
func (r *Registry[R]) Claim(calls []*Call[R], s *Lines[R]) []*Call[R] {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cache.Prune()
	claimed := calls[:0]
	for _, c := range calls {
		if c == nil || c.state != stateQueued {
			continue
		}
		r.queued.remove(c)
		if r.takeOverLocked(c, true) {
			continue
		}
		s.addLocked(c, c.ID, len(claimed))
		c.sending = true
		claimed = append(claimed, c)
	}
	s.sent = append(s.sent, claimed...)
	return claimed
}

// Queued are the fingerprints of those of the calls that are still queued.
func (r *Registry[R]) Queued(calls []*Call[R]) []journal.Hash {
	r.mu.Lock()
	defer r.mu.Unlock()
	fingerprints := make([]journal.Hash, 0, len(calls))
	for _, c := range calls {
		if c != nil && c.state == stateQueued {
			fingerprints = append(fingerprints, journal.Hash(c.Fingerprint))
		}
	}
	return fingerprints
}

// Waiting returns those of the fingerprints for which calls are queued: a
// fingerprint is returned as often as it is given, but not more often than calls
// are queued.
func (r *Registry[R]) Waiting(fingerprints []journal.Hash) []journal.Hash {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := make(map[Fingerprint]*Call[R], len(fingerprints))
	var waiting []journal.Hash
	for _, hash := range fingerprints {
		f := Fingerprint(hash)
		c, seen := next[f]
		if !seen {
			c = r.queued[f].first
		}
		if c != nil {
			waiting = append(waiting, hash)
			c = c.next
		}
		next[f] = c
	}
	return waiting
}

// Requeue makes calls of a batch that will not answer them queued calls again, and
// gives those to enqueue, which is called with the lock held: otherwise a caller
// could leave while its call is in no queue. A call without a caller is dropped.
func (r *Registry[R]) Requeue(calls []*Call[R], enqueue func([]*Call[R])) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var again []*Call[R]
	for _, c := range calls {
		if c.state != stateOpen && c.state != stateResubmit {
			continue
		}
		s := c.lines
		s.removeLocked(c)
		c.sending = false
		if c.ByID && c.before == nil && c.waiter != nil {
			c.before = &lineBefore{s.record, c.place}
		} else {
			s.record.Delivered(c.place)
		}
		if c.waiter == nil {
			c.endBeforeLocked()
			r.detached.remove(c)
			c.state = stateDone
			c.freeBodyLocked()
			c.Reservation.Release()
			s.watchIdleLocked()
			continue
		}
		s.waiting--
		s.watchIdleLocked()
		c.state, c.lines = stateQueued, nil
		r.queued.push(c)
		again = append(again, c)
	}
	enqueue(again)
}

// Place gives lines that the journal gave to this process to the queued calls
// with the same fingerprints. A line that a caller here waits for already, also with a
// Fork, or whose answer a caller here is reading, stays with its caller: the journal had
// released the line when the lease expired, or repeats a lost answer. find
// returns the lines of a batch, which it begins to poll if no batch here does.
func (r *Registry[R]) Place(taken []journal.Taken, find func(journal.Batch) *Lines[R]) {
	for _, t := range taken {
		s := find(t.Batch)
		r.mu.Lock()
		for _, l := range t.Lines {
			r.placeLocked(s, l)
		}
		s.watchIdleLocked()
		r.mu.Unlock()
	}
}

// placeLocked gives a line to a queued call. The caller holds r.mu.
func (r *Registry[R]) placeLocked(s *Lines[R], l journal.Line) {
	old := s.open[l.CustomID]
	if _, reading := r.reading[l.CustomID]; reading || old != nil && (old.waiter != nil || old.fork != nil) {
		return
	}
	c := r.queued[Fingerprint(l.Fingerprint)].first
	if c == nil || s.closed { // the caller has left meanwhile, or the batch has ended
		if old == nil {
			old = &Call[R]{state: stateDone, lines: s, place: l.N}
			old.ID = l.CustomID
		}
		s.releaseLocked(old)
		return
	}
	r.unqueueLocked(c)
	if kept := r.kept[l.CustomID]; kept != nil {
		kept.lines, kept.place = s, l.N
		s.settleLocked(kept, kept.answer)
		r.takeKeptLocked(c, kept)
		return
	}
	c.inheritLocked(s.lent[l.CustomID])
	delete(s.lent, l.CustomID)
	if old != nil {
		r.replaceLocked(c, old)
	}
	s.addLocked(c, l.CustomID, l.N)
	s.given = max(s.given-1, 0)
	s.reread = true
}
