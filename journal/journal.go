// Package journal is the memory of what was paid for. A Transport writes down
// every batch before it is created, so that after a crash, at another replica
// or after a lost answer the same call finds the line it already has.
//
// A journal holds no prompts, no answers and no credentials: only hashes, ids,
// states and times. The answers stay with the provider.
//
// Package journal/sqlite keeps it in a file, which processes of one machine may
// share. Package journal/postgres keeps it in a database, which a fleet may
// share. [NewMemory] keeps it in memory, for tests. What a backend must do is
// written down as tests, in package journal/journaltest.
//
// # Owners
//
// Whoever uses a journal does so under a name of its own, made up afresh by
// each process that starts: its owner. An owner holds the lines its callers
// wait for. It has a lease, which it renews by [Store.Heartbeat]; when the lease
// runs out, all it holds becomes open by itself. Leases are measured by one
// clock for all, the database's or the machine's, never by the owners' own: an
// owner says how long its lease is, not when it ends. So no replica takes the
// lines of one that lives because their clocks differ.
//
// # Lines
//
// A line is held by an owner, or open, or delivered. Only open lines are taken
// over, and by one owner each. What was delivered is counted and otherwise
// forgotten.
package journal

import (
	"context"
	"errors"
	"time"
)

// A Hash is a keyed fingerprint; see [Store.Key].
type Hash [32]byte

// State says how far a batch got.
type State string

// The states, in the order of a batch's life. A create that came to nothing goes
// back to Uploaded, with another file.
const (
	Uploading  State = "uploading"  // begun: nothing exists that costs money
	Uploaded   State = "uploaded"   // the input file exists
	Creating   State = "creating"   // the batch may exist: look before creating it
	Running    State = "running"    // the batch exists
	Cancelling State = "cancelling" // nobody wants it; its lines are not taken over
	Ended      State = "ended"      // there is nothing more to come
)

// A Batch is what the journal knows of one batch.
type Batch struct {
	// Ref names the batch in the journal. It must be new.
	Ref string

	// Owner is who carries the batch on: uploads, creates, watches. Only the
	// owner advances it. "" if that owner has gone; see [Store.Claim].
	Owner string

	Payer    Hash     // of the credential
	Upstream string   // the base URL, without anything secret
	Provider string   // the profile's name
	Endpoint string   // as the lines name it
	Window   string   // the completion window
	Models   []string // sorted, each once

	State       State
	InputFileID string // "" before Uploaded
	BatchID     string // "" before Running
	Status      string // the provider's word for how it ended; "" before Ended

	// When the journal was told, by the journal's clock, in UTC. Zero if it
	// was not yet.
	Began, Created, Ended time.Time

	// Lines is how many lines the batch has. Each of them is one of the
	// others: delivered, held by an owner whose lease runs, or open.
	Lines, Delivered, Held, Open int
}

// A Line is one line of a batch.
type Line struct {
	// N is the line's place among those given to Begin, from 0. Begin ignores
	// it.
	N int

	// CustomID is what the provider calls the line.
	CustomID string

	// Print is equal for calls that are the same call again: same credential,
	// URL and body.
	Print Hash
}

// Taken are the lines of one batch that were taken over.
type Taken struct {
	Batch Batch // without the counts
	Lines []Line
}

// A Step is what Advance writes down.
type Step struct {
	State State

	// InputFileID, BatchID and Status replace what is known, unless "".
	InputFileID, BatchID, Status string
}

// A Filter selects batches. The zero Filter selects all.
type Filter struct {
	Ref   string // only this one, if not ""
	Payer *Hash  // only this payer's, if not nil

	// Unfinished leaves out the batches that have ended and that nobody can
	// come back for, since every line was delivered.
	Unfinished bool
}

// An Owner is one whose lease runs.
type Owner struct {
	Name   string
	Silent time.Duration // since its last heartbeat
	Left   time.Duration // until its lease runs out
}

// A Store is a journal. All methods may be called concurrently, and by several
// processes where the backend says so. What a method did is durable when it
// returns nil. An error of the context's is matched by errors.Is; after any
// other error than those below, it is not known whether the method did its
// work.
type Store interface {
	// Key returns 32 random bytes, the same for everyone who uses this
	// journal, as long as it exists. Hashes are keyed with it, so that they say
	// nothing outside of this journal.
	Key(ctx context.Context) (Hash, error)

	// Heartbeat gives owner a lease that runs out this long from now. Zero or
	// less ends the lease: everything that owner holds is open at once, as it
	// should be when a process ends. An owner that comes back after its lease
	// ran out keeps what it has, if nobody used the journal meanwhile; else all of
	// that is open. It reports whether the owner holds nothing: it is new, or was
	// taken for dead, and then Hold and Claim give back what nobody took yet.
	Heartbeat(ctx context.Context, owner string, lease time.Duration) (fresh bool, err error)

	// Owners lists those whose lease runs, by name. An owner that is silent for
	// longer than it should be is probably dead, and its lines will soon be
	// open: better to wait for that than to pay for them again.
	Owners(ctx context.Context) ([]Owner, error)

	// Begin writes down a batch that is about to be uploaded, and its lines in
	// the order of its file, all of them held by b.Owner. Of b it reads Ref to
	// Models; the state becomes Uploading. It returns ErrLapsed if b.Owner has
	// no lease, and ErrExists if Ref is not new.
	Begin(ctx context.Context, b Batch, lines []Line) error

	// Advance writes down how far the batch got. It must be called before
	// what Creating stands for is done, and after everything else. It returns
	// ErrNotOwner if another carries the batch on, or nobody, and ErrNoBatch
	// if the journal has none.
	Advance(ctx context.Context, owner, ref string, s Step) error

	// Discard forgets a batch that never was created, with its lines. Its
	// errors are those of Advance.
	Discard(ctx context.Context, owner, ref string) error

	// Claim makes owner the one who carries the batch on, if nobody does, and
	// reports whether owner is the one now. The lines are not touched. It
	// returns ErrLapsed and ErrNoBatch.
	Claim(ctx context.Context, owner, ref string) (bool, error)

	// TakeOver finds open lines of payer's with these prints, makes owner hold
	// them, and returns them, the batches and lines that were begun first in
	// front. It takes one line for each print: n equal prints take n lines, or
	// as many as there are. No line is ever taken by two. It returns ErrLapsed
	// if owner has no lease. Thousands of prints cost one round trip.
	TakeOver(ctx context.Context, owner string, payer Hash, prints []Hash) ([]Taken, error)

	// Hold makes owner hold those of the lines that are open, unless their batch is
	// being cancelled: an owner that was taken for dead lives, and its callers
	// wait. It returns ErrLapsed.
	Hold(ctx context.Context, owner, ref string, lines []int) error

	// Release makes those of the lines open that owner holds: their callers
	// have gone.
	Release(ctx context.Context, owner, ref string, lines []int) error

	// Deliver notes that the lines' callers have their answers. Lines that
	// another owner holds, or that were delivered before, are left alone.
	Deliver(ctx context.Context, owner, ref string, lines []int) error

	// Abandon makes the state Cancelling if the batch is Running and nobody
	// holds any of its lines, anywhere, and reports whether it did. From then
	// until it is Ended, none of its lines is taken over. Its errors are those
	// of Advance.
	Abandon(ctx context.Context, owner, ref string) (bool, error)

	// Batches lists the batches, those begun first in front.
	Batches(ctx context.Context, f Filter) ([]Batch, error)

	// Forget forgets the batches that ended at least so long ago, and those that
	// nobody carries on and that were begun at least so long ago, and says how
	// many they were. A batch of which somebody holds a line is kept.
	Forget(ctx context.Context, ended, begun time.Duration) (int, error)

	// Close frees what the Store needs. Owners whose heartbeats went through
	// it are not heard of any more; a backend may know them for dead at once.
	Close() error
}

// What a Store refuses to do.
var (
	ErrLapsed   = errors.New("journal: the owner has no lease, or it ran out")
	ErrNotOwner = errors.New("journal: the batch is another owner's")
	ErrNoBatch  = errors.New("journal: no such batch")
	ErrExists   = errors.New("journal: there is a batch of this name")
)

// What can be wrong with a journal. The error that wraps one of these says
// which journal it is and what to do.
var (
	ErrNewer     = errors.New("made by a newer version")
	ErrDamaged   = errors.New("damaged")
	ErrFull      = errors.New("no space left")
	ErrReadOnly  = errors.New("read-only")
	ErrBusy      = errors.New("locked by another process")
	ErrNetworkFS = errors.New("on a network file system")
)
