package proxy_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

func TestNewRejectsOptions(t *testing.T) {
	upstream := parse(t, upstreamURL)
	for _, test := range []struct {
		name  string
		o     proxy.Options
		field string
	}{
		{"no upstream", proxy.Options{Transport: respondNow, APIKey: "k"}, "Upstream"},
		{"no host", proxy.Options{Transport: respondNow, APIKey: "k", Upstream: parse(t, "/v1")}, "Upstream"},
		{"scheme", proxy.Options{Transport: respondNow, APIKey: "k", Upstream: parse(t, "ftp://x/v1")}, "Upstream"},
		{"no transport", proxy.Options{Upstream: upstream, APIKey: "k"}, "Transport"},
		{"no key", proxy.Options{Upstream: upstream, Transport: respondNow}, "APIKey"},
		{"header", proxy.Options{Upstream: upstream, Transport: respondNow, APIKey: "k", AuthHeader: "Cookie"}, "AuthHeader"},
		{"max body", proxy.Options{Upstream: upstream, Transport: respondNow, APIKey: "k", MaxBody: -1}, "MaxBody"},
		{"max queued", proxy.Options{Upstream: upstream, Transport: respondNow, APIKey: "k", MaxQueued: -1}, "MaxQueued"},
		{"heartbeat", proxy.Options{Upstream: upstream, Transport: respondNow, APIKey: "k", Heartbeat: -1}, "Heartbeat"},
		{"empty client key", proxy.Options{Upstream: upstream, Transport: respondNow, APIKey: "k", ClientKeys: []string{""}}, "ClientKeys"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := proxy.New(test.o)
			if err == nil || !strings.Contains(err.Error(), "Options."+test.field) {
				t.Errorf("error %v does not name %s", err, test.field)
			}
		})
	}
}

func TestNewErrorHidesPassword(t *testing.T) {
	_, err := proxy.New(proxy.Options{Upstream: parse(t, "ftp://user:hunter2@x"), Transport: respondNow, APIKey: "k"})
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error %v", err)
	}
}

func TestHealth(t *testing.T) {
	p := newProxy(t, proxy.Options{ClientKeys: []string{"secret"}})
	p.Drain()
	client := serve(t, p)
	res, err := client.Get("http://proxy/health")
	if err != nil {
		t.Fatal(err)
	}
	if body := readAll(t, res); res.StatusCode != http.StatusOK || body != "ok" {
		t.Errorf("%s %q", res.Status, body)
	}
	res = post(t, client, "/health", "")
	if apiError(t, res); res.StatusCode != http.StatusMethodNotAllowed {
		t.Error(res.Status)
	}
}

// TestUpstreamURL checks the upstream URL for a caller's URL.
func TestUpstreamURL(t *testing.T) {
	for _, test := range []struct{ upstream, path, want string }{
		{"https://u.test/v1", "/v1/chat/completions", "https://u.test/v1/chat/completions"},
		{"https://u.test/v1/", "/v1/chat/completions", "https://u.test/v1/chat/completions"},
		{"https://u.test/v1", "/chat/completions", "https://u.test/v1/chat/completions"},
		{"https://u.test/v1", "/v1/models?a=b;c", "https://u.test/v1/models?a=b;c"},
		{"https://u.test", "/v1/embeddings", "https://u.test/embeddings"},
		{"https://u.test/openai/v1?api-version=1", "/v1/responses?x=2", "https://u.test/openai/v1/responses?api-version=1"},
		{"https://u.test/openai/v1?api-version=1", "/v1/models?x=2", "https://u.test/openai/v1/models?api-version=1&x=2"},
		{"https://u.test/v1", "/v1beta/x", "https://u.test/v1/v1beta/x"},
		{"https://u.test/v1", "/v1", "https://u.test/v1"},
		{"https://u.test/v1", "/v1/files/a%2Fb", "https://u.test/v1/files/a%2Fb"},
		{"https://u.test/a%2Fb/v1", "/v1/models", "https://u.test/a%2Fb/v1/models"},
		{"https://u.test/v1", "/v1/models?limit=2", "https://u.test/v1/models?limit=2"},
	} {
		t.Run(test.path, func(t *testing.T) {
			var got string
			p := newProxy(t, proxy.Options{Upstream: parse(t, test.upstream), Transport: transport(func(r *http.Request) (*http.Response, error) {
				got = r.URL.String()
				if host := r.Host; host != "" && host != "u.test" {
					t.Errorf("Host %q", host)
				}
				return respondNow(r)
			})})
			readAll(t, post(t, serve(t, p), test.path, `{}`))
			if got != test.want {
				t.Errorf("requested %s, want %s", got, test.want)
			}
		})
	}
}

// TestHeadersSentUpstream checks the headers of a held call and of a request that
// is passed through.
func TestHeadersSentUpstream(t *testing.T) {
	sent := []string{
		"Authorization", "Bearer caller", "Api-Key", "caller-too", "X-Forwarded-For", "10.0.0.1", "Forwarded", "for=1",
		"X-Real-Ip", "10.0.0.1", "Connection", "keep-alive, X-Hop", "X-Hop", "1", "Te", "gzip", "Keep-Alive", "3",
		"Autobatcher-Deadline", "30m", "Openai-Organization", "org", "Cookie", "a=1; autobatcher=2; b=3", "X-Custom", "yes",
		"User-Agent", "test",
	}
	kept := http.Header{
		"Autobatcher-Deadline": {"30m"}, "Openai-Organization": {"org"}, "X-Custom": {"yes"},
		"Content-Type": {"application/json"}, "User-Agent": {"test"},
	}
	with := func(name, value string) http.Header {
		h := kept.Clone()
		h.Set(name, value)
		return h
	}
	forwarded := with("Authorization", "Bearer caller")
	forwarded.Set("Api-Key", "caller-too")
	for _, test := range []struct {
		name string
		o    proxy.Options
		want http.Header
	}{
		{"bearer", proxy.Options{APIKey: "proxy-key"}, with("Authorization", "Bearer proxy-key")},
		{"api-key", proxy.Options{APIKey: "proxy-key", AuthHeader: "api-key"}, with("Api-Key", "proxy-key")},
		{"forwarded", proxy.Options{ForwardKey: true}, forwarded},
	} {
		for _, path := range []string{"/v1/embeddings", "/v1/files"} {
			t.Run(test.name+path, func(t *testing.T) {
				var got http.Header
				test.o.Transport = transport(func(r *http.Request) (*http.Response, error) {
					got = r.Header.Clone()
					return respondNow(r)
				})
				readAll(t, post(t, serve(t, newProxy(t, test.o)), path, `{}`, sent...))
				delete(got, "Content-Length")
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func TestClientKeys(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "page") })
	p := newProxy(t, proxy.Options{ClientKeys: []string{"one", "two"}, Page: page})
	client := serve(t, p)
	for _, test := range []struct {
		name, path string
		header     []string
		api, page  bool // whether the request is accepted
	}{
		{"none", "", nil, false, false},
		{"bearer", "", []string{"Authorization", "Bearer one"}, true, true},
		{"other case", "", []string{"Authorization", "bearer two"}, true, true},
		{"api-key", "", []string{"Api-Key", "two"}, true, true},
		{"wrong", "", []string{"Authorization", "Bearer three"}, false, false},
		{"prefix", "", []string{"Authorization", "Bearer on"}, false, false},
		{"empty", "", []string{"Authorization", "Bearer "}, false, false},
		{"basic", "", []string{"Authorization", "Basic OnR3bw=="}, false, true},  // :two
		{"bad basic", "", []string{"Authorization", "Basic OnR3"}, false, false}, // :tw
		{"query", "?key=one", nil, false, true},
		{"bad query", "?key=on", nil, false, false},
		{"empty query", "?key=", nil, false, false},
		{"bad cookie", "", []string{"Cookie", "autobatcher=one"}, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			for path, in := range map[string]bool{
				"/v1/embeddings": test.api, "/v1/files": test.api,
				"/": test.page, "/autobatcher/events": test.page, "/metrics": test.page,
			} {
				res := post(t, client, path+test.path, `{}`, test.header...)
				if in {
					readAll(t, res)
				} else {
					apiError(t, res)
				}
				if got := res.StatusCode != http.StatusUnauthorized; got != in {
					t.Errorf("%s: %s", path, res.Status)
				}
				if asks := res.Header.Get("Www-Authenticate") != ""; asks != (!in && !strings.HasPrefix(path, "/v1")) {
					t.Errorf("%s: WWW-Authenticate present: %v", path, asks)
				}
			}
		})
	}
}

// TestKeyInQueryOpensThePage checks that ?key=… sets a cookie, because the files
// that the page loads are requested without the query.
func TestKeyInQueryOpensThePage(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "page") })
	client := serve(t, newProxy(t, proxy.Options{ClientKeys: []string{"one"}, Page: page}))
	res := post(t, client, "/?key=one", "")
	readAll(t, res)
	cookie := res.Cookies()[0]
	if strings.Contains(cookie.Value, "one") || !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode {
		t.Errorf("cookie %v", cookie)
	}
	for path, want := range map[string]int{"/autobatcher/app.js": 200, "/metrics": 200, "/v1/embeddings": 401} {
		res := post(t, client, path, `{}`, "Cookie", cookie.Name+"="+cookie.Value)
		if readAll(t, res); res.StatusCode != want {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
}

func TestForwardKeyRequiresKey(t *testing.T) {
	client := serve(t, newProxy(t, proxy.Options{ForwardKey: true}))
	for _, path := range []string{"/v1/responses", "/v1/models"} {
		res := post(t, client, path, `{}`)
		if code, _ := apiError(t, res); res.StatusCode != http.StatusUnauthorized || code != "invalid_api_key" {
			t.Errorf("%s: %s %s", path, res.Status, code)
		}
		res = post(t, client, path, `{}`, "Api-Key", "x")
		if readAll(t, res); res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
}

// TestCrossOrigin checks that, without client keys, a web page of another origin
// cannot send calls.
func TestCrossOrigin(t *testing.T) {
	open := serve(t, newProxy(t, proxy.Options{}))
	keyed := serve(t, newProxy(t, proxy.Options{ClientKeys: []string{"k"}}))
	for _, header := range [][]string{{"Origin", "https://evil.test"}, {"Sec-Fetch-Site", "cross-site"}} {
		res := post(t, open, "/v1/chat/completions", `{}`, header...)
		if code, _ := apiError(t, res); res.StatusCode != http.StatusForbidden || code != "cross_origin" {
			t.Errorf("%v: %s %s", header, res.Status, code)
		}
		res = post(t, keyed, "/v1/chat/completions", `{}`, append(header, "Api-Key", "k")...)
		if readAll(t, res); res.StatusCode != http.StatusOK {
			t.Errorf("%v with a key: %s", header, res.Status)
		}
	}
	res := post(t, open, "/v1/chat/completions", `{}`, "Origin", "http://proxy")
	if readAll(t, res); res.StatusCode != http.StatusOK {
		t.Errorf("same origin: %s", res.Status)
	}
}

// TestErrorsBeforeCommit checks the error response for each failure that happens
// before 200 is committed.
func TestErrorsBeforeCommit(t *testing.T) {
	for _, test := range []struct {
		name   string
		o      proxy.Options
		body   string
		status int
		code   string
		header http.Header
	}{
		{
			"transport closed",
			proxy.Options{Transport: failAfter(0, fmt.Errorf("%w before batch b completed", autobatcher.ErrClosed))},
			`{}`,
			503, "shutting_down",
			http.Header{"Retry-After": {"1"}},
		},
		{"upstream unreachable", proxy.Options{Transport: failAfter(0, errors.New("connection refused"))}, `{}`, 502, "upstream_unreachable", nil},
		{"panic", proxy.Options{Transport: transport(func(*http.Request) (*http.Response, error) { panic("defect") })}, `{}`, 500, "internal_error", http.Header{"X-Should-Retry": {"false"}}},
		{"large body", proxy.Options{MaxBody: 10}, `{"model":"m"}`, 413, "request_too_large", nil},
		{"error of the line", proxy.Options{Transport: respondAfter(0, 400, "application/json", `{"error":{"message":"no","type":"t","code":"c"}}`)}, `{}`, 400, "c", nil},
	} {
		for _, path := range []string{"/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/files"} {
			if path == "/v1/files" && test.o.MaxBody > 0 {
				continue // MaxBody does not apply to uploads
			}
			t.Run(test.name+path, func(t *testing.T) {
				var log bytes.Buffer
				test.o.Logger = slog.New(slog.NewTextHandler(&log, nil))
				res := post(t, serve(t, newProxy(t, test.o)), path, test.body)
				code, message := apiError(t, res)
				if res.StatusCode != test.status || code != test.code {
					t.Errorf("%s %s: %s", res.Status, code, message)
				}
				for _, name := range []string{"Retry-After", "X-Should-Retry"} {
					if got, want := res.Header.Get(name), test.header.Get(name); got != want {
						t.Errorf("%s: %q, want %q", name, got, want)
					}
				}
				if test.name == "panic" && !strings.Contains(log.String(), "defect") {
					t.Errorf("the panic was not logged: %s", &log)
				}
			})
		}
	}
}

// TestLargeBodyWithoutLength checks that a body of unknown length is refused when
// the limit is exceeded.
func TestLargeBodyWithoutLength(t *testing.T) {
	p := newProxy(t, proxy.Options{MaxBody: 1000})
	r, err := http.NewRequest(http.MethodPost, "http://proxy/v1/embeddings", io.LimitReader(zeroReader{}, 5000))
	if err != nil {
		t.Fatal(err)
	}
	res, err := serve(t, p).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if code, _ := apiError(t, res); res.StatusCode != http.StatusRequestEntityTooLarge || code != "request_too_large" {
		t.Errorf("%s %s", res.Status, code)
	}
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(t, proxy.Options{Transport: respondAfter(time.Minute, 200, "application/json", `{"held":1}`)})
		client := serve(t, p)
		held := make(chan string)
		go func() { held <- readAll(t, post(t, client, "/v1/embeddings", `{}`)) }()
		synctest.Wait()
		p.Drain()
		for _, path := range []string{"/v1/embeddings", "/v1/models"} {
			res := post(t, client, path, `{}`)
			if code, _ := apiError(t, res); res.StatusCode != 503 || code != "shutting_down" || res.Header.Get("Retry-After") != "1" {
				t.Errorf("%s: %s %v", path, res.Status, res.Header)
			}
		}
		if got := <-held; got != `{"held":1}` {
			t.Errorf("the held call got %s", got)
		}
	})
}

func TestPage(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := w.(http.Flusher); !ok {
			t.Error("the page cannot flush its events")
		}
		io.WriteString(w, "page "+r.URL.Path)
	})
	client := serve(t, newProxy(t, proxy.Options{Page: page, Transport: respondAfter(0, 200, "application/json", "upstream")}))
	for path, want := range map[string]string{
		"/": "page /", "/autobatcher/": "page /autobatcher/", "/autobatcher/x": "page /autobatcher/x",
		"/autobatcher": "upstream", "/v1": "upstream", "/index.html": "upstream",
	} {
		res, err := client.Get("http://proxy" + path)
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, res); got != want {
			t.Errorf("%s: %q", path, got)
		}
	}
	res := post(t, serve(t, newProxy(t, proxy.Options{})), "/", "")
	if apiError(t, res); res.StatusCode != http.StatusNotFound {
		t.Errorf("without a page: %s", res.Status)
	}
}
