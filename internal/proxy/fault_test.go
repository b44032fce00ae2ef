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

// TestStalledRequestBody checks that a stalled request body gets 408 within two
// minutes: the stall is detected after one to two intervals of a minute.
func TestStalledRequestBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		conn := dial(t, newProxy(t, proxy.Options{}))
		io.WriteString(conn, "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{\"half")
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if code, _ := apiError(t, res); res.StatusCode != http.StatusRequestTimeout || code != "request_body_timeout" {
			t.Errorf("%s %s", res.Status, code)
		}
		if got := time.Since(start); got > 2*time.Minute+time.Second {
			t.Errorf("after %v", got)
		}
	})
}

// TestSlowRequestBody checks that a body without long pauses has no time limit.
func TestSlowRequestBody(t *testing.T) {
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
		start := time.Now()
		p := newProxy(t, proxy.Options{Transport: respondAfter(time.Hour, 200, "application/json", `{}`)})
		res, err := serve(t, p).Post("http://proxy/v1/embeddings", "application/json", body)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := time.Since(start), 34*time.Minute; got != want {
			t.Errorf("committed after %v, want %v: the grace begins at the end of the body", got, want)
		}
		if readAll(t, res); time.Since(start) != 90*time.Minute {
			t.Errorf("answered after %v", time.Since(start))
		}
	})
}

// TestMalformedRequests checks that a malformed request does not affect the next
// call.
func TestMalformedRequests(t *testing.T) {
	upstream := batchtest.New(batchtest.Options{})
	p := startOnSocket(t, upstream.Transport(), upstream.URL)
	for name, raw := range map[string]string{
		"garbage":      "\x16\x03\x01\x02\x00\x01",
		"no JSON":      "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n\xff\x00{",
		"empty":        "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		"bad chunk":    "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"large header": "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-Long: "+strings.Repeat("x", 1000)+"\r\n", 300) + "\r\n",
		"short body":   "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n{",
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
				return // a closed connection is accepted, too
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
	if readAll(t, res); res.StatusCode != 200 {
		t.Error(res.Status)
	}
}

// startOnSocket starts a proxy with an autobatcher.Transport on a socket, and
// returns the address.
func startOnSocket(t *testing.T, base http.RoundTripper, upstream string) string {
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

// TestOneGigabyteBody checks that a body of 1 GiB is refused, and that the proxy
// does not allocate memory in proportion to the body.
func TestOneGigabyteBody(t *testing.T) {
	upstream := batchtest.New(batchtest.Options{})
	address := startOnSocket(t, upstream.Transport(), upstream.URL)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, length := range []int64{1 << 30, -1} {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/v1/chat/completions", io.LimitReader(zeroReader{}, 1<<30))
		r.ContentLength = length
		r.Header.Set("Expect", "100-continue")
		res, err := (&http.Transport{ExpectContinueTimeout: time.Second}).RoundTrip(r)
		if err != nil {
			continue // the response can be lost because the proxy does not read the rest of the body
		}
		if apiError(t, res); res.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("length %d: %s", length, res.Status)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 20<<20 {
		t.Errorf("%d MB are still in use", grown>>20)
	}
	if taken := int64(after.TotalAlloc) - int64(before.TotalAlloc); taken > 2<<30 {
		t.Errorf("%d MB were allocated", taken>>20)
	}
}

// TestThousandClientsDisconnect checks that 1,000 simultaneous disconnects leave
// neither calls nor goroutines.
func TestThousandClientsDisconnect(t *testing.T) {
	const callers = 1000
	entered := make(chan struct{}, callers)
	var ended sync.WaitGroup
	ended.Add(callers)
	p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
		defer ended.Done()
		if err := wait(r); err != nil {
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
	ended.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for runtime.NumGoroutine() > before+10 || p.Usage().Waiting > 0 {
		if ctx.Err() != nil {
			t.Fatalf("%d goroutines, %d before; %d calls held", runtime.NumGoroutine(), before, p.Usage().Waiting)
		}
		time.Sleep(time.Millisecond) // polling: outside of a synctest bubble, no event marks the end of a goroutine
	}
}

// TestUpstreamDownAtStart checks that an upstream which is unreachable or returns
// HTML leads to 503 with Retry-After, because nothing was submitted.
func TestUpstreamDownAtStart(t *testing.T) {
	for name, base := range map[string]transport{
		"down": failAfter(0, &net.OpError{Op: "dial", Err: io.EOF}),
		"HTML": respondAfter(0, 502, "text/html", "<html>nginx</html>"),
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

// TestUpstreamFailsMidBatch checks that a call is held until the upstream works
// again.
func TestUpstreamFailsMidBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, upstream := newBatchingProxy(t, slowServer, proxy.Options{})
		go func() {
			time.Sleep(5 * time.Minute)
			for range 10 {
				upstream.Control(batchtest.OpAny, batchtest.Reset())
			}
		}()
		res := post(t, client, "/v1/chat/completions", `{"model":"m",`+question+`}`)
		if body := readAll(t, res); !strings.Contains(body, "Why?") {
			t.Errorf("%s %s", res.Status, body)
		}
		for key, n := range upstream.Paid() {
			if n != 1 {
				t.Errorf("%s was paid %d times", key, n)
			}
		}
	})
}

// TestShutdown checks that closing the Transport ends held calls with an error
// that allows a retry.
func TestShutdown(t *testing.T) {
	for _, grace := range []time.Duration{-1, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			upstream := batchtest.New(slowServer)
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
