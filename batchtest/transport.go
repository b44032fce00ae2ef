package batchtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
)

// Transport returns an [http.RoundTripper] that calls the Server in process,
// whatever host the request names. Bodies stream both ways, the end of a
// request's context ends the exchange, and no goroutine is left after the
// response body was closed. The RoundTripper is safe for concurrent use and works in
// a testing/synctest bubble.
func (s *Server) Transport() http.RoundTripper { return transport{s} }

type transport struct{ server *Server }

func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	body := newRequestBody(req)
	if err := t.precheck(req); err != nil {
		_ = body.Close()
		return nil, err
	}
	x := newExchange(req)
	r := req.Clone(x.ctx)
	r.Body, r.ContentLength, r.RequestURI = body, bodyLength(req), req.URL.RequestURI()
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.1", 1, 1
	r.RemoteAddr = "in-process"
	// Both sides can end the exchange: the client by its context, the Server by Close.
	x.stops = append(x.stops,
		context.AfterFunc(req.Context(), func() { x.abort(req.Context().Err()); _ = body.Close() }),
		context.AfterFunc(t.server.base, func() { x.abort(errClosed); _ = body.Close() }))
	go x.serve(t.server, r)
	return x.response()
}

var errClosed = errors.New("batchtest: server closed")

func (t transport) precheck(req *http.Request) error {
	if req.URL == nil {
		return errors.New("batchtest: request without a URL")
	}
	if err := req.Context().Err(); err != nil {
		return err
	}
	select {
	case <-t.server.closing:
		return errClosed
	default:
		return nil
	}
}

func bodyLength(req *http.Request) int64 {
	if req.ContentLength == 0 && req.Body != nil && req.Body != http.NoBody {
		return -1 // to a client zero with a body means unknown
	}
	return req.ContentLength
}

// A requestBody closes the client's body exactly once, although several goroutines
// call Close.
type requestBody struct {
	io.Reader
	close func() error
}

func newRequestBody(req *http.Request) *requestBody {
	if req.Body == nil {
		return &requestBody{http.NoBody, http.NoBody.Close}
	}
	return &requestBody{req.Body, sync.OnceValue(req.Body.Close)}
}

func (b *requestBody) Close() error { return b.close() }

// An exchange is a request and its response: the handler writes the response, and
// the client reads.
type exchange struct {
	ctx    context.Context // the handler's
	cancel context.CancelFunc
	stops  []func() bool

	header http.Header
	status int // zero until the handler has set the status
	length int64
	res    *http.Response
	out    *bufio.Writer // into pw
	pr     *io.PipeReader
	pw     *io.PipeWriter

	start sync.Once
	begun chan struct{} // closed when res or err is set
	err   error
}

func newExchange(req *http.Request) *exchange {
	x := &exchange{header: http.Header{}, length: -1, begun: make(chan struct{})}
	// The context is not derived from the request's context. When the request's
	// context ends, abort must record the reason before the handler notices.
	x.ctx, x.cancel = context.WithCancel(context.Background())
	x.pr, x.pw = io.Pipe()
	x.res = &http.Response{
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req, Body: &responseBody{x},
	}
	x.out = bufio.NewWriterSize(headFirst{x}, 32<<10)
	return x
}

// serve runs the handler, and then ends the response for the client.
func (x *exchange) serve(s *Server, r *http.Request) {
	defer r.Body.Close() //nolint:errcheck // as net/http does
	defer func() {
		switch p := recover(); p {
		case nil:
			x.finish()
		case http.ErrAbortHandler:
			x.abort(io.ErrUnexpectedEOF)
		default:
			s.opts.Logf("batchtest: panic serving %s: %v\n%s", r.URL.Path, p, debug.Stack())
			x.abort(io.ErrUnexpectedEOF)
		}
	}()
	s.ServeHTTP(x, r)
}

func (x *exchange) finish() {
	x.WriteHeader(http.StatusOK)
	if !x.untilClose() {
		x.length = int64(x.out.Buffered()) // the whole body, unless the response has begun
	}
	x.begin() // before the last flush, which may block until the client reads
	_ = x.out.Flush()
	_ = x.pw.Close()
}

// abort breaks the exchange: RoundTrip fails, or the read of the body.
func (x *exchange) abort(err error) {
	x.start.Do(func() {
		x.err = err
		close(x.begun)
	})
	_ = x.pw.CloseWithError(err)
	x.cancel()
}

// begin lets RoundTrip return. Later changes of the header are lost.
func (x *exchange) begin() {
	x.start.Do(func() {
		x.res.StatusCode = x.status
		x.res.Status = fmt.Sprintf("%d %s", x.status, http.StatusText(x.status))
		x.res.Header, x.res.Close = x.header.Clone(), x.untilClose()
		x.res.Header.Del("Transfer-Encoding")
		x.res.ContentLength = x.length
		if n, err := strconv.ParseInt(x.header.Get("Content-Length"), 10, 64); err == nil {
			x.res.ContentLength = n
		}
		close(x.begun)
	})
}

// untilClose reports whether the end of the connection ends the body. As in
// net/http, the handler asks for this with the Transfer-Encoding "identity".
func (x *exchange) untilClose() bool { return x.header.Get("Transfer-Encoding") == "identity" }

func (x *exchange) response() (*http.Response, error) {
	<-x.begun
	if x.err != nil {
		x.end()
		return nil, x.err
	}
	return x.res, nil
}

// end releases the resources of the exchange after the client has finished.
func (x *exchange) end() {
	x.cancel()
	for _, stop := range x.stops {
		stop()
	}
}

// Header, WriteHeader, Write and Flush make the exchange an http.ResponseWriter.
func (x *exchange) Header() http.Header { return x.header }

func (x *exchange) WriteHeader(status int) {
	if x.status == 0 && status >= 200 {
		x.status = status
	}
}

func (x *exchange) Write(p []byte) (int, error) {
	x.WriteHeader(http.StatusOK)
	return x.out.Write(p)
}

func (x *exchange) Flush() {
	x.WriteHeader(http.StatusOK)
	x.begin()
	_ = x.out.Flush()
}

// headFirst lets the response begin before the first byte of its body.
type headFirst struct{ x *exchange }

func (h headFirst) Write(p []byte) (int, error) {
	h.x.begin()
	return h.x.pw.Write(p)
}

// A responseBody ends the exchange when the client closes it.
type responseBody struct{ x *exchange }

func (b *responseBody) Read(p []byte) (int, error) { return b.x.pr.Read(p) }

func (b *responseBody) Close() error {
	b.x.end()
	return b.x.pr.Close()
}
