package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
)

// A process is the environment of a command: variables, standard files and
// signals. Tests use a process of their own.
type process struct {
	env            []string // KEY=VALUE
	stdin          io.Reader
	stdout, stderr io.Writer
	notify         func(...os.Signal) (caught <-chan os.Signal, stop func())
	exit           func(code int) // ends the process at once, after a second signal
}

// getenv returns the value of a variable, "" if the variable is not set. If env
// has the variable more than once, the last value counts, as in a shell.
func (p process) getenv(name string) string {
	value := ""
	for _, pair := range p.env {
		if v, ok := strings.CutPrefix(pair, name+"="); ok {
			value = v
		}
	}
	return value
}

// Exit codes. The run command exits with the code of its program.
const (
	exitFailure = 1   // the command failed
	exitUsage   = 2   // the command line or a variable is wrong
	exitSignal  = 128 // plus the number of the signal that ended the process
)

// A failure ends the command with an exit code. If err is nil, the command prints
// no message.
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

// usagef returns the error for a wrong command line.
func usagef(format string, args ...any) error {
	return &failure{exitUsage, fmt.Errorf(format, args...)}
}

// run runs the command and returns the exit code. If the command fails, run has
// printed the error on stderr.
func run(ctx context.Context, args []string, p process) int {
	if last := len(args) - 1; last > 0 && args[last] == completionFlag {
		c := rootCommand(p)
		c.Commands = append(c.Commands, completionCommand())
		p.completeLine(c, args[1:last])
		return 0
	}
	err := rootCommand(p).Run(ctx, args)
	var f *failure
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &f): // the command line or a variable could not be parsed
		f = &failure{exitUsage, errors.New(explainVariable(err.Error()))}
	}
	if f.err != nil {
		p.printError(f.err)
	}
	return f.code
}

// printError prints an error on stderr, and waits at most flushTimeout for the
// reader of stderr.
func (p process) printError(err error) {
	queued, flush := p.queued()
	defer flush()
	fmt.Fprintf(queued.stderr, "autobatcher: %s\n", printable(err.Error()))
}

func rootCommand(p process) *cli.Command {
	return &cli.Command{
		Name:  "autobatcher",
		Usage: "answer ordinary OpenAI calls at batch price",
		Description: `A program calls autobatcher as if autobatcher were OpenAI. autobatcher
collects the calls of programs, sends the calls as batches, and returns each
call its own result. Chat completions, embeddings and responses are batched,
and what else the provider batches, such as completions, moderations and images
at OpenAI; all other requests pass through.`,
		Version:                         version(),
		Commands:                        []*cli.Command{serveCommand(p), runCommand(p), submitCommand(p), batchesCommand(p), sandboxCommand(p), healthCommand(p), versionCommand(p)},
		Action:                          noCommand,
		OnUsageError:                    badUsage,
		ExitErrHandler:                  func(context.Context, *cli.Command, error) {}, // run prints the error
		EnableShellCompletion:           true,
		ConfigureShellCompletionCommand: p.configureCompletion,

		Reader:    p.stdin,
		Writer:    p.stdout,
		ErrWriter: p.stderr,
	}
}

// release is the version of a release, such as v1.2.3. The build of a release sets
// the variable: -ldflags '-X main.release=v1.2.3'.
var release string

// version returns the version of the program. Without a release, the Go command
// knows the version if it built the program by "go install …@version", or from a
// checkout of the repository.
func version() string {
	info, _ := debug.ReadBuildInfo() // nil if the program was built without modules
	return versionOf(release, info)
}

func versionOf(release string, info *debug.BuildInfo) string {
	switch {
	case release != "":
		return release
	case info != nil && info.Main.Version != "":
		return info.Main.Version
	}
	return "(devel)"
}

// versionCommand prints the version, and what built the program.
func versionCommand(p process) *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version, and what built the program",
		Action: noArguments(func(context.Context) error {
			fmt.Fprintf(p.stdout, "autobatcher %s\n%s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			info, _ := debug.ReadBuildInfo() // nil if the program was built without modules
			for _, s := range settingsOf(info) {
				if s.Key == "vcs.revision" || s.Key == "vcs.time" || s.Key == "vcs.modified" {
					fmt.Fprintf(p.stdout, "%s %s\n", s.Key, s.Value)
				}
			}
			return nil
		}),
		OnUsageError: badUsage,
	}
}

func settingsOf(info *debug.BuildInfo) []debug.BuildSetting {
	if info == nil {
		return nil
	}
	return info.Settings
}

// noCommand handles a command line without a known command.
func noCommand(_ context.Context, c *cli.Command) error {
	if name := c.Args().First(); name != "" {
		if nearestCommand(c, name) != "" {
			return unknownCommand(c, name)
		}
		return usagef("unknown command %[1]q; autobatcher --help lists the commands, and autobatcher run -- %[1]s runs a program of this name", name)
	}
	if err := cli.ShowRootCommandHelp(c); err != nil {
		return &failure{exitFailure, err}
	}
	return &failure{code: exitFailure}
}

// nearestCommand returns the subcommand of c whose name is most similar to name, or "".
func nearestCommand(c *cli.Command, name string) string {
	var names []string
	for _, sub := range c.VisibleCommands() {
		names = append(names, sub.Name)
	}
	return nearest(name, names)
}

// unknownCommand returns the error for an argument that is no subcommand of c.
func unknownCommand(c *cli.Command, name string) error {
	if near := nearestCommand(c, name); near != "" {
		return usagef("unknown command %q; did you mean %s %s?", name, c.FullName(), near)
	}
	return usagef("unknown command %q; %s --help lists the commands", name, c.FullName())
}

func badUsage(_ context.Context, c *cli.Command, err error, _ bool) error {
	return usagef("%s (%s --help)", explainUsage(c, err.Error()), c.FullName())
}

// action wraps the function of a command. A plain error of the function becomes a
// failure with exitFailure, so that run does not take the error for a wrong
// command line.
func action(do func(ctx context.Context, args []string) error) cli.ActionFunc {
	return func(ctx context.Context, c *cli.Command) error {
		err := do(ctx, c.Args().Slice())
		if f := (*failure)(nil); err == nil || errors.As(err, &f) {
			return err
		}
		return &failure{exitFailure, err}
	}
}

// noArguments returns an action for a command that takes flags only, and perhaps has
// subcommands.
func noArguments(do func(context.Context) error) cli.ActionFunc {
	return func(ctx context.Context, c *cli.Command) error {
		switch first := c.Args().First(); {
		case first == "":
			return action(func(ctx context.Context, _ []string) error { return do(ctx) })(ctx, c)
		case slices.ContainsFunc(c.Commands, func(sub *cli.Command) bool { return sub.Name != "help" }):
			return unknownCommand(c, first)
		default:
			return usagef("unexpected argument %q: this command takes flags only", first)
		}
	}
}
