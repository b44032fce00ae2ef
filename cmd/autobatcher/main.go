// Command autobatcher answers ordinary OpenAI calls at batch price, for every
// program that speaks OpenAI: it serves a proxy for them, runs one of them, or
// plays a Batch API to try any of this without an account. Its help is its
// manual: autobatcher --help.
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
