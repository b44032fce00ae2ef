package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

const latencyLines = 50_000

// oneAnswer is a chat completion with 1,000 characters, which every line gets.
var oneAnswer = []byte(`{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"` +
	strings.Repeat("x", 1000) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`)

func answer(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Body: oneAnswer} }

// A provider is a Batch API that notes two moments: when the first byte of an upload
// arrives, and when the answer to a poll says that the batch is completed.
type provider struct {
	*httptest.Server
	api                 *batchtest.Server
	uploaded, completed atomic.Pointer[time.Time]
	results             atomic.Pointer[string] // the path of the last results
}

func newProvider(b *testing.B) *provider {
	p := &provider{api: batchtest.New(batchtest.Options{Answer: answer})}
	p.Server = httptest.NewServer(p)
	b.Cleanup(func() {
		p.Close()
		p.api.Close()
	})
	return p
}

// ServeHTTP implements http.Handler.
func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/files"):
		r.Body = &watchedBody{r.Body, &p.uploaded}
	case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/batches/"):
		w = &watchedWriter{w, &p.completed}
	case strings.HasSuffix(r.URL.Path, "/content"):
		p.results.Store(&r.URL.Path)
	}
	p.api.ServeHTTP(w, r)
}

// note stores the first moment.
func note(at *atomic.Pointer[time.Time]) {
	now := time.Now()
	at.CompareAndSwap(nil, &now)
}

type watchedBody struct {
	io.ReadCloser
	first *atomic.Pointer[time.Time]
}

// Read implements io.Reader.
func (w *watchedBody) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if n > 0 {
		note(w.first)
	}
	return n, err
}

type watchedWriter struct {
	http.ResponseWriter
	completed *atomic.Pointer[time.Time]
}

// Write implements http.ResponseWriter.
func (w *watchedWriter) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(`"completed"`)) && bytes.Contains(p, []byte(`"output_file_id"`)) {
		note(w.completed)
	}
	return w.ResponseWriter.Write(p)
}

// BenchmarkAnswers measures how long the answers of 50,000 lines of 1 KB take: from the
// moment at which the provider says that the batch is completed to the last caller's
// answer. The floor downloads the same results, and splits the results by id.
func BenchmarkAnswers(b *testing.B) {
	for b.Loop() {
		p := newProvider(b)
		calls := startCalls(b, p, autobatcher.Options{BatchSize: latencyLines, BatchWindow: time.Hour, QuietAfter: -1, PollInterval: time.Second}, latencyLines)
		answered := calls.wait(b)
		b.ReportMetric(answered.Sub(*p.completed.Load()).Seconds(), "s")
		b.ReportMetric(downloadTime(b, p).Seconds(), "floor-s")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkUpload measures how long a batch takes to begin: from the last call to the
// first byte of the upload, with the batch full, sent after QuietAfter, and sent at the
// end of its window. The floor is a program that has the bodies of as many calls, writes
// the lines into memory and uploads the lines with net/http.
func BenchmarkUpload(b *testing.B) {
	for _, bench := range []struct {
		name  string
		calls int
		opts  autobatcher.Options
	}{
		{"Full", latencyLines, autobatcher.Options{BatchSize: latencyLines, BatchWindow: time.Hour, QuietAfter: -1}},
		{"Quiet", 100, autobatcher.Options{}},
		{"Window", 100, autobatcher.Options{QuietAfter: -1}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			for b.Loop() {
				p := newProvider(b)
				calls := startCalls(b, p, bench.opts, bench.calls)
				calls.wait(b)
				b.ReportMetric(milliseconds(p.uploaded.Load().Sub(calls.last)), "ms")
				b.ReportMetric(milliseconds(uploadTime(b, p, bench.calls)), "floor-ms")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// A latencyRun is calls that wait in a Transport.
type latencyRun struct {
	tr   *autobatcher.Transport
	wg   sync.WaitGroup
	last time.Time              // the last call began
	bad  atomic.Pointer[string] // an answer that was wrong
}

// startCalls makes calls of 1 KB, the last one when all other calls wait.
func startCalls(b *testing.B, p *provider, opts autobatcher.Options, calls int) *latencyRun {
	b.Helper()
	tr, err := autobatcher.New(opts)
	if err != nil {
		b.Fatal(err)
	}
	run := &latencyRun{tr: tr}
	for i := range calls {
		if i == calls-1 {
			for tr.Stats().Queued < calls-1 {
				time.Sleep(time.Millisecond)
			}
			run.last = time.Now()
		}
		run.wg.Go(func() {
			if wrong := answerTo(tr, chat(p, i)); wrong != "" {
				run.bad.Store(&wrong)
			}
		})
	}
	return run
}

// answerTo reads the answer to a call, and says what is wrong with the answer.
func answerTo(tr *autobatcher.Transport, call *http.Request) (wrong string) {
	res, err := tr.RoundTrip(call)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Equal(body, oneAnswer) || res.StatusCode != http.StatusOK {
		return fmt.Sprintf("%s, %v: %s", res.Status, err, body)
	}
	return ""
}

// wait waits for the last answer.
func (run *latencyRun) wait(b *testing.B) time.Time {
	b.Helper()
	run.wg.Wait()
	answered := time.Now()
	if wrong := run.bad.Load(); wrong != nil {
		b.Fatal(*wrong)
	}
	run.tr.Close()
	return answered
}

func chat(p *provider, i int) *http.Request {
	text := `{"model":"m","messages":[{"role":"user","content":"` + strconv.Itoa(i) + strings.Repeat("x", 900) + `"}]}`
	r, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, p.URL+"/v1/chat/completions", strings.NewReader(text))
	r.Header.Set("Authorization", "Bearer key")
	r.Header.Set("Content-Type", "application/json")
	return r
}

// downloadTime is how long the results of the last batch take by hand.
func downloadTime(b *testing.B, p *provider) time.Duration {
	b.Helper()
	began := time.Now()
	r, _ := http.NewRequestWithContext(b.Context(), http.MethodGet, p.URL+*p.results.Load(), http.NoBody)
	r.Header.Set("Authorization", "Bearer key")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	results := make(map[string][]byte, latencyLines)
	lines := bufio.NewReaderSize(res.Body, 256<<10)
	for text, err := lines.ReadSlice('\n'); err == nil; text, err = lines.ReadSlice('\n') {
		_, id, _ := bytes.Cut(text, []byte(`"custom_id":"`))
		results[string(id[:max(bytes.IndexByte(id, '"'), 0)])] = bytes.Clone(text)
	}
	if len(results) != latencyLines {
		b.Fatalf("the floor got %d results", len(results))
	}
	return time.Since(began)
}

// uploadTime is how long it takes by hand to write the lines of so many calls, and until
// the first byte of their upload has arrived, on a connection that is open.
func uploadTime(b *testing.B, p *provider, calls int) time.Duration {
	b.Helper()
	bodies := make([][]byte, calls)
	for i := range bodies {
		bodies[i], _ = io.ReadAll(chat(p, i).Body)
	}
	p.uploaded.Store(nil)
	began := time.Now()
	var file bytes.Buffer
	for i, body := range bodies {
		fmt.Fprintf(&file, `{"custom_id":"call-%d","method":"POST","url":"/v1/chat/completions","body":%s}`+"\n", i, body)
	}
	r, _ := http.NewRequestWithContext(b.Context(), http.MethodPost, p.URL+"/v1/files", &file)
	r.Header.Set("Authorization", "Bearer key")
	r.Header.Set("Content-Type", "multipart/form-data; boundary=none")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		b.Fatal(err)
	}
	res.Body.Close()
	if p.uploaded.Load() == nil {
		b.Fatal("the floor uploaded nothing")
	}
	return p.uploaded.Load().Sub(began)
}
