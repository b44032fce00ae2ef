package batchtest

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// Op names what a request asks of the Server.
type Op string

// The operations. OpAny stands for all of them, and for unknown paths.
const (
	OpAny          Op = "any"
	OpUpload       Op = "upload"
	OpListFiles    Op = "list files"
	OpRetrieveFile Op = "retrieve file"
	OpContent      Op = "content"
	OpDeleteFile   Op = "delete file"
	OpCreate       Op = "create"
	OpList         Op = "list"
	OpRetrieve     Op = "retrieve"
	OpCancel       Op = "cancel"
	OpModels       Op = "models"
	OpRealtime     Op = "realtime"
)

// A Fault answers one request in the Server's place and returns true, or returns
// false without touching w to let it pass. It may sleep, call [Proceed], or
// panic with [http.ErrAbortHandler] to break the connection.
type Fault func(w http.ResponseWriter, r *http.Request) bool

// A control is a fault waiting for its request. While it looks at one, others
// pass it by, unless it is there to stay.
type control struct {
	op    Op
	fault Fault
	keep  bool
	busy  atomic.Bool
}

// Control hands each fault one request of the kind op: the next for which it
// returns true, after which it is gone. Several faults take their turns in the
// order given. They come before the check of the key and of the rate.
func (s *Server) Control(op Op, faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range faults {
		s.controls = append(s.controls, &control{op: op, fault: f})
	}
}

// Keep lets fault answer every request of the kind op, or whichever it returns
// true for, until stop is called: an outage. It takes its turn among the faults
// of Control in the order in which they came.
func (s *Server) Keep(op Op, fault Fault) (stop func()) {
	c := &control{op: op, fault: fault, keep: true}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.controls = append(s.controls, c)
	return func() { s.drop(c) }
}

// faulted offers the request to the waiting faults, in order, until one takes it.
func (s *Server) faulted(op Op, w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	waiting := slices.Clone(s.controls)
	s.mu.Unlock()
	for _, c := range waiting {
		if (c.op == op || c.op == OpAny) && s.offer(c, w, r) {
			return true
		}
	}
	return false
}

// offer calls c's fault, unless another request has it. A fault that takes the
// request stays busy for good: it may end in a panic.
func (s *Server) offer(c *control, w http.ResponseWriter, r *http.Request) (taken bool) {
	if c.keep {
		return c.fault(w, r)
	}
	if !c.busy.CompareAndSwap(false, true) {
		return false
	}
	defer func() {
		if p := recover(); p != nil {
			s.drop(c)
			panic(p)
		}
	}()
	if !c.fault(w, r) {
		c.busy.Store(false)
		return false
	}
	s.drop(c)
	return true
}

func (s *Server) drop(c *control) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.controls = slices.DeleteFunc(s.controls, func(other *control) bool { return other == c })
}

// proceed is how a fault finds what the Server would have done.
type proceed struct {
	server *Server
	work   http.Handler
}

type proceedKey struct{}

// Proceed answers r as the Server would have without the fault. It panics if r
// did not come to a [Fault].
func Proceed(w http.ResponseWriter, r *http.Request) {
	r.Context().Value(proceedKey{}).(proceed).work.ServeHTTP(w, r)
}

// closing is closed when the Server that r came to begins to close.
func closing(r *http.Request) <-chan struct{} {
	return r.Context().Value(proceedKey{}).(proceed).server.closing
}

// Status answers with a status, header and body of your own; header may be nil.
// The body is sent as JSON unless header says otherwise.
func Status(code int, header http.Header, body string) Fault {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		for name, values := range header {
			w.Header()[http.CanonicalHeaderKey(name)] = values
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
		return true
	}
}

// HTML answers with a page, as a proxy in front of a provider does.
func HTML(code int) Fault {
	page := "<html><head><title>" + http.StatusText(code) + "</title></head><body></body></html>\n"
	return Status(code, http.Header{"Content-Type": {"text/html"}}, page)
}

// RateLimit answers 429 and asks to wait; zero leaves Retry-After out.
func RateLimit(wait time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		s := r.Context().Value(proceedKey{}).(proceed).server
		s.refuse(w, &apiError{
			status: 429, code: "rate_limit_exceeded", retryAfter: wait, message: "Rate limit reached for requests.",
		})
		return true
	}
}

// LoseAnswer does the work, and then breaks the connection instead of telling.
func LoseAnswer() Fault {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		Proceed(&nowhere{}, r)
		panic(http.ErrAbortHandler)
	}
}

// Reset breaks the connection without doing the work.
func Reset() Fault {
	return func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
}

// Delay waits for d, and then does the work.
func Delay(d time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !sleep(r.Context(), d) {
			panic(http.ErrAbortHandler)
		}
		Proceed(w, r)
		return true
	}
}

// Hang stays silent until the client leaves or the Server closes.
func Hang() Fault {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		// Only once the body is read does net/http notice that a client leaves.
		_, _ = io.Copy(io.Discard, r.Body)
		hang(r)
		return true
	}
}

// hang waits until the client leaves or the Server closes, and breaks the connection.
func hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-closing(r):
	}
	panic(http.ErrAbortHandler)
}

// Tear breaks the connection after n bytes of the answer's body; an answer that
// is shorter is torn at its end.
func Tear(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		t := &torn{ResponseWriter: w, left: n}
		Proceed(t, r)
		t.abort()
		return true
	}
}

// Truncate leaves out what comes after n bytes of the answer's body, and ends it
// as if that were all.
func Truncate(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		Proceed(&truncated{ResponseWriter: w, left: n}, r)
		return true
	}
}

// sleep waits for d and reports whether it came to the end of it.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// nowhere is a ResponseWriter nobody reads.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header {
	if n.header == nil {
		n.header = http.Header{}
	}
	return n.header
}
func (n *nowhere) WriteHeader(int)             {}
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }

type torn struct {
	http.ResponseWriter
	left int
}

func (t *torn) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// WriteHeader drops the length: without it even a tear at the very end shows.
func (t *torn) WriteHeader(status int) {
	t.Header().Del("Content-Length")
	t.ResponseWriter.WriteHeader(status)
}

func (t *torn) Write(p []byte) (int, error) {
	if len(p) < t.left {
		t.left -= len(p)
		return t.ResponseWriter.Write(p)
	}
	_, _ = t.ResponseWriter.Write(p[:t.left])
	t.abort()
	return 0, nil
}

// abort makes sure that what was written arrives before the connection breaks.
func (t *torn) abort() {
	_ = http.NewResponseController(t.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

type truncated struct {
	http.ResponseWriter
	left int
}

func (t *truncated) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (t *truncated) WriteHeader(status int) {
	t.Header().Del("Content-Length")
	t.ResponseWriter.WriteHeader(status)
}

func (t *truncated) Write(p []byte) (int, error) {
	kept := p[:min(len(p), t.left)]
	t.left -= len(kept)
	if n, err := t.ResponseWriter.Write(kept); err != nil {
		return n, err
	}
	return len(p), nil
}
