// Package autobatcher answers ordinary OpenAI calls at batch price.
//
// A [Transport] is an [http.RoundTripper]. Installed in any http.Client, the Transport
// intercepts POSTs to …/chat/completions, …/embeddings and …/responses, and to the other
// endpoints that the provider batches, such as …/completions, …/moderations and …/images/edits
// at OpenAI ([provider.Profile].Endpoints), writes each call on a line of a batch file, runs
// the batch through the provider's Batch API, and answers the call with the response that the
// provider gave for the line. All other requests pass through unchanged, as do forms
// (multipart), since no line can hold a form. The code that makes the calls stays as before:
//
//	transport, err := autobatcher.New(autobatcher.Options{})
//	if err != nil {
//		log.Fatal(err)
//	}
//	defer transport.Close()
//	client := openai.NewClient(option.WithHTTPClient(transport.Client()))
//
// Most programs need nothing else. Make the calls concurrently, each in a goroutine: calls
// that are made in sequence become a batch each. A batch holds at most as many calls as the
// program makes at once, so a limit of 8, such as errgroup.SetLimit(8), makes batches of 8
// calls. Make all calls at once, or at least Options.BatchSize calls: a waiting call costs a
// goroutine and its body. After the last call, [Transport.NoMoreCalls] sends what waits at
// once. Give the client no timeout, or a timeout of hours: a call takes as long as its batch.
//
// Base URL and credential come from each call, so a Transport serves any number of providers
// and keys. Only calls with the same base URL, account and completion window share a batch;
// see [Options] for when a batch is sent, and for accounts whose credentials change.
//
// # What comes back
//
// A call gets the status and the body of its own line, byte for byte, so that SDKs recognize a
// 400 or 429 inside a batch. A call with "stream": true gets its finished answer as a stream
// of events. Failures of the batch are responses, too, in OpenAI's error shape: 424 with a
// code such as batch_expired, batch_cancelled, batch_failed or batch_line_missing. SDKs do not
// retry a 424, and so do not pay twice. RoundTrip returns a Go error only if the caller's
// context ends, if the body of the request cannot be read, or if the Transport is closed
// ([ErrClosed]).
//
// Each batched response has the headers Autobatcher-Batch-Id and Autobatcher-Custom-Id, and
// Autobatcher-Cost with the estimated cost in US dollars where the price of the model is
// known.
//
// # Per call
//
// The Transport reads these request headers, and removes the headers before a request is sent:
//
//	Autobatcher-Mode: flex               batch, flex, auto or realtime, instead of Options.Mode
//	Autobatcher-Completion-Window: 24h   instead of Options.CompletionWindow
//	Autobatcher-Deadline: 30m            a 424 if the answer is not here by then
//
// # Cancellation
//
// A caller whose context ends gets its error at once. A call that was not sent yet is dropped.
// A line that was sent stays: a retry (a call with the same account, URL and body, as SDKs
// send) takes over the line instead of paying for another, or gets the answer that came
// meanwhile. Calls of callers that still wait are never merged, even if the calls are equal. A
// batch without callers for two minutes ([Options.AbandonAfter]) is cancelled at the provider.
//
// # Costs
//
// [Transport.Stats] and the event [BatchCost] have estimates of cost and savings, from the
// token counts in the answers and from a table of public prices ([Options.Prices]). The cost
// of a model that is not in the table is unknown, not zero. [Options.Budget] refuses calls
// (402) that may cost more than what is left.
//
// # Concurrency
//
// All methods may be called concurrently. Each batch runs in a goroutine of the Transport,
// which ends before Close returns. [Options.OnEvent] is called in a further goroutine, for
// which Close waits two seconds.
//
// # Testing
//
// Package batchtest is a Batch API server for tests: no network, virtual time if wanted.
package autobatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher/internal/accounts"
	"github.com/autobatcher/autobatcher/internal/aside"
	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/background"
	"github.com/autobatcher/autobatcher/internal/budget"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/collector"
	"github.com/autobatcher/autobatcher/internal/endpoint"
	"github.com/autobatcher/autobatcher/internal/eventqueue"
	"github.com/autobatcher/autobatcher/internal/failure"
	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/realtime"
	"github.com/autobatcher/autobatcher/internal/registry"
	"github.com/autobatcher/autobatcher/internal/retry"
)

// ErrClosed is wrapped by the error of every call that a closed Transport
// cannot answer.
var ErrClosed = errors.New("autobatcher: transport closed")

// A Transport is an http.RoundTripper that batches. Make one with New, and
// Close it. All methods may be called concurrently.
type Transport struct {
	opts Options

	ctx         context.Context // ends with Close; every batch's context comes from it
	stop        context.CancelCauseFunc
	journalCtx  context.Context // ends closeGrace later, for creates that are under way and for journal updates
	stopJournal context.CancelFunc
	work        sync.WaitGroup // every goroutine of the Transport
	closing     sync.Once      // Close does its work once

	router     *router
	collector  *collector.Collector[key, *call]
	registry   *registry.Registry[request]
	session    *journalsession.Session
	events     *eventqueue.Queue[Event]
	escalator  *escalator
	background *background.Server

	mu      sync.Mutex       // never held across the network, the journal or a callback
	ending  bool             // starts no new goroutines
	seq     int              // the number of batches so far
	batches map[*batch]Event // the batches that have not ended, with their last events
}

// New returns a Transport. The error names the field that is out of bounds.
func New(o Options) (*Transport, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	meter, err := price.NewMeter(o.Prices, budget.New(o.Budget.USD, o.Budget.Daily), o.Logger)
	if err != nil {
		return nil, fmt.Errorf("autobatcher: Options.Prices: %w", err)
	}
	t := &Transport{opts: o, batches: make(map[*batch]Event)}
	t.ctx, t.stop = context.WithCancelCause(context.Background())
	t.journalCtx, t.stopJournal = retry.Outliving(t.ctx, closeGrace)
	t.collector = collector.New(t.entry, func(q *queue) bool { return t.startBatch(t.newBatch(q, collecting), false) }) // under the lock of the collector
	t.registry = registry.New(o.KeepFor, o.AbandonAfter, t.collector.Drop, func(q *request) bool { return q.key.flex() })
	t.events = eventqueue.New(o.OnEvent,
		func(e Event, p any) { logPanic(o.Logger, p, "OnEvent", "event", e.Name) },
		func() { o.Logger.Warn("OnEvent is too slow; events are dropped", "waiting", eventqueue.MaxPending) })
	t.session, err = journalsession.New(o.Journal, journalsession.Options{
		Required: o.JournalRequired, KeepFor: max(o.KeepFor, 0), Logger: o.Logger, Context: t.journalCtx, Start: t.start,
	})
	if err != nil {
		return nil, fmt.Errorf("autobatcher: Options.Journal: %w", err)
	}
	known := accounts.Options{
		Base: o.Base, Logger: o.Logger, Secret: t.session.Key(), Account: o.Account, Credential: o.Credential,
		Legacy: o.Journal != nil, Context: t.journalCtx,
		Retries: func(a *accounts.Account) journalsession.Retries { return retries{t, a} },
	}
	if o.Journal != nil {
		known.Added = t.session.Spaced(t.rescue)
	}
	t.router = &router{
		opts: &t.opts, accounts: accounts.New(known), meter: meter,
		endpoints:  endpoint.New(endpoint.Options{Profile: o.Provider, Metadata: o.Metadata, Window: o.CompletionWindow, Calls: o.BatchSize, Bytes: o.BatchBytes}),
		newBackend: func(l *accounts.Lane) backend.Backend { return l.Backend() },
	}
	t.escalator = &escalator{t: t, budget: realtime.NewBudget(o.EscalateLimit, meter, o.Logger)}
	t.background = background.New(background.Options{
		RoundTrip: t.RoundTrip, Recall: t.recall, Key: t.router.backgroundKey,
		Journal: t.session, KeepFor: o.KeepFor, Start: t.start, Context: t.ctx, Err: fmt.Errorf("%w; it takes no new calls", ErrClosed),
	})
	if t.opts.Journal != nil {
		t.start(func() { t.session.Run(t.ctx) })
		t.start(t.maintain)
	}
	return t, nil
}

// start runs f in a new goroutine, for which Close waits. It returns false if the
// Transport is closing.
func (t *Transport) start(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ending {
		return false
	}
	t.work.Go(f)
	return true
}

// Client returns an http.Client that uses the Transport and has no timeout.
func (t *Transport) Client() *http.Client { return &http.Client{Transport: t} }

// CloseIdleConnections closes those of Options.Base, as http.Client's method of
// that name expects of a transport.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.opts.Base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// RoundTrip answers a batched call when its batch has; everything else goes to
// Options.Base at once. See the package documentation for the responses.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if res, ok := t.background.Serve(req); ok {
		return res, nil
	}
	a := prepare(t, req)
	if asked, ok := errors.AsType[*background.Asked](a.err); ok {
		return t.background.Start(req, asked)
	}
	switch {
	case a.err != nil:
		return refuse(req, a.err)
	case a.pass != nil:
		return t.opts.Base.RoundTrip(a.pass)
	}
	return t.await(req, a.c, a.w)
}

// An arrival is what became of a request: the reason why the request cannot be answered,
// else a request to be passed through, else a call that waits.
type arrival struct {
	c    *call
	w    *waiter
	pass *http.Request
	err  error
}

// prepare makes a call of a request, and enters the call. The goroutine of a server,
// which may wait for a day, keeps its small stack.
func prepare(t *Transport, req *http.Request) arrival {
	if caller.ObserverOf(req.Context()) == nil {
		return t.enterRequest(req)
	}
	var a arrival
	aside.Run(func() { a = t.enterRequest(req) })
	return a
}

func (t *Transport) enterRequest(req *http.Request) (a arrival) {
	if a.c, a.pass, a.err = t.router.route(req); a.c == nil {
		return a
	}
	a.c.Freed = caller.Hold(req.Context())
	if a.w, a.err = t.enter(a.c); a.err == nil {
		announce(req, a.c, t.registry.NameOf)
	}
	return a
}

// announce notifies the Observer of a call that the call waits.
func announce(req *http.Request, c *call, nameOf func(*call) (batchID, customID string)) {
	if observer := caller.ObserverOf(req.Context()); observer != nil {
		observer.Waiting(caller.Call{Model: c.Request.model, Stream: c.Request.stream, Name: func() (string, string) { return nameOf(c) }})
	}
}

// await holds the caller until its call ends.
func (t *Transport) await(req *http.Request, c *call, w *waiter) (*http.Response, error) {
	defer func() { c.Request.raw = nil }() // a line without a caller is not sent again
	began := time.Now()
	deadline, stop := retry.After(c.Request.deadline)
	defer stop()
	untilUrgent, untilFlex := t.escalator.untilUrgent(req, c)
	urgent, stop := retry.After(untilUrgent)
	defer stop()
	climb, stop := retry.After(untilFlex)
	defer stop()
	for {
		select {
		case <-w.Ready:
			return t.answer(req, c, w.Answer(), began)
		case <-climb:
			climb = nil
			if len(w.Ready) == 0 {
				c, w = t.escalator.climb(req, c, w)
			}
		case <-urgent:
			urgent = nil
			if len(w.Ready) == 0 {
				if spending, ok := t.escalator.allow(c, deadlineNear, false); ok {
					return t.escalator.escalate(req, c, w, began, spending)
				}
			}
		case <-deadline:
			return t.tooLate(req, c, w, began)
		case <-req.Context().Done():
			t.disconnect(req, c, w)
			return nil, retry.ContextError(req.Context())
		case <-req.Cancel: //nolint:staticcheck // http.Client.Timeout of old still arrives here
			t.disconnect(req, c, w)
			return nil, context.Canceled
		}
	}
}

// tooLate answers a call whose deadline has come. await does not do so itself, since its
// goroutine would wait with room for failures on its stack.
func (t *Transport) tooLate(req *http.Request, c *call, w *waiter, began time.Time) (*http.Response, error) {
	if found := t.registry.Leave(w, false); found != nil {
		return t.answer(req, c, found, began)
	}
	batchID, _ := t.registry.NameOf(c)
	window := ""
	t.registry.InRealtime(c, func(r *request) { window = r.key.window })
	return failedAnswer(failure.Late(c.Request.deadline, window, batchID)).Response(req), nil
}

// answer gives the caller its answer, or gets one in real time.
func (t *Transport) answer(req *http.Request, c *call, a *answer, began time.Time) (*http.Response, error) {
	if a.Realtime {
		return t.escalator.send(req, c, a.Instead.ErrorMessage(), began, a.Spending, func(served, left bool) { t.registry.EndRealtime(a, served, left) })
	}
	return t.respond(req, c, a)
}

// disconnect is the leaving of a caller that would not read an answer: an answer
// that came at the same moment is kept for a retry. No retry comes for a call in the
// background that was withdrawn.
func (t *Transport) disconnect(req *http.Request, c *call, w *waiter) {
	switch found := t.registry.Leave(w, false); {
	case found == nil:
	case found.Realtime:
		t.registry.EndRealtime(found, false, true)
		t.registry.CallerLeft()
	case found.Err == nil:
		t.registry.Unread(found)
	}
	if errors.Is(context.Cause(req.Context()), background.ErrWithdrawn) {
		t.registry.Dismiss(c)
	}
}

// Wake says that the provider has announced the end of a batch, or of a response that
// runs in the background, as OpenAI and Doubleword do by webhooks. The Transport polls
// the batch at once. Wake does not block, and reports whether the Transport polls a batch
// with the id; other ids are harmless. While each of the last three batches of an account
// that ended was announced, the Transport polls the account's batches only every five
// minutes, or every Options.PollInterval if longer. At a provider with results of running
// batches, such as Doubleword, polls stay as frequent, since polls bring answers.
func (t *Transport) Wake(batchID string) bool { return t.router.accounts.Wake(batchID) }

// logPanic logs a panic in code of the user's that was recovered.
func logPanic(log *slog.Logger, p any, what string, args ...any) {
	log.Error(what+" panicked", append(args, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))...)
}
