package autobatcher

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/provider"
)

// A waiter is a caller inside RoundTrip. A call that takes over the line of
// another moves its waiter there.
type waiter struct {
	answer chan *answer // holds one, so that settling never waits
	call   *call        // guarded by Transport.mu
}

// A batch is one batch of calls, from the first of them to the last result. It
// is one goroutine, run, which reads from top to bottom; what others touch is
// guarded by Transport.mu.
type batch struct {
	t       *Transport
	seq     int
	opened  time.Time
	key     key
	profile *provider.Profile

	// Guarded by Transport.mu.
	calls   []*call          // while collecting: in the order they came, nil where one left
	queued  int              // how many of them are not nil
	bytes   int64            // of the input file so far
	inputs  int              // embedding inputs so far
	sealed  bool             // takes no more calls
	open    map[string]*call // once claimed: by custom id, those without an answer
	waiting int              // how many of the open ones have a caller
	lonely  *time.Timer      // runs while none has

	full      chan struct{} // closed when sealed
	abandoned chan struct{} // told when the batch was lonely for too long
	submitted chan struct{} // closed when the batch was created, or never will be
	submitErr error         // why it never will be; read after submitted

	// Owned by run, and by Close once run has ended.
	api        *batchapi.Client
	id         string // "" until created
	state      batchapi.Batch
	models     []string
	size       int    // how many lines were sent
	suffix     string // of the first line's endpoint
	path       string // the same as the line names it
	created    time.Time
	seen       bool      // told of at least once
	asked      bool      // for cancellation
	cancelling time.Time // since when the provider says so
	output     resultFile
	errors     resultFile
}

// enter queues a call, and returns the waiter that its answer will reach.
func (t *Transport) enter(c *call) (*waiter, error) {
	c.ID = uuid.NewString()
	w := &waiter{answer: make(chan *answer, 1), call: c}
	c.waiter = w
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fmt.Errorf("%w; it takes no new calls", ErrClosed)
	}
	b := t.queues[c.key]
	if b != nil && !b.fits(c) {
		b.seal()
		b = nil
	}
	if b == nil {
		b = t.newBatch(c)
		t.queues[c.key] = b
		t.work.Go(b.run)
	}
	b.add(c)
	return w, nil
}

// newBatch opens a batch for c and calls like it. The caller holds t.mu.
func (t *Transport) newBatch(c *call) *batch {
	t.seq++
	b := &batch{
		t:         t,
		seq:       t.seq,
		opened:    time.Now(),
		key:       c.key,
		profile:   c.profile,
		suffix:    c.suffix,
		path:      c.URL,
		full:      make(chan struct{}),
		abandoned: make(chan struct{}, 1),
		submitted: make(chan struct{}),
	}
	t.batches[b] = struct{}{}
	return b
}

// fits reports whether c may still join without breaking a limit. The caller
// holds t.mu.
func (b *batch) fits(c *call) bool {
	return b.queued == 0 ||
		b.bytes+int64(c.Size())+1 <= b.maxBytes() &&
			(b.profile.MaxInputs == 0 || b.inputs+c.inputs <= b.profile.MaxInputs)
}

// add queues c, and seals the batch that is full by now. The caller holds t.mu.
func (b *batch) add(c *call) {
	c.batch, c.place, c.key = b, len(b.calls), b.key // its strings are kept once
	b.calls = append(b.calls, c)
	b.queued++
	b.bytes += int64(c.Size()) + 1
	b.inputs += c.inputs
	if b.queued >= b.maxCalls() || b.bytes >= b.maxBytes() {
		b.seal()
	}
}

// remove takes a call off the queue that nobody waits for any more. With the
// last one the batch goes too, so that the next call's window is its own. The
// caller holds t.mu.
func (b *batch) remove(c *call) {
	b.calls[c.place] = nil
	b.queued--
	b.bytes -= int64(c.Size()) + 1
	b.inputs -= c.inputs
	if b.queued == 0 {
		b.seal()
	}
}

func (b *batch) maxCalls() int {
	if limit := b.profile.MaxLines; limit > 0 {
		return min(limit, b.t.opts.BatchSize)
	}
	return b.t.opts.BatchSize
}

func (b *batch) maxBytes() int64 {
	limit := b.profile.MaxBytes
	if limit == 0 {
		limit = maxBody
	}
	if wanted := b.t.opts.BatchBytes; wanted > 0 {
		limit = min(limit, wanted)
	}
	return limit
}

// seal ends the collecting. The caller holds t.mu.
func (b *batch) seal() {
	if b.sealed {
		return
	}
	b.sealed = true
	close(b.full)
	if b.t.queues[b.key] == b {
		delete(b.t.queues, b.key)
	}
}

// dispatchAll seals every batch that collects, and returns them.
func (t *Transport) dispatchAll() []*batch {
	t.mu.Lock()
	defer t.mu.Unlock()
	var sealed []*batch
	for _, b := range t.queues {
		sealed = append(sealed, b)
	}
	for _, b := range sealed {
		b.seal()
	}
	return sealed
}

// run is the life of a batch.
func (b *batch) run() {
	defer b.finish()
	b.collect()
	if !b.claim() {
		return
	}
	if err := b.submit(); err != nil {
		b.refused(err)
		return
	}
	if err := b.watch(); err != nil {
		b.lost(err)
		return
	}
	b.harvest()
}

// finish is what happens to a batch whichever way run ends. A bug of ours must
// cost no more than one batch, and must leave nobody waiting.
func (b *batch) finish() {
	if p := recover(); p != nil {
		b.t.log.Error("batch panicked", "batch", b.id, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		b.abandon(failure(http.StatusFailedDependency, "internal_error", fmt.Sprintf("batch %s ended by a defect of autobatcher: %v", b.id, p)))
	}
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	select {
	case <-b.submitted:
	default:
		close(b.submitted)
	}
	if b.t.ctx.Err() != nil && b.unanswered() > 0 {
		return // Close has a word for each caller yet
	}
	if b.lonely != nil {
		b.lonely.Stop()
	}
	delete(b.t.batches, b)
}

// unanswered counts the calls that wait for an answer. The caller holds t.mu.
func (b *batch) unanswered() int {
	if b.open == nil {
		return b.queued
	}
	return len(b.open)
}

// abandon ends all that is left of a batch, in whichever state run left it.
func (b *batch) abandon(a *answer) {
	b.t.mu.Lock()
	b.seal()
	if b.open == nil {
		b.open = make(map[string]*call, b.queued)
		for _, c := range b.calls {
			if c != nil {
				b.open[c.ID] = c
			}
		}
		b.waiting = len(b.open)
	}
	b.t.mu.Unlock()
	b.settleRest(a)
}

// collect waits until the batch is full, or its window ends.
func (b *batch) collect() {
	window := time.NewTimer(b.t.opts.BatchWindow)
	defer window.Stop()
	select {
	case <-b.full:
	case <-window.C:
	case <-b.t.ctx.Done():
	}
}

// claim takes the queued calls out of the queue and makes them the batch's
// lines, but for those that find a line or an answer their first try left
// behind. It reports whether there is anything to send.
//
// Lines are taken over here and not on entry, because a retry can arrive
// before the end of its first try is noticed.
func (b *batch) claim() bool {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	if b.t.ctx.Err() != nil {
		return false // Close tells the callers
	}
	b.seal()
	b.calls = slices.DeleteFunc(b.calls, func(c *call) bool { return c == nil || b.t.takeOver(c) })
	b.queued = 0
	b.open = make(map[string]*call, len(b.calls))
	for _, c := range b.calls {
		b.open[c.ID] = c
		b.models = append(b.models, c.model)
	}
	if len(b.calls) > 0 {
		b.suffix, b.path = b.calls[0].suffix, b.calls[0].URL
	}
	slices.Sort(b.models)
	b.models = slices.Compact(b.models)
	b.size, b.waiting = len(b.calls), len(b.calls)
	return b.size > 0
}

// submit makes a batch of the lines: upload, then create.
func (b *batch) submit() error {
	err := b.uploadAndCreate()
	b.submitErr = err
	close(b.submitted)
	return err
}

func (b *batch) uploadAndCreate() error {
	var err error
	if b.api, err = b.client(); err != nil {
		return err
	}
	lines := b.calls
	fileID, err := b.upload(line.File{Lines: len(lines), At: func(i int) *line.Line { return &lines[i].Line }})
	if err != nil {
		return err
	}
	b.state, err = b.create(fileID)
	if err != nil {
		return err
	}
	b.created = time.Now()
	b.t.mu.Lock()
	b.id, b.calls = b.state.ID, nil // from here on a settled call can be freed
	b.t.mu.Unlock()
	b.t.log.Info("batch submitted", "batch", b.id, "calls", b.size, "endpoint", b.path)
	b.emit(BatchSubmitted)
	return nil
}

// client speaks with the provider in the name of whoever pays for the batch.
func (b *batch) client() (*batchapi.Client, error) {
	base, err := url.Parse(b.key.base)
	if err != nil {
		return nil, err
	}
	query := base.Query()
	for name := range query {
		if !slices.Contains(b.profile.KeepQuery, name) {
			query.Del(name)
		}
	}
	base.RawQuery = query.Encode()
	base.Path = b.profile.BatchPath(base.Path)
	return batchapi.New(base, payerHeader(b.key.payer), b.t.opts.Base, *b.profile), nil
}

// upload uploads the input file. Repeating it costs a stray file at the most.
func (b *batch) upload(file line.File) (id string, err error) {
	name := "batch-" + uuid.NewString() + ".jsonl"
	r := batchapi.Retries{Patience: submitPatience}
	for {
		id, err = b.api.Upload(b.t.ctx, name, file)
		wait, again := r.Next(err)
		if !again {
			return id, err
		}
		b.t.log.Warn("upload failed, trying again", "error", err, "in", wait)
		if err := sleep(b.t.ctx, wait); err != nil {
			return "", err
		}
	}
}

// create creates the batch, once: after a failure that may have created it all
// the same, it looks for it before it tries again.
func (b *batch) create(fileID string) (batchapi.Batch, error) {
	// Close must not tear a create apart, or nobody would know of the batch.
	ctx, cancel := lingering(b.t.ctx, createLinger)
	defer cancel()
	r := batchapi.Retries{Patience: submitPatience, Unseen: unseenPatience}
	params := batchapi.CreateParams{
		InputFileID: fileID, Endpoint: b.profile.Endpoint(b.suffix),
		CompletionWindow: b.key.window, Metadata: b.t.opts.Metadata,
	}
	for {
		began := time.Now()
		made, err := b.api.Create(ctx, params)
		if ambiguous(err) {
			var found bool
			if made, found = b.adopt(ctx, fileID, began); found {
				return made, nil
			}
		}
		wait, again := r.Next(err)
		if !again {
			return made, err
		}
		b.t.log.Warn("create failed, trying again", "error", err, "in", wait)
		if err := sleep(ctx, wait); err != nil {
			return batchapi.Batch{}, err
		}
	}
}

// adoptDelays are how long after a lost answer the list is searched: a list may
// lag behind what was created.
var adoptDelays = []time.Duration{3 * time.Second, 10 * time.Second}

// clockSkew is how far the provider's clock may be off.
const clockSkew = 5 * time.Minute

// adopt looks for a batch whose create was not answered, by its input file.
func (b *batch) adopt(ctx context.Context, fileID string, began time.Time) (batchapi.Batch, bool) {
	r := batchapi.Retries{Patience: submitPatience}
	for _, delay := range adoptDelays {
		for {
			if sleep(ctx, delay) != nil {
				return batchapi.Batch{}, false
			}
			made, found, err := b.api.Find(ctx, fileID, began.Add(-clockSkew))
			if found {
				b.t.log.Warn("adopted a batch whose create was not answered", "batch", made.ID)
				return made, true
			}
			var again bool
			if delay, again = r.Next(err); !again {
				break
			}
		}
	}
	return batchapi.Batch{}, false
}

// refused ends a batch that could not be submitted.
func (b *batch) refused(err error) {
	if b.t.ctx.Err() != nil {
		return // Close tells the callers
	}
	b.t.log.Error("batch could not be submitted", "error", err, "calls", b.size, "endpoint", b.path)
	b.emitError(BatchSubmissionFailed, err)
	b.settleRest(submissionAnswer(err))
}

// createLinger is how long Close waits for a create that is under way.
const createLinger = 5 * time.Second

// lingering is parent, but for that it ends a while later.
func lingering(parent context.Context, linger time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() {
		time.AfterFunc(linger, func() { cancel(context.Cause(parent)) })
	})
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// sleep waits, or returns why ctx ended first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// submitPatience is how long uploading or creating is tried. The callers wait
// for hours anyway; a rate limit of the provider's passes within minutes.
const submitPatience = 30 * time.Minute

// unseenPatience is how long a file that was just uploaded may be unknown.
const unseenPatience = time.Minute

func ambiguous(err error) bool {
	var failed *batchapi.Error
	return errors.As(err, &failed) && failed.Ambiguous()
}
