package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

// TestHalfRequest: a caller whose body stops coming is told so, after one minute
// without a byte of it or at most two.
func TestHalfRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		conn := dialRaw(t, newProxy(t, proxy.Options{}))
		io.WriteString(conn, "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{\"half")
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if code, _ := apiError(t, res); res.StatusCode != http.StatusRequestTimeout || code != "request_body_timeout" {
			t.Errorf("%s %s", res.Status, code)
		}
		if got := time.Since(begun); got > 2*time.Minute+time.Second {
			t.Errorf("after %v", got)
		}
	})
}

// TestSlowRequest: a body that keeps coming may take as long as it likes.
func TestSlowRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body, w := io.Pipe()
		go func() {
			for range 60 {
				time.Sleep(30 * time.Second)
				io.WriteString(w, " ")
			}
			io.WriteString(w, chatCall)
			w.Close()
		}()
		begun := time.Now()
		p := newProxy(t, proxy.Options{Transport: after(time.Hour, 200, "application/json", `{}`)})
		res, err := serve(t, p).Post("http://proxy/v1/embeddings", "application/json", body)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := time.Since(begun), 34*time.Minute; got != want {
			t.Errorf("committed after %v, want %v: the grace begins when the body is there", got, want)
		}
		if all(t, res); time.Since(begun) != 90*time.Minute {
			t.Errorf("answered after %v", time.Since(begun))
		}
	})
}

// TestBrokenRequests: whatever comes in, the next caller is served.
func TestBrokenRequests(t *testing.T) {
	upstream := batchtest.New(batchtest.Options{})
	p := serving(t, upstream.Transport(), upstream.URL)
	for name, raw := range map[string]string{
		"garbage":         "\x16\x03\x01\x02\x00\x01",
		"no JSON":         "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n\xff\x00{",
		"empty":           "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		"bad chunk":       "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"headers without": "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-Long: "+strings.Repeat("x", 1000)+"\r\n", 300) + "\r\n",
		"ended":           "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n{",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", p)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			go func() {
				io.WriteString(conn, raw)
				conn.(*net.TCPConn).CloseWrite()
			}()
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				return // hung up on, which is fine
			}
			defer res.Body.Close()
			if res.StatusCode < 400 || res.StatusCode >= 500 {
				t.Error(res.Status)
			}
		})
	}
	res, err := http.Post("http://"+p+"/v1/embeddings", "application/json", strings.NewReader(`{"model":"m","input":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	if all(t, res); res.StatusCode != 200 {
		t.Error(res.Status)
	}
}

// serving is the address of a proxy on a real Transport on a real socket.
func serving(t *testing.T, base http.RoundTripper, upstream string) string {
	t.Helper()
	tr, err := autobatcher.New(autobatcher.Options{Base: base, BatchWindow: 10 * time.Millisecond, PollInterval: 10 * time.Millisecond, AbandonAfter: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(nil)
	server.Config = proxy.NewServer(newProxy(t, proxy.Options{Upstream: parse(t, upstream), Transport: tr, Stats: tr.Stats}))
	server.Start()
	t.Cleanup(func() {
		tr.Close()
		server.CloseClientConnections()
		server.Close()
	})
	return server.Listener.Addr().String()
}

// TestOneGigabyte: a caller who sends it is refused, and memory does not follow.
func TestOneGigabyte(t *testing.T) {
	upstream := batchtest.New(batchtest.Options{})
	address := serving(t, upstream.Transport(), upstream.URL)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, length := range []int64{1 << 30, -1} {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/v1/chat/completions", io.LimitReader(zeros{}, 1<<30))
		r.ContentLength = length
		r.Header.Set("Expect", "100-continue")
		res, err := (&http.Transport{ExpectContinueTimeout: time.Second}).RoundTrip(r)
		if err != nil {
			continue // the answer may be lost where the rest of the body was not read
		}
		if apiError(t, res); res.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("length %d: %s", length, res.Status)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 20<<20 {
		t.Errorf("%d MB are left", grown>>20)
	}
	if taken := int64(after.TotalAlloc) - int64(before.TotalAlloc); taken > 2<<30 {
		t.Errorf("%d MB were allocated", taken>>20)
	}
}

// TestCallersVanish: a thousand at once, and nothing of them is left.
func TestCallersVanish(t *testing.T) {
	const callers = 1000
	entered := make(chan struct{}, callers)
	var left sync.WaitGroup
	left.Add(callers)
	p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
		defer left.Done()
		if err := read(r); err != nil {
			return nil, err
		}
		entered <- struct{}{}
		<-r.Context().Done()
		return nil, r.Context().Err()
	})})
	server := httptest.NewUnstartedServer(nil)
	server.Config = proxy.NewServer(p)
	server.Start()
	defer server.Close()
	before := runtime.NumGoroutine()
	conns := make([]net.Conn, 0, callers)
	for range callers {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(chatCall), chatCall)
		conns = append(conns, conn)
	}
	for range callers {
		<-entered
	}
	if got := p.Usage().Waiting; got != callers {
		t.Errorf("%d calls are held", got)
	}
	for _, conn := range conns {
		conn.Close()
	}
	left.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for runtime.NumGoroutine() > before+10 || p.Usage().Waiting > 0 {
		if ctx.Err() != nil {
			t.Fatalf("%d goroutines, %d before; %d calls held", runtime.NumGoroutine(), before, p.Usage().Waiting)
		}
		time.Sleep(time.Millisecond) // real goroutines end in real time
	}
}

// TestUpstreamDownAtStart, and answering HTML: every caller is told, and asked
// to try again where nothing was submitted.
func TestUpstreamDownAtStart(t *testing.T) {
	for name, base := range map[string]transport{
		"down": failing(0, &net.OpError{Op: "dial", Err: io.EOF}),
		"HTML": after(0, 502, "text/html", "<html>nginx</html>"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr, err := autobatcher.New(autobatcher.Options{Base: base})
				if err != nil {
					t.Fatal(err)
				}
				defer tr.Close()
				res := post(t, serve(t, newProxy(t, proxy.Options{Transport: tr, Grace: -1})), "/v1/chat/completions", `{"model":"m",`+question+`}`)
				if apiError(t, res); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
					t.Errorf("%s %v", res.Status, res.Header)
				}
			})
		})
	}
}

// TestUpstreamDiesMidBatch: the calls are held until it is back.
func TestUpstreamDiesMidBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, upstream := batching(t, slow, proxy.Options{})
		go func() {
			time.Sleep(5 * time.Minute)
			for range 10 {
				upstream.Control(batchtest.OpAny, batchtest.Reset())
			}
		}()
		res := post(t, client, "/v1/chat/completions", `{"model":"m",`+question+`}`)
		if body := all(t, res); !strings.Contains(body, "Why?") {
			t.Errorf("%s %s", res.Status, body)
		}
		for key, n := range upstream.Paid() {
			if n != 1 {
				t.Errorf("%s was paid %d times", key, n)
			}
		}
	})
}

// TestShutdown: calls that are held end with the Transport, as calls to repeat.
func TestShutdown(t *testing.T) {
	for _, grace := range []time.Duration{-1, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			upstream := batchtest.New(slow)
			tr, err := autobatcher.New(autobatcher.Options{Base: upstream.Transport(), CancelOnClose: true})
			if err != nil {
				t.Fatal(err)
			}
			p := newProxy(t, proxy.Options{Upstream: parse(t, upstream.URL), Transport: tr, Grace: grace})
			client := serve(t, p)
			time.AfterFunc(2*time.Minute, func() {
				p.Drain()
				tr.Close()
			})
			res := post(t, client, "/v1/chat/completions", `{"model":"m","stream":true,`+question+`}`)
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			committed := grace > 0
			if !strings.Contains(string(body), `"code":"shutting_down"`) || committed != (res.StatusCode == 200) || committed != (err != nil) {
				t.Errorf("%s %s %v", res.Status, body, err)
			}
			if !committed && (res.StatusCode != 503 || res.Header.Get("Retry-After") != "1") {
				t.Errorf("%s %v", res.Status, res.Header)
			}
		})
	}
}
