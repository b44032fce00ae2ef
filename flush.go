package autobatcher

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/autobatcher/autobatcher/internal/accounts"
	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/collector"
	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/retry"
	"github.com/autobatcher/autobatcher/journal"
)

// enter registers a call and, unless an earlier call's line or answer is there,
// queues the call.
func (t *Transport) enter(c *call) (*waiter, error) {
	a := c.Request.key.account
	planned := c.Reservation // from Enter on, the registry has the reservation
	w, queue, ok := t.registry.Enter(c)
	if ok && queue {
		// The journal may know a line of the call, which is paid for: then claim decides.
		if err := planned.Take(); err != nil && t.opts.Journal == nil && t.registry.Withdraw(c) {
			return nil, t.router.exhausted(err, c)
		}
		if ok = t.collector.Add(c); ok {
			t.session.FindSoon(a.Hash, journal.Hash(c.Fingerprint), a.Retries)
		} else {
			t.registry.Withdraw(c)
		}
	}
	if !ok {
		return nil, fmt.Errorf("%w; it takes no new calls", ErrClosed)
	}
	return w, nil
}

// bytesPerToken is the number of bytes that a token is estimated at. A limit
// that a refusal names corrects the estimate.
const bytesPerToken = 4

// entry describes a call to the collector.
func (t *Transport) entry(c *call) collector.Entry[key, *call] {
	r := &c.Request
	limits := r.at.Limits
	if r.key.flex() {
		limits.Calls = 1
	}
	if tokens := r.key.account.Lane(r.key.window).Limiter.TokenLimit(r.key.group); tokens > 0 {
		limits.Bytes = min(limits.Bytes, tokens*bytesPerToken)
	}
	return collector.Entry[key, *call]{Key: &r.key, Slot: &r.slot, Bytes: int64(c.Size()) + 1, Inputs: int(r.inputs), Limits: limits}
}

// collect waits until the queue takes no more calls. A call in mode auto that is alone
// is sent at the flex tier.
func (b *batch) collect() error {
	if err := b.queue.Wait(b.t.ctx, b.t.opts.BatchWindow, b.t.opts.QuietAfter); err != nil {
		return err
	}
	switch {
	case b.prefersFlex():
		return errAlone
	case b.history.delay == 0:
		return nil
	}
	return retry.Sleep(b.t.ctx, b.history.delay)
}

// takeTurn waits until the provider has room for the batch, as far as is known,
// and may create another batch. Meanwhile callers may leave, and calls may join
// or get the line of an earlier call. A queue that becomes empty waits no longer.
func (b *batch) takeTurn() error {
	ctx, cancel := context.WithCancelCause(b.t.ctx)
	defer cancel(nil)
	b.queue.OnEmpty(func() { cancel(errNoCallers) })
	_, size := b.queue.Size()
	grant, err := b.lane.Limiter.Acquire(ctx, b.key.group, size/bytesPerToken)
	b.grant = grant
	return err
}

// claim makes the queued calls the lines of the batch, but for the calls whose
// earlier attempt left a line that the journal knows: in this process, in a
// process that died, or at another replica.
//
// Lines are looked for once more here, and not only when a call enters, because
// a retry can arrive before the end of its first attempt is noticed, and because
// the lines of a replica that died can be taken over only when its lease expires.
func (b *batch) claim() error {
	b.queue.Seal()
	calls, a := b.queue.Calls(), b.key.account
	queued := func() []journal.Hash { return b.t.registry.Queued(calls) }
	err := a.TakeOver(b.t.ctx, b.t.session, queued, earlierFingerprints(calls))
	if b.t.ctx.Err() != nil {
		return context.Cause(b.t.ctx) // Close answers the callers
	}
	if b.t.router.meter.Budget() != nil {
		b.t.registry.Refuse(calls, func(err error) *answer { return &answer{Answer: b.t.router.exhausted(err, nil).Answer()} })
	}
	sent := b.t.registry.ClaimQueue(b.queue, b.lines)
	b.size = len(sent)
	b.names = caller.NamesOf(sent, asked)
	switch {
	case err != nil:
		return err
	case b.size == 0:
		return errNoCallers // each call has another line, or no caller
	}
	b.url = sent[0].URL
	return nil
}

// asked returns the model that a call asks for, and the caller.
func asked(c *call) (model string, by *caller.Caller) { return c.Request.model, c.Request.caller }

// earlierFingerprints are the fingerprints that calls had before their account had a
// name.
func earlierFingerprints(calls []*call) accounts.Renaming {
	old := accounts.NewRenaming()
	for _, c := range calls {
		old.Add(journal.Hash(c.Fingerprint), c.Request.legacy)
	}
	return old
}

// submitTimeout is how long, after a create that was not answered and made no
// batch, another round of upload and create may begin.
const submitTimeout = 30 * time.Minute

// submit makes a batch of the lines at the provider: upload, then create.
func (b *batch) submit() error {
	if err := b.beginRecord(); err != nil {
		return err
	}
	began := time.Now()
	for attempt := 1; ; attempt++ {
		err := b.upload()
		if err == nil {
			err = b.create()
		}
		if !errors.Is(err, backend.ErrInputDeleted) {
			return err
		}
		b.status.Handle = backend.Handle{}
		wait := retry.Backoff(attempt)
		if time.Since(began)+wait > submitTimeout || retry.Sleep(b.t.ctx, wait) != nil || b.grant.NextSlot(b.t.ctx) != nil {
			return err
		}
	}
}

// beginRecord writes the batch into the journal before anything of the batch can
// be paid for.
func (b *batch) beginRecord() error {
	a := b.key.account
	err := b.record.Begin(b.t.ctx, journal.Batch{
		Ref:     journalsession.RefPrefix(b.key.background),
		Account: a.Hash, Upstream: a.Upstream(), Provider: b.key.account.Profile.Name,
		Endpoint: b.url, Window: b.key.window, Models: b.names.Models, Traces: strings.Join(b.names.Traces, " "),
	}, func() []journal.Line {
		lines := make([]journal.Line, b.size)
		for i, c := range b.lines.Sent() {
			lines[i] = journal.Line{CustomID: c.ID, Fingerprint: journal.Hash(c.Fingerprint)}
		}
		return lines
	})
	b.lines.Known(b.record.Ref())
	return err
}

// inputFile is the input file of a batch with the lines of the calls.
func inputFile(sent []*call) line.File {
	return line.File{Lines: len(sent), At: func(i int) *line.Line { return &sent[i].Line }}
}

// upload uploads the input file.
func (b *batch) upload() error {
	h, err := b.backend.Prepare(b.t.ctx, inputFile(b.lines.Sent()), b.params("batch-"+uuid.NewString()+".jsonl"))
	b.status.Handle = h // also after an error, so that the file is deleted
	if err != nil {
		return err
	}
	return b.record.Advance(b.t.ctx, journal.Step{State: journal.Uploaded, InputFileID: h.FileID})
}

// create makes the batch of the file that was uploaded.
func (b *batch) create() error {
	wanted := func() error {
		if b.lines.CloseIfUnused() {
			return errNoCallers
		}
		return nil
	}
	if err := wanted(); err != nil { // all callers left during the upload
		return err
	}
	// Close must not interrupt a create, since the batch would be lost.
	ctx := b.t.journalCtx
	if err := b.record.Advance(ctx, journal.Step{State: journal.Creating, InputFileID: b.status.Handle.FileID}); err != nil {
		return err
	}
	b.grant.Used()
	params := b.params("")
	params.Pause = func(wait time.Duration) error {
		return b.record.Refused(ctx, b.status.Handle.FileID, func() error {
			if err := b.pause(wait, nil, wanted); err != nil {
				return err
			}
			return wanted()
		})
	}
	_, status, err := b.backend.Create(ctx, inputFile(b.lines.Sent()), b.status.Handle, params)
	if err != nil {
		return b.createError(ctx, err)
	}
	b.status, b.created = status, time.Now().Add(-status.Took)
	b.record.Running(ctx, b.id()) // before a caller in the background gets an id
	b.lines.SetID(b.id())
	close(b.submitted)
	b.t.opts.Logger.Info("batch submitted", "batch", b.id(), "calls", b.size, "endpoint", b.url)
	b.emit(BatchSubmitted, nil)
	return nil
}

// createError returns ErrTaken if a create was refused because another process,
// for which this process was dead, has decided about the batch and deleted its
// input file.
func (b *batch) createError(ctx context.Context, err error) error {
	if errors.Is(err, backend.ErrUnsure) || errors.Is(err, backend.ErrInputDeleted) || errors.Is(err, errNoCallers) {
		return err
	}
	taken := b.record.Advance(ctx, journal.Step{State: journal.Uploaded})
	if errors.Is(taken, journalsession.ErrTaken) {
		return taken
	}
	return err
}

// params are what the provider learns of the batch. Results live at least as long
// as a retry may ask for them.
func (b *batch) params(name string) backend.Params {
	o := &b.t.opts
	at := b.lines.Sent()[0].Request.at
	p := backend.Params{
		Name: name, Models: b.names.Models, Endpoint: b.key.account.Profile.Endpoint(at.Suffix), Window: b.key.window, Metadata: o.Metadata,
		Shared: at.Shared(b.key.group),
	}
	if o.Files == FilesExpire {
		p.FileExpiry = b.key.account.Profile.FileExpiry(b.key.window)
		p.OutputExpiry = max(p.FileExpiry, o.KeepFor)
	}
	return p
}
