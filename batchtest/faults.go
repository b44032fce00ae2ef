package batchtest

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// Op names the operation that a request asks for.
type Op string

// The operations. OpAny stands for all operations, and for unknown paths.
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
	OpRealtime     Op = "realtime" // also the create of a background response

	OpRetrieveResponse Op = "retrieve response"
	OpCancelResponse   Op = "cancel response"
	OpDeleteResponse   Op = "delete response"
)

// A Fault answers a request in place of the Server and returns true, or returns
// false without touching w to let the request pass. A Fault may sleep, call
// [Proceed], or panic with [http.ErrAbortHandler] to break the connection.
// Several goroutines may call a Fault at once.
type Fault func(w http.ResponseWriter, r *http.Request) bool

// A control is a fault with the operation that the fault waits for. While a
// one-shot fault looks at a request, the fault is busy, and other requests pass.
type control struct {
	op    Op
	fault Fault
	keep  bool
	busy  atomic.Bool
}

// Control lets each fault answer one request of the kind op: the next request for
// which the fault returns true. Several faults are used in the order given. Faults
// come before the check of the key and of the rate.
func (s *Server) Control(op Op, faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range faults {
		s.controls = append(s.controls, &control{op: op, fault: f})
	}
}

// Keep lets fault answer every request of the kind op for which fault returns true,
// until stop is called: an outage. Faults of Control and Keep are used in the order
// of the calls.
func (s *Server) Keep(op Op, fault Fault) (stop func()) {
	c := &control{op: op, fault: fault, keep: true}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.controls = append(s.controls, c)
	return func() { s.drop(c) }
}

// faulted offers the request to the faults, in order, until a fault answers.
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

// offer calls the fault of c, unless the fault is busy with another request. A
// fault that answers stays busy for good, since the fault may end in a panic.
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

// proceed is the part of a request's context that Proceed needs.
type proceed struct {
	server *Server
	work   http.Handler
}

type proceedKey struct{}

// Proceed answers r as the Server would have without the fault. Proceed panics if
// the Server did not pass r to a [Fault].
func Proceed(w http.ResponseWriter, r *http.Request) {
	r.Context().Value(proceedKey{}).(proceed).work.ServeHTTP(w, r)
}

// closing is closed when the Server of r begins to close.
func closing(r *http.Request) <-chan struct{} {
	return r.Context().Value(proceedKey{}).(proceed).server.closing
}

// Status answers with the status, header and body; header may be nil. The
// Content-Type is that of JSON unless header has another.
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

// RateLimit answers 429 with the wait in Retry-After; zero leaves Retry-After out.
func RateLimit(wait time.Duration) Fault {
	return refusal(&apiError{
		status: 429, code: "rate_limit_exceeded", retryAfter: wait, message: "Rate limit reached for requests.",
	})
}

// Unavailable answers 503 with the wait in Retry-After; zero leaves Retry-After
// out.
func Unavailable(wait time.Duration) Fault {
	return refusal(&apiError{status: 503, retryAfter: wait, message: "The server is overloaded."})
}

// FlexUnavailable refuses a realtime call at the tier flex for lack of capacity, as the
// provider does ([Behavior].NoCapacityStatus). All other calls pass. For example,
// Control(OpRealtime, FlexUnavailable(), FlexUnavailable()) refuses the next two flex
// calls, and Keep(OpRealtime, FlexUnavailable()) refuses all flex calls.
func FlexUnavailable() Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		body, _ := io.ReadAll(io.LimitReader(r.Body, maxRealtime)) // the Server meets the same error
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), r.Body))
		s := r.Context().Value(proceedKey{}).(proceed).server
		model, _ := unquote(field(body, "model"))
		if tier, _ := s.tierOf(Line{URL: s.behavior.lineURL(r.URL.Path), Model: model, Body: body}); tier != TierFlex {
			return false
		}
		s.refuse(w, s.behavior.noCapacity())
		return true
	}
}

// refusal answers e in the style of the provider.
func refusal(e *apiError) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		r.Context().Value(proceedKey{}).(proceed).server.refuse(w, e)
		return true
	}
}

// Redirect answers with a status such as 301 or 308 and the header Location, and
// does not do the work. An empty location is the URL of the request with the
// scheme https, as from a server that redirects plain HTTP.
func Redirect(code int, location string) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		to := location
		if to == "" {
			to = "https://" + r.Host + r.URL.RequestURI()
		}
		return Status(code, http.Header{"Location": {to}, "Content-Type": {"text/html"}}, "")(w, r)
	}
}

// LimitBody answers a request with a body of more than n bytes with 413 and a page
// of HTML, as a reverse proxy in front of the provider does, after reading the
// body. Smaller requests pass. Use LimitBody with [Server.Keep].
func LimitBody(n int64) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		body, err := io.ReadAll(io.LimitReader(r.Body, n+1))
		if err == nil && int64(len(body)) <= n {
			r.Body = io.NopCloser(bytes.NewReader(body))
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body) // so that the client reads the answer before the connection ends
		return HTML(http.StatusRequestEntityTooLarge)(w, r)
	}
}

// Prepend writes text before the body of the answer, for example a byte order
// mark ("\ufeff") before the first result line.
func Prepend(text string) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		Proceed(&prepended{ResponseWriter: w, text: text}, r)
		return true
	}
}

// LoseAnswer does the work, and then breaks the connection instead of answering.
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

// Hang answers nothing until the client disconnects or the Server closes.
func Hang() Fault {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		// net/http notices that a client disconnects only after the body was read.
		_, _ = io.Copy(io.Discard, r.Body)
		hang(r)
		return true
	}
}

// hang waits until the client disconnects or the Server closes, and breaks the
// connection.
func hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-closing(r):
	}
	panic(http.ErrAbortHandler)
}

// Tear breaks the connection after n bytes of the answer's body, or at the end of a
// shorter body. The client sees an error.
func Tear(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		t := &torn{ResponseWriter: w, left: n}
		Proceed(t, r)
		t.abort()
		return true
	}
}

// Truncate ends the answer's body after n bytes as if the body were complete: the
// answer has no Content-Length, the end of the connection ends the body, and
// the client sees no error.
func Truncate(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		Proceed(&truncated{ResponseWriter: w, bytes: n}, r)
		return true
	}
}

// TruncateInLine ends the answer's body inside a line, after n whole lines and the
// first 20 bytes of the next line. Otherwise TruncateInLine is like [Truncate].
func TruncateInLine(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		Proceed(&truncated{ResponseWriter: w, bytes: tornLine, lines: n}, r)
		return true
	}
}

// sleep waits for d, and reports false if ctx ended first.
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
