package proxy

import (
	"bufio"
	"net"
	"net/http"
	"time"

	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/usage"
)

// stallTimeout is how long a client may make no progress: while the proxy
// writes a piece of a response to the client, or reads a request body from it.
const stallTimeout = time.Minute

// maxWrite is how many bytes of a response one stallTimeout applies to.
const maxWrite = 64 << 10

// A responseWriter is the http.ResponseWriter of one request. It records what
// was sent, for the metrics, and limits how long a write may block.
//
// A responseWriter is not safe for concurrent use. A held call guards its
// responseWriter with heldCall.mu while heartbeats may be written.
type responseWriter struct {
	w        http.ResponseWriter
	rc       *http.ResponseController // of w
	stall    *time.Timer              // breaks the connection; nil before the first write
	r        *http.Request
	started  time.Time
	endpoint string         // path suffix of a model call, endpointOther, or "" for the proxy's own pages
	caller   *caller.Caller // who sends the call; nil before the key was checked
	cors     bool           // pages of other origins may read the answer
	status   int            // status code sent; 0: no status was sent yet
	bytesIn  int64          // bytes read of the body of a held call; 0 for all other requests
	bytesOut int64          // bytes written of the response body
	aborted  bool           // the response has no clean end
	lane     *laneCount     // of a model call that is answered in real time
	usage    *usage.Scanner // finds the token usage in the response; nil: tokens are not counted
	passed   *passedBody    // request body of a request that passes through; nil: no body

	upgradeTimeout time.Duration // how long an upgraded connection may be silent
	cancelUpstream func()        // ends a request that passes through, also after an upgrade, since a peer has stalled
}

// Header returns the header of the response.
func (rw *responseWriter) Header() http.Header { return rw.w.Header() }

// Unwrap returns the underlying writer, for http.ResponseController.
func (rw *responseWriter) Unwrap() http.ResponseWriter { return rw.w }

// Hijack implements http.Hijacker, for upgrades. Afterwards nothing is sent through
// the responseWriter.
func (rw *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffers, err := rw.rc.Hijack()
	if err != nil {
		return nil, nil, err
	}
	rw.status = http.StatusSwitchingProtocols
	return newUpgradedConn(conn, rw.upgradeTimeout, rw.cancelUpstream), buffers, nil
}

// WriteHeader sends the status. Informational statuses may come before the
// final status and are not recorded. They are sent without headers, since the headers
// were not cleaned, and no client of a model needs one.
func (rw *responseWriter) WriteHeader(status int) {
	if status < 200 && status != http.StatusSwitchingProtocols {
		clear(rw.Header())
	} else {
		rw.status = status
		if rw.cors {
			setCORS(rw.Header())
		}
	}
	rw.w.WriteHeader(status)
}

// Write sends a part of the body. The part may have any size: the client gets
// stallTimeout for each maxWrite bytes of the part.
func (rw *responseWriter) Write(b []byte) (written int, err error) {
	if rw.status == 0 {
		rw.WriteHeader(http.StatusOK)
	}
	if rw.usage != nil && rw.status == http.StatusOK {
		rw.usage.Scan(b)
	}
	for len(b) > 0 && err == nil {
		piece := b[:min(len(b), maxWrite)]
		err = rw.withTimeout(func() error {
			n, err := rw.w.Write(piece)
			written += n
			return err
		})
		b = b[len(piece):]
	}
	rw.bytesOut += int64(written)
	return written, err
}

// Flush implements http.Flusher. Callers that need the error use FlushError.
func (rw *responseWriter) Flush() { _ = rw.FlushError() }

// FlushError sends the buffered part of the response to the client.
func (rw *responseWriter) FlushError() error {
	return rw.withTimeout(rw.rc.Flush)
}

// withTimeout runs write and breaks the connection if write blocks for longer
// than stallTimeout. The write deadline is set only in the case of a timeout,
// because setting and clearing a deadline for each write costs as much as the
// write, in particular over HTTP/2.
func (rw *responseWriter) withTimeout(write func() error) error {
	if rw.stall == nil {
		rw.stall = time.AfterFunc(stallTimeout, func() { _ = rw.rc.SetWriteDeadline(time.Now()) })
	} else {
		rw.stall.Reset(stallTimeout)
	}
	err := write()
	rw.stall.Stop()
	return err
}
