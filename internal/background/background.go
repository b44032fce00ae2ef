// Package background answers calls at once with an id, and answers later requests for the
// id: background responses of OpenAI's API, served from a batch, and calls of any endpoint
// with the header "Prefer: respond-async".
//
// The call itself is an ordinary call, which a goroutine makes in place of the caller. Its
// line has a fingerprint that depends on the id instead of the body, and is never recorded
// as delivered, so that a process which has the credential and the id finds the line in
// the journal, while the first process runs and after its end. The answers themselves are
// with the provider, and for a while in the registry, as those of callers that
// disconnected.
package background

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"iter"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher/internal/answercache"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/retry"
	"github.com/autobatcher/autobatcher/journal"
)

const (
	// unclaimedFor is how long a call runs whose caller left before it got the id. The
	// same call again gets the id; SDKs repeat a call within seconds. The line of a call
	// with an Idempotency-Key stays in the journal.
	unclaimedFor = 2 * time.Minute

	// maxJobs bounds the calls that run: each costs a goroutine and some kilobytes.
	maxJobs = 100_000

	// withdrawnInterval is the time between two questions to the journal whether another
	// process has withdrawn lines of this process.
	withdrawnInterval = 30 * time.Second

	// createdInterval is the time between two questions to the journal whether another
	// process has created a batch.
	createdInterval = time.Second

	// maxLookFailures is how often a journal that fails is asked again whether it has a call.
	maxLookFailures = 5
)

// A Key is how the registry and the journal know an answer.
type Key struct{ Account, Fingerprint journal.Hash }

// A Journal is the part of the journal's session that is needed; see journal.Store. Without
// a journal, Find finds nothing, and Withdraw does nothing.
type Journal interface {
	Enabled() bool
	Find(ctx context.Context, account journal.Hash, fingerprints []journal.Hash) ([]journal.Taken, error)
	Withdraw(ctx context.Context, account journal.Hash, fingerprints []journal.Hash) error
}

// Options configure a Server. All fields are required.
type Options struct {
	// RoundTrip makes a call that has a Mark, and waits for the answer.
	RoundTrip func(*http.Request) (*http.Response, error)

	// Recall is RoundTrip for a call without a body, which gets the answer that is kept,
	// or waits for a line that exists. Otherwise the error is ErrNotFound.
	Recall func(*http.Request) (*http.Response, error)

	// Key returns the key of a text, for the account and the caller of a request to the
	// URL of the call.
	Key func(r *http.Request, text []byte) Key

	Journal Journal
	KeepFor time.Duration // how long a failure, and that a call was cancelled, is there

	// Start runs a function in a new goroutine, or returns false because the Transport
	// is closing.
	Start   func(func()) bool
	Context context.Context // ends when the Transport closes
	Err     error           // of a call while the Transport is closing
}

// A Server keeps the calls that run in the background. All methods may be called
// concurrently. No lock is held while a call or the journal works. Lock order: that of the
// registry, then mu.
type Server struct {
	opts Options

	mu        sync.Mutex
	jobs      map[Key]*job
	unclaimed map[Key][]*job  // jobs whose callers left before they got the id, by the key of the body
	endings   map[Key]*ending // failures, and jobs that were cancelled
	cache     *answercache.Cache
	releasing bool // calls that were sent are left to another process
	watching  bool // a goroutine looks for withdrawn lines
}

// New returns a Server without calls.
func New(o Options) *Server {
	s := &Server{opts: o, jobs: make(map[Key]*job), unclaimed: make(map[Key][]*job), endings: make(map[Key]*ending)}
	s.cache = answercache.New(endingsBytes, func(e any) { delete(s.endings, e.(*ending).key) }) //nolint:forcetypeassert // end puts endings
	return s
}

// A job is a call that runs in the background. The result is written before ended is
// closed.
type job struct {
	call
	names
	recalled bool           // the call was made by another process, or has its answer already
	discard  bool           // the answer is of no use any more once it was read
	batch    *journal.Batch // of a recalled job: as the journal knows the batch; nil: not known
	line     string         // of a recalled job: the name of the line in the batch
	ctx      context.Context
	cancel   context.CancelCauseFunc // ends ctx
	free     func()                  // gives the bytes of the body back; nil once the Transport does so

	// Guarded by Server.mu.
	callers int           // of Start, that wait for the id
	claimed bool          // a caller got the id
	alone   *time.Timer   // runs while nobody waits for the id, or got the id
	name    func() string // the id of the call's batch; nil until the call waits
	seen    string        // the batch for which the journal has had the line
	recall  *job          // a recalled job of the same id that began before this job, and runs; or nil

	waiting chan caller.Call // has room for the call that the Transport reports
	sent    chan struct{}    // closed when the batch was created
	ended   chan struct{}    // closed when result is set
	result  result
}

// names are how calls are known.
type names struct {
	key   Key  // of the id
	body  Key  // of the body; the zero Key without a body
	named bool // the call has an Idempotency-Key, which decides the id
}

// A result is how a call ended.
type result struct {
	status int
	header http.Header
	body   []byte
	err    error
}

// failed reports whether the call has an answer that is no success.
func (r *result) failed() bool { return r.err == nil && r.status >= http.StatusMultipleChoices }

func (j *job) isSent() bool { return isClosed(j.sent) }

func (j *job) hasEnded() bool { return isClosed(j.ended) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Start makes a call in the background. The response has the id, and is made when the
// provider has created the batch of the call: from then on the answer is not lost. A
// failure before is the response. If the caller leaves before, the same call again gets
// the same id for two minutes; with the header Idempotency-Key, calls with equal keys get
// the same id at all processes with the same journal.
func (s *Server) Start(req *http.Request, asked *Asked) (*http.Response, error) {
	if s.isFull() {
		return refusal(req, http.StatusServiceUnavailable, "too_many_background_calls", "too many calls run in the background of this process; nothing was submitted, and a retry is safe"), nil
	}
	known := withURL(req, knownURL(req.URL, asked.Async))
	id, n := s.namesOf(known, asked)
	j, again, e := s.find(id, n, asked)
	switch {
	case e != nil:
		return e.response(req, id), nil
	case again && j.body != (Key{}) && j.body != n.body:
		s.leave(j)
		return refusal(req, http.StatusUnprocessableEntity, "idempotency_key_reused", "another call has the same Idempotency-Key"), nil
	case !again:
		inner := s.inner(known, j, asked.Body)
		j.free = caller.Hold(req.Context())
		s.start(j, func() {
			if j.named && s.isKnown(j) {
				s.noteSent(j, "")
				s.settle(j, s.opts.Err)
				return
			}
			s.run(j, inner, s.opts.RoundTrip)
		})
	}
	asked.Body = nil // the job has the only copy
	for {
		select {
		case call := <-j.waiting:
			if observer := caller.ObserverOf(req.Context()); observer != nil {
				observer.Waiting(call)
			}
		case <-j.sent:
			s.claim(j)
			return j.accepted(req), nil
		case <-j.ended:
			s.claim(j)
			return j.first(req)
		case <-req.Context().Done():
			s.leave(j)
			return nil, req.Context().Err()
		}
	}
}

// namesOf returns the id of a call, and how the call is known.
func (s *Server) namesOf(req *http.Request, asked *Asked) (id string, n names) {
	id = newID(asked.Async)
	if key := req.Header.Get("Idempotency-Key"); key != "" {
		k := s.opts.Key(req, []byte("idempotency key "+key)).Fingerprint
		id, n.named = id[:len(responsePrefix)]+hex.EncodeToString(k[:16]), true
	}
	n.key, n.body = s.opts.Key(req, []byte(id)), s.opts.Key(req, asked.Body)
	return id, n
}

// find returns the job of an earlier attempt of the call, the ending of an earlier attempt
// with the same Idempotency-Key, or a new job.
func (s *Server) find(id string, n names, asked *Asked) (j *job, again bool, e *ending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := s.unclaimed[n.body]
	switch {
	case n.named && s.endings[n.key] != nil:
		return nil, false, s.endings[n.key]
	case n.named && s.jobs[n.key] != nil && !s.jobs[n.key].recalled: // a recalled job only asks for the answer
		j = s.jobs[n.key]
	case !n.named && len(left) > 0:
		j = left[0]
	}
	if j != nil {
		s.joinLocked(j)
		return j, true, nil
	}
	j = newJob(n, call{id: id, async: asked.Async, model: asked.Model, metadata: metadataOf(asked), created: time.Now()})
	j.callers = 1
	j.recall = s.jobs[n.key] // may have taken over the line of an earlier attempt
	s.addLocked(j)
	return j, false, nil
}

// isKnown reports whether the journal has the line of a new job: then another process, or
// this process before, has made the call. isKnown waits while the batch is being created,
// also if the caller leaves: the same call again waits for the same job. A journal that
// fails is asked again for a while.
func (s *Server) isKnown(j *job) bool {
	for failures := 0; ; {
		switch b, _, err := s.look(j.ctx, j.key); {
		case err != nil && failures < maxLookFailures && retry.Sleep(j.ctx, createdInterval) == nil:
			failures++
		case err != nil, b == nil:
			return false
		case b.BatchID != "":
			return true
		case b.State == journal.Ended, retry.Sleep(j.ctx, createdInterval) != nil:
			return false // a job that was cancelled sends nothing
		}
	}
}

func (s *Server) isFull() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.jobs) >= maxJobs
}

func newJob(n names, c call) *job {
	j := &job{names: n, call: c, waiting: make(chan caller.Call, 1), sent: make(chan struct{}), ended: make(chan struct{})}
	j.ctx, j.cancel = context.WithCancelCause(context.Background())
	return j
}

// newID returns an id that cannot be guessed.
func newID(async bool) string {
	var random [16]byte
	rand.Read(random[:])
	prefix := responsePrefix
	if async {
		prefix = asyncPrefix
	}
	return prefix + hex.EncodeToString(random[:])
}

// joinLocked is the coming of a further caller for an id. The caller holds s.mu.
func (s *Server) joinLocked(j *job) {
	j.callers++
	s.forgetUnclaimedLocked(j)
}

func (s *Server) forgetUnclaimedLocked(j *job) {
	if j.alone == nil {
		return
	}
	j.alone.Stop()
	j.alone = nil
	left := slices.DeleteFunc(s.unclaimed[j.body], func(other *job) bool { return other == j })
	if s.unclaimed[j.body] = left; len(left) == 0 {
		delete(s.unclaimed, j.body)
	}
}

// claim is the leaving of a caller that got the id, or a failure.
func (s *Server) claim(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j.callers--
	j.claimed = true
}

// leave is the leaving of a caller that did not get the id. If no other caller waits for the
// id, or got the id, and the same call does not come again, nobody would ask for the answer.
func (s *Server) leave(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.callers--; j.callers > 0 || j.claimed {
		return
	}
	if !j.named {
		s.unclaimed[j.body] = append(s.unclaimed[j.body], j)
	}
	var alone *time.Timer
	alone = time.AfterFunc(unclaimedFor, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if j.alone == alone {
			s.forgetUnclaimedLocked(j)
			j.cancel(s.abandonCause(j))
		}
	})
	j.alone = alone
}

// abandonCause is the cause of the end of a job whose id no caller here got. Another process
// may have found the line of a call with an Idempotency-Key, or will: then the line is left
// to the journal.
func (s *Server) abandonCause(j *job) error {
	if j.named && s.opts.Journal.Enabled() {
		return errUnclaimed
	}
	return ErrWithdrawn
}

// inner returns the call that the goroutine of a job makes: without a deadline, since
// the caller waits elsewhere, and without what only this caller's connection has.
func (s *Server) inner(req *http.Request, j *job, body []byte) *http.Request {
	by := *caller.Of(req.Context())
	by.Realtime = nil // asks for room on the caller's connection
	ctx := context.WithValue(j.ctx, markKey{}, &Mark{ID: j.id, Line: j.line, Discard: j.discard, Sent: func(recorded string) { s.noteSent(j, recorded) }})
	ctx = caller.Follow(ctx, &by, &observer{s, j})
	inner := req.Clone(ctx)
	inner.Body, inner.GetBody, inner.ContentLength = &onceBody{rest: bytes.NewReader(body)}, nil, int64(len(body))
	inner.Cancel, inner.TLS = nil, nil //nolint:staticcheck // of the caller, who leaves
	inner.Header.Del("Content-Encoding")
	return inner
}

// A onceBody keeps no bytes once it was read and closed: the call has a copy, and waits
// for hours. Close may be called while Read runs, as when the call is cancelled.
type onceBody struct {
	mu   sync.Mutex
	rest *bytes.Reader // nil: the body was closed
}

// Read implements io.Reader.
func (b *onceBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rest == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.rest.Read(p)
}

// Close implements io.Closer.
func (b *onceBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rest = nil
	return nil
}

// An observer reports to the caller of Start, who may have left.
type observer struct {
	server *Server
	job    *job
}

// Waiting implements caller.Observer.
func (o *observer) Waiting(c caller.Call) {
	o.server.mu.Lock()
	o.job.name = func() string { batchID, _ := c.Name(); return batchID }
	o.server.mu.Unlock()
	select {
	case o.job.waiting <- c:
	default:
	}
}

// Hold implements caller.Observer: the request of the caller holds the body until release.
func (o *observer) Hold() (release func()) {
	release, o.job.free = o.job.free, nil
	return release
}

// start runs a job in a goroutine, or ends the job if the Transport is closing.
func (s *Server) start(j *job, run func()) {
	if !s.opts.Start(run) {
		s.settle(j, s.opts.Err)
	}
}

// settle ends a job that does not run.
func (s *Server) settle(j *job, err error) {
	j.result.err = err
	s.drop(j)
	close(j.ended)
	j.cancel(nil)
	j.freeBody()
}

// freeBody gives the bytes of the body back, unless the Transport holds the body.
func (j *job) freeBody() {
	if j.free != nil {
		j.free()
	}
}

// run makes the call of a job, and keeps what a later question cannot find elsewhere.
func (s *Server) run(j *job, req *http.Request, roundTrip func(*http.Request) (*http.Response, error)) {
	defer j.cancel(nil)
	defer close(j.ended)
	defer s.drop(j)
	defer j.freeBody()
	j.result.err = errors.New("the call ended by a defect of autobatcher")
	res, err := roundTrip(req)
	if j.result.err = err; err != nil {
		return
	}
	defer res.Body.Close() //nolint:errcheck // read only
	if body, ok := res.Body.(interface{ MarkUndelivered() }); ok && !j.discard {
		body.MarkUndelivered() // the answer is kept, and the journal keeps the line
	}
	j.result.status, j.result.header = res.StatusCode, res.Header
	j.result.body, j.result.err = io.ReadAll(res.Body)
	if j.result.failed() && (j.recalled || j.isSent()) {
		s.end(j.failure())
	}
}

// drop forgets a job that has ended. A recalled job beside the job stays known.
func (s *Server) drop(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch known := s.jobs[j.key]; {
	case known == nil:
	case known != j:
		known.recall = nil // it was j
	case j.recall != nil:
		s.jobs[j.key] = j.recall
	default:
		delete(s.jobs, j.key)
	}
}

// withdrawJob ends a job, and a recalled job beside the job, whose answer nobody wants any more.
func (s *Server) withdrawJob(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.recall != nil {
		j.recall.cancel(ErrWithdrawn)
	}
	j.cancel(ErrWithdrawn)
}

// Release ends the waiting of this process, which is about to end, for calls that were
// sent or will be: with a journal, the lines stay for another process; without a journal,
// nobody can ask for the answers, and no further call is sent.
func (s *Server) Release() {
	for _, j := range s.releaseAll() {
		j.await(s.opts.Context) // before the calls that are queued are sent
	}
}

// releaseAll returns the jobs that end although they were not sent.
func (s *Server) releaseAll() (unsent []*job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releasing = true
	for j := range s.allLocked() {
		switch {
		case j.recalled || j.isSent():
			s.releaseLocked(j)
		case !s.opts.Journal.Enabled():
			j.cancel(s.opts.Err)
			unsent = append(unsent, j)
		}
	}
	return unsent
}

// Close is Release, and ends also the calls that were not sent.
func (s *Server) Close() {
	s.Release()
	s.mu.Lock()
	defer s.mu.Unlock()
	for j := range s.allLocked() {
		j.cancel(s.opts.Err)
	}
}

// allLocked returns the jobs that run. The caller holds s.mu.
func (s *Server) allLocked() iter.Seq[*job] {
	return func(yield func(*job) bool) {
		for _, j := range s.jobs {
			if !yield(j) || j.recall != nil && !yield(j.recall) {
				return
			}
		}
	}
}

func (s *Server) releaseLocked(j *job) {
	if s.opts.Journal.Enabled() {
		j.cancel(s.opts.Err)
	} else {
		j.cancel(ErrWithdrawn)
	}
}

// noteSent notes that the batch of a job was created, and whether the journal has the line:
// from then on another process may withdraw the line.
func (s *Server) noteSent(j *job, recorded string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(j.sent)
	j.seen = recorded
	if s.releasing {
		s.releaseLocked(j)
	}
}

// addLocked adds a job, and has a goroutine look whether another process withdraws lines.
// The caller holds s.mu.
func (s *Server) addLocked(j *job) {
	s.jobs[j.key] = j
	if !s.watching && s.opts.Journal.Enabled() {
		s.watching = s.opts.Start(s.watch)
	}
}

// watch ends the jobs whose lines another process has withdrawn, until no job is left.
func (s *Server) watch() {
	for retry.Sleep(s.opts.Context, withdrawnInterval) == nil {
		for account, jobs := range s.named() {
			s.endWithdrawn(account, jobs)
		}
		s.mu.Lock()
		s.watching = len(s.jobs) > 0
		more := s.watching
		s.mu.Unlock()
		if !more {
			return
		}
	}
}

// named returns the jobs by account, each with the id of its batch; without the jobs whose
// batch was not created yet.
func (s *Server) named() map[journal.Hash]map[*job]string {
	s.mu.Lock()
	jobs := make(map[*job]func() string, len(s.jobs))
	for _, j := range s.jobs {
		if j.name != nil {
			jobs[j] = j.name
		}
	}
	s.mu.Unlock()
	named := make(map[journal.Hash]map[*job]string)
	for j, name := range jobs { // name takes the lock of the registry
		batchID := name()
		if batchID == "" {
			continue
		}
		if named[j.key.Account] == nil {
			named[j.key.Account] = make(map[*job]string)
		}
		named[j.key.Account][j] = batchID
	}
	return named
}

// endWithdrawn ends those of the jobs whose lines the journal had and has no more. A call
// that is resubmitted, and a batch that a failing journal never had, are not withdrawn.
func (s *Server) endWithdrawn(account journal.Hash, jobs map[*job]string) {
	var fingerprints []journal.Hash
	for j := range jobs {
		fingerprints = append(fingerprints, j.key.Fingerprint)
	}
	found, err := s.opts.Journal.Find(s.opts.Context, account, fingerprints)
	if err != nil {
		return
	}
	there := make(map[journal.Hash]bool)
	for _, t := range found {
		for _, l := range t.Lines {
			there[l.Fingerprint] = true
		}
	}
	var withdrawn []*job
	s.mu.Lock()
	for j, batchID := range jobs {
		switch {
		case there[j.key.Fingerprint]:
			j.seen = batchID
		case j.seen == batchID && s.jobs[j.key] == j:
			withdrawn = append(withdrawn, j)
		}
	}
	s.mu.Unlock()
	for _, j := range withdrawn {
		if j.name() == jobs[j] {
			j.cancel(ErrWithdrawn)
		}
	}
}
