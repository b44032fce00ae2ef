// Package autobatcher answers ordinary OpenAI calls at batch price.
//
// A [Transport] is an [http.RoundTripper]. Installed in any http.Client, it
// intercepts POSTs to …/chat/completions, …/embeddings and …/responses, writes
// each on a line of a batch file, runs the batch through the provider's Batch
// API, and answers the call with the very response its line got. Everything
// else passes through untouched. The code that makes the calls stays as it is:
//
//	transport, err := autobatcher.New(autobatcher.Options{})
//	if err != nil {
//		log.Fatal(err)
//	}
//	defer transport.Close()
//	client := openai.NewClient(option.WithHTTPClient(transport.Client()))
//
// For most programs that is all. Make the calls concurrently, one goroutine
// each: calls that are made one after the other ride in a batch each. Give the
// client no timeout, or one of hours: a call takes as long as its batch.
//
// Base URL and credential come from each call, so one Transport serves any
// number of providers and keys. Calls share a batch only where all of that is
// equal; see [Options] for when a batch is sent.
//
// # What comes back
//
// A call gets the status and the body of its own line, byte for byte, so that
// a 400 or 429 inside a batch reaches an SDK as the error it knows. A call with
// "stream": true gets its finished answer as a stream of events. What the batch
// itself did to a call is a response too, in OpenAI's error shape: 424 with a
// code such as batch_expired, batch_cancelled, batch_failed or
// batch_line_missing. No SDK retries a 424, and so none pays twice. Go errors
// are left for the end of the caller's context and for [ErrClosed].
//
// Each batched response carries the headers Autobatcher-Batch-Id and
// Autobatcher-Custom-Id.
//
// # Per call
//
// These request headers are read and removed before anything is sent:
//
//	Autobatcher-Mode: realtime           pass this call through, at full price
//	Autobatcher-Completion-Window: 24h   instead of Options.CompletionWindow
//	Autobatcher-Deadline: 30m            a 424 if the answer is not here by then
//
// # Cancellation
//
// A caller whose context ends gets its error at once. If its call was not sent
// yet, it never will be. If it was, the line stays open: the same call again
// (same credential, URL and body, as an SDK's retry is) takes the line over
// instead of paying for another, or gets the answer that came meanwhile. Calls
// that are alive side by side are never merged, however alike they are. When a
// batch has had no caller for two minutes, it is cancelled upstream.
//
// # Concurrency
//
// All methods may be called concurrently. A batch is one goroutine of the
// Transport; none outlives Close.
//
// # Testing
//
// Package batchtest is a Batch API server to test against, without a network
// and in virtual time if you like.
package autobatcher

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/ledger"
	"github.com/autobatcher/autobatcher/internal/pace"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// ErrClosed is wrapped by the error of every call that a closed Transport
// cannot answer.
var ErrClosed = errors.New("autobatcher: transport closed")

// Options configure a Transport. The zero Options work. New refuses values out
// of bounds; negative values are out of bounds except where a field gives them
// a meaning.
type Options struct {
	// Base sends the requests: files, batches, and the calls that pass
	// through. Default: http.DefaultTransport.
	Base http.RoundTripper

	// BatchSize is how many calls trigger a batch at once, before its window
	// ends. It is also capped by what the provider takes in one file. Default: 1000.
	BatchSize int

	// BatchWindow is how long a batch collects calls, counted from its first
	// call. Default: 10 s.
	BatchWindow time.Duration

	// BatchBytes is the size of input file, in bytes, that triggers a batch; a
	// call that would make a file larger opens the next one. It is also capped
	// by the provider's own limit. Default: the provider's limit.
	BatchBytes int64

	// PollInterval is how often a running batch is looked at, unless the
	// provider asks for less. Default: 5 s.
	PollInterval time.Duration

	// CompletionWindow is the deadline and price tier asked of the provider.
	// Any string is passed on. Default: "1h" at Doubleword, "24h" elsewhere.
	CompletionWindow string

	// Metadata is attached to every batch and to its events. OpenAI allows 16
	// pairs, keys of 64 and values of 512 characters.
	Metadata map[string]string

	// CancelOnClose makes Close cancel the batches that still run upstream.
	// Default: they run on, and are paid for.
	CancelOnClose bool

	// AbandonAfter is how long a running batch may be without any caller before
	// it is cancelled upstream. Default: 2 min. Negative: never.
	AbandonAfter time.Duration

	// KeepFor is how long an answer is kept, in memory, that came after its
	// caller had gone; the same call again gets it. At most 64 MiB are kept,
	// the oldest go first. Default: 24 h. Negative: none is kept.
	KeepFor time.Duration

	// Resubmits is how often a call rides again that its batch ended without
	// answering: expired, cancelled, missing from the results. Default: 1.
	// Negative: never, the call fails.
	Resubmits int

	// Escalate says when a call is sent in real time, once and at full price,
	// instead of failing or being late. Default: EscalateNever.
	Escalate Escalation

	// EscalateMargin is how long before its deadline (its context's, or that of
	// the header Autobatcher-Deadline) a call is escalated by EscalateDeadline.
	// Default: 1 min.
	EscalateMargin time.Duration

	// EscalateLimit is how many calls may be escalated in any hour; beyond it a
	// call fails or is late after all. Default: 100. Negative: no limit.
	EscalateLimit int

	// Files says what becomes of a batch's files at the provider. Default:
	// FilesKeep.
	Files FilePolicy

	// Journal remembers what was paid for beyond the life of this process: the
	// same call finds its line again after a crash, and at another replica
	// that shares the journal. The caller closes it, after the Transport. Lines
	// and answers whose callers have gone are then kept there, and at the
	// provider, instead of in memory. Default: none.
	Journal journal.Store

	// JournalRequired makes calls fail (503, code journal_failed) rather than
	// go on without a journal that fails. Default: they go on, and it is logged.
	JournalRequired bool

	// OnEvent is told what happens to batches. It is called by the goroutine
	// of the batch, in order for one batch and concurrently for several, and
	// holds that batch up while it runs; of a call that is escalated because its
	// deadline is near, it is told by that call's goroutine. It must not call
	// Close or Shutdown. A panic in it is logged and otherwise ignored.
	OnEvent func(Event)

	// Logger is told what an operator would want to know. It never sees a
	// credential, a prompt or an answer. Default: nothing is logged.
	Logger *slog.Logger

	// Provider says what the provider accepts. Default: told from each call's
	// host; an unknown host is treated as carefully as OpenAI.
	Provider *provider.Profile
}

// Escalation says when a call is sent in real time after all.
type Escalation string

const (
	EscalateNever    Escalation = "never"    // a batch's failure is the call's
	EscalateFailed   Escalation = "failed"   // a call that its batch could not answer
	EscalateDeadline Escalation = "deadline" // such a call, and one whose deadline comes before its batch's end
)

// FilePolicy says what becomes of a batch's files at the provider.
type FilePolicy string

const (
	FilesKeep   FilePolicy = "keep"   // the provider's own rule holds: at OpenAI results live for 30 days
	FilesExpire FilePolicy = "expire" // the provider is asked to delete them after three days, where it can
	FilesDelete FilePolicy = "delete" // input and results are deleted once the batch has ended and every line was delivered
)

// fileExpiry is longer than a batch takes, with a weekend to come back to it.
const fileExpiry = 72 * time.Hour

func (o *Options) fileExpiry() time.Duration {
	if o.Files == FilesExpire {
		return fileExpiry
	}
	return 0
}

const (
	defaultResubmits      = 1
	defaultEscalateMargin = time.Minute
	defaultEscalateLimit  = 100
	defaultBatchSize      = 1000
	defaultBatchWindow    = 10 * time.Second
	defaultPollInterval   = 5 * time.Second
	defaultAbandonAfter   = 2 * time.Minute
	defaultKeepFor        = 24 * time.Hour
)

func (o Options) withDefaults() Options {
	if o.Base == nil {
		o.Base = http.DefaultTransport
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&o.BatchSize, defaultBatchSize)
	setDefault(&o.BatchWindow, defaultBatchWindow)
	setDefault(&o.PollInterval, defaultPollInterval)
	setDefault(&o.AbandonAfter, defaultAbandonAfter)
	setDefault(&o.KeepFor, defaultKeepFor)
	setDefault(&o.Resubmits, defaultResubmits)
	setDefault(&o.Escalate, EscalateNever)
	setDefault(&o.EscalateMargin, defaultEscalateMargin)
	setDefault(&o.EscalateLimit, defaultEscalateLimit)
	setDefault(&o.Files, FilesKeep)
	o.Metadata = maps.Clone(o.Metadata)
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (o *Options) validate() error {
	switch {
	case o.BatchSize < 1:
		return fmt.Errorf("autobatcher: Options.BatchSize is %d; it must be at least 1, or 0 for %d", o.BatchSize, defaultBatchSize)
	case o.BatchWindow < 0:
		return fmt.Errorf("autobatcher: Options.BatchWindow is %v; it must not be negative; 0 means %v", o.BatchWindow, defaultBatchWindow)
	case o.BatchBytes < 0:
		return fmt.Errorf("autobatcher: Options.BatchBytes is %d; it must not be negative; 0 means the provider's limit", o.BatchBytes)
	case o.PollInterval < 0:
		return fmt.Errorf("autobatcher: Options.PollInterval is %v; it must not be negative; 0 means %v", o.PollInterval, defaultPollInterval)
	case o.EscalateMargin < 0:
		return fmt.Errorf("autobatcher: Options.EscalateMargin is %v; it must not be negative; 0 means %v", o.EscalateMargin, defaultEscalateMargin)
	case !slices.Contains([]Escalation{EscalateNever, EscalateFailed, EscalateDeadline}, o.Escalate):
		return fmt.Errorf("autobatcher: Options.Escalate is %q; it must be never, failed or deadline", o.Escalate)
	case !slices.Contains([]FilePolicy{FilesKeep, FilesExpire, FilesDelete}, o.Files):
		return fmt.Errorf("autobatcher: Options.Files is %q; it must be keep, expire or delete", o.Files)
	case o.Provider != nil:
		return o.validateProvider()
	}
	return nil
}

func (o *Options) validateProvider() error {
	if o.Provider.Refusal != "" {
		return fmt.Errorf("autobatcher: Options.Provider is %q: %s", o.Provider.Name, o.Provider.Refusal)
	}
	if err := o.Provider.Validate(); err != nil {
		return fmt.Errorf("autobatcher: Options.Provider: %w", err)
	}
	if err := o.Provider.CheckMetadata(o.Metadata); err != nil {
		return fmt.Errorf("autobatcher: Options.Metadata: %w", err)
	}
	if o.CompletionWindow != "" {
		if err := o.Provider.CheckWindow(o.CompletionWindow); err != nil {
			return fmt.Errorf("autobatcher: Options.CompletionWindow: %w", err)
		}
	}
	return nil
}

// A Transport is an http.RoundTripper that batches. Make one with New, and
// Close it.
type Transport struct {
	opts Options
	log  *slog.Logger

	ctx     context.Context // ends with Close; every batch's context comes from it
	stop    context.CancelCauseFunc
	lasting context.Context // ends a while later; for what the journal must know
	rest    context.CancelFunc
	work    sync.WaitGroup // every goroutine of the Transport
	end     sync.Once      // Close does its work once

	drained chan struct{} // closed when no caller is left after Shutdown began

	mu       sync.Mutex              // never held across the network or a callback
	closed   bool                    // takes no new calls
	ending   bool                    // starts no new goroutines
	waiting  int                     // callers inside RoundTrip
	empty    bool                    // drained was closed
	reading  int                     // answers of journalled lines that are being read
	untold   map[*batch]struct{}     // batches with notes that the journal has not got
	seq      int                     // how many batches there were
	queues   map[key]*batch          // the batches that still collect
	batches  map[*batch]struct{}     // every batch that has not ended
	left     map[fingerprint][]*call // lines and answers whose callers have gone
	kept     []*call                 // the answers among them, oldest first
	keptSize int64
	stats    Stats // its counters
	secret   [32]byte
	profiles map[string]*provider.Profile // by scheme, host and path of a base URL

	gates     pace.Set[*pace.Gate]        // by account and what may share a file
	creations pace.Set[*pace.Hourly]      // by account
	lookouts  pace.Set[*batchapi.Lookout] // by account
	escalated *pace.Hourly

	ledger   *ledger.Ledger           // nil without a journal
	byRef    map[string]*batch        // journalled batches that others may still join; guarded by mu
	accounts map[journal.Hash]account // what can resume the batches of each account; guarded by mu
}

// New returns a Transport. The error names the field that is out of bounds.
func New(o Options) (*Transport, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	t := &Transport{
		opts:     o,
		log:      o.Logger,
		drained:  make(chan struct{}),
		queues:   make(map[key]*batch),
		batches:  make(map[*batch]struct{}),
		left:     make(map[fingerprint][]*call),
		byRef:    make(map[string]*batch),
		accounts: make(map[journal.Hash]account),
		untold:   make(map[*batch]struct{}),
		profiles: make(map[string]*provider.Profile),
	}
	rand.Read(t.secret[:])
	t.escalated = pace.NewHourly(o.EscalateLimit)
	t.ctx, t.stop = context.WithCancelCause(context.Background())
	t.lasting, t.rest = lingering(t.ctx, linger)
	if err := t.openLedger(); err != nil {
		return nil, err
	}
	return t, nil
}

// openLedger makes the journal ready. Without one that works, the Transport
// either goes on in memory or, if the journal is required, not at all.
func (t *Transport) openLedger() error {
	if t.opts.Journal == nil {
		return nil
	}
	l, err := ledger.Open(t.opts.Journal, ledger.Options{
		Required: t.opts.JournalRequired, KeepFor: max(t.opts.KeepFor, 0), Logger: t.log, Lapsed: t.lapsed,
	})
	switch {
	case err == nil:
		t.ledger, t.secret = l, l.Key()
		t.work.Go(func() { l.Live(t.ctx) })
		t.work.Go(func() { l.Sweep(t.ctx) })
		t.work.Go(t.tend)
	case t.opts.JournalRequired:
		return fmt.Errorf("autobatcher: Options.Journal: %w", err)
	default:
		t.log.Error("the journal does not work, going on without it: what a crash leaves behind will be paid for again", "error", err)
	}
	return nil
}

// Client returns an http.Client that uses the Transport and has no timeout.
func (t *Transport) Client() *http.Client { return &http.Client{Transport: t} }

// RoundTrip answers a batched call when its batch has; everything else goes to
// Options.Base at once. See the package documentation for what comes back.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	c, pass, err := t.route(req)
	switch {
	case err != nil:
		return refuse(req, err)
	case pass != nil:
		return t.opts.Base.RoundTrip(pass)
	}
	w, err := t.enter(c)
	if err != nil {
		return nil, err
	}
	return t.await(req, c, w)
}

// await holds the caller until its call ends, one way or another.
func (t *Transport) await(req *http.Request, c *call, w *waiter) (*http.Response, error) {
	began := time.Now()
	deadline, stop := after(c.deadline)
	defer stop()
	urgent, stop := after(t.untilUrgent(req, c))
	defer stop()
	answered := func(a *answer) (*http.Response, error) {
		if a.realtime {
			return t.realtime(req, c, began, func() {})
		}
		return t.respond(req, c, a)
	}
	const near = "its deadline is near"
	for {
		select {
		case a := <-w.answer:
			return answered(a)
		case <-urgent:
			if len(w.answer) > 0 || !t.mayEscalate(near) {
				urgent = nil
				continue
			}
			left, found := t.leave(w)
			if found != nil {
				return answered(found)
			}
			t.tellEscalated(cmp.Or(left, c), near)
			return t.realtime(req, c, began, func() { t.dismiss(left) })
		case <-deadline:
			left, found := t.leave(w)
			if found != nil {
				return answered(found)
			}
			batchID := ""
			if left != nil {
				batchID, _ = t.nameOf(left)
			}
			return c.late(batchID).Response(req), nil
		case <-req.Context().Done():
			t.hangUp(w)
			return nil, contextError(req.Context())
		case <-req.Cancel: //nolint:staticcheck // http.Client.Timeout of old still arrives here
			t.hangUp(w)
			return nil, context.Canceled
		}
	}
}

// after is a channel that receives once d has passed; none if d is not positive.
func after(d time.Duration) (<-chan time.Time, func() bool) {
	if d <= 0 {
		return nil, func() bool { return true }
	}
	timer := time.NewTimer(d)
	return timer.C, timer.Stop
}

// untilUrgent is how long a call can wait for its batch before it has to be
// sent in real time to meet its deadline; 0 if it never has to.
func (t *Transport) untilUrgent(req *http.Request, c *call) time.Duration {
	if t.opts.Escalate != EscalateDeadline {
		return 0
	}
	left := c.deadline
	if at, ok := req.Context().Deadline(); ok && (left == 0 || time.Until(at) < left) {
		left = time.Until(at)
	}
	if left == 0 {
		return 0
	}
	return max(left-t.opts.EscalateMargin, 1)
}

// late is the answer for a call whose deadline has come.
func (c *call) late(batchID string) *answer {
	what := fmt.Sprintf("the call's deadline of %v came before it was sent", c.deadline)
	if batchID != "" {
		what = fmt.Sprintf("batch %s did not answer within the call's deadline of %v; the same call again takes over its line", batchID, c.deadline)
	}
	a := failure(http.StatusFailedDependency, "batch_deadline_exceeded", what)
	a.BatchID = batchID
	return a
}

// mayEscalate reports whether a call may be sent in real time for that reason,
// and takes it from the budget.
func (t *Transport) mayEscalate(reason string) bool {
	if t.opts.Escalate == EscalateNever || t.ctx.Err() != nil {
		return false
	}
	if wait, ok := t.escalated.Take(); !ok {
		t.log.Warn("call not escalated: the hour's budget is spent", "reason", reason, "again in", wait)
		return false
	}
	return true
}

// tellEscalated tells that a call is sent in real time.
func (t *Transport) tellEscalated(c *call, reason string) {
	batchID, customID := t.nameOf(c)
	t.log.Info("call escalated", "reason", reason, "batch", batchID, "custom_id", customID)
	t.emit(Event{Name: CallEscalated, BatchID: batchID, Endpoint: c.URL, CustomID: customID, Models: []string{c.model}, Error: reason})
}

// nameOf is how the provider knows a call that was queued.
func (t *Transport) nameOf(c *call) (batchID, customID string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return c.batch.id, c.ID
}

// realtime sends the call as its caller made it, once. Its deadline holds on,
// counted from when the call began. served is called when the caller has read
// the answer to its end.
func (t *Transport) realtime(req *http.Request, c *call, began time.Time, served func()) (*http.Response, error) {
	ctx, cancel := req.Context(), func() {}
	if c.deadline > 0 {
		ctx, cancel = context.WithDeadline(ctx, began.Add(c.deadline))
	}
	res, err := t.opts.Base.RoundTrip(withBody(passThrough(req), c.raw).WithContext(ctx))
	if err == nil {
		res.Header.Set(headerMode, "realtime")
		res.Request = req
		if res.StatusCode >= 300 {
			served = func() {} // the same call again may fare better with its line
		}
		res.Body = &endingBody{res.Body, sync.OnceFunc(served), cancel}
		return res, nil
	}
	defer cancel()
	switch {
	case req.Context().Err() != nil:
		return nil, contextError(req.Context())
	case ctx.Err() != nil:
		return failure(http.StatusFailedDependency, "batch_deadline_exceeded",
			fmt.Sprintf("the call was sent in real time, and not answered within its deadline of %v", c.deadline)).Response(req), nil
	}
	return failure(http.StatusBadGateway, "realtime_failed", "the call was sent in real time, and failed: "+err.Error()).Response(req), nil
}

// An endingBody tells when it was read to its end, and frees what its answer
// held on to.
type endingBody struct {
	io.ReadCloser
	whole, end func()
}

func (b *endingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF { //nolint:errorlint // as the contract of io.Reader says it
		b.whole()
	}
	return n, err
}

func (b *endingBody) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

// contextError is the cause of ctx's end, and matches ctx.Err() too.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// CloseIdleConnections closes those of Options.Base, as http.Client's method of
// that name expects of a transport.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.opts.Base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// Flush sends what is queued now, without waiting for windows to end. It
// returns when every such batch was created or refused, with nil or what went
// wrong (the callers are told in any case), or with the error of ctx.
func (t *Transport) Flush(ctx context.Context) error {
	var errs []error
	for _, b := range t.dispatchAll() {
		select {
		case <-b.submitted:
			errs = append(errs, b.submitErr)
		case <-ctx.Done():
			return contextError(ctx)
		}
	}
	return errors.Join(errs...)
}

// Shutdown ends the Transport gracefully: it takes no new calls, sends what is
// queued, waits until every call is answered, and closes. If ctx ends first, it
// closes at once and returns the error of ctx.
func (t *Transport) Shutdown(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	t.callers(0)
	t.mu.Unlock()
	t.dispatchAll()
	var err error
	select {
	case <-t.drained: // Close lets the last answers be read
	case <-ctx.Done():
		err = contextError(ctx)
	}
	return errors.Join(err, t.Close())
}

// concludePatience is how long Close and Shutdown wait for what has just been
// answered: callers that read, batches that tell of their end.
const concludePatience = 2 * time.Second

// conclude lets the batches finish that have ended upstream, and callers read
// the answers they were given, so that the events and the journal tell so.
func (t *Transport) conclude(ctx context.Context) {
	t.mu.Lock()
	all := t.allBatches()
	t.mu.Unlock()
	for _, b := range all {
		t.mu.Lock()
		over := b.over && len(b.open) == 0
		t.mu.Unlock()
		if over {
			select {
			case <-b.done:
			case <-ctx.Done():
			}
		}
	}
	for t.beingRead() > 0 && batchapi.Sleep(ctx, glance) == nil {
		continue
	}
}

// glance is how often Close looks whether the last answers have been read.
const glance = 10 * time.Millisecond

func (t *Transport) beingRead() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reading
}

// callers counts callers in and out, and notes when a Transport that takes no
// new calls has none left. The caller holds t.mu.
func (t *Transport) callers(change int) {
	t.waiting += change
	if t.closed && t.waiting == 0 && !t.empty {
		t.empty = true
		close(t.drained)
	}
}

// cancelPatience bounds all the cancelling that Close does. Kubernetes gives a
// process 30 s to end.
const cancelPatience = 10 * time.Second

// Close ends the Transport at once: calls that are waiting get an error that
// wraps ErrClosed. With Options.CancelOnClose it first asks the provider to
// cancel the batches that run, for at most ten seconds; otherwise they run on.
// The error is always nil.
func (t *Transport) Close() error {
	t.end.Do(t.close)
	return nil
}

func (t *Transport) close() {
	ctx, cancel := context.WithTimeout(context.Background(), concludePatience)
	defer cancel()
	t.conclude(ctx)
	t.mu.Lock()
	t.closed, t.ending = true, true
	pending, active := t.census()
	ids := batchIDs(active)
	t.mu.Unlock()
	t.emit(Event{Name: ClientClosing, PendingRequests: pending, ActiveBatchIDs: ids, CancelOnClose: t.opts.CancelOnClose})
	t.stop(ErrClosed)
	defer t.rest()
	t.work.Wait() // no batch moves from here on, so that what follows is in order
	defer t.ledger.Leave()
	t.ledger.Renew()
	t.writeUntold(t.lasting)

	t.mu.Lock()
	_, active = t.census() // a batch may have been created meanwhile
	all := t.allBatches()
	t.mu.Unlock()
	for _, b := range all {
		if b.id == "" {
			b.abandon(&answer{err: fmt.Errorf("%w before the request to %s was submitted", ErrClosed, b.path)})
		}
	}
	if t.opts.CancelOnClose {
		t.cancelAll(active)
	}
	for _, b := range active {
		b.abandon(&answer{err: fmt.Errorf("%w before batch %s completed", ErrClosed, b.id)})
	}
	last, cancel := context.WithTimeout(context.Background(), linger)
	defer cancel()
	t.writeUntold(last) // what callers have read since
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.batches)
}

// cancelAll cancels the batches upstream, a few at a time.
func (t *Transport) cancelAll(batches []*batch) {
	ctx, cancel := context.WithTimeout(context.Background(), cancelPatience)
	defer cancel()
	slots := make(chan struct{}, 8)
	var wg sync.WaitGroup
	for _, b := range batches {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			b.releaseAll(ctx)
			if t.ledger.Abandon(ctx, b.ref) {
				b.cancelUpstream(ctx)
			}
		})
	}
	wg.Wait()
}

// census counts the calls that were not sent yet and lists the batches that
// run upstream, in the order they were opened. The caller holds t.mu.
func (t *Transport) census() (pending int, active []*batch) {
	for _, b := range t.allBatches() {
		switch {
		case b.id != "":
			active = append(active, b)
		case b.open != nil:
			pending += len(b.open)
		default:
			pending += b.queued
		}
	}
	return pending, active
}

// allBatches lists the batches that have not ended, in the order they were
// opened. The caller holds t.mu.
func (t *Transport) allBatches() []*batch {
	all := slices.Collect(maps.Keys(t.batches))
	slices.SortFunc(all, func(a, b *batch) int { return a.seq - b.seq })
	return all
}

// batchIDs are the ids of batches. The caller holds t.mu.
func batchIDs(batches []*batch) []string {
	ids := make([]string, 0, len(batches))
	for _, b := range batches {
		ids = append(ids, b.id)
	}
	return ids
}

// Stats is what a Transport holds at one moment. It names no credential.
type Stats struct {
	Queued   int   // calls that were not sent yet
	Running  int   // calls whose line was sent and whose caller waits
	Answered int64 // callers that got their line's answer, since New
	Failed   int64 // callers that got an error of the batch's or ours, since New
	Left     int64 // callers that waited no longer when their answer came, since New
	Queues   []QueueStats
}

// QueueStats is one batch that is collecting.
type QueueStats struct {
	Payer    string // tells credentials apart; differs from process to process
	Upstream string // base URL, without its query
	Endpoint string
	Models   []string
	Calls    int
	Bytes    int64
	Opened   time.Time
}

// Stats returns a snapshot.
func (t *Transport) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	for _, b := range t.allBatches() {
		if b.id != "" {
			s.Running += b.waiting
			continue
		}
		s.Queued += b.awaited()
		s.Queues = append(s.Queues, b.queueStats())
	}
	return s
}

// queueStats describes a batch that was not sent yet. The caller holds t.mu.
func (b *batch) queueStats() QueueStats {
	upstream, _, _ := strings.Cut(b.key.base, "?")
	q := QueueStats{
		Payer: b.t.payerName(b.key.payer), Upstream: upstream, Endpoint: b.path,
		Calls: b.awaited(), Bytes: b.bytes, Opened: b.opened,
	}
	for _, c := range b.calls {
		if c != nil && !slices.Contains(q.Models, c.model) {
			q.Models = append(q.Models, c.model)
		}
	}
	slices.Sort(q.Models)
	return q
}

// payerName is a name for a credential that says nothing about it: nobody else
// has the key it is made with.
func (t *Transport) payerName(payer string) string {
	mac := hmac.New(sha256.New, t.secret[:])
	mac.Write([]byte(payer))
	return hex.EncodeToString(mac.Sum(nil)[:4])
}
