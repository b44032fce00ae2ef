package simulation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/journalsession"
)

// A backgroundSet says how many calls of a schedule are made in the background: the caller
// gets an id, and asks for the answer later. The zero backgroundSet makes no such call.
type backgroundSet struct {
	drawn     bool
	clients   int
	callsEach int
	keyed     float64 // how likely a call has an Idempotency-Key
	withdrawn float64 // how likely a call is cancelled or deleted
	dies      bool    // processes die while they ask the journal for such calls
}

func drawBackground(p *plan, d dice) {
	p.background = backgroundSet{
		drawn: true, clients: 1 + d.IntN(4), callsEach: 1 + d.IntN(4), keyed: d.Float64(), withdrawn: 0.3 * d.Float64(), dies: d.chance(0.5),
	}
}

// arm has the process die at a request that calls in the background depend on, with dice
// of its own.
func (b *backgroundSet) arm(f *crashPoint, d dice) {
	if !b.dies || !d.chance(0.6) {
		return
	}
	f.draw(d, "POST batches", "POST batches", "begin", "advance", "advance", "find", "withdraw", "take over", "release")
}

// unclaimedFor is how long a process keeps a call whose caller left without the id.
const unclaimedFor = 2 * time.Minute

// A backgroundCall is a call in the background. world.mu guards the fields from id on; only
// the client writes them.
type backgroundCall struct {
	*clientCall
	async        bool          // by the header Prefer
	alone        bool          // no other call has the same body
	name         string        // the Idempotency-Key; "": none
	left         []pastAttempt // attempts without a response
	relied       [][]lineID    // lines in the journal at attempts that came to another process
	runningAt    *replica      // the process that said last that the call runs
	runningSince time.Time     // since when no other process was asked, and the process said nothing else

	late, refused bool // late was reported; a failure came from a refusal of the key
	id            string
	place         string          // URL of the answer
	by            *replica        // the process that returned the id
	returned      time.Time       // when
	withdrawn     time.Time       // when the client began to cancel or delete the call
	state         backgroundState // the last state that the client has learned
	line          lineID          // whose answer the client got
}

// A pastAttempt is an attempt that ended without a response.
type pastAttempt struct {
	by *replica
	at time.Time
}

// A backgroundState is what the client of a call learns.
type backgroundState string

const (
	nothingKnown backgroundState = ""
	running      backgroundState = "running"
	completed    backgroundState = "completed"
	failed       backgroundState = "failed"
	cancelled    backgroundState = "cancelled"
	deleted      backgroundState = "deleted"
	unknownID    backgroundState = "not found"
)

// runBackgroundClient makes calls in the background, some at the same time.
func (w *world) runBackgroundClient(i int) {
	d := newDice(w.seed, "background client", i)
	var calls sync.WaitGroup
	for n := range w.background.callsEach {
		time.Sleep(d.between(0, w.length/time.Duration(w.background.callsEach)))
		for j := range 1 + d.IntN(4) {
			own := dice{rand.New(rand.NewPCG(d.Uint64(), 0))}
			c := w.newBackgroundCall(own, fmt.Sprintf("%d.%d.%d", i, n, j))
			calls.Go(func() {
				if w.submit(own, i, c) {
					w.collect(own, i, c)
				}
			})
		}
	}
	calls.Wait()
}

// newBackgroundCall decides what a call asks for.
func (w *world) newBackgroundCall(d dice, name string) *backgroundCall {
	c := &backgroundCall{alone: d.chance(0.8)}
	text := "background " + name
	if !c.alone {
		text = fmt.Sprintf("background common %d", d.IntN(2))
	}
	p := prompt{path: "/responses", text: text, body: `{"model":"m0","background":true,"input":"` + text + `"}`}
	switch d.IntN(5) {
	case 0:
		p.path, p.body, c.async = "/chat/completions", `{"model":"m0","messages":[{"role":"user","content":"`+text+`"}]}`, true
	case 1:
		p.path, p.body, c.async = "/embeddings", `{"model":"m0","input":"`+text+`"}`, true
	}
	if d.chance(w.background.keyed) {
		c.name = name
	}
	c.clientCall = &clientCall{ident: ident{w.keys[d.IntN(len(w.keys))], text}, prompt: p, mode: autobatcher.ModeBatch}
	w.tally.add(countBackground, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[c.ident]++
	w.backgroundCalls = append(w.backgroundCalls, c)
	return c
}

// submit makes a call until the client has an id, and reports whether the client has one.
func (w *world) submit(d dice, client int, c *backgroundCall) bool {
	timeout := forever // of all attempts but the last
	if d.chance(0.4) {
		timeout = d.of(d.between(time.Second, 10*time.Second), d.between(time.Second, 2*w.options.BatchWindow))
	}
	tries := 1 + d.IntN(6)
	for try := 1; try <= tries; try++ {
		p := w.pick(d)
		if p == nil {
			time.Sleep(d.between(time.Second, 5*time.Minute))
			try--
			continue
		}
		if try == tries {
			timeout = forever
		}
		w.excuseAttempt(c, p)
		w.logf("background client %d submits %v at %s (try %d, key %q)", client, c.ident, p.name, try, c.name)
		if end := w.submitOnce(p, c, timeout); end != "" {
			w.logf("background client %d has %s for %v", client, end, c.ident)
			return c.id != ""
		}
		w.logf("background client %d got nothing from %s", client, p.name)
		time.Sleep(d.of(d.between(time.Millisecond, 2*time.Second), d.between(time.Second, time.Minute), d.between(time.Second, 10*time.Minute)))
	}
	return false
}

// excuseAttempt lets a call be paid for once more where docs/lanes.md says so: without an
// Idempotency-Key only the process that the caller has left within two minutes knows the
// call; with a key also each process whose journal has the batch.
func (w *world) excuseAttempt(c *backgroundCall, p *replica) {
	if len(c.left) == 0 {
		return
	}
	last := c.left[len(c.left)-1]
	known := last.by == p && time.Since(last.at) < unclaimedFor
	if c.name != "" && w.journal {
		elsewhere := slices.ContainsFunc(c.left, func(a pastAttempt) bool { return a.by != p && !a.by.isDead() })
		found := w.linesInJournal(c.ident)
		known = !elsewhere || c.alone && len(found) > 0
		if elsewhere && known {
			c.relied = append(c.relied, found)
		}
	}
	if !known {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.excusedBackground[c.ident]++
	}
}

// linesInJournal are the lines of a call that a process has sent, as the journal has them,
// by ref.
func (w *world) linesInJournal(id ident) (found []lineID) {
	r := w.record
	r.mu.Lock()
	defer r.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for ref, lines := range r.lines {
		for _, l := range lines {
			if at := (lineID{ref, l.CustomID}); w.sent[l.CustomID].ident == id && r.hasLocked(at) {
				found = append(found, at)
			}
		}
	}
	return found
}

// hasLocked reports whether the journal has a line, by ref, that is not delivered. The caller
// holds r.mu.
func (r *record) hasLocked(id lineID) bool {
	return r.discarded[id.batch] == "" && len(r.deliveredTo[id]) == 0
}

// submitOnce makes a call once. It returns how the attempt ended, or "" if the client is to
// retry.
func (w *world) submitOnce(p *replica, c *backgroundCall, timeout time.Duration) string {
	ctx, cancel := context.WithTimeout(context.Background(), min(timeout, w.longest()))
	defer cancel()
	defer context.AfterFunc(p.gone, cancel)()
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, w.srv.URL+c.prompt.path, strings.NewReader(c.prompt.body))
	w.authorize(req, c.key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Autobatcher-Mode", string(c.mode))
	if c.async {
		req.Header.Set("Prefer", "respond-async")
	}
	if c.name != "" {
		req.Header.Set("Idempotency-Key", c.name)
	}
	began := time.Now()
	res, err := p.tr.RoundTrip(req)
	took := time.Since(began)
	if took >= w.longest() {
		w.failf("%v hangs: no id after %v", c.ident, took)
	}
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, autobatcher.ErrClosed) {
			w.failf("%v, in the background, ended in the error %v", c.ident, err)
		}
		c.left = append(c.left, pastAttempt{p, time.Now()})
		return ""
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		w.failf("%v: body: %v", c.ident, err)
		return "no body"
	case res.StatusCode >= 300:
		return w.checkResponse(p, c.clientCall, res, body)
	}
	return w.noteID(p, c, res, body)
}

func (w *world) authorize(req *http.Request, key string) {
	req.Header.Set("Authorization", "Bearer "+w.credential(key))
}

// noteID notes the id that a client got.
func (w *world) noteID(p *replica, c *backgroundCall, res *http.Response, body []byte) string {
	id := gjson.GetBytes(body, "id").String()
	place := w.srv.URL + c.prompt.path + "/" + id
	if c.async {
		location, err := res.Location()
		if err != nil || res.StatusCode != http.StatusAccepted {
			w.failf("%v was answered %d, header %v: %s", c.ident, res.StatusCode, res.Header, body)
			return "no place"
		}
		place = location.String()
	}
	if !strings.Contains(id, "_autobatcher_") || !strings.HasSuffix(place, "/"+id) {
		w.failf("%v was answered without an id: %s", c.ident, body)
		return "no id"
	}
	w.mu.Lock()
	other := slices.IndexFunc(w.backgroundCalls, func(other *backgroundCall) bool { return other != c && other.id == id })
	c.id, c.place, c.by, c.returned = id, place, p, time.Now()
	w.mu.Unlock()
	if other >= 0 {
		w.failf("%v has the id %s, which another call has", c.ident, id)
	}
	return "the id " + id
}

// collect asks for the answer of a call, at any process, until the client has the answer, or
// cancels or deletes the call.
func (w *world) collect(d dice, client int, c *backgroundCall) {
	withdraws, again := d.chance(w.background.withdrawn), d.IntN(4)
	var unknownSince time.Time
	for time.Since(c.returned) < 20*time.Hour {
		time.Sleep(d.of(d.between(time.Second, time.Minute), d.between(time.Minute, 20*time.Minute), d.between(time.Second, w.server.Turnaround)))
		p, roll, method := w.pick(d), d.Float64(), []string{"POST", "DELETE"}[d.IntN(2)]
		if p == nil {
			continue
		}
		if roll < 0.1 {
			w.askAsAnother(d, p, c)
		}
		if withdraws && roll > 0.6 {
			if w.withdraw(p, c, method) {
				w.checkWithdrawn(d, c)
				return
			}
			continue
		}
		before := c.state
		state := w.ask(p, c, http.MethodGet, c.place, c.key)
		if state != running || c.runningAt != p {
			c.runningAt, c.runningSince = p, time.Now()
		}
		w.logf("background client %d: %v is %q at %s", client, c.ident, state, p.name)
		switch {
		case state == completed && again == 0, state == failed:
			return
		case state == completed:
			again--
		case state == running:
			w.checkLateID(p, c)
		case state == cancelled && !c.withdrawn.IsZero(): // the answer to an earlier request was lost
			return
		case state == cancelled:
			w.failf("%v is cancelled at %s, and nobody has cancelled the call", c.ident, p.name)
			return
		}
		if state != unknownID {
			if state != nothingKnown {
				unknownSince = time.Time{}
			}
			continue
		}
		if before == completed {
			w.mu.Lock()
			c.state = completed
			w.mu.Unlock()
		}
		if unknownSince.IsZero() {
			unknownSince = time.Now()
		}
		switch {
		case !w.journal && (c.by.isDead() || c.by.ending.Load()): // without a journal only the process knows the id
			return
		case time.Since(unknownSince) < w.unknownLimit():
		case w.mayLose(), !c.withdrawn.IsZero(), w.isUnanswered(c): // a failure is known to one process only
			return
		default:
			w.failf("%v has the id %s, which no process has known for %v", c.ident, c.id, time.Since(unknownSince))
			return
		}
	}
	if !w.never && !w.nights && !w.mayLose() && c.state != completed && c.withdrawn.IsZero() && !w.isSpoilt(c.ident) {
		w.failf("%v has the id %s for %v, and is %q", c.ident, c.id, time.Since(c.returned), c.state)
	}
}

// isSpoilt reports whether the provider lost or spoiled the result of a call: then results
// are looked for during a day.
func (w *world) isSpoilt(id ident) bool {
	for _, b := range w.srv.Batches() {
		for _, l := range b.Lines {
			if (ident{b.APIKey, textOf(l.Body)}) == id && l.Finished && !answered(l) {
				return true
			}
		}
	}
	return false
}

// lookedFor counts the calls in batches that isLookedFor names.
func (w *world) lookedFor(batches []autobatcher.BatchStats) (n int) {
	for _, b := range batches {
		if w.isLookedFor(b.ID) {
			n += b.Calls
		}
	}
	return n
}

// isLookedFor reports whether a batch has a result that the provider lost or spoiled, for
// a call in the background: the result is looked for during a day.
func (w *world) isLookedFor(batchID string) bool {
	b, _, _ := w.find(lineID{batch: batchID})
	return slices.ContainsFunc(b.Lines, func(l batchtest.BatchLine) bool {
		return strings.HasPrefix(textOf(l.Body), "background ") && l.Finished && !answered(l)
	})
}

// isUnanswered reports whether the provider has answered no line of a call, or may not have
// answered its line, if the call has several lines or there are equal calls.
func (w *world) isUnanswered(c *backgroundCall) bool {
	all, unanswered := true, 0
	for _, b := range w.srv.Batches() {
		for _, l := range b.Lines {
			if (ident{b.APIKey, textOf(l.Body)}) != c.ident {
				continue
			}
			if !b.Ended.IsZero() && (!answered(l) || len(b.Errors) > 0) {
				unanswered++
			} else {
				all = false
			}
		}
	}
	gone := c.by.isDead() || c.by.ending.Load() // with the prompt, which it may have been sending again
	return (unanswered > 0 || gone) && (all || !c.alone || w.excusedAttempts(c.ident) > 0)
}

// unknownLimit is how long processes may not know an id: another process is sending the
// call again, and may have to wait for the provider's limits.
func (w *world) unknownLimit() time.Duration {
	switch {
	case w.server.MaxEnqueuedTokens > 0 || slices.Contains(w.drawn, "creations"):
		return 10 * time.Hour
	case w.unreliable():
		return lateLimit
	}
	return 30 * time.Minute
}

// mayLose reports whether a call in the background may be lost, since the journal may not
// have the call.
func (w *world) mayLose() bool { return w.trouble > 0 || w.partitions || w.journalDelay > 0 }

// ask makes a request that names an id, and returns what the client learns.
func (w *world) ask(p *replica, c *backgroundCall, method, place, key string) backgroundState {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	defer context.AfterFunc(p.gone, cancel)()
	u, err := url.Parse(place)
	if err != nil {
		w.failf("%v: %v", c.ident, err)
		return nothingKnown
	}
	req := (&http.Request{Method: method, URL: u, Header: http.Header{}}).WithContext(ctx)
	w.authorize(req, key)
	began := time.Now()
	res, err := p.tr.RoundTrip(req)
	if took := time.Since(began); took > time.Minute+20*w.journalDelay {
		w.failf("%s %s hangs: %v at %s", method, place, took, p.name)
	}
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, autobatcher.ErrClosed) {
			w.failf("%s %s: %v", method, place, err)
		}
		return nothingKnown
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.failf("%s %s: body: %v", method, place, err)
		return nothingKnown
	}
	state := w.stateOf(p, c, res, body)
	if key == c.key {
		w.mu.Lock()
		c.state = state
		w.mu.Unlock()
	}
	return state
}

// stateOf is what a response says about a call. A final answer is checked.
func (w *world) stateOf(p *replica, c *backgroundCall, res *http.Response, body []byte) backgroundState {
	code := gjson.GetBytes(body, "error.code").String()
	switch {
	case code == "response_not_found":
		return unknownID
	case code == "journal_failed", code == "response_unavailable":
		return nothingKnown
	case gjson.GetBytes(body, "deleted").Bool():
		return deleted
	}
	word := gjson.GetBytes(body, "status").String()
	switch {
	case c.async && res.StatusCode == http.StatusAccepted, !c.async && (word == "queued" || word == "in_progress"):
		return running
	case word == "cancelled":
		return cancelled
	case c.async && res.StatusCode < 300, !c.async && word == "completed":
		w.checkByID(c, lineID{res.Header.Get("Autobatcher-Batch-Id"), res.Header.Get("Autobatcher-Custom-Id")}, body)
		return completed
	}
	w.checkFailedByID(p, c, res, code, body)
	return failed
}

// checkByID checks that an id has the answer of its own call, and always the same answer.
func (w *world) checkByID(c *backgroundCall, id lineID, body []byte) {
	b, l, found := w.find(id)
	want := l.Outcome.Body
	if found && !c.async {
		want, _ = sjson.SetBytes(slices.Clone(want), "id", c.id)
		want, _ = sjson.SetBytes(want, "background", true)
	}
	switch {
	case !found:
		w.failf("%s of %v was answered by a line nobody knows: %v", c.id, c.ident, id)
	case b.APIKey != c.key, textOf(l.Body) != c.text:
		w.failf("%s of %v was answered by the line of %q of %s", c.id, c.ident, textOf(l.Body), b.APIKey)
	case !answered(l), !bytes.Equal(body, want):
		w.failf("%s of %v got %s, and its line's answer is %s", c.id, c.ident, body, want)
	}
	w.tally.add(countByID, 1)
	w.mu.Lock()
	before, owner := c.line, w.answeredIDs[id]
	c.line, w.answeredIDs[id] = id, c.id
	w.mu.Unlock()
	if owner != "" && owner != c.id {
		w.failf("%s and %s have the answer of the same line %v", owner, c.id, id)
	}
	if before != (lineID{}) && before != id && !w.mayLose() && w.excusedAttempts(c.ident) == 0 {
		w.failf("%s of %v was answered by %v before, and now by %v", c.id, c.ident, before, id)
	}
}

// excusedAttempts is how many lines more may be paid for by excuseAttempt. A line that the
// journal had at an attempt, and that was dropped or is sent again, does not count.
func (w *world) excusedAttempts(id ident) int {
	w.mu.Lock()
	n, calls := w.excusedBackground[id], slices.Clone(w.backgroundCalls)
	w.mu.Unlock()
	w.record.mu.Lock()
	defer w.record.mu.Unlock()
	for _, c := range calls {
		if c.ident != id {
			continue
		}
		for _, found := range c.relied {
			if !slices.ContainsFunc(found, w.record.hasLocked) {
				n++
			}
		}
	}
	return n
}

// checkFailedByID checks that a call in the background that failed has a cause.
func (w *world) checkFailedByID(p *replica, c *backgroundCall, res *http.Response, code string, body []byte) {
	id := lineID{res.Header.Get("Autobatcher-Batch-Id"), res.Header.Get("Autobatcher-Custom-Id")}
	status := res.StatusCode
	b, l, found := w.find(id)
	if found && !c.async {
		status = l.Outcome.Status
	}
	w.mu.Lock()
	failedWhole := w.failedWhole[id.batch]
	w.mu.Unlock()
	w.tally.add(countErrored, 1)
	lost := func(r refusal) bool { return r.ends.After(c.returned) && time.Since(r.since) >= 9*time.Minute } // an id stays failed
	refused := w.isRefusal(c.key, status, code) || code == "batch_lost" && slices.ContainsFunc(w.refused(c.key), lost)
	c.refused = c.refused || refused
	switch {
	case refused, !c.withdrawn.IsZero(), failedWhole:
	case !b.Ended.IsZero() && !answered(l) && code == "batch_lost": // a process without the prompt cannot send the call again
	case code == "batch_not_submitted" && w.unreliable(): // nobody can send the call again whose line has failed
	default:
		w.checkError(p, c.clientCall, id, status, code, body)
	}
}

// askAsAnother checks that another key does not get the answer.
func (w *world) askAsAnother(d dice, p *replica, c *backgroundCall) {
	other := w.keys[d.IntN(len(w.keys))]
	if other == c.key {
		return
	}
	if state := w.ask(p, c, http.MethodGet, c.place, other); state != unknownID && state != nothingKnown {
		w.failf("%s of %v is %q for %s", c.id, c.ident, state, other)
	}
}

// checkLateID checks that an answer which a process could read is not called "in progress"
// for long.
func (w *world) checkLateID(p *replica, c *backgroundCall) {
	if !c.alone || w.never || p.ending.Load() || p.isDead() {
		return
	}
	since := c.runningSince
	w.mu.Lock()
	if w.lastFault.After(since) {
		since = w.lastFault
	}
	w.mu.Unlock()
	ended := ""
	for _, b := range w.srv.Batches() {
		for _, l := range b.Lines {
			switch {
			case (ident{b.APIKey, textOf(l.Body)}) != c.ident:
				continue
			case b.Ended.IsZero() || !answered(l):
				return // of several lines, the id may be that of a line without a result
			case b.Ended.After(since):
				since = b.Ended
			}
			ended = b.ID
		}
	}
	if late := time.Since(since); ended != "" && late > lateLimit && !c.late {
		c.late = true
		w.failf("%s of %v is not answered by %s, %v after %s had ended", c.id, c.ident, p.name, late, ended)
	}
}

// withdraw cancels or deletes a call, and reports whether the call is withdrawn.
func (w *world) withdraw(p *replica, c *backgroundCall, method string) bool {
	place := c.place
	if method == http.MethodPost {
		place += "/cancel"
	}
	w.mu.Lock()
	c.withdrawn = time.Now()
	w.mu.Unlock()
	state := w.ask(p, c, method, place, c.key)
	w.logf("%s %s at %s: %q", method, place, p.name, state)
	return state == cancelled || state == deleted // not found: another process may be sending the call again
}

// checkWithdrawn checks that a call which was cancelled or deleted has no answer any more.
func (w *world) checkWithdrawn(d dice, c *backgroundCall) {
	for range 2 {
		time.Sleep(d.between(10*time.Minute, 30*time.Minute)) // processes learn of a withdrawal within half a minute
		p := w.pick(d)
		if p == nil {
			continue
		}
		if state := w.ask(p, c, http.MethodGet, c.place, c.key); (state == running || state == completed || state == failed) && !w.mayLose() {
			w.failf("%s of %v was withdrawn, and is %q at %s", c.id, c.ident, state, p.name)
		}
	}
}

// checkKept checks that a process does not cancel a batch with the line of a call whose
// answer a client may ask for.
func (w *world) checkKept(p *replica, batchID string) {
	if w.record.troubles.Load() > 0 || p.hasLapsed() || !w.journal && p.ending.Load() {
		return
	}
	b, _, _ := w.find(lineID{batch: batchID})
	if !b.Ended.IsZero() {
		return
	}
	for _, l := range b.Lines {
		c := w.claimed(ident{b.APIKey, textOf(l.Body)})
		if c != nil && !l.Finished && w.excusedAttempts(c.ident) == 0 && w.countLines(c.ident) == 1 {
			w.failf("%s cancels %s, in which %s of %v is waited for", p.name, batchID, c.id, c.ident)
		}
	}
}

// claimed is the only call with a body, if a client has the id of the call, and wants the
// answer.
func (w *world) claimed(id ident) *backgroundCall {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.backgroundCalls {
		if c.ident == id && c.alone && c.id != "" && c.withdrawn.IsZero() {
			return c
		}
	}
	return nil
}

func (w *world) countLines(id ident) (n int) {
	for _, b := range w.srv.Batches() {
		for _, l := range b.Lines {
			if (ident{b.APIKey, textOf(l.Body)}) == id {
				n++
			}
		}
	}
	return n
}

// checkBackground checks in the end that no answer was paid for whose call has failed, or
// whose id nobody knows.
func (w *world) checkBackground() {
	for _, c := range w.backgroundCalls {
		if !c.alone || c.id == "" || c.refused || !c.withdrawn.IsZero() || c.state != failed && c.state != unknownID || !w.journal || w.mayLose() || w.excusedAttempts(c.ident) > 0 {
			continue
		}
		for _, b := range w.srv.Batches() {
			for _, l := range b.Lines {
				if (ident{b.APIKey, textOf(l.Body)}) == c.ident && answered(l) && len(b.Errors) == 0 && !w.failedWhole[b.ID] && !w.wasRefusedLong(c.key) {
					w.tally.add(countLosses, 1)
					w.failf("%s of %v is %q, though its line %v was answered", c.id, c.ident, c.state, lineID{b.ID, l.CustomID})
				}
			}
		}
	}
}

// isKept reports whether clients may ask later for the answers of a batch in the journal.
func isKept(ref string) bool { return journalsession.IsKept(ref) }
