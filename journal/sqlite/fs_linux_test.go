package sqlite

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// A journal on a network file system is refused. There is none to try it on, so
// the local one is called one.
func TestNetworkFileSystem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	var info syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(path), &info); err != nil {
		t.Fatal(err)
	}
	networkFileSystems[uint32(info.Type)] = "NetFS"
	defer delete(networkFileSystems, uint32(info.Type))
	_, err := Open(t.Context(), path)
	if !errors.Is(err, journal.ErrNetworkFS) || !strings.Contains(err.Error(), "NetFS") || !strings.Contains(err.Error(), "local disk") {
		t.Errorf("Open: %v, want ErrNetworkFS", err)
	}
}

// An owner that comes back after another process has buried it lets go of the
// lock that it had.
func TestLapsesLeaveNoFilesOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	open := func() *Store {
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	a, b := open(), open()
	synctest.Test(t, func(t *testing.T) {
		for range 20 {
			mustBeat(t, a, "a")
			time.Sleep(time.Hour)
			mustBeat(t, b, "parent")
			take(t, b, 1)
		}
	})
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	locks := 0
	for _, f := range files {
		if name, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.Contains(name, path+"-owner-") {
			locks++
		}
	}
	if locks > 2 {
		t.Errorf("%d locks are open, of two owners", locks)
	}
}
