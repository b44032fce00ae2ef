package main

import (
	"fmt"
	"net/http"
	"sync"
)

// A callCounter counts the calls that a program makes, and how many calls the program
// makes at the same time.
type callCounter struct {
	http.Handler

	mu    sync.Mutex
	calls int64 // so far
	now   int64 // being answered
	peak  int64 // the maximum of now
}

func (c *callCounter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		c.begin()
		defer c.end()
	}
	c.Handler.ServeHTTP(w, r)
}

func (c *callCounter) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	c.now++
	c.peak = max(c.peak, c.now)
}

func (c *callCounter) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now--
}

// pythonConnections is how many connections OpenAI's client for Python opens by
// default.
const pythonConnections = 1000

// hint says how the program could use fewer batches, by the number of batches so far;
// "" without a hint.
func (c *callCounter) hint(batches int64) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.peak == pythonConnections && c.calls > c.peak:
		return "the program makes 1,000 calls at once, as many as Python's client opens connections; for more, pass " +
			"http_client=DefaultAsyncHttpxClient(limits=httpx.Limits(max_connections=10_000)) to AsyncOpenAI"
	case c.peak == 0 || batches < 3 || c.calls < 3*c.peak:
		return ""
	case c.peak == 1:
		return fmt.Sprintf("%s in %s: the program waits for each answer before the next call, so that each call is a batch of its own. Make the calls concurrently, "+
			"for example with AsyncOpenAI and asyncio.gather, a thread pool, Promise.all, or errgroup", count(c.calls, "call", "calls"), count(batches, "batch", "batches"))
	}
	return fmt.Sprintf("%s in %s: the program makes at most %s at once. Raise the program's limit (workers, a semaphore, errgroup.SetLimit, or connections), "+
		"so that more calls share a batch", count(c.calls, "call", "calls"), count(batches, "batch", "batches"), count(c.peak, "call", "calls"))
}
