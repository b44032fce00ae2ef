//go:build unix

package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

// A step is a moment in the life of a batch.
type step struct {
	name     string
	provider string
	server   batchtest.Options
	window   string // the batch window of the process that is killed

	// With a fault, the step is reached when the fault handles a request of this
	// kind. Otherwise happened reports whether the step is reached.
	op       batchtest.Op
	fault    func(reached chan<- struct{}) batchtest.Fault
	happened func(*world, *proxyProcess) bool

	flags       []string // further flags of serve
	again       int      // number of further processes that are killed at the step
	slowReaders bool     // callers do not read their answers before serve is killed
	strayFiles  int      // allowed number of input files that no batch uses
	slow        bool     // takes 15 s
}

var steps = []step{
	{
		name: "queued", window: "60", provider: "openai",
		happened: func(_ *world, s *proxyProcess) bool { return s.metric("autobatcher_calls_queued 10\n") },
	},
	{name: "uploading", window: "0.2", provider: "openai", op: batchtest.OpUpload, fault: before},
	{
		// No process knows the id of the uploaded file. The file costs nothing, and
		// the provider lists the file by purpose.
		name: "uploaded without a response", window: "0.2", provider: "openai", op: batchtest.OpUpload, fault: afterHandling, strayFiles: 1,
	},
	{name: "creating", window: "0.2", provider: "openai", op: batchtest.OpCreate, fault: before, slow: true},
	{
		// The provider creates the batch only after the search for the batch. The
		// creation must fail, since the search deletes the input file.
		name: "creating through a slow gateway", window: "0.2", provider: "openai", op: batchtest.OpCreate, fault: afterDelay, slow: true,
	},
	{name: "created without a response", window: "0.2", provider: "openai", op: batchtest.OpCreate, fault: afterHandling},
	{
		name: "created with a response", window: "0.2", provider: "openai", op: batchtest.OpCreate, fault: during,
		server: batchtest.Options{Turnaround: time.Second},
	},
	{
		name: "running", window: "0.2", provider: "openai", op: batchtest.OpRetrieve, fault: during,
		server: batchtest.Options{Turnaround: 2 * time.Second},
	},
	{
		name: "half delivered", window: "0.2", provider: "doubleword",
		server:   batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: 2 * time.Second},
		happened: func(w *world, _ *proxyProcess) bool { return w.callers.answered() >= calls/2 },
	},
	{name: "reading results", window: "0.2", provider: "openai", op: batchtest.OpContent, fault: before},
	{name: "reading truncated results", window: "0.2", provider: "openai", op: batchtest.OpContent, fault: halfAnswered},
	{
		name: "delivered", window: "0.2", provider: "openai",
		happened: func(w *world, _ *proxyProcess) bool { return w.callers.answered() == calls },
	},
	{
		name: "running, three times", window: "0.2", provider: "openai", op: batchtest.OpRetrieve, fault: during, again: 2,
		server: batchtest.Options{Turnaround: 3 * time.Second},
	},
	{
		name: "the second of three batches", window: "0.2", provider: "openai", op: batchtest.OpCreate, fault: second(afterHandling),
		flags: []string{"--batch-size", "4"}, server: batchtest.Options{Turnaround: time.Second},
		strayFiles: 1, // the upload of the third file may just have finished
	},
	{
		name: "answering", window: "0.2", provider: "openai", slowReaders: true,
		server:   batchtest.Options{Answer: longAnswer},
		happened: func(w *world, _ *proxyProcess) bool { return w.callers.reading() == calls },
	},
}

// before reports a request, does not handle the request, and sends no response
// before the client is dead.
func before(reached chan<- struct{}) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		close(reached)
		return batchtest.Hang()(w, r)
	}
}

// afterHandling is like before, but handles the request.
func afterHandling(reached chan<- struct{}) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		batchtest.Proceed(httptest.NewRecorder(), r)
		return before(reached)(w, r)
	}
}

// afterDelay is like before, but handles the request 20 s after the client's death,
// when the next process has looked for the batch.
func afterDelay(reached chan<- struct{}) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		body, _ := io.ReadAll(r.Body)
		later := r.Clone(context.WithoutCancel(r.Context()))
		later.Body = io.NopCloser(bytes.NewReader(body))
		go func() {
			<-r.Context().Done()
			time.Sleep(20 * time.Second)
			batchtest.Proceed(httptest.NewRecorder(), later)
		}()
		return before(reached)(w, r)
	}
}

// during handles the request, sends the response, and reports the request.
func during(reached chan<- struct{}) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		batchtest.Proceed(w, r)
		close(reached)
		return true
	}
}

// halfAnswered sends half of the response.
func halfAnswered(reached chan<- struct{}) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		answer := httptest.NewRecorder()
		batchtest.Proceed(answer, r)
		for name := range answer.Header() {
			w.Header().Set(name, answer.Header().Get(name))
		}
		_, _ = io.CopyN(w, answer.Body, int64(answer.Body.Len()/2)) // the client is connected
		_ = http.NewResponseController(w).Flush()
		time.Sleep(100 * time.Millisecond) // some answers are delivered meanwhile
		return before(reached)(w, r)
	}
}

// second applies a fault to the second request.
func second(inner func(chan<- struct{}) batchtest.Fault) func(chan<- struct{}) batchtest.Fault {
	return func(reached chan<- struct{}) batchtest.Fault {
		fault, seen := inner(reached), false
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !seen {
				seen = true
				return false
			}
			return fault(w, r)
		}
	}
}

// longAnswer is like batchtest.Echo, but sends the third caller an answer that is
// larger than the buffers of a socket.
func longAnswer(l batchtest.Line) batchtest.Outcome {
	o := batchtest.Echo(l)
	if !bytes.Contains(l.Body, []byte("-2.")) {
		return o
	}
	o.Body = bytes.Join([][]byte{[]byte(`{"filler":"`), bytes.Repeat([]byte("x"), 16<<20), []byte(`","answer":`), o.Body, []byte("}")}, nil)
	return o
}

// until waits until done returns true, for testTimeout at most.
func (w *world) until(done func() bool) {
	for deadline := time.Now().Add(testTimeout); !done() && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
}

// metric reports whether the metrics of the proxy contain a line.
func (p *proxyProcess) metric(line string) bool {
	res, err := http.Get(strings.TrimSuffix(p.url, "/v1") + "/metrics")
	if err != nil {
		return false
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return err == nil && strings.Contains(string(text), line)
}
