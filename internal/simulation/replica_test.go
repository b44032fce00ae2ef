package simulation

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/backend"
)

// A replica is a process of the fleet: a Transport that reaches the provider by a
// network, and the journal by a replicaStore. When the process dies, network and
// replicaStore carry out nothing more, even for requests under way, so that the
// Transport's further decisions have no effect.
type replica struct {
	w     *world
	name  string
	tr    *autobatcher.Transport
	store *replicaStore // the journal as this process reaches it; nil without a journal

	gone context.Context // ends shortly after the process dies
	cut  context.CancelFunc
	dead chan struct{}
	died time.Time // written before dead is closed
	die  sync.Once

	crashPoint crashPoint
	lapsed     bool // the process was without a lease, once
	lastBeat   time.Time
	ending     atomic.Bool

	mu                    sync.Mutex
	dice                  map[string]dice // decide about the requests of a kind
	escalated             []time.Time
	noProvider, noJournal time.Time            // until then, no request arrives at the provider, or at the journal
	looked, sawEnd        map[string]bool      // ids of batches whose status, or whose end, the process has seen
	looking               map[string]time.Time // by batch id: when the process last sent a request for the status of that batch alone
	ended                 map[string]time.Time // by batch id: when the process reported the end of the batch, and had read the results
}

var (
	errDead    = errors.New("this process is dead")
	errGateway = errors.New("gateway timeout")
	errNoRoute = errors.New("no route to host")
)

// start starts a process that takes calls. arm, if not nil, sets the crashPoint.
func (w *world) start(name string, arm func(*crashPoint)) *replica {
	ctx, cut := context.WithCancel(context.Background())
	p := &replica{w: w, name: name, dead: make(chan struct{}), gone: ctx, cut: cut, dice: make(map[string]dice), looked: make(map[string]bool), sawEnd: make(map[string]bool), looking: make(map[string]time.Time), ended: make(map[string]time.Time)}
	if arm != nil {
		arm(&p.crashPoint)
	}
	o := w.options
	o.OnEvent = p.handleEvent
	w.setAccount(&o)
	o.Base = &network{p: p}
	if w.journal {
		p.store = &replicaStore{Store: w.open(), p: p}
		o.Journal = p.store
	}
	o.Logger = slog.New(p.logHandler())
	var err error
	o.QuietAfter = cmp.Or(o.QuietAfter, -1) // the times below are those of whole windows
	if p.tr, err = autobatcher.New(o); err != nil {
		w.failf("New: %v", err)
	}
	w.tally.add(countStarts, 1)
	w.logf("%s starts", name)
	if w.recovers {
		w.recoverAll(p)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, p)
	if !p.isDead() {
		w.up = append(w.up, p)
	}
	return p
}

// handleEvent notes when the process sends calls in real time.
func (p *replica) handleEvent(e autobatcher.Event) {
	if e.Name == autobatcher.BatchCompleted || e.Name == autobatcher.BatchTerminal {
		p.mu.Lock()
		p.ended[e.BatchID] = e.Time
		p.mu.Unlock()
	}
	if e.Name == autobatcher.CallEscalated {
		p.mu.Lock()
		p.escalated = append(p.escalated, e.Time)
		p.mu.Unlock()
		p.w.mu.Lock()
		p.w.escalatedLines = append(p.w.escalatedLines, lineID{e.BatchID, e.CustomID})
		p.w.mu.Unlock()
		if (!p.w.escalates() || strings.HasPrefix(e.Error, "the flex call")) && strings.Contains(e.Error, backend.ErrUnsure.Error()) {
			p.w.failf("%s sends a call in real time that the flex tier may have executed: %s", p.name, e.Error)
		}
	}
	if p.w.handler != "" {
		p.misbehave()
	}
}

// misbehave does what an event handler may do, and should not.
func (p *replica) misbehave() {
	var roll float64
	p.decide("handler", func(d dice) { roll = d.Float64() })
	switch {
	case roll > 0.2:
	case p.w.handler == handlerFlushes:
		p.logf("an event handler flushes")
		_ = p.tr.Flush(context.Background()) // the calls get the error, if any
	case p.w.handler == handlerExits:
		p.logf("an event handler exits")
		runtime.Goexit()
	case p.w.handler == handlerSleeps:
		time.Sleep(time.Duration(roll / 0.2 * float64(10*time.Minute)))
	}
}

// cutOff sets the time until which a process does not reach the provider, or the
// journal.
func (p *replica) cutOff(until *time.Time, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*until = time.Now().Add(d)
}

// isCutOff reports whether the time set by cutOff has not come yet.
func (p *replica) isCutOff(until *time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Before(*until)
}

// recoverAll lets a process resume the batches of all keys.
func (w *world) recoverAll(p *replica) {
	for _, key := range w.keys {
		if err := p.tr.Recover(w.srv.URL, http.Header{"Authorization": {"Bearer " + w.credential(key)}}); err != nil && !p.isDead() {
			w.failf("Recover: %v", err)
		}
	}
}

// logHandler returns what handles the log of a process.
func (p *replica) logHandler() slog.Handler {
	if *oneSeed == 0 {
		return climbHandler{slog.DiscardHandler, p.w}
	}
	return climbHandler{slog.NewTextHandler(logWriter{p}, &slog.HandlerOptions{Level: slog.LevelDebug}), p.w}
}

// A logWriter adds a process's log to the schedule's log.
type logWriter struct{ p *replica }

func (t logWriter) Write(text []byte) (int, error) {
	_, text2, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	t.p.w.logf("  %s: %s", t.p.name, text2)
	return len(text), nil
}

func (p *replica) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

func (p *replica) crash() {
	p.die.Do(func() {
		p.w.logf("%s CRASHES", p.name)
		p.w.tally.add(countCrashes, 1)
		p.leave()
		p.died = time.Now()
		close(p.dead)
		go p.afterCrash()
	})
}

// afterCrash ends what is left of a process. A response sent in the instant of the
// crash still arrives, since the client's socket holds the response.
func (p *replica) afterCrash() {
	p.closeStore()
	time.Sleep(time.Millisecond)
	p.cut()
	p.closeOnce(func() { p.tr.Close() })
}

// closeOnce ends the Transport, once: a bubble cannot wait for a goroutine that
// waits for the mutex of another goroutine's Close.
func (p *replica) closeOnce(f func()) {
	if p.ending.CompareAndSwap(false, true) {
		f()
		p.closeStore()
		if b := p.tr.Stats().Budget; b.ReservedUSD > 1e-6 && p.w.options.Escalate == "" { // an escalated call ends with its reader
			p.w.failf("%s has ended, and the budget is %+v", p.name, b)
		}
	}
}

// closeStore closes the process's connection to the journal, as the operating
// system does for a process that dies.
func (p *replica) closeStore() {
	if p.store != nil {
		p.store.Close()
	}
}

// leave takes the process off the load balancer.
func (p *replica) leave() {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.w.up = slices.DeleteFunc(p.w.up, func(other *replica) bool { return other == p })
}

// liveFor waits for d, until the process has died, or until all clients are done,
// whichever is first.
func (p *replica) liveFor(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.dead:
	case <-p.w.over:
	}
}

// end ends the process in one way or another.
func (p *replica) end(d dice) {
	w := p.w
	how := d.IntN(4)
	if d.chance(0.5) {
		p.leave()
	} else {
		defer p.leave()
	}
	switch timeout := d.of(0, time.Second, d.between(time.Second, w.server.Turnaround)); how {
	case 0, 1:
		p.crash()
	case 2:
		w.logf("%s is closed", p.name)
		w.tally.add(countCloses, 1)
		p.closeOnce(func() { p.tr.Close() })
	case 3:
		w.logf("%s is shut down within %v", p.name, timeout)
		w.tally.add(countShutdowns, 1)
		ctx, cancel := context.WithTimeout(p.gone, timeout)
		defer cancel()
		p.closeOnce(func() { _ = p.tr.Shutdown(ctx) }) // ctx may well have ended
	}
}

// A crashPoint ends a process at one step. Steps are the requests to the provider
// and to the journal. The zero crashPoint never ends a process.
type crashPoint struct {
	kind  string // the kind of steps that count; "": all kinds
	at    moment
	steps atomic.Int64 // how many more steps until the crash
}

// draw has the process die soon, at a step of one of the kinds.
func (f *crashPoint) draw(d dice, kinds ...string) {
	f.kind, f.at = kinds[d.IntN(len(kinds))], moment(d.IntN(3))
	f.steps.Store(1 + d.Int64N(4))
}

// A moment is the point of a step at which a process dies.
type moment int

const (
	before moment = iota
	during        // the request is on its way
	after
)

// arm sets the crashPoint.
func (f *crashPoint) arm(d dice) {
	f.draw(d,
		"", "", "POST files", "POST batches", "POST batches", "GET files content", "POST batches cancel", "DELETE files",
		"begin", "advance", "advance", "deliver", "deliver", "take over", "release", "claim", "discard", "abandon", "hold",
	)
	if f.kind == "" {
		f.steps.Store(1 + d.Int64N(40))
	}
}

// step reports whether the process still lives at a moment of a step. Other
// goroutines may run first, by chance, so that the orders of the machine differ.
func (p *replica) step(kind string, at moment) bool {
	for range rand.IntN(4) {
		runtime.Gosched()
	}
	f := &p.crashPoint
	if f.kind == "" || f.kind == kind {
		if at == before {
			f.steps.Add(-1)
		}
		if at == f.at && f.steps.Load() == 0 {
			p.logf("dies at %q (%d)", kind, at)
			p.crash()
		}
	}
	return !p.isDead()
}

func (p *replica) logf(format string, args ...any) {
	p.w.logf("  "+p.name+": "+format, args...)
}

// decide calls f with the dice of the process for requests of a kind.
func (p *replica) decide(kind string, f func(dice)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, ok := p.dice[kind]
	if !ok {
		d = newDice(p.w.seed, p.name, kind)
		p.dice[kind] = d
	}
	f(d)
}

// A network carries a process's requests to the provider. A request may arrive
// although its sender has died or stopped waiting; the response then does not.
type network struct{ p *replica }

type exchange struct {
	there, back time.Duration
	arrives     bool          // although the sender has gone
	late        time.Duration // if not 0: a gateway gives up at once, and the request arrives so much later
	shuffled    uint64
}

func (v *network) RoundTrip(req *http.Request) (*http.Response, error) {
	var text []byte
	if req.Body != nil {
		var err error
		text, err = io.ReadAll(req.Body)
		req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	kind := kindOf(req)
	if !v.p.step(kind, before) {
		return nil, errDead
	}
	if req.Method != http.MethodGet {
		v.p.logf("%s %s", req.Method, req.URL.Path)
	}
	v.p.noteLook(req)
	v.p.w.watchCancel(v.p, req)
	v.p.w.watchDelete(v.p, req)
	v.p.w.noteUpload(v.p, req, text)
	f := v.p.w.noteFlexPost(v.p, req, text)
	res, err := v.exchange(req, text)
	if f != nil {
		v.p.w.noteFlexEnd(f, res, err)
	}
	return res, err
}

// exchange sends a request, and waits for the response.
func (v *network) exchange(req *http.Request, text []byte) (*http.Response, error) {
	kind := kindOf(req)
	sent := req.Clone(context.WithoutCancel(req.Context()))
	sent.Body = io.NopCloser(bytes.NewReader(text))
	done := make(chan *http.Response, 1)
	lost := make(chan error, 1)
	go func() {
		if res, err := v.pass(req.Context(), sent); err != nil {
			lost <- err
		} else {
			done <- res
		}
	}()
	v.p.step(kind, during)
	select {
	case res := <-done:
		if !v.p.step(kind, after) {
			return nil, errDead
		}
		v.p.noteResponse(req, res)
		return res, nil
	case err := <-lost:
		return nil, err
	case <-req.Context().Done():
		return nil, req.Context().Err()
	case <-v.p.dead:
		return nil, errDead
	}
}

// pass carries a request to the provider, and the response back.
func (v *network) pass(sender context.Context, req *http.Request) (*http.Response, error) {
	w := v.p.w
	var how exchange
	v.p.decide(kindOf(req), func(d dice) {
		how = exchange{there: d.between(0, w.latency), back: d.between(0, w.latency), arrives: d.chance(0.5), shuffled: d.Uint64()}
		if w.providerFaults && d.chance(0.03) {
			how.late = d.between(time.Second, 2*time.Minute)
		}
	})
	if how.late > 0 && isCreate(req) {
		v.p.logf("a gateway gives up, %v before the create arrives", how.late)
		go func() {
			time.Sleep(how.late)
			if res, err := w.provider.RoundTrip(req); err == nil {
				res.Body.Close()
			}
		}()
		return nil, errGateway
	}
	time.Sleep(how.there)
	if (sender.Err() != nil || v.p.isDead()) && !how.arrives {
		return nil, errDead
	}
	if v.p.isCutOff(&v.p.noProvider) {
		return nil, errNoRoute
	}
	res, err := w.provider.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, torn := io.ReadAll(res.Body)
	if v.p.isCutOff(&v.p.noProvider) {
		return nil, errNoRoute
	}
	if torn == nil && res.StatusCode == http.StatusOK && strings.HasSuffix(req.URL.Path, "/content") {
		var position uint64
		v.p.decide("spoil", func(d dice) { position = d.Uint64() })
		text = w.spoil(res, text, position)
	}
	if w.mayRearrange(res) && strings.HasSuffix(req.URL.Path, "/content") && torn == nil {
		text = shuffle(text, how.shuffled)
	}
	if torn == nil && w.lanes.drawn {
		w.noteAnswer(text)
	}
	time.Sleep(how.back)
	replaceBody(res, text, torn)
	return res, nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err == nil {
		return 0, io.EOF
	}
	return 0, f.err
}

func isCreate(req *http.Request) bool {
	return req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/batches")
}

func kindOf(req *http.Request) string {
	kind := req.Method
	for _, word := range []string{"files", "batches", "content", "cancel"} {
		if strings.Contains(req.URL.Path, word) {
			kind += " " + word
		}
	}
	return kind
}

// shuffle puts the lines of a text into another order.
func shuffle(text []byte, seed uint64) []byte {
	lines := bytes.SplitAfter(text, []byte("\n"))
	if n := len(lines); n > 0 && len(lines[n-1]) == 0 {
		lines = lines[:n-1]
		newDice(seed).Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	}
	return bytes.Join(lines, nil)
}

// runReplica starts processes, one after another, and ends each except the last.
func (w *world) runReplica(i int) {
	d := newDice(w.seed, "replica", i)
	lives := 0
	if w.journal {
		lives = d.IntN(4)
	}
	for life := range lives {
		var arm func(*crashPoint)
		if d.chance(w.crashChance) {
			arm = func(f *crashPoint) {
				f.arm(d)
				w.lanes.arm(f, newDice(w.seed, "lanes die", i, life))
				w.background.arm(f, newDice(w.seed, "background dies", i, life))
			}
		}
		p := w.start(fmt.Sprintf("replica %d.%d", i, life), arm)
		p.liveFor(d.between(time.Second, 2*w.length/time.Duration(lives)))
		p.end(d)
		pause := d.of(0, d.between(0, 10*time.Second), d.between(time.Second, 10*time.Minute), d.between(time.Second, time.Hour))
		if w.nights {
			pause = d.between(6*time.Hour, 18*time.Hour)
		}
		if !w.sleep(pause) {
			break
		}
	}
	p := w.start(fmt.Sprintf("replica %d", i), nil)
	<-w.over
	p.leave()
}
