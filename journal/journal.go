// Package journal records the batches that a program pays for. A Transport records
// every batch before creating the batch at the provider. After a crash, at a second
// replica or after a lost response, a repeated call finds the line of the first
// call and is not paid for again.
//
// A journal holds no prompts, no results and no credentials. A journal holds hashes,
// ids, states and times. The results stay with the provider.
//
// Package journal/sqlite keeps a journal in a file, shared by the processes of a
// machine. Package journal/postgres keeps a journal in a database, shared by a
// fleet. [NewMemory] keeps a journal in memory, for tests. Package
// journal/journaltest is the specification of a backend, as tests.
//
// # Owners
//
// Each process makes up a name at its start and uses the journal under the name: the
// owner. An owner holds the lines of its waiting callers. The owner has a lease and
// renews the lease by [Store.Heartbeat].
//
// After the end of the lease the owner is expired, and still holds everything. The
// owner dies when a different owner's request relies on the death (TakeOver, Claim,
// Hold, Abandon, a list of batches and similar). Death removes the owner and does
// not change the lines and batches of the owner: lines and batches of a removed
// owner are open. An owner who returns after its death is a new owner of the same
// name and holds nothing. An owner who returns before its death keeps everything.
//
// The clock of the database or of the machine measures all leases. An owner states
// the length of the lease, not the end. The clocks of replicas may differ.
//
// # Lines
//
// A line is held by an owner, or open, or delivered. A line is open if its owner
// released the line or is dead. Owners take over open lines only, and no line goes
// to two owners. The journal counts delivered lines and deletes all other data of
// delivered lines.
package journal

import (
	"context"
	"errors"
	"time"
)

// A Hash is a keyed hash; see [Store.Key].
type Hash [32]byte

// State is the progress of a batch.
type State string

// The states, in the order of a batch's life. After a create that failed, the
// state of the batch is Uploaded again, with another file.
const (
	Uploading  State = "uploading"  // begun: nothing to pay for exists
	Uploaded   State = "uploaded"   // the input file exists
	Creating   State = "creating"   // the batch may exist: look before creating
	Running    State = "running"    // the batch exists
	Cancelling State = "cancelling" // no caller waits; no owner takes over a line
	Ended      State = "ended"      // no further results will come
)

// A Batch is the record of a batch.
type Batch struct {
	// Ref names the batch in the journal. Begin requires a new name.
	Ref string

	// Owner runs the batch: uploads, creates, polls. Only Owner advances the
	// batch. "" if the owner is dead; see [Store.Claim].
	Owner string

	Account  Hash     // of the paying account
	Upstream string   // the base URL, without secrets
	Provider string   // the name of the profile
	Endpoint string   // as in the lines of the input file
	Window   string   // the completion window
	Models   []string // sorted, without duplicates

	// Traces are the traces that the calls of the batch belong to, as values of the
	// header traceparent, separated by spaces; "" if none is known. The journal
	// returns the text unchanged.
	Traces string

	State       State
	InputFileID string // "" before Uploaded
	BatchID     string // "" before Running
	Status      string // the provider's final status; "" before Ended

	// Cost and Savings are the estimates for the batch, in US dollars, as decimal
	// numbers. "": not known.
	Cost, Savings string

	// Began, Created and Ended are the times of Begin and of the first Advance
	// to Running and Ended, by the journal's clock, in UTC. The zero time means
	// not yet.
	Began, Created, Ended time.Time

	// Lines is the number of lines of the batch, the sum of delivered lines,
	// lines held by living owners, and open lines.
	Lines, Delivered, Held, Open int
}

// A Line is a line of a batch.
type Line struct {
	// N is the index of the line in the slice given to Begin. Begin ignores N.
	N int

	// CustomID is the provider's name of the line.
	CustomID string

	// Fingerprint is equal for repeated calls: same account, URL and body.
	Fingerprint Hash

	// ResponseID is the provider's id of a background response, "" if none; see
	// [Store.SetResponse]. Begin ignores ResponseID.
	ResponseID string
}

// Taken is a batch and some lines of the batch, in the order of N.
type Taken struct {
	Batch Batch // without the counts
	Lines []Line
}

// A Step is a change of a batch.
type Step struct {
	State State

	// InputFileID, BatchID, Status, Cost and Savings replace the recorded values,
	// unless "".
	InputFileID, BatchID, Status, Cost, Savings string
}

// A Filter selects the batches matched by all fields. The zero Filter selects all
// batches.
type Filter struct {
	Ref     string // the name of the batch, if not ""
	Account *Hash  // the account of the batches, if not nil

	// Unfinished omits ended batches without undelivered lines.
	Unfinished bool

	// Orphans selects batches before their end and without a living owner. The
	// cost depends on the number of orphans and of owners, not on the
	// size of the journal. Delivered, Held and Open of the result are zero.
	Orphans bool
}

// An Owner is an owner with a running lease.
type Owner struct {
	Name   string
	Silent time.Duration // since the last heartbeat
	Left   time.Duration // until the lease runs out
}

// A Store is a journal. All methods may be called concurrently, and by several
// processes where the backend says so. The work of a method is durable when the
// method returns nil. A method has no timeout of its own: the context is the only
// limit, and the caller should allow more time for more lines. An error other than
// the sentinels below leaves open whether the work was done. errors.Is matches the
// error of an ended context.
//
// The cost of a method depends on the touched lines and batches, not on the size of
// the journal. A dead owner's lines cost nothing until an owner takes them over; the
// backends say how a lookup grows with dead owners.
type Store interface {
	// Key returns 32 random bytes, the same for every user of the journal, for
	// the life of the journal. Hashes are keyed with Key and therefore mean
	// nothing outside of the journal.
	Key(ctx context.Context) (Hash, error)

	// Heartbeat gives owner a lease of the given length from now. Zero or less
	// removes owner and opens everything held by owner at once, for a process
	// about to end. Heartbeat reports expired as true if owner holds nothing now,
	// because owner is new or had expired and died. Hold and Claim then give back
	// everything not taken in the meantime. If owner had expired but not died,
	// owner keeps everything, and expired is false.
	Heartbeat(ctx context.Context, owner string, lease time.Duration) (expired bool, err error)

	// Owners lists the owners with running leases, by name. An owner who is
	// silent for longer than its heartbeat interval is probably dead, and its
	// lines will soon be open. Waiting costs less than paying a second time.
	Owners(ctx context.Context) ([]Owner, error)

	// Begin records a batch before the upload, and the lines of the batch in
	// the order of the input file, all held by b.Owner. Begin reads the fields
	// Ref to Traces of b; the state becomes Uploading. The batch appears in the
	// journal as a whole or not at all. The error is ErrLapsed if b.Owner has no
	// lease, and ErrExists if Ref is not new.
	Begin(ctx context.Context, b Batch, lines []Line) error

	// Advance records the progress of a batch. The caller must call Advance
	// before the create request for Creating, and after every other step.
	// The error is ErrNotOwner if owner does not run the batch, and ErrNoBatch if
	// the journal does not have the batch.
	Advance(ctx context.Context, owner, ref string, s Step) error

	// Discard deletes a batch that was never created, and the lines. The errors
	// are the errors of Advance.
	Discard(ctx context.Context, owner, ref string) error

	// Claim makes owner run the batch unless a living owner does, and reports
	// whether owner runs the batch now. Claim does not change the lines. The
	// errors are ErrLapsed and ErrNoBatch.
	Claim(ctx context.Context, owner, ref string) (bool, error)

	// TakeOver finds open lines of the account by fingerprint, makes owner hold
	// the lines, and returns the lines ordered by the time of Begin and by N.
	// TakeOver takes the oldest line for each fingerprint: n equal
	// fingerprints take n lines, or fewer if fewer are open. No line goes to two
	// owners. The error is ErrLapsed if owner has no lease. After any other
	// error some lines may have been taken; Held finds the lines. A single call
	// with thousands of fingerprints is cheaper than many calls.
	TakeOver(ctx context.Context, owner string, account Hash, fingerprints []Hash) ([]Taken, error)

	// Held finds the lines of the account held by owner now, by fingerprint: all
	// lines of each fingerprint, in the order of TakeOver. After the answer of a
	// TakeOver was lost, Held returns the taken lines. Held is empty if owner is
	// unknown.
	Held(ctx context.Context, owner string, account Hash, fingerprints []Hash) ([]Taken, error)

	// Find finds the undelivered lines of the account by fingerprint: all lines of
	// each fingerprint, in every state of the batch, held by any owner or open, in
	// the order of TakeOver. Find changes nothing, and no owner dies because of Find:
	// Batch.Owner of the result may be expired. Find is empty if no line matches. The
	// cost grows with the number of batches of many lines that have undelivered lines.
	Find(ctx context.Context, account Hash, fingerprints []Hash) ([]Taken, error)

	// Hold makes owner hold the open lines among lines, unless the batch is being
	// cancelled: after its death an owner returns, and its callers still wait.
	// The error is ErrLapsed if owner has no lease.
	Hold(ctx context.Context, owner, ref string, lines []int) error

	// Release opens the lines held by owner among lines: the callers have
	// disconnected.
	Release(ctx context.Context, owner, ref string, lines []int) error

	// SetResponse records the provider's response id of a line. TakeOver and
	// Held return the id with the line. SetResponse does nothing unless owner
	// holds the line.
	SetResponse(ctx context.Context, owner, ref string, line int, responseID string) error

	// Deliver records the lines as delivered to their callers. Deliver does not
	// change lines of other living owners and delivered lines.
	Deliver(ctx context.Context, owner, ref string, lines []int) error

	// Withdraw records as delivered all lines that Find would return, of any holder,
	// and returns their number: nobody wants the answers any more. Withdraw
	// needs no owner and no lease. For the holder a withdrawn line is a delivered
	// line: a later Deliver, Release, Hold or SetResponse does nothing. After an error
	// some lines may have been withdrawn; another Withdraw withdraws the rest. Withdraw
	// does not change a line of a Begin that has not returned.
	Withdraw(ctx context.Context, account Hash, fingerprints []Hash) (int, error)

	// Abandon changes the state from Running to Cancelling if no living owner
	// holds a line of the batch, and reports the change. While the state is
	// Cancelling, no owner takes over a line of the batch. The errors are the
	// errors of Advance.
	Abandon(ctx context.Context, owner, ref string) (bool, error)

	// Batches lists batches in the order of Begin.
	Batches(ctx context.Context, f Filter) ([]Batch, error)

	// Forget deletes batches by age, and returns the number of deleted batches:
	// batches that ended at least the first duration ago, and batches without a
	// living owner that were begun at least the second duration ago. Forget keeps
	// a batch while a living owner holds a line of the batch. Forget deletes in
	// small steps and lets other requests in between. A batch is invisible from
	// the first step on; after an interruption the next Forget continues.
	Forget(ctx context.Context, ended, begun time.Duration) (int, error)

	// Close releases the resources of the Store. A backend may treat the owners
	// of the Store's heartbeats as dead at once.
	Close() error
}

// Sentinel errors of a Store's methods.
var (
	ErrLapsed   = errors.New("journal: the owner has no lease, or the lease ran out")
	ErrNotOwner = errors.New("journal: the owner does not run the batch")
	ErrNoBatch  = errors.New("journal: no such batch")
	ErrExists   = errors.New("journal: a batch of this name exists")
)

// Sentinel errors of an unusable journal. The wrapping error names the journal and
// says what to do.
var (
	ErrNewer      = errors.New("made by a newer version")
	ErrOlderInUse = errors.New("in use by a process of an older version")
	ErrDamaged    = errors.New("damaged")
	ErrFull       = errors.New("no space left")
	ErrReadOnly   = errors.New("read-only")
	ErrBusy       = errors.New("locked by another process")
	ErrNetworkFS  = errors.New("on a network file system")
	ErrReplaced   = errors.New("deleted or replaced while in use")
)
