package accounts

import (
	"context"
	"sync/atomic"

	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/journal"
)

// A Legacy is an account as the journal knows the account from before the account
// had a name: by its credential. Batches and lines of that time belong to the
// named account, too. All methods may be called concurrently.
type Legacy struct {
	Hash journal.Hash // the account in the journal

	identity string // of the first credential that a call of the account brought
	lines    atomic.Int32
}

// Whether lines of a Legacy are left.
const (
	linesUnknown int32 = iota
	linesAbsent
	linesLeft
)

// TakeOver gives queued calls of the account the lines that their earlier attempts
// left, also before the account had a name. waiting is as for Session.TakeOver, and
// old has the earlier fingerprints. The error is not nil only where the journal is
// required.
func (a *Account) TakeOver(ctx context.Context, s *journalsession.Session, waiting journalsession.Waiting, old Renaming) error {
	err := s.TakeOver(ctx, a.Hash, waiting, a.Retries.Place)
	if err != nil || a.Legacy == nil || !a.Legacy.mayHaveLines(ctx, s) {
		return err
	}
	return s.TakeOver(ctx, a.Legacy.Hash, old.waiting(waiting), old.place(a.Retries))
}

// TryTakeOver is a TakeOver that waits for no other owner and asks a failing journal
// only once.
func (a *Account) TryTakeOver(ctx context.Context, s *journalsession.Session, waiting journalsession.Waiting, old Renaming) {
	s.TryTakeOver(ctx, a.Hash, waiting, a.Retries.Place)
	if a.Legacy != nil && len(old.legacy) > 0 && a.Legacy.mayHaveLines(ctx, s) {
		s.TryTakeOver(ctx, a.Legacy.Hash, old.waiting(waiting), old.place(a.Retries))
	}
}

// mayHaveLines reports whether the journal may still have lines of the time before
// the name. It asks the journal until the journal answers once.
func (l *Legacy) mayHaveLines(ctx context.Context, s *journalsession.Session) bool {
	if l.lines.Load() == linesUnknown {
		left, err := s.Unfinished(ctx, l.Hash)
		switch {
		case err != nil:
		case left:
			l.lines.Store(linesLeft)
		default:
			l.lines.Store(linesAbsent)
		}
	}
	return l.lines.Load() != linesAbsent
}

// addLegacyLocked makes the batches that the journal has for the credential in id
// belong to a.
func (s *Set) addLegacyLocked(a *Account, id accountID) {
	a.Legacy = &Legacy{identity: id.identity, Hash: s.hash(id)}
	if s.hashes[a.Legacy.Hash] == nil {
		s.hashes[a.Legacy.Hash] = a
	}
}

func (s *Set) forgetHashesLocked(a *Account) {
	delete(s.hashes, a.Hash)
	if l := a.Legacy; l != nil && s.hashes[l.Hash] == a {
		delete(s.hashes, l.Hash)
	}
}

// LegacyFingerprint returns the fingerprint that a call had before its account had
// a name, or nil if the journal has no lines of that time.
func (s *Set) LegacyFingerprint(a *Account, caller, suffix string, body []byte) *journal.Hash {
	if a.Legacy == nil || a.Legacy.lines.Load() == linesAbsent {
		return nil
	}
	var f journal.Hash
	s.appendFingerprint(f[:0], a.base, a.Legacy.identity, caller, suffix, body)
	return &f
}

// A Renaming has two fingerprints of each call: the current one, and the one from
// before the account had a name. It is not safe for concurrent use.
type Renaming struct{ legacy, current map[journal.Hash]journal.Hash }

// NewRenaming returns a Renaming without calls.
func NewRenaming() Renaming {
	return Renaming{make(map[journal.Hash]journal.Hash), make(map[journal.Hash]journal.Hash)}
}

// Add adds a call. legacy may be nil: the call has no earlier fingerprint.
func (r Renaming) Add(current journal.Hash, legacy *journal.Hash) {
	if legacy != nil {
		r.legacy[current], r.current[*legacy] = *legacy, current
	}
}

// waiting returns the earlier fingerprints of the calls that wait.
func (r Renaming) waiting(current journalsession.Waiting) journalsession.Waiting {
	return func() []journal.Hash { return r.earlier(current()) }
}

// place gives lines with earlier fingerprints to the calls.
func (r Renaming) place(to journalsession.Retries) journalsession.Place {
	return func(taken []journal.Taken) { to.Place(r.renamed(taken)) }
}

// earlier returns the earlier fingerprints, as far as calls have them.
func (r Renaming) earlier(current []journal.Hash) []journal.Hash {
	legacy := make([]journal.Hash, 0, len(current))
	for _, h := range current {
		if f, ok := r.legacy[h]; ok {
			legacy = append(legacy, f)
		}
	}
	return legacy
}

// renamed returns a copy of the lines with current fingerprints. A line whose call
// is not known keeps its fingerprint, and so no call gets the line.
func (r Renaming) renamed(taken []journal.Taken) []journal.Taken {
	renamed := make([]journal.Taken, len(taken))
	for i, t := range taken {
		renamed[i] = journal.Taken{Batch: t.Batch, Lines: make([]journal.Line, len(t.Lines))}
		for j, l := range t.Lines {
			if f, ok := r.current[l.Fingerprint]; ok {
				l.Fingerprint = f
			}
			renamed[i].Lines[j] = l
		}
	}
	return renamed
}
