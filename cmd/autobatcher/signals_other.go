//go:build !unix

package main

import (
	"os"
	"syscall"
)

// passedSignals are passed on to the child.
var passedSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

// hasSignal reports whether the child has received the signal already: a console
// sends Ctrl-C to every attached process.
func hasSignal(s os.Signal) bool { return s == os.Interrupt }
