//go:build !unix

package main

// openFileLimit returns the limit on open files, 0 if unknown.
func openFileLimit() uint64 { return 0 }
