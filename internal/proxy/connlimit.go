package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

var failTooManyConnections = failure{
	status: http.StatusServiceUnavailable, code: "too_many_connections", retryAfter: "5",
	message: "the proxy has the maximum number of connections that its limit on open files allows; retry when some calls are answered, or raise the limit",
}

const (
	// maxRefusing is how many connections are refused at the same time.
	maxRefusing = 32

	// refuseTimeout limits how long a refused connection may take to send its request,
	// and to read the response.
	refuseTimeout = 2 * time.Second

	// minRefuseTime is how long a refused connection has for its request, at least, when
	// more than maxRefusing connections arrive: the oldest one then gives up its place,
	// so that slow connections do not keep /health from its answer. A connection that
	// has its answer gives up its place at once.
	minRefuseTime = 300 * time.Millisecond

	// maxDrained is how many bytes of a refused request are read, in bytes: a client
	// that is still sending when the connection closes may not see the response.
	maxDrained = 1 << 20
)

// LimitConnections returns a listener that accepts at most limit connections of l at
// the same time. A further connection gets 503 with Retry-After, or 200 for /health,
// and is closed; of very many further connections some are closed without an answer.
// refused is called for each further connection, except for /health.
func LimitConnections(l net.Listener, limit int, refused func()) net.Listener {
	return &limitedListener{Listener: l, limit: int64(limit), refused: refused, refusing: make(chan struct{}, maxRefusing)}
}

type limitedListener struct {
	net.Listener
	limit    int64
	open     atomic.Int64
	refused  func()
	refusing chan struct{} // has a token for each connection that is being refused

	mu      sync.Mutex
	refusal []*refusal // the connections that are being refused, the oldest first
}

// A refusal is a connection that is being refused.
type refusal struct {
	conn     net.Conn
	since    time.Time
	answered atomic.Bool // the request has arrived, and the client can read the response
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.limit {
			return &countedConn{Conn: conn, release: sync.OnceFunc(func() { l.open.Add(-1) })}, nil
		}
		l.open.Add(-1)
		r := l.beginRefusal(conn)
		go func() {
			defer l.endRefusal(r)
			l.refuse(r)
		}()
	}
}

// beginRefusal waits for a place for conn.
func (l *limitedListener) beginRefusal(conn net.Conn) *refusal {
	select {
	case l.refusing <- struct{}{}:
	default:
		l.awaitRefusal()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &refusal{conn: conn, since: time.Now()}
	l.refusal = append(l.refusal, r)
	return r
}

// awaitRefusal waits until a place is free, or takes the place of a connection that has
// its answer, or else of the oldest connection.
func (l *limitedListener) awaitRefusal() {
	if conn, wait := l.replaceable(); conn != nil {
		select {
		case l.refusing <- struct{}{}:
			return
		case <-time.After(wait):
			_ = conn.Close() // so that refuse returns at once
		}
	}
	l.refusing <- struct{}{}
}

// replaceable returns the connection that gives up its place next, or nil, and how long
// the connection keeps its place.
func (l *limitedListener) replaceable() (conn net.Conn, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.refusal {
		if r.answered.Load() {
			return r.conn, 0
		}
	}
	if len(l.refusal) == 0 {
		return nil, 0
	}
	return l.refusal[0].conn, time.Until(l.refusal[0].since.Add(minRefuseTime))
}

// endRefusal frees the place of a connection.
func (l *limitedListener) endRefusal(ended *refusal) {
	l.mu.Lock()
	l.refusal = slices.DeleteFunc(l.refusal, func(r *refusal) bool { return r == ended })
	l.mu.Unlock()
	<-l.refusing
}

// refuse answers one request and closes the connection.
func (l *limitedListener) refuse(refused *refusal) {
	conn := refused.conn
	defer conn.Close() //nolint:errcheck // the connection is given up
	_ = conn.SetDeadline(time.Now().Add(refuseTimeout))
	sent := &io.LimitedReader{R: conn, N: maxDrained}
	r, err := http.ReadRequest(bufio.NewReader(sent))
	f, status, body := failTooManyConnections, "503 Service Unavailable", ""
	if err == nil && r.URL.Path == "/health" { // the process is healthy; a probe must not restart it
		status, body = "200 OK", "ok"
	} else {
		l.refused()
		body = string(f.body())
	}
	_ = conn.SetDeadline(time.Now().Add(refuseTimeout))
	_, err = fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nRetry-After: %s\r\nConnection: close\r\n\r\n%s",
		status, len(body), f.retryAfter, body)
	if err != nil {
		return
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	if r != nil { // a connection that closes before the request has arrived may lose the response
		_, _ = io.Copy(io.Discard, r.Body)
	}
	refused.answered.Store(true)
	_, _ = io.Copy(io.Discard, sent) // until the client closes
}

// A countedConn frees its place when it is closed.
type countedConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite closes the connection for writing. net/http uses CloseWrite, so that a
// client can read the response to a request that was not read to its end.
func (c *countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// ConnectionRefused counts a connection that LimitConnections refused.
func (p *Proxy) ConnectionRefused() { p.refusals.WithLabelValues(refusedConnections).Inc() }
