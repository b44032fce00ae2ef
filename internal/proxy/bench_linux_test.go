package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
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
	"syscall"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
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

// usage is the resource usage of a server process so far.
type usage struct {
	Held int64
	CPU  time.Duration
	RSS  int64 // bytes
}

// runBenchServer serves until stdin ends. The server prints the address first, and
// the usage for each line on stdin. The line "release" also makes the bare handler
// respond to all calls.
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
		line, err := json.Marshal(currentUsage(count()))
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", line)
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

func currentUsage(held int64) usage {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	u := usage{Held: held, CPU: time.Duration(r.Utime.Nano() + r.Stime.Nano())}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); fields[0] == "VmRSS:" {
			kb, _ := strconv.ParseInt(fields[1], 10, 64)
			u.RSS = kb << 10
		}
	}
	return u
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

// ask sends a command to the server and returns the usage.
func (m *benchProcess) ask(b *testing.B, command string) usage {
	b.Helper()
	fmt.Fprintln(m.in, command)
	line, err := m.out.ReadBytes('\n')
	var u usage
	if err == nil {
		err = json.Unmarshal(line, &u)
	}
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
	idle := m.ask(b, "usage")
	wait := hold(b, m.address, calls)
	held := idle
	for deadline := time.Now().Add(2 * time.Minute); held.Held < int64(calls); held = m.ask(b, "usage") {
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d calls are held", held.Held, calls)
		}
		time.Sleep(100 * time.Millisecond)
	}
	m.ask(b, "release")
	for _, batch := range upstream.Batches() {
		if err := upstream.Finish(batch.ID); err != nil {
			b.Error(err)
		}
	}
	wait()
	end := m.ask(b, "usage")
	n := float64(calls)
	return float64((end.CPU - idle.CPU).Microseconds()) / n, float64(held.RSS-idle.RSS) / 1024 / n
}

// A holdFunc sends calls and returns a function that waits for the responses.
type holdFunc func(b *testing.B, address string, calls int) (wait func())

// benchBody returns the body of call i, a chat call of 2 KB.
func benchBody(i int) []byte {
	return fmt.Appendf(nil, `{"model":"m","messages":[{"role":"user","content":"call %08d %s"}]}`, i, strings.Repeat("lorem ", 320))
}

const benchHead = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dummy\r\nContent-Type: application/json\r\n" +
	"Accept: application/json\r\nUser-Agent: OpenAI/Go 3.96.0\r\nX-Stainless-Lang: go\r\nX-Stainless-Os: Linux\r\nX-Stainless-Arch: x64\r\n" +
	"X-Stainless-Runtime: go\r\nX-Stainless-Runtime-Version: go1.26\r\nX-Stainless-Package-Version: 3.96.0\r\nX-Stainless-Retry-Count: 0\r\n"

// holdHTTP1 sends each call on a separate connection.
func holdHTTP1(b *testing.B, address string, calls int) func() {
	conns := make([]net.Conn, calls)
	for i := range conns {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		body := benchBody(i)
		if _, err := fmt.Fprintf(conn, "%sContent-Length: %d\r\n\r\n%s", benchHead, len(body), body); err != nil {
			b.Fatal(err)
		}
		conns[i] = conn
	}
	return func() {
		for i, conn := range conns {
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			checkAnswer(b, i, res, err)
			conn.Close()
		}
	}
}

// holdH2C sends ten thousand calls on each connection.
func holdH2C(b *testing.B, address string, calls int) func() {
	header, err := http.ReadRequest(bufio.NewReader(strings.NewReader(benchHead + "\r\n")))
	if err != nil {
		b.Fatal(err)
	}
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
			r.ContentLength, r.Header = body.Size(), header.Header
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
