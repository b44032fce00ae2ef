package autobatcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/ledger"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/pace"
	"github.com/autobatcher/autobatcher/internal/payer"
	"github.com/autobatcher/autobatcher/journal"
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
	again   []*call          // taken out of open to ride again in another batch
	waiting int              // how many of the open ones have a caller
	lonely  *time.Timer      // runs while none has
	doomed  bool             // being cancelled: nobody takes over its lines

	told    []int   // delivered lines the journal is to be told of
	leaving []*call // likewise: whose callers have gone
	freeing []*call // those whose lines are the journal's to hand out, when it has heard so
	freed   int     // how many lines the journal hands out, since their callers have gone
	noting  bool    // a goroutine is telling it
	over    bool    // ended upstream: only results are to be read
	reread  bool    // results that were read already are wanted again
	lapsed  bool    // the journal once took this process for dead while it had the batch

	note chan struct{} // holds a token: whoever tells the journal has it

	full      chan struct{} // closed when sealed
	abandoned chan struct{} // told when the batch was lonely for too long
	submitted chan struct{} // closed when the batch was created, or never will be
	done      chan struct{} // closed when run has ended
	submitErr error         // why it never will be; read after submitted

	// Set when the batch is opened.
	gate    *pace.Gate    // of its account and model: holds back what the provider would refuse for too many tokens
	rides   int           // how often its calls rode before because a file was refused
	delay   time.Duration // before it is sent
	guesses *int          // how many more batches may be halved to find a bad line

	// Owned by run, and by Close once run has ended.
	ref        string        // in the journal; "" if that does not know the batch; written under Transport.mu
	past       journal.State // how far another process had brought it; "" for a batch of our own
	api        *batchapi.Client
	id         string // "" until created; written under Transport.mu
	state      batchapi.Batch
	models     []string
	size       int    // how many lines were sent
	suffix     string // of the first line's endpoint
	path       string // the same as the line names it
	tokens     int64  // estimate of what it enqueues
	entered    bool   // the gate
	created    time.Time
	spent      bool      // its input file was deleted before it was found to exist
	seen       bool      // told of at least once
	cancelling time.Time // since when the provider says so
	output     resultFile
	errors     resultFile
	unread     error // of the last download
	garbled    bool  // a result line was not understood
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
	t.callers(+1)
	t.queue(c)
	return w, nil
}

// queue adds a call to the batch that collects calls like it. The caller holds
// t.mu.
func (t *Transport) queue(c *call) {
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
		done:      make(chan struct{}),
		note:      make(chan struct{}, 1),
	}
	b.note <- struct{}{}
	b.gate = t.gates.Of(b.key.account()+"\x00"+b.key.group, pace.NewGate)
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
	b.place(c)
	if b.queued >= b.maxCalls() || b.bytes >= b.maxBytes() {
		b.seal()
	}
}

// place puts c at the end of the queue. The caller holds t.mu.
func (b *batch) place(c *call) {
	c.batch, c.place, c.key = b, len(b.calls), b.key // its strings are kept once
	b.calls = append(b.calls, c)
	b.queued++
	b.bytes += int64(c.Size()) + 1
	b.inputs += c.inputs
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
	limit := lineLimit(&provider.Profile{MaxBytes: b.profile.MaxBytes}) + lineOverhead
	if wanted := b.t.opts.BatchBytes; wanted > 0 {
		limit = min(limit, wanted)
	}
	if tokens := b.gate.Limit(); tokens > 0 {
		limit = min(limit, tokens*bytesPerToken)
	}
	return limit
}

// bytesPerToken is what a token is reckoned at. A gate that was told otherwise
// by a refusal learns a lower limit.
const bytesPerToken = 4

// creations paces how many batches are created within an hour.
func (b *batch) creations() *pace.Hourly {
	return b.t.creations.Of(b.key.account(), func() *pace.Hourly { return pace.NewHourly(b.profile.CreationsPerHour) })
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
	if b.takeTurn() != nil {
		return
	}
	defer b.leaveGate()
	if !b.claim() {
		return
	}
	if err := b.rejoin(); err != nil {
		b.submitErr = err
		b.refused(err)
		return
	}
	if b.size == 0 {
		return // each call has found a line that was paid for
	}
	if err := b.submit(); err != nil {
		b.refused(err)
		return
	}
	if err := b.watch(); err != nil {
		b.lost(err)
		return
	}
	if b.rejected() {
		return
	}
	b.leaveGate() // nothing of it is enqueued any more
	b.harvest()
}

// finish is what happens to a batch whichever way run ends. A bug of ours must
// cost no more than one batch, and must leave nobody waiting.
func (b *batch) finish() {
	defer close(b.done)
	if p := recover(); p != nil {
		b.t.log.Error("batch panicked", "batch", b.id, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		b.closeToOthers()
		b.abandon(failure(http.StatusFailedDependency, "internal_error", fmt.Sprintf("batch %s ended by a defect of autobatcher: %v", b.id, p)))
	}
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	select {
	case <-b.submitted:
	default:
		close(b.submitted)
	}
	if b.t.ctx.Err() != nil && b.awaited() > 0 {
		return // Close has a word for each caller yet
	}
	if b.lonely != nil {
		b.lonely.Stop()
	}
	delete(b.t.batches, b)
	b.t.unlist(b)
	b.calls = nil // notes that the journal did not hear yet need none of the bodies
}

// awaited counts the calls that wait for an answer. The caller holds t.mu.
func (b *batch) awaited() int {
	if b.open == nil {
		return b.queued
	}
	return len(b.open) + len(b.again)
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
	for _, c := range b.again {
		b.open[c.ID] = c
	}
	b.again = nil
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
	if b.delay > 0 {
		_ = batchapi.Sleep(b.t.ctx, b.delay) // claim sees if ctx has ended
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
	}
	b.waiting = len(b.calls)
	b.number()
	return b.size > 0
}

// number notes which calls are the batch's lines, in which order. The caller
// holds t.mu.
func (b *batch) number() {
	b.calls = slices.DeleteFunc(b.calls, func(c *call) bool { return b.open[c.ID] != c })
	b.size, b.models = len(b.calls), nil
	for i, c := range b.calls {
		c.place = i
		b.models = append(b.models, c.model)
	}
	slices.Sort(b.models)
	b.models = slices.Compact(b.models)
	if b.size > 0 {
		b.suffix, b.path = b.calls[0].suffix, b.calls[0].URL
	}
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
	if err := b.journalBegin(); err != nil {
		return err
	}
	r := batchapi.Retries{Patience: createPatience}
	for {
		if err = b.upload(); err == nil {
			err = b.create()
		}
		if !errors.Is(err, batchapi.ErrSpent) {
			return err
		}
		b.state.InputFileID = ""
		wait, again := r.Next(err)
		if !again || batchapi.Sleep(b.t.ctx, wait) != nil || b.creations().Wait(b.t.ctx) != nil {
			return err
		}
	}
}

// createPatience is how long, after a create that was not answered and came to
// nothing, another round of upload and create may begin.
const createPatience = 30 * time.Minute

// upload uploads the input file.
func (b *batch) upload() error {
	lines := b.calls
	file := line.File{Lines: len(lines), At: func(i int) *line.Line { return &lines[i].Line }}
	upload := batchapi.Upload{Name: "batch-" + uuid.NewString() + ".jsonl", Model: b.models[0], Expiry: b.t.opts.fileExpiry()}
	fileID, err := b.api.UploadPatiently(b.t.ctx, upload, file, b.t.log)
	if err != nil {
		return err
	}
	b.state.InputFileID = fileID
	return b.t.ledger.Advance(b.t.ctx, b.ref, journal.Step{State: journal.Uploaded, InputFileID: fileID})
}

// create makes the batch of the file that was uploaded.
func (b *batch) create() error {
	if b.desert() {
		return errDeserted // while it was uploaded
	}
	// Close must not tear a create apart, or nobody would know of the batch.
	ctx := b.t.lasting
	if err := b.t.ledger.Advance(ctx, b.ref, journal.Step{State: journal.Creating, InputFileID: b.state.InputFileID}); err != nil {
		return err
	}
	made, err := b.api.CreateOnce(ctx, batchapi.CreateParams{
		InputFileID: b.state.InputFileID, Endpoint: b.profile.Endpoint(b.suffix),
		CompletionWindow: b.key.window, Metadata: b.t.opts.Metadata, OutputExpiry: b.t.opts.fileExpiry(),
	}, b.t.log)
	if err != nil {
		return b.blameOthers(ctx, err)
	}
	b.begin(made)
	b.t.ledger.Runs(ctx, b.ref, b.id)
	return nil
}

// blameOthers returns ErrTaken if a create was refused because another process,
// which took this one for dead, has settled the batch and deleted its file.
func (b *batch) blameOthers(ctx context.Context, err error) error {
	if errors.Is(err, batchapi.ErrUnsure) || errors.Is(err, batchapi.ErrSpent) {
		return err
	}
	taken := b.t.ledger.Advance(ctx, b.ref, journal.Step{State: journal.Uploaded})
	if errors.Is(taken, ledger.ErrTaken) {
		return taken
	}
	return err
}

// begin notes that the batch runs.
func (b *batch) begin(made batchapi.Batch) {
	made.InputFileID = b.state.InputFileID
	b.state, b.created, b.spent = made, time.Now(), made.FileDeleted
	b.become(made.ID)
	b.t.log.Info("batch submitted", "batch", b.id, "calls", b.size, "endpoint", b.path)
	b.emit(BatchSubmitted)
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
	return batchapi.New(base, payer.Header(b.key.payer), b.t.opts.Base, *b.profile), nil
}

// takeTurn waits until the provider has room for the batch, as far as was
// learned, and may create one. Its calls are not sent yet: they may leave
// meanwhile, and others join. The error is the cause of the Transport's end.
func (b *batch) takeTurn() error {
	b.t.mu.Lock()
	tokens := b.bytes / bytesPerToken
	b.t.mu.Unlock()
	if err := b.gate.Enter(b.t.ctx, tokens); err != nil {
		return err
	}
	b.entered, b.tokens = true, tokens
	if err := b.creations().Wait(b.t.ctx); err != nil {
		b.leaveGate()
		return err
	}
	return nil
}

func (b *batch) leaveGate() {
	if b.entered {
		b.gate.Leave(b.tokens)
		b.entered = false
	}
}

// unknown is the status of a batch of which it is not known whether it exists.
const unknown = "unknown"

// errDeserted is why a batch is not created although it could be.
var errDeserted = errors.New("nobody waits for the batch any more")

// desert gives a batch up that was not created yet and that nobody waits for,
// and reports whether it did. From then on nobody comes back to its lines.
func (b *batch) desert() bool {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	if b.waiting > 0 {
		return false
	}
	for _, c := range b.open {
		b.t.forget(c)
		c.ended, c.Body = true, nil
	}
	clear(b.open)
	b.t.unlist(b)
	return true
}

// refused ends a batch that could not be submitted.
func (b *batch) refused(err error) {
	if b.t.ctx.Err() != nil {
		return // Close tells the callers
	}
	b.closeToOthers()
	switch {
	case errors.Is(err, ledger.ErrTaken):
		b.t.log.Warn("the journal took this process for dead, and its batch from it before it was created; its calls ride again", "calls", b.size)
		b.discardInput(err)
		b.t.ledger.Discard(b.t.ctx, b.ref) // unless it is another's by now
		b.startOver()
		return
	case errors.Is(err, errDeserted):
		b.discardInput(err)
		b.t.ledger.Discard(b.t.ctx, b.ref)
		return
	}
	b.t.log.Error("batch could not be submitted", "error", err, "calls", b.size, "endpoint", b.path)
	b.emitError(BatchSubmissionFailed, err)
	var failed *batchapi.Error
	if errors.As(err, &failed) {
		p := batchapi.Problem{Line: failed.Line(), Code: failed.Code(), Message: failed.Message()}
		if failed.Status == http.StatusForbidden && p.Line > 0 {
			p.Code = cmp.Or(p.Code, modelNotFound) // Doubleword's word for it
		}
		if !b.blame([]batchapi.Problem{p}) && failed.RefusesUpload() {
			b.halve(p)
		}
	}
	b.settleRest(submissionAnswer(err))
	b.discardInput(err)
	if errors.Is(err, batchapi.ErrUnsure) {
		b.t.ledger.End(b.t.ctx, b.ref, "", unknown) // so that nobody waits for it to be created
	} else {
		b.t.ledger.Discard(b.t.ctx, b.ref)
	}
}

// discardInput deletes the file of a batch that surely was not created.
func (b *batch) discardInput(err error) {
	if b.state.InputFileID != "" && !errors.Is(err, batchapi.ErrUnsure) {
		b.delete(b.state.InputFileID)
	}
}

// manyWaits is after how many waits a batch that could not enter even alone goes
// in halves: it may be larger than it is reckoned.
const manyWaits = 3

// The limits on riding again because a file was refused. Nothing was executed
// then and nothing paid, but every ride is an upload.
const (
	maxRides   = 50
	manyRides  = 5 // after which a file is halved with each line that is named
	maxGuesses = 64
)

// rejected deals with a batch that the provider failed without running a line,
// and reports whether it was one whose calls could be sorted out: a bad line
// costs its caller, too many enqueued tokens cost time, and everybody else
// rides again.
func (b *batch) rejected() bool {
	ran := b.state.Counts.Completed + b.state.Counts.Failed // a provider may name files that hold nothing
	if b.state.Status != "failed" || len(b.state.Problems) == 0 && !b.spent || ran > 0 || b.rides >= maxRides {
		return false
	}
	if p, ok := b.problem("token_limit_exceeded"); ok {
		b.holdBack(p)
	} else if b.spent {
		b.respawn(waitedFor(b.lines()), 0) // for want of the file that we deleted
	} else if !b.blame(b.state.Problems) && !b.halveForLine() {
		return false
	}
	b.emit(BatchTerminal)
	b.close()
	return true
}

// lines are the calls that wait for the batch's lines now, by place; nil where a
// line has none. They need not be those that were sent: a caller who comes back
// takes a line over.
func (b *batch) lines() []*call {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	lines := make([]*call, b.size)
	for _, c := range b.open {
		for c.place >= len(lines) { // another process's batch, whose size is not known
			lines = append(lines, nil)
		}
		lines[c.place] = c
	}
	return lines
}

// waitedFor are those of the lines that have a call.
func waitedFor(lines []*call) []*call {
	return slices.DeleteFunc(slices.Clone(lines), func(c *call) bool { return c == nil })
}

// halveForLine halves the batch if the provider says that a line is bad, but
// not which.
func (b *batch) halveForLine() bool {
	i := slices.IndexFunc(b.state.Problems, func(p batchapi.Problem) bool { return slices.Contains(lineCodes, p.Code) })
	return i >= 0 && b.halve(b.state.Problems[i])
}

func (b *batch) problem(code string) (batchapi.Problem, bool) {
	for _, p := range b.state.Problems {
		if p.Code == code {
			return p, true
		}
	}
	return batchapi.Problem{}, false
}

// blame answers the callers of the lines that the provider named, and lets the
// others ride again. It reports whether any was named.
func (b *batch) blame(problems []batchapi.Problem) bool {
	if b.rides >= maxRides {
		return false
	}
	lines, named := b.lines(), false
	guilty := make(map[*call]batchapi.Problem)
	for _, p := range problems {
		if p.Line < 1 || p.Line > len(lines) {
			continue
		}
		named = true
		culprit := lines[p.Line-1]
		if culprit == nil {
			continue // its caller has gone
		}
		guilty[culprit] = p
		for _, c := range waitedFor(lines) {
			if p.Code == modelNotFound && c.model == culprit.model {
				guilty[c] = p
			}
		}
	}
	if !named {
		return false
	}
	for c, p := range guilty {
		b.t.settle(c, lineRefused(b.id, p))
	}
	rest := slices.DeleteFunc(waitedFor(lines), func(c *call) bool { _, bad := guilty[c]; return bad })
	if b.rides < manyRides {
		b.respawn(rest, 0)
	} else {
		// There are many bad lines, named one at a time: look in two places.
		b.respawn(rest[:len(rest)/2], 0)
		b.respawn(rest[len(rest)/2:], 0)
	}
	return true
}

// modelNotFound is the code of a line whose model there is not; it condemns
// every line with that model.
const modelNotFound = "model_not_found"

// lineCodes are OpenAI's and Azure's codes for what may be wrong with one line.
var lineCodes = []string{"invalid_json_line", "duplicate_custom_id", "url_mismatch", "model_mismatch", "mismatched_model", "invalid_request", "invalid_url", "invalid_method"}

// halve lets the two halves of a batch ride apart when one of its lines is bad
// and the provider did not say which. A batch of one has found it.
func (b *batch) halve(p batchapi.Problem) bool {
	calls := waitedFor(b.lines())
	if b.size == 1 {
		for _, c := range calls {
			b.t.settle(c, lineRefused(b.id, p))
		}
		return true
	}
	if b.guesses == nil {
		b.guesses = new(int)
		*b.guesses = maxGuesses
	}
	b.t.mu.Lock()
	*b.guesses--
	spent := *b.guesses < 0
	b.t.mu.Unlock()
	if spent {
		return false
	}
	half := len(calls) / 2
	b.respawn(calls[:half], 0)
	b.respawn(calls[half:], 0)
	return true
}

// told reads the limit out of the provider's words: "Limit: 90,000 enqueued
// tokens".
var told = regexp.MustCompile(`(?i)limit:?\s*([\d,]+)`)

// holdBack learns from a batch that was too much for the provider's queue, and
// lets its calls ride again when there is room: in halves, if they could not
// fit even alone.
func (b *batch) holdBack(p batchapi.Problem) {
	var limit int64
	if m := told.FindStringSubmatch(p.Message); m != nil {
		limit, _ = strconv.ParseInt(strings.ReplaceAll(m[1], ",", ""), 10, 64)
	}
	alone := b.gate.Refused(b.tokens, limit)
	b.t.log.Warn("too many tokens enqueued, the batch will go again", "batch", b.id, "tokens", b.tokens, "limit", b.gate.Limit())
	tooMuch := b.tokens > b.gate.Limit() || alone && b.rides >= manyWaits
	b.leaveGate()
	delay := min(time.Minute<<min(b.rides, 4), 15*time.Minute)
	calls := waitedFor(b.lines())
	if half := len(calls) / 2; tooMuch && half > 0 {
		b.respawn(calls[:half], delay)
		b.respawn(calls[half:], delay)
		return
	}
	b.respawn(calls, delay)
}

// respawn lets calls of a batch that has ended ride again in a batch of their
// own, or in several: those who took a line over may want another window. Calls
// that nobody waits for are dropped.
func (b *batch) respawn(calls []*call, delay time.Duration) {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	batches := make(map[key]*batch)
	for _, c := range calls {
		if !b.release(c) {
			continue
		}
		next := batches[c.key]
		if next == nil {
			next = b.t.newBatch(c)
			next.rides, next.delay, next.guesses = b.rides+1, delay, b.guesses
			batches[c.key] = next
		}
		next.place(c)
	}
	for _, next := range batches {
		next.seal()
		b.t.work.Go(next.run)
	}
}

// release takes a call out of a batch that will not answer it, and reports
// whether it is to ride again: somebody waits for it. The caller holds t.mu.
func (b *batch) release(c *call) bool {
	if c.ended {
		return false
	}
	delete(b.open, c.ID)
	b.noteDelivered(c)
	if c.waiter == nil {
		c.ended, c.Body = true, nil
		b.t.forget(c)
		return false
	}
	b.waiting--
	b.watchLonely()
	return true
}

// linger is how long Close waits for a create that is under way, and for what the
// journal must know.
const linger = 5 * time.Second

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
