package blackbox_test

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// A handler that ends its goroutine, as t.Fatal does, costs no caller an answer
// and does not stop Close.
func TestAHandlerThatExitsHurtsNoCaller(t *testing.T) {
	for _, at := range []autobatcher.EventName{autobatcher.BatchSubmitted, autobatcher.BatchProgress, autobatcher.BatchCompleted} {
		u := setup{options: autobatcher.Options{OnEvent: func(e autobatcher.Event) {
			if e.Name == at {
				runtime.Goexit()
			}
		}}}
		u.run(t, string(at), func(s *scene) {
			for i, c := range s.chats(3) {
				c.within(24 * time.Hour).says([]string{"call 0", "call 1", "call 2"}[i])
			}
			s.chat("later").within(24 * time.Hour).says("later")
			s.closes()
		})
	}
	u := escalating(hopeless, autobatcher.EscalateFailed)
	u.options.OnEvent = func(e autobatcher.Event) {
		if e.Name == autobatcher.CallEscalated {
			runtime.Goexit()
		}
	}
	u.run(t, "call_escalated", func(s *scene) {
		s.chat("text").within(24 * time.Hour).says("text")
		s.closes()
	})
}

// closes checks that Close returns within a minute.
func (s *scene) closes() {
	s.Helper()
	closed := make(chan struct{})
	go func() {
		s.tr.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		s.Error("Close has not returned within a minute")
	}
}

// A handler may call Flush, even where the flushed batch waits for the room that
// the handler's own batch takes.
func TestAHandlerMayFlush(t *testing.T) {
	for _, at := range []autobatcher.EventName{autobatcher.BatchSubmitted, autobatcher.BatchProgress, autobatcher.BatchCompleted} {
		t.Run(string(at), func(t *testing.T) {
			var tr *autobatcher.Transport
			var armed atomic.Bool
			u := queueOf(10_500, true, 10*time.Minute)
			u.options.OnEvent = func(e autobatcher.Event) {
				if e.Name == at && armed.Load() {
					tr.Flush(context.Background())
				}
			}
			u.play(t, func(s *scene) {
				tr = s.tr
				large := strings.Repeat("x", 32_000)
				one := s.chat("one " + large)
				s.until(11 * time.Second)
				two := s.chat("two " + large) // teaches the Transport the limit
				one.within(2 * time.Hour)
				two.within(2 * time.Hour)
				armed.Store(true)
				three := s.chat("three " + large)
				s.until(s.elapsed() + 5*time.Second)
				four := s.chat("four "+large, with("Autobatcher-Completion-Window", "24h"))
				s.until(s.elapsed() + 6*time.Second)
				five := s.chat("five " + large)
				for _, c := range []*pending{three, four, five} {
					if r := c.within(6 * time.Hour); r.status != 200 {
						s.Errorf("status %d, error %v", r.status, r.err)
					}
				}
				s.closes()
			})
		})
	}
}

// A slow handler delays no answer.
func TestASlowHandlerDelaysNoAnswer(t *testing.T) {
	setup{options: autobatcher.Options{OnEvent: func(autobatcher.Event) { time.Sleep(time.Minute) }}}.play(t, func(s *scene) {
		for _, c := range s.chats(2) {
			c.within(time.Hour).want(200, 15*time.Second)
		}
	})
}

// Shutdown and Close return when every event was delivered, in the order of each
// batch, even to a slow handler.
func TestEventsAreDeliveredBeforeCloseReturns(t *testing.T) {
	var mu sync.Mutex
	var delivered []autobatcher.EventName
	setup{options: autobatcher.Options{OnEvent: func(e autobatcher.Event) {
		time.Sleep(100 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		delivered = append(delivered, e.Name)
	}}}.play(t, func(s *scene) {
		s.chat("text").wait()
		if err := s.tr.Shutdown(context.Background()); err != nil {
			s.Error(err)
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		closing := slices.Index(delivered, autobatcher.ClientClosing)
		if closing < 0 {
			s.Fatalf("events %v when Shutdown returned, want client_closing among them", delivered)
		}
		want := []autobatcher.EventName{autobatcher.BatchSubmitted, autobatcher.BatchProgress, autobatcher.BatchCompleted}
		if diff := cmp.Diff(want, slices.Delete(delivered, closing, closing+1)); diff != "" {
			s.Error(diff)
		}
	})
}

// A panickingStore panics in a method that the Transport calls in the background.
type panickingStore struct{ journal.Store }

func (panickingStore) Heartbeat(context.Context, string, time.Duration) (bool, error) {
	panic("heartbeat")
}

func (panickingStore) TakeOver(context.Context, string, journal.Hash, []journal.Hash) ([]journal.Taken, error) {
	panic("take over")
}

// A Store of the user's that panics is a Store that fails: the process goes on.
func TestAPanickingStoreDoesNotEndTheProcess(t *testing.T) {
	const child = "AUTOBATCHER_PANICKING_STORE"
	if os.Getenv(child) != "" {
		setup{options: autobatcher.Options{Journal: panickingStore{journal.NewMemory()}}}.play(t, func(s *scene) {
			s.chat("text").within(time.Hour).says("text")
		})
		return
	}
	c := exec.Command(os.Args[0], "-test.run=^TestAPanickingStoreDoesNotEndTheProcess$")
	c.Env = append(os.Environ(), child+"=1")
	if out, err := c.CombinedOutput(); err != nil {
		lines := strings.SplitN(string(out), "\n", 4)
		t.Errorf("the process ended with %v: %s", err, strings.Join(lines[:min(3, len(lines))], " / "))
	}
}

// What the caller of New does with its Profile afterwards changes nothing.
func TestTheProfileIsCopied(t *testing.T) {
	p := provider.OpenAI()
	setup{options: autobatcher.Options{Provider: &p}}.play(t, func(s *scene) {
		p.MaxLines, p.Endpoints, p.Windows[0] = 1, []string{"/embeddings"}, "1h"
		for _, c := range s.chats(3) {
			c.within(time.Hour).want(200, 15*time.Second)
		}
		s.sent(3)
		s.chat("text", with("Autobatcher-Completion-Window", "1h")).within(time.Hour).fails("invalid_completion_window")
	})
}
