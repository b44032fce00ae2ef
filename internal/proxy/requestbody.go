package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher/internal/requestbody"
)

// errEncoding is the read error of a body that does not match its Content-Encoding.
var errEncoding = errors.New("the body does not match its Content-Encoding")

// A requestBody is the body of a held call, without Content-Encoding. The Transport
// reads and keeps the body; the proxy counts the bytes while the Transport reads. The
// proxy removes the encoding, because the decoded bytes count against the memory
// budget while they arrive: a few kilobytes may decode to gigabytes.
type requestBody struct {
	raw     io.ReadCloser // as the client sends the body
	decoded io.Reader     // the same without Content-Encoding
	limit   int64         // of decoded bytes
	rc      *http.ResponseController
	place   *queuePlace     // reserved when the whole body was read
	left    <-chan struct{} // closed when the context of the client's request has ended
	held    *heldBytes      // the decoded bytes, and meanwhile the memory of the decoder; not a part of b, which the Transport would keep in memory after the call

	mu          sync.Mutex  // the Transport may read and close the body on other goroutines
	size        int64       // raw bytes read so far
	decodedSize int64       // decoded bytes read so far
	decoder     int64       // bytes of memory of the decoder, until the end of the body
	err         error       // the first error, if reading failed
	stallTimer  *time.Timer // nil when the body needs no watching any more: a waiting call keeps no timer for hours
	lastSize    int64       // size at the last run of checkStall
	finished    bool        // the body was read to the end or closed
	closed      bool
}

// begin makes b the body of rw.r. If the Content-Encoding is known, begin removes the
// encoding and the length from the headers of rw.r. limit is the maximum size, with and
// without the encoding, in bytes.
func (b *requestBody) begin(rw *responseWriter, memory *memoryBudget, limit int64, place *queuePlace) {
	b.raw, b.limit, b.rc, b.place = http.MaxBytesReader(rw.w, rw.r.Body, limit), limit, rw.rc, place
	b.held, b.left = memory.hold(), rw.r.Context().Done()
	b.decoded = (*rawBody)(b)
	if encoding := rw.r.Header.Get("Content-Encoding"); encoding != "" {
		b.decode(rw.r, encoding)
	}
	b.stallTimer = time.AfterFunc(stallTimeout, b.checkStall)
}

// begun reports whether the body may be in use: the zero requestBody is not.
func (b *requestBody) begun() bool { return b.raw != nil }

// decode removes an encoding. The Transport refuses an unknown encoding.
func (b *requestBody) decode(r *http.Request, encoding string) {
	decoded, known := requestbody.Decoder(b.decoded, encoding, b.takeMemory)
	if !known {
		return
	}
	b.decoded = decoded
	delete(r.Header, "Content-Encoding")
	delete(r.Header, "Content-Length")
	r.ContentLength = -1
}

// takeMemory counts the memory of the decoder, before the decoder takes the memory.
func (b *requestBody) takeMemory(bytes int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch limit := b.held.budget.limit; {
	case b.closed:
		return b.failLocked(http.ErrBodyReadAfterClose)
	case limit > 0 && bytes > limit: // a retry would not fit either
		return b.failLocked(&http.MaxBytesError{Limit: b.limit})
	case !b.held.add(bytes):
		return b.failLocked(errNoMemory)
	}
	b.decoder += bytes
	return nil
}

// freeDecoderLocked ends the counting of the decoder's memory.
func (b *requestBody) freeDecoderLocked() {
	b.held.add(-b.decoder)
	b.decoder = 0
}

// checkStall runs every stallTimeout, and makes Read fail if no byte arrived
// since the last run. The read deadline is set only in the case of a stall: a
// permanent deadline would end the call, because net/http keeps reading from
// the connection in order to notice a client that disconnects.
func (b *requestBody) checkStall() {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.finished:
	case b.size > b.lastSize:
		b.lastSize = b.size
		b.stallTimer.Reset(stallTimeout)
	default:
		_ = b.rc.SetReadDeadline(time.Now()) // some ResponseWriters do not support deadlines
	}
}

func (b *requestBody) stopTimerLocked() {
	if b.stallTimer != nil {
		b.stallTimer.Stop()
		b.stallTimer = nil
	}
}

// A rawBody is a requestBody with the Content-Encoding.
type rawBody requestBody

// Read implements io.Reader.
func (b *rawBody) Read(p []byte) (int, error) {
	n, err := b.raw.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.size += int64(n)
	switch {
	case errors.Is(err, io.EOF):
		b.finished = true
		(*requestBody)(b).stopTimerLocked()
	case err != nil && b.err == nil:
		b.err = err
	}
	return n, err
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.decoded.Read(p)
	if err := b.count(n, err != nil); err != nil {
		return 0, err
	}
	switch {
	case errors.Is(err, io.EOF):
		if !b.place.reserve() {
			err = b.fail(errQueueFull)
		}
	case err != nil:
		err = b.fail(errors.Join(errEncoding, err)) // an error of the raw body was recorded before
	}
	return n, err
}

// count counts decoded bytes. ended says that the decoder has read its last byte.
func (b *requestBody) count(n int, ended bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ended {
		b.freeDecoderLocked()
	}
	switch {
	case b.decodedSize+int64(n) > b.limit:
		return b.failLocked(&http.MaxBytesError{Limit: b.limit})
	case !b.held.add(int64(n)):
		return b.failLocked(errNoMemory)
	}
	b.decodedSize += int64(n)
	return nil
}

// fail records err, unless an earlier error was recorded, and returns the first
// error.
func (b *requestBody) fail(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failLocked(err)
}

func (b *requestBody) failLocked(err error) error {
	if b.err == nil {
		b.err = err
	}
	return b.err
}

// Close closes the body. net/http reads a part of an unread body in order to
// reuse the connection; the deadline limits that reading to one second.
func (b *requestBody) Close() error {
	b.mu.Lock()
	b.stopTimerLocked()
	if !b.finished {
		_ = b.rc.SetReadDeadline(time.Now().Add(time.Second))
		defer func() { _ = b.rc.SetReadDeadline(time.Time{}) }()
	}
	b.finished, b.closed = true, true
	b.freeDecoderLocked()
	b.mu.Unlock()
	return b.raw.Close()
}

// EndsWith implements requestbody.ContextBody: net/http ends the context of the client's
// request, and Read, when the client has left. The proxy must be the handler of the
// server: Read does not end with a context that a handler in front has made, and a
// context that a wrapper of the Transport has made may end before.
func (b *requestBody) EndsWith(ctx context.Context) bool { return ctx.Done() == b.left }

var _ requestbody.ContextBody = (*requestBody)(nil)

// progress returns how many bytes were read, and the first error, if any.
func (b *requestBody) progress() (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size, b.err
}
