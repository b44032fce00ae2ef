//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package submit

import (
	"errors"
	"os"
	"syscall"
)

// noFollow makes opening a symbolic link an error, and opening a pipe return.
const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// lock locks a file until it is closed, or the process ends.
func lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrInUse
	}
	return err
}
