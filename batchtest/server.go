package batchtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options configure a [Server]. The zero Options make a server that behaves like
// OpenAI, answers at once and lets every key in. Negative times, rates and limits
// count as zero, except ClockOffset.
type Options struct {
	// Behavior is the provider's behavior; the zero value means [OpenAI].
	Behavior Behavior

	// Turnaround is the time that a batch takes after validating. The lines finish
	// at equal intervals. Zero finishes all lines at once, and the first retrieve
	// finds the batch ended.
	Turnaround time.Duration
	// Validating and Finalizing come before and after Turnaround. Zero, the
	// default, skips the status.
	Validating, Finalizing time.Duration

	// Answer decides the outcome of a line or a realtime call; nil means [Echo].
	// The Server calls Answer once per line, when the batch is created, and
	// possibly from several goroutines at once. Answer must not block: use
	// [Outcome.Delay] for a slow answer.
	Answer func(Line) Outcome
	// FailRate is the share of lines, 0 to 1, that end in status 500 instead of an
	// answer. Seed and the custom_id decide which lines fail.
	FailRate float64
	Seed     int64

	// APIKeys are the keys let in, each an account of its own. If APIKeys and
	// Keys are both empty, the Server lets every key in; a request without a key
	// is always refused. A key sees only the files and batches of its account.
	APIKeys []string
	// Keys are further keys let in, with their account and their end. See
	// [Server.AddKey] and [Server.RevokeKey].
	Keys map[string]Key
	// Models are the known models; empty means every model.
	Models []string
	// RequestsPerMinute is the most requests of one account in a minute, which
	// starts with the first request. Further requests are answered 429 with
	// Retry-After. Zero means no limit.
	RequestsPerMinute int
	// MaxEnqueuedTokens is the most prompt tokens (a quarter of the bytes) that
	// one account may have in unfinished batches of one model. A batch beyond the
	// limit is created, and then fails with token_limit_exceeded. Zero means no
	// limit.
	MaxEnqueuedTokens int64

	// FlexDelay is how long a call at the tier flex waits for capacity before the
	// model executes the call; a background response is queued meanwhile. Zero is no
	// wait.
	FlexDelay time.Duration
	// FlexModels are the models that have the tier flex; empty means every model. A
	// flex call of another model is refused with 400, or executed at [TierDefault],
	// as [Behavior].RefuseTiers says.
	FlexModels []string
	// ResponseQueued and ResponseRunning are how long a background response is
	// queued, in addition to FlexDelay, and in progress. If both are zero, the first
	// retrieve finds the response ended.
	ResponseQueued, ResponseRunning time.Duration

	// ClockOffset is how far the provider's clock is ahead of the clock of the
	// test; negative means behind. The offset shows in every time that the Server
	// writes ("created_at" and so on) and in the header Date. Durations, such as
	// Turnaround, do not depend on the offset.
	ClockOffset time.Duration

	// Logf logs panics of handlers, and requests that do not end in Close; nil
	// means log.Printf.
	Logf func(format string, args ...any)
}

// A Server is a Batch API in memory. The Server runs no goroutine of its own and
// sets no timer: each request computes the state of a batch from the clock. Only
// [Server.AddWebhook] starts goroutines, which end in Close. All methods are safe for
// concurrent use.
type Server struct {
	// URL is the base URL for a client: with /v1, without a slash at the end. If
	// [New] made the Server, only [Server.Transport] reaches the URL.
	URL string

	opts     Options
	behavior Behavior
	mux      *http.ServeMux
	listener *http.Server

	closing chan struct{} // closed at the start of Close, to end waiting faults
	closed  chan struct{} // closed at the end of Close
	base    context.Context
	cut     context.CancelFunc // ends base, and so every running request

	goroutines sync.WaitGroup // of the webhooks

	mu       sync.Mutex // guards the fields below; never held while reading or writing a request
	files    map[string]*file
	batches  map[string]*batch
	order    []*batch // in the order of creation
	uploads  []*file  // in the order of upload
	calls    []*call  // outside of batches, in the order of the first answer
	stored   map[responseKey]*response
	hooks    *hooks // nil without a webhook
	requests []Request
	controls []*control
	rates    map[string]*rate
	created  map[string][]time.Time // creates of each account within the last hour
	keys     map[string]Key
	anyKey   bool // let unknown keys in
	running  map[*visit]struct{}
}

// New returns a Server without a socket, to be used as an [http.Handler] or
// through [Server.Transport]. New works in a testing/synctest bubble.
func New(opts Options) *Server {
	s := &Server{
		opts:     opts,
		behavior: opts.Behavior.withDefaults(),
		closing:  make(chan struct{}),
		closed:   make(chan struct{}),
		files:    map[string]*file{},
		batches:  map[string]*batch{},
		stored:   map[responseKey]*response{},
		rates:    map[string]*rate{},
		created:  map[string][]time.Time{},
		keys:     opts.knownKeys(),
		anyKey:   len(opts.APIKeys) == 0 && len(opts.Keys) == 0,
		running:  map[*visit]struct{}{},
	}
	for _, d := range []*time.Duration{
		&s.opts.Turnaround, &s.opts.Validating, &s.opts.Finalizing,
		&s.opts.FlexDelay, &s.opts.ResponseQueued, &s.opts.ResponseRunning,
	} {
		*d = max(0, *d)
	}
	if s.opts.Logf == nil {
		s.opts.Logf = log.Printf
	}
	s.base, s.cut = context.WithCancel(context.Background())
	s.URL = "http://batchtest.invalid" + s.behavior.BasePath
	s.mux = s.routes()
	return s
}

// NewServer returns a Server listening on a free port of the loopback
// interface. NewServer panics if no port is free, as
// [net/http/httptest.NewServer] does.
func NewServer(opts Options) *Server {
	s := New(opts)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(fmt.Sprintf("batchtest: cannot listen: %v", err))
	}
	s.URL = "http://" + l.Addr().String() + s.behavior.BasePath
	s.listener = &http.Server{Handler: s, BaseContext: func(net.Listener) context.Context { return s.base }}
	go s.listener.Serve(l) //nolint:errcheck // ends with ErrServerClosed, by Close
	return s
}

// Client returns a client that reaches the Server without a socket.
func (s *Server) Client() *http.Client { return &http.Client{Transport: s.Transport()} }

// Close ends the Server. Close waits for running requests to finish. After five
// seconds Close logs the requests that still run, through Options.Logf, and breaks
// their connections. Events that no webhook has accepted yet are dropped. A second call
// waits for the first call to return.
func (s *Server) Close() {
	if s.alreadyClosing() {
		<-s.closed
		return
	}
	defer close(s.closed)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if !s.drained(ctx) {
		s.opts.Logf("batchtest: Close waited 5 seconds for %s", strings.Join(s.stuck(), ", "))
	}
	s.cut()
	s.goroutines.Wait()
	if s.listener != nil {
		_ = s.listener.Close()
	}
}

// alreadyClosing closes s.closing, and reports whether s.closing was closed before.
// A sync.Once would hang a synctest bubble in which two goroutines call Close.
func (s *Server) alreadyClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closing:
		return true
	default:
		close(s.closing)
		return false
	}
}

// drained waits until no request runs, and reports false if ctx ended first.
func (s *Server) drained(ctx context.Context) bool {
	for pause := time.Millisecond; len(s.stuck()) > 0; pause = min(2*pause, 100*time.Millisecond) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
	return true
}

// stuck names the running requests, the oldest first.
func (s *Server) stuck() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	visits := make([]*visit, 0, len(s.running))
	for v := range s.running {
		visits = append(visits, v)
	}
	slices.SortFunc(visits, func(a, b *visit) int { return a.since.Compare(b.since) })
	names := make([]string, len(visits))
	for i, v := range visits {
		names[i] = v.name
	}
	return names
}

func (rules Behavior) withDefaults() Behavior {
	if reflect.ValueOf(rules).IsZero() {
		rules = OpenAI()
	}
	rules.BasePath = cmp.Or(rules.BasePath, "/v1")
	rules.UploadPath = cmp.Or(rules.UploadPath, "/files")
	rules.Purpose = cmp.Or(rules.Purpose, "batch")
	rules.CreatedStatus = cmp.Or(rules.CreatedStatus, http.StatusOK)
	rules.BackgroundStatus = cmp.Or(rules.BackgroundStatus, http.StatusOK)
	rules.NoCapacityStatus = cmp.Or(rules.NoCapacityStatus, http.StatusTooManyRequests)
	return rules
}

// routes maps all paths of the API to the handlers.
func (s *Server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	on := func(op Op, method, path string, h handler) {
		mux.Handle(method+" "+s.behavior.BasePath+path, s.guard(op, h))
	}
	on(OpUpload, "POST", s.behavior.UploadPath, s.upload)
	on(OpListFiles, "GET", "/files", s.listFiles)
	on(OpRetrieveFile, "GET", "/files/{id}", s.retrieveFile)
	on(OpContent, "GET", "/files/{id}/content", s.content)
	on(OpDeleteFile, "DELETE", "/files/{id}", s.deleteFile)
	on(OpCreate, "POST", "/batches", s.create)
	on(OpList, "GET", "/batches", s.listBatches)
	on(OpRetrieve, "GET", "/batches/{id}", s.retrieve)
	on(OpCancel, "POST", "/batches/{id}/cancel", s.cancel)
	on(OpModels, "GET", "/models", s.models)
	for _, path := range realtimePaths {
		on(OpRealtime, "POST", s.behavior.CallPath+path, s.answerNow)
	}
	if s.behavior.Background {
		on(OpRetrieveResponse, "GET", responses+"/{id}", s.retrieveResponse)
		on(OpDeleteResponse, "DELETE", responses+"/{id}", s.deleteResponse)
	}
	if s.behavior.Background && !s.behavior.NoResponseCancel {
		on(OpCancelResponse, "POST", responses+"/{id}/cancel", s.cancelResponse)
	}
	mux.HandleFunc("GET "+resultPath+"{id}", s.download)
	mux.Handle("/", s.guard(OpAny, s.unknown))
	return mux
}

func (s *Server) unknown(_ http.ResponseWriter, r *http.Request, _ caller) error {
	return &apiError{status: 404, message: fmt.Sprintf("Invalid URL (%s %s)", r.Method, r.URL.Path)}
}

// A handler does one operation for one caller. A returned error becomes the answer.
type handler func(w http.ResponseWriter, r *http.Request, c caller) error

// guard makes an http.Handler of h that applies the faults, the check of the key, and
// the rate limit before h.
func (s *Server) guard(op Op, h handler) http.Handler {
	work := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := s.admit(r)
		if err == nil {
			err = h(w, r, c)
		}
		if err != nil {
			s.refuse(w, err)
		}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = r.WithContext(context.WithValue(r.Context(), proceedKey{}, proceed{s, work}))
		if !s.faulted(op, w, r) {
			work.ServeHTTP(w, r)
		}
	})
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := &visit{name: r.Method + " " + r.URL.Path, since: time.Now()}
	s.enter(v)
	rec := &recorder{ResponseWriter: w}
	rec.Header().Set("X-Request-Id", s.newID("req_"))
	rec.Header().Set("Date", s.clock(v.since).UTC().Format(http.TimeFormat))
	defer s.leave(v, rec, Request{
		Method: r.Method, Path: r.URL.Path, Query: r.URL.Query(), Header: r.Header.Clone(), Time: v.since,
	})
	select {
	case <-s.closing:
		panic(http.ErrAbortHandler)
	default:
		s.mux.ServeHTTP(rec, r)
	}
}

// A visit is a running request.
type visit struct {
	name  string
	since time.Time
}

func (s *Server) enter(v *visit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[v] = struct{}{}
}

func (s *Server) leave(v *visit, rec *recorder, entry Request) {
	entry.Status = rec.status
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, v)
	s.noteLocked(entry)
	s.hooks.wake()
}

var errNoSuchBatch = errors.New("batchtest: no such batch")
