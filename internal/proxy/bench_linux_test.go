package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/measure"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

// serverEnv makes a process of the test binary run a server for a measurement.
// The value is "bare" for a bare net/http handler, "proxy" for the proxy with a
// Transport that behaves like the bare handler, or the URL of a Batch API for the
// proxy with an autobatcher.Transport.
const serverEnv = "AUTOBATCHER_BENCH_SERVER"

// callsEnv lists how many calls BenchmarkHeld holds: "http1:5000,http1:15000,h2c:100000".
// Over HTTP/1.1 each call needs a file descriptor in both processes: see ulimit -n.
const callsEnv = "AUTOBATCHER_BENCH_CALLS"

func TestMain(m *testing.M) {
	if kind := os.Getenv(serverEnv); kind != "" {
		if err := runBenchServer(kind); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runBenchServer serves until stdin ends. The server prints the address first, and
// the number of held calls for each line on stdin. The line "release" also makes the
// bare handler respond to all calls.
func runBenchServer(kind string) error {
	var held atomic.Int64
	release := make(chan struct{})
	handler, err := newBareHandler(&held, release), error(nil)
	count := held.Load
	switch kind {
	case "bare":
	case "proxy":
		handler, err = newProxyOverBare(handler)
	default:
		handler, count, err = newFullHandler(kind)
	}
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	go func() { _ = proxy.NewServer(handler).Serve(listener) }()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if lines.Text() == "release" {
			close(release)
		}
		fmt.Println(count())
	}
	return nil
}

// newBareHandler returns the simplest handler that holds a call: the handler reads
// the body, waits, and sends the body back.
func newBareHandler(held *atomic.Int64, release <-chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.Copy(io.Discard, r.Body) // net/http detects a disconnect only after the end of the body
		held.Add(1)
		select {
		case <-release:
		case <-r.Context().Done():
		}
		held.Add(-1)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	})
}

// newProxyOverBare returns a proxy with a Transport that behaves like the bare
// handler.
func newProxyOverBare(bare http.Handler) (http.Handler, error) {
	return proxy.New(proxy.Options{
		Upstream: &url.URL{Scheme: "http", Host: "upstream.test"}, APIKey: "k",
		Transport: transport(func(r *http.Request) (*http.Response, error) {
			w := bareWriter{}
			bare.ServeHTTP(&w, r)
			return responseTo(r, http.StatusOK, "application/json", string(w.body)), nil
		}),
	})
}

type bareWriter struct{ body []byte }

func (*bareWriter) Header() http.Header { return http.Header{} }
func (*bareWriter) WriteHeader(int)     {}
func (w *bareWriter) Write(b []byte) (int, error) {
	w.body = b
	return len(b), nil
}

func newFullHandler(upstream string) (http.Handler, func() int64, error) {
	tr, err := autobatcher.New(autobatcher.Options{BatchWindow: time.Minute})
	if err != nil {
		return nil, nil, err
	}
	base, err := http.NewRequest(http.MethodGet, upstream, http.NoBody)
	if err != nil {
		return nil, nil, err
	}
	p, err := proxy.New(proxy.Options{Upstream: base.URL, APIKey: "k", Transport: tr, Stats: tr.Stats})
	return p, func() int64 { return int64(tr.Stats().Running) }, err
}

// A benchProcess is a server in a separate process.
type benchProcess struct {
	address string
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
}

func startBenchProcess(b *testing.B, kind string) *benchProcess {
	b.Helper()
	m := &benchProcess{cmd: exec.Command(os.Args[0])}
	m.cmd.Env = append(os.Environ(), serverEnv+"="+kind)
	m.cmd.Stderr = os.Stderr
	var err error
	if m.in, err = m.cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	m.out = bufio.NewReader(out)
	if err := m.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	line, err := m.out.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	m.address = strings.TrimSpace(line)
	return m
}

// held sends a command to the server and returns the number of held calls.
func (m *benchProcess) held(b *testing.B, command string) (calls int) {
	b.Helper()
	fmt.Fprintln(m.in, command)
	if _, err := fmt.Fscanln(m.out, &calls); err != nil {
		b.Fatal(err)
	}
	return calls
}

func (m *benchProcess) usage(b *testing.B) measure.Usage {
	b.Helper()
	u, err := measure.Process(m.cmd.Process.Pid)
	if err != nil {
		b.Fatal(err)
	}
	return u
}

func (m *benchProcess) stop() {
	m.in.Close()
	_ = m.cmd.Wait()
}

// BenchmarkHeld holds calls of 2 KB and then answers the calls, with three servers
// in separate processes: a bare net/http handler, the proxy alone, and the proxy
// with an autobatcher.Transport, which uses a Batch API in this process. The
// clients run in this process. BenchmarkHeld reports CPU and memory per call, and
// fails if a call gets no response.
func BenchmarkHeld(b *testing.B) {
	cases := os.Getenv(callsEnv)
	if cases == "" {
		cases = "http1:1000,h2c:2000"
	}
	for name := range strings.SplitSeq(cases, ",") {
		proto, number, _ := strings.Cut(name, ":")
		calls, err := strconv.Atoi(number)
		if err != nil {
			b.Fatalf("%s=%s: %v", callsEnv, cases, err)
		}
		hold := holdHTTP1
		if proto == "h2c" {
			hold = holdH2C
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				bareCPU, bareMemory := measureServer(b, "bare", calls, hold)
				proxyCPU, proxyMemory := measureServer(b, "proxy", calls, hold)
				cpu, memory := measureServer(b, "full", calls, hold)
				b.ReportMetric(bareCPU, "bare-µs/call")
				b.ReportMetric(proxyCPU, "proxy-µs/call")
				b.ReportMetric(proxyMemory, "proxy-KB/call")
				b.ReportMetric(cpu, "µs/call")
				b.ReportMetric(bareMemory, "bare-KB/call")
				b.ReportMetric(memory, "KB/call")
			}
		})
	}
}

// measureServer holds calls at a server, and returns the cost of one call to the
// server: CPU until the response in µs, and memory while the call is held in KB.
func measureServer(b *testing.B, kind string, calls int, hold holdFunc) (cpu, memory float64) {
	upstream := batchtest.NewServer(batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		return batchtest.Outcome{Body: l.Body, Never: true}
	}})
	defer upstream.Close()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if kind == "full" {
		kind = upstream.URL
	}
	m := startBenchProcess(b, kind)
	defer m.stop()
	idle := m.usage(b)
	wait := hold(b, m.address, calls)
	for deadline := time.Now().Add(2 * time.Minute); m.held(b, "count") < calls; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("fewer than %d calls are held", calls)
		}
	}
	held := m.usage(b)
	m.held(b, "release")
	for _, batch := range upstream.Batches() {
		if err := upstream.Finish(batch.ID); err != nil {
			b.Error(err)
		}
	}
	wait()
	end := m.usage(b)
	n := float64(calls)
	return float64((end.CPU - idle.CPU).Microseconds()) / n, float64(held.RSS-idle.RSS) / 1024 / n
}

// A holdFunc sends calls and returns a function that waits for the responses.
type holdFunc func(b *testing.B, address string, calls int) (wait func())

// benchBody returns the body of call i, a chat call of 2 KB.
func benchBody(i int) []byte {
	return fmt.Appendf(nil, `{"model":"m","messages":[{"role":"user","content":"call %08d %s"}]}`, i, strings.Repeat("lorem ", 320))
}

// holdHTTP1 sends each call on a separate connection.
func holdHTTP1(b *testing.B, address string, calls int) func() {
	bodies := make([][]byte, calls)
	for i := range bodies {
		bodies[i] = benchBody(i)
	}
	wait, err := measure.Hold(address, bodies)
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		answers, err := wait()
		if err != nil {
			b.Fatal(err)
		}
		for i, answer := range answers {
			if !bytes.Equal(answer, bodies[i]) {
				b.Errorf("call %d: %d bytes", i, len(answer))
			}
		}
	}
}

// holdH2C sends ten thousand calls on each connection.
func holdH2C(b *testing.B, address string, calls int) func() {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 256) // limits the calls that are being sent
	var transports []*http.Transport
	for i := range calls {
		if i%10_000 == 0 {
			var protocols http.Protocols
			protocols.SetUnencryptedHTTP2(true)
			transports = append(transports, &http.Transport{Protocols: &protocols, DisableCompression: true})
		}
		base := transports[len(transports)-1]
		slots <- struct{}{}
		wg.Go(func() {
			body := &sentBody{Reader: bytes.NewReader(benchBody(i)), sent: func() { <-slots }}
			r, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+address+"/v1/chat/completions", body)
			r.ContentLength, r.Header = body.Size(), measure.Header()
			res, err := base.RoundTrip(r)
			checkAnswer(b, i, res, err)
		})
	}
	return func() {
		wg.Wait()
		for _, base := range transports {
			base.CloseIdleConnections()
		}
	}
}

// A sentBody calls sent when the whole body was read.
type sentBody struct {
	*bytes.Reader
	sent func()
}

// Read implements io.Reader.
func (s *sentBody) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if n > 0 && s.Len() == 0 {
		s.sent()
	}
	return n, err
}

// Close implements io.Closer. Nothing needs to be released.
func (s *sentBody) Close() error { return nil }

func checkAnswer(b *testing.B, i int, res *http.Response, err error) {
	if err != nil {
		b.Errorf("call %d: %v", i, err)
		return
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK || !bytes.Equal(body, benchBody(i)) {
		b.Errorf("call %d: %s, %d bytes, %v", i, res.Status, len(body), err)
	}
}
