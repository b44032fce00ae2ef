package proxy_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/provider"
)

// TestMaxMemory checks that calls beyond the budget get 503, and that the bytes are
// free again when the calls end.
func TestMaxMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := serve(t, newProxy(t, proxy.Options{MaxMemory: 1000, Transport: keepBody}))
		body := strings.Repeat("x", 400)
		var held sync.WaitGroup
		for range 2 {
			held.Go(func() {
				if res := postAndRead(t, client, "/v1/embeddings", body); res.StatusCode != 200 {
					t.Error(res.Status)
				}
			})
		}
		synctest.Wait()
		wantMetric(t, client, "autobatcher_request_memory_bytes 800")
		for _, path := range []string{"/v1/embeddings", "/v1/moderations"} { // a Transport may batch more endpoints
			res := post(t, client, path, body)
			if code, _ := apiError(t, res); res.StatusCode != 503 || code != "out_of_memory" || res.Header.Get("Retry-After") == "" {
				t.Errorf("%s: %s %s", path, res.Status, code)
			}
		}
		if res := postAndRead(t, client, "/v1/embeddings", "{}"); res.StatusCode != 200 {
			t.Errorf("a small call: %s", res.Status)
		}
		held.Wait()
		synctest.Wait()
		wantMetric(t, client, "autobatcher_request_memory_bytes 0")
		wantMetric(t, client, `autobatcher_refused_total{reason="memory"} 2`)
		if res := postAndRead(t, client, "/v1/embeddings", body); res.StatusCode != 200 {
			t.Errorf("when the calls have ended: %s", res.Status)
		}
		res := post(t, client, "/v1/embeddings", strings.Repeat("x", 1001))
		if apiError(t, res); res.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("a body that never fits: %s", res.Status)
		}
	})
}

// TestAnnouncedBytesAreNotReserved checks that a Content-Length alone costs no
// memory: neither of the budget nor of the process.
func TestAnnouncedBytesAreNotReserved(t *testing.T) {
	const callers = 200
	upstream := batchtest.New(batchtest.Options{})
	tr, err := autobatcher.New(autobatcher.Options{Base: upstream.Transport(), QuietAfter: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	p := newProxy(t, proxy.Options{Upstream: parse(t, upstream.URL), Transport: tr, MaxMemory: 2 << 20})
	client := serve(t, p)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range callers {
		conn, err := client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "proxy:80")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); p.Usage().Waiting < callers || !strings.Contains(metrics(t, client), fmt.Sprintf("memory_bytes %d\n", callers)); {
		if time.Now().After(deadline) {
			t.Fatalf("%d calls are held", p.Usage().Waiting)
		}
		time.Sleep(time.Millisecond) // polling: the test uses no synctest bubble, to measure the memory
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > callers*128<<10 {
		t.Errorf("%d connections use %d kB each", callers, grown>>10/callers)
	}
}

func compressed(t *testing.T, encoding, body string) string {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&b)
	var err error
	switch encoding {
	case "deflate":
		w = zlib.NewWriter(&b)
	case "zstd":
		if w, err = zstd.NewWriter(&b); err != nil {
			t.Fatal(err)
		}
	}
	_, err = io.WriteString(w, body)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestCompressedBodies checks that a compressed call is batched, and that its
// decoded bytes count against MaxBody and MaxMemory before they are held.
func TestCompressedBodies(t *testing.T) {
	question := `{"model":"m","input":"hello"}`
	large := `{"model":"m","input":"` + strings.Repeat("x", 100<<20) + `"}`
	for _, encoding := range []string{"gzip", "deflate", "zstd"} {
		bomb := compressed(t, encoding, large)
		for _, test := range []struct {
			name, body string
			o          proxy.Options
			status     int
			code       string
		}{
			{"small", compressed(t, encoding, question), proxy.Options{}, 200, ""},
			{"not compressed", question, proxy.Options{}, 400, "invalid_request"},
			{"cut", compressed(t, encoding, question)[:12], proxy.Options{}, 400, "invalid_request"},
			{"empty", "", proxy.Options{}, 400, "invalid_request"},
			{"bomb", bomb, proxy.Options{MaxBody: 1 << 20}, 413, "request_too_large"},
			{"bomb for the memory", bomb, proxy.Options{MaxBody: 50 << 20, MaxMemory: 1 << 20}, 413, "request_too_large"},
		} {
			t.Run(encoding+", "+test.name, func(t *testing.T) {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				synctest.Test(t, func(t *testing.T) {
					client, _, _ := newBatchingProxy(t, batchtest.Options{}, test.o)
					res := post(t, client, "/v1/embeddings", test.body, "Content-Encoding", encoding)
					if test.status == 200 {
						if body := readAll(t, res); res.StatusCode != 200 || !strings.Contains(body, "embedding") {
							t.Errorf("%s %s", res.Status, body)
						}
						return
					}
					if code, _ := apiError(t, res); res.StatusCode != test.status || code != test.code {
						t.Errorf("%s %s, want %d %s", res.Status, code, test.status, test.code)
					}
				})
				runtime.ReadMemStats(&after)
				if taken := (after.TotalAlloc - before.TotalAlloc) >> 20; taken > 32 {
					t.Errorf("%d MB were allocated", taken)
				}
			})
		}
	}
}

// TestMemoryOfHeaders checks that large headers count while their calls wait.
func TestMemoryOfHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, _ := newBatchingProxy(t, slowServer, proxy.Options{MaxMemory: 200_000, Grace: -1})
		var calls sync.WaitGroup
		call := func(header, status int) {
			calls.Go(func() {
				res := post(t, client, "/v1/embeddings", `{"model":"m","input":"a"}`, "X-Padding", strings.Repeat("x", header))
				if body := readAll(t, res); res.StatusCode != status || status == 503 && !strings.Contains(body, "out_of_memory") {
					t.Errorf("a header of %d bytes: %s %s", header, res.Status, body)
				}
			})
			synctest.Wait()
		}
		call(100_000, 200)
		call(100_000, 200)
		call(100_000, 503)
		call(1_000, 200)
		calls.Wait()
		wantMetric(t, client, "autobatcher_request_memory_bytes 0")
		wantMetric(t, client, `autobatcher_refused_total{reason="memory"} 1`)
	})
}

// TestMemoryOfDecoders checks that the window of a zstd body, which takes megabytes for a
// few bytes of a client, counts until the body has arrived, and is freed then: a call waits
// for hours.
func TestMemoryOfDecoders(t *testing.T) {
	const window = 8 << 20
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(window))
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) string {
		t.Helper()
		b.Reset()
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	first := write(`{"model":"m",`)
	rest := write(`"input":"hello"}`)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	rest += b.String()[len(rest):]
	send := func(client *http.Client, body io.Reader) (*http.Response, error) {
		r, err := http.NewRequest(http.MethodPost, "http://proxy/v1/embeddings", body)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Content-Encoding", "zstd")
		return client.Do(r)
	}
	const calls = 6
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	synctest.Test(t, func(t *testing.T) {
		client, _, _ := newBatchingProxy(t, slowServer, proxy.Options{MaxMemory: calls*(10<<20) + 1<<20, Grace: -1})
		before := heap()
		var answered sync.WaitGroup
		var bodies []*io.PipeWriter
		for range calls {
			body, w := io.Pipe()
			bodies = append(bodies, w)
			answered.Go(func() {
				res, err := send(client, body)
				if err != nil {
					t.Error(err)
					return
				}
				if text := readAll(t, res); res.StatusCode != 200 {
					t.Errorf("%s %s", res.Status, text)
				}
			})
			io.WriteString(w, first)
			synctest.Wait()
		}
		res, err := send(client, strings.NewReader(first+rest))
		if err != nil {
			t.Fatal(err)
		}
		if code, _ := apiError(t, res); res.StatusCode != 503 || code != "out_of_memory" {
			t.Errorf("another call while the bodies arrive: %s %s", res.Status, code)
		}
		for _, w := range bodies {
			io.WriteString(w, rest)
			w.Close()
		}
		synctest.Wait()
		wantMetric(t, client, fmt.Sprintf("autobatcher_request_memory_bytes %d", calls*len(`{"model":"m","input":"hello"}`)))
		if taken := heap() - before; taken > window {
			t.Errorf("%d calls that wait hold %d MB", calls, taken>>20)
		}
		answered.Wait()
	})
}

// TestCompressedCallsShareBudget checks that the decoded bytes of held calls count.
func TestCompressedCallsShareBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := serve(t, newProxy(t, proxy.Options{MaxMemory: 2 << 20, Transport: keepBody}))
		body := compressed(t, "gzip", strings.Repeat("x", 1<<20))
		var answered, refused atomic.Int64
		var calls sync.WaitGroup
		for range 10 {
			calls.Go(func() {
				res := post(t, client, "/v1/embeddings", body, "Content-Encoding", "gzip")
				readAll(t, res)
				switch res.StatusCode {
				case 200:
					answered.Add(1)
				case 503:
					refused.Add(1)
				}
			})
		}
		calls.Wait()
		if answered.Load() > 2 || answered.Load()+refused.Load() != 10 {
			t.Errorf("%d calls were answered, %d refused", answered.Load(), refused.Load())
		}
	})
}

// TestMemoryOfCallersWhoLeft checks that the bytes of calls whose clients disconnect
// during the upload count until the upload has ended, and neither longer nor shorter.
func TestMemoryOfCallersWhoLeft(t *testing.T) {
	body := `{"model":"m","input":"` + strings.Repeat("x", 600) + `"}`
	for _, path := range []string{"/v1/embeddings", "/v1/completions"} { // held; passed through, and batched by this Transport
		for _, created := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, created: %t", path, created), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					upstream := batchtest.New(batchtest.Options{})
					uploads, proceed := make(chan struct{}), make(chan struct{})
					profile := provider.ForURL(parse(t, upstream.URL))
					profile.Endpoints = []string{"/embeddings", "/completions"}
					tr, err := autobatcher.New(autobatcher.Options{Provider: &profile, Base: transport(func(r *http.Request) (*http.Response, error) {
						if strings.HasSuffix(r.URL.Path, "/files") {
							uploads <- struct{}{}
							<-proceed
							if !created {
								return responseTo(r, 400, "application/json", `{"error":{"message":"no"}}`), nil
							}
						}
						return upstream.Transport().RoundTrip(r)
					})})
					if err != nil {
						t.Fatal(err)
					}
					defer tr.Close()
					client := serve(t, newProxy(t, proxy.Options{Upstream: parse(t, upstream.URL), Transport: tr, MaxMemory: 1000}))
					ctx, disconnect := context.WithCancel(t.Context())
					r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://proxy"+path, strings.NewReader(body))
					if err != nil {
						t.Fatal(err)
					}
					go func() { _, _ = client.Do(r) }() // ends with an error
					<-uploads
					disconnect()
					synctest.Wait()
					wantMetric(t, client, fmt.Sprintf("autobatcher_request_memory_bytes %d", len(body)))
					res := post(t, client, path, body)
					if code, _ := apiError(t, res); code != "out_of_memory" {
						t.Errorf("another call during the upload: %s %s", res.Status, code)
					}
					close(proceed)
					synctest.Wait()
					wantMetric(t, client, "autobatcher_request_memory_bytes 0")
				})
			})
		}
	}
}
