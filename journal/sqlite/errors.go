package sqlite

import (
	"errors"
	"io/fs"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/internal/trouble"
)

// advice says what to do about each of package journal's sentinel errors.
var advice = trouble.Advice{
	journal.ErrNewer:      "run the newer version, or give this one a journal of its own",
	journal.ErrOlderInUse: "stop the other processes that use the file, then start this one: it changes the tables",
	journal.ErrDamaged:    "move the file away and begin a new one; batches that run upstream are then unknown here, and their calls would be paid for again",
	journal.ErrFull:       "make room on its disk",
	journal.ErrReadOnly:   "let this user write the file and its folder, or choose another place",
	journal.ErrBusy:       "see which other process has it open; a backup or a sqlite3 shell may hold it in a transaction",
	journal.ErrReplaced:   "nothing can be recorded until this process is restarted; batches that run upstream are then unknown here, and their calls would be paid for again",
	journal.ErrNetworkFS:  "SQLite's write-ahead log gets damaged there: keep the journal on a local disk, or in PostgreSQL",
}

func (s *Store) explain(err error) error { return advice.Explain(s.path, err, kindOf(err)) }

// kindOf returns the sentinel error of package journal that describes err, nil if
// none does.
func kindOf(err error) error {
	if kind := advice.Kind(err); kind != nil {
		return kind
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return journal.ErrFull
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return journal.ErrReadOnly
	}
	var failed *sqlite.Error
	if !errors.As(err, &failed) {
		return nil
	}
	return kindOfCode(failed.Code())
}

// kindOfCode reads SQLite's result code. The low byte is the primary code.
func kindOfCode(code int) error {
	switch code & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return journal.ErrDamaged
	case sqlite3.SQLITE_FULL:
		return journal.ErrFull
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN:
		return journal.ErrReadOnly
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return journal.ErrBusy
	case sqlite3.SQLITE_IOERR:
		if code == sqlite3.SQLITE_IOERR_SHMSIZE {
			return journal.ErrFull // the shared index did not fit on the disk
		}
	}
	return nil
}
