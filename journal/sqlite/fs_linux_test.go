package sqlite

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

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
