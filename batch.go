package autobatcher

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/autobatcher/autobatcher/internal/accounts"
	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/failure"
	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/ratelimit"
	"github.com/autobatcher/autobatcher/internal/results"
	"github.com/autobatcher/autobatcher/internal/triage"
	"github.com/autobatcher/autobatcher/journal"
)

// A batch is a batch of calls, from the first call to the last result. One
// goroutine runs a batch, and owns the fields; what other goroutines need is in
// the queue, the lines and the record, which have locks of their own.
type batch struct {
	t     *Transport
	seq   int
	phase phase

	key  key
	lane *accounts.Lane // of the key

	queue   *queue                 // the calls that were not sent yet
	lines   *lineSet               // the calls that were sent
	record  *journalsession.Record // in the journal
	idle    chan struct{}          // receives when no caller waited for too long
	backend backend.Backend
	grant   *ratelimit.Grant // the room that the batch takes at the provider
	results *results.Reader
	history history
	failed  []*call     // lines that failed without an answer, to be resubmitted
	remedy  triage.Plan // for a rejected input

	size      int          // the number of lines
	names     caller.Names // of the lines; without callers in a batch of another process
	bill      price.Bill
	url       string // the endpoint as the first line names it
	created   time.Time
	recovered journal.State // how far another process had brought the batch; "" for a batch of this process
	status    backend.Status
	observed  bool      // the status was reported at least once
	cancelled time.Time // when the provider first said that the batch is being cancelled
	overdue   bool      // the batch ran a day past its completion window

	submitted chan struct{} // closed when the batch was created, or never will be
	submitErr error         // why the batch could not be created; written before submitted is closed, and read after
	done      chan struct{} // closed when the goroutine has ended
}

// history is what a batch has from earlier batches of its calls, which the
// provider rejected.
type history struct {
	attempts int           // how many there were
	delay    time.Duration // before the batch is sent
	guesses  *atomic.Int64 // how many more batches may be halved to find a bad line; shared by the batches that descend from one input; nil at first
}

// A phase is what a batch is doing.
type phase int

const (
	collecting phase = iota // calls join
	waiting                 // for room at the provider
	claiming                // calls become lines, unless an earlier line of theirs is found
	submitting              // upload and create
	recovering              // finding out whether another process created the batch
	running                 // at the provider
	reading                 // the results
	ended
)

// An outcome is how a batch ended.
type outcome int

const (
	outcomeDone      outcome = iota // the provider ended the batch, and the results were read
	outcomeRejected                 // the provider failed the input, and triage has a remedy
	outcomeUnread                   // the results exist and could not be read
	outcomeRefused                  // the batch could not be created
	outcomeLost                     // the batch could not be followed to its end
	outcomeTakenOver                // the batch is another process's, or was never created
	outcomeNoCallers                // no caller waits, and the batch was not created
	outcomeMoved                    // the calls are sent in another lane
	outcomeClosed                   // the Transport was closed
	outcomePanicked                 // a defect
)

// Why a batch ends before its phases do.
var (
	errNoCallers = errors.New("no caller waits for the batch")
	errAlone     = errors.New("the batch has a single call, which the flex tier answers sooner")
	errRejected  = errors.New("the provider rejected the input")
	errUnread    = errors.New("the results could not be read")
	errPanicked  = errors.New("a defect of autobatcher")
)

// newBatch makes a batch that sends the calls of a queue, and begins at a phase.
// The batch takes its endpoint from the first call.
func (t *Transport) newBatch(q *queue, first phase) *batch {
	b := &batch{
		t: t, key: q.Key, queue: q, phase: first,
		idle:      make(chan struct{}, 1),
		submitted: make(chan struct{}),
		done:      make(chan struct{}),
	}
	if c := q.First; c != nil {
		b.url = c.URL
	}
	b.lines = t.registry.NewLines(b.idle, q.Key.flex())
	b.record = t.session.NewRecord(b.lines)
	b.lines.SetRecord(b.record)
	b.lane = q.Key.account.Lane(q.Key.window)
	b.backend = t.router.newBackend(b.lane)
	b.results = results.NewReader(b.backend, b.lines.TakeReread, t.opts.Logger)
	return b
}

// startBatch runs a batch, and reports false if the Transport is closing. Then the batch
// is dropped or, with adopt, kept without running, and Close answers its callers.
func (t *Transport) startBatch(b *batch, adopt bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ending && !adopt {
		return false
	}
	t.seq++
	b.seq = t.seq
	t.batches[b] = Event{}
	b.key.account.BatchBegins()
	if !t.ending {
		t.work.Go(b.run)
	}
	return !t.ending
}

// run is the life of a batch. The only end of a batch is end, also after a panic
// or runtime.Goexit in the user's RoundTripper; when the Transport closes, Close
// calls end, in the order that Close documents.
func (b *batch) run() {
	defer close(b.done)
	err := errPanicked
	defer func() {
		if p := recover(); errors.Is(err, errPanicked) {
			logPanic(b.t.opts.Logger, p, "batch", "batch", b.id())
		}
		if b.grant != nil {
			b.grant.Leave()
		}
		if o := b.outcome(err); o != outcomeClosed {
			b.end(o, err)
		}
	}()
	err = b.runPhases()
}

// recoverPanic is deferred around requests that are sent when the phases of a batch
// have ended: a panic in the user's RoundTripper ends only those requests.
func (b *batch) recoverPanic() {
	if p := recover(); p != nil {
		logPanic(b.t.opts.Logger, p, "batch", "batch", b.id())
	}
}

func (b *batch) runPhases() (err error) {
	for err == nil && b.phase != ended {
		next := ended
		switch b.phase {
		case collecting:
			next, err = waiting, b.collect()
		case waiting:
			next, err = claiming, b.takeTurn()
		case claiming:
			next, err = submitting, b.claim()
		case submitting:
			next, err = running, b.submit()
		case recovering:
			next, err = running, b.findExisting()
		case running:
			next, err = reading, b.poll()
		case reading:
			next, err = ended, b.readResults()
		}
		if err == nil {
			b.phase = next
		}
	}
	return err
}

// outcome says how the batch ended, by the error that ended its phases.
func (b *batch) outcome(err error) outcome {
	switch {
	case errors.Is(err, errPanicked):
		return outcomePanicked
	case err != nil && b.t.ctx.Err() != nil:
		return outcomeClosed
	case err == nil:
		return outcomeDone
	case errors.Is(err, errRejected):
		return outcomeRejected
	case errors.Is(err, errUnread):
		return outcomeUnread
	case errors.Is(err, errNoCallers):
		return outcomeNoCallers
	case errors.Is(err, errAlone), errors.Is(err, backend.ErrNoCapacity) && b.t.opts.FlexFallback == FallbackBatch &&
		(b.t.opts.Escalate == EscalateNever || b.lines.Sent()[0].Request.mode != lane.Realtime), // else the call goes on to real time
		errors.Is(err, backend.ErrNoTier) && b.lines.Sent()[0].Request.mode == lane.Batch: // the call was alone in its batch
		return outcomeMoved
	case errors.Is(err, backend.ErrAbsent), errors.Is(err, journalsession.ErrTaken):
		return outcomeTakenOver
	case b.phase <= submitting:
		return outcomeRefused
	}
	return outcomeLost
}

// An ending is what happens when a batch ends: five steps, which are always taken
// in the order of the fields. The zero value of a step is to do nothing.
type ending struct {
	resubmit resubmission
	answer   func(failure.Batch, error) failure.Answer // for the calls that are not resubmitted
	event    EventName
	files    deletion
	record   lastUpdate
}

var endings = [...]ending{
	outcomeDone:      {resubmitUnanswered, failure.Verdict, byStatus, deletePolicy, updateEnded},
	outcomeRejected:  {resubmitPlanned, failure.Verdict, byStatus, deletePolicy, updateEnded},
	outcomeUnread:    {resubmitNone, failure.Unread, byStatus, deleteNone, updateEnded},
	outcomeRefused:   {resubmitPlanned, failure.Refused, BatchSubmissionFailed, deleteInput, updateDiscarded},
	outcomeLost:      {resubmitNone, failure.Lost, BatchTerminal, deleteNone, updateEnded},
	outcomeTakenOver: {resubmitAll, failure.Defect, noEvent, deleteInput, updateDiscarded},
	outcomeNoCallers: {resubmitAll, failure.Defect, noEvent, deleteInput, updateDiscarded},
	outcomeMoved:     {resubmitMoved, failure.Defect, noEvent, deleteNone, updateDiscarded},
	outcomeClosed:    {resubmitNone, failure.Closed, noEvent, deleteNone, updateNone},
	outcomePanicked:  {resubmitNone, failure.Defect, noEvent, deleteNone, updateNone},
}

const (
	noEvent  EventName = ""
	byStatus EventName = "by status" // BatchCompleted or BatchTerminal
)

// A deletion says which files are deleted when a batch ends.
type deletion int

const (
	deleteNone   deletion = iota
	deleteInput           // of a batch that was not created
	deletePolicy          // as Options.Files says
)

// A lastUpdate is the last state that the journal stores of a batch.
type lastUpdate int

const (
	updateNone lastUpdate = iota
	updateEnded
	updateDiscarded
)

// end ends a batch. From now on no call takes over a line of the batch.
func (b *batch) end(o outcome, err error) {
	defer b.leave()
	defer b.recoverPanic()
	e := endings[o]
	b.t.registry.ClaimQueue(b.queue, b.lines) // of a batch that ends before its calls became lines
	rest, _ := b.lines.Close(false)
	if o != outcomeClosed {
		rest = b.resubmitRest(e.resubmit, rest, err)
	}
	if o == outcomeRefused && len(rest)+len(b.remedy.Answers) > 0 { // not if all calls are resubmitted
		b.submitErr = err
	}
	for _, c := range append(rest, b.failed...) { // failed: of a Transport that closes
		b.giveUp(c, failedAnswer(e.answer(about(b), err)))
	}
	b.failed = nil
	switch e.event {
	case noEvent:
	case byStatus:
		name := BatchTerminal
		if b.status.Word == "completed" {
			name = BatchCompleted
		}
		b.emit(name, nil)
	default:
		b.emit(e.event, err)
	}
	answered := b.status.Word == "completed" && b.status.Counts.Failed < b.size
	if (o == outcomeDone && (answered || b.status.Word == "expired") || b.overdue) && b.recovered != journal.Ended {
		b.t.router.turnaround.Add(b.key.account.Profile.Name, b.key.window, b.names.Models, time.Since(b.created))
	}
	if b.bill.Priced > 0 {
		b.emit(BatchCost, nil)
	}
	b.logEnd(o, err)
	if o != outcomeClosed { // Close sends the updates of all batches together
		b.record.Flush(b.t.journalCtx)
	}
	b.deleteFiles(e.files, err)
	b.updateRecord(e.record, err)
}

// leave takes the batch out of the Transport, also if end panics: then the calls
// that are left get an answer.
func (b *batch) leave() {
	rest, _ := b.lines.Close(false)
	for _, c := range append(rest, b.failed...) {
		b.t.registry.Complete(c, failedAnswer(failure.Defect(about(b), nil)))
	}
	select {
	case <-b.submitted:
	default:
		close(b.submitted)
	}
	b.lines.EndSending()
	b.record.Close()
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	delete(b.t.batches, b)
	b.key.account.BatchEnds()
}

// logEnd logs how a batch ended.
func (b *batch) logEnd(o outcome, err error) {
	log := b.t.opts.Logger
	switch o {
	case outcomeDone, outcomeRejected, outcomeUnread:
		log.Info("batch ended", "batch", b.id(), "status", b.status.Word, "completed", b.status.Counts.Completed, "failed", b.status.Counts.Failed)
	case outcomeRefused:
		log.Error("batch could not be submitted", "error", err, "calls", b.size, "endpoint", b.url)
	case outcomeLost:
		log.Error("batch given up", "batch", b.id(), "error", err)
	case outcomeTakenOver:
		if errors.Is(err, journalsession.ErrTaken) {
			log.Warn("the lease of this process expired, and another process took the batch before the batch was created; the calls are resubmitted", "calls", b.size)
		}
	case outcomeMoved:
		log.Info("call sent in another lane", "reason", err)
	case outcomeNoCallers, outcomeClosed, outcomePanicked:
	}
}

// giveUp ends a call that no batch will answer: at the flex tier in mode auto, in real
// time, or with a.
func (b *batch) giveUp(c *call, a *answer) {
	if r := b.t.registry; a.Err == nil && r.HasWaiter(c) && !r.Returns(c) && !c.Recalled {
		if !b.key.flex() && !r.HasForked(c) && c.Request.climbs(b.t.opts.FlexFallback == FallbackRealtime) && !a.Paid {
			b.move([]*call{c}, ModeRealtime)
			return
		}
		if !a.Paid || b.t.opts.Escalate != EscalateNever && !b.key.flex() { // no flex call, and no fallback alone, is paid for twice
			if spending, ok := b.t.escalator.allow(c, a.ErrorMessage(), b.key.flex()); ok {
				a = &answer{Realtime: true, Instead: a, Spending: spending}
			}
		}
	}
	b.t.registry.Complete(c, a)
}

// deleteFiles deletes the files of a batch that ends. With Options.Files delete,
// files in which something may still be of use are kept: results that could not
// be read, or whose callers may come back. At Doubleword, deleting an input file
// deletes its batch, and so the input file of a batch that exists is never
// deleted before the batch has ended.
func (b *batch) deleteFiles(d deletion, err error) {
	var sources []string
	switch {
	case d == deleteNone:
		return
	case d == deleteInput:
		if b.status.Handle.FileID == "" || b.recovered != "" || errors.Is(err, backend.ErrUnsure) {
			return
		}
	case b.t.opts.Files != FilesDelete || b.status.Phase != backend.Ended || b.results.Err() != nil || b.results.Malformed() > 0,
		!b.record.AllDelivered(b.t.ctx):
		return
	default:
		sources = b.status.Sources
	}
	if err := b.backend.Cleanup(b.t.ctx, b.status.Handle, sources); err != nil {
		b.t.opts.Logger.Warn("files not deleted", "batch", b.id(), "file", b.status.Handle.FileID, "error", err)
	}
}

// updateRecord stores the last state of a batch. Where it is not known whether
// the batch was created, the record says so, so that no other process waits for
// the batch.
func (b *batch) updateRecord(u lastUpdate, err error) {
	ctx, last := b.t.journalCtx, journal.Step{BatchID: b.id(), Status: b.status.Word}
	last.Cost, last.Savings = b.bill.Amounts()
	switch {
	case u == updateNone:
	case b.id() == "" && errors.Is(err, backend.ErrUnsure):
		last.Status = "unknown" // the batch may or may not exist
		b.record.End(ctx, last)
	case u == updateDiscarded:
		b.record.Discard(ctx)
	case err != nil && b.id() == "": // another process has the batch
	case errors.Is(err, errRejected), errors.Is(err, errUnread), err == nil:
		b.record.End(ctx, last)
	default:
		last.Status = failure.LostCode(err)
		b.record.End(ctx, last)
	}
}

// id is the id of the batch at the provider, or "" until the batch was created.
func (b *batch) id() string { return b.status.Handle.BatchID }

// emit reports what happened to the batch.
func (b *batch) emit(name EventName, err error) {
	e := Event{
		Name: name, Time: time.Now(), BatchID: b.id(), Endpoint: b.url,
		InputFileID: b.status.Handle.FileID, OutputFileID: b.status.OutputFileID, ErrorFileID: b.status.ErrorFileID,
		RequestCount: b.size, Models: b.names.Models, Callers: b.names.Callers, Traces: b.names.Traces, CompletionWindow: b.key.window, Metadata: b.t.opts.Metadata,
		Counts: Counts(b.status.Counts), Status: b.status.Word, Cost: Cost(b.bill.Total),
	}
	if !b.created.IsZero() {
		e.Elapsed = time.Since(b.created)
	}
	if err != nil {
		e.Error = err.Error()
	}
	b.t.mu.Lock()
	if _, runs := b.t.batches[b]; runs {
		b.t.batches[b] = e
	}
	b.t.mu.Unlock()
	if reports(b) {
		b.t.events.Emit(e)
	}
}

// reports says whether this process reports and counts the batch: of calls in the background,
// whose answers each process reads that is asked for them, the owner of the batch does.
func reports(b *batch) bool {
	return b.recovered == "" || !b.key.background || b.recovered != journal.Ended && b.record.Mine()
}
