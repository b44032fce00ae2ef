//go:build unix

package autobatcher_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/provider"
)

// bare is an upstream on a loopback socket that does nothing but what a batch
// needs: it swallows the upload and answers with an output file that was ready
// before. It costs the Transport and the floor the same.
type bare struct {
	*httptest.Server
	answer   []byte // one chat completion
	ids      []byte // the custom ids of the uploaded lines, idLength bytes each
	uploaded atomic.Int64
	polls    atomic.Int64
	gate     chan struct{} // closed: the batch is completed
}

// idLength is the length of the custom ids of the Transport and of the floor.
const idLength = 36

func newBare(b *testing.B, answerSize int) *bare {
	head := `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"`
	tail := `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`
	up := &bare{gate: make(chan struct{}), ids: make([]byte, 0, benchCalls*idLength)} // no call pays for the memory of the server
	up.answer = []byte(head + strings.Repeat("x", max(answerSize-len(head)-len(tail), 1)) + tail)
	up.Server = httptest.NewServer(up)
	b.Cleanup(up.Close)
	return up
}

func (b *bare) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch {
	case req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/files"):
		b.swallow(req.Body)
		writeJSON(w, `{"id":"file-1","object":"file"}`)
		return
	case strings.HasSuffix(req.URL.Path, "/content"):
		b.write(w)
		return
	}
	status, output, lines, completed := "in_progress", "null", len(b.ids)/idLength, 0
	select {
	case <-b.gate: // only now, since the Transport reads results as soon as there is a file
		status, output, completed = "completed", `"file-2"`, lines
	default:
	}
	b.polls.Add(1)
	writeJSON(w, fmt.Sprintf(`{"id":"batch_1","status":%q,"input_file_id":"file-1","output_file_id":%s,"request_counts":{"total":%d,"completed":%d,"failed":0}}`,
		status, output, lines, completed))
}

func writeJSON(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, text)
}

// swallow reads the upload and remembers only the custom ids.
func (b *bare) swallow(r io.ReadCloser) {
	defer r.Close()
	mark := []byte(`{"custom_id":"`)
	buf := make([]byte, 256<<10)
	kept := 0 // bytes of the last read that may hold the beginning of a mark
	for {
		n, err := r.Read(buf[kept:])
		b.uploaded.Add(int64(n))
		text := buf[:kept+n]
		for {
			i := bytes.Index(text, mark)
			if i < 0 || len(text) < i+len(mark)+64 {
				break
			}
			id := text[i+len(mark):]
			end := bytes.IndexByte(id, '"')
			b.ids = append(b.ids, id[:end]...)
			text = id[end:]
		}
		kept = copy(buf, text[max(len(text)-100, 0):])
		if err != nil {
			return
		}
	}
}

func (b *bare) write(w io.Writer) {
	var buf []byte
	for id := range slices.Chunk(b.ids, idLength) {
		buf = append(buf, `{"id":"r","custom_id":"`...)
		buf = append(buf, id...)
		buf = append(buf, `","response":{"status_code":200,"request_id":"req_1","body":`...)
		buf = append(buf, b.answer...)
		buf = append(buf, `},"error":null}`+"\n"...)
		if len(buf) > 256<<10 {
			w.Write(buf)
			buf = buf[:0]
		}
	}
	w.Write(buf)
}

// to sends requests to the server, whatever host they name: the requests are
// made before there is a server.
func to(up *bare) http.RoundTripper {
	return through(func(req *http.Request) (*http.Response, error) {
		req = req.Clone(req.Context())
		req.URL.Host = strings.TrimPrefix(up.URL, "http://")
		return http.DefaultTransport.RoundTrip(req)
	})
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

const (
	benchCalls = 50_000
	benchBody  = 1 << 10
)

func benchRequest(i int) *http.Request {
	text := `{"model":"m","messages":[{"role":"user","content":"` + strconv.Itoa(i) + strings.Repeat("x", benchBody-60) + `"}]}`
	req, _ := http.NewRequest(http.MethodPost, "http://bare.invalid/v1/chat/completions", strings.NewReader(text))
	req.Header.Set("Authorization", "Bearer k")
	req.Header.Set("Content-Type", "application/json")
	return req
}

// BenchmarkCalls runs 50,000 calls of 1 KB in and 1 KB out through the
// Transport, and beside it, in the same run, the floor: a program that only
// writes the JSONL, uploads it, downloads the results and splits them.
//
// Reported: CPU microseconds a call for both and their ratio, and the heap
// bytes that a held call costs beyond its body and its goroutine.
func BenchmarkCalls(b *testing.B) {
	for b.Loop() {
		requests := make([]*http.Request, benchCalls)
		for i := range requests {
			requests[i] = benchRequest(i)
		}
		floor := floorCPU(b, requests)
		callers := callersCPU(requests)
		ours, held := transportCPU(b, requests)
		b.ReportMetric(float64(floor.Nanoseconds())/1e3/benchCalls, "floor-µs/call")
		b.ReportMetric(float64(ours.Nanoseconds())/1e3/benchCalls, "cpu-µs/call")
		b.ReportMetric(float64(callers.Nanoseconds())/1e3/benchCalls, "callers-µs/call")
		b.ReportMetric(float64(ours)/float64(floor), "x-floor")
		b.ReportMetric(float64(ours)/float64(floor+callers), "x-floor+callers")
		b.ReportMetric(float64(held)/benchCalls, "held-B/call")
		b.ReportMetric(0, "ns/op")
	}
}

// floorCPU is the same work by hand, without callers: read each body, append
// it to a line, upload, download, split, look at the id.
func floorCPU(b *testing.B, requests []*http.Request) time.Duration {
	up := newBare(b, benchBody)
	close(up.gate)
	runtime.GC()
	start := cpuTime()
	file := make([]byte, 0, len(requests)*(benchBody+200))
	for i, req := range requests {
		file = append(file, `{"custom_id":"request-of-floor-`...)
		file = strconv.AppendInt(file, int64(1e18+i), 10)
		file = append(file, `","method":"POST","url":"/v1/chat/completions","body":`...)
		n, _ := io.ReadFull(req.Body, file[len(file):len(file)+int(req.ContentLength)])
		file = append(file[:len(file)+n], '}', '\n')
		req.Body, _ = req.GetBody()
	}
	if _, err := http.Post(up.URL+"/v1/files", "application/jsonl", bytes.NewReader(file)); err != nil {
		b.Fatal(err)
	}
	res, err := http.Get(up.URL + "/v1/files/file-2/content")
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	results := make(map[string][]byte, len(requests))
	lines := bufio.NewReaderSize(res.Body, 256<<10)
	for text, err := lines.ReadSlice('\n'); err == nil; text, err = lines.ReadSlice('\n') {
		id := text[len(`{"id":"r","custom_id":"`):]
		results[string(id[:bytes.IndexByte(id, '"')])] = bytes.Clone(text)
	}
	if len(results) != len(requests) {
		b.Fatalf("the floor got %d of %d results", len(results), len(requests))
	}
	return cpuTime() - start
}

// callersCPU is what 50,000 callers cost by themselves, in any RoundTripper: each
// waits in a RoundTrip that does nothing but read the body and wait.
func callersCPU(requests []*http.Request) time.Duration {
	answers := make(chan struct{})
	var waiting atomic.Int64
	hold := through(func(req *http.Request) (*http.Response, error) {
		body, _ := io.ReadAll(req.Body)
		waiting.Add(1)
		<-answers
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body))}, nil
	})
	crowd := assemble(requests, hold)
	began := cpuTime()
	close(crowd.start)
	for waiting.Load() < benchCalls {
		time.Sleep(time.Millisecond)
	}
	close(answers)
	crowd.answered.Wait()
	cpu := cpuTime() - began
	crowd.disperse(requests)
	return cpu
}

func transportCPU(b *testing.B, requests []*http.Request) (cpu time.Duration, held int64) {
	up := newBare(b, benchBody)
	profile := provider.Generic()
	profile.MaxLines = benchCalls
	tr, err := autobatcher.New(autobatcher.Options{
		Base: to(up), BatchSize: benchCalls, BatchWindow: time.Minute, PollInterval: 10 * time.Millisecond, Provider: &profile,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer tr.Close()
	crowd := assemble(requests, tr)
	before := heapInUse()
	began := cpuTime()
	close(crowd.start)
	for up.polls.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	cpu = cpuTime() - began
	held = heapInUse() - before - benchCalls*benchBody
	began = cpuTime()
	close(up.gate)
	crowd.answered.Wait()
	cpu += cpuTime() - began
	crowd.disperse(requests)
	if crowd.wrong.Load() > 0 {
		b.Fatalf("%d calls went wrong", crowd.wrong.Load())
	}
	return cpu, held
}

// A crowd is callers that stand ready before the clock starts and go home
// after it stopped: they are the program's own, whatever answers them.
type crowd struct {
	start, end     chan struct{}
	answered, gone sync.WaitGroup
	wrong          atomic.Int64
}

func assemble(requests []*http.Request, via http.RoundTripper) *crowd {
	c := &crowd{start: make(chan struct{}), end: make(chan struct{})}
	var ready sync.WaitGroup
	for _, req := range requests {
		ready.Add(1)
		c.answered.Add(1)
		c.gone.Go(func() {
			deep(func() {
				ready.Done()
				<-c.start
				res, err := via.RoundTrip(req)
				if err != nil || res.StatusCode != 200 {
					c.wrong.Add(1)
				}
				c.answered.Done()
				<-c.end
				runtime.KeepAlive(res)
			})
		})
	}
	ready.Wait()
	runtime.GC()
	return c
}

// disperse lets the callers go, and makes their requests ready to be sent again.
func (c *crowd) disperse(requests []*http.Request) {
	close(c.end)
	c.gone.Wait()
	for _, req := range requests {
		req.Body, _ = req.GetBody()
	}
}

// BenchmarkUpload uploads 200 MB and reports all that was allocated meanwhile,
// freed or not: an upper bound of how much memory the upload takes beyond the
// bodies.
func BenchmarkUpload(b *testing.B) {
	const calls, body = 2000, 100_000
	text := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", body) + `"}]}`
	for b.Loop() {
		up := newBare(b, 100)
		profile := provider.Generic()
		profile.MaxBytes = 210 << 20
		tr, err := autobatcher.New(autobatcher.Options{Base: to(up), BatchSize: calls + 1, BatchWindow: time.Hour, PollInterval: 10 * time.Millisecond, Provider: &profile})
		if err != nil {
			b.Fatal(err)
		}
		var wg sync.WaitGroup
		for range calls {
			wg.Go(func() {
				req, _ := http.NewRequest(http.MethodPost, "http://bare.invalid/v1/chat/completions", strings.NewReader(text))
				if res, err := tr.RoundTrip(req); err != nil || res.StatusCode != 200 {
					b.Errorf("%v, %v", res, err)
				}
			})
		}
		for tr.Stats().Queued < calls {
			time.Sleep(time.Millisecond)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := tr.Flush(context.Background()); err != nil {
			b.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		close(up.gate)
		wg.Wait()
		tr.Close()
		b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/(1<<20), "alloc-MB")
		b.ReportMetric(float64(up.uploaded.Load())/(1<<20), "uploaded-MB")
	}
}

// deep calls f from as deep a stack as an SDK calls a RoundTripper.
//
//go:noinline
func deep(f func()) byte {
	var frames [5 << 10]byte
	for i := range frames {
		frames[i] = byte(i)
	}
	f()
	return frames[len(frames)/2]
}
