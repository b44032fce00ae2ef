//go:build unix

package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// Every error of Open wraps its sentinel, and says the name of the file and what to
// do.
func TestTroubleAtOpen(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, path string)
		kind  error // nil: none of package journal's
		says  string
	}{
		{
			"newer", func(t *testing.T, path string) { edit(t, path, `pragma user_version = 99`) },
			journal.ErrNewer, "version 99, and this program knows 3 (run the newer version",
		},
		{
			"another program's", func(t *testing.T, path string) { edit(t, path, `pragma application_id = 7`) },
			nil, "some other SQLite database",
		},
		{
			"no database", func(t *testing.T, path string) { write(t, path, strings.Repeat("It was a dark night. ", 500)) },
			journal.ErrDamaged, "move the file away",
		},
		{"overwritten in the middle", overwrite, journal.ErrDamaged, "move the file away"},
		{"cut off", func(t *testing.T, path string) { cut(t, path) }, journal.ErrDamaged, "move the file away"},
		{"a folder", func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, nil, "not a regular file"},
		{"locked", func(t *testing.T, path string) { holdLock(t, path) }, journal.ErrBusy, "which other process"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal")
			mustOpen(t, path).Close()
			test.spoil(t, path)
			s, err := open(t.Context(), path, 50*time.Millisecond)
			if err == nil {
				s.Close()
				t.Fatal("opened")
			}
			if test.kind != nil && !errors.Is(err, test.kind) {
				t.Errorf("error %q is not %q", err, test.kind)
			}
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %q does not say %q and %q", err, path, test.says)
			}
		})
	}
}

// On a full disk a change fails, and the journal does not change.
func TestFull(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	mustBeat(t, s, "a")
	if _, err := s.db.Exec(`pragma max_page_count = 20`); err != nil {
		t.Fatal(err)
	}
	err := s.Begin(t.Context(), testBatch("a", "one"), testLines(10_000))
	if !errors.Is(err, journal.ErrFull) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("Begin: %v, want ErrFull", err)
	}
	if err := s.Begin(t.Context(), testBatch("a", "two"), testLines(1)); err != nil {
		t.Errorf("a small batch: %v", err)
	}
	if b := only(t, s); b.Ref != "two" {
		t.Errorf("the journal has %q", b.Ref)
	}
}

// A file without write permission is an error.
func TestReadOnly(t *testing.T) {
	if os.Getuid() != 0 {
		path := filepath.Join(t.TempDir(), "journal")
		mustOpen(t, path).Close()
		if err := os.Chmod(path, 0o400); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), path); !errors.Is(err, journal.ErrReadOnly) {
			t.Errorf("Open: %v, want ErrReadOnly", err)
		}
		return
	}
	// Root may write everything. A child process runs as a different user.
	dir, err := os.MkdirTemp("/tmp", "autobatcher-journal-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path, program := filepath.Join(dir, "journal"), filepath.Join(dir, "program")
	mustOpen(t, path).Close()
	copyProgram(t, program)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, path, "owner")
	cmd.Dir = dir
	cmd.Env = []string{asChild + "=opens"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	got := startCommand(t, cmd).says()
	if !strings.Contains(got, "read-only") || !strings.Contains(got, "let this user write") {
		t.Errorf("the child said %q", got)
	}
}

func copyProgram(t *testing.T, path string) {
	t.Helper()
	from, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close()); err != nil {
		t.Fatal(err)
	}
}

// A writer that waits too long for another writer gets ErrBusy, and may retry.
func TestBusy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	s, err := open(t.Context(), path, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	unlock := holdLock(t, path)
	if err := beat(t.Context(), s, "a", time.Hour); !errors.Is(err, journal.ErrBusy) {
		t.Errorf("Heartbeat: %v, want ErrBusy", err)
	}
	unlock()
	mustBeat(t, s, "a")
}

// After a cancel the error is the context's, and the journal does not change.
func TestCancelled(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	mustBeat(t, s, "a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Begin(ctx, testBatch("a", "one"), testLines(10)); !errors.Is(err, context.Canceled) {
		t.Errorf("Begin: %v, want Canceled", err)
	}
	if all, err := s.Batches(t.Context(), journal.Filter{}); len(all) != 0 || err != nil {
		t.Errorf("batches %v, %v", all, err)
	}
}

// A context that ends while a transaction runs is the error of the operation,
// whichever statement notices the end.
func TestCancelledInATransaction(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	for _, statement := range []string{"", "select 1"} {
		ctx, cancel := context.WithCancel(t.Context())
		err := s.transact(ctx, func(tx *sql.Tx) error {
			cancel()
			for { // until the transaction is rolled back
				if _, err := tx.Exec("select 1"); errors.Is(err, sql.ErrTxDone) {
					break
				}
			}
			if statement == "" {
				return nil // the commit notices
			}
			_, err := tx.Exec(statement)
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("statement %q: %v, want Canceled", statement, err)
		}
	}
}

// Only the user of the process can read the files of a journal.
func TestMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "folder", "journal")
	s := mustOpen(t, path)
	mustBeat(t, s, "a")
	for _, name := range []string{"", "-wal", "-shm", "-owner-1"} {
		info, err := os.Stat(path + name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o600 {
			t.Errorf("%s has mode %o", info.Name(), got)
		}
	}
	info, err := os.Stat(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("the folder has mode %o", got)
	}
}

// A path may contain characters that are special in a URL.
func TestOddPaths(t *testing.T) {
	for _, name := range []string{"with space", "what?", "100%41", "a#b", "ü&_pragma=x", "x;y'z"} {
		dir := t.TempDir()
		mustOpen(t, filepath.Join(dir, name)).Close()
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("%q: %v, want one file", name, left)
		}
	}
}

// A process that opens the file by a symbolic link sees the living owners.
func TestSymlink(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "journal"), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, link) // makes the target of the link
	mustBeat(t, s, "a")
	if err := s.Begin(t.Context(), testBatch("a", "one"), testLines(1)); err != nil {
		t.Fatal(err)
	}
	other := mustOpen(t, path)
	mustBeat(t, other, "parent")
	if got := take(t, other, 1); got != 0 {
		t.Errorf("took %d lines of a living owner", got)
	}
}

// A power failure loses no confirmed change.
func TestSynchronous(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	var synchronous int
	var mode string
	if err := s.db.QueryRow(`select synchronous, journal_mode from pragma_synchronous, pragma_journal_mode`).Scan(&synchronous, &mode); err != nil {
		t.Fatal(err)
	}
	if synchronous != 2 || mode != "wal" {
		t.Errorf("synchronous=%d journal_mode=%s, want 2 (FULL) and wal", synchronous, mode)
	}
}

// Leases run out to the microsecond, for a silent owner in a living process.
func TestLeaseExactly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		mustBeat(t, s, "parent")
		if err := beat(t.Context(), s, "a", 30*time.Second); err != nil {
			t.Fatal(err)
		}
		if err := s.Begin(t.Context(), testBatch("a", "one"), testLines(3)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30*time.Second - time.Microsecond)
		if got := take(t, s, 3); got != 0 {
			t.Errorf("took %d lines before the lease ran out", got)
		}
		time.Sleep(time.Microsecond)
		if got := take(t, s, 3); got != 3 {
			t.Errorf("took %d lines after the lease ran out, want 3", got)
		}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// overwrite spoils every page but the first.
func overwrite(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096; i < len(text); i++ {
		text[i] ^= 0x5a
	}
	write(t, path, string(text))
}

func cut(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()/2); err != nil {
		t.Fatal(err)
	}
}
