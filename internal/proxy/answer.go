package proxy

import (
	"net/http"
	"time"
)

// An answer is the http.ResponseWriter of one request, which remembers what was
// sent and never waits for ever to send it.
type answer struct {
	w        http.ResponseWriter
	r        *http.Request
	status   int    // 0: nothing was sent yet
	bytes    int64  // of the body
	endpoint string // "": it is no call; "other": it is none to a model
	begun    time.Time
	broken   bool   // it has no clean end
	received int64  // bytes of the request's body
	tally    *tally // nil: nobody counts its tokens
}

// patience is how long a client may take to accept a piece of an answer.
const patience = time.Minute

// pieceSize is how much of an answer is written under one deadline.
const pieceSize = 64 << 10

// Header is the header of the response.
func (a *answer) Header() http.Header { return a.w.Header() }

// Unwrap lets an http.ResponseController reach what the answer does not do itself.
func (a *answer) Unwrap() http.ResponseWriter { return a.w }

// WriteHeader sends the status, unless it is an informational one once.
func (a *answer) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		a.status = status
	}
	a.w.WriteHeader(status)
}

// Write sends a part of the body, however large, giving the client time for
// each piece of it.
func (a *answer) Write(b []byte) (written int, err error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	if a.tally != nil && a.status == http.StatusOK {
		a.tally.see(b)
	}
	for len(b) > 0 && err == nil {
		piece := b[:min(len(b), pieceSize)]
		err = a.guarded(func() error {
			n, err := a.w.Write(piece)
			written += n
			return err
		})
		b = b[len(piece):]
	}
	a.bytes += int64(written)
	return written, err
}

// Flush is FlushError for those who do not ask for its error.
func (a *answer) Flush() { _ = a.FlushError() }

// FlushError sends what is buffered.
func (a *answer) FlushError() error { return a.guarded(http.NewResponseController(a.w).Flush) }

// guarded gives the client a minute to take what write sends, and breaks the
// connection after that. A deadline is set only then: to set one and to lift it
// for each write would cost as much as the write, over HTTP/2 in particular.
func (a *answer) guarded(write func() error) error {
	rc := http.NewResponseController(a.w)
	watchdog := time.AfterFunc(patience, func() { _ = rc.SetWriteDeadline(time.Now()) })
	err := write()
	watchdog.Stop()
	return err
}
