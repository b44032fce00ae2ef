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

// What a shell answers for a program that it cannot run.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// childPatience is how long the child may take to end when ctx has.
const childPatience = 5 * time.Second

// runChild runs a program to its end, passes signals on to it, and returns its
// exit code. An error means that it did not run.
func (p process) runChild(ctx context.Context, program, env []string, signals <-chan os.Signal) (int, error) {
	cmd := exec.CommandContext(ctx, program[0], program[1:]...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdin, p.stdout, p.stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = childPatience
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return exitNotFound, err
		}
		return exitNotExecutable, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if !hasSignal(s) {
				_ = cmd.Process.Signal(s) // it may just have ended
			}
		case err := <-done:
			return childCode(cmd.ProcessState, err)
		}
	}
}

// childCode is what a shell would say of how the child ended.
func childCode(state *os.ProcessState, err error) (int, error) {
	if state == nil {
		return exitFailure, err
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitSignal + int(status.Signal()), nil
	}
	return state.ExitCode(), nil
}

// childEnv is the child's environment: ours, but for where OpenAI is.
func childEnv(env []string, baseURL, key string) []string {
	ours := []string{"OPENAI_BASE_URL=" + baseURL, "OPENAI_API_BASE=" + baseURL, "OPENAI_API_KEY=" + key}
	child := slices.DeleteFunc(slices.Clone(env), func(pair string) bool {
		return strings.HasPrefix(pair, "OPENAI_BASE_URL=") ||
			strings.HasPrefix(pair, "OPENAI_API_BASE=") ||
			strings.HasPrefix(pair, "OPENAI_API_KEY=")
	})
	return append(withoutProxy(child), ours...)
}

// withoutProxy keeps calls to this machine from going through an HTTP proxy,
// which Python's and Node's clients would else do.
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
