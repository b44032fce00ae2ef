//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

// calls is how many callers a batch has. Two of them say the same.
const calls = 10

// callers ask side by side, and again when they are not answered.
type callers struct {
	work  sync.WaitGroup
	mu    sync.Mutex
	asked map[string]int    // prompts, and how many callers each has
	got   map[string]string // by caller, as "prompt #n"
	lost  []error           // callers that were not answered
	count atomic.Int64

	stall chan struct{} // not nil: the first answers are not read on before it is closed
	begun atomic.Int64  // how many are stalled
}

// call starts n callers. They turn to the first of the URLs, and to the next
// whenever that fails them.
func (w *world) call(n int, urls ...string) *callers {
	c := &callers{asked: map[string]int{}, got: map[string]string{}}
	if w.step.slowly {
		c.stall = make(chan struct{})
	}
	name := fmt.Sprintf("prompt-%08x", rand.Uint32())
	for i := range n {
		prompt := fmt.Sprintf("%s-%d.", name, max(i, 1)) // the first two are twins
		c.asked[prompt]++
		c.work.Go(func() {
			text, err := c.askPatiently(prompt, urls)
			c.mu.Lock()
			defer c.mu.Unlock()
			if err != nil {
				c.lost = append(c.lost, err)
				return
			}
			c.got[fmt.Sprint(prompt, " #", i)] = text
			c.count.Add(1)
		})
	}
	return c
}

// hesitate keeps an answer waiting that has begun to come.
func (c *callers) hesitate() {
	if c.stall != nil {
		c.begun.Add(1)
		<-c.stall
	}
}

// readOn ends all hesitating.
func (c *callers) readOn() {
	if c.stall != nil {
		close(c.stall)
	}
}

func (c *callers) reading() int { return int(c.begun.Load()) }

func (c *callers) answered() int { return int(c.count.Load()) }

func (c *callers) wait() { c.work.Wait() }

// join makes others' callers c's own. All must have ended.
func (c *callers) join(others *callers) {
	for prompt, n := range others.asked {
		c.asked[prompt] += n
	}
	for caller, text := range others.got {
		c.got[caller] = text
	}
	c.lost = append(c.lost, others.lost...)
}

// maxTries is more than an SDK has, since a machine may be slow to start again.
const maxTries = 60

// askPatiently makes a call, and again with the same bytes after what an SDK takes for
// passing: a broken connection, 408, 409, 429 and 5xx.
func (c *callers) askPatiently(prompt string, urls []string) (string, error) {
	body := chatBody(prompt)
	var err error
	for try := range maxTries {
		var text string
		var again bool
		if text, again, err = c.askOnce(urls[try%len(urls)], body); !again {
			return text, err
		}
		time.Sleep(100*time.Millisecond + rand.N(200*time.Millisecond))
	}
	return "", fmt.Errorf("%s: %w", prompt, err)
}

func (c *callers) askOnce(url string, body []byte) (text string, again bool, err error) {
	req, err := http.NewRequest(http.MethodPost, url+"/chat/completions", bytes.NewReader(body))
	if err != nil {
		return "", false, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := (&http.Client{Timeout: 2 * patience}).Do(req)
	if err != nil {
		return "", true, err
	}
	defer res.Body.Close()
	c.hesitate()
	answer, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return "", true, err
	case res.StatusCode == http.StatusOK:
		return string(answer), false, nil
	}
	again = res.StatusCode >= 500 || res.StatusCode == 408 || res.StatusCode == 409 || res.StatusCode == 429
	return "", again, fmt.Errorf("%s: %s", res.Status, answer)
}

// A tallied adds up what was seen.
type tallied struct {
	mu                                 sync.Mutex
	crashes, calls, lines, twice, lost int
}

// check asks who was answered, and the provider's log what was paid for.
func (w *world) check(sum *tallied) {
	w.Helper()
	c := w.callers
	for _, err := range c.lost {
		w.Errorf("not answered: %v", err)
	}
	for caller, text := range c.got {
		prompt, _, _ := strings.Cut(caller, " #")
		if !strings.Contains(text, prompt) || strings.Count(text, "prompt-") != 1 {
			w.Errorf("%s got %s", caller, text)
		}
	}
	twice := w.checkPaid(c)
	w.checkFiles()
	w.checkJournal()
	sum.mu.Lock()
	defer sum.mu.Unlock()
	sum.crashes++
	sum.calls += len(c.got) + len(c.lost)
	sum.lines += len(w.srv.Executed())
	sum.twice += twice
	sum.lost += len(c.lost)
}

// checkPaid counts lines that were bought once too often: those that were
// executed, and those of batches that may yet execute them.
func (w *world) checkPaid(c *callers) (twice int) {
	w.Helper()
	paid := map[string]int{}
	for _, b := range w.srv.Batches() {
		for _, l := range b.Lines {
			paid[promptOf(w.T, l.Line)]++
		}
	}
	for prompt, n := range paid {
		if asked := c.asked[prompt]; n > asked {
			w.Errorf("%s was bought %d times for %d callers", prompt, n, asked)
			twice += n - asked
		}
	}
	return twice
}

func promptOf(t *testing.T, l batchtest.Line) string {
	t.Helper()
	var body struct{ Messages []struct{ Content string } }
	if err := json.Unmarshal(l.Body, &body); err != nil || len(body.Messages) != 1 {
		t.Fatalf("line %s: %v", l.Body, err)
	}
	return body.Messages[0].Content
}

// checkFiles counts input files that are there for nothing.
func (w *world) checkFiles() {
	w.Helper()
	used := map[string]bool{}
	for _, b := range w.srv.Batches() {
		used[b.InputFileID] = true
	}
	strays := 0
	for _, u := range w.srv.Uploads() {
		if !u.Deleted && !used[u.ID] {
			strays++
		}
	}
	if strays > w.step.strays {
		w.Errorf("%d input files are left over, want %d", strays, w.step.strays)
	}
}

// checkJournal waits until the journal says that all has ended, and that nobody
// waits for anything. Of callers that were answered as the process died, it
// need not have heard.
func (w *world) checkJournal() {
	w.Helper()
	var problem error
	w.until(func() bool {
		problem = w.journalProblem()
		return problem == nil
	})
	if problem != nil {
		w.Errorf("the journal says: %v", problem)
	}
}

func (w *world) journalProblem() error {
	out, err := exec.Command("autobatcher", "batches", "--json", "--journal", w.journal).Output()
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(out)) {
		var b batchRecord
		if err := json.Unmarshal([]byte(line), &b); err != nil {
			return err
		}
		if b.State != "ended" || b.Held > 0 {
			errs = append(errs, errors.New(line))
		}
	}
	return errors.Join(errs...)
}
