// Package requestbody reads the bodies of model calls: completely, up to a limit,
// and without their Content-Encoding; and makes the bodies of lines.
package requestbody

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/retry"
)

// IsForm reports whether the headers announce a body of several parts, such as a form
// with a file. A line of a batch holds JSON, and so cannot hold such a body.
func IsForm(h http.Header) bool {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), "/")
	return strings.EqualFold(strings.TrimSpace(kind), "multipart")
}

// A ContextBody is a body that may know that its Read fails when a context has ended, as
// Read does with the body of a request that a net/http server has received, and with the
// context of that request.
type ContextBody interface {
	io.ReadCloser
	EndsWith(context.Context) bool
}

// Snapshot reads and closes the body of a request, up to limit bytes. raw is what the
// caller sent, body the same without its Content-Encoding. The error is the context's if
// the context of the request has ended.
func Snapshot(req *http.Request, limit int64) (raw, body []byte, err error) {
	if req.Body != nil {
		defer req.Body.Close() //nolint:errcheck // read only
	}
	// A body that does not come must not hold a caller that leaves.
	own, ok := req.Body.(ContextBody)
	if req.Context().Done() != nil && req.Body != nil && (!ok || !own.EndsWith(req.Context())) {
		stop := context.AfterFunc(req.Context(), func() { _ = req.Body.Close() })
		defer stop()
	}
	raw, err = Read(req.Body, req.ContentLength, limit)
	switch {
	case req.Context().Err() != nil: // a body that is closed while it is read may only end early
		return nil, nil, retry.ContextError(req.Context())
	case err != nil:
		return nil, nil, err
	}
	body, err = Decode(raw, req.Header.Get("Content-Encoding"), limit)
	return raw, body, err
}

// Read reads r to its end. Length is the announced number of bytes, which may be
// wrong, or -1 if the number is unknown. A body of more than limit bytes is a
// *reply.RequestError; every other error comes from r. A nil r is an empty body.
func Read(r io.Reader, length, limit int64) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	if length > limit {
		return nil, tooLarge(limit)
	}
	body := make([]byte, 0, firstRead(length))
	for {
		if int64(len(body)) == length { // nearly always the body has ended here
			var next [1]byte
			n, err := io.ReadFull(r, next[:])
			if n == 0 {
				return body, unlessEOF(err)
			}
			body = append(body, next[0])
		} else if len(body) == cap(body) {
			body = grow(body, length)
		}
		n, err := r.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > limit:
			return nil, tooLarge(limit)
		case errors.Is(err, io.EOF):
			return clip(body), nil
		case err != nil:
			return nil, err
		}
	}
}

// firstRead is the size of the memory for the first bytes of a body of the
// announced length: memory grows as bytes arrive.
func firstRead(length int64) int64 {
	if length < 0 {
		return minRead
	}
	return min(length, maxFirst)
}

const (
	minRead  = 512
	maxFirst = 16 << 10
)

// grow doubles the capacity of body, but not beyond an announced length that was not
// reached yet.
func grow(body []byte, length int64) []byte {
	size := max(2*int64(len(body)), minRead)
	if length > int64(len(body)) {
		size = min(size, length)
	}
	grown := make([]byte, len(body), size)
	copy(grown, body)
	return grown
}

// clip returns body without unused memory, if much memory is unused.
func clip(body []byte) []byte {
	if cap(body)-len(body) > len(body)/4 {
		return bytes.Clone(body)
	}
	return body
}

// unlessEOF returns err, or nil for io.EOF.
func unlessEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func tooLarge(limit int64) error {
	return &reply.RequestError{Status: http.StatusRequestEntityTooLarge, Code: "request_too_large", Message: fmt.Sprintf(
		"the request body is larger than the %d bytes that one line of a batch may hold; send it with the header Autobatcher-Mode: realtime, or send less", limit)}
}

// Decoder returns a reader of r without the Content-Encoding, or r itself if there is
// no encoding. known is false if Decoder does not know the encoding. The decoded
// bytes are not limited. Nothing is read from r before the first Read. take is called
// before the reader takes memory in the size that the body announces, and may refuse
// that by an error, which Read returns; nil allows all. The reader keeps no memory after
// the end or an error.
func Decoder(r io.Reader, encoding string, take func(bytes int64) error) (decoded io.Reader, known bool) {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "identity":
		return r, true
	case "gzip", "x-gzip":
		return &decoder{src: r, open: func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }}, true
	case "deflate":
		return &decoder{src: r, open: func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) }}, true
	case "zstd":
		return &decoder{src: r, open: func(r io.Reader) (io.Reader, error) { return openZstd(r, take) }}, true
	}
	return nil, false
}

// maxWindow bounds the memory of a zstd decoder, in bytes: the most that RFC 9659
// allows for HTTP.
const maxWindow = 8 << 20

// zstdExtra is the most memory that a zstd decoder takes beside its window, in bytes, if
// the window has as many bytes or more. With a smaller window it is as large as the window.
const zstdExtra = 2 << 20

// openZstd returns a decoder for r. The decoder takes the memory for its window when the
// first bytes arrive: a client could make a server take megabytes for a few bytes. All
// frames must have windows that are no larger than that of the first frame.
func openZstd(r io.Reader, take func(bytes int64) error) (io.Reader, error) {
	head := make([]byte, zstd.HeaderMaxSize)
	n, err := io.ReadFull(r, head)
	if head = head[:n]; err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	var first zstd.Header
	window := uint64(maxWindow)
	if first.Decode(head) == nil && !first.Skippable {
		window = first.WindowSize
		if first.SingleSegment {
			window = first.FrameContentSize
		}
		window = min(max(window, zstd.MinWindowSize), maxWindow)
	}
	if take != nil {
		if err := take(int64(window + min(window, zstdExtra))); err != nil {
			return nil, err
		}
	}
	// Without concurrency the decoder has no goroutines, and need not be closed.
	return zstd.NewReader(io.MultiReader(bytes.NewReader(head), r), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window))
}

// A decoder is a reader that reads the header of the encoding at the first Read.
type decoder struct {
	src  io.Reader
	open func(io.Reader) (io.Reader, error)
	r    io.Reader
	err  error // the end, or why there is nothing more to read
}

func (d *decoder) Read(p []byte) (n int, err error) {
	if d.r == nil && d.err == nil {
		if d.r, d.err = d.open(d.src); errors.Is(d.err, io.EOF) {
			d.err = io.ErrUnexpectedEOF // the end of an empty body is not the end of an encoded body
		}
	}
	if d.err == nil {
		n, d.err = d.r.Read(p)
	}
	if d.err != nil {
		d.src, d.r = nil, nil // a call waits for hours, and must not hold the memory of its decoder
	}
	return n, d.err
}

// Decode removes the Content-Encoding from raw, since a line of a batch has no
// encoding. An unknown encoding, a broken body, and a decoded body of more than
// limit bytes are a *reply.RequestError. Without an encoding Decode returns raw itself.
func Decode(raw []byte, encoding string, limit int64) ([]byte, error) {
	if encoding == "" { // of nearly every call
		return raw, nil
	}
	src := bytes.NewReader(raw)
	r, known := Decoder(src, encoding, nil)
	switch {
	case !known:
		return nil, &reply.RequestError{Status: http.StatusUnsupportedMediaType, Code: "unsupported_content_encoding", Message: fmt.Sprintf(
			"Content-Encoding %q cannot be batched; send the body as it is, or with gzip, deflate or zstd", encoding)}
	case r == src:
		return raw, nil
	}
	body, err := Read(r, -1, limit)
	if r := (*reply.RequestError)(nil); err == nil || errors.As(err, &r) {
		return body, err
	}
	return nil, reply.InvalidBody("", "the body is not "+encoding+" as its Content-Encoding says: "+err.Error())
}

// Close closes the body of a request, which may be nil.
func Close(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

// Restore returns a copy of a request whose body was read, with the body again.
// The copy shares the headers of the request.
func Restore(req *http.Request, body []byte) *http.Request {
	clone := req.WithContext(req.Context())
	clone.ContentLength = int64(len(body))
	clone.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	clone.Body, _ = clone.GetBody()
	return clone
}
