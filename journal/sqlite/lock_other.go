//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package sqlite

import "os"

// canLock says that only leases tell which owners are alive.
const canLock = false

// lockFile makes a file. Nothing locks the file.
func lockFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
}

func locked(string) bool { return true }
