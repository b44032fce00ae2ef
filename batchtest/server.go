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

// Options say what a [Server] is like. The zero Options make an OpenAI that
// answers at once and refuses nobody who shows a key. Negative times, rates and
// limits count as zero.
type Options struct {
	// Manners are the provider's ways; the zero value means [OpenAI].
	Manners Manners

	// Turnaround is the time a batch takes once it is validated; its lines
	// finish evenly spread over it. With zero every line is finished at once, and
	// the batch has ended by the first time it is retrieved.
	Turnaround time.Duration
	// Validating and Finalizing come before and after Turnaround; both are
	// usually zero, which skips the state.
	Validating, Finalizing time.Duration

	// Answer says what becomes of a line or a realtime call; nil means [Echo].
	// It may be called by several requests at once, and once per line, when the
	// batch is created. It must not block: use [Outcome.Delay] for slowness.
	Answer func(Line) Outcome
	// FailRate is the share of lines, 0 to 1, that end in a 500 instead of being
	// answered. Which ones follows from Seed and the custom_id alone.
	FailRate float64
	Seed     int64

	// APIKeys are the keys let in; empty means any key, but there must be one.
	// A key sees its own files and batches only.
	APIKeys []string
	// Models are the models known; empty means any.
	Models []string
	// RequestsPerMinute is what one key may ask in a minute of the clock that
	// starts with its first request; beyond it the answer is 429 with
	// Retry-After. Zero means no limit.
	RequestsPerMinute int
	// MaxEnqueuedTokens is how many prompt tokens (a quarter of the bytes) one
	// key may have in unfinished batches of one model. A batch beyond it is
	// created, and then fails with token_limit_exceeded. Zero means no limit.
	MaxEnqueuedTokens int64

	// Logf is told of panicking handlers and of requests stuck in Close; nil
	// means log.Printf.
	Logf func(format string, args ...any)
}

// A Server is a Batch API in memory. It runs no goroutine of its own and sets
// no timer: where a batch stands is worked out from the clock whenever somebody
// asks. All methods are safe for concurrent use.
type Server struct {
	// URL is the base URL to give to a client: with /v1, without a slash at the
	// end. Where [New] made the Server it leads nowhere except through
	// [Server.Transport].
	URL string

	opts     Options
	manners  Manners
	mux      *http.ServeMux
	listener *http.Server

	closing chan struct{} // closed first, by Close: faults stop waiting
	closed  chan struct{} // closed last
	base    context.Context
	cut     context.CancelFunc // ends base, and with it every request still running

	mu       sync.Mutex // guards all below; never held while reading or writing a request
	files    map[string]*file
	batches  map[string]*batch
	order    []*batch // as created
	uploads  []*file  // as uploaded
	realtime []realtimeCall
	requests []Request
	controls []*control
	rates    map[string]*rate
	created  map[string][]time.Time // by key, within the last hour
	running  map[*visit]struct{}
}

// New returns a Server without a socket, to be used as an [http.Handler] or
// through [Server.Transport]. It works in a testing/synctest bubble.
func New(opts Options) *Server {
	s := &Server{
		opts:    opts,
		manners: opts.Manners.withDefaults(),
		closing: make(chan struct{}),
		closed:  make(chan struct{}),
		files:   map[string]*file{},
		batches: map[string]*batch{},
		rates:   map[string]*rate{},
		created: map[string][]time.Time{},
		running: map[*visit]struct{}{},
	}
	for _, d := range []*time.Duration{&s.opts.Turnaround, &s.opts.Validating, &s.opts.Finalizing} {
		*d = max(0, *d)
	}
	if s.opts.Logf == nil {
		s.opts.Logf = log.Printf
	}
	s.base, s.cut = context.WithCancel(context.Background())
	s.URL = "http://batchtest.invalid" + s.manners.BasePath
	s.mux = s.routes()
	return s
}

// NewServer returns a Server listening on a free port of the loopback
// interface. Like [net/http/httptest.NewServer] it panics if there is none.
func NewServer(opts Options) *Server {
	s := New(opts)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(fmt.Sprintf("batchtest: cannot listen: %v", err))
	}
	s.URL = "http://" + l.Addr().String() + s.manners.BasePath
	s.listener = &http.Server{Handler: s, BaseContext: func(net.Listener) context.Context { return s.base }}
	go s.listener.Serve(l) //nolint:errcheck // ends with ErrServerClosed, by Close
	return s
}

// Client returns a client that reaches the Server without a socket.
func (s *Server) Client() *http.Client { return &http.Client{Transport: s.Transport()} }

// Close ends the Server. It lets running requests finish, and after five
// seconds names through Options.Logf those that did not and cuts them off.
// Called again it waits for the first call to return.
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
	if s.listener != nil {
		_ = s.listener.Close()
	}
}

// alreadyClosing closes s.closing, and reports whether somebody had before. A
// sync.Once would hang a synctest bubble where two goroutines close.
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

// drained waits until no request runs any more, and reports whether it came to that.
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

func (m Manners) withDefaults() Manners {
	if reflect.ValueOf(m).IsZero() {
		m = OpenAI()
	}
	m.BasePath = cmp.Or(m.BasePath, "/v1")
	m.UploadPath = cmp.Or(m.UploadPath, "/files")
	m.Purpose = cmp.Or(m.Purpose, "batch")
	m.CreatedStatus = cmp.Or(m.CreatedStatus, http.StatusOK)
	return m
}

// routes lists everything the Server answers.
func (s *Server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	on := func(op Op, method, path string, h handler) {
		mux.Handle(method+" "+s.manners.BasePath+path, s.guard(op, h))
	}
	on(OpUpload, "POST", s.manners.UploadPath, s.upload)
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
		on(OpRealtime, "POST", s.manners.CallPath+path, s.answerNow)
	}
	mux.HandleFunc("GET "+resultPath+"{id}", s.download)
	mux.Handle("/", s.guard(OpAny, s.unknown))
	return mux
}

func (s *Server) unknown(_ http.ResponseWriter, r *http.Request, _ string) error {
	return &apiError{status: 404, message: fmt.Sprintf("Invalid URL (%s %s)", r.Method, r.URL.Path)}
}

// A handler does one operation for one key. An error it returns becomes the answer.
type handler func(w http.ResponseWriter, r *http.Request, key string) error

// guard makes an http.Handler of h: faults first, then the key, then the rate.
func (s *Server) guard(op Op, h handler) http.Handler {
	work := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, err := s.admit(r)
		if err == nil {
			err = h(w, r, key)
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

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := &visit{name: r.Method + " " + r.URL.Path, since: time.Now()}
	s.enter(v)
	rec := &recorder{ResponseWriter: w}
	rec.Header().Set("X-Request-Id", s.newID("req_"))
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

// A visit is a request being answered.
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
	s.note(entry)
}

// admit returns the key a request was made with.
func (s *Server) admit(r *http.Request) (string, error) {
	key, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !bearer {
		key = r.Header.Get("api-key")
	}
	if key == "" || len(s.opts.APIKeys) > 0 && !slices.Contains(s.opts.APIKeys, key) {
		return "", &apiError{
			status: 401, code: "invalid_api_key",
			message: "Incorrect API key provided.",
		}
	}
	if need := s.manners.NeedQuery; need != "" && r.URL.Query().Get(need) == "" {
		return "", invalid(need, "Missing required query parameter: %s", need)
	}
	return key, s.meter(key)
}

// A rate counts one key's requests in the minute that began at since.
type rate struct {
	since time.Time
	count int
}

func (s *Server) meter(key string) error {
	if s.opts.RequestsPerMinute <= 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	r := s.rates[key]
	if r == nil || now.Sub(r.since) >= time.Minute {
		r = &rate{since: now}
		s.rates[key] = r
	}
	if r.count++; r.count <= s.opts.RequestsPerMinute {
		return nil
	}
	return &apiError{
		status: 429, code: "rate_limit_exceeded", retryAfter: time.Minute - now.Sub(r.since),
		message: "Rate limit reached for requests.",
	}
}

var errNoSuchBatch = errors.New("batchtest: no such batch")
