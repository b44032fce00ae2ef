package registry

import (
	"crypto/sha256"
	"net/http"
	"time"

	"github.com/autobatcher/autobatcher/internal/answercache"
	"github.com/autobatcher/autobatcher/internal/budget"
	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/reply"
)

// A Call is one caller's request. Its line is the request as it stands in the
// input file of a batch; a retry that takes over the line of an earlier call gets
// the custom id and the place of that line. R is what the Registry's user knows
// of the request.
type Call[R any] struct {
	line.Line
	Fingerprint Fingerprint
	Request     R

	// Reservation is what the call may cost, or nil. A retry that takes over the
	// line takes over the reservation of the line. After Enter, the Registry owns
	// the reservation, and releases the reservation when the call ends. Guarded by
	// Registry.mu.
	Reservation *budget.Reservation

	// Freed is called when the Registry has freed the body: no caller waits for the
	// call, and no upload reads the body. Freed must not block. After Enter, the
	// Registry owns Freed and the body. Nil: not called.
	Freed func()

	// Sent is called when the provider has created a batch with the line of the call, at
	// most once, with the id of the batch, or with "" if the journal does not know the
	// batch. Sent must not block. Nil: not called.
	Sent func(recorded string)

	// Earlier is the call that Fork made this call of, or nil.
	Earlier *Call[R]

	// Recalled says that the call has no body: it gets a kept answer, or the line of an
	// earlier call, and is never sent.
	Recalled bool

	// ByID says that other processes may ask the journal for the call while the call waits.
	ByID bool

	// Guarded by Registry.mu.
	state      state
	releasing  bool               // the journal was asked to release the line
	reading    bool               // a caller reads the answer, and the journal waits for the end
	replaced   bool               // another call has taken over the line
	unfollowed bool               // a Fork that no caller waits with yet
	forked     bool               // a Fork of this call, or of an earlier call with its line, was sent
	returned   bool               // the caller waits for the line of Earlier again
	unwanted   bool               // the caller got an answer elsewhere, and no retry will come
	sending    bool               // an upload may read the body, without Registry.mu
	attempts   int32              // the number of times the call was resubmitted for want of an answer
	waiter     *Waiter[R]         // &asked; nil: the caller has gone
	lines      *Lines[R]          // the lines of its batch; nil: not sent yet
	place      int                // of its line in the input file
	answer     *Answer[R]         // kept for a retry: the answer came without a caller, or its caller did not read it
	kept       *answercache.Entry // of answer
	before     *lineBefore        // of a call ByID that is sent again, until the journal has its next line; nil: none
	fork       *Call[R]           // the call that the caller waits with instead, while this process keeps the line of c for that caller; nil: none
	prev       *Call[R]           // in a chain of calls with equal fingerprints
	next       *Call[R]

	asked Waiter[R] // the caller, while and after it waits
}

// A lineBefore is the line of a call in a batch that did not answer the call.
type lineBefore struct {
	record *journalsession.Record
	place  int
}

// endBeforeLocked has the journal note that the line before is of no use any more. The
// caller holds Registry.mu.
func (c *Call[R]) endBeforeLocked() {
	if c.before != nil {
		c.before.record.Delivered(c.before.place)
		c.before = nil
	}
}

// notifySentLocked reports that the batch of the call exists. The caller holds Registry.mu.
func (c *Call[R]) notifySentLocked() {
	if c.Sent == nil {
		return
	}
	recorded := c.lines.id
	if c.lines.record.Ref() == "" {
		recorded = ""
	}
	c.Sent(recorded)
	c.Sent = nil
}

// freeBodyLocked frees the body if nothing needs the body any more: a waiting caller may
// need a resubmission, and an upload reads the body. The caller holds Registry.mu.
func (c *Call[R]) freeBodyLocked() {
	if c.waiter != nil || c.sending {
		return
	}
	c.Body = nil
	if c.Freed != nil {
		c.Freed()
		c.Freed = nil
	}
}

// currentLocked is the call whose line the caller waits for. The caller holds Registry.mu.
func (c *Call[R]) currentLocked() *Call[R] {
	if c.returned {
		return c.Earlier
	}
	return c
}

// returnsLocked reports whether the caller of c, a Fork, can wait for the first line again. The
// caller holds Registry.mu.
func (c *Call[R]) returnsLocked() bool {
	e := c.Earlier
	return e != nil && c.waiter != nil && e.fork == c && e.state == stateOpen && !e.releasing && e.lines.joinableLocked()
}

// inheritLocked replaces the reservation of c by that of the line that c takes
// over, if the line has one. The caller holds Registry.mu.
func (c *Call[R]) inheritLocked(line *budget.Reservation) {
	if line != nil {
		c.Reservation.Release()
		c.Reservation = line
	}
}

// state says how far a call got.
type state uint8

const (
	stateQueued   state = iota // waits to be sent
	stateOpen                  // has a line without an answer; without a waiter the line is detached
	stateResubmit              // its batch did not answer the call, which is to be queued again
	stateDone                  // answered, dropped, or replaced by a retry
)

// A Waiter is a caller that waits for an answer.
type Waiter[R any] struct {
	// Ready receives once, when the answer is there, and then Answer returns the answer.
	// The channel has room, so that the Registry never blocks.
	Ready  chan struct{}
	answer *Answer[R] // written before Ready receives
	call   *Call[R]
}

// Answer returns the answer. It must be called only after a receive from Ready.
func (w *Waiter[R]) Answer() *Answer[R] { return w.answer }

// A Fingerprint identifies a call: calls with the same account, URL and body
// bytes have the same fingerprint. A retry is known by its fingerprint.
type Fingerprint [sha256.Size]byte

// An Answer ends a call: with a response, with the error that RoundTrip returns,
// or with the decision to send the call in real time.
type Answer[R any] struct {
	reply.Answer
	Err      error
	Realtime bool
	Reopen   bool                // the line may yet answer a retry
	Paid     bool                // a failure of a batch that the provider may have executed
	Flex     bool                // the line was a flex call
	Counted  bool                // in Counters already, or another process counts the answer; of calls that are recalled
	Instead  *Answer[R]          // of a Realtime answer: the failure that the call is sent in real time for
	Spending *price.RealtimeCall // of a Realtime answer: what the call may cost
	line     *Call[R]            // the call whose line gave the answer
	came     time.Time           // when the answer was kept first
}

// FromLine reports whether the answer is the provider's answer to a line.
func (a *Answer[R]) FromLine() bool { return !a.Local && !a.Realtime && a.Err == nil }

// isSuccess reports whether the answer is the provider's, and no error.
func (a *Answer[R]) isSuccess() bool { return a.FromLine() && a.Status < http.StatusMultipleChoices }

// Delivered implements reply.Receiver. An answer that is not the provider's is of no
// use to a retry.
func (a *Answer[R]) Delivered() {
	if a.FromLine() {
		a.line.lines.r.Read(a)
	}
}

// Undelivered implements reply.Receiver. An answer of Refuse belongs to no line, and is
// not kept.
func (a *Answer[R]) Undelivered() {
	if a.line != nil {
		a.line.lines.r.Unread(a)
	}
}

// failureKeepTime is how long a failure is kept whose caller disconnected before
// reading the failure. SDKs retry within seconds, and the retry must receive the
// failure instead of paying for another line.
const failureKeepTime = 2 * time.Minute
