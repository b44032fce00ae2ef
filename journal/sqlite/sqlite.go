// Package sqlite keeps a journal in a file, by SQLite.
//
// The processes of one machine may share the file. The file must be on a local
// disk: Open refuses network file systems, where SQLite's write-ahead log gets
// damaged. Several machines can share a journal of package journal/postgres.
//
// Every change is written to the disk before it counts (synchronous=FULL): with
// less, a power failure could lose the record that a batch was about to be
// created, and the batch would be paid for again. A batch is one change, and so is
// a group of results that is delivered. Large groups cost less.
//
// # Owners that die
//
// As long as an owner lives, its process locks a file of its own beside the
// journal. The operating system unlocks the file when the process ends, however
// the process ends. The lines of a killed process are therefore open at once, long
// before the lease has run out. On systems without flock only the lease counts.
//
// # Concurrency
//
// SQLite has one writer at a time. A Begin of very many lines and a Forget are
// done in steps of limited size, so that heartbeats of this process and of other
// processes get in between. Lists are read beside the writer.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// Store is a journal in a file. Its methods may be called concurrently.
type Store struct {
	path         string      // without symbolic links
	given        string      // the absolute path that the caller gave
	file         os.FileInfo // of the file at path, when the Store opened it
	db           *sql.DB     // one connection: SQLite has one writer
	reads        *sql.DB     // for lists, beside the writer
	writeTimeout time.Duration

	// keeper is a connection of reads that nobody uses. A connection whose statement
	// was interrupted is closed, and SQLite removes the write-ahead log with the last
	// connection: checkPlace would take the next log for the log of someone else.
	keeper *sql.Conn

	// beside has the files that SQLite keeps beside the journal, by suffix. Only
	// transactions of the writer use beside, and db runs them one at a time.
	beside map[string]os.FileInfo

	mu    sync.Mutex
	alive map[int64]living // the owners of this Store, by owners.id
}

var _ journal.Store = (*Store)(nil)

const (
	// writeTimeout is how long to wait while other processes write, unless the
	// context has a deadline: then the deadline counts.
	writeTimeout = 10 * time.Second

	// sqliteTimeout is how long SQLite itself waits. SQLite tries ever more
	// rarely, in the end ten times a second, and would hardly ever meet the
	// moment between two changes of a process that writes all the time.
	sqliteTimeout = 20 * time.Millisecond

	// maxReads is the number of lists that are read at the same time.
	maxReads = 4

	// walLimit is the size to which SQLite cuts the write-ahead log after a
	// checkpoint, in bytes.
	walLimit = 16 << 20
)

// Open opens the journal in a file, or makes the file with mode 0600 and missing
// folders with mode 0700. Open checks the whole file, which takes some 0.3 s for
// each 100 MB. A journal of an older version is migrated, unless a process of the
// older version uses the file: then the error is journal.ErrOlderInUse. The error
// wraps a sentinel of package journal where one fits, and says what to do.
func Open(ctx context.Context, path string) (*Store, error) {
	return open(ctx, path, writeTimeout)
}

func open(ctx context.Context, path string, writeTimeout time.Duration) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	s := &Store{path: path, given: path, writeTimeout: writeTimeout, alive: make(map[int64]living), beside: make(map[string]os.FileInfo)}
	if err := s.makeFile(); err != nil {
		return nil, s.explain(err)
	}
	// All processes must agree on the place of the files beside the journal.
	if s.path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, s.explain(err)
	}
	if err := onLocalDisk(s.path); err != nil {
		return nil, s.explain(err)
	}
	if err := s.refuseLinks(); err != nil {
		return nil, s.explain(err)
	}
	if s.file, err = os.Stat(s.path); err != nil {
		return nil, s.explain(err)
	}
	if err := s.connect(); err != nil {
		return nil, s.explain(err)
	}
	err = s.prepare(ctx)
	if err == nil {
		err = s.retryWhileBusy(ctx, func() error { return s.keepOpen(ctx) })
	}
	if err != nil {
		s.disconnect() //nolint:errcheck // nothing was written
		return nil, err
	}
	return s, nil
}

// connect makes both pools. A pool connects at the first use.
func (s *Store) connect() (err error) {
	if s.db, err = sql.Open("sqlite", writing(s.path)); err != nil {
		return err
	}
	s.db.SetMaxOpenConns(1)
	if s.reads, err = sql.Open("sqlite", reading(s.path)); err != nil {
		return errors.Join(err, s.db.Close())
	}
	s.reads.SetMaxOpenConns(maxReads + 1) // and keeper
	return nil
}

// keepOpen makes keeper. A connection opens the write-ahead log when it reads.
func (s *Store) keepOpen(ctx context.Context) error {
	conn, err := s.reads.Conn(ctx)
	if err != nil {
		return err
	}
	var version int
	if err := conn.QueryRowContext(ctx, `pragma schema_version`).Scan(&version); err != nil {
		return errors.Join(err, conn.Close())
	}
	s.keeper = conn
	return nil
}

// disconnect closes the writer last, since the last connection removes the
// write-ahead log.
func (s *Store) disconnect() error {
	var err error
	if s.keeper != nil {
		err = s.keeper.Close()
	}
	return errors.Join(err, s.reads.Close(), s.db.Close())
}

// makeFile makes the file if it does not exist, readable by this user only. SQLite
// gives the files beside the journal the same mode. makeFile does not open a file that
// exists: closing any descriptor of a file ends all POSIX locks of the process on the
// file, also the locks of another Store in this process.
func (s *Store) makeFile() error {
	folder := filepath.Dir(s.path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	if err := onLocalDisk(folder); err != nil {
		return err
	}
	switch info, err := os.Stat(s.path); {
	case err == nil && info.Mode().IsRegular():
		return nil
	case err == nil:
		return &fs.PathError{Op: "open", Path: s.path, Err: errors.New("not a regular file")}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	exclusive := os.O_EXCL
	if info, err := os.Lstat(s.path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		exclusive = 0 // a link to a file that does not exist yet
	}
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_RDWR|exclusive, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist): // made meanwhile
		return nil
	case err != nil:
		return err
	}
	return f.Close()
}

func onLocalDisk(path string) error {
	if name := networkFileSystem(path); name != "" {
		return fmt.Errorf("%w (%s)", journal.ErrNetworkFS, name)
	}
	return nil
}

// writing is the data source of the writer. Every transaction takes the write lock
// as it begins: a transaction that asked for the lock later would fail where it met
// another.
func writing(path string) string {
	return dataSource(path, url.Values{
		"_txlock": {"immediate"},
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", sqliteTimeout.Milliseconds()),
			"auto_vacuum(incremental)", // of a new file
			"journal_mode(wal)",
			"synchronous(full)",
			fmt.Sprintf("journal_size_limit(%d)", walLimit),
		},
	})
}

// reading is the data source of lists.
func reading(path string) string {
	return dataSource(path, url.Values{
		"_txlock": {"deferred"},
		"_pragma": {fmt.Sprintf("busy_timeout(%d)", sqliteTimeout.Milliseconds()), "query_only(true)"},
	})
}

func dataSource(path string, options url.Values) string {
	name := url.URL{Path: filepath.ToSlash(path)}
	return "file:" + name.EscapedPath() + "?" + options.Encode()
}

// Close implements journal.Store. The owners of this Store are dead afterwards.
func (s *Store) Close() error {
	err := s.disconnect()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, o := range s.alive {
		o.lock.Close()
		delete(s.alive, id)
	}
	return err
}

// Key implements journal.Store.
func (s *Store) Key(ctx context.Context) (key journal.Hash, err error) {
	var text []byte
	err = s.retryWhileBusy(ctx, func() error {
		return s.reads.QueryRowContext(ctx, `select key from secret`).Scan(&text)
	})
	if err != nil {
		return key, err
	}
	copy(key[:], text)
	return key, nil
}

// update changes the journal for an owner, as a whole or not at all. The same
// transaction first removes other owners that are dead.
func (s *Store) update(ctx context.Context, owner string, change func(tx *sql.Tx) error) error {
	var dead []int64
	err := s.transact(ctx, func(tx *sql.Tx) (err error) {
		if dead, err = s.removeDead(ctx, tx, owner); err != nil {
			return err
		}
		return change(tx)
	})
	if err == nil { // otherwise the owners live
		s.unlock(dead...)
	}
	return err
}

func (s *Store) transact(ctx context.Context, change func(tx *sql.Tx) error) error {
	return s.within(ctx, s.db, func(tx *sql.Tx) error {
		if err := s.checkPlace(); err != nil {
			return err
		}
		return change(tx)
	})
}

// view reads the journal without waiting for the writer. All reads of a view see the
// same state.
func (s *Store) view(ctx context.Context, read func(tx *sql.Tx) error) error {
	return s.within(ctx, s.reads, read)
}

func (s *Store) within(ctx context.Context, db *sql.DB, do func(tx *sql.Tx) error) error {
	return s.retryWhileBusy(ctx, func() error {
		err := inTransaction(ctx, db, do)
		if errors.Is(err, sql.ErrTxDone) && ctx.Err() != nil {
			return ctx.Err() // the end of the context rolled the transaction back
		}
		return err
	})
}

func inTransaction(ctx context.Context, db *sql.DB, do func(tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit there is nothing to roll back
	if err := do(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// retryWhileBusy does something that fails as long as another process writes, and
// explains the error if do still fails in the end. If the context ends while another
// process writes, the error is both.
func (s *Store) retryWhileBusy(ctx context.Context, do func() error) error {
	began := time.Now()
	_, limited := ctx.Deadline()
	var busy error
	for {
		err := do()
		ended := ctx.Err() != nil
		if errors.Is(kindOf(err), journal.ErrBusy) {
			busy = err
		} else if !ended || busy == nil || !errors.Is(err, ctx.Err()) {
			return s.explain(err)
		}
		if ended {
			return fmt.Errorf("%w (%w)", context.Cause(ctx), s.explain(busy))
		}
		if !limited && time.Since(began) >= s.writeTimeout {
			return s.explain(busy)
		}
		pause(ctx, rand.N(4*time.Millisecond)) //nolint:errcheck // do returns the error of the context
	}
}

// now is the time as the journal keeps it.
func now() int64 { return time.Now().UnixMicro() }

// moment is a time as the journal kept it.
func moment(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}
