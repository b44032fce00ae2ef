package flexapi_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/flexapi"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/provider"
)

// roundTripper is a RoundTripper that calls no hooks of net/http/httptrace.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A call whose request was never sent is sent again. Nothing else is: the provider may
// have executed the call.
func TestUnsent(t *testing.T) {
	ok := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"id":"1"}`) }
	breaks := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	closed := func(t *testing.T) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		return l.Addr().String()
	}
	direct := func(tr *http.Transport) { tr.Proxy = nil }
	through := func(address string) func(*http.Transport) {
		return func(tr *http.Transport) { tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: address}) }
	}
	start := func(t *testing.T, f func(*httptest.Server), h http.HandlerFunc) *httptest.Server {
		srv := httptest.NewUnstartedServer(h)
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		f(srv)
		t.Cleanup(srv.Close)
		return srv
	}
	http2 := func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() }
	fails := func(op string) func(*testing.T) (string, http.RoundTripper) {
		return func(*testing.T) (string, http.RoundTripper) {
			return "http://api.example.invalid", roundTripper(func(*http.Request) (*http.Response, error) {
				return nil, &net.OpError{Op: op, Net: "tcp", Err: errors.New("connection refused")}
			})
		}
	}
	failover := func(second string) http.RoundTripper {
		tr := transport(direct)
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if res, err := tr.RoundTrip(r); err == nil {
				return res, nil
			}
			again := r.Clone(r.Context())
			again.URL.Host = second
			again.Body, _ = r.GetBody()
			return tr.RoundTrip(again)
		})
	}
	for _, tt := range []struct {
		name   string
		base   func(*testing.T) (string, http.RoundTripper)
		unsent bool
	}{
		{"the provider does not listen", func(t *testing.T) (string, http.RoundTripper) {
			return "http://" + closed(t), transport(direct)
		}, true},
		{"the proxy does not listen", func(t *testing.T) (string, http.RoundTripper) {
			return "http://api.example.invalid", transport(through(closed(t)))
		}, true},
		{"the proxy does not listen, TLS", func(t *testing.T) (string, http.RoundTripper) {
			return "https://api.example.invalid", transport(through(closed(t)))
		}, true},
		{"the proxy refuses to connect", func(t *testing.T) (string, http.RoundTripper) {
			proxy := start(t, (*httptest.Server).Start, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
			return "https://api.example.invalid", transport(through(proxy.Listener.Addr().String()))
		}, true},
		{"a certificate of an unknown authority", func(t *testing.T) (string, http.RoundTripper) {
			return start(t, (*httptest.Server).StartTLS, ok).URL, transport(direct)
		}, true},
		{"a server without TLS", func(t *testing.T) (string, http.RoundTripper) {
			srv := start(t, (*httptest.Server).Start, ok)
			return "https://" + srv.Listener.Addr().String(), transport(direct)
		}, true},
		{"no common version of TLS", func(t *testing.T) (string, http.RoundTripper) {
			srv := start(t, func(s *httptest.Server) { s.TLS = &tls.Config{MinVersion: tls.VersionTLS13}; s.StartTLS() }, ok)
			tr := srv.Client().Transport.(*http.Transport).Clone()
			tr.TLSClientConfig.MaxVersion = tls.VersionTLS12
			return srv.URL, tr
		}, true},
		{"a RoundTripper without hooks does not reach the provider", fails("dial"), true},
		{"a RoundTripper without hooks does not reach the proxy", fails("proxyconnect"), true},
		{"a RoundTripper without hooks loses the answer", fails("read"), false},
		{"the connection breaks", func(t *testing.T) (string, http.RoundTripper) {
			return start(t, (*httptest.Server).Start, breaks).URL, transport(direct)
		}, false},
		{"the connection breaks, TLS", func(t *testing.T) (string, http.RoundTripper) {
			srv := start(t, (*httptest.Server).StartTLS, breaks)
			return srv.URL, srv.Client().Transport
		}, false},
		{"the stream breaks, HTTP/2", func(t *testing.T) (string, http.RoundTripper) {
			srv := start(t, http2, breaks)
			return srv.URL, srv.Client().Transport
		}, false},
		{"the connection breaks, and the second host of a failover does not listen", func(t *testing.T) (string, http.RoundTripper) {
			return start(t, (*httptest.Server).Start, breaks).URL, failover(closed(t))
		}, false},
		{"neither host of a failover listens", func(t *testing.T) (string, http.RoundTripper) {
			return "http://" + closed(t), failover(closed(t))
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address, base := tt.base(t)
			attempts, err := create(t, address, base)
			want := int64(1)
			if tt.unsent {
				want = 2
			}
			if attempts != want || errors.Is(err, backend.ErrUnsure) == tt.unsent {
				t.Errorf("%d attempts, %v; want %d", attempts, err, want)
			}
		})
	}
}

// transport is an http.Transport without idle connections.
func transport(edit func(*http.Transport)) *http.Transport {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.DisableKeepAlives = true
	edit(tr)
	return tr
}

var errStop = errors.New("the test sends no call a third time")

// create creates a call, and returns how often the call was sent, twice at the most.
func create(t *testing.T, address string, base http.RoundTripper) (int64, error) {
	u, err := url.Parse(address + "/v1")
	if err != nil {
		t.Fatal(err)
	}
	var attempts atomic.Int64
	counted := roundTripper(func(r *http.Request) (*http.Response, error) {
		attempts.Add(1)
		return base.RoundTrip(r)
	})
	p := provider.OpenAI()
	c := flexapi.New(u, flexapi.Transport(counted), &p, new(flexapi.Models), slog.New(slog.DiscardHandler))
	l := &line.Line{ID: "1", URL: p.Endpoint("/chat/completions"), Body: []byte(`{"model":"m"}`)}
	file := line.File{Lines: 1, At: func(int) *line.Line { return l }}
	_, _, err = c.Create(context.Background(), file, backend.Handle{}, backend.Params{Models: []string{"m"}, Pause: func(d time.Duration) error {
		if attempts.Load() > 1 {
			return errStop
		}
		return nil
	}})
	return attempts.Load(), err
}
