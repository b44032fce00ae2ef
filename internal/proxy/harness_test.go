package proxy_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/provider"
)

// transport is a function as an http.RoundTripper, used in place of a Transport.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// responseTo returns a response in the form that a Transport returns.
func responseTo(r *http.Request, status int, contentType, body string) *http.Response {
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)), Request: r,
	}
}

// respondAfter reads the body of a call and responds after d.
func respondAfter(d time.Duration, status int, contentType, body string) transport {
	return func(r *http.Request) (*http.Response, error) {
		if err := wait(r); err != nil {
			return nil, err
		}
		select {
		case <-time.After(d):
			return responseTo(r, status, contentType, body), nil
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
}

// failAfter reads the body of a call and returns err after d.
func failAfter(d time.Duration, err error) transport {
	return func(r *http.Request) (*http.Response, error) {
		if err := wait(r); err != nil {
			return nil, err
		}
		time.Sleep(d)
		return nil, err
	}
}

// wait reads the body of a call and reports a call that waits for its batch, as a
// Transport does.
func wait(r *http.Request) error {
	if r.Body == nil {
		return nil
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && r.Header.Get("Autobatcher-Mode") != "realtime" {
		caller.ObserverOf(r.Context()).Waiting(caller.Call{
			Model: gjson.GetBytes(body, "model").String(), Stream: gjson.GetBytes(body, "stream").Bool(),
			Name: func() (batchID, customID string) { return "batch_1", "custom-1" },
		})
	}
	return err
}

// respondNow responds to every call without delay.
var respondNow = respondAfter(0, http.StatusOK, "application/json", `{}`)

const upstreamURL = "https://upstream.test/base/v1"

func parse(t testing.TB, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// newProxy returns a proxy with defaults for the required options that o lacks.
func newProxy(t testing.TB, o proxy.Options) *proxy.Proxy {
	t.Helper()
	if o.Upstream == nil {
		o.Upstream = parse(t, upstreamURL)
	}
	if o.APIKey == "" && !o.ForwardKey {
		o.APIKey = "sk-upstream"
	}
	if o.Transport == nil {
		o.Transport = respondNow
	}
	if o.AllowHosts == nil {
		o.AllowHosts = []string{"proxy", "x"} // the names that the tests use
	}
	p, err := proxy.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pipeListener is a net.Listener for in-process pipes. In contrast to sockets,
// pipes work in a synctest bubble.
type pipeListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (p *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipeListener) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

func (p *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serve starts NewServer(h) on in-process pipes, and returns a client that
// reaches the server as http://proxy. Server and client end with the test.
func serve(t testing.TB, h http.Handler) *http.Client {
	t.Helper()
	listener := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := proxy.NewServer(h)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	base := &http.Transport{DialContext: listener.dial, DisableCompression: true}
	t.Cleanup(func() {
		base.CloseIdleConnections()
		server.Close()
		<-done
	})
	return &http.Client{Transport: base}
}

// newBatchingProxy starts a proxy with an autobatcher.Transport and a batchtest
// server as the upstream, for tests in a synctest bubble.
func newBatchingProxy(t testing.TB, server batchtest.Options, o proxy.Options) (*http.Client, *proxy.Proxy, *batchtest.Server) {
	t.Helper()
	upstream := batchtest.New(server)
	tr := newTransport(t, upstream.Transport(), o.Profile)
	o.Upstream, o.Transport, o.Stats = parse(t, upstream.URL), tr, tr.Stats
	p := newProxy(t, o)
	return serve(t, p), p, upstream
}

// newTransport returns a Transport that uses base and the profile, or the profile of each
// URL if the profile has no name.
func newTransport(t testing.TB, base http.RoundTripper, p provider.Profile) *autobatcher.Transport {
	t.Helper()
	to := autobatcher.Options{Base: base, QuietAfter: -1}
	if p.Name != "" {
		to.Provider = &p
	}
	tr, err := autobatcher.New(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

// post sends a call and returns the response. The test closes the body.
func post(t testing.TB, client *http.Client, path, body string, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, "http://proxy"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// readAll reads and closes the body of a response.
func readAll(t testing.TB, res *http.Response) string {
	t.Helper()
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("after %q: %v", b, err)
	}
	return string(b)
}

// apiError returns the error in the body of a response, which must have
// OpenAI's error shape.
func apiError(t testing.TB, res *http.Response) (code, message string) {
	t.Helper()
	if got := res.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type of an error is %q", got)
	}
	var body struct {
		Error *struct {
			Message, Type string
			Code          *string
		}
	}
	raw := readAll(t, res)
	if err := json.Unmarshal([]byte(raw), &body); err != nil || body.Error == nil || body.Error.Message == "" || body.Error.Type == "" {
		t.Fatalf("not an error in OpenAI's shape (%v): %s", err, raw)
	}
	if body.Error.Code != nil {
		code = *body.Error.Code
	}
	return code, body.Error.Message
}

// dial returns a raw connection to a server for h, for requests that no HTTP
// client would send.
func dial(t testing.TB, h http.Handler) net.Conn {
	t.Helper()
	client := serve(t, h)
	conn, err := client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "proxy:80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// readResponse reads a response from a raw connection.
func readResponse(t testing.TB, conn net.Conn) *http.Response {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}
