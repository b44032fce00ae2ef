//go:build unix

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/pgtest"
)

// TestCrash kills a real serve process at each step in the life of a batch. The
// callers retry, as SDKs do. Then TestCrash checks, in the provider's log, that no
// line was paid for twice. With AUTOBATCHER_CRASH=full, TestCrash also runs the
// slow steps, PostgreSQL and replicas, which takes a minute.
func TestCrash(t *testing.T) {
	full := os.Getenv("AUTOBATCHER_CRASH") == "full"
	var sum crashTotals
	t.Run("sqlite", func(t *testing.T) {
		everyStep(t, &sum, full, func(t *testing.T) string { return filepath.Join(t.TempDir(), "journal.db") })
	})
	if full {
		postgres := pgtest.Run(t)
		t.Run("postgres", func(t *testing.T) {
			everyStep(t, &sum, full, func(t *testing.T) string {
				url, err := postgres.NewDatabase(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return url
			})
		})
	}
	t.Logf("%d crashes, %d calls, %d lines, %d paid for twice, %d calls unanswered", sum.crashes, sum.calls, sum.lines, sum.paidTwice, sum.lost)
}

// everyStep kills serve at each step: in one test serve is restarted, in another
// test a replica with the same journal takes over.
func everyStep(t *testing.T, sum *crashTotals, full bool, newJournal func(*testing.T) string) {
	for _, step := range steps {
		if step.slow && !full {
			continue
		}
		t.Run(step.name, func(t *testing.T) {
			t.Parallel()
			newWorld(t, step, newJournal(t)).restart(sum)
		})
		if full {
			t.Run(step.name+", replica", func(t *testing.T) {
				t.Parallel()
				newWorld(t, step, newJournal(t)).failOver(sum)
			})
		}
	}
}

// A world is the environment of a test: a provider, a journal and callers.
type world struct {
	*testing.T
	step    step
	srv     *batchtest.Server
	journal string
	callers *callers
}

func newWorld(t *testing.T, s step, journal string) *world {
	w := &world{T: t, step: s, journal: journal}
	s.server.Logf = t.Logf
	w.srv = batchtest.NewServer(s.server)
	t.Cleanup(w.srv.Close)
	return w
}

// restart kills serve at the step and starts serve again.
func (w *world) restart(sum *crashTotals) {
	port := freePort(w.T)
	first := w.serve(port, w.step.window)
	w.callers = w.call(calls, first.url)
	w.waitForStep(first)
	first.kill()
	for range w.step.again {
		next := w.serve(port, "0.2")
		w.waitForStep(next)
		next.kill()
	}
	w.callers.resumeReading()
	second := w.serve(port, "0.2")
	w.callers.wait()
	w.check(sum)
	second.end()
}

// failOver kills one of two replicas at the step. Both replicas have callers. The
// callers of the killed replica retry at the second replica.
func (w *world) failOver(sum *crashTotals) {
	first, second := w.serve(freePort(w.T), w.step.window), w.serve(freePort(w.T), "0.2")
	w.callers = w.call(calls, first.url, second.url)
	w.waitForStep(first)
	more := w.call(calls/2, second.url, first.url)
	first.kill()
	w.callers.resumeReading()
	more.resumeReading()
	w.callers.wait()
	more.wait()
	w.callers.join(more)
	w.check(sum)
	second.end()
}

// waitForStep waits until serve has reached the step.
func (w *world) waitForStep(s *proxyProcess) {
	w.Helper()
	if w.step.happened != nil {
		w.until(func() bool { return w.step.happened(w, s) })
		return
	}
	reached := make(chan struct{})
	w.srv.Control(w.step.op, w.step.fault(reached))
	select {
	case <-reached:
	case <-time.After(testTimeout):
		w.Fatal("serve did not reach the step")
	}
}

// A proxyProcess is a serve process of a test.
type proxyProcess struct {
	*testing.T
	cmd *exec.Cmd
	url string
	log lockedBuffer
}

// serve starts a serve process, which is killed at the end of the test.
func (w *world) serve(port int, window string) *proxyProcess {
	w.Helper()
	p := &proxyProcess{T: w.T, url: fmt.Sprintf("http://127.0.0.1:%d/v1", port)}
	p.cmd = exec.Command("autobatcher", "serve", "--base-url", w.srv.URL, "--api-key", "key", "--provider", w.step.provider,
		"--port", fmt.Sprint(port), "--batch-window", window, "--poll-interval", "0.1",
		"--journal", w.journal, "--journal-required", "--keep-active-batches-on-close")
	p.cmd.Args = append(p.cmd.Args, w.step.flags...)
	p.cmd.Env = []string{"GORACE=" + raceOptions}
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		p.kill()
		if w.Failed() {
			w.Logf("log of %s:\n%s", p.url, p.log.String())
		}
	})
	for deadline := time.Now().Add(testTimeout); !strings.Contains(p.log.String(), "listening"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatal("serve does not listen: ", p.log.String())
		}
	}
	return p
}

// kill kills the process with SIGKILL.
func (p *proxyProcess) kill() {
	_ = p.cmd.Process.Kill() // the process may have ended
	_ = p.cmd.Wait()         // "signal: killed"
}

// end shuts the process down.
func (p *proxyProcess) end() {
	p.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.Error(err)
	}
	if err := p.cmd.Wait(); err != nil {
		p.Errorf("serve ended with %v", err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
