// Command autobatcher answers ordinary OpenAI calls at batch price, for any
// program that uses the OpenAI API. It serves a proxy for programs, runs one
// program with a proxy, or serves a sandbox: a Batch API for trials without an
// account. The manual is its help: autobatcher --help.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args, process{
		env:    os.Environ(),
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		notify: notify,
		exit:   os.Exit,
	}))
}
