package autobatcher

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/ledger"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/reply"
)

// maxResultLine bounds one line of an output file.
const maxResultLine = 256 << 20

// A resultFile is an output or error file, and how far it was read.
type resultFile struct {
	id      string // "" as long as there is none
	next    int    // the line at which reading goes on
	answers int    // how many there were when it was last read from its beginning
	read    bool   // at least once
	partial bool   // the server lets us go on where we stopped
	more    bool   // the server said that lines will come
}

// named notes the file's id. Providers write null, "" or nothing for "none",
// and name the file at any time.
func (f *resultFile) named(id string) {
	if id != "" && id != f.id {
		*f = resultFile{id: id}
	}
}

// harvestPartial reads what is there of a batch that still runs. A file that
// cannot be resumed is read only once, since each look would fetch it whole.
func (b *batch) harvestPartial() {
	again := b.wantsReread()
	for _, f := range []*resultFile{&b.output, &b.errors} {
		if f.id == "" || f.read && !f.partial && !again {
			continue
		}
		if again {
			f.next = 0
		}
		if err := b.read(f); err != nil {
			b.t.log.Debug("partial results not read", "batch", b.id, "file", f.id, "error", err)
		}
	}
	b.respawn(b.takeAgain(), 0)
}

const (
	// missingPatience is how long results that should be there are looked for
	// after a batch has ended: files may become visible late.
	missingPatience = 2 * time.Minute

	// brokenPatience is how long downloads that break or are turned away in
	// passing are repeated. The results are paid for, and kept for weeks; callers
	// who waited a day for their batch had better wait another than pay again.
	brokenPatience = 24 * time.Hour
)

// harvest reads the results of a batch that has ended, whatever its status,
// until every line has its answer or there is no hope left for the others.
func (b *batch) harvest() {
	if b.readResults() {
		b.conclude()
	}
}

// readResults reads both files as often as that may help. It reports false if
// the Transport ended meanwhile.
func (b *batch) readResults() bool {
	var spent [broken + 1]time.Duration // on each obstacle
	for try := 1; ; try++ {
		began := time.Now()
		err := b.readAll(b.wantsReread() || try > 1)
		if b.t.ctx.Err() != nil {
			return false // Close tells the callers
		}
		b.unread = err
		met, wait := weigh(err), batchapi.Backoff(try)
		spent[met] += wait
		if err != nil {
			spent[met] += time.Since(began)
		}
		if b.openLines() == 0 || err == nil && b.sawAll() || spent[met] > b.readPatience() {
			break
		}
		b.t.log.Debug("results are missing, looking again", "batch", b.id, "open", b.openLines(), "error", err)
		if batchapi.Sleep(b.t.ctx, wait) != nil {
			return false
		}
		b.refresh()
	}
	return true
}

// readPatience is how long to look for results, as the last look went.
func (b *batch) readPatience() time.Duration {
	switch weigh(b.unread) {
	case readWell:
		return missingPatience
	case broken:
		return brokenPatience
	}
	return gonePatience
}

// An obstacle is what keeps results from being read, the lesser first.
type obstacle int

const (
	readWell obstacle = iota
	gone              // a file that the provider named itself is not there
	refused           // the results are there, and we are told not to read them
	broken            // the results are there, and reading them failed
)

func weigh(err error) obstacle {
	var failed *batchapi.Error
	switch {
	case err == nil:
		return readWell
	case !errors.As(err, &failed), failed.Transient(), failed.RateLimited():
		return broken
	case failed.Status == http.StatusNotFound, failed.Status == http.StatusGone:
		return gone
	}
	return refused
}

// paidUnread reports whether results are there, for all that is known, that could
// not be read.
func (b *batch) paidUnread() bool { return weigh(b.unread) > gone }

// readAll reads both files, from where they were left or from the beginning:
// a line that Doubleword commits late can sort before lines already read. The
// error is that of the file with the greater obstacle.
func (b *batch) readAll(fromStart bool) (worst error) {
	for _, f := range []*resultFile{&b.output, &b.errors} {
		if fromStart || !f.partial {
			f.next = 0
		}
		if f.id != "" && b.openLines() > 0 {
			if err := b.read(f); weigh(err) > weigh(worst) {
				worst = err
			}
		}
	}
	return worst
}

// sawAll reports whether the provider itself says that there are no more
// results than those that were read.
func (b *batch) sawAll() bool {
	named := b.output.id != "" || b.errors.id != ""
	if b.output.more || b.errors.more || b.profile.LateResults && b.state.Status == "cancelled" {
		return false
	}
	promised := b.state.Counts.Completed + b.state.Counts.Failed
	if !named {
		// Nothing ran where validation failed or the end came first.
		return b.state.Status != "completed" && (b.state.Status == "failed" || promised == 0)
	}
	return promised > 0 && b.output.answers+b.errors.answers >= promised
}

// refresh looks once more at a batch that has ended: the ids of its files may
// come late.
func (b *batch) refresh() {
	if state, err := b.api.Retrieve(b.t.ctx, b.id); err == nil {
		state.Status = b.state.Status
		b.state = state
		b.output.named(state.OutputFileID)
		b.errors.named(state.ErrorFileID)
	}
}

// read reads a result file from where it was left, and settles a call with
// each line. What a torn download brought counts.
func (b *batch) read(f *resultFile) error {
	content, err := b.api.Content(b.t.ctx, f.id, f.next)
	if err != nil {
		return err
	}
	defer content.Body.Close()
	// Only what one look shows counts: between two, lines may change places.
	fromStart := f.next == 0
	f.answers = 0
	r := line.NewReader(content.Body, maxResultLine)
	for {
		text, err := r.Next()
		if err == nil {
			if b.deliver(text) && fromStart {
				f.answers++
			}
			continue
		}
		if errors.Is(err, line.ErrTooLong) {
			b.garbled = true
			b.t.log.Error("result line skipped", "batch", b.id, "file", f.id, "error", err)
			continue
		}
		whole := errors.Is(err, io.EOF)
		f.advance(content, r.Lines(), whole)
		if whole {
			return nil
		}
		return err
	}
}

// advance notes how far the file was read. Only a whole answer makes good on
// what X-Last-Line promised.
func (f *resultFile) advance(content *batchapi.Content, lines int, whole bool) {
	f.read, f.partial = true, content.Partial
	f.more = content.Incomplete || !whole
	if whole && content.LastLine >= f.next {
		f.next = content.LastLine
		return
	}
	f.next += lines
}

// deliver settles the call that a result line is for, and reports whether that is
// an answer. A line that cannot be read, or is for nobody, costs nobody else.
func (b *batch) deliver(text []byte) bool {
	result, err := line.Parse(text)
	if err != nil {
		b.garbled = true
		b.t.log.Warn("result line not understood", "batch", b.id, "bytes", len(text))
		return false
	}
	b.t.mu.Lock()
	c := b.open[result.ID]
	b.t.mu.Unlock()
	switch {
	case c == nil: // answered already, or none of ours
	case result.Answered():
		b.t.settle(c, &answer{Answer: reply.Of(&result)})
	default:
		b.unanswered(c, b.lineFailure(&result))
	}
	return result.Answered()
}

// unanswered decides what becomes of a call that its batch did not answer: it
// rides again, or goes in real time, or fails.
func (b *batch) unanswered(c *call, a *answer) {
	b.t.mu.Lock()
	again := c.tries < b.t.opts.Resubmits && c.waiter != nil && !c.ended
	if again {
		c.tries++
		delete(b.open, c.ID)
		b.again = append(b.again, c)
	}
	b.t.mu.Unlock()
	if !again {
		b.giveUp(c, a)
	}
}

// giveUp ends a call that no batch will answer: in real time, or with a.
func (b *batch) giveUp(c *call, a *answer) {
	b.t.mu.Lock()
	alone := c.waiter == nil
	b.t.mu.Unlock()
	if reason := a.Reason(); !alone && b.t.mayEscalate(reason) {
		b.t.tellEscalated(c, reason)
		a = &answer{realtime: true}
	}
	b.t.settle(c, a)
}

// giveUpRest gives up the calls that are still open.
func (b *batch) giveUpRest(a *answer) { b.eachOpen(a, b.giveUp) }

// eachOpen calls f for the calls that are still open, each with a copy of a.
func (b *batch) eachOpen(a *answer, f func(*call, *answer)) {
	b.t.mu.Lock()
	rest := slices.Collect(maps.Values(b.open))
	b.t.mu.Unlock()
	for _, c := range rest {
		own := *a
		f(c, &own)
	}
}

// conclude ends a harvested batch: calls that got no line ride again, or learn
// why there is none.
func (b *batch) conclude() {
	switch {
	case b.paidUnread():
		b.giveUpRest(b.unreadable()) // nothing is bought again, unless calls are escalated
	case b.state.Status == "failed" && len(b.state.Problems) > 0:
		b.giveUpRest(b.verdict()) // refused whole: it would be again
	default:
		b.eachOpen(b.verdict(), b.unanswered)
	}
	b.respawn(b.takeAgain(), 0)
	if b.state.Status == "completed" {
		b.emit(BatchCompleted)
	} else {
		b.emit(BatchTerminal)
	}
	b.t.log.Info("batch ended", "batch", b.id, "status", b.state.Status, "completed", b.state.Counts.Completed, "failed", b.state.Counts.Failed)
	b.close()
}

// close ends a batch in the journal, when its files are tidied up.
func (b *batch) close() {
	b.writeNotes(b.t.lasting)
	b.tidy()
	b.t.ledger.End(b.t.ctx, b.ref, b.id, b.state.Status)
}

func (b *batch) takeAgain() []*call {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	calls := b.again
	b.again = nil
	return calls
}

// tidy deletes the files of a batch that has ended, if that is wanted, and if
// nothing is in them that somebody may still want: results that could not be
// read, or whose callers may come back. At Doubleword, deleting an input file
// deletes its batch, so never before its end.
func (b *batch) tidy() {
	if b.t.opts.Files != FilesDelete || !b.state.Terminal() || b.unread != nil || b.garbled || !b.delivered() {
		return
	}
	for _, id := range []string{b.state.InputFileID, b.output.id, b.errors.id} {
		if id == "" || strings.Contains(id, "/") { // a URL is not ours to delete
			continue
		}
		b.delete(id)
	}
}

// deliveryPatience is how long callers are waited for who read their answers yet.
const deliveryPatience = time.Minute

// delivered reports whether every line's caller has its answer, as far as the
// journal knows, which is soon told.
func (b *batch) delivered() bool {
	for wait := time.Second; ; wait *= 2 {
		if b.t.ledger.Settled(b.t.ctx, b.ref) {
			return true
		}
		if wait > deliveryPatience/2 || batchapi.Sleep(b.t.ctx, wait) != nil {
			return false
		}
	}
}

// delete deletes a file, as well as that can be done.
func (b *batch) delete(fileID string) {
	if err := b.api.DeletePatiently(b.t.ctx, fileID); err != nil {
		b.t.log.Warn("file not deleted", "batch", b.id, "file", fileID, "error", err)
	}
}

// verdict is the answer for a call whose batch ended without a line for it.
func (b *batch) verdict() *answer {
	code, what := "batch_line_missing", "completed, but has no result for this request"
	switch b.state.Status {
	case "completed":
	case "failed":
		code, what = "batch_failed", "failed"
	case "expired":
		code, what = "batch_expired", "expired before it came to this request"
	default:
		code, what = "batch_cancelled", "was cancelled before it came to this request"
	}
	message := "batch " + b.id + " " + what
	for i, p := range b.state.Problems[:min(len(b.state.Problems), 5)] {
		message += map[bool]string{true: ": ", false: "; "}[i == 0] + problemText(p)
	}
	return failure(http.StatusFailedDependency, code, message)
}

// unreadable is the answer for a call whose result is there, for all that is
// known, and could not be fetched. Its line stays open where there is a journal,
// so that the same call again looks for the result again.
func (b *batch) unreadable() *answer {
	a := failure(http.StatusFailedDependency, "batch_results_unread",
		fmt.Sprintf("the results of batch %s (%s) could not be downloaded within %v: %v", b.id, b.state.Status, b.readPatience(), b.unread))
	a.reopen = true
	return a
}

func problemText(p batchapi.Problem) string {
	text := p.Message
	if p.Code != "" {
		text += " (" + p.Code + ")"
	}
	if p.Line > 0 {
		text = "line " + strconv.Itoa(p.Line) + ": " + text
	}
	return text
}

// An answer is what settles a call: a response, the error that RoundTrip
// returns, or the word that the caller is to send its call in real time.
type answer struct {
	reply.Answer
	err      error
	realtime bool
	reopen   bool  // its line may yet answer the same call's next try
	line     *call // whose line it came from; nil for an answer that was kept
}

// journalled reports whether the journal is to be told when the caller has read
// the answer.
func (a *answer) journalled() bool {
	return a.line != nil && a.line.batch.ref != "" && !a.Ours && !a.realtime && a.err == nil
}

// failure is an answer of ours, in OpenAI's error shape.
func failure(status int, code, message string) *answer {
	return &answer{Answer: reply.Failure(status, code, message)}
}

// lineRefused is the answer for the caller of a line that the provider refused
// the file for, in the provider's words.
func lineRefused(batchID string, p batchapi.Problem) *answer {
	code := p.Code
	if code == "" {
		code = "invalid_batch_line"
	}
	a := failure(http.StatusBadRequest, code, "the provider refused this request's line of the batch: "+problemText(batchapi.Problem{Message: p.Message, Code: p.Code}))
	a.BatchID = batchID
	return a
}

// lineFailure is the answer for a line that got no HTTP answer. SDKs do not
// retry 424, which is right: a retry would be another line, and paid for.
func (b *batch) lineFailure(r *line.Result) *answer {
	message := "batch " + b.id + " could not answer this request"
	if why := cmp.Or(r.Message, r.Code); why != "" {
		message += ": " + why
	}
	return failure(http.StatusFailedDependency, cmp.Or(r.Code, "batch_line_failed"), message)
}

// submissionAnswer tells the callers why their batch could not be submitted.
// A refusal of the provider's is passed on as it is; nothing was submitted
// where the provider could not be reached, so that a retry is safe.
func submissionAnswer(err error) *answer {
	if errors.Is(err, ledger.ErrFailed) {
		return failure(http.StatusServiceUnavailable, "journal_failed", "the call was not submitted: "+err.Error())
	}
	if errors.Is(err, batchapi.ErrUnsure) {
		return failure(http.StatusFailedDependency, "batch_create_unknown", "the batch could not be submitted: "+err.Error())
	}
	var failed *batchapi.Error
	if !errors.As(err, &failed) || failed.Transient() || failed.RateLimited() {
		return failure(http.StatusServiceUnavailable, "batch_not_submitted", "the batch could not be submitted: "+err.Error())
	}
	return &answer{Answer: reply.Refused(failed.Status, failed.Body, failed.Message())}
}

// settle ends a call. It is the one place where that happens. Without a caller,
// an answer that was paid for is kept for the same call's next try.
func (t *Transport) settle(c *call, a *answer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.ended {
		return
	}
	c.ended, c.Body = true, nil
	a.BatchID, a.CustomID = c.batch.id, c.ID
	delete(c.batch.open, c.ID)
	if c.waiter == nil {
		t.forget(c)
		switch {
		case c.unwanted:
			c.batch.noteDelivered(c) // its caller has an answer
		case c.batch.ref == "": // else the journal knows where to find it
			t.keepForRetry(c, a)
		}
		return
	}
	switch a.line = c; {
	case a.reopen:
		c.batch.noteLeft(c)
	case a.Ours, a.realtime:
		c.batch.noteDelivered(c) // a line that failed is of no use to anybody
	}
	switch {
	case a.Ours || a.err != nil:
		t.stats.Failed++
	case !a.realtime:
		t.stats.Answered++
	}
	if a.journalled() {
		t.reading++
	}
	c.waiter.answer <- a
	c.waiter = nil
	t.callers(-1)
	c.batch.waiting--
	c.batch.watchLonely()
}

// settleRest ends the calls that are still open.
func (b *batch) settleRest(a *answer) { b.eachOpen(a, b.t.settle) }

// keptBytes bounds the answers kept for callers that have gone.
const keptBytes = 64 << 20

// failureKeepTime is how long a failure is kept that its caller did not live to
// read: SDKs retry within seconds, and that retry is to learn of it instead of
// paying for another line.
const failureKeepTime = 2 * time.Minute

// keepTime is how long an answer may be kept.
func (t *Transport) keepTime(a *answer) time.Duration {
	if a.Ours || a.Status >= 400 {
		return min(t.opts.KeepFor, failureKeepTime)
	}
	return t.opts.KeepFor
}

// keepForRetry keeps an answer that came without a caller, if it is worth it: a
// new try of what failed in passing may fare better. The caller holds t.mu.
func (t *Transport) keepForRetry(c *call, a *answer) {
	passing := a.Status >= 500 || slices.Contains([]int{http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusConflict}, a.Status)
	if !a.Ours && !passing {
		t.keep(c, a, t.opts.KeepFor)
	}
}

// keep stores an answer that nobody waits for: the same call again will get
// it. The caller holds t.mu.
func (t *Transport) keep(c *call, a *answer, d time.Duration) {
	if d <= 0 || c.unwanted || c.answer != nil || a.err != nil || a.realtime {
		return
	}
	c.answer, c.keptUntil = a, time.Now().Add(d)
	t.left[c.print] = append(t.left[c.print], c)
	t.kept = append(t.kept, c)
	t.keptSize += int64(len(a.Body))
	t.prune()
}

// prune drops the kept answers that are too old or too many. The caller holds
// t.mu.
func (t *Transport) prune() {
	for len(t.kept) > 0 {
		c := t.kept[0]
		if c.answer != nil && t.keptSize <= keptBytes && time.Now().Before(c.keptUntil) {
			return
		}
		t.kept = t.kept[1:]
		if c.answer != nil {
			t.keptSize -= int64(len(c.answer.Body))
			c.answer = nil
			t.forget(c)
		}
	}
}

// forget takes c out of the lines and answers whose callers have gone. The
// caller holds t.mu.
func (t *Transport) forget(c *call) {
	rest := slices.DeleteFunc(t.left[c.print], func(other *call) bool { return other == c })
	if len(rest) == 0 {
		delete(t.left, c.print)
		return
	}
	t.left[c.print] = rest
}

// takeOver hands c's caller a line or an answer that an earlier try of the same
// call left behind, and reports whether there was one. The caller holds t.mu.
func (t *Transport) takeOver(c *call) bool {
	t.prune()
	i := slices.IndexFunc(t.left[c.print], (*call).takeable)
	if i < 0 {
		return false
	}
	first := t.left[c.print][i]
	t.forget(first)
	w := c.waiter
	c.waiter, c.ended = nil, true
	if first.answer != nil {
		w.answer <- first.answer
		t.callers(-1)
		t.keptSize -= int64(len(first.answer.Body))
		first.answer = nil // prune drops it from kept
		return true
	}
	w.call, first.waiter = first, w
	first.batch.waiting++
	first.batch.watchLonely()
	return true
}

// takeable reports whether a line or answer that was left behind may be taken
// over. The caller holds t.mu.
func (c *call) takeable() bool {
	if c.answer != nil {
		return time.Now().Before(c.keptUntil)
	}
	return !c.batch.doomed
}

// leave notes that a caller waits no longer. What was not sent never will be; a
// line that was stays open for the same call's next try. It returns the call that
// is left behind, or the answer that came in this very moment, or neither.
func (t *Transport) leave(w *waiter) (left *call, found *answer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case a := <-w.answer:
		return nil, a
	default:
	}
	c := w.call
	t.stats.Left++
	t.callers(-1)
	c.waiter = nil
	if c.batch.open == nil {
		c.batch.remove(c)
		c.ended = true
		return nil, nil
	}
	t.left[c.print] = append(t.left[c.print], c)
	c.batch.noteLeft(c)
	c.batch.waiting--
	c.batch.watchLonely()
	return c, nil
}

// hangUp is leave for a caller who would not read an answer: it is left for the
// same call's next try.
func (t *Transport) hangUp(w *waiter) {
	_, found := t.leave(w)
	if found == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if found.journalled() {
		t.reading--
		found.line.batch.noteLeft(found.line)
		return
	}
	t.keep(w.call, found, t.keepTime(found))
}

// dismiss notes that nobody will come back for a call that was left behind: its
// caller has got its answer elsewhere.
func (t *Transport) dismiss(c *call) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c == nil || c.waiter != nil || t.awaited(c.batch.ref)(c.ID) {
		return // somebody has come back for it
	}
	t.forget(c)
	c.unwanted = true
	if c.answer != nil { // which only calls have that the journal does not know
		t.keptSize -= int64(len(c.answer.Body))
		c.answer = nil // prune drops it from kept
		return
	}
	c.batch.noteDelivered(c)
}

// watchLonely starts the time after which a batch without callers is
// cancelled, or stops it. The caller holds t.mu.
func (b *batch) watchLonely() {
	lonely := b.deserted() && b.t.opts.AbandonAfter > 0
	switch {
	case !lonely && b.lonely != nil:
		b.lonely.Stop()
		b.lonely = nil
	case lonely && b.lonely == nil:
		b.lonely = time.AfterFunc(b.t.opts.AbandonAfter, func() {
			select {
			case b.abandoned <- struct{}{}:
			default: // told already
			}
		})
	}
}

func (b *batch) isLonely() bool {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	return b.deserted()
}

// deserted reports whether there are lines left, and nobody waits for any. The
// caller holds t.mu.
func (b *batch) deserted() bool { return b.waiting == 0 && len(b.open)+b.freed > 0 }

func (b *batch) openLines() int {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	return len(b.open)
}

// respond makes the caller's response of an answer.
func (t *Transport) respond(req *http.Request, c *call, a *answer) (*http.Response, error) {
	if a.err != nil {
		return nil, a.err
	}
	var res *http.Response
	if c.stream && a.Status < 300 {
		res = a.Stream(req, c.suffix == "/responses", c.usage)
	} else {
		res = a.Response(req)
	}
	if body, ok := res.Body.(*reply.Body); ok {
		t.follow(body, c, a)
	}
	return res, nil
}

// follow notes whether the caller lives to read its answer. If not, the line is
// still there for the call's next try: in the journal, if that knows it, or else
// as an answer that is kept.
func (t *Transport) follow(body *reply.Body, c *call, a *answer) {
	journalled := a.journalled()
	if journalled {
		body.Done = func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			journalled = false
			t.reading--
			a.line.batch.noteDelivered(a.line)
		}
	}
	body.Unread = func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if journalled {
			t.reading--
			a.line.batch.noteLeft(a.line)
		} else {
			t.keep(c, a, t.keepTime(a))
		}
	}
}

// refuse answers a request that cannot be batched. Only what is no refusal,
// such as a body that breaks off, is a Go error.
func refuse(req *http.Request, err error) (*http.Response, error) {
	var r *reply.Refusal
	if !errors.As(err, &r) {
		return nil, err
	}
	return r.Response(req), nil
}
