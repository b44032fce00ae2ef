package simulation

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/journal"
)

// drawClimbs plans calls in mode auto that leave their batch for the flex tier near their
// deadline, and, in some schedules, a flex tier that only one of the models has. A schedule with
// climbs has lanes, too.
func drawClimbs(p *plan, d dice) {
	if !p.lanes.drawn {
		drawLanes(p, newDice(p.seed, "draw", "lanes"))
	}
	p.lanes.climbers = 1 + d.IntN(3)
	p.options.Escalate = autobatcher.EscalateDeadline
	p.options.BatchSize += 3 // a call that is alone in its batch would not wait
	p.server.Turnaround = d.between(time.Hour, 3*time.Hour)
	if d.chance(0.25) {
		p.server.FlexModels = []string{"m1"}
	}
}

// climbDeadline is a deadline for which mode auto chooses a batch, and near which a batch
// that ends when the provider's batches end may not have answered: the deadline is later
// than the end of a batch by less than the longest time of the flex tier.
func (w *world) climbDeadline(d dice) time.Duration {
	batch := max(time.Hour, w.server.Turnaround) + w.options.BatchWindow + w.options.PollInterval
	return batch + d.between(time.Minute, time.Minute+w.options.EscalateMargin+w.options.Provider.FlexTimeout)
}

// runClimber makes calls with such deadlines, several at once, so that they share a batch. Some
// calls have no deadline, so that the batch runs on when the other calls have climbed.
func (w *world) runClimber(i int) {
	d := newDice(w.seed, "climber", i)
	for range 2 {
		time.Sleep(d.between(0, w.length/2))
		p := climbPrompt(d)
		key := w.keys[d.IntN(len(w.keys))]
		var calls sync.WaitGroup
		for range 2 + d.IntN(4) {
			own := dice{rand.New(rand.NewPCG(d.Uint64(), 0))}
			calls.Go(func() {
				one := p(own)
				e := &clientCall{ident: ident{key, one.text}, prompt: one, mode: autobatcher.ModeAuto}
				if own.chance(0.7) {
					e.deadline = w.climbDeadline(own)
				}
				w.makeCall(own, w.clients+i, e)
			})
		}
		calls.Wait()
	}
}

// climbPrompt chooses an endpoint and a model, and returns a function that makes prompts
// for them. Some prompts are equal.
func climbPrompt(d dice) func(dice) prompt {
	model, kind := d.IntN(2), d.IntN(3)
	return func(d dice) prompt {
		text := fmt.Sprintf("climb %d-%d-%d", model, kind, d.IntN(4))
		p := prompt{path: "/responses", text: text}
		switch kind {
		case 0:
			p.path = "/chat/completions"
			p.body = fmt.Sprintf(`{"model":"m%d","messages":[{"role":"user","content":"%s"}]}`, model, text)
		case 1:
			p.body = fmt.Sprintf(`{"model":"m%d","store":false,"input":"%s"}`, model, text)
		default:
			p.body = fmt.Sprintf(`{"model":"m%d","input":"%s"}`, model, text)
		}
		return p
	}
}

// A climbHandler notes the lines whose calls climb, which the log says, and no event.
type climbHandler struct {
	slog.Handler
	w *world
}

// Enabled implements slog.Handler.
func (h climbHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level == slog.LevelInfo || h.Handler.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h climbHandler) Handle(ctx context.Context, r slog.Record) error {
	line := ""
	if r.Message == "call sent in another lane" {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "custom_id" {
				line = a.Value.String()
			}
			return true
		})
	}
	if line != "" {
		h.w.mu.Lock()
		h.w.climbedLines[line] = time.Now()
		h.w.mu.Unlock()
		h.w.tally.add(countClimbed, 1)
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// climbed counts the lines of batches whose calls have climbed. Such a call may be paid for in
// the batch and at the flex tier, once each, however often the client repeats the call: the
// flex calls of equal calls have the same fingerprint.
func (w *world) climbed(id ident) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range w.climbedLines {
		if w.sent[line].ident == id {
			n++
		}
	}
	return min(n, w.asked[id])
}

// lastClimb is when an equal call climbed last; zero if none did.
func (w *world) lastClimb(id ident) (last time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for line, at := range w.climbedLines {
		if w.sent[line].ident == id && at.After(last) {
			last = at
		}
	}
	return last
}

// isUsedUp reports whether a line, whose answer no client has, can answer no further client: a
// client that waited for the line was answered in another lane, or the line is the flex
// call of a call that climbed, and answers that call only. Without a journal, each line of a call
// that climbed, or that was sent in real time, may be such a line.
func (w *world) isUsedUp(id lineID, of ident) (used bool) {
	if w.options.Escalate != autobatcher.EscalateDeadline {
		return false
	}
	if !w.journal {
		return w.climbed(of) > 0 || w.isEscalated(id)
	}
	r := w.record
	r.note(func() {
		ref := r.ids[id.batch]
		for _, l := range r.lines[ref] {
			if id.custom == "" || id.custom == l.CustomID {
				used = used || len(r.deliveredTo[lineID{ref, l.CustomID}]) > 0 || r.isFork(l.Fingerprint)
			}
		}
	})
	return used
}

// isFork reports whether a fingerprint is that of a call that climbed. The caller holds mu.
func (r *record) isFork(print journal.Hash) bool {
	for _, p := range r.prints {
		if sha256.Sum256(append([]byte("fork "), p[:]...)) == [sha256.Size]byte(print) {
			return true
		}
	}
	return false
}

// isEscalated reports whether a process sent the call of a line in real time.
func (w *world) isEscalated(id lineID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.escalatedLines, func(l lineID) bool { return l.batch == id.batch && (id.custom == "" || id.custom == l.custom) })
}

// checkNeeded checks that a call is not sent in real time whose process has read the answer to
// its line, be the call in a batch or at the flex tier by then. The line of a call that another
// call equals may answer the other call. When all calls of a batch have climbed, the batch is
// cancelled, and lines that the provider has executed by then answer no caller, as documented.
// A process that does not own the batch releases the line, so that the owner may cancel the batch.
func (w *world) checkNeeded(v *visit) {
	w.mu.Lock()
	equal := w.asked[v.call.ident] > 1
	w.mu.Unlock()
	if equal || v.at.hasLapsed() {
		return
	}
	for _, b := range w.srv.Batches() {
		v.at.mu.Lock()
		read := v.at.ended[b.ID]
		v.at.mu.Unlock()
		if read.Before(v.began) || time.Since(read) < time.Minute || w.cancelledByUs(b.ID) || len(b.Errors) > 0 {
			continue
		}
		for _, l := range b.Lines {
			id := lineID{b.ID, l.CustomID}
			if (ident{b.APIKey, textOf(l.Body)}) == v.call.ident && answered(l) && w.handedAt(id).IsZero() && !w.record.isReleased(v.at, id, w.lastClimb(v.call.ident)) {
				w.failf("%v was sent in real time, though %s had read the answer %v before", v.call.ident, v.at.name, time.Since(read))
			}
		}
	}
}

// isNoTier reports whether a response refuses a call since its model has no flex tier.
func (w *world) isNoTier(status int, body []byte) bool {
	return len(w.server.FlexModels) > 0 && status == http.StatusBadRequest && gjson.GetBytes(body, "error.param").String() == "service_tier"
}

// checkNoTier checks that a process that learned that a model has no flex tier does not ask for
// the tier again within an hour, for the account and the model, unless the process may have
// forgotten the account; and that no other call was refused so.
func (w *world) checkNoTier() {
	w.mu.Lock()
	posts := slices.Clone(w.flexPosts)
	w.mu.Unlock()
	for _, first := range posts {
		if !first.noTier {
			continue
		}
		if slices.Contains(w.server.FlexModels, first.model) {
			w.failf("the provider refused the flex tier to %s", first.model)
		}
		for _, f := range posts {
			again := f.by == first.by && f.key == first.key && f.model == first.model && f.sent.After(first.ended.Add(time.Second))
			if again && f.sent.Sub(first.ended) < time.Hour && !w.rotation && !w.mayForgetAccount(f, first.ended) {
				w.failf("%s asked for the flex tier of %s again %v after the provider had refused the tier", f.by.name, f.model, f.sent.Sub(first.ended))
			}
		}
	}
}

// mayForgetAccount reports whether a process may have forgotten the account of a flex call since
// a time, and before the process sent the call: an account without a batch is forgotten an hour
// after its last call. The calls in the background are not looked at.
func (w *world) mayForgetAccount(f *flexPost, since time.Time) bool {
	var entered []time.Time
	w.mu.Lock()
	for id, visits := range w.visits {
		for _, v := range visits {
			if id.key == f.key && v.at == f.by && v.began.Before(f.sent) {
				entered = append(entered, v.began)
			}
		}
	}
	w.mu.Unlock()
	slices.SortFunc(entered, time.Time.Compare)
	for i, at := range entered {
		next := f.sent
		if i+1 < len(entered) {
			next = entered[i+1]
		}
		if next.After(since) && next.Sub(at) >= time.Hour {
			return true
		}
	}
	return false
}
