// Package sqlite keeps a journal in a file, by SQLite.
//
// The processes of one machine may share the file. It must be on a local disk:
// Open refuses network file systems, where SQLite's write-ahead log gets
// damaged. For several machines there is package journal/postgres.
//
// Every change is written to the disk before it counts (synchronous=FULL): with
// less, a power failure could take the note that a batch was about to be
// created, and the batch would be paid for again. A whole batch is one change,
// and so is a group of answers that is delivered: make the groups large.
//
// # Owners that die
//
// As long as an owner lives, its process locks a file of its own beside the
// journal. The operating system unlocks it when the process ends, however it
// ends, and so the lines of a process that was killed are open at once, long
// before its lease has run out. On systems without flock there is only the
// lease.
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
	path     string
	db       *sql.DB // of one connection: only one can write anyway
	patience time.Duration

	mu    sync.Mutex
	alive map[int64]living // the owners that live here, by owners.id
}

var _ journal.Store = (*Store)(nil)

const (
	// patience is how long to wait while other processes write. A batch of
	// 50,000 lines takes a fifth of a second.
	patience = 10 * time.Second

	// shortPatience is how long SQLite itself waits. It looks ever more rarely,
	// in the end ten times a second, and would hardly ever meet the moment
	// between two changes of a process that makes one after the other.
	shortPatience = 20 * time.Millisecond
)

// Open opens the journal in a file, or makes it: the file with mode 0600,
// missing folders with mode 0700. It checks the whole file, which takes some
// 0.3 s for each 100 MB. The error wraps one of package journal's where one
// of them fits, and says what to do.
func Open(ctx context.Context, path string) (*Store, error) {
	return open(ctx, path, patience)
}

func open(ctx context.Context, path string, patience time.Duration) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	s := &Store{path: path, patience: patience, alive: make(map[int64]living)}
	if err := s.makeFile(); err != nil {
		return nil, s.explain(err)
	}
	// All processes must agree on where the files beside it are.
	if s.path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, s.explain(err)
	}
	if err := onLocalDisk(s.path); err != nil {
		return nil, s.explain(err)
	}
	s.db, err = sql.Open("sqlite", dataSource(s.path))
	if err != nil {
		return nil, s.explain(err)
	}
	s.db.SetMaxOpenConns(1)
	if err := s.prepare(ctx); err != nil {
		s.db.Close()
		return nil, err
	}
	return s, nil
}

// makeFile makes the file if there is none, readable by nobody else; SQLite
// gives the files beside it the same mode.
func (s *Store) makeFile() error {
	folder := filepath.Dir(s.path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	if err := onLocalDisk(folder); err != nil {
		return err
	}
	if info, err := os.Stat(s.path); err == nil && !info.Mode().IsRegular() {
		return &fs.PathError{Op: "open", Path: s.path, Err: errors.New("not a regular file")}
	}
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
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

// dataSource is what the driver needs to know of the file. Every transaction
// takes the write lock as it begins, since one that came to it later would
// fail where it met another.
func dataSource(path string) string {
	options := url.Values{
		"_txlock": {"immediate"},
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", shortPatience.Milliseconds()),
			"journal_mode(wal)",
			"synchronous(full)",
		},
	}
	name := url.URL{Path: filepath.ToSlash(path)}
	return "file:" + name.EscapedPath() + "?" + options.Encode()
}

// Close implements journal.Store. The owners that live here are gone with it.
func (s *Store) Close() error {
	err := s.db.Close()
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
	err = s.patiently(ctx, func() error {
		return s.db.QueryRowContext(ctx, `select key from secret`).Scan(&text)
	})
	if err != nil {
		return key, err
	}
	copy(key[:], text)
	return key, nil
}

// update changes the journal, wholly or not at all. What belongs to dead owners
// is opened first.
func (s *Store) update(ctx context.Context, change func(tx *sql.Tx) error) error {
	var dead []int64
	err := s.transact(ctx, func(tx *sql.Tx) (err error) {
		if dead, err = s.bury(ctx, tx); err != nil {
			return err
		}
		return change(tx)
	})
	if err == nil { // else they are not buried after all
		s.unlock(dead...)
	}
	return err
}

func (s *Store) transact(ctx context.Context, change func(tx *sql.Tx) error) error {
	return s.patiently(ctx, func() error {
		tx, err := s.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() //nolint:errcheck // after Commit there is nothing to roll back
		if err := change(tx); err != nil {
			return err
		}
		return tx.Commit()
	})
}

// patiently does something that fails as long as another process writes, and
// explains what is wrong if it fails all the same.
func (s *Store) patiently(ctx context.Context, do func() error) error {
	began := time.Now()
	for {
		err := do()
		if !errors.Is(kindOf(err), journal.ErrBusy) || time.Since(began) >= s.patience {
			return s.explain(err)
		}
		select {
		case <-time.After(rand.N(4 * time.Millisecond)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
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
