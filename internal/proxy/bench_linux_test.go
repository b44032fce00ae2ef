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

// serverEnv makes a process of the test binary a server to be measured: "bare",
// "proxy" for the proxy without a Transport behind it, or the URL of the Batch API that the proxy is to use.
const serverEnv = "AUTOBATCHER_BENCH_SERVER"

// callsEnv lists how many calls BenchmarkHeld holds: "http1:5000,http1:15000,h2c:100000".
// Over HTTP/1.1 each call needs a file descriptor here and there: ulimit -n.
const callsEnv = "AUTOBATCHER_BENCH_CALLS"

func TestMain(m *testing.M) {
	if kind := os.Getenv(serverEnv); kind != "" {
		if err := benchServer(kind); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// usage is what a server has taken so far.
type usage struct {
	Held int64
	CPU  time.Duration
	RSS  int64 // bytes
}

// benchServer serves until stdin ends. It first prints its address, and for
// each line on stdin its usage; the line "release" also lets the bare server's
// calls go.
func benchServer(kind string) error {
	var held atomic.Int64
	release := make(chan struct{})
	handler, err := bareHandler(&held, release), error(nil)
	count := held.Load
	switch kind {
	case "bare":
	case "proxy":
		handler, err = proxyAlone(handler)
	default:
		handler, count, err = ourHandler(kind)
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
		line, err := json.Marshal(measure(count()))
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", line)
	}
	return nil
}

// bareHandler is the least that can hold a call: it reads the body, waits, and
// echoes it.
func bareHandler(held *atomic.Int64, release <-chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.Copy(io.Discard, r.Body) // so that net/http looks out for the caller's end
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

// proxyAlone is the proxy on a Transport that does what the bare handler does.
func proxyAlone(bare http.Handler) (http.Handler, error) {
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

func ourHandler(upstream string) (http.Handler, func() int64, error) {
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

func measure(held int64) usage {
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

// A measured server runs in a process of its own.
type measured struct {
	address string
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
}

func startMeasured(b *testing.B, kind string) *measured {
	b.Helper()
	m := &measured{cmd: exec.Command(os.Args[0])}
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

// ask sends a command and returns the server's usage.
func (m *measured) ask(b *testing.B, command string) usage {
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

func (m *measured) stop() {
	m.in.Close()
	_ = m.cmd.Wait()
}

// BenchmarkHeld holds calls of 2 KB and then answers them: by the proxy, through
// batches on a Batch API in this process, and by a bare net/http server that
// echoes them. Both servers run in processes of their own; the clients are here.
// It prints CPU and memory for each call, and fails if one is lost or reset.
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
				bareCPU, bareMemory := benchOne(b, "bare", calls, hold)
				proxyCPU, proxyMemory := benchOne(b, "proxy", calls, hold)
				cpu, memory := benchOne(b, "ours", calls, hold)
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

// benchOne holds the calls on one server, and returns what a call costs it: CPU
// from the first byte to the last, in µs, and memory while it is held, in KB.
func benchOne(b *testing.B, kind string, calls int, hold holder) (cpu, memory float64) {
	upstream := batchtest.NewServer(batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		return batchtest.Outcome{Body: l.Body, Never: true}
	}})
	defer upstream.Close()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if kind == "ours" {
		kind = upstream.URL
	}
	m := startMeasured(b, kind)
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

// A holder makes calls and returns a function that waits for their answers.
type holder func(b *testing.B, address string, calls int) (wait func())

// benchBody is the body of call i: a chat call of 2 KB.
func benchBody(i int) []byte {
	return fmt.Appendf(nil, `{"model":"m","messages":[{"role":"user","content":"call %08d %s"}]}`, i, strings.Repeat("lorem ", 320))
}

const benchHead = "POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer dummy\r\nContent-Type: application/json\r\n" +
	"Accept: application/json\r\nUser-Agent: OpenAI/Go 3.96.0\r\nX-Stainless-Lang: go\r\nX-Stainless-Os: Linux\r\nX-Stainless-Arch: x64\r\n" +
	"X-Stainless-Runtime: go\r\nX-Stainless-Runtime-Version: go1.26\r\nX-Stainless-Package-Version: 3.96.0\r\nX-Stainless-Retry-Count: 0\r\n"

// holdHTTP1 makes each call on a connection of its own.
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

// holdH2C makes the calls on a connection for every ten thousand.
func holdH2C(b *testing.B, address string, calls int) func() {
	header, err := http.ReadRequest(bufio.NewReader(strings.NewReader(benchHead + "\r\n")))
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 256) // how many are on their way at once
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

// A sentBody tells when all of it was read.
type sentBody struct {
	*bytes.Reader
	sent func()
}

// Read reads on.
func (s *sentBody) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if n > 0 && s.Len() == 0 {
		s.sent()
	}
	return n, err
}

// Close does nothing: there is nothing to free.
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
