package journalsession

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/autobatcher/autobatcher/internal/retry"
	"github.com/autobatcher/autobatcher/journal"
)

var sleep = retry.Sleep

// A Waiting returns the fingerprints of the calls that wait to be sent now, each
// as often as calls wait.
type Waiting func() []journal.Hash

// A Place gives lines that were taken over to the calls with their fingerprints.
type Place func([]journal.Taken)

// TakeOver finds lines that earlier attempts of the same calls left behind, in
// this process, in a process that died or at another replica, and gives them to
// place before any process can release them again.
//
// A line may go to an equal call for which another TakeOver is under way.
// Therefore waiting is called again after each step, and no other TakeOver places
// lines meanwhile.
//
// Before TakeOver returns while calls wait, every other owner must have sent a
// heartbeat, or must have expired, and all pending releases of the account by this
// process must have been sent; a failing journal is asked again for a while. Waiting
// costs seconds, another line costs money. The error is not nil only where the journal
// is required.
func (s *Session) TakeOver(ctx context.Context, account journal.Hash, waiting Waiting, place Place) error {
	if s.store == nil {
		return nil
	}
	began := time.Now()
	var failing outage
	for {
		attempt := time.Now()
		flushed := s.flushAccount(ctx, account)
		asked, taken, err := s.takeOver(ctx, account, waiting, place)
		again := failing.note(attempt, s.fails(flushed) || s.fails(err)) && attempt.Sub(began) < busyTimeout
		switch {
		case err != nil:
			if !again || sleep(ctx, ownersInterval) != nil {
				return s.failed("take over", err)
			}
		case asked == 0:
			return nil
		case taken > 0:
		case flushed != nil && again && sleep(ctx, ownersInterval) == nil:
		case !s.awaitExpiry(ctx, began):
			return nil
		}
	}
}

// An outage is a time in which the journal fails. Waiting for other requests to the
// journal, which take their time, is no outage.
type outage struct{ since time.Time }

// note records an attempt, and reports whether to make another: the journal works, or
// has failed for less than failTimeout.
func (o *outage) note(attempt time.Time, failed bool) (again bool) {
	switch {
	case !failed:
		o.since = time.Time{}
	case o.since.IsZero():
		o.since = attempt
	}
	return !failed || time.Since(o.since) < failTimeout
}

// TryTakeOver is a TakeOver that waits for no other owner and asks a failing
// journal only once. It finds what is released by now.
func (s *Session) TryTakeOver(ctx context.Context, account journal.Hash, waiting Waiting, place Place) {
	if s.store == nil || len(waiting()) == 0 {
		return
	}
	_ = s.flushAccount(ctx, account) // what is not released now is released, and found, later
	_, _, err := s.takeOver(ctx, account, waiting, place)
	s.logError("take over", err)
}

// takeOver asks the journal once. It returns how many lines it asked for, and how
// many lines it was given.
func (s *Session) takeOver(ctx context.Context, account journal.Hash, waiting Waiting, place Place) (asked, given int, err error) {
	if !s.take(ctx) {
		return 0, 0, busy(ctx)
	}
	defer s.give()
	began := time.Now()
	if err := s.findLost(ctx, account, place); err != nil {
		s.noteAlone(ctx, "take over", began, err)
		return 0, 0, err
	}
	fingerprints := waiting()
	if len(fingerprints) == 0 {
		return 0, 0, nil
	}
	var taken []journal.Taken
	err = s.do(ctx, len(fingerprints), func(ctx context.Context) (err error) {
		taken, err = s.store.TakeOver(ctx, s.owner, account, fingerprints)
		return err
	})
	s.noteAlone(ctx, "take over", began, err)
	switch {
	case err == nil && len(taken) > 0:
		place(taken)
	case err != nil && !errors.Is(err, journal.ErrLapsed):
		s.noteLost(account, fingerprints)
	}
	for _, t := range taken {
		given += len(t.Lines)
	}
	return len(fingerprints), given, err
}

// errBusy is returned where other goroutines had a token for too long.
var errBusy = fmt.Errorf("other requests to the journal take too long: %w", context.DeadlineExceeded)

// busyTimeout bounds how long a take-over waits for other requests that succeed, and take
// their time.
const busyTimeout = 10 * time.Minute

// busy is the error of a request that got no token.
func busy(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errBusy
}

// fails reports whether an error means that the journal fails. Waiting for other requests
// that take their time does not, while the journal carries out any request, and while
// neither releases nor take-overs have failed for failTimeout.
func (s *Session) fails(err error) bool {
	if !errors.Is(err, errBusy) {
		return err != nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, since := range s.failing {
		if time.Since(since) >= failTimeout {
			return true
		}
	}
	return time.Since(s.answered) >= 2*heartbeatInterval
}

// noteLost remembers the fingerprints of a take-over that failed: the journal
// may have given this process lines that the lost answer named.
func (s *Session) noteLost(account journal.Hash, fingerprints []journal.Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.uncertain[account]; len(known) < 1<<20 {
		s.uncertain[account] = append(known, fingerprints...)
	}
}

// findLost gives place the lines that this process holds since a take-over whose
// answer was lost. The caller has the token.
func (s *Session) findLost(ctx context.Context, account journal.Hash, place Place) error {
	s.mu.Lock()
	lost := s.uncertain[account]
	s.mu.Unlock()
	if len(lost) == 0 {
		return nil
	}
	var held []journal.Taken
	err := s.do(ctx, len(lost), func(ctx context.Context) (err error) {
		held, err = s.store.Held(ctx, s.owner, account, lost)
		return err
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.uncertain, account)
	s.mu.Unlock()
	if len(held) > 0 {
		place(held)
	}
	return nil
}

// awaitExpiry waits until an owner expires that has sent no heartbeat since
// began, and reports whether an owner did. It returns false when all owners
// live, or when there is no other owner.
func (s *Session) awaitExpiry(ctx context.Context, began time.Time) bool {
	var waitedFor map[string]bool
	var failing outage
	for {
		attempt := time.Now()
		silent, all, err := s.owners(ctx, began)
		if err == nil {
			for name := range waitedFor {
				if !all[name] {
					return true
				}
			}
			waitedFor = silent
		}
		again := failing.note(attempt, err != nil)
		if err == nil && len(silent) == 0 || !again || sleep(ctx, ownersInterval) != nil {
			return false
		}
	}
}

// owners are the other owners that have not expired: the owners that have sent
// no heartbeat since began, and all.
func (s *Session) owners(ctx context.Context, began time.Time) (silent, all map[string]bool, err error) {
	age := time.Since(began) // before the request, since the answer can take its time
	var list []journal.Owner
	err = s.do(ctx, 0, func(ctx context.Context) (err error) {
		list, err = s.store.Owners(ctx)
		return err
	})
	s.logError("owners", err)
	silent, all = make(map[string]bool), make(map[string]bool)
	for _, o := range list {
		if o.Name == s.owner {
			continue
		}
		all[o.Name] = true
		if o.Silent >= age {
			silent[o.Name] = true
		}
	}
	return silent, all, err
}

// findDelay is how long calls are collected before the journal is asked for their
// lines.
const findDelay = 500 * time.Millisecond

// Retries are the calls of an account that wait to be sent.
type Retries interface {
	// Waiting returns those of the fingerprints for which calls still wait.
	Waiting([]journal.Hash) []journal.Hash

	// Place is a Place.
	Place([]journal.Taken)
}

// FindSoon finds the line that an earlier attempt of a call has left, within a
// second and together with the lines of other calls of the account, so that no
// process cancels the batch of the line while the call waits to be sent.
func (s *Session) FindSoon(account, fingerprint journal.Hash, retries Retries) {
	if s.store == nil {
		return
	}
	s.mu.Lock()
	w := s.wanted[account]
	if w == nil {
		w = &wanted{retries: retries}
		s.wanted[account] = w
	}
	w.fingerprints = append(w.fingerprints, fingerprint)
	first := !s.finding
	s.finding = true
	s.mu.Unlock()
	if first && !s.Start(s.find) {
		s.takeWanted()
	}
}

// wanted are the calls of an account whose lines are to be found.
type wanted struct {
	fingerprints []journal.Hash
	retries      Retries
}

func (s *Session) find() {
	_ = sleep(s.Context, findDelay)
	for account, w := range s.takeWanted() {
		s.TryTakeOver(s.Context, account, func() []journal.Hash { return w.retries.Waiting(w.fingerprints) }, w.retries.Place)
	}
}

func (s *Session) takeWanted() map[journal.Hash]*wanted {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.wanted
	s.wanted, s.finding = make(map[journal.Hash]*wanted), false
	return all
}
