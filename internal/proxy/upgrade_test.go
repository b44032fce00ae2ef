package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/proxy"
)

// TestSilentUpgrade checks that an upgraded connection ends when no byte has passed in
// either direction for the timeout, and not before.
func TestSilentUpgrade(t *testing.T) {
	send := func(conn net.Conn) {
		for {
			if _, err := conn.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(50 * time.Second)
		}
	}
	read := func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }
	nothing := func(net.Conn) {}
	for name, test := range map[string]struct {
		client, upstream func(net.Conn)
		ends             bool
	}{
		"both are silent":            {read, read, true},
		"the client sends":           {send, read, false},
		"the upstream sends":         {read, send, false},
		"the client does not read":   {nothing, send, true},
		"the upstream does not read": {send, nothing, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				far, near := net.Pipe()
				defer near.Close()
				body := &closeNotifier{Conn: far, closed: make(chan struct{})}
				conn := dial(t, newProxy(t, proxy.Options{PassThroughTimeout: time.Minute, Transport: transport(func(r *http.Request) (*http.Response, error) {
					res := responseTo(r, http.StatusSwitchingProtocols, "", "")
					res.Header, res.Body = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}, body
					return res, nil
				})}))
				io.WriteString(conn, "GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
				if res := readResponse(t, conn); res.StatusCode != http.StatusSwitchingProtocols {
					t.Fatal(res.Status)
				}
				var sides sync.WaitGroup
				sides.Go(func() { test.client(conn) })
				sides.Go(func() { test.upstream(near) })
				select {
				case <-body.closed:
					if !test.ends {
						t.Error("the connection ended")
					}
				case <-time.After(70 * time.Second):
					if test.ends {
						t.Error("the connection did not end")
					}
				}
				conn.Close()
				near.Close()
				sides.Wait()
			})
		})
	}
}

// A closeNotifier closes a channel when the connection is closed.
type closeNotifier struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

// Close implements net.Conn.
func (c *closeNotifier) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestOnlyWebSocketsUpgrade checks that no other upgrade is forwarded: after an upgrade
// to HTTP/2 the proxy would see none of the requests on the connection.
func TestOnlyWebSocketsUpgrade(t *testing.T) {
	for upgrade, want := range map[string]string{
		"websocket": "websocket", "WebSocket": "WebSocket",
		"h2c": "", "websocket, h2c": "", "h2c, websocket": "", "TLS/1.0": "", "HTTP/2.0": "",
	} {
		var got http.Header
		conn := dial(t, newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			got = r.Header.Clone()
			return respondNow(r)
		})}))
		fmt.Fprintf(conn, "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nUpgrade: %s\r\n\r\n", upgrade)
		if res := readResponse(t, conn); res.StatusCode != 200 || got.Get("Upgrade") != want || (got.Get("Connection") != "") != (want != "") || got.Get("Http2-Settings") != "" {
			t.Errorf("%s: %s, the upstream gets %v", upgrade, res.Status, got)
		}
	}
}
