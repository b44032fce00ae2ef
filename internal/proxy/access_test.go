package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/proxy"
)

// counted returns a transport that answers every call, and the number of calls.
func counted() (transport, *atomic.Int64) {
	calls := new(atomic.Int64)
	return func(r *http.Request) (*http.Response, error) {
		calls.Add(1)
		return respondNow(r)
	}, calls
}

// ask sends a request to a proxy without a client, and returns the response. host
// "" means the name proxy. Headers are in pairs.
func ask(t testing.TB, h http.Handler, method, target, host string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, target, http.NoBody)
	r.Host = "proxy"
	if host != "" {
		r.Host = host
	}
	r.RemoteAddr = "127.0.0.1:4711"
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

var page = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "page") })

// TestForeignOrigins checks that, without client keys, no web page of another
// origin can send a request, with any method, to any path, or by an upgrade.
func TestForeignOrigins(t *testing.T) {
	for _, header := range [][]string{
		{"Origin", "https://evil.example"},
		{"Origin", "null"},
		{"Origin", "http://proxy:81"},
		{"Origin", "http://proxy", "Origin", "https://evil.example"},
		{"Origin", "chrome-extension://abcdef"},
		{"Origin", ""},
		{"Sec-Fetch-Site", "cross-site"},
		{"Sec-Fetch-Site", "same-site"},
		{"Sec-Fetch-Site", "cross-site", "Origin", "http://proxy"},
		{"Sec-Fetch-Site", "same-origin", "Origin", "https://evil.example"},
		{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"},
		{"Origin", "https://evil.example", "Connection", "Upgrade", "Upgrade", "websocket"},
	} {
		for _, o := range []proxy.Options{{}, {ForwardKey: true}} {
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} {
				for _, path := range []string{"/v1/chat/completions", "/v1/realtime?model=m", "/v1/models", "/", "/metrics", "/autobatcher/state"} {
					upstream, calls := counted()
					o.Transport, o.Page = upstream, page
					res := ask(t, newProxy(t, o), method, path, "", append(header, "Api-Key", "k")...)
					if method == "HEAD" {
						res.Body = io.NopCloser(strings.NewReader(`{"error":{"message":"--client-key","type":"t","code":"cross_origin"}}`))
					}
					code, message := apiError(t, res)
					if res.StatusCode != http.StatusForbidden || code != "cross_origin" || !strings.Contains(message, "--client-key") || calls.Load() > 0 {
						t.Errorf("%q %s %s: %s %s, %d calls", header, method, path, res.Status, code, calls.Load())
					}
				}
			}
		}
	}
}

// TestOwnOrigins checks that the proxy's own page, a program, and a link to the page
// are not refused.
func TestOwnOrigins(t *testing.T) {
	for _, test := range []struct {
		path   string
		header []string
	}{
		{"/v1/models", nil},
		{"/v1/models", []string{"Origin", "http://proxy"}},
		{"/v1/models", []string{"Origin", "https://PROXY", "Sec-Fetch-Site", "same-origin"}},
		{"/v1/models", []string{"Sec-Fetch-Site", "none"}},
		{"/", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}},
	} {
		res := ask(t, newProxy(t, proxy.Options{Page: page}), "GET", test.path, "", test.header...)
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s %q: %s", test.path, test.header, res.Status)
		}
	}
}

// TestHosts checks that, without keys, a request must name the proxy: after DNS
// rebinding, a page has the proxy's origin, but still its own name.
func TestHosts(t *testing.T) {
	for _, test := range []struct {
		host string
		o    proxy.Options
		want bool
	}{
		{"localhost:8080", proxy.Options{}, true},
		{"LOCALHOST", proxy.Options{}, true},
		{"app.localhost:8080", proxy.Options{}, true},
		{"localhost.", proxy.Options{}, true},
		{"127.0.0.1:8080", proxy.Options{}, true},
		{"127.9.9.9", proxy.Options{}, true},
		{"[::1]:8080", proxy.Options{}, true},
		{"[::1]", proxy.Options{}, true},
		{"[::ffff:127.0.0.1]:8080", proxy.Options{}, true},
		{"gateway.internal:8080", proxy.Options{AllowHosts: []string{"Gateway.internal"}}, true},
		{"[2001:db8::1]:8080", proxy.Options{AllowHosts: []string{"2001:db8::1"}}, true},
		{"evil.example:8080", proxy.Options{}, false},
		{"localhost.evil.example", proxy.Options{}, false},
		{"evillocalhost", proxy.Options{}, false},
		{"127.0.0.1.evil.example", proxy.Options{}, false},
		{"192.0.2.1:8080", proxy.Options{}, false},
		{"0.0.0.0:8080", proxy.Options{}, false},
		{".", proxy.Options{}, false},
		{"[]", proxy.Options{}, false},
		{":8080", proxy.Options{}, false},
		{"evil.example", proxy.Options{AllowHosts: []string{"gateway.internal"}}, false},
		{"evil.gateway.internal", proxy.Options{AllowHosts: []string{"gateway.internal"}}, false},
		{"evil.example", proxy.Options{ClientKeys: []string{"k"}}, true},
		{"evil.example", proxy.Options{ForwardKey: true}, true},
	} {
		upstream, calls := counted()
		o := test.o
		o.Transport, o.Page = upstream, page
		if o.AllowHosts == nil {
			o.AllowHosts = []string{} // not the default of newProxy
		}
		p := newProxy(t, o)
		for _, path := range []string{"/v1/embeddings", "/v1/models", "/", "/metrics"} {
			if isPage := !strings.HasPrefix(path, "/v1"); isPage && o.ForwardKey {
				continue // see TestPageWithForwardKey
			}
			method := "GET"
			if path == "/v1/embeddings" {
				method = "POST"
			}
			res := ask(t, p, method, path, test.host, "Origin", "http://"+test.host, "Api-Key", "k")
			if (res.StatusCode == http.StatusOK) != test.want {
				t.Errorf("%s %s: %s", test.host, path, res.Status)
			}
			if test.want {
				continue
			}
			code, message := apiError(t, res)
			if res.StatusCode != http.StatusMisdirectedRequest || code != "unknown_host" || !strings.Contains(message, "--allow-host") || calls.Load() > 0 {
				t.Errorf("%s %s: %s %s %s", test.host, path, res.Status, code, message)
			}
		}
		if res := ask(t, p, "GET", "/health", test.host); res.StatusCode != http.StatusOK {
			t.Errorf("%s /health: %s", test.host, res.Status)
		}
	}
}

// TestOwnAddress checks that the address of the connection is a name of the proxy.
func TestOwnAddress(t *testing.T) {
	p := newProxy(t, proxy.Options{AllowHosts: []string{}})
	listener := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := proxy.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.ServeHTTP(w, r)
	}))
	go server.Serve(addressed{listener, net.IPv4(192, 0, 2, 7)})
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{DialContext: listener.dial}}
	defer client.CloseIdleConnections()
	for host, want := range map[string]int{"192.0.2.7:8080": 200, "192.0.2.8:8080": 421} {
		res, err := client.Get("http://" + host + "/v1/models")
		if err != nil {
			t.Fatal(err)
		}
		if readAll(t, res); res.StatusCode != want {
			t.Errorf("%s: %s", host, res.Status)
		}
	}
}

// addressed is a listener whose connections have a local address.
type addressed struct {
	net.Listener
	ip net.IP
}

func (a addressed) Accept() (net.Conn, error) {
	c, err := a.Listener.Accept()
	return addressedConn{c, a.ip}, err
}

type addressedConn struct {
	net.Conn
	ip net.IP
}

func (a addressedConn) LocalAddr() net.Addr { return &net.TCPAddr{IP: a.ip, Port: 8080} }

// TestMethods checks the methods that no API has.
func TestMethods(t *testing.T) {
	for _, test := range []struct{ line, words string }{
		{"CONNECT api.openai.com:443 HTTP/1.1", "no HTTP proxy"},
		{"CONNECT /v1/models HTTP/1.1", "no HTTP proxy"},
		{"TRACE /v1/models HTTP/1.1", "GET"},
		{"TRACE / HTTP/1.1", "GET"},
		{"PROPFIND /v1/files HTTP/1.1", "GET"},
		{"post /v1/chat/completions HTTP/1.1", "POST"},
	} {
		for _, o := range []proxy.Options{{}, {ClientKeys: []string{"k"}}, {ForwardKey: true}} {
			upstream, calls := counted()
			o.Transport = upstream
			conn := dial(t, newProxy(t, o))
			io.WriteString(conn, test.line+"\r\nHost: proxy\r\nApi-Key: k\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			code, message := apiError(t, res)
			if res.StatusCode != http.StatusMethodNotAllowed || code != "method_not_allowed" || !strings.Contains(message, test.words) || calls.Load() > 0 {
				t.Errorf("%s: %s %s %s", test.line, res.Status, code, message)
			}
		}
	}
}

// TestAbsoluteURL checks a client that takes the proxy for an HTTP proxy.
func TestAbsoluteURL(t *testing.T) {
	for host, want := range map[string]int{"api.openai.com": 421, "169.254.169.254": 421, "localhost:80": 200} {
		for _, o := range []proxy.Options{{}, {ClientKeys: []string{"k"}}} {
			conn := dial(t, newProxy(t, o))
			io.WriteString(conn, "GET http://"+host+"/v1/models HTTP/1.1\r\nHost: localhost\r\nApi-Key: k\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != want {
				t.Errorf("%s: %s", host, res.Status)
			}
		}
	}
}

// TestPreflights checks that, with client keys, a web page of any origin can send
// calls and read the answers.
func TestPreflights(t *testing.T) {
	p := newProxy(t, proxy.Options{ClientKeys: []string{"k"}})
	const origin = "https://app.example"
	res := ask(t, p, "OPTIONS", "/v1/chat/completions", "", "Origin", origin, "Sec-Fetch-Site", "cross-site",
		"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type,x-stainless-lang")
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "authorization,content-type,x-stainless-lang", "Access-Control-Max-Age": "86400",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if res.StatusCode != http.StatusNoContent || !strings.Contains(res.Header.Get("Access-Control-Allow-Methods"), "POST") || res.Header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("%s %v", res.Status, res.Header)
	}
	for _, test := range []struct {
		method, path, key string
		status            int
	}{
		{"POST", "/v1/chat/completions", "k", 200},
		{"POST", "/v1/chat/completions", "wrong", 401},
		{"POST", "/v1/chat/completions/", "k", 404},
		{"GET", "/v1/models", "k", 200},
		{"GET", "/v1/files", "k", 403},
		{"GET", "/v1/../files", "k", 400},
		{"TRACE", "/v1/models", "k", 405},
	} {
		res := ask(t, p, test.method, test.path, "", "Origin", origin, "Authorization", "Bearer "+test.key)
		if got := res.Header.Get("Access-Control-Allow-Origin"); res.StatusCode != test.status || got != "*" || res.Header.Get("Access-Control-Expose-Headers") != "*" {
			t.Errorf("%s %s: %s, %q", test.method, test.path, res.Status, got)
		}
	}
	for _, path := range []string{"/", "/metrics", "/autobatcher/state"} {
		res := ask(t, p, "GET", path, "", "Origin", origin, "Authorization", "Bearer k")
		if res.StatusCode != http.StatusForbidden || res.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %s %v", path, res.Status, res.Header)
		}
	}
	if res := ask(t, p, "POST", "/v1/chat/completions", "", "Api-Key", "k"); res.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("a program gets headers for browsers")
	}
}

// TestCORSAfterHeartbeats checks that an answer that began with heartbeats, and an
// answer after a panic, can be read by pages.
func TestCORSAfterHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, tr := range map[string]transport{
			"heartbeats": respondAfter(time.Hour, 200, "application/json", `{}`),
			"panic":      func(*http.Request) (*http.Response, error) { panic("defect") },
		} {
			client := serve(t, newProxy(t, proxy.Options{ClientKeys: []string{"k"}, Transport: tr}))
			res := post(t, client, "/v1/embeddings", `{}`, "Origin", "https://app.example", "Api-Key", "k")
			if readAll(t, res); res.Header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("%s: %s %v", name, res.Status, res.Header)
			}
		}
	})
}

// TestUpstreamAccessControl checks that the upstream does not decide which pages may
// read answers.
func TestUpstreamAccessControl(t *testing.T) {
	tr := transport(func(r *http.Request) (*http.Response, error) {
		res, err := respondNow(r)
		for _, name := range []string{"Allow-Origin", "Allow-Credentials", "Expose-Headers", "Allow-Private-Network"} {
			res.Header.Set("Access-Control-"+name, "true")
		}
		return res, err
	})
	for _, path := range []string{"/v1/embeddings", "/v1/moderations"} {
		res := ask(t, newProxy(t, proxy.Options{Transport: tr}), "POST", path, "")
		for name := range res.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s: %s", path, name)
			}
		}
		res = ask(t, newProxy(t, proxy.Options{Transport: tr, ClientKeys: []string{"k"}}), "POST", path, "", "Api-Key", "k", "Origin", "https://app.example")
		if got := res.Header.Values("Access-Control-Allow-Origin"); len(got) != 1 || got[0] != "*" || res.Header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s with a key: %v", path, res.Header)
		}
	}
}

// TestPageWithForwardKey checks that, with ForwardKey, the page needs a key of its own:
// every text is a caller's key, and a server on this machine may forward requests of
// others without saying so.
func TestPageWithForwardKey(t *testing.T) {
	for _, test := range []struct {
		name         string
		o            proxy.Options
		remote, host string
		header       []string
		want         int
	}{
		{"this machine", proxy.Options{}, "127.0.0.1:1", "localhost:8080", nil, 403},
		{"this machine, any key", proxy.Options{}, "[::1]:1", "[::1]:8080", []string{"Authorization", "Bearer x"}, 403},
		{"another machine", proxy.Options{}, "192.0.2.1:1", "localhost:8080", []string{"Authorization", "Bearer x"}, 403},
		{"page key", proxy.Options{PageKeys: []string{"p"}}, "192.0.2.1:1", "gateway", []string{"Authorization", "Bearer p"}, 200},
		{"no page key", proxy.Options{PageKeys: []string{"p"}}, "127.0.0.1:1", "localhost", nil, 401},
		{"client key", proxy.Options{ClientKeys: []string{"c"}}, "192.0.2.1:1", "gateway", []string{"Authorization", "Bearer c"}, 200},
		{"a client key does not replace a page key", proxy.Options{ClientKeys: []string{"c"}, PageKeys: []string{"p"}}, "127.0.0.1:1", "localhost", []string{"Authorization", "Bearer c"}, 401},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := test.o
			o.ForwardKey, o.Page = true, page
			p := newProxy(t, o)
			for _, path := range []string{"/", "/metrics", "/autobatcher/state"} {
				r := httptest.NewRequest("GET", path, http.NoBody)
				r.RemoteAddr, r.Host = test.remote, test.host
				for i := 0; i < len(test.header); i += 2 {
					r.Header.Set(test.header[i], test.header[i+1])
				}
				w := httptest.NewRecorder()
				p.ServeHTTP(w, r)
				if w.Code != test.want {
					t.Errorf("%s: %d %s", path, w.Code, w.Body)
				}
			}
		})
	}
}

// TestPageKey checks that a key for the page opens no call, and a client key not the
// page, also without ForwardKey.
func TestPageKey(t *testing.T) {
	p := newProxy(t, proxy.Options{ClientKeys: []string{"c"}, PageKeys: []string{"p"}, Page: page})
	for key, want := range map[string]map[string]int{
		"c": {"/": 401, "/metrics": 401, "/v1/models": 200},
		"p": {"/": 200, "/metrics": 200, "/v1/models": 401},
	} {
		for path, status := range want {
			if res := ask(t, p, "GET", path, "", "Authorization", "Bearer "+key); res.StatusCode != status {
				t.Errorf("%s with %s: %s", path, key, res.Status)
			}
		}
	}
}
