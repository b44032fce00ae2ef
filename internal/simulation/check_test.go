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

// After each schedule, and while a schedule is played, the simulation checks, in
// addition to the end of the schedule (a bubble in which a goroutine blocks for
// ever is a deadlock, and longest bounds each call):
//
//  1. A call ends with the answer of a line that the provider has executed for
//     the call's key and prompt, byte for byte; or with an error whose cause the
//     schedule shows: the line, the batch, the provider or the journal failed so.
//  2. Two calls never get the answer of the same line.
//  3. Nothing is paid for twice: for each key and prompt, the provider answered no
//     more lines than clients made calls (attempts of a call count once).
//  4. A paid result is never thrown away: no client gets an error for a line that
//     the provider has answered.
//  5. An answer comes soon: within two hours of the batch's end, the last fault or
//     the client's attempt, whichever is last.
//  6. A process cancels a batch only if no client waits for a line of the batch,
//     at any process, in an attempt or between two attempts within the idle time;
//     a client for whose call there is a line elsewhere does not count. A process
//     never cancels a batch that has ended, as far as the process saw or would
//     have seen with one look. A batch for which nobody waits does not run on.
//  7. Each batch at the provider is known to the journal until the batch has
//     ended, and each batch in the journal ends. No line stays held when no client
//     waits, and no Transport keeps a call.
//  8. The provider refuses no file and no create for its content.
//  9. Calls are sent in real time only where the options say so, and within the
//     budget of each process; and no call whose process has read the answer of its
//     batch.
//
//  10. A flex call counts as a line. A call ends in "it is not known" at the flex tier
//      only as often as a response got lost, or a process died, while such a call was
//      sent. Only a tier without room, or without the model of the call, makes a
//      call fall back, and a process asks for the tier of such a model once an hour.
//      A response that no client waits for is cancelled, and no response is deleted whose answer no client has.
//
//  11. The id of a call in the background gets the answer of its own call, the same at
//     each process and each time, within twenty hours, and within two hours of the batch's
//     end, the last fault and the first of several questions to one process; or the
//     call is failed, and then 1 and 4 hold. Two calls never have the same id, or the same line. Another key does not
//     know the id. A call that was cancelled or deleted has no answer ten minutes later.
//     No process cancels a batch with a line that is to answer an id. No request for an
//     id, and no call that asks for an id, hangs.
//
// These are all the exceptions. An executed line beyond the number of calls is
// excused
//
//   - if the provider lost or spoiled the result, or failed the batch as a whole;
//   - if a process cancelled the batch rightly, by 6, or because the process was
//     closed with CancelOnClose: the lines of the closing process's own clients
//     do not count in 6;
//   - if a call in mode auto climbed from its batch to the flex tier, once for each call;
//   - if the journal failed to carry out or to answer a request about the line
//     (excuse, excuseLines, excusePrints), or has forgotten the line long after the
//     batch's end (KeepFor).
//
// A call in the background whose client has made a further attempt may be paid for once
// more
//
//   - without an Idempotency-Key, if the attempt came to another process, or two minutes
//     after the client had left;
//   - with an Idempotency-Key, if the attempt came to another process, while the process
//     of an earlier attempt lived and the journal did not have the line.
//
// An id may be unknown if there is no journal and the process that returned the id has
// ended; if the journal failed; if another process knows that the call has failed, or
// is sending the call again, or died while it sent the call again. Results that the
// provider lost or spoiled are looked for during a day, while the call is in progress.
//
// An answer is handed out twice only if the process that handed it out first died,
// or lost the journal, before the process could write the delivery down; or if a
// process was without the journal for longer than its lease. Of a process without
// the journal, 6 is not checked, and the lines of a take-over whose answer was lost
// may stay held. The answer to a flex call that was held open is known only to the
// process that sent the call (flexGone).

// find looks for a line at the provider.
func (w *world) find(id lineID) (batchtest.Batch, batchtest.BatchLine, bool) {
	for _, b := range w.batches() {
		if b.ID != id.batch {
			continue
		}
		for _, l := range b.Lines {
			if l.CustomID == id.custom || l.CustomID == "" {
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

// checkResponse judges a response. It returns how the call ended, or "" if it is to be
// made again.
func (w *world) checkResponse(p *replica, e *clientCall, res *http.Response, body []byte) string {
	id := lineID{res.Header.Get("Autobatcher-Batch-Id"), res.Header.Get("Autobatcher-Custom-Id")}
	code := gjson.GetBytes(body, "error.code").String()
	w.mu.Lock()
	w.customIDs[id.custom] = e.ident
	w.mu.Unlock()
	switch {
	case code == "batch_not_submitted", code == "journal_failed" && w.required, code == "batch_deadline_exceeded":
		return ""
	case code == "realtime_failed" && p.isDead(): // nobody hears of it any more
		return ""
	case w.isRefusal(e.key, res.StatusCode, code):
		w.tally.add(countErrored, 1)
		return "error " + code
	case res.StatusCode < 300:
		w.tally.add(countAnswered, 1)
		w.checkAnswer(p, e, id, body)
		return "an answer of " + id.batch
	}
	w.tally.add(countErrored, 1)
	w.checkError(p, e, id, res.StatusCode, code, body)
	return "error " + code
}

// checkRealtime judges the answer to a call that was sent in real time.
func (w *world) checkRealtime(e *clientCall, res *http.Response, body []byte, err error) string {
	w.tally.add(countEscalated, 1)
	switch {
	case !w.escalates() && w.options.FlexFallback != autobatcher.FallbackRealtime:
		w.failf("%v was sent in real time, though nothing ever is", e.ident)
	case err != nil, res.StatusCode >= 300:
		if !w.unreliable() {
			w.failf("%v, sent in real time: %d, %v", e.ident, res.StatusCode, err)
		}
	case w.lanes.faults && bytes.HasPrefix(body, []byte("<html>")): // of a gateway
	case e.prompt.stream: // the words come one by one
	case !bytes.Contains(body, []byte("realtime/now")), e.prompt.path != "/embeddings" && !bytes.Contains(body, []byte(e.text)):
		w.failf("%v, sent in real time, was answered %s", e.ident, body)
	}
	return "an answer in real time"
}

// escalates reports whether calls may be sent in real time for another reason than a
// flex tier without room.
func (w *world) escalates() bool {
	return w.options.Escalate != "" && w.options.Escalate != autobatcher.EscalateNever
}

// isRefusal reports whether an error comes from a refusal of the call's key.
func (w *world) isRefusal(key string, status int, code string) bool {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return w.wasRefused(key)
	case code == "batch_lost", code == "batch_results_unread":
		return w.wasRefusedLong(key)
	}
	return false
}

// unreliable reports whether any request to the provider may fail.
func (w *world) unreliable() bool {
	return len(w.faults()) > 0 || w.server.RequestsPerMinute > 0 || w.noDelete || w.noList || w.list.ignoresAfter
}

// losesCreates reports whether it may remain unknown whether a batch was created.
func (w *world) losesCreates() bool {
	return w.providerFaults || w.gatewayErrors || w.partitions || w.longRetryAfter || w.refusals || w.rotation || w.trouble > 0 ||
		w.server.RequestsPerMinute > 0 || w.noDelete || w.noList || w.list.ignoresAfter
}

func (w *world) checkAnswer(p *replica, e *clientCall, id lineID, body []byte) {
	b, l, ok := w.find(id)
	switch {
	case !ok:
		w.failf("%v was answered by a line nobody knows: %v", e.ident, id)
		return
	case b.APIKey != e.key:
		w.failf("%v was answered by a line of %s", e.ident, b.APIKey)
	case textOf(l.Body) != e.text:
		w.failf("%v was answered by the line of %q", e.ident, textOf(l.Body))
	case !answered(l):
		w.failf("%v was answered by a line that has no answer: %+v", e.ident, l)
	case l.BatchID == "" && e.prompt.stream && !bytes.Contains(body, []byte(flexNameOf(l.Outcome))), l.BatchID == "" && !e.prompt.stream && !w.isFlexAnswer(id.batch, body):
		w.failf("%v got %s, and the answer of its flex call %s is %s", e.ident, body, id.batch, l.Outcome.Body)
	case l.BatchID == "":
	case e.prompt.stream && !bytes.Contains(body, []byte(id.batch+"/"+id.custom)):
		w.failf("%v: the stream says something else: %s", e.ident, body)
	case !e.prompt.stream && !bytes.Equal(body, l.Outcome.Body):
		w.failf("%v got %s, and its line's answer is %s", e.ident, body, l.Outcome.Body)
	}
	w.record.note(func() {
		if by := w.record.by[w.record.ids[id.batch]]; by != nil && by != p {
			w.tally.add(countTakenOver, 1)
		}
	})
	w.checkLate(e, b)
	place := w.place(id)
	w.mu.Lock()
	before := w.handed[place]
	w.handed[place] = append(before, delivery{e, p, time.Now()})
	w.mu.Unlock()
	for _, h := range before {
		if !w.mayBeForgotten(h.by, id) && !h.by.hasLapsed() && !p.hasLapsed() {
			w.tally.add(countDuplicates, 1)
			w.failf("%v: the answer of %v was handed out twice, first by %s, then by %s", e.ident, id, h.by.name, p.name)
		}
	}
}

// lateLimit is how long after the end of a batch a call may get its answer:
// failed downloads and polls are repeated every few minutes.
const lateLimit = 2 * time.Hour

// checkLate checks that a call does not wait long for an answer that could be
// read. The retry of a call that had climbed waits for the line of the batch, and gets the
// answer of the flex call when the retry climbs. Where lines never finish, the check is left out: a call may have waited a
// day for such a line before the call was resubmitted.
func (w *world) checkLate(e *clientCall, b batchtest.Batch) {
	w.mu.Lock()
	since := w.lastFault
	visits := w.visits[e.ident]
	for _, v := range visits {
		if v.call == e && v.began.After(since) {
			since = v.began
		}
	}
	w.mu.Unlock()
	if b.Ended.After(since) {
		since = b.Ended
	}
	if climbed := w.lastClimb(e.ident); climbed.After(since) && w.isFlexID(b.ID) {
		since = climbed
	}
	if late := time.Since(since); !w.never && !b.Ended.IsZero() && late > lateLimit {
		w.failf("%v got its answer %v after %s had ended", e.ident, late, b.ID)
	}
}

// mayBeForgotten reports whether a process that handed out an answer had no
// chance to write that down.
func (w *world) mayBeForgotten(p *replica, id lineID) bool {
	r := w.record
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.deliveredBy(p, id) && (p.isDead() || w.record.troubles.Load() > 0)
}

// checkError checks that an error has a cause.
func (w *world) checkError(p *replica, e *clientCall, id lineID, status int, code string, body []byte) {
	b, l, found := w.find(id)
	w.mu.Lock()
	failedWhole := w.failedWhole[id.batch] // which may be called cancelled since
	w.mu.Unlock()
	if code == "batch_create_unknown" && w.lanes.drawn && !w.losesCreates() {
		w.checkUnknown(p, e)
		return
	}
	if found && answered(l) && !failedWhole && len(b.Errors) == 0 && !w.flexGone(p, id.batch, code) {
		w.tally.add(countLosses, 1)
		w.failf("%v got %d %s though its line %v was answered: %s", e.ident, status, code, id, body)
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
	case "batch_line_missing", "batch_results_unread": // unread: the provider lost each line of the file
		cause = found && l.Finished
	case "batch_create_unknown", "batch_lost":
		cause = (w.unreliable() || w.trouble > 0) && id.batch == "" || w.flexGone(p, id.batch, code)
	case "batch_overdue":
		cause = w.never
	case "realtime_failed":
		cause = w.unreliable()
	case "request_timeout":
		cause = found && l.Outcome.Code == code
	default:
		cause = w.options.FlexFallback == autobatcher.FallbackFail && !w.escalates() && w.isNoTier(status, body) || w.failedHeld(p, id.batch, status) || failed || found && l.BatchID == "" && b.Status == "failed" || w.lanes.faults && gjson.GetBytes(body, "error.message").String() == laneTrouble || found && l.Finished && (l.Outcome.Status == status || l.Outcome.Code != "")
	}
	if !cause {
		w.failf("%v got %d %s without a cause; line %v of a batch that is %q: %s", e.ident, status, code, id, b.Status, body)
	}
}

// watchDelete sees to it that a process deletes no response whose answer no client has.
func (w *world) watchDelete(p *replica, req *http.Request) {
	id := req.URL.Path[strings.LastIndex(req.URL.Path, "/")+1:]
	if req.Method != http.MethodDelete || !strings.Contains(req.URL.Path, "/responses/") || w.escalates() || p.hasLapsed() {
		return
	}
	open := false // in the journal; else only the process that has the answer can hand it out
	w.record.note(func() {
		ref := w.record.ids[id]
		open = ref != "" && len(w.record.lines[ref]) > 0 && len(w.record.deliveredTo[lineID{ref, w.record.lines[ref][0].CustomID}]) == 0
	})
	b, l, found := w.find(lineID{batch: id})
	if open && found && answered(l) && time.Since(b.Ended) > time.Minute && w.handedAt(lineID{batch: id}).IsZero() {
		w.failf("%s deletes %s, whose answer no client has", p.name, id)
	}
}

// watchCancel sees to it that a process cancels no batch somebody waits for.
func (w *world) watchCancel(p *replica, req *http.Request) {
	path, ok := strings.CutSuffix(req.URL.Path, "/cancel")
	if !ok {
		return
	}
	id := path[strings.LastIndex(path, "/")+1:]
	w.checkCancel(p, id)
	w.checkKept(p, id)
	for _, b := range w.known() {
		if b.BatchID == id && b.Held > 0 {
			w.failf("%s cancels %s, of which %d lines are waited for", p.name, id, b.Held)
		}
	}
}

// checkUnused checks, a while after the last client has left, that what
// nobody waits for is not paid for to its end. A batch that was resumed is
// left alone: its callers may have died with its first owner, or the journal was out of
// the owner's reach, and may come back.
func (w *world) checkUnused() {
	if w.options.AbandonAfter < 0 {
		return
	}
	for _, b := range w.known() {
		p := w.record.beganBy(b.Ref)
		if b.State != journal.Running || isKept(b.Ref) || b.Held > 0 || b.Open == 0 || p.isDead() || p.ending.Load() || w.record.isResumed(b.Ref) {
			continue
		}
		if !w.cancelledByUs(b.BatchID) {
			w.failf("batch %s runs on, with %d lines nobody waits for", b.BatchID, b.Open)
		}
	}
}

// known is what the journal knows.
func (w *world) known() []journal.Batch {
	w.setJournalClock()
	all, err := w.store.Batches(context.Background(), journal.Filter{})
	if err != nil {
		w.failf("journal: %v", err)
	}
	return all
}

func (w *world) allEnded() bool {
	return !slices.ContainsFunc(w.known(), func(b journal.Batch) bool { return b.State != journal.Ended })
}

// checkIdle checks what must hold when nobody waits any more.
func (w *world) checkIdle() {
	for _, p := range w.all {
		if s := p.tr.Stats(); !p.isDead() && (s.Queued != 0 || s.Running != w.lookedFor(s.Batches) || len(s.Queues) != 0) {
			w.failf("%s still has calls: %+v", p.name, s)
		}
	}
	for _, b := range w.known() {
		if b.State != journal.Ended && !w.isLookedFor(b.BatchID) {
			w.failf("batch %s %q is %s for ever; owner %q", b.Ref, b.BatchID, b.State, b.Owner)
		}
		if b.Held != 0 && w.record.doubtfulTakeOvers.Load() == 0 && !w.isLookedFor(b.BatchID) {
			w.failf("batch %s %q (%s): %d lines are held, and nobody waits", b.Ref, b.BatchID, b.State, b.Held)
		}
	}
}

// check checks what must hold in the end.
func (w *world) check() {
	w.checkPaid()
	w.checkNoTier()
	w.checkBackground()
	w.checkEscalated()
	if w.journal {
		w.checkOrphans()
	}
	for _, r := range w.srv.Requests() {
		flexCall := r.Method == http.MethodPost && (strings.HasSuffix(r.Path, "/responses") || strings.HasSuffix(r.Path, "/chat/completions"))
		switch r.Status {
		case http.StatusBadRequest:
			if flexCall && len(w.server.FlexModels) > 0 {
				continue // checkNoTier judges
			}
			fallthrough
		case http.StatusUnauthorized, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
			w.failf("the provider refused %s %s: %d", r.Method, r.Path, r.Status)
		}
	}
}

// checkPaid counts the lines that were paid for.
func (w *world) checkPaid() {
	paid := make(map[ident]int)
	for _, b := range w.batches() {
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
			case w.cancelledByUs(b.ID), (len(b.Errors) > 0 || w.failedWhole[b.ID]) && !handed: // a failed batch may be called cancelled since
				w.tally.add(countCancelled, 1)
			default:
				paid[ident{b.APIKey, textOf(l.Body)}]++
				w.logf("paid: %v: line %s of %s (%s, journal %s), handed out: %v", ident{b.APIKey, textOf(l.Body)},
					l.CustomID, b.ID, b.Status, w.record.ids[b.ID], handed)
			}
		}
	}
	excused := w.excused()
	for id, n := range paid {
		if limit := w.asked[id] + excused[id] + w.excusedAttempts(id) + w.excusedFlex(id, excused[ident{}]) + w.climbed(id); n > limit {
			w.tally.add(countDuplicates, int64(n-limit))
			w.failf("%v: %d lines were paid for, and %d calls made (%d excused)", id, n, w.asked[id], excused[id]+w.excusedAttempts(id)+w.climbed(id))
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
				w.failf("%s escalated more than %d calls within an hour", p.name, limit)
			}
		}
	}
	sent := 0
	for _, x := range w.srv.Executed() {
		if x.BatchID == "" && !isFlex(x.Line) {
			sent++
		}
	}
	if sent > told {
		w.failf("%d calls were sent in real time, and %d times it was told", sent, told)
	}
}

// cancelledByUs reports whether one of ours wanted a batch cancelled, even if the
// provider did not hear of it or came to an end first.
func (w *world) cancelledByUs(batchID string) bool {
	r := w.record
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.abandoned[batchID].at.IsZero() || !r.abandoned[r.ids[batchID]].at.IsZero()
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
	w.mu.Lock()
	for customID, id := range w.customIDs {
		if print, ok := w.record.prints[customID]; ok {
			idents[print] = id
		}
	}
	w.mu.Unlock()
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
		blind[u.ID] = slices.ContainsFunc(u.Lines, func(l batchtest.Line) bool { return w.record.unrecorded[l.CustomID] })
	}
	for _, b := range w.srv.Batches() {
		ref := w.record.files[b.InputFileID]
		switch {
		case known[b.ID], known[b.InputFileID] && w.record.ids[b.ID] == "", w.record.ended[ref], blind[b.InputFileID]:
		case w.record.discarded[ref] != "" && deleted[b.InputFileID] && b.CancelRequested: // with its file, as Doubleword does
		case w.record.discarded[ref] != "":
			w.failf("%s is forgotten: %s discarded it, though it was created", b.ID, w.record.discarded[ref])
		default:
			w.failf("%s is an orphan: the journal does not know it", b.ID)
		}
	}
}
