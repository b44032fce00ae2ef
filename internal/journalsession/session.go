// Package journalsession is a Transport's session with its journal. A Session
// keeps the lease of the process, decides what happens when the journal fails,
// and takes over lines of earlier processes and other replicas. A [Record] is
// the journal record of a single batch: it keeps the updates that the journal
// has not confirmed yet, and sends them again until the journal confirms them.
//
// A Session without a journal exists, too ([Disabled]). It stores nothing and
// finds nothing, so that no caller has to know whether a journal is configured.
package journalsession

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/autobatcher/autobatcher/internal/retry"
	"github.com/autobatcher/autobatcher/journal"
)

const (
	// Lease is how long lines stay held after the last heartbeat, and so how long
	// the callers of a replica that died may have to wait.
	Lease = 15 * time.Second

	// heartbeatInterval is the time between two heartbeats.
	heartbeatInterval = 3 * time.Second

	// ownersInterval is the time between two looks at the other owners while the
	// session waits for their heartbeats.
	ownersInterval = heartbeatInterval / 6

	// requestTimeout ends a journal request that touches few lines, and lineTimeout
	// is what each line adds: several times the cost of a line at the slowest
	// backend.
	requestTimeout = 10 * time.Second
	lineTimeout    = 50 * time.Microsecond

	// failTimeout is how long a failing journal is asked for lines.
	failTimeout = Lease

	// forgetInterval is the time between two deletions of old batches, and
	// forgetTimeout bounds each deletion.
	forgetInterval = time.Hour
	forgetTimeout  = 5 * time.Minute

	// unusedFor is the age at which a batch is deleted whose account never came
	// back: the longest completion window, two weeks, and the 30 days for which
	// OpenAI keeps results.
	unusedFor = 45 * 24 * time.Hour

	// leaveTimeout is how long a process that ends waits for the journal.
	leaveTimeout = 5 * time.Second

	// logInterval is the least time between two error messages about the same
	// kind of request.
	logInterval = time.Minute
)

var (
	// ErrFailed is wrapped by the errors of a required journal that failed.
	ErrFailed = errors.New("the journal is required, and it failed")

	// ErrTaken is wrapped by the error of [Record.Advance] for a batch that another
	// owner has taken, because the lease of this process had expired.
	ErrTaken = errors.New("the batch was taken by another process")
)

// Options configure a Session.
type Options struct {
	Required bool          // calls fail rather than go on without the journal
	KeepFor  time.Duration // the age at which an ended batch is deleted; 0: at once
	Logger   *slog.Logger

	// Context ends the requests that the session makes in the background.
	Context context.Context

	// Start runs a function in a new goroutine, or returns false because the
	// Transport is closing. Start must not block.
	Start func(func()) bool
}

// A Session is safe for concurrent use. No method holds a lock while the journal
// works.
type Session struct {
	Options
	store journal.Store // nil: no journal is configured
	owner string
	key   journal.Hash

	// turn holds a token. The goroutine that releases or takes over lines has the
	// token, so that a retry finds the line which its first attempt has just left.
	turn chan struct{}

	reading atomic.Int64 // answers of journalled lines that callers are reading

	mu        sync.Mutex
	answered  time.Time                             // when the journal last carried out a request
	failing   map[string]time.Time                  // releases and take-overs: the first failure since the last success
	renewed   time.Time                             // when the lease was surely renewed last
	records   map[*Record]struct{}                  // the records of batches that have not ended
	pending   map[journal.Hash]map[*Record]struct{} // by account: records with updates that the journal has not confirmed
	uncertain map[journal.Hash][]journal.Hash       // by account: fingerprints of take-overs whose answer was lost
	wanted    map[journal.Hash]*wanted              // by account: calls whose lines FindSoon finds
	finding   bool                                  // a goroutine was started to find the wanted lines
	resending bool                                  // a goroutine sends pending updates again
	logged    map[string]time.Time                  // when an error was last logged, by request
}

// New opens a session with the journal. Without a journal (nil), or if the journal does
// not work and is not required, the session is disabled. The error says that a required
// journal does not work.
func New(store journal.Store, o Options) (*Session, error) {
	if store == nil {
		return Disabled(o), nil
	}
	s, err := Open(store, o)
	switch {
	case err == nil:
		return s, nil
	case o.Required:
		return nil, err
	}
	o.Logger.Error("the journal does not work; going on without a journal: lines that a crash leaves behind will be paid for again", "error", err)
	return Disabled(o), nil
}

// Disabled returns a Session without a journal.
func Disabled(o Options) *Session {
	s := &Session{Options: o, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	rand.Read(s.key[:])
	return s
}

// Open starts a session: it registers a new owner with the journal.
func Open(store journal.Store, o Options) (*Session, error) {
	s := Disabled(o)
	s.store, s.owner = store, rand.Text()
	s.records, s.pending = make(map[*Record]struct{}), make(map[journal.Hash]map[*Record]struct{})
	s.wanted, s.failing = make(map[journal.Hash]*wanted), make(map[string]time.Time)
	s.uncertain, s.logged = make(map[journal.Hash][]journal.Hash), make(map[string]time.Time)
	s.renewed = time.Now().Round(0)
	err := s.do(context.Background(), 0, func(ctx context.Context) (err error) {
		if s.key, err = store.Key(ctx); err == nil {
			_, err = store.Heartbeat(ctx, s.owner, Lease)
		}
		return err
	})
	return s, err
}

// Key is the key of all hashes in the journal. Without a journal the key is
// random.
func (s *Session) Key() journal.Hash { return s.key }

// Enabled reports whether a journal is configured and worked at the start.
func (s *Session) Enabled() bool { return s.store != nil }

// Reading is the number of answers that callers are reading at the moment and
// whose end the journal is waiting for.
func (s *Session) Reading() int { return int(s.reading.Load()) }

// Run renews the lease, sends pending updates again and deletes old batches,
// until ctx ends.
func (s *Session) Run(ctx context.Context) {
	if s.store == nil {
		return
	}
	s.Start(func() { s.forgetRepeatedly(ctx) })
	ticker := time.NewTicker(heartbeatInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			err := s.heartbeat(ctx)
			s.logError("heartbeat", err)
			if err == nil {
				s.resend()
			}
		case <-ctx.Done():
			return
		}
	}
}

// heartbeat renews the lease. When the lease had expired, the lines that callers
// here wait for are held again, as far as no other process took them.
func (s *Session) heartbeat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	began := time.Now().Round(0) // the wall clock goes on while the machine sleeps
	var expired bool
	err := guard(func() (err error) {
		expired, err = s.store.Heartbeat(ctx, s.owner, Lease)
		return err
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	// The answer to an earlier heartbeat, which said that the lease had expired,
	// may have been lost.
	expired = expired || time.Now().Round(0).Sub(s.renewed) >= Lease
	s.renewed, s.answered = began, time.Now()
	if expired {
		for r := range s.records {
			r.expired.Store(true)
		}
	}
	s.mu.Unlock()
	if expired {
		s.Logger.Warn("journal: it was out of reach for longer than the lease; other processes may have taken over lines that callers here wait for")
		s.Start(func() { s.HoldExpired(s.Context) })
	}
	return nil
}

// HoldExpired holds again the lines of callers here whose hold was lost when the
// lease expired. Other processes may have taken the lines, and may release them
// later, so that the caller repeats HoldExpired until the batches end.
func (s *Session) HoldExpired(ctx context.Context) {
	s.mu.Lock()
	records := slices.Collect(maps.Keys(s.records))
	s.mu.Unlock()
	for _, r := range records {
		if r.expired.Load() && !r.hold(ctx) {
			return // the journal fails for every record
		}
	}
}

func (s *Session) forgetRepeatedly(ctx context.Context) {
	for {
		s.forget(ctx)
		if retry.Sleep(ctx, forgetInterval) != nil {
			return
		}
	}
}

func (s *Session) forget(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	n, err := 0, error(nil)
	err = guard(func() error {
		n, err = s.store.Forget(ctx, s.KeepFor, max(s.KeepFor, unusedFor))
		return err
	})
	if n > 0 {
		s.Logger.Info("journal: deleted batches that no caller came back for", "batches", n)
	}
	s.logError("forget", err)
}

// Renew renews the lease before a Close that takes its time.
func (s *Session) Renew() {
	if s.store == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout/2)
	defer cancel()
	s.logError("heartbeat", s.heartbeat(ctx))
}

// Leave ends the lease: all lines that this process holds are released at once.
func (s *Session) Leave() {
	if s.store == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	flush, stop := context.WithTimeout(ctx, leaveTimeout/2)
	defer stop()
	s.Flush(flush)
	s.logError("leave", guard(func() error {
		_, err := s.store.Heartbeat(ctx, s.owner, 0)
		return err
	}))
}

// Flush sends all pending updates. It returns false at the first update that the
// journal did not confirm.
func (s *Session) Flush(ctx context.Context) bool { return flush(ctx, s.pendingRecords()) == nil }

// flushAccount sends the pending updates of an account: other accounts have no lines for
// its calls, and with many accounts their updates would take long.
func (s *Session) flushAccount(ctx context.Context, account journal.Hash) error {
	s.mu.Lock()
	pending := slices.Collect(maps.Keys(s.pending[account]))
	s.mu.Unlock()
	return flush(ctx, pending)
}

func flush(ctx context.Context, records []*Record) error {
	for _, r := range records {
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// resend sends pending updates in the background, since many lines can take longer
// than the interval of heartbeats. It does nothing while an earlier resend works.
func (s *Session) resend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) == 0 || s.resending {
		return
	}
	s.resending = s.Start(func() {
		defer func() { // also if the user's Store exits the goroutine
			s.mu.Lock()
			defer s.mu.Unlock()
			s.resending = false
		}()
		s.Flush(s.Context)
	})
}

func (s *Session) pendingRecords() (all []*Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, records := range s.pending {
		all = slices.AppendSeq(all, maps.Keys(records))
	}
	return all
}

// Orphans lists the batches that have not ended and whose owner is gone.
func (s *Session) Orphans(ctx context.Context) []journal.Batch {
	found, err := s.list(ctx, journal.Filter{Orphans: true})
	s.logError("list", err)
	return found
}

// Unfinished reports whether the journal has a batch of the account that has not
// ended, or that has lines which were not delivered.
func (s *Session) Unfinished(ctx context.Context, account journal.Hash) (bool, error) {
	found, err := s.list(ctx, journal.Filter{Account: &account, Unfinished: true})
	s.logError("list", err)
	return len(found) > 0, err
}

// Find returns the undelivered lines of calls of the account, with any holder.
// Without a journal there are none.
func (s *Session) Find(ctx context.Context, account journal.Hash, fingerprints []journal.Hash) (found []journal.Taken, err error) {
	if s.store == nil {
		return nil, nil
	}
	err = s.do(ctx, len(fingerprints), func(ctx context.Context) (err error) {
		found, err = s.store.Find(ctx, account, fingerprints)
		return err
	})
	s.logError("find", err)
	return found, err
}

// Withdraw stores that nobody wants the answers of the calls any more.
// The lines may have any holder.
func (s *Session) Withdraw(ctx context.Context, account journal.Hash, fingerprints []journal.Hash) error {
	if s.store == nil {
		return nil
	}
	err := s.do(ctx, len(fingerprints), func(ctx context.Context) error {
		_, err := s.store.Withdraw(ctx, account, fingerprints)
		return err
	})
	s.logError("withdraw", err)
	return err
}

func (s *Session) list(ctx context.Context, f journal.Filter) (found []journal.Batch, err error) {
	if s.store == nil {
		return nil, nil
	}
	err = s.do(ctx, 0, func(ctx context.Context) (err error) {
		found, err = s.store.Batches(ctx, f)
		return err
	})
	return found, err
}

// do makes a journal request that touches so many lines. Where the lease had
// expired, do renews the lease and makes the request again.
func (s *Session) do(ctx context.Context, lines int, request func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, requestTimeout+time.Duration(lines)*lineTimeout)
	defer cancel()
	err := guard(func() error {
		err := request(limited)
		if errors.Is(err, journal.ErrLapsed) {
			if err = s.heartbeat(limited); err == nil {
				err = request(limited)
			}
		}
		return err
	})
	if final(err) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.answered = time.Now()
	}
	return err
}

// noteAlone remembers since when releases or take-overs fail, by an attempt that began
// then. An attempt that its caller ended says nothing.
func (s *Session) noteAlone(ctx context.Context, kind string, began time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch _, known := s.failing[kind]; {
	case final(err):
		delete(s.failing, kind)
	case !known && ctx.Err() == nil:
		s.failing[kind] = began
	}
}

// guard turns a panic of the store, which is the user's code, into an error.
func guard(request func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the journal panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return request()
}

// failed logs an error of a request, and returns the error where the journal is
// required.
func (s *Session) failed(request string, err error) error {
	if err == nil {
		return nil
	}
	s.logError(request, err)
	if s.Required {
		return fmt.Errorf("%w: %s: %w", ErrFailed, request, err)
	}
	return nil
}

// logError logs an error of the journal, unless the error is the end of a
// context. An error of the same request is an error message once a minute, and a
// debug message otherwise.
func (s *Session) logError(request string, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	level := slog.LevelError
	s.mu.Lock()
	if time.Since(s.logged[request]) < logInterval {
		level = slog.LevelDebug
	} else {
		s.logged[request] = time.Now()
	}
	s.mu.Unlock()
	s.Logger.Log(context.Background(), level, "journal: "+request+" failed", "error", err)
}

// take takes the token for releases and take-overs, and returns false if ctx ends
// first or the token does not come for ten seconds: many goroutines may want the
// token while the journal hangs.
func (s *Session) take(ctx context.Context) bool { return takeToken(ctx, s.turn, requestTimeout) }

// takeToken takes a token, and returns false if ctx ends or limit passes first.
func takeToken(ctx context.Context, token <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-token:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

func (s *Session) give() { s.turn <- struct{}{} }
