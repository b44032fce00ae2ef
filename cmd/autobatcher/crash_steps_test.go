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

// A step is a moment of a batch's life.
type step struct {
	name     string
	provider string
	server   batchtest.Options
	window   string // of the process that is killed

	// The provider stops at a request of this kind, and tells. Or else happened
	// reports whether it is the moment that is meant.
	op       batchtest.Op
	fault    func(reached chan<- struct{}) batchtest.Fault
	happened func(*world, *proxyProcess) bool

	flags  []string // of serve
	again  int      // how many more processes get there, and are killed
	slowly bool     // callers begin to read their answers, and go on when serve is dead
	strays int      // input files that nobody can know of
	slow   bool     // takes a quarter of a minute
}

var steps = []step{
	{
		name: "queued", window: "60", provider: "openai",
		happened: func(_ *world, s *proxyProcess) bool { return s.metric("autobatcher_calls_queued 10\n") },
	},
	{name: "uploading", window: "0.2", provider: "openai", op: batchtest.OpUpload, fault: before},
	{
		// What was uploaded has no id that anybody heard of. It costs nothing, and
		// the provider lists it under its purpose.
		name: "uploaded, not told", window: "0.2", provider: "openai", op: batchtest.OpUpload, fault: behind, strays: 1,
	},
	{name: "creating", window: "0.2", provider: "openai", op: batchtest.OpCreate, fault: before, slow: true},
	{
		// The list does not show the batch when it is looked for, and it would be
		// made after all, had its file not been deleted.
		name: "creating, behind a slow gateway", window: "0.2", provider: "openai", op: batchtest.OpCreate, fault: belatedly, slow: true,
	},
	{name: "created, not told", window: "0.2", provider: "openai", op: batchtest.OpCreate, fault: behind},
	{
		name: "created, just told", window: "0.2", provider: "openai", op: batchtest.OpCreate, fault: during,
		server: batchtest.Options{Turnaround: time.Second},
	},
	{
		name: "running", window: "0.2", provider: "openai", op: batchtest.OpRetrieve, fault: during,
		server: batchtest.Options{Turnaround: 2 * time.Second},
	},
	{
		name: "half delivered", window: "0.2", provider: "doubleword",
		server:   batchtest.Options{Manners: batchtest.Doubleword(), Turnaround: 2 * time.Second},
		happened: func(w *world, _ *proxyProcess) bool { return w.callers.answered() >= calls/2 },
	},
	{name: "reading results", window: "0.2", provider: "openai", op: batchtest.OpContent, fault: before},
	{name: "results torn", window: "0.2", provider: "openai", op: batchtest.OpContent, fault: halfway},
	{
		name: "delivered", window: "0.2", provider: "openai",
		happened: func(w *world, _ *proxyProcess) bool { return w.callers.answered() == calls },
	},
	{
		name: "running, thrice", window: "0.2", provider: "openai", op: batchtest.OpRetrieve, fault: during, again: 2,
		server: batchtest.Options{Turnaround: 3 * time.Second},
	},
	{
		name: "the second of three batches", window: "0.2", provider: "openai", op: batchtest.OpCreate, fault: second(behind),
		flags: []string{"--batch-size", "4"}, server: batchtest.Options{Turnaround: time.Second},
		strays: 1, // the third may have been uploaded just then
	},
	{
		name: "answering", window: "0.2", provider: "openai", slowly: true,
		server:   batchtest.Options{Answer: atLength},
		happened: func(w *world, _ *proxyProcess) bool { return w.callers.reading() == calls },
	},
}

// before tells of a request, and leaves it without an answer until the client
// is dead.
func before(reached chan<- struct{}) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		close(reached)
		return batchtest.Hang()(w, r)
	}
}

// behind does what is asked before it stops answering.
func behind(reached chan<- struct{}) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		batchtest.Proceed(httptest.NewRecorder(), r)
		return before(reached)(w, r)
	}
}

// belatedly does what is asked a while after the client has died: when its
// successor has looked for the batch.
func belatedly(reached chan<- struct{}) batchtest.Fault {
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

// during answers, and tells at that moment.
func during(reached chan<- struct{}) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		batchtest.Proceed(w, r)
		close(reached)
		return true
	}
}

// halfway stops in the middle of its answer.
func halfway(reached chan<- struct{}) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		answer := httptest.NewRecorder()
		batchtest.Proceed(answer, r)
		for name := range answer.Header() {
			w.Header().Set(name, answer.Header().Get(name))
		}
		_, _ = io.CopyN(w, answer.Body, int64(answer.Body.Len()/2)) // the client is there
		_ = http.NewResponseController(w).Flush()
		time.Sleep(100 * time.Millisecond) // for some answers to be delivered
		return before(reached)(w, r)
	}
}

// second passes over the first request.
func second(then func(chan<- struct{}) batchtest.Fault) func(chan<- struct{}) batchtest.Fault {
	return func(reached chan<- struct{}) batchtest.Fault {
		fault, seen := then(reached), false
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !seen {
				seen = true
				return false
			}
			return fault(w, r)
		}
	}
}

// atLength is batchtest.Echo, and to the third caller in an answer that no
// socket's buffers hold.
func atLength(l batchtest.Line) batchtest.Outcome {
	o := batchtest.Echo(l)
	if !bytes.Contains(l.Body, []byte("-2.")) {
		return o
	}
	o.Body = bytes.Join([][]byte{[]byte(`{"filler":"`), bytes.Repeat([]byte("x"), 16<<20), []byte(`","answer":`), o.Body, []byte("}")}, nil)
	return o
}

// until waits for something to be seen.
func (w *world) until(seen func() bool) {
	for deadline := time.Now().Add(patience); !seen() && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
}

// metric reports whether the proxy shows a line of metrics.
func (p *proxyProcess) metric(line string) bool {
	res, err := http.Get(strings.TrimSuffix(p.url, "/v1") + "/metrics")
	if err != nil {
		return false
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return err == nil && strings.Contains(string(text), line)
}
