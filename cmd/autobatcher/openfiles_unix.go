//go:build unix

package main

import "golang.org/x/sys/unix"

// openFileLimit returns the limit on open files, 0 if unknown. At the start of the
// process, the Go runtime has raised the soft limit to the hard limit.
func openFileLimit() uint64 {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return uint64(limit.Cur) //nolint:unconvert // the type depends on the system
}
