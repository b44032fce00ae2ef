package simulation

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
)

// What a simulation checks, beside that it ends (a bubble in which somebody
// hangs is a deadlock, and longest bounds every call):
//
//  1. A call ends with the answer of a line of its own: of its key's, with its
//     prompt, that the provider has executed, byte for byte. Or with an error
//     that has a cause: its line, its batch or the provider had that trouble.
//  2. No two calls get the same line's answer. Allowed is one thing: a process
//     that dies, or whose journal fails, after it has answered a call and
//     before that was written down. The line then looks open, and the next
//     equal call gets it.
//  3. Nothing is paid for twice: of each key and prompt, no more lines were
//     answered by the provider than calls (not tries) were made. Not counted
//     are lines of a batch that was called off, since nobody is given them until
//     it has ended; of one that the provider failed as a whole, since nobody is
//     given them at all; and those whose result the provider lost or spoilt,
//     since such a call rides again, as documented. Nor lines of batches that the
//     journal has forgotten, long after their end. Where the journal failed to
//     do something, the lines it was about may be paid for once more: calls go on
//     without it, as documented. And of a process that did not reach it for
//     longer than a lease, so that it was taken for dead, 2 is not checked.
//  4. No paid result is thrown away: nobody is told that a line failed which
//     the provider has answered.
//  5. No batch is orphaned: the journal knows each batch the provider has, or
//     did until it ended, and each batch it knows has ended once a last
//     process has recovered them, or was cancelled with its input file. No line
//     stays held with nobody waiting.
//  6. No batch is cancelled upstream by a process while somebody waits for it,
//     and none runs on for long when nobody does.
//  7. The provider refuses no file and no create: each was within its rules.
//  8. No call is left in a Transport.
//  9. Calls go in real time only where that is wanted, and within the budget.

// find looks for a line at the provider.
func (w *world) find(id lineID) (batchtest.Batch, batchtest.BatchLine, bool) {
	for _, b := range w.srv.Batches() {
		if b.ID != id.batch {
			continue
		}
		for _, l := range b.Lines {
			if l.CustomID == id.custom {
				return b, l, true
			}
		}
		return b, batchtest.BatchLine{}, false
	}
	return batchtest.Batch{}, batchtest.BatchLine{}, false
}

// answered reports whether a line was executed, with an answer that can be read.
func answered(l batchtest.BatchLine) bool {
	o := l.Outcome
	return l.Finished && o.Code == "" && o.Garbage == "" && !o.Missing && o.Status < 300
}

// weigh judges a response. It returns how the call ended, or "" if it is to be
// made again.
func (w *world) weigh(p *replica, e *errand, res *http.Response, body []byte) string {
	id := lineID{res.Header.Get("Autobatcher-Batch-Id"), res.Header.Get("Autobatcher-Custom-Id")}
	code := gjson.GetBytes(body, "error.code").String()
	switch {
	case code == "batch_not_submitted", code == "journal_failed" && w.required, code == "batch_deadline_exceeded":
		return ""
	case code == "realtime_failed" && p.isDead(): // nobody hears of it any more
		return ""
	case res.StatusCode < 300:
		w.tally.add(countAnswered, 1)
		w.checkAnswer(p, e, id, body)
		return "an answer of " + id.batch
	}
	w.tally.add(countErrored, 1)
	w.checkError(p, e, id, res.StatusCode, code, body)
	return "error " + code
}

// weighRealtime judges the answer to a call that was sent in real time.
func (w *world) weighRealtime(e *errand, res *http.Response, body []byte, err error) string {
	w.tally.add(countEscalated, 1)
	switch {
	case w.options.Escalate == "" || w.options.Escalate == autobatcher.EscalateNever:
		w.wrong("%v was sent in real time, though nothing ever is", e.ident)
	case err != nil, res.StatusCode >= 300:
		if !w.unreliable() {
			w.wrong("%v, sent in real time: %d, %v", e.ident, res.StatusCode, err)
		}
	case e.prompt.stream: // the words come one by one
	case !bytes.Contains(body, []byte("realtime/now")), e.prompt.path != "/embeddings" && !bytes.Contains(body, []byte(e.text)):
		w.wrong("%v, sent in real time, was answered %s", e.ident, body)
	}
	return "an answer in real time"
}

// unreliable reports whether any request to the provider may fail.
func (w *world) unreliable() bool { return w.storms || w.server.RequestsPerMinute > 0 }

func (w *world) checkAnswer(p *replica, e *errand, id lineID, body []byte) {
	b, l, ok := w.find(id)
	switch {
	case !ok:
		w.wrong("%v was answered by a line nobody knows: %v", e.ident, id)
		return
	case b.APIKey != e.key:
		w.wrong("%v was answered by a line of %s", e.ident, b.APIKey)
	case textOf(l.Body) != e.text:
		w.wrong("%v was answered by the line of %q", e.ident, textOf(l.Body))
	case !answered(l):
		w.wrong("%v was answered by a line that has no answer: %+v", e.ident, l)
	case e.prompt.stream && !bytes.Contains(body, []byte(id.batch+"/"+id.custom)):
		w.wrong("%v: the stream says something else: %s", e.ident, body)
	case !e.prompt.stream && !bytes.Equal(body, l.Outcome.Body):
		w.wrong("%v got %s, and its line's answer is %s", e.ident, body, l.Outcome.Body)
	}
	w.record.note(func() {
		if by := w.record.by[w.record.ids[id.batch]]; by != nil && by != p {
			w.tally.add(countTakenOver, 1)
		}
	})
	w.mu.Lock()
	before := w.handed[id]
	w.handed[id] = append(before, handing{e, p})
	w.mu.Unlock()
	for _, h := range before {
		if !w.mayBeForgotten(h.by, id) && !h.by.hasLapsed() && !p.hasLapsed() {
			w.tally.add(countDuplicates, 1)
			w.wrong("%v: the answer of %v was handed out twice, first by %s, then by %s", e.ident, id, h.by.name, p.name)
		}
	}
}

// mayBeForgotten reports whether a process that handed out an answer had no
// chance to write that down.
func (w *world) mayBeForgotten(p *replica, id lineID) bool {
	r := w.record
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.toldBy(p, id) && (p.isDead() || w.trouble > 0)
}

// checkError checks that an error has a cause.
func (w *world) checkError(p *replica, e *errand, id lineID, status int, code string, body []byte) {
	b, l, found := w.find(id)
	w.mu.Lock()
	struck := w.struck[id.batch] // which may be called cancelled since
	w.mu.Unlock()
	if found && answered(l) && !struck && len(b.Errors) == 0 {
		w.tally.add(countLosses, 1)
		w.wrong("%v got %d %s though its line %v was answered: %s", e.ident, status, code, id, body)
		return
	}
	if p.hasLapsed() {
		return // another may have taken its batch for one that nobody carries on
	}
	failed := slices.ContainsFunc(b.Errors, func(p batchtest.BatchError) bool { return p.Code == code })
	var cause bool
	switch code {
	case "batch_expired":
		cause = b.Status == "expired"
	case "batch_cancelled":
		cause = b.CancelRequested
	case "batch_failed":
		cause = b.Status == "failed"
	case "batch_line_missing":
		cause = found && l.Finished
	case "batch_create_unknown", "batch_lost":
		cause = (w.storms || w.trouble > 0) && id.batch == ""
	case "batch_overdue":
		cause = w.never
	case "realtime_failed":
		cause = w.unreliable()
	case "request_timeout":
		cause = found && l.Outcome.Code == code
	default:
		cause = failed || found && l.Finished && (l.Outcome.Status == status || l.Outcome.Code != "")
	}
	if !cause {
		w.wrong("%v got %d %s without a cause; line %v of a batch that is %q: %s", e.ident, status, code, id, b.Status, body)
	}
}

// watchCancel sees to it that a process cancels no batch somebody waits for.
func (w *world) watchCancel(p *replica, req *http.Request) {
	path, ok := strings.CutSuffix(req.URL.Path, "/cancel")
	if !ok {
		return
	}
	id := path[strings.LastIndex(path, "/")+1:]
	w.record.note(func() { w.record.abandoned[id] = true })
	for _, b := range w.known() {
		if b.BatchID == id && b.Held > 0 {
			w.wrong("%s cancels %s, of which %d lines are waited for", p.name, id, b.Held)
		}
	}
}

// checkDeserted checks, a while after the last client has left, that what
// nobody waits for is not paid for to its end. A batch that was resumed is
// left alone: its callers may have died with its first owner, and come back.
func (w *world) checkDeserted() {
	if w.options.AbandonAfter < 0 || w.record.troubles.Load() > 0 {
		return
	}
	for _, b := range w.known() {
		p := w.record.beganBy(b.Ref)
		if b.State != journal.Running || b.Held > 0 || b.Open == 0 || p.isDead() || p.ending.Load() {
			continue
		}
		if !w.calledOff(b.BatchID) {
			w.wrong("batch %s runs on, with %d lines nobody waits for", b.BatchID, b.Open)
		}
	}
}

// known is what the journal knows.
func (w *world) known() []journal.Batch {
	all, err := w.store.Batches(context.Background(), journal.Filter{})
	if err != nil {
		w.wrong("journal: %v", err)
	}
	return all
}

func (w *world) allEnded() bool {
	return !slices.ContainsFunc(w.known(), func(b journal.Batch) bool { return b.State != journal.Ended })
}

// checkIdle checks what must hold when nobody waits any more.
func (w *world) checkIdle() {
	for _, p := range w.all {
		if s := p.tr.Stats(); !p.isDead() && (s.Queued != 0 || s.Running != 0 || len(s.Queues) != 0) {
			w.wrong("%s still has calls: %+v", p.name, s)
		}
	}
	if w.record.troubles.Load() > 0 {
		return // what the journal was not told it does not know
	}
	for _, b := range w.known() {
		if b.State != journal.Ended {
			w.wrong("batch %s %q is %s for ever; owner %q", b.Ref, b.BatchID, b.State, b.Owner)
		}
		if b.Held != 0 {
			w.wrong("batch %s %q (%s): %d lines are held, and nobody waits", b.Ref, b.BatchID, b.State, b.Held)
		}
	}
}

// check checks what must hold in the end.
func (w *world) check() {
	w.checkPaid()
	w.checkEscalated()
	if w.journal {
		w.checkOrphans()
	}
	for _, r := range w.srv.Requests() {
		switch r.Status {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
			w.wrong("the provider refused %s %s: %d", r.Method, r.Path, r.Status)
		}
	}
}

// checkPaid counts the lines that were paid for.
func (w *world) checkPaid() {
	paid := make(map[ident]int)
	for _, b := range w.srv.Batches() {
		w.tally.add(countBatches, 1)
		for _, l := range b.Lines {
			if !l.Finished {
				continue
			}
			w.tally.add(countExecuted, 1)
			handed := len(w.handed[lineID{b.ID, l.CustomID}]) > 0
			switch {
			case !answered(l):
				w.tally.add(countSpoilt, 1)
			case b.CancelRequested, w.calledOff(b.ID), len(b.Errors) > 0 && !handed:
				w.tally.add(countCalledOff, 1)
			default:
				paid[ident{b.APIKey, textOf(l.Body)}]++
				w.tell("paid: %v: line %s of %s (%s, journal %s), handed out: %v", ident{b.APIKey, textOf(l.Body)},
					l.CustomID, b.ID, b.Status, w.record.ids[b.ID], handed)
			}
		}
	}
	excused := w.excused()
	for id, n := range paid {
		if limit := w.asked[id] + excused[id]; n > limit {
			w.tally.add(countDuplicates, int64(n-limit))
			w.wrong("%v: %d lines were paid for, and %d calls made (%d excused)", id, n, w.asked[id], excused[id])
		}
	}
}

// checkEscalated checks that what was sent in real time was told, and within the
// budget of each process.
func (w *world) checkEscalated() {
	told := 0
	for _, p := range w.all {
		told += len(p.escalated)
		for i, at := range p.escalated {
			if limit := w.options.EscalateLimit; limit > 0 && i >= limit && at.Sub(p.escalated[i-limit]) < time.Hour {
				w.wrong("%s escalated more than %d calls within an hour", p.name, limit)
			}
		}
	}
	sent := 0
	for _, x := range w.srv.Executed() {
		if x.BatchID == "" {
			sent++
		}
	}
	if sent > told {
		w.wrong("%d calls were sent in real time, and %d times it was told", sent, told)
	}
}

// calledOff reports whether one of ours wanted a batch cancelled, even if the
// provider did not hear of it or came to an end first.
func (w *world) calledOff(batchID string) bool {
	r := w.record
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.abandoned[batchID] || r.abandoned[r.ids[batchID]]
}

// excused is how many lines more may be paid for since the journal failed.
func (w *world) excused() map[ident]int {
	idents := make(map[journal.Hash]ident)
	for _, u := range w.srv.Uploads() {
		for _, l := range u.Lines {
			if print, ok := w.record.prints[l.CustomID]; ok {
				idents[print] = ident{u.APIKey, textOf(l.Body)}
			}
		}
	}
	excused := make(map[ident]int)
	for print, n := range w.record.excused {
		excused[idents[print]] += n
	}
	return excused
}

// checkOrphans looks for batches that the journal does not know.
func (w *world) checkOrphans() {
	known := make(map[string]bool)
	for _, b := range w.known() {
		known[b.BatchID], known[b.InputFileID] = true, true
	}
	blind, deleted := make(map[string]bool), make(map[string]bool) // input files
	for _, u := range w.srv.Uploads() {
		deleted[u.ID] = u.Deleted
		blind[u.ID] = slices.ContainsFunc(u.Lines, func(l batchtest.Line) bool { return w.record.blind[l.CustomID] })
	}
	for _, b := range w.srv.Batches() {
		ref := w.record.files[b.InputFileID]
		switch {
		case known[b.ID], known[b.InputFileID] && w.record.ids[b.ID] == "", w.record.ended[ref], blind[b.InputFileID]:
		case w.record.discarded[ref] != "" && deleted[b.InputFileID] && b.CancelRequested: // with its file, as Doubleword does
		case w.record.discarded[ref] != "":
			w.wrong("%s is forgotten: %s discarded it, though it was created", b.ID, w.record.discarded[ref])
		default:
			w.wrong("%s is an orphan: the journal does not know it", b.ID)
		}
	}
}
