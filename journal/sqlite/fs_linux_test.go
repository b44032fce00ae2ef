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

// Open refuses a journal on a network file system. The test declares the local file
// system to be a network file system.
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

// An owner closes its old lock file when it returns after its death.
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
