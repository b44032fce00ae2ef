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

// calls is the number of callers of a batch. Two callers have the same prompt.
const calls = 10

// callers make calls concurrently, and retry failed calls.
type callers struct {
	work  sync.WaitGroup
	mu    sync.Mutex
	asked map[string]int    // number of callers by prompt
	got   map[string]string // answer by caller, as "prompt #n"
	lost  []error           // errors of callers that got no answer
	count atomic.Int64

	stall chan struct{} // if not nil, answers are not read before stall is closed
	begun atomic.Int64  // number of stalled callers
}

// call starts n callers. A caller uses the first URL, and the next URL for each
// retry.
func (w *world) call(n int, urls ...string) *callers {
	c := &callers{asked: map[string]int{}, got: map[string]string{}}
	if w.step.slowReaders {
		c.stall = make(chan struct{})
	}
	name := fmt.Sprintf("prompt-%08x", rand.Uint32())
	for i := range n {
		prompt := fmt.Sprintf("%s-%d.", name, max(i, 1)) // the first two callers have the same prompt
		c.asked[prompt]++
		c.work.Go(func() {
			text, err := c.callWithRetries(prompt, urls)
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

// callUntil starts n callers that make one call after another until a moment.
func (w *world) callUntil(end time.Time, n int, urls ...string) *callers {
	c := &callers{asked: map[string]int{}, got: map[string]string{}}
	for i := range n {
		c.work.Go(func() {
			for k := i; time.Now().Before(end); k++ {
				prompt := fmt.Sprintf("prompt-%08x-%d.", rand.Uint32(), i)
				c.mu.Lock()
				c.asked[prompt]++
				c.mu.Unlock()
				text, err := c.callWithRetries(prompt, []string{urls[k%len(urls)], urls[(k+1)%len(urls)]})
				c.mu.Lock()
				if c.got[prompt+" #"] = text; err != nil {
					delete(c.got, prompt+" #")
					c.lost = append(c.lost, err)
				}
				c.mu.Unlock()
			}
		})
	}
	return c
}

// stallReading waits, with an answer that has begun, until resumeReading.
func (c *callers) stallReading() {
	if c.stall != nil {
		c.begun.Add(1)
		<-c.stall
	}
}

// resumeReading lets all callers read their answers.
func (c *callers) resumeReading() {
	if c.stall != nil {
		close(c.stall)
	}
}

func (c *callers) reading() int { return int(c.begun.Load()) }

func (c *callers) answered() int { return int(c.count.Load()) }

func (c *callers) wait() { c.work.Wait() }

// join adds the callers of others to c. All callers must have ended.
func (c *callers) join(more *callers) {
	for prompt, n := range more.asked {
		c.asked[prompt] += n
	}
	for caller, text := range more.got {
		c.got[caller] = text
	}
	c.lost = append(c.lost, more.lost...)
}

// maxAttempts is more than SDKs make, since a slow machine restarts serve slowly.
const maxAttempts = 60

// callWithRetries makes a call. As an SDK does, callWithRetries retries the same
// bytes after a broken connection, 408, 409, 429 and 5xx.
func (c *callers) callWithRetries(prompt string, urls []string) (string, error) {
	body := chatBody(prompt)
	var err error
	for attempt := range maxAttempts {
		var text string
		var retry bool
		if text, retry, err = c.callOnce(urls[attempt%len(urls)], body); !retry {
			return text, err
		}
		time.Sleep(100*time.Millisecond + rand.N(200*time.Millisecond))
	}
	return "", fmt.Errorf("%s: %w", prompt, err)
}

func (c *callers) callOnce(url string, body []byte) (text string, retry bool, err error) {
	req, err := http.NewRequest(http.MethodPost, url+"/chat/completions", bytes.NewReader(body))
	if err != nil {
		return "", false, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := (&http.Client{Timeout: 2 * testTimeout}).Do(req)
	if err != nil {
		return "", true, err
	}
	defer res.Body.Close()
	c.stallReading()
	answer, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return "", true, err
	case res.StatusCode == http.StatusOK:
		return string(answer), false, nil
	}
	retry = res.StatusCode >= 500 || res.StatusCode == 408 || res.StatusCode == 409 || res.StatusCode == 429
	return "", retry, fmt.Errorf("%s: %s", res.Status, answer)
}

// crashTotals adds up the results of crashes.
type crashTotals struct {
	mu                                     sync.Mutex
	crashes, calls, lines, paidTwice, lost int
}

// check checks that each caller got the caller's own answer, and that the provider
// executed no line twice.
func (w *world) check(sum *crashTotals) {
	w.Helper()
	c := w.callers
	for _, err := range c.lost {
		w.Errorf("a caller got no answer: %v", err)
	}
	for caller, text := range c.got {
		prompt, _, _ := strings.Cut(caller, " #")
		if !strings.Contains(text, prompt) || strings.Count(text, "prompt-") != 1 {
			w.Errorf("%s got %s", caller, text)
		}
	}
	paidTwice := w.checkPaid(c)
	w.checkFiles()
	w.checkJournal()
	sum.mu.Lock()
	defer sum.mu.Unlock()
	sum.crashes++
	sum.calls += len(c.got) + len(c.lost)
	sum.lines += len(w.srv.Executed())
	sum.paidTwice += paidTwice
	sum.lost += len(c.lost)
}

// checkPaid counts the lines in batches beyond one line for each caller. A line in a
// batch was executed, or may still be executed.
func (w *world) checkPaid(c *callers) (paidTwice int) {
	w.Helper()
	paid := map[string]int{}
	for _, b := range w.srv.Batches() {
		for _, l := range b.Lines {
			paid[promptOf(w.T, l.Line)]++
		}
	}
	for prompt, n := range paid {
		if asked := c.asked[prompt]; n > asked {
			w.Errorf("%s was paid for %d times for %d callers", prompt, n, asked)
			paidTwice += n - asked
		}
	}
	return paidTwice
}

func promptOf(t *testing.T, l batchtest.Line) string {
	t.Helper()
	var body struct{ Messages []struct{ Content string } }
	if err := json.Unmarshal(l.Body, &body); err != nil || len(body.Messages) != 1 {
		t.Fatalf("line %s: %v", l.Body, err)
	}
	return body.Messages[0].Content
}

// checkFiles counts the input files that no batch uses.
func (w *world) checkFiles() {
	w.Helper()
	used := map[string]bool{}
	for _, b := range w.srv.Batches() {
		used[b.InputFileID] = true
	}
	unused := 0
	for _, u := range w.srv.Uploads() {
		if !u.Deleted && !used[u.ID] {
			unused++
		}
	}
	if unused > w.step.strayFiles {
		w.Errorf("%d unused input files, want %d", unused, w.step.strayFiles)
	}
}

// checkJournal waits until, in the journal, all batches have ended and no line is
// held. The journal may miss deliveries that happened as the process died.
func (w *world) checkJournal() {
	w.Helper()
	var problem error
	w.until(func() bool {
		problem = w.journalProblem()
		return problem == nil
	})
	if problem != nil {
		w.Errorf("the journal has unfinished batches: %v", problem)
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
