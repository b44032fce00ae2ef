//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package submit

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// noFollow makes opening a symbolic link an error, and opening a pipe return.
const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// lockTime is how long lock waits for another process: the lock of a process that is
// killed ends a moment after the kill.
const lockTime = 2 * time.Second

// lock locks a file until it is closed, or the process ends.
func lock(f *os.File) error {
	for began := time.Now(); ; time.Sleep(lockTime / 100) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return err
		case time.Since(began) > lockTime:
			return ErrInUse
		}
	}
}
