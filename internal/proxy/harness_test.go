package proxy_test

import (
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

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

// transport is a RoundTripper made of a function, in place of the Transport.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// responseTo is a response as a Transport gives it.
func responseTo(r *http.Request, status int, contentType, body string) *http.Response {
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)), Request: r,
	}
}

// after answers a call when so much time has passed, having read its body.
func after(d time.Duration, status int, contentType, body string) transport {
	return func(r *http.Request) (*http.Response, error) {
		if err := read(r); err != nil {
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

// failing is after for an error.
func failing(d time.Duration, err error) transport {
	return func(r *http.Request) (*http.Response, error) {
		if err := read(r); err != nil {
			return nil, err
		}
		time.Sleep(d)
		return nil, err
	}
}

func read(r *http.Request) error {
	if r.Body == nil {
		return nil
	}
	defer r.Body.Close()
	_, err := io.Copy(io.Discard, r.Body)
	return err
}

// instant answers every call at once.
var instant = after(0, http.StatusOK, "application/json", `{}`)

const upstreamURL = "https://upstream.test/base/v1"

func parse(t testing.TB, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// newProxy fills in what a test does not care about.
func newProxy(t testing.TB, o proxy.Options) *proxy.Proxy {
	t.Helper()
	if o.Upstream == nil {
		o.Upstream = parse(t, upstreamURL)
	}
	if o.APIKey == "" && !o.ForwardKey {
		o.APIKey = "sk-upstream"
	}
	if o.Transport == nil {
		o.Transport = instant
	}
	p, err := proxy.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pipes is a net.Listener without a network, which works in a bubble.
type pipes struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
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

// serve serves h as the command does, over pipes, and returns a client for it
// at http://proxy. Both end with the test.
func serve(t testing.TB, h http.Handler) *http.Client {
	t.Helper()
	listener := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
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

// batching is a proxy on a real Transport on a batchtest server, for tests in a
// bubble.
func batching(t testing.TB, server batchtest.Options, o proxy.Options) (*http.Client, *proxy.Proxy, *batchtest.Server) {
	t.Helper()
	upstream := batchtest.New(server)
	tr, err := autobatcher.New(autobatcher.Options{Base: upstream.Transport()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	o.Upstream, o.Transport, o.Stats = parse(t, upstream.URL), tr, tr.Stats
	p := newProxy(t, o)
	return serve(t, p), p, upstream
}

// post sends a call and returns its response, whose body the test closes.
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

// all reads a response to its end.
func all(t testing.TB, res *http.Response) string {
	t.Helper()
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("after %q: %v", b, err)
	}
	return string(b)
}

// apiError is the error in a body, which must be in OpenAI's shape.
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
	raw := all(t, res)
	if err := json.Unmarshal([]byte(raw), &body); err != nil || body.Error == nil || body.Error.Message == "" || body.Error.Type == "" {
		t.Fatalf("not an error in OpenAI's shape (%v): %s", err, raw)
	}
	if body.Error.Code != nil {
		code = *body.Error.Code
	}
	return code, body.Error.Message
}

// dialRaw is a connection to a server of h's, for what no client would send.
func dialRaw(t testing.TB, h http.Handler) net.Conn {
	t.Helper()
	client := serve(t, h)
	conn, err := client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "proxy:80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
