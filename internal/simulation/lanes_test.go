package simulation

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// A laneSet says in which lanes the calls of a schedule are sent, and what happens at
// the flex tier. The zero laneSet sends each call in a batch.
type laneSet struct {
	drawn      bool
	perCall    bool // each call chooses its mode by a header
	full       bool // the flex tier has no room for a while
	faults     bool // requests at the flex tier fail
	dieAtCalls bool // processes die while they send calls
	climbers   int  // clients whose calls leave their batch near the deadline
}

var callModes = []autobatcher.Mode{autobatcher.ModeBatch, autobatcher.ModeFlex, autobatcher.ModeFlex, autobatcher.ModeAuto}

// drawLanes plans calls at the flex tier.
func drawLanes(p *plan, d dice) {
	if p.providerName == "llm-d" { // which has no flex tier
		profile, behavior := provider.OpenAI(), batchtest.OpenAI()
		if p.maxLines > 0 {
			profile.MaxLines, behavior.MaxLines = p.maxLines, int64(p.maxLines)
		}
		p.providerName, p.options.Provider, p.server.Behavior = "openai", &profile, behavior
	}
	p.lanes = laneSet{drawn: true, perCall: d.chance(0.5), full: d.chance(0.6), faults: d.chance(0.7), dieAtCalls: d.chance(0.5)}
	p.options.Mode = []autobatcher.Mode{"", autobatcher.ModeFlex, autobatcher.ModeFlex, autobatcher.ModeAuto}[d.IntN(4)]
	if p.options.Mode == "" {
		p.lanes.perCall = true
	}
	p.options.FlexFallback = []autobatcher.FlexFallback{"", autobatcher.FallbackBatch, autobatcher.FallbackRealtime, autobatcher.FallbackFail}[d.IntN(4)]
	p.server.FlexDelay = d.of(d.between(time.Second, time.Minute), d.between(time.Minute, 14*time.Minute), d.between(10*time.Minute, time.Hour))
	p.providerFaults = p.providerFaults && d.chance(0.6) // else each unknown outcome could be that of a batch
	const held = `"store":false,`
	for i, fields := range []string{"", held} {
		text := fmt.Sprintf("response %d", i)
		p.prompts = append(p.prompts, prompt{path: "/responses", text: text, body: `{"model":"m0",` + fields + `"input":"` + text + `"}`})
	}
}

// mode is the mode that a call chooses by its header; "" if the call has no header.
func (l *laneSet) mode(d dice) autobatcher.Mode {
	if !l.perCall {
		return ""
	}
	return callModes[d.IntN(len(callModes))]
}

// arm has the process die at a request of a flex call, with dice of its own.
func (l *laneSet) arm(f *crashPoint, d dice) {
	if !l.dieAtCalls || !d.chance(0.6) {
		return
	}
	f.draw(d, "POST", "POST", "POST", "GET", "GET", "POST cancel", "DELETE", "advance", "deliver")
}

// runLaneFaults makes requests at the flex tier fail: calls, and what is asked about
// responses in the background.
func (w *world) runLaneFaults() {
	d := newDice(w.seed, "lane faults")
	for w.sleep(d.between(time.Second, w.length/6)) {
		op := []batchtest.Op{
			batchtest.OpRealtime, batchtest.OpRealtime, batchtest.OpRealtime, batchtest.OpRetrieveResponse,
			batchtest.OpRetrieveResponse, batchtest.OpCancelResponse, batchtest.OpDeleteResponse,
		}[d.IntN(7)]
		fault := laneFault(d)
		if d.chance(0.3) {
			status := []int{200, 502, 504}[d.IntN(3)]
			fault = func(rw http.ResponseWriter, r *http.Request) bool {
				batchtest.Proceed(httptest.NewRecorder(), r)
				return batchtest.HTML(status)(rw, r)
			}
		}
		w.logf("a fault at %s", op)
		w.srv.Control(op, fault)
	}
}

// laneTrouble is the message of errors that laneFault sends.
const laneTrouble = "trouble in the lane"

// laneFault is what goes wrong with one request. Nothing hangs, since a call that is sent
// in real time has no end of its own.
func laneFault(d dice) batchtest.Fault {
	switch d.IntN(7) {
	case 0, 1:
		return batchtest.LoseAnswer()
	case 2:
		return batchtest.Reset()
	case 3:
		return batchtest.Status([]int{500, 503, 504, 408}[d.IntN(4)], nil, `{"error":{"message":"`+laneTrouble+`"}}`)
	case 4:
		return batchtest.RateLimit(d.between(0, time.Minute))
	case 5:
		return batchtest.Tear(d.IntN(1000))
	}
	return batchtest.Delay(d.between(time.Millisecond, 4*time.Second))
}

// runFullTier lets the flex tier have no room for a while.
func (w *world) runFullTier() {
	d := newDice(w.seed, "full tier")
	for w.sleep(d.between(time.Second, w.length/4)) {
		length := d.of(d.between(time.Second, 100*time.Second), d.between(time.Minute, 15*time.Minute))
		w.logf("the flex tier has no room for %v", length)
		stop := w.srv.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable())
		w.sleep(length)
		stop()
		w.faultEnds()
	}
}

// A flexPost is a request that sends a call at the flex tier. world.mu guards the
// fields below ended.
type flexPost struct {
	ident
	by    *replica
	sent  time.Time
	model string

	background bool

	ended   time.Time // when the process learned of the response; zero before
	refused bool      // the provider had no room, or the model has no flex tier
	noTier  bool      // the model has no flex tier
	unsure  bool      // the process cannot know whether the provider has executed the call
	id      string    // of the response, as the process learned the id; of an error, the id of the request
	failed  int       // the status of an error that is the answer; else 0
	given   bool      // a client got the error
}

// noteFlexPost notes that a process sends a call at the flex tier. The result is nil for
// every other request.
func (w *world) noteFlexPost(p *replica, req *http.Request, body []byte) *flexPost {
	if !isFlexPost(req, body) {
		return nil
	}
	f := &flexPost{ident: ident{bearer(req.Header), textOf(body)}, by: p, sent: time.Now(), model: gjson.GetBytes(body, "model").String(), background: gjson.GetBytes(body, "background").Bool()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flexPosts = append(w.flexPosts, f)
	return f
}

func isFlexPost(req *http.Request, body []byte) bool {
	sends := strings.HasSuffix(req.URL.Path, "/chat/completions") || strings.HasSuffix(req.URL.Path, "/responses")
	return req.Method == http.MethodPost && sends && gjson.GetBytes(body, "service_tier").String() == "flex"
}

// noteFlexEnd notes what the process learns from the response, whose body is in memory.
func (w *world) noteFlexEnd(f *flexPost, res *http.Response, err error) {
	var body []byte
	if err == nil {
		var torn error
		body, torn = io.ReadAll(res.Body)
		replaceBody(res, body, torn)
		err = torn
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	f.ended = time.Now()
	switch {
	case err != nil, res.StatusCode == http.StatusGatewayTimeout, res.StatusCode >= 500 && !gjson.GetBytes(body, "error").Exists(), res.StatusCode < 300 && !gjson.ValidBytes(body):
		f.unsure = true
	case res.StatusCode == http.StatusTooManyRequests:
		f.refused = true
	case w.isNoTier(res.StatusCode, body):
		f.refused, f.noTier = true, true
	case res.StatusCode < 300:
		f.id = gjson.GetBytes(body, "id").String()
	default:
		f.id, f.failed = res.Header.Get("X-Request-Id"), res.StatusCode
	}
}

// noteAnswer notes the answer of a flex call as the provider sends it, by the id of the
// answer.
func (w *world) noteAnswer(body []byte) {
	if !flexName.Match(body) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flexAnswers[gjson.GetBytes(body, "id").String()] = body
}

// flexName finds the name that answerFlex gives to an answer.
var flexName = regexp.MustCompile(`flex/\d+`)

var answerID = regexp.MustCompile(`"id":"[^"]*"`)

// isFlex reports whether a call outside of a batch is at the flex tier.
func isFlex(l batchtest.Line) bool {
	return l.BatchID == "" && gjson.GetBytes(l.Body, "service_tier").String() == "flex"
}

// answerFlex decides the outcome of a call at the flex tier. No two calls have the same
// answer, and no two answers the same id.
func (w *world) answerFlex(l batchtest.Line, text string, n int, d dice) batchtest.Outcome {
	var o batchtest.Outcome
	if d.chance(w.flawChance) {
		switch d.IntN(6) {
		case 0:
			o.Missing = true
		case 1:
			if !gjson.GetBytes(l.Body, "background").Bool() { // else the response would be polled for a day
				o.Garbage = `{"id": what`
			}
		case 2:
			o.Status = []int{409, 500, 503}[d.IntN(3)]
		case 3:
			o.FlexRefused = true
		case 4, 5:
			o.Delay = d.between(time.Second, 20*time.Minute)
		}
	}
	if o.Status < 300 {
		name := fmt.Sprintf("%s.%d", strings.ReplaceAll(text, " ", "-"), n)
		w.mu.Lock()
		w.flexNames++
		signed := sign(batchtest.Echo(l).Body, text, lineID{"flex", fmt.Sprint(w.flexNames)})
		w.mu.Unlock()
		o.Body = answerID.ReplaceAll(signed, []byte(`"id":"`+name+`"`))
	}
	return o
}

// flexBatches are the calls that the provider runs, or has executed, at its flex tier,
// each as a batch of one line, as the processes see such a call.
func (w *world) flexBatches() (all []batchtest.Batch) {
	if !w.lanes.drawn {
		return nil
	}
	background := make(map[string]bool) // by the name of the answer
	for _, r := range w.srv.Responses() {
		if !isFlex(r.Line) {
			continue
		}
		background[flexNameOf(r.Outcome)] = true
		executed := !r.Ended.IsZero() && r.Status != "cancelled"
		all = append(all, batchtest.Batch{
			ID: r.ID, Status: r.Status, APIKey: r.APIKey, Created: r.Created, Ended: r.Ended, CancelRequested: r.CancelRequested || r.Deleted,
			Lines: []batchtest.BatchLine{{Line: r.Line, Outcome: r.Outcome, Finished: executed}},
		})
	}
	for _, x := range w.srv.Executed() {
		if name := flexNameOf(x.Outcome); isFlex(x.Line) && (name == "" || !background[name]) {
			all = append(all, batchtest.Batch{
				ID: gjson.GetBytes(x.Outcome.Body, "id").String(), Status: "completed", APIKey: x.APIKey,
				Lines: []batchtest.BatchLine{{Line: x.Line, Outcome: x.Outcome, Finished: true}},
			})
		}
	}
	return all
}

func flexNameOf(o batchtest.Outcome) string { return string(flexName.Find(o.Body)) }

// batches are the batches of the provider, and the flex calls.
func (w *world) batches() []batchtest.Batch { return append(w.srv.Batches(), w.flexBatches()...) }

// place is the name of the line by which answers are counted. The custom id of a flex
// call is not known to the provider.
func (w *world) place(id lineID) lineID {
	if w.isFlexID(id.batch) {
		id.custom = ""
	}
	return id
}

func (w *world) isFlexID(id string) bool {
	return slices.ContainsFunc(w.flexBatches(), func(b batchtest.Batch) bool { return b.ID == id })
}

// isFlexAnswer reports whether body is the answer of a flex call as the provider sent the
// answer.
func (w *world) isFlexAnswer(id string, body []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	sent, ok := w.flexAnswers[id]
	return ok && bytes.Equal(sent, body)
}

// pendingFlex counts the flex calls that may be on their way to the provider, that a
// process sends again since the provider has no room, or that ended in an error which only a
// process had that died: a retry looks for the answer for ten minutes. The caller holds
// world.mu.
func (w *world) pendingFlex(id ident, at time.Time) (n int) {
	for _, f := range w.flexPosts {
		lives := !f.by.isDead() && (f.ended.IsZero() || f.refused && at.Sub(f.ended) < 3*time.Minute)
		if f.ident == id && (lives || f.by.isDead() && f.failed > 0 && !f.given) {
			n++
		}
	}
	return n
}

// unsureFlex counts the flex calls of which no process knows whether the provider has
// executed them: the response got lost, or the process died before the journal knew the
// id of the response.
func (w *world) unsureFlex(id ident) (n int) {
	r := w.record
	r.mu.Lock()
	defer r.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flexPosts {
		held := f.id != "" && f.held() && !f.given && !w.isDelivered(f.id)
		if f.ident == id && (f.unsure && !f.by.diedBy(f.ended) || held) {
			n++
		}
	}
	stored := make(map[string]bool) // refs
	for _, ref := range r.ids {
		stored[ref] = true
	}
	idents := make(map[journal.Hash]ident)
	for customID, id := range w.customIDs {
		idents[r.prints[customID]] = id
	}
	for ref, flex := range r.flex {
		if !flex || !r.sending[ref] || stored[ref] || !r.by[ref].isDead() {
			continue
		}
		if of, known := idents[r.lines[ref][0].Fingerprint]; !known || of == id {
			n++
		}
	}
	return n
}

// isDelivered reports whether a client has the answer of a flex call, and the process that
// handed the answer out had a chance to write that down. The caller holds world.mu and
// record.mu.
func (w *world) isDelivered(id string) bool {
	r := w.record
	ref := r.ids[id]
	return slices.ContainsFunc(w.handed[lineID{batch: id}], func(h delivery) bool {
		return !h.by.isDead() || len(r.lines[ref]) > 0 && slices.Contains(r.deliveredTo[lineID{ref, r.lines[ref][0].CustomID}], h.by)
	})
}

// excusedFlex is how many lines more may be paid for since a response got lost while no
// caller waited: without a journal, a retry after two minutes does not learn of that. The
// first call of a line that the journal lost is not known either.
func (w *world) excusedFlex(id ident, byUnknown int) (n int) {
	if !w.lanes.drawn {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flexPosts {
		if f.ident == id && f.unsure && !w.journal {
			n++
		}
	}
	return n + byUnknown
}

// heldAway reports whether a process may not have the answer of a flex call that was held
// open: another process has received the answer, or the answer was an error, which the
// process has forgotten since another process had taken the line over.
func (w *world) heldAway(p *replica, id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return id != "" && slices.ContainsFunc(w.flexPosts, func(f *flexPost) bool {
		return f.id == id && f.held() && (f.by != p || f.failed > 0)
	})
}

// held reports whether only the process that sent a call has the answer.
func (f *flexPost) held() bool { return !f.background || f.failed > 0 }

// failedHeld reports whether a process got an error with a status as the answer to a flex
// call, and notes that a client has the error.
func (w *world) failedHeld(p *replica, id string, status int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flexPosts {
		if f.id == id && f.by == p && f.failed == status {
			f.given = true
			return true
		}
	}
	return false
}

// flexGone reports whether a process cannot get the answer of a flex call, so that the
// code is right: the provider lost the answer, one of ours has deleted the response for
// which nobody waited, the answer was held elsewhere, or another process, for which this
// process was dead, has handed the answer out.
func (w *world) flexGone(p *replica, id, code string) bool {
	if code != "batch_lost" && code != "batch_create_unknown" {
		return false
	}
	b, l, found := w.find(lineID{batch: id})
	switch {
	case w.heldAway(p, id):
		return true
	case !found || l.BatchID != "":
		return false
	case l.Outcome.Missing, b.CancelRequested && w.cancelledByUs(id):
		return true
	}
	return p.hasLapsed() && !w.handedAt(lineID{batch: id}).IsZero()
}

// diedBy reports whether a process was dead at a time.
func (p *replica) diedBy(at time.Time) bool { return p.isDead() && !p.died.After(at) }

// checkUnknown checks that a call of which nothing is known had a fault of its own: each
// unknown outcome is reported to one caller.
func (w *world) checkUnknown(p *replica, e *clientCall) {
	w.mu.Lock()
	w.unknown[e.ident] = append(w.unknown[e.ident], p)
	reported := 0
	for _, by := range w.unknown[e.ident] {
		if !by.isDead() { // else the process may not have written down that an error was reported
			reported++
		}
	}
	w.mu.Unlock()
	if unsure := w.unsureFlex(e.ident); reported > unsure {
		w.failf("%v: %d callers got an error for an unknown outcome, and %d flex calls have an unknown outcome", e.ident, reported, unsure)
	}
}

// checkFlexCancelled checks that a response in the background is cancelled which a
// process has abandoned. The processes were left alone for long enough.
func (w *world) checkFlexCancelled() {
	background := make(map[string]bool) // ids
	w.mu.Lock()
	for _, f := range w.flexPosts {
		background[f.id] = f.background
	}
	w.mu.Unlock()
	for _, b := range w.known() {
		by := w.record.beganBy(b.Ref)
		if b.BatchID == "" || !background[b.BatchID] || by.isDead() || by.ending.Load() {
			continue
		}
		w.record.note(func() {
			if w.record.abandoned[b.Ref].known && w.record.abandoned[b.BatchID].at.IsZero() {
				defer w.failf("nobody waits for %s, and %s has not cancelled it", b.BatchID, by.name)
			}
		})
	}
}
