package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fullPipe returns the end for writing of a pipe that is full and that nobody reads.
func fullPipe(t *testing.T) *os.File {
	t.Helper()
	fds := make([]int, 2)
	if err := syscall.Pipe2(fds, syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	for err := error(nil); err == nil; {
		_, err = syscall.Write(fds[1], make([]byte, 4096))
		if err != nil && !errors.Is(err, syscall.EAGAIN) {
			t.Fatal(err)
		}
	}
	if err := syscall.SetNonblock(fds[1], false); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "reader"), os.NewFile(uintptr(fds[1]), "writer")
	t.Cleanup(func() {
		_ = w.Close()
		_ = r.Close()
	})
	return w
}

// Nobody reads the stdout and stderr of serve. Calls and /health must be answered, and
// SIGTERM must end serve with code 0.
func TestServeWithStoppedReaders(t *testing.T) {
	for _, test := range []struct{ name, stdout, stderr string }{
		{"stdout", "full", ""}, {"stderr", "", "full"}, {"both", "full", "full"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
			cmd := exec.Command("autobatcher", "serve", "--sandbox", "--log-level", "debug", "--batch-window", "0", "--poll-interval", "0.05",
				"--port", root[strings.LastIndex(root, ":")+1:])
			cmd.Env = []string{"GORACE=" + raceOptions}
			var out lockedBuffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if test.stdout != "" {
				cmd.Stdout = fullPipe(t)
			}
			if test.stderr != "" {
				cmd.Stderr = fullPipe(t)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			client := &http.Client{Timeout: testTimeout}
			awaitServer(t, root)
			for i := range 3 {
				res, err := client.Post(root+"/v1/chat/completions", "application/json", strings.NewReader(string(chatBody(fmt.Sprint(i)))))
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				if res.StatusCode != http.StatusOK {
					t.Errorf("call %d: %s", i, res.Status)
				}
			}
			if res, err := client.Get(root + "/health"); err != nil || res.StatusCode != http.StatusOK {
				t.Error(res, err)
			}
			start := time.Now()
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("serve ended with %v\n%s", err, out.String())
			}
			if got := time.Since(start); got > 30*time.Second {
				t.Errorf("the shutdown took %v", got)
			}
		})
	}
}
