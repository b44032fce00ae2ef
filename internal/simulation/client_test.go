package simulation

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/autobatcher/autobatcher"
)

// A clientCall is one call of a client, with all attempts.
type clientCall struct {
	ident
	prompt   prompt
	mode     autobatcher.Mode // in the request's header, if not ""
	deadline time.Duration    // in the request's header, if not 0
}

// runClient makes calls, one after another or several at once.
func (w *world) runClient(i int) {
	d := newDice(w.seed, "client", i)
	for n := range w.callsEach {
		time.Sleep(d.between(0, w.length/time.Duration(w.callsEach)))
		calls := 1
		if d.chance(0.3) {
			calls += d.IntN(8)
		}
		var burst sync.WaitGroup
		for range calls {
			own := dice{rand.New(rand.NewPCG(d.Uint64(), 0))}
			burst.Go(func() { w.call(own, i) })
		}
		if d.chance(0.1) {
			hasty := newDice(w.seed, "flush", i, n)
			burst.Go(func() { w.flush(hasty) })
		}
		burst.Wait()
	}
}

// flush has a process send what it has queued.
func (w *world) flush(d dice) {
	time.Sleep(d.between(0, 2*w.options.BatchWindow))
	p := w.pick(d)
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	defer context.AfterFunc(p.gone, cancel)()
	w.tally.add(countFlushes, 1)
	began := time.Now()
	err := p.tr.Flush(ctx)
	p.logf("flushed: %v", err)
	if took := time.Since(began); took > time.Hour {
		w.failf("%s: Flush outlived its context: %v", p.name, took)
	}
}

// call makes one call. Clients make equal calls on purpose.
func (w *world) call(d dice, client int) {
	w.callWith(d, client, w.prompts[d.IntN(len(w.prompts))])
}

// callWith makes one call with a prompt.
func (w *world) callWith(d dice, client int, p prompt) {
	w.makeCall(d, client, &clientCall{ident: ident{w.keys[d.IntN(len(w.keys))], p.text}, prompt: p, mode: w.lanes.mode(d)})
}

// makeCall makes one call, until the client has an answer or gives up.
func (w *world) makeCall(d dice, client int, e *clientCall) {
	w.tally.add(countCalls, 1)
	w.mu.Lock()
	w.asked[e.ident]++
	w.mu.Unlock()
	w.retryUntilAnswered(d, client, e)
}

// retryUntilAnswered makes a call as SDKs do: the client sends the same bytes until
// the client has an answer, or has made enough attempts.
func (w *world) retryUntilAnswered(d dice, client int, e *clientCall) {
	timeout := forever // of an attempt
	if d.chance(0.4) {
		timeout = d.between(time.Second, 2*w.server.Turnaround)
	}
	if d.chance(0.1) && e.deadline == 0 {
		e.deadline = d.between(time.Second, w.server.Turnaround)
	}
	tries := 1 + d.IntN(8)
	for try := 1; try <= tries; try++ {
		p := w.pick(d)
		if p == nil { // no process is up, and a load balancer says so at once
			time.Sleep(d.between(time.Second, 5*time.Minute))
			try--
			continue
		}
		w.tally.add(countTries, 1)
		w.logf("client %d asks %s for %v (try %d, timeout %v)", client, p.name, e.ident, try, timeout)
		a := attempt{e, timeout, d.chance(0.05)}
		if end := w.try(p, a); end != "" {
			w.logf("client %d: %s", client, end)
			return
		}
		w.logf("client %d got nothing from %s", client, p.name)
		time.Sleep(d.of(d.between(time.Millisecond, 2*time.Second), d.between(time.Second, time.Minute), d.between(time.Second, 10*time.Minute)))
	}
	w.tally.add(countGaveUp, 1)
	w.logf("client %d gives up", client)
}

// forever is the timeout of a client without a timeout.
const forever = 1000 * time.Hour

func (w *world) pick(d dice) *replica {
	choice := d.Float64()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.up) == 0 {
		return nil
	}
	return w.up[int(choice*float64(len(w.up)))]
}

// An attempt is one request for a call.
type attempt struct {
	*clientCall
	timeout time.Duration
	hangsUp bool // in the middle of the answer
}

// try makes a call once. It returns how the call ended, or "" if the client is to
// retry.
func (w *world) try(p *replica, e attempt) string {
	ctx, cancel := context.WithTimeout(context.Background(), min(e.timeout, w.longest()))
	defer cancel()
	defer context.AfterFunc(p.gone, cancel)()
	v := w.enter(e.clientCall, p)
	defer w.exit(v)
	began := time.Now()
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, w.srv.URL+e.prompt.path, strings.NewReader(e.prompt.body))
	req.Header.Set("Authorization", "Bearer "+w.credential(e.key))
	req.Header.Set("Content-Type", "application/json")
	if e.deadline > 0 {
		req.Header.Set("Autobatcher-Deadline", e.deadline.String())
	}
	if e.mode != "" {
		req.Header.Set("Autobatcher-Mode", string(e.mode))
	}
	res, err := p.tr.RoundTrip(req)
	if took := time.Since(began); took >= w.longest() {
		w.failf("%v hangs: nothing after %v", e.ident, took)
	}
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, autobatcher.ErrClosed) {
			w.failf("%v ended in the error %v", e.ident, err)
		}
		return ""
	}
	defer res.Body.Close()
	if e.hangsUp && res.StatusCode < 300 {
		_, _ = io.CopyN(io.Discard, res.Body, 1)
		cancel()
		w.logf("%v hangs up on %s, in the middle of its answer", e.ident, p.name)
		return ""
	}
	body, err := io.ReadAll(res.Body)
	switch {
	case res.Header.Get("Autobatcher-Mode") == "realtime":
		w.checkNeeded(v)
		return w.checkRealtime(e.clientCall, res, body, err)
	case err != nil:
		w.failf("%v: body: %v", e.ident, err)
	}
	return w.checkResponse(p, e.clientCall, res, body)
}

// longest is how long a call may take. A batch ends a day after its completion
// window at the latest, and a call may be resubmitted once.
func (w *world) longest() time.Duration {
	if w.never || slices.Contains(w.drawn, "creations") {
		return 100 * time.Hour
	}
	return 30 * time.Hour
}

// runBurst makes hundreds of calls at once, each with a prompt of its own.
func (w *world) runBurst() {
	d := newDice(w.seed, "burst")
	time.Sleep(d.between(0, w.length))
	var calls sync.WaitGroup
	for i := range w.burst {
		own := dice{rand.New(rand.NewPCG(d.Uint64(), 0))}
		p := newPrompt(d, 100+i)
		calls.Go(func() { w.callWith(own, w.clients, p) })
	}
	calls.Wait()
}
