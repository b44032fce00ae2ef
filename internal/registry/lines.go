package registry

import (
	"slices"
	"time"

	"github.com/autobatcher/autobatcher/internal/budget"
	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/internal/line"
)

// Lines are the lines of one batch, as far as this process knows them. Its
// fields are guarded by registry.mu.
type Lines[R any] struct {
	r      *Registry[R]
	record *journalsession.Record
	idleTo chan<- struct{} // receives when the batch was idle for too long
	flex   bool            // the batch is a call at the flex tier

	ref        string                         // the name of the batch in the journal; "" if the journal does not know the batch
	id         string                         // of the batch at the provider; "" until known
	sent       []*Call[R]                     // the lines in the order of the input file, until the batch has an id; written by the goroutine of the batch
	open       map[string]*Call[R]            // the lines without an answer, by custom id
	waiting    int                            // how many calls of the batch have a caller
	leaving    map[string]*Call[R]            // lines that the journal is to release, by custom id
	lent       map[string]*budget.Reservation // of unanswered lines that the journal gives away, by custom id
	given      int                            // how many unanswered lines the journal gives away
	cancelling bool                           // no call takes over a line
	dismissed  bool                           // a line was dismissed
	reread     bool                           // a line was attached whose result may have been read already
	ended      bool                           // the provider has ended the batch
	stale      bool                           // the batch was over before this process knew the batch
	closed     bool                           // the batch has ended: no call takes over a line
	idle       *time.Timer                    // runs while no caller waits
}

// Claimed notes that this process owns the batch, if mine is true.
func (s *Lines[R]) Claimed(mine bool) {
	if mine {
		s.record.Claimed()
	}
}

// NewLines returns the lines of a new batch. idleTo receives when no caller has
// waited for a line for too long; it should have room for one value. flex says that the batch
// is a call at the flex tier.
func (r *Registry[R]) NewLines(idleTo chan<- struct{}, flex bool) *Lines[R] {
	return &Lines[R]{r: r, idleTo: idleTo, flex: flex, open: make(map[string]*Call[R]), leaving: make(map[string]*Call[R])}
}

// SetRecord sets the journal record of the batch, before the first line is added.
func (s *Lines[R]) SetRecord(record *journalsession.Record) { s.record = record }

// joinableLocked reports whether calls may take over lines. The caller holds r.mu.
func (s *Lines[R]) joinableLocked() bool { return !s.cancelling && !s.closed }

// addLocked makes c the call of a line. The caller holds r.mu.
func (s *Lines[R]) addLocked(c *Call[R], customID string, place int) {
	c.ID, c.place, c.lines, c.state = customID, place, s, stateOpen
	if c.before != nil && c.before.place == place && c.before.record.Ref() == s.record.Ref() && s.record.Ref() != "" {
		c.before = nil // the call has its line back
	}
	s.open[customID] = c
	delete(s.leaving, customID) // a caller waits for the line
	if c.waiter != nil {
		s.waiting++
	}
	if s.id != "" {
		c.notifySentLocked()
	}
	s.watchIdleLocked()
}

// removeLocked takes the line of c out. The caller holds r.mu.
func (s *Lines[R]) removeLocked(c *Call[R]) {
	if s.open[c.ID] == c {
		delete(s.open, c.ID)
	}
}

// releaseLocked has the journal asked to release the line of c. The caller holds
// r.mu.
func (s *Lines[R]) releaseLocked(c *Call[R]) {
	s.leaving[c.ID] = c
	s.record.Detached()
}

// settleLocked tells the journal what became of a line whose caller gets a failure: the
// line may yet answer a retry, or a retry has no use for the line. The caller holds r.mu.
func (s *Lines[R]) settleLocked(c *Call[R], failure *Answer[R]) {
	switch {
	case failure.Reopen:
		s.releaseLocked(c)
	case failure.Local:
		s.record.Delivered(c.place)
	}
}

// returnedLocked tells the journal what became of a line that has failed, and whose caller waits
// for another line again. The caller holds r.mu.
func (s *Lines[R]) returnedLocked(c *Call[R], failure *Answer[R]) {
	s.waiting--
	s.watchIdleLocked()
	switch {
	case failure.Err != nil: // a retry at another process finds the line
	case failure.Reopen, failure.Paid: // a retry that climbs finds the line, and does not pay again
		s.releaseLocked(c)
	default:
		s.record.Delivered(c.place)
	}
}

// Known makes the lines findable by the batch's name in the journal. Earlier lines of the
// calls are of no use any more.
func (s *Lines[R]) Known(ref string) {
	if ref != "" {
		s.r.mu.Lock()
		defer s.r.mu.Unlock()
		s.ref, s.r.sets[ref] = ref, s
		for _, c := range s.sent {
			c.endBeforeLocked()
		}
	}
}

// Sent returns the lines in the order of the input file, until the batch has an id. Only
// the goroutine that runs the batch may call Sent. Their bodies do not change until Sent
// is empty or the calls are completed or queued again.
func (s *Lines[R]) Sent() []*Call[R] { return s.sent }

// SetID stores the id of the batch. No goroutine may read the bodies of the lines any
// more: the bodies of detached lines are freed.
func (s *Lines[R]) SetID(id string) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.id = id
	if id != "" {
		for _, c := range s.open { // also a call that took over the line of another process
			c.notifySentLocked()
		}
	}
	s.endSendingLocked()
}

// EndSending says that the batch has ended: nothing reads the bodies of its lines.
func (s *Lines[R]) EndSending() {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.endSendingLocked()
}

// endSendingLocked frees the bodies of lines without callers. A call that was queued
// again may be a line of another batch meanwhile. The caller holds r.mu.
func (s *Lines[R]) endSendingLocked() {
	for _, c := range s.sent {
		if c.lines == s {
			c.sending = false
			c.freeBodyLocked()
		}
	}
	s.sent = nil
}

// SetIDLocked is SetID for the function that LinesOf calls.
func (s *Lines[R]) SetIDLocked(id string) { s.id = id }

// Find returns the call that waits for a result, or nil.
func (s *Lines[R]) Find(customID string) *Call[R] {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	return s.open[customID]
}

// Count is the number of lines without an answer.
func (s *Lines[R]) Count() int {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	return len(s.open)
}

// Census returns the id of the batch, how many callers wait for its lines, and how many
// calls were not sent yet: those of its queue that are not lines yet, and, before the
// batch has an id, all lines. atOnce says that the lines are sent when they are made.
func (s *Lines[R]) Census(queue []*Call[R], atOnce bool) (id string, queued, running int) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.id != "" {
		return s.id, 0, s.waiting
	}
	for _, c := range queue {
		if c.state == stateQueued {
			queued++
		}
	}
	if atOnce {
		return "", queued, s.waiting
	}
	return "", queued + len(s.open), 0
}

// Ended says that the provider has ended the batch: only results are to be read.
func (s *Lines[R]) Ended() {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.ended = true
}

// Ending reports whether the batch ends without waiting: the batch is closed, or
// has ended at the provider and each line has its answer.
func (s *Lines[R]) Ending() bool {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	return s.closed || s.ended && len(s.open) == 0
}

// Stale says that the batch was over before this process knew the batch: that its calls
// have no answer counts against none of them.
func (s *Lines[R]) Stale() {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.stale = true
}

// TakeReread reports whether results that were read already are wanted again.
func (s *Lines[R]) TakeReread() bool {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	again := s.reread
	s.reread = false
	return again
}

// Dismissed reports whether a line counts as delivered in the journal although the
// provider may not have executed the line: its caller got an answer elsewhere.
func (s *Lines[R]) Dismissed() bool {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	return s.dismissed
}

// RetryLater takes a call out of the lines that is to be resubmitted, and reports
// whether it did: a call without a caller or without a body, or one that was resubmitted
// too often, stays.
func (s *Lines[R]) RetryLater(c *Call[R], limit int) bool {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if c.state != stateOpen || c.waiter == nil || c.Recalled || limit <= 0 || int(c.attempts) >= limit && !s.stale {
		return false
	}
	if !s.stale {
		c.attempts++
	}
	c.state = stateResubmit
	s.removeLocked(c)
	return true
}

// ByPlace returns the calls of the lines by place in the input file, nil where a
// line has none, and the lines as they are now: the Registry may free the body of a call
// at any time. size is the least number of places: the size of a batch that
// another process began may not be known.
func (s *Lines[R]) ByPlace(size int) (calls []*Call[R], lines []line.Line) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	for _, c := range s.open {
		size = max(size, c.place+1)
	}
	calls, lines = make([]*Call[R], size), make([]line.Line, size)
	for _, c := range s.open {
		calls[c.place], lines[c.place] = c, c.Line
	}
	return calls, lines
}

// Close ends the taking over of lines and returns the calls that are left. With
// unlessReread, close does nothing and returns false if a call took over a line
// whose result may have been read already.
func (s *Lines[R]) Close(unlessReread bool) (rest []*Call[R], closed bool) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if unlessReread && s.reread && len(s.open) > 0 {
		return nil, false
	}
	s.closeLocked()
	for _, c := range s.open {
		rest = append(rest, c)
	}
	return rest, true
}

func (s *Lines[R]) closeLocked() {
	s.closed = true
	if s.idle != nil {
		s.idle.Stop()
		s.idle = nil
	}
	if s.r.sets[s.ref] == s {
		delete(s.r.sets, s.ref)
	}
	for _, reservation := range s.lent {
		reservation.Release()
	}
	s.lent = nil
}

// BeginCancel decides that the batch is to be cancelled: from now on no call
// takes over a line. With onlyIdle it does so only if no caller waits. It reports
// whether it decided so now.
func (s *Lines[R]) BeginCancel(onlyIdle bool) bool {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.cancelling || s.closed || onlyIdle && !s.idleLocked() {
		return false
	}
	s.cancelling = true
	for _, c := range s.open {
		if c.fork != nil { // the journal has a batch cancelled whose lines it has released
			s.releaseLocked(c)
		}
	}
	return true
}

// CancelFailed says that the batch will not be cancelled: its lines may be taken
// over again.
func (s *Lines[R]) CancelFailed() {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.cancelling, s.idle = false, nil
	for _, c := range s.open {
		if c.waiter == nil && c.fork == nil && !c.releasing {
			s.r.offerLocked(c)
		}
	}
	s.watchIdleLocked()
}

// idleLocked reports whether lines are left and no caller waits for a line. The
// caller holds r.mu.
func (s *Lines[R]) idleLocked() bool { return s.waiting == 0 && len(s.open)+s.given > 0 }

// CloseIfUnused ends the taking over of lines if no caller waits for a line, and
// reports whether it did.
func (s *Lines[R]) CloseIfUnused() bool {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.waiting > 0 {
		return false
	}
	s.closeLocked()
	return true
}

// watchIdleLocked starts or stops the time after which an idle batch is
// cancelled. The caller holds r.mu.
func (s *Lines[R]) watchIdleLocked() {
	idle := s.idleLocked() && s.r.idleAfter > 0 && !s.closed && !s.cancelling
	switch {
	case !idle && s.idle != nil:
		s.idle.Stop()
		s.idle = nil
	case idle && s.idle == nil:
		s.idle = time.AfterFunc(s.r.idleAfter, func() {
			select {
			case s.idleTo <- struct{}{}:
			default: // the batch has not looked yet
			}
		})
	}
}

// BeginRelease implements journalsession.Lines.
func (s *Lines[R]) BeginRelease() []int {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	var places []int
	for id, c := range s.leaving {
		if c.unwanted || c.reading || c.state == stateResubmit || c.state == stateQueued {
			delete(s.leaving, id) // a caller reads the answer of the line, or no retry will come
			continue
		}
		c.releasing = true
		places = append(places, c.place)
	}
	slices.Sort(places)
	return places
}

// FinishRelease implements journalsession.Lines.
func (s *Lines[R]) FinishRelease([]int) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	for id, c := range s.leaving {
		if !c.releasing {
			continue
		}
		delete(s.leaving, id)
		c.releasing, c.fork = false, nil
		s.r.detached.remove(c)
		if s.open[c.ID] == c && c.waiter == nil {
			delete(s.open, c.ID)
			c.state = stateDone
			s.given++
			s.lendLocked(c)
		}
	}
	s.watchIdleLocked()
}

// lendLocked keeps the reservation of a line that the journal gives away until the
// line is given back to this process, or the batch ends. The caller holds r.mu.
func (s *Lines[R]) lendLocked(c *Call[R]) {
	switch {
	case c.Reservation == nil:
	case s.closed:
		c.Reservation.Release()
	default:
		if s.lent == nil {
			s.lent = make(map[string]*budget.Reservation)
		}
		s.lent[c.ID] = c.Reservation
	}
}

// Waiting implements journalsession.Lines.
func (s *Lines[R]) Waiting() []int { return s.places(func(c *Call[R]) bool { return c.waiter != nil }) }

// Unanswered implements journalsession.Lines.
func (s *Lines[R]) Unanswered() []int { return s.places(func(*Call[R]) bool { return true }) }

func (s *Lines[R]) places(include func(*Call[R]) bool) []int {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	var places []int
	for _, c := range s.open {
		if include(c) {
			places = append(places, c.place)
		}
	}
	return places
}
