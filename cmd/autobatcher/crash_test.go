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

// TestCrash kills a real serve at each step of a batch's life, lets the callers
// try again, as SDKs do, and asks the provider's own log what was paid for. The
// rest of the matrix, with PostgreSQL and with replicas, takes a minute and is
// run where AUTOBATCHER_CRASH is full.
func TestCrash(t *testing.T) {
	full := os.Getenv("AUTOBATCHER_CRASH") == "full"
	var sum tallied
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
	t.Logf("%d crashes, %d calls, %d lines, %d bought twice, %d calls unanswered", sum.crashes, sum.calls, sum.lines, sum.twice, sum.lost)
}

// everyStep crashes at each step, once where the same process starts again, and
// once where a replica that shares its journal lives on.
func everyStep(t *testing.T, sum *tallied, full bool, newJournal func(*testing.T) string) {
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

// A world is a provider, a journal, and what a step needs.
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

// restart kills serve at the step and starts it again.
func (w *world) restart(sum *tallied) {
	port := freePort(w.T)
	first := w.serve(port, w.step.window)
	w.callers = w.call(calls, first.url)
	w.untilReached(first)
	first.kill()
	for range w.step.again {
		next := w.serve(port, "0.2")
		w.untilReached(next)
		next.kill()
	}
	w.callers.readOn()
	second := w.serve(port, "0.2")
	w.callers.wait()
	w.check(sum)
	second.end()
}

// failOver kills one of two replicas at the step. Each has callers; those of
// the one that dies go to the other.
func (w *world) failOver(sum *tallied) {
	first, second := w.serve(freePort(w.T), w.step.window), w.serve(freePort(w.T), "0.2")
	w.callers = w.call(calls, first.url, second.url)
	w.untilReached(first)
	others := w.call(calls/2, second.url, first.url)
	first.kill()
	w.callers.readOn()
	others.readOn()
	w.callers.wait()
	others.wait()
	w.callers.join(others)
	w.check(sum)
	second.end()
}

// untilReached lets the step happen, and waits for it.
func (w *world) untilReached(s *proxyProcess) {
	w.Helper()
	if w.step.happened != nil {
		w.until(func() bool { return w.step.happened(w, s) })
		return
	}
	reached := make(chan struct{})
	w.srv.Control(w.step.op, w.step.fault(reached))
	select {
	case <-reached:
	case <-time.After(patience):
		w.Fatal("the step was never reached")
	}
}

// A proxyProcess is a serve that runs beside the test.
type proxyProcess struct {
	*testing.T
	cmd *exec.Cmd
	url string
	log lockedBuffer
}

// serve starts a serve, which has the test's life at most.
func (w *world) serve(port int, window string) *proxyProcess {
	w.Helper()
	p := &proxyProcess{T: w.T, url: fmt.Sprintf("http://127.0.0.1:%d/v1", port)}
	p.cmd = exec.Command("autobatcher", "serve", "--base-url", w.srv.URL, "--api-key", "key", "--provider", w.step.provider,
		"--port", fmt.Sprint(port), "--batch-window", window, "--poll-interval", "0.1",
		"--journal", w.journal, "--journal-required", "--keep-active-batches-on-close")
	p.cmd.Args = append(p.cmd.Args, w.step.flags...)
	p.cmd.Env = []string{"GORACE=" + promptly}
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		p.kill()
		if w.Failed() {
			w.Logf("%s says:\n%s", p.url, p.log.String())
		}
	})
	for deadline := time.Now().Add(patience); !strings.Contains(p.log.String(), "listening"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatal("serve does not listen: ", p.log.String())
		}
	}
	return p
}

// kill ends it without a word.
func (p *proxyProcess) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()         // "signal: killed"
}

// end ends it in an orderly way.
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
