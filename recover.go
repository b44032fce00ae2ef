package autobatcher

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/accounts"
	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/background"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/flexapi"
	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/internal/retry"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// How long, and how often, the journal is asked about a batch that another
// process was about to create. Uploading and creating take half an hour each at
// the most, and the record changes with each step.
const (
	recoverTimeout  = 3 * time.Hour
	recoverInterval = time.Second
)

// Recover resumes, with a journal, the batches that an earlier process left
// running: the batches of the account that header (Authorization, and any other
// header that says who pays) and baseURL ("https://api.openai.com/v1", with the
// query that the account's calls have) belong to. Options.Account is asked for
// the name of the account, if it is set. Without Recover the first call of the
// account resumes the batches.
//
// The error is not nil if baseURL is no URL or the Transport is closed. The work
// happens in the background, and its errors are logged.
func (t *Transport) Recover(baseURL string, header http.Header) error {
	u, err := url.Parse(baseURL)
	if err != nil {
		return err
	}
	upstream, profile := t.router.endpoints.Base(u)
	t.router.accounts.Of(&http.Request{Method: http.MethodPost, URL: u, Header: header}, upstream, profile)
	if !t.start(t.rescue) {
		return ErrClosed
	}
	return nil
}

// rescue resumes the batches whose owner is gone, as far as this process knows
// the credential of their account.
func (t *Transport) rescue() {
	for _, known := range t.session.Orphans(t.ctx) {
		a := t.router.accounts.ByHash(known.Account)
		if a == nil {
			continue
		}
		// A claim whose answer was lost may have succeeded.
		if mine, err := t.session.Claim(t.ctx, known.Ref); mine || err != nil {
			t.resume(a, known).Claimed(mine)
		}
	}
}

// maintain repeats what may succeed later: the journal may fail at first, a
// replica that dies holds its lines until its lease expires, and a replica may
// notice only later that the caller of a line has gone, whose retry waits here.
func (t *Transport) maintain() {
	for retry.Sleep(t.ctx, journalsession.Lease) == nil {
		t.session.Flush(t.ctx)
		t.session.HoldExpired(t.ctx)
		t.rescue()
		for _, b := range t.allBatches() {
			calls := b.queue.Calls()
			queued := func() []journal.Hash { return t.registry.Queued(calls) }
			b.key.account.TryTakeOver(t.ctx, t.session, queued, earlierFingerprints(calls))
		}
	}
}

// retries are the queued calls of an account.
type retries struct {
	t       *Transport
	account *accounts.Account
}

// Waiting implements journalsession.Retries.
func (r retries) Waiting(fingerprints []journal.Hash) []journal.Hash {
	return r.t.registry.Waiting(fingerprints)
}

// Place implements journalsession.Retries.
func (r retries) Place(taken []journal.Taken) {
	r.t.registry.Place(taken, func(known journal.Batch) *lineSet { return r.t.resume(r.account, known) })
}

// resume returns the lines of a batch that the journal knows, and starts a batch
// of this process for the batch if there is none.
func (t *Transport) resume(a *accounts.Account, known journal.Batch) *lineSet {
	return t.registry.LinesOf(known.Ref, func() *lineSet {
		b := t.newBatch(t.collector.Recovered(key{account: a, window: known.Window, background: journalsession.IsKept(known.Ref)}), recovering)
		b.url = known.Endpoint
		b.record = t.session.Resume(&known, b.lines)
		b.lines.SetRecord(b.record)
		b.recovered, b.names.Models, b.created = known.State, known.Models, cmp.Or(known.Created, known.Began)
		b.status.Handle = backend.Handle{FileID: known.InputFileID, BatchID: known.BatchID}
		b.lines.SetIDLocked(known.BatchID)
		close(b.submitted)
		t.startBatch(b, true)
		return b.lines
	})
}

// recall makes a call without a body: it gets the answer that is kept for its
// fingerprint, or waits for a line that an earlier call has left.
func (t *Transport) recall(req *http.Request) (*http.Response, error) {
	mark := background.MarkOf(req.Context())
	if kept := t.registry.Kept(mark.Line, mark.Discard); kept != nil {
		return kept.Response(req), nil
	}
	c := &call{Request: request{at: t.router.endpoints.Of(req.URL), caller: caller.Of(req.Context())}, Recalled: true}
	t.router.identify(c, req, nil, mark)
	w, queued, ok := t.registry.Enter(c)
	if !ok {
		return nil, ErrClosed
	}
	if queued {
		waiting := func() []journal.Hash { return t.registry.Queued([]*call{c}) }
		c.Request.key.account.TryTakeOver(t.ctx, t.session, waiting, accounts.NewRenaming())
		if t.registry.Withdraw(c) {
			return nil, background.ErrNotFound
		}
	}
	announce(req, c, t.registry.NameOf)
	return t.await(req, c, w)
}

// findExisting finds out whether the batch was created. Other processes may be at
// work on the batch meanwhile, and so only what the journal says after this
// process has claimed the batch counts.
func (b *batch) findExisting() error {
	changed := time.Now()
	for {
		mine, _ := b.record.Claim(b.t.ctx)
		known, err := b.record.Look(b.t.ctx)
		switch {
		case err == nil:
			if known.State != b.recovered || known.InputFileID != b.status.Handle.FileID {
				changed = time.Now()
			}
			b.update(known)
			if gone := flexapi.Gone(&known); gone != nil {
				return gone
			}
		case b.id() != "":
			b.recovered = journal.Running // as far as is known
		case errors.Is(err, journal.ErrNoBatch):
			return backend.ErrAbsent
		}
		switch {
		case b.id() != "":
			b.resumed()
			return nil
		case err == nil && b.recovered == journal.Ended, time.Since(changed) > recoverTimeout:
			return backend.ErrUnsure
		case err == nil && mine:
			return b.findAtProvider()
		}
		// The owner of the batch lives, and is about to create the batch.
		if err := retry.Sleep(b.t.ctx, recoverInterval); err != nil {
			return err
		}
	}
}

// update notes what the journal knows of the batch.
func (b *batch) update(known journal.Batch) {
	b.recovered, b.size, b.created = known.State, known.Lines, cmp.Or(known.Created, known.Began)
	b.names.Traces = strings.Fields(known.Traces)
	b.bill.Earlier(known.Cost)
	b.status.Handle = backend.Handle{FileID: known.InputFileID, BatchID: cmp.Or(known.BatchID, b.id())}
	b.lines.SetID(b.id())
}

// findAtProvider looks for a batch whose owner died before it stored the id of
// the batch: the batch was about to be created or, since a journal can fail, had
// its input file.
func (b *batch) findAtProvider() error {
	h := b.status.Handle
	if b.recovered != journal.Creating && (h.FileID == "" || b.key.window == provider.FlexWindow) {
		return backend.ErrAbsent
	}
	found, existence, err := b.backend.Find(b.t.ctx, h, b.created)
	switch {
	case b.t.ctx.Err() != nil:
		return b.t.ctx.Err()
	case existence == backend.Found:
		b.status.Handle = found
		b.lines.SetID(b.id())
		b.record.Running(b.t.ctx, found.BatchID)
		b.resumed()
		return nil
	case existence == backend.Absent:
		return backend.ErrAbsent
	}
	return errors.Join(backend.ErrUnsure, err) // the batch may exist: better no answer than to pay twice
}

// resumed reports a batch of another process, and cancels the batch if the other
// process was about to cancel it.
func (b *batch) resumed() {
	b.t.opts.Logger.Info("batch resumed", "batch", b.id())
	b.emit(BatchResumed, nil)
	if b.recovered == journal.Cancelling && b.lines.BeginCancel(false) {
		b.cancel(b.t.ctx, nil)
	}
}
