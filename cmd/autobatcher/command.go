package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime/debug"
	"strings"

	"github.com/urfave/cli/v3"
)

// A process is what surrounds a command: its environment, its files, and the
// signals it gets. Tests make up their own.
type process struct {
	env            []string // KEY=VALUE
	stdin          io.Reader
	stdout, stderr io.Writer
	notify         func(...os.Signal) (caught <-chan os.Signal, stop func())
	exit           func(code int) // at once, for a second signal
}

// getenv returns the value of a variable: the last, as the shell would.
func (p process) getenv(name string) string {
	value := ""
	for _, pair := range p.env {
		if v, ok := strings.CutPrefix(pair, name+"="); ok {
			value = v
		}
	}
	return value
}

// Exit codes. A child's own code goes through run as it is.
const (
	exitFailure = 1 // it could not be done
	exitUsage   = 2 // it was asked for wrongly
	exitSignal  = 128
)

// A failure ends the command with a code. Without an error there is nothing
// more to say.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string {
	if f.err == nil {
		return fmt.Sprintf("exit code %d", f.code)
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// usagef is the error for a command line that cannot be meant.
func usagef(format string, args ...any) error {
	return &failure{exitUsage, fmt.Errorf(format, args...)}
}

// run is the whole command. It returns the exit code, having said on stderr
// what went wrong.
func run(ctx context.Context, args []string, p process) int {
	err := rootCommand(p).Run(ctx, args)
	var f *failure
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &f): // the command line, or a variable, could not be read
		f = &failure{exitUsage, errors.New(typeNames.ReplaceAllString(err.Error(), ""))}
	}
	if f.err != nil {
		fmt.Fprintf(p.stderr, "autobatcher: %v\n", f.err)
	}
	return f.code
}

// typeNames are what only programmers of this command could make sense of.
var typeNames = regexp.MustCompile(` as \*?[\w.]+ value`)

func rootCommand(p process) *cli.Command {
	return &cli.Command{
		Name:  "autobatcher",
		Usage: "answer ordinary OpenAI calls at batch price",
		Description: `Programs call it, or are run by it, as if it were OpenAI. It collects their
calls, sends them as batches, and answers each with what its line got.
Chat completions, embeddings and responses are batched; everything else
passes through.`,
		Version:               version(),
		Commands:              []*cli.Command{serveCommand(p), runCommand(p), batchesCommand(p), sandboxCommand(p), healthCommand(p)},
		Action:                noCommand,
		OnUsageError:          badUsage,
		ExitErrHandler:        func(context.Context, *cli.Command, error) {}, // run says it
		EnableShellCompletion: true,
		ConfigureShellCompletionCommand: func(c *cli.Command) {
			c.Hidden = false
			c.Usage = "print a completion script for bash, zsh, fish or pwsh"
		},
		Reader:    p.stdin,
		Writer:    p.stdout,
		ErrWriter: p.stderr,
	}
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// noCommand is what autobatcher does alone: it says what it could do.
func noCommand(_ context.Context, c *cli.Command) error {
	if name := c.Args().First(); name != "" {
		return usagef("there is no command %q; autobatcher --help lists them", name)
	}
	if err := cli.ShowRootCommandHelp(c); err != nil {
		return &failure{exitFailure, err}
	}
	return &failure{code: exitFailure}
}

func badUsage(_ context.Context, c *cli.Command, err error, _ bool) error {
	return usagef("%w (%s --help)", err, c.FullName())
}

// action wraps what a command does with its arguments, so that its plain errors
// are failures and not taken for a command line that could not be read.
func action(do func(ctx context.Context, args []string) error) cli.ActionFunc {
	return func(ctx context.Context, c *cli.Command) error {
		err := do(ctx, c.Args().Slice())
		if f := (*failure)(nil); err == nil || errors.As(err, &f) {
			return err
		}
		return &failure{exitFailure, err}
	}
}

// noArguments is an action for a command that takes only flags.
func noArguments(do func(context.Context) error) cli.ActionFunc {
	return action(func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			return usagef("%q is one argument too many: only flags are expected here", args[0])
		}
		return do(ctx)
	})
}
