//go:build unix

package sqlite

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// What is written to a file that was deleted or replaced is lost with the process, so
// every change must fail.
func TestFileIsReplaced(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"deleted": os.Remove,
		"moved":   func(path string) error { return os.Rename(path, path+".old") },
		"replaced": func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, nil, 0o600))
		},
		"log deleted":  func(path string) error { return os.Remove(path + walSuffix) },
		"log replaced": func(path string) error { return copyAgain(path + walSuffix) },
		"shm deleted":  func(path string) error { return os.Remove(path + shmSuffix) },
		"shm replaced": func(path string) error { return copyAgain(path + shmSuffix) },
		"all deleted": func(path string) error {
			return errors.Join(os.Remove(path), os.Remove(path+walSuffix), os.Remove(path+shmSuffix))
		},
		"copied again": copyAgain,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal")
			s := mustOpen(t, path)
			defer s.Close()
			if _, err := s.Heartbeat(t.Context(), "owner", time.Minute); err != nil {
				t.Fatal(err)
			}
			if err := replace(path); err != nil {
				t.Fatal(err)
			}
			_, heartbeat := s.Heartbeat(t.Context(), "owner", time.Minute)
			for request, err := range map[string]error{
				"heartbeat": heartbeat,
				"begin":     s.Begin(t.Context(), journal.Batch{Ref: "ref", Owner: "owner", State: journal.Uploading}, []journal.Line{{CustomID: "1"}}),
			} {
				if !errors.Is(err, journal.ErrReplaced) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "restarted") {
					t.Errorf("%s: %v", request, err)
				}
			}
		})
	}
}

// A second Store of the same file in one process must not end the locks of the first:
// closing any descriptor of a file ends all POSIX locks of the process on the file.
func TestTwoStoresInOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	for _, owner := range []string{"first", "second"} {
		s := mustOpen(t, path)
		defer s.Close()
		mustBeat(t, s, owner)
		if got := start(t, "locks", path, "child").says(); got != "error: "+syscall.EAGAIN.Error() {
			t.Errorf("with the Store of the %s owner, a process that locks the file says %q", owner, got)
		}
	}
}

func init() {
	// locks locks the bytes that the users of a journal in SQLite's format share.
	children["locks"] = func(_ context.Context, path, _ string) error {
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer file.Close()
		return syscall.FcntlFlock(file.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK, Start: 1<<30 + 2, Len: 510})
	}
}

// SQLite removes the log with the last connection, and database/sql may close
// connections, such as interrupted ones. The next log must not be taken for the log of
// someone else.
func TestConnectionsAreClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	s := mustOpen(t, path)
	defer s.Close()
	first, err := os.Open(path + walSuffix) // otherwise the next log may get the inode of the first
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	s.db.SetMaxIdleConns(-1) // each connection is closed after its use
	s.reads.SetMaxIdleConns(-1)
	for range 3 {
		if _, err := s.Heartbeat(t.Context(), "owner", time.Minute); err != nil {
			t.Fatal(err)
		}
	}
}

// The path of the journal may be a symbolic link. When the link leads to another
// file, the next process opens that file.
func TestLinkIsReplaced(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "journal")
	if err := os.Symlink(filepath.Join(folder, "first"), path); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, path)
	defer s.Close()
	if _, err := s.Heartbeat(t.Context(), "owner", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.Symlink(filepath.Join(folder, "second"), path)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Heartbeat(t.Context(), "owner", time.Minute); !errors.Is(err, journal.ErrReplaced) {
		t.Errorf("error %v", err)
	}
}

// copyAgain replaces a file by a copy, as an editor or a restore does.
func copyAgain(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path))
}

// A symbolic link that someone else placed beside the journal must not be followed.
func TestPlantedLinks(t *testing.T) {
	for _, suffix := range []string{"-owner-1", walSuffix, shmSuffix} {
		t.Run(suffix, func(t *testing.T) {
			folder := t.TempDir()
			path, victim := filepath.Join(folder, "journal"), filepath.Join(folder, "victim")
			if suffix == "-owner-1" { // a link to a file that does not exist yet
				victim = filepath.Join(folder, "new")
			} else if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(victim, path+suffix); err != nil {
				t.Fatal(err)
			}
			s, err := Open(t.Context(), path)
			if err == nil {
				defer s.Close()
				_, err = s.Heartbeat(t.Context(), "owner", time.Minute)
			}
			if err == nil || !strings.Contains(err.Error(), "symbolic link") || !strings.Contains(err.Error(), path+suffix) {
				t.Errorf("error %v, want the name of the link", err)
			}
			switch content, err := os.ReadFile(victim); {
			case suffix == "-owner-1" && !os.IsNotExist(err):
				t.Errorf("the file behind the link was made: %v", err)
			case suffix != "-owner-1" && string(content) != "precious":
				t.Errorf("the file behind the link has %q", content)
			}
		})
	}
}
