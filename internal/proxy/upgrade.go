package proxy

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"time"
)

// removeUpgrade removes a request to upgrade the connection, unless the request is for
// a WebSocket. After an upgrade to HTTP/2 (h2c) a client could send the upstream any
// request, past all checks of the proxy.
func removeUpgrade(h http.Header) {
	if h.Get("Upgrade") != "" && !isWebSocket(h) {
		delete(h, "Upgrade")
		delete(h, "Connection")
	}
}

// isWebSocket reports whether a request opens a WebSocket. Through a WebSocket at
// /responses, OpenAI answers model calls in real time.
func isWebSocket(h http.Header) bool { return strings.EqualFold(h.Get("Upgrade"), "websocket") }

// An upgradedConn is the connection to a client after an upgrade, such as a
// WebSocket. All bytes of both directions pass through the upgradedConn, which ends
// the upgrade when no byte passed for a timeout: both sides are silent, or one side
// has stopped reading.
type upgradedConn struct {
	net.Conn
	timeout time.Duration
	timer   *time.Timer // ends the upgrade
}

// newUpgradedConn returns conn with a timeout. A blocked write to the upstream does
// not end when conn is closed, so stop must close the connection to the upstream.
func newUpgradedConn(conn net.Conn, timeout time.Duration, stop func()) *upgradedConn {
	return &upgradedConn{Conn: conn, timeout: timeout, timer: time.AfterFunc(timeout, func() {
		_ = conn.Close()
		stop()
	})}
}

// Read implements net.Conn.
func (c *upgradedConn) Read(p []byte) (int, error) { return c.progress(c.Conn.Read(p)) }

// Write implements net.Conn.
func (c *upgradedConn) Write(p []byte) (int, error) { return c.progress(c.Conn.Write(p)) }

func (c *upgradedConn) progress(n int, err error) (int, error) {
	if n > 0 && err == nil {
		c.timer.Reset(c.timeout)
	}
	return n, err
}

// Close implements net.Conn.
func (c *upgradedConn) Close() error {
	c.timer.Stop()
	return c.Conn.Close()
}

// CloseWrite closes one direction of the connection, if the connection can do so.
func (c *upgradedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
