//go:build !unix

package main

import (
	"os"
	"syscall"
)

// passedSignals go on to the child.
var passedSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

// hasSignal reports whether the child has the signal already: a console sends
// Ctrl-C to every process attached to it.
func hasSignal(s os.Signal) bool { return s == os.Interrupt }
