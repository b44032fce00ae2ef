package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Exit codes of a shell for a program that the shell cannot run.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// stillRunning is how long the child may run after a signal to stop until a message says
// so.
const stillRunning = 2 * time.Second

// childTimeout is how long the child may take to end after the context has ended.
const childTimeout = 5 * time.Second

// runChild runs a program, passes signals on to the program, and returns the exit
// code. An error means that the program did not run.
func (p process) runChild(ctx context.Context, program, env []string, signals *signalQueue) (int, error) {
	cmd := exec.CommandContext(ctx, program[0], program[1:]...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdin, streamOf(p.stdout), streamOf(p.stderr)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = childTimeout
	if err := cmd.Start(); err != nil {
		return explainStart(program[0], err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var late <-chan time.Time // when to say that the child still runs after a signal
	for {
		select {
		case s := <-signals.caught:
			if !signals.repeated(s) && !hasSignal(s) {
				_ = cmd.Process.Signal(s) // the child may have ended
			}
			signals.received()
			if late == nil && slices.Contains(stopSignals, s) {
				late = time.After(stillRunning)
			}
		case <-late:
			fmt.Fprintln(p.stderr, "autobatcher: the program has the signal, and still runs: it may wait for its calls. Send the signal again, or end the program; autobatcher ends after the program")
		case err := <-done:
			return childCode(cmd.ProcessState, err)
		}
	}
}

// explainStart returns the exit code and the error for a program that did not start.
func explainStart(name string, err error) (int, error) {
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return exitNotFound, fmt.Errorf("there is no program %q in PATH; give the path of the program, such as ./%[1]s", name)
	case errors.Is(err, fs.ErrNotExist):
		if _, statErr := os.Stat(name); statErr == nil {
			return exitNotFound, fmt.Errorf("the interpreter in the first line of %q does not exist; run it with an interpreter (autobatcher run -- python3 %[1]s)", name)
		}
		return exitNotFound, fmt.Errorf("there is no program %q; check the path", name)
	case errors.Is(err, syscall.ENOEXEC):
		return exitNotExecutable, fmt.Errorf("%q has no first line with its interpreter (#!), or is a program for another machine; run it with its interpreter (autobatcher run -- python3 %[1]s)", name)
	case errors.Is(err, fs.ErrPermission):
		if info, statErr := os.Stat(name); statErr == nil && info.IsDir() {
			return exitNotExecutable, fmt.Errorf("%q is a folder; give the path of a program", name)
		}
		return exitNotExecutable, fmt.Errorf("%q may not be executed; run it with its interpreter (autobatcher run -- python3 %[1]s), or make it executable (chmod +x)", name)
	}
	return exitNotExecutable, err
}

// childCode returns the exit code that a shell would report for the child.
func childCode(state *os.ProcessState, err error) (int, error) {
	if state == nil {
		return exitFailure, err
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitSignal + int(status.Signal()), nil
	}
	return state.ExitCode(), nil
}

// childEnv returns env with the variables by which clients find the proxy at an
// origin such as http://127.0.0.1:8080, and the key for the proxy. Clients of Azure
// have variables of their own, and add /openai to the origin. authHeader is the header
// for the key of the provider: Azure's is "api-key".
func childEnv(env []string, origin, key, authHeader string) []string {
	base := origin + "/v1"
	ours := []string{"OPENAI_BASE_URL=" + base, "OPENAI_API_BASE=" + base, "OPENAI_API_KEY=" + key}
	if authHeader == "api-key" {
		ours = append(ours, "AZURE_OPENAI_ENDPOINT="+origin, "AZURE_OPENAI_API_KEY="+key, "AZURE_API_BASE="+origin, "AZURE_API_KEY="+key)
	}
	if (process{env: env}).getenv(chunkTimeout) == "" {
		ours = append(ours, chunkTimeout+"=0")
	}
	child := slices.DeleteFunc(slices.Clone(env), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return slices.ContainsFunc(ours, func(our string) bool { return strings.HasPrefix(our, name+"=") })
	})
	return append(withoutProxy(child), ours...)
}

// chunkTimeout is the variable for how many seconds LangChain waits for the next
// chunk of a stream: 120 by default, and 0 for no limit.
const chunkTimeout = "LANGCHAIN_OPENAI_STREAM_CHUNK_TIMEOUT_S"

// withoutProxy exempts this machine from the use of an HTTP proxy. Clients in Python
// and Node would otherwise send calls to 127.0.0.1 through the HTTP proxy.
func withoutProxy(env []string) []string {
	const local = "127.0.0.1"
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		value := process{env: env}.getenv(name)
		switch {
		case value == "*" || slices.Contains(strings.Split(value, ","), local):
			continue
		case value != "":
			value += ","
		}
		env = append(env, fmt.Sprintf("%s=%s%s", name, value, local))
	}
	return env
}
