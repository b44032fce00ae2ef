package requestbody_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/requestbody"
)

// status is the status that the caller receives for err.
func status(err error) int {
	var refusal *reply.RequestError
	switch {
	case errors.As(err, &refusal):
		return refusal.Status
	case err != nil:
		return -1
	}
	return http.StatusOK
}

func TestIsForm(t *testing.T) {
	for kind, want := range map[string]bool{
		"multipart/form-data; boundary=x": true, "Multipart/Mixed": true, " multipart/form-data": true, "multipart": true,
		"": false, "application/json": false, "text/plain": false, "application/x-www-form-urlencoded": false, "application/multipart": false,
	} {
		h := http.Header{}
		if kind != "" {
			h.Set("Content-Type", kind)
		}
		if got := requestbody.IsForm(h); got != want {
			t.Errorf("%q: %v, want %v", kind, got, want)
		}
	}
}

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name   string
		body   string
		length int64
		want   int
	}{
		{"length known", "12345", 5, 200},
		{"length unknown", "12345", -1, 200},
		{"length too small", "12345", 2, 200},
		{"length too large", "12345", 8, 200},
		{"as large as the limit", "12345678", 8, 200},
		{"larger than the limit", "123456789", -1, 413},
		{"announced larger than the limit", "1", 9, 413},
		{"empty", "", 0, 200},
	} {
		body, err := requestbody.Read(strings.NewReader(tt.body), tt.length, 8)
		if got := status(err); got != tt.want {
			t.Errorf("%s: status %d, want %d", tt.name, got, tt.want)
		}
		if err == nil && string(body) != tt.body {
			t.Errorf("%s: read %q, want %q", tt.name, body, tt.body)
		}
	}
	if body, err := requestbody.Read(nil, 0, 8); len(body) != 0 || err != nil {
		t.Errorf("nil reader: %q, %v", body, err)
	}
	broken := io.MultiReader(strings.NewReader("12"), errorReader{})
	if _, err := requestbody.Read(broken, 2, 8); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error of the reader = %v, want the reader's own", err)
	}
}

type errorReader struct{}

func (errorReader) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }

// endingBody blocks until it is closed, and then ends as if it were whole.
type endingBody struct{ closed chan struct{} }

func (b endingBody) Read([]byte) (int, error) {
	<-b.closed
	return 0, io.EOF
}

func (b endingBody) Close() error {
	select {
	case <-b.closed:
	default:
		close(b.closed)
	}
	return nil
}

// A body that ends because its request was cancelled is not taken for a whole body.
func TestSnapshotOfACancelledRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://h.test/", endingBody{make(chan struct{})})
		if _, body, err := requestbody.Snapshot(r, 100); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q, %v; want the error of the context", body, err)
		}
	})
}

// A serverBody ends with the context of its own request, as the server's body does.
type serverBody struct {
	endingBody
	own context.Context
}

func (b serverBody) EndsWith(ctx context.Context) bool { return ctx.Done() == b.own.Done() }

// A body that ends with the context of the request is not closed by Snapshot, unless a
// context that was derived from that context ends before.
func TestSnapshotOfAServersBody(t *testing.T) {
	type key struct{}
	for _, tt := range []struct {
		name   string
		derive func(context.Context) (context.Context, context.CancelFunc)
		after  time.Duration // Snapshot returns
	}{
		{"the context of the request", func(ctx context.Context) (context.Context, context.CancelFunc) { return ctx, func() {} }, 3 * time.Second},
		{"with a value", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithValue(ctx, key{}, 1), func() {}
		}, 3 * time.Second},
		{"with a timeout", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				own, leave := context.WithTimeout(t.Context(), 2*time.Second)
				defer leave()
				ctx, cancel := tt.derive(own)
				defer cancel()
				body := serverBody{endingBody{make(chan struct{})}, own}
				closed := time.AfterFunc(3*time.Second, func() { body.Close() })
				defer closed.Stop()
				r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://h.test/", body)
				began := time.Now()
				_, _, err := requestbody.Snapshot(r, 100)
				if after := time.Since(began); after != tt.after || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v after %v, want the error of the context after %v", err, after, tt.after)
				}
			})
		})
	}
}

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		name, raw, encoding string
		want                int
	}{
		{"none", "{}", "", 200},
		{"identity", "{}", "Identity", 200},
		{"gzip", gzipped("{}"), " GZIP ", 200},
		{"deflate", deflated("{}"), "deflate", 200},
		{"zstd", zstded("{}"), "zstd", 200},
		{"not zstd", `{"model":1}`, "zstd", 400},
		{"zstd, too large", zstded(strings.Repeat(" ", 1001)), "zstd", 413},
		{"zstd, with the largest window", zstdedIn("{", "}", 8<<20), "zstd", 200},
		{"zstd, with a window that needs much memory", zstdedIn("{", "}", 16<<20), "zstd", 400},
		{"zstd, in two frames", zstdedIn("{", "", 8<<20) + zstded("}"), "zstd", 200},
		{"zstd, with a later frame that needs more memory", zstded("{") + zstdedIn("}", "", 8<<20), "zstd", 400},
		{"zstd, behind a frame to skip", "\x50\x2a\x4d\x18\x01\x00\x00\x00x" + zstded("{}"), "zstd", 200},
		{"zstd, announcing an exabyte", "\x28\xb5\x2f\xfd\xe0\x00\x00\x00\x00\x00\x00\x00\x10\x09\x00\x00{", "zstd", 400},
		{"not gzip", "{}", "gzip", 400},
		{"cut", gzipped("{}")[:14], "gzip", 400},
		{"unknown", "{}", "br", 415},
		{"too large", gzipped(strings.Repeat(" ", 1001)), "gzip", 413},
	} {
		body, err := requestbody.Decode([]byte(tt.raw), tt.encoding, 1000)
		if got := status(err); got != tt.want {
			t.Errorf("%s: status %d (%v), want %d", tt.name, got, err, tt.want)
		}
		if err == nil && string(body) != "{}" {
			t.Errorf("%s: body %q, want {}", tt.name, body)
		}
	}
}

func gzipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return b.String()
}

func zstded(text string) string {
	var b bytes.Buffer
	w, _ := zstd.NewWriter(&b)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return b.String()
}

// zstdedIn is a text in two blocks, whose decoder must hold a window of that many bytes.
func zstdedIn(first, second string, window int) string {
	var b bytes.Buffer
	w, _ := zstd.NewWriter(&b, zstd.WithWindowSize(window))
	_, _ = io.WriteString(w, first)
	_ = w.Flush()
	_, _ = io.WriteString(w, second)
	_ = w.Close()
	return b.String()
}

func deflated(text string) string {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return b.String()
}

// FuzzDecode checks that every body and every Content-Encoding ends in a body
// within the limit or in a refusal of the caller's request.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x1f\x8b\x08\x00"), "gzip")
	f.Add([]byte("x\x9c"), "deflate")
	f.Add([]byte(zstded("{}")), "zstd")
	f.Add([]byte("{}"), "")
	f.Fuzz(func(t *testing.T, raw []byte, encoding string) {
		body, err := requestbody.Decode(raw, encoding, 1000)
		if err == nil && strings.TrimSpace(encoding) != "" && !strings.EqualFold(strings.TrimSpace(encoding), "identity") && len(body) > 1000 {
			t.Fatalf("%d bytes of at most 1000", len(body))
		}
		if got := status(err); err != nil && (got < 400 || got > 499) {
			t.Fatalf("error %v, want a refusal with a status of 400 to 499", err)
		}
	})
}

func TestRestore(t *testing.T) {
	req := (&http.Request{Header: http.Header{"A": {"b"}}, ContentLength: -1}).WithContext(t.Context())
	got := requestbody.Restore(req, []byte("text"))
	again, err := got.GetBody()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []io.Reader{got.Body, again} {
		if body, err := io.ReadAll(r); string(body) != "text" || err != nil {
			t.Errorf("body %q, %v", body, err)
		}
	}
	if got.ContentLength != 4 || got.Context() != t.Context() || got.Header.Get("A") != "b" {
		t.Errorf("length %d, header %v", got.ContentLength, got.Header)
	}
	if req.Body != nil || req.ContentLength != -1 {
		t.Error("Restore changed the request")
	}
}
