package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/proxy"
)

// TestLimitConnections checks that connections beyond the limit get 503 with
// Retry-After, that /health answers nevertheless, and that places become free.
func TestLimitConnections(t *testing.T) {
	p := newProxy(t, proxy.Options{})
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := proxy.NewServer(p)
	go server.Serve(proxy.LimitConnections(inner, 2, p.ConnectionRefused)) //nolint:errcheck // ends with ErrServerClosed
	defer server.Close()
	address := inner.Addr().String()
	open := func() net.Conn {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	ask := func(conn net.Conn, path string) *http.Response {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		return readResponse(t, conn)
	}
	first, second := open(), open()
	for _, conn := range []net.Conn{first, second} {
		if res := ask(conn, "/v1/models"); res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
	}
	var refused sync.WaitGroup
	for range 30 { // fewer than are refused at the same time
		refused.Go(func() {
			res, err := (&http.Client{Transport: &http.Transport{}}).Post("http://"+address+"/v1/embeddings", "application/json", strings.NewReader(strings.Repeat("x", 100<<10)))
			if err != nil {
				t.Error(err)
				return
			}
			if code, _ := apiError(t, res); res.StatusCode != 503 || code != "too_many_connections" || res.Header.Get("Retry-After") == "" {
				t.Errorf("%s %s", res.Status, code)
			}
		})
	}
	refused.Wait()
	if res := ask(open(), "/health"); res.StatusCode != 200 {
		t.Errorf("/health: %s", res.Status)
	}
	silent := open() // sends nothing
	if got, err := io.ReadAll(silent); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 503 ") {
		t.Errorf("%q %v", got, err)
	}
	second.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // polling: the server notices the end of a connection
		if ask(open(), "/v1/models").StatusCode == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a closed connection is not free")
		}
	}
	if got := metrics(t, serve(t, p)); strings.Contains(got, `autobatcher_refused_total{reason="connections"} 0`) {
		t.Error("refused connections are not counted")
	}
}

// TestHealthBehindSlowConnections checks that connections beyond the limit do not delay
// /health: clients that send nothing, or a part of a request, or that keep the connection
// open after the answer.
func TestHealthBehindSlowConnections(t *testing.T) {
	for name, sent := range map[string]string{"silent": "", "part of a request": "GET / HT", "refused": "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			healthBehind(t, sent)
		})
	}
}

func healthBehind(t *testing.T, sent string) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := proxy.NewServer(newProxy(t, proxy.Options{}))
	go server.Serve(proxy.LimitConnections(inner, 1, func() {})) //nolint:errcheck // ends with ErrServerClosed
	defer server.Close()
	for range 300 { // a place for each of them for 2 s would be 18 s, for 300 ms 3 s
		conn, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, sent) // fails if the connection was closed at once
	}
	start := time.Now()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + inner.Addr().String() + "/health")
	if err != nil {
		t.Fatal(err)
	}
	if body := readAll(t, res); res.StatusCode != 200 || body != "ok" {
		t.Errorf("%s %s", res.Status, body)
	}
	if got := time.Since(start); got > 8*time.Second {
		t.Errorf("/health took %v", got)
	}
}
