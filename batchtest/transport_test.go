package batchtest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

// A bodySpy counts how often a request body is closed.
type bodySpy struct {
	io.Reader
	mu     sync.Mutex
	closed int
}

func (b *bodySpy) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed++
	return nil
}

func (b *bodySpy) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

func TestTransportClosesTheRequestBody(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name  string
		ctx   context.Context
		path  string
		fault batchtest.Fault
	}{
		{"answered", t.Context(), "/models", nil},
		{"unread", t.Context(), "/nothing", nil},
		{"reset", t.Context(), "/batches", batchtest.Reset()},
		{"cancelled before", cancelled, "/batches", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(t, batchtest.Options{})
				if tt.fault != nil {
					a.server.Control(batchtest.OpAny, tt.fault)
				}
				body := &bodySpy{Reader: strings.NewReader("{}")}
				req := a.request("POST", tt.path, body).WithContext(tt.ctx)
				res, err := a.server.Transport().RoundTrip(req)
				if err == nil {
					_ = res.Body.Close()
				}
				synctest.Wait()
				if n := body.count(); n != 1 {
					t.Errorf("body closed %d times, want once", n)
				}
			})
		})
	}
}

func TestTransportEndsWithTheContext(t *testing.T) {
	cause := errors.New("boom")
	t.Run("before the answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{})
			a.server.Control(batchtest.OpModels, batchtest.Hang())
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			res, err := a.server.Transport().RoundTrip(a.request("GET", "/models", nil).WithContext(ctx))
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, %v; want the context's error", res, err)
			}
		})
	})
	t.Run("during the body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{})
			a.server.Control(batchtest.OpModels, func(w http.ResponseWriter, r *http.Request) bool {
				_, _ = io.WriteString(w, "half")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
				return true
			})
			ctx, cancel := context.WithCancelCause(t.Context())
			res, err := a.server.Transport().RoundTrip(a.request("GET", "/models", nil).WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			time.AfterFunc(time.Minute, func() { cancel(cause) })
			body, err := io.ReadAll(res.Body)
			if string(body) != "half" || !errors.Is(err, context.Canceled) {
				t.Errorf("read %q, %v; want half and the context's error", body, err)
			}
		})
	})
}

func TestTransportStreamsBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{})
		a.server.Control(batchtest.OpAny, func(w http.ResponseWriter, r *http.Request) bool {
			buf := make([]byte, 4)
			for {
				n, err := r.Body.Read(buf)
				if err != nil {
					return true
				}
				_, _ = w.Write([]byte(strings.ToUpper(string(buf[:n]))))
				_ = http.NewResponseController(w).Flush()
			}
		})
		pr, pw := io.Pipe()
		go func() { _, _ = io.WriteString(pw, "ping") }()
		res, err := a.client.Do(a.request("POST", "/echo", pr))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		if res.ContentLength != -1 {
			t.Errorf("ContentLength = %d, want -1", res.ContentLength)
		}
		for _, word := range []string{"ping", "pong"} {
			got := make([]byte, 4)
			if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != strings.ToUpper(word) {
				t.Fatalf("read %q, %v", got, err)
			}
			if word == "ping" {
				_, _ = io.WriteString(pw, "pong")
			}
		}
		_ = pw.Close()
		if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
			t.Errorf("rest = %q, %v", rest, err)
		}
	})
}

// A bubble fails when a goroutine is left in it.
func TestTransportLeavesNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{})
		b := a.retrieve(a.create(chatLines(2000))["id"])
		req := a.request("GET", "/files/"+b["output_file_id"].(string)+"/content", nil)
		req.Header.Set("Authorization", "Bearer sk-test")
		res, err := a.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadFull(res.Body, make([]byte, 10))
		_ = res.Body.Close()
		if _, err := res.Body.Read(make([]byte, 1)); err == nil {
			t.Error("a closed body can be read")
		}
	})
}

func TestTransportResponseIsLikeNetHTTPs(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(t *testing.T, a *api) {
		req := a.request("GET", "/models", nil)
		req.Header.Set("Authorization", "Bearer k")
		res, err := a.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		if res.Status != "200 OK" || res.StatusCode != 200 || res.Proto != "HTTP/1.1" || res.Request == nil ||
			res.ContentLength != int64(len(body)) || res.Header.Get("Content-Type") != "application/json" {
			t.Errorf("got %+v", res)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(t *testing.T, a *api) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 5 {
					req := a.form("/files", "purpose", "batch", "file", chatLines(20))
					if res, err := a.attempt(req); err != nil || res.status != 200 {
						t.Errorf("upload: %v %+v", err, res)
					}
					a.server.Uploads()
					a.server.Requests()
					a.server.Executed()
				}
			})
		}
		wg.Wait()
		if n := len(a.server.Uploads()); n != 40 {
			t.Errorf("%d uploads, want 40", n)
		}
	})
}
