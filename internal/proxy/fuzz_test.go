package proxy_test

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/proxy"
)

// FuzzPath checks each path that reaches the upstream: however often the upstream
// decodes the path, the path stays below the base path; and a POST whose cleaned
// path is a batched route has exactly that path.
func FuzzPath(f *testing.F) {
	for _, target := range []string{
		"/v1/models", "/v1/../x", "/v1/%2e%2e/x", "/v1/..%252f..%255c", "/chat/completions/", "/v1/%25zz/%252e%252e/", "/v1/./%2e;x/chat/completions", "http://localhost/..",
	} {
		f.Add(target)
	}
	f.Fuzz(func(t *testing.T, target string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("POST " + target + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")))
		if err != nil {
			return
		}
		var got *url.URL
		p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			got = r.URL
			return respondNow(r)
		})})
		p.ServeHTTP(httptest.NewRecorder(), r)
		if got == nil {
			return
		}
		escaped := got.EscapedPath()
		if got.Host != "upstream.test" || !strings.HasPrefix(escaped, "/base/v1") {
			t.Fatalf("%q became %s", target, got)
		}
		for range 4 {
			clean := strings.ToLower(path.Clean(strings.ReplaceAll(escaped, `\`, "/")))
			if clean != "/base/v1" && !strings.HasPrefix(clean, "/base/v1") {
				t.Fatalf("%q leaves the base path: %s", target, escaped)
			}
			for _, route := range []string{"/chat/completions", "/embeddings", "/responses"} {
				if clean == "/base/v1"+route && got.EscapedPath() != "/base/v1"+route {
					t.Fatalf("%q is passed through as %s", target, got.EscapedPath())
				}
			}
			if escaped, err = url.PathUnescape(escaped); err != nil {
				return
			}
		}
	})
}

// FuzzAnswer checks that no answer has the key, wherever the key is in the answer
// and however the answer is cut into pieces.
func FuzzAnswer(f *testing.F) {
	f.Add("before", "after", 3, 10, false)
	f.Add("sk-op", `"}`, 1, 1, true)
	f.Add("", "", 64, 5, true)
	f.Fuzz(func(t *testing.T, before, after string, piece, cut int, isError bool) {
		if piece < 1 || cut < 0 || cut > len(operatorKey) {
			return
		}
		status := 200
		if isError {
			status = 400
		}
		body := before + operatorKey[:cut] + operatorKey + after
		p := newProxy(t, proxy.Options{APIKey: operatorKey, AllowHosts: []string{"example.com"}, Transport: transport(func(r *http.Request) (*http.Response, error) {
			res := responseTo(r, status, "application/json", body)
			res.Body = io.NopCloser(&pieces{strings.NewReader(body), piece})
			return res, wait(r)
		})})
		for _, path := range []string{"/v1/embeddings", "/v1/moderations"} {
			w := httptest.NewRecorder()
			p.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader("{}")))
			got := w.Body.String()
			if len(got) != len(body) || strings.Contains(got, operatorKey) || isError && !strings.Contains(body[:len(before)]+after, operatorKey[12:20]) && leaks(got) {
				t.Fatalf("%q became %q", body, got)
			}
		}
	})
}

// pieces returns at most n bytes at once.
type pieces struct {
	io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.Reader.Read(b[:min(len(b), p.n)]) }
