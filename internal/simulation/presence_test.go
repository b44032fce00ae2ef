package simulation

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/batchtest"
)

// A visit is one attempt of a call at a process. world.mu guards the visit.
type visit struct {
	call  *clientCall
	at    *replica
	began time.Time
	ended time.Time // zero while the client waits
}

// enter notes that a client waits for an answer.
func (w *world) enter(c *clientCall, p *replica) *visit {
	v := &visit{call: c, at: p, began: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.visits[c.ident] = append(w.visits[c.ident], v)
	return v
}

// exit notes that a client waits no longer.
func (w *world) exit(v *visit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v.ended = time.Now()
}

// A sentLine is a line of an input file that a process has sent.
type sentLine struct {
	ident ident
	by    *replica
}

// noteUpload notes the lines of an input file as a process sends the file.
func (w *world) noteUpload(p *replica, req *http.Request, body []byte) {
	if req.Method != http.MethodPost || !strings.HasSuffix(req.URL.Path, "/files") {
		return
	}
	key := bearer(req.Header)
	w.mu.Lock()
	defer w.mu.Unlock()
	for l := range bytes.Lines(body) {
		if l = bytes.TrimSpace(l); len(l) > 0 && l[0] == '{' {
			line := gjson.ParseBytes(l)
			w.sent[line.Get("custom_id").String()] = sentLine{ident{key, textOf([]byte(line.Get("body").Raw))}, p}
		}
	}
}

// A cancellation is a request of a process to cancel a batch.
type cancellation struct {
	by      *replica
	batch   batchtest.Batch
	decided decision
}

// A decision to cancel a batch. A process that resumes the batch may carry out the
// decision of another process, whose request failed.
type decision struct {
	by    *replica
	at    time.Time
	known bool // the journal's answer has reached the process
}

// recent is how long ago a process decided to cancel a batch for which it sends
// the request now. A process repeats the request for ten minutes.
const recent = 15 * time.Minute

// checkCancel checks that a process may cancel a batch. A process repeats the
// request until the provider answers; only the first request of several counts.
func (w *world) checkCancel(p *replica, id string) {
	now := decision{by: p, at: time.Now()}
	c := cancellation{by: p, decided: decision{by: p, at: p.decidedAt(id)}}
	repeated := false
	w.record.note(func() {
		if ref := w.record.ids[id]; time.Since(w.record.abandoned[ref].at) < recent {
			c.decided = w.record.abandoned[ref]
		}
		repeated = time.Since(w.record.abandoned[id].at) < recent
		w.record.abandoned[id] = now
	})
	if repeated || w.record.troubles.Load() > 0 || p.hasLapsed() {
		return // a process without the journal does not know who waits elsewhere
	}
	found := false
	for _, b := range w.batches() {
		if b.ID == id {
			c.batch, found = b, true
		}
	}
	if found {
		if !w.isFlexID(id) { // the cancel of a response that has ended changes nothing, and says that it has ended; watchDelete checks the rest
			w.checkLooked(c)
		}
		w.checkWaiting(c)
	}
}

// checkLooked checks that a process does not cancel a batch that has ended, as
// far as the process has seen, or would have seen if it had looked at all.
func (w *world) checkLooked(c cancellation) {
	c.by.mu.Lock()
	ended, looked := c.by.sawEnd[c.batch.ID], c.by.looked[c.batch.ID]
	c.by.mu.Unlock()
	switch {
	case ended:
		w.failf("%s cancels %s, and has seen that the batch ended", c.by.name, c.batch.ID)
	case !looked && !c.batch.Ended.IsZero() && time.Since(c.batch.Ended) > time.Minute:
		w.failf("%s cancels %s without a look at the batch, which ended %v ago", c.by.name, c.batch.ID, time.Since(c.batch.Ended))
	}
}

// checkWaiting checks that no client waits for a line of a batch that a process
// cancels. A client counts only if there is no line for its call outside of the
// batch. A client between two attempts does not count, since each process knows
// only when a caller last waited at that process.
func (w *world) checkWaiting(c cancellation) {
	idents := make(map[ident]bool)
	for _, l := range c.batch.Lines {
		id := lineID{c.batch.ID, l.CustomID}
		if of := (ident{c.batch.APIKey, textOf(l.Body)}); w.handedAt(id).IsZero() && !w.isUsedUp(id, of) { // else the line can answer no further client
			idents[of] = true
		}
	}
	for id := range idents {
		waiting := w.waitingFor(id, c)
		if elsewhere := w.linesElsewhere(id, c); len(waiting) > elsewhere {
			w.failf("%s cancels %s, but %d clients wait for %v, with %d lines in other batches: %s",
				c.by.name, c.batch.ID, len(waiting), id, elsewhere, strings.Join(waiting, "; "))
		}
	}
}

// waitingFor describes the clients that wait for an answer to a call when a
// process decides to cancel a batch.
func (w *world) waitingFor(id ident, c cancellation) (waiting []string) {
	by, at := c.decided.by, c.decided.at
	closing := by.ending.Load() && w.options.CancelOnClose
	w.mu.Lock()
	defer w.mu.Unlock()
	latest := make(map[*clientCall]*visit)
	for _, v := range w.visits[id] {
		if at.Sub(v.began) > w.notice(v.at, by) {
			latest[v.call] = v
		}
	}
	for _, v := range latest {
		switch {
		case closing: // the owner of the process asked for the cancellation
		case v.ended.IsZero(), v.ended.After(at):
			waiting = append(waiting, fmt.Sprintf("at %s for %v", v.at.name, at.Sub(v.began)))
		}
	}
	return waiting
}

// notice is how long a process may take to learn of a client that waits at
// another process: lines of earlier attempts are looked for every fifteen seconds,
// and a take-over may wait for its turn at a slow journal.
func (w *world) notice(at, by *replica) time.Duration {
	if at == by {
		return time.Second
	}
	return 45*time.Second + 10*w.journalDelay
}

// linesElsewhere counts the lines that might yet answer a call when a process
// decided to cancel a batch: lines outside of the batch, and lines of any batch
// whose answer was handed out since. The caller must not hold world.mu.
func (w *world) linesElsewhere(id ident, c cancellation) int {
	n := 0
	created := make(map[string]bool) // by custom id
	for _, b := range w.batches() {
		for _, l := range b.Lines {
			if (ident{b.APIKey, textOf(l.Body)}) != id {
				continue
			}
			created[l.CustomID] = true
			switch at := w.handedAt(lineID{b.ID, l.CustomID}); {
			case at.After(c.decided.at), at.IsZero() && b.ID != c.batch.ID && c.by.mayHope(b):
				n++
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for customID, l := range w.sent {
		if !created[customID] && l.ident == id && !l.by.isDead() {
			n++ // the batch may be about to be created
		}
	}
	return n + w.pendingFlex(id, c.decided.at)
}

// handedAt is when the answer of a line was first handed out; zero if never.
func (w *world) handedAt(id lineID) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if all := w.handed[id]; len(all) > 0 {
		return all[0].at
	}
	return time.Time{}
}

// mayHope reports whether a retry at the process may wait for a line of the batch. A
// retry takes over the line that was sent first, and learns only from the results,
// or from the failure of a batch whose results the process has read, that the
// provider did not execute the line.
func (p *replica) mayHope(b batchtest.Batch) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return b.Status != "failed" || len(b.Errors) == 0 || p.ended[b.ID].IsZero()
}

// noteLook notes when a process sends a request for the status of one batch.
func (p *replica) noteLook(req *http.Request) {
	if _, id, ok := strings.Cut(req.URL.Path, "/batches/"); ok && req.Method == http.MethodGet {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.looking[id] = time.Now()
	}
}

// decidedAt is when a process decided to cancel a batch, for which it sends the request now,
// where the journal does not say so: before each attempt to cancel a batch the process decides,
// and looks at the batch. Callers may come while the process waits for the status. A process
// cancels a response without a look.
func (p *replica) decidedAt(id string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at, ok := p.looking[id]; ok {
		return at
	}
	return time.Now()
}

// noteStatus notes what a process learns of batches from a response.
func (p *replica) noteStatus(req *http.Request, body []byte) {
	if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, "/batches") && !strings.Contains(req.URL.Path, "/responses") {
		return
	}
	items := []gjson.Result{gjson.ParseBytes(body)}
	if data := items[0].Get("data"); data.IsArray() {
		items = data.Array()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, item := range items {
		id := item.Get("id").String()
		p.looked[id] = true
		switch item.Get("status").String() {
		case "completed", "incomplete", "failed", "expired", "cancelled":
			p.sawEnd[id] = true
		}
	}
}

// noteResponse notes what a process learns from a response, whose body is in
// memory.
func (p *replica) noteResponse(req *http.Request, res *http.Response) {
	body, torn := io.ReadAll(res.Body)
	replaceBody(res, body, torn)
	if torn == nil {
		p.noteStatus(req, body)
	}
}
