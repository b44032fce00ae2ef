package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

// TestPassThrough checks that requests which are not held reach the upstream, and
// that the client gets the upstream's status.
func TestPassThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, _ := newBatchingProxy(t, batchtest.Options{}, proxy.Options{})
		for _, test := range []struct {
			method, path string
			status       int
		}{
			{"GET", "/v1/models", 200},
			{"GET", "/models", 200},
			{"GET", "/v1/batches?limit=2", 200},
			{"GET", "/v1/files", 200},
			{"GET", "/v1/files/none", 404},
			{"GET", "/v1/chat/completions", 404},
			{"POST", "/v1/chat/completions/x", 404},
			{"DELETE", "/v1/embeddings", 404},
		} {
			r, _ := http.NewRequest(test.method, "http://proxy"+test.path, http.NoBody)
			res, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if body := readAll(t, res); res.StatusCode != test.status || res.Header.Get("X-Request-Id") == "" {
				t.Errorf("%s %s: %s %s", test.method, test.path, res.Status, body)
			}
		}
	})
}

// TestRealtime checks that a call in realtime mode uses no batch.
func TestRealtime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, p, upstream := newBatchingProxy(t, batchtest.Options{Turnaround: time.Hour}, proxy.Options{})
		start := time.Now()
		res := post(t, client, "/v1/chat/completions", `{"model":"m",`+question+`}`, "Autobatcher-Mode", "realtime", "Accept-Encoding", "gzip")
		if body := readAll(t, res); res.StatusCode != 200 || time.Since(start) > time.Minute || len(upstream.Batches()) != 0 {
			t.Errorf("%s after %v: %s", res.Status, time.Since(start), body)
		}
		synctest.Wait()
		if u := p.Usage(); u.Answered != 1 || u.Realtime != 1 || u.TotalTokens == 0 {
			t.Errorf("%+v", u)
		}
	})
}

// TestPassThroughStreams checks that each piece of a response is forwarded without
// delay.
func TestPassThroughStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			body, w := io.Pipe()
			go func() {
				for i := range 3 {
					time.Sleep(10 * time.Minute) // longer than each timeout of the proxy
					fmt.Fprintf(w, "piece %d\n", i)
				}
				w.Close()
			}()
			res := responseTo(r, 200, "application/jsonl", "")
			res.Body, res.ContentLength = body, -1
			return res, wait(r)
		})})
		start := time.Now()
		res, err := serve(t, p).Get("http://proxy/v1/files/f/content")
		if err != nil {
			t.Fatal(err)
		}
		got, err := readTimed(t, start, res)
		want := []string{"10m0s piece 0\n", "20m0s piece 1\n", "30m0s piece 2\n"}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
	})
}

// TestUploadsAreStreamed checks that an upload is forwarded while the client sends,
// and that MaxBody does not apply to uploads.
func TestUploadsAreStreamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got int64
		p := newProxy(t, proxy.Options{MaxBody: 10, Transport: transport(func(r *http.Request) (*http.Response, error) {
			first := make([]byte, 5)
			if _, err := io.ReadFull(r.Body, first); err != nil {
				return nil, err
			}
			n, err := io.Copy(io.Discard, r.Body)
			got = n + 5
			return responseTo(r, 200, "application/json", `{}`), errors.Join(err, r.Body.Close())
		})})
		body, w := io.Pipe()
		go func() {
			io.WriteString(w, "first")
			time.Sleep(10 * time.Minute)
			io.Copy(w, io.LimitReader(zeroReader{}, 1<<20))
			w.Close()
		}()
		res, err := serve(t, p).Post("http://proxy/v1/files", "multipart/form-data", body)
		if err != nil {
			t.Fatal(err)
		}
		if readAll(t, res); res.StatusCode != 200 || got != 1<<20+5 {
			t.Errorf("%s, %d bytes", res.Status, got)
		}
	})
}

// TestErrorPages checks that an error response that is not JSON gets OpenAI's error
// shape and keeps the status.
func TestErrorPages(t *testing.T) {
	for _, test := range []struct {
		name, kind, body string
		status           int
		want             string
	}{
		{"HTML", "text/html; charset=utf-8", "<html><h1>Bad gateway</h1></html>", 502, "the upstream answered 502 Bad Gateway"},
		{"text", "text/plain", " no such batch\n", 404, "no such batch"},
		{"bad text", "text/plain", "no\xff", 404, "no"},
		{"nothing", "", "", 503, "the upstream answered 503 Service Unavailable"},
		{"JSON", "application/json", `{"error":{"message":"slow down","type":"t"}}`, 429, "slow down"},
		{"problem", "application/problem+json", `{"title":"x"}`, 400, ""},
		{"page", "text/html", "<html>", 200, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
				res := responseTo(r, test.status, test.kind, test.body)
				res.Status = fmt.Sprint(test.status, " ", http.StatusText(test.status))
				res.Header.Set("Retry-After", "7")
				return res, wait(r)
			})})
			res, err := serve(t, p).Get("http://proxy/v1/models")
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != test.status || res.Header.Get("Retry-After") != "7" {
				t.Errorf("%s %v", res.Status, res.Header)
			}
			if test.want == "" {
				if got := readAll(t, res); got != test.body {
					t.Errorf("%s", got)
				}
				return
			}
			if _, message := apiError(t, res); message != test.want {
				t.Errorf("%q", message)
			}
		})
	}
}

// TestUpgrade checks that a WebSocket connection works in both directions.
func TestUpgrade(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer sk-upstream" || r.Header.Get("Upgrade") != "websocket" {
			t.Errorf("%v", r.Header)
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		rw.Flush()
		line, _ := rw.ReadString('\n')
		fmt.Fprint(rw, "echo "+line)
		rw.Flush()
	}))
	defer upstream.Close()
	local := httptest.NewUnstartedServer(newProxy(t, proxy.Options{Upstream: parse(t, upstream.URL), Transport: http.DefaultTransport}))
	var log strings.Builder
	local.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(&log, nil), slog.LevelError)
	local.Start()
	defer func() {
		local.Close()
		if log.Len() > 0 {
			t.Error(log.String())
		}
	}()
	conn, err := net.Dial("tcp", local.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(res, err)
	}
	fmt.Fprint(conn, "hello\n")
	if got, err := r.ReadString('\n'); got != "echo hello\n" || err != nil {
		t.Errorf("%q %v", got, err)
	}
}

// TestUnreachableUpstream checks an upstream that refuses connections, and an
// upstream that closes the connection before the response.
func TestUnreachableUpstream(t *testing.T) {
	reset := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer reset.Close()
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	for name, upstream := range map[string]string{"resets": reset.URL, "down": down.URL} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, proxy.Options{Upstream: parse(t, upstream), Transport: http.DefaultTransport})
			client := serve(t, p)
			for _, path := range []string{"/v1/models", "/v1/chat/completions"} {
				res := post(t, client, path, chatCall)
				if code, _ := apiError(t, res); res.StatusCode != http.StatusBadGateway || code != "upstream_unreachable" {
					t.Errorf("%s: %s %s", path, res.Status, code)
				}
			}
		})
	}
}

// TestTruncatedUpstreamResponse checks that a truncated response of the upstream
// breaks the client's connection.
func TestTruncatedUpstreamResponse(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, strings.Repeat("x", 100))
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer upstream.Close()
	p := newProxy(t, proxy.Options{Upstream: parse(t, upstream.URL), Transport: http.DefaultTransport})
	res, err := serve(t, p).Get("http://proxy/v1/files/f/content")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("the response has a clean end after %d bytes", len(b))
	}
}
