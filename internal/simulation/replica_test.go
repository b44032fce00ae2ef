package simulation

import (
	"bytes"
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
)

// A replica is a Transport with a way to the provider and a hand on the
// journal. When it dies both fall silent, at once and in the middle of what
// they do; what it thinks from then on nobody hears.
type replica struct {
	w    *world
	name string
	tr   *autobatcher.Transport
	hand *hand // on the journal; nil without one

	gone context.Context // ends shortly after its death
	cut  context.CancelFunc
	dead chan struct{}
	die  sync.Once

	fuse   fuse
	lapsed bool // it could not renew its lease in time, once
	beaten time.Time
	blind  time.Time // until then it does not reach the journal; guarded by mu
	ending atomic.Bool

	mu        sync.Mutex
	luck      map[string]dice // decides about its requests, by kind
	escalated []time.Time
}

var (
	errDead    = errors.New("this process is dead")
	errGateway = errors.New("gateway timeout")
)

// start starts a process that takes calls. light, if not nil, sets its fuse.
func (w *world) start(name string, light func(*fuse)) *replica {
	ctx, cut := context.WithCancel(context.Background())
	p := &replica{w: w, name: name, dead: make(chan struct{}), gone: ctx, cut: cut, luck: make(map[string]dice)}
	if light != nil {
		light(&p.fuse)
	}
	o := w.options
	o.OnEvent = p.hear
	o.Base = &way{p: p}
	if w.base != nil {
		o.Base = w.base(o.Base)
	}
	if w.journal {
		p.hand = &hand{Store: w.open(), p: p}
		o.Journal = p.hand
		if w.mutant.store != nil {
			o.Journal = w.mutant.store(w, o.Journal)
		}
	}
	if *oneSeed != 0 {
		o.Logger = slog.New(slog.NewTextHandler(teller{p}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var err error
	if p.tr, err = autobatcher.New(o); err != nil {
		w.wrong("New: %v", err)
	}
	w.tally.add(countStarts, 1)
	w.tell("%s starts", name)
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

// hear notes when the process sends calls in real time.
func (p *replica) hear(e autobatcher.Event) {
	if e.Name == autobatcher.CallEscalated {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.escalated = append(p.escalated, e.Time)
	}
}

// recoverAll lets a process resume the batches of all keys.
func (w *world) recoverAll(p *replica) {
	for _, key := range w.keys {
		if err := p.tr.Recover(w.srv.URL, http.Header{"Authorization": {"Bearer " + key}}); err != nil && !p.isDead() {
			w.wrong("Recover: %v", err)
		}
	}
}

// A teller makes a process's log part of the story.
type teller struct{ p *replica }

func (t teller) Write(text []byte) (int, error) {
	_, text2, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	t.p.w.tell("  %s: %s", t.p.name, text2)
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
		p.w.tell("%s CRASHES", p.name)
		p.w.tally.add(countCrashes, 1)
		p.leave()
		close(p.dead)
		go p.decay()
	})
}

// decay ends what is left of a process. What was answered in the instant of
// its death still arrives, since a client reads what is in its socket.
func (p *replica) decay() {
	p.letGo()
	time.Sleep(time.Millisecond)
	p.cut()
	p.conclude(func() { p.tr.Close() })
}

// conclude ends the Transport, once: a bubble cannot wait for another goroutine
// that is inside Close, since a mutex is in the way.
func (p *replica) conclude(f func()) {
	if p.ending.CompareAndSwap(false, true) {
		f()
		p.letGo()
	}
}

// letGo closes its hand on the journal. Of a process that dies the operating
// system does the same.
func (p *replica) letGo() {
	if p.hand != nil {
		p.hand.Close()
	}
}

// leave takes the process off the load balancer.
func (p *replica) leave() {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.w.up = slices.DeleteFunc(p.w.up, func(other *replica) bool { return other == p })
}

// liveFor waits for that long, or until the process has died by itself, or
// until all clients are done.
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
	switch patience := d.of(0, time.Second, d.between(time.Second, w.server.Turnaround)); how {
	case 0, 1:
		p.crash()
	case 2:
		w.tell("%s is closed", p.name)
		w.tally.add(countCloses, 1)
		p.conclude(func() { p.tr.Close() })
	case 3:
		w.tell("%s is shut down within %v", p.name, patience)
		w.tally.add(countShutdowns, 1)
		ctx, cancel := context.WithTimeout(p.gone, patience)
		defer cancel()
		p.conclude(func() { _ = p.tr.Shutdown(ctx) }) // ctx may well have ended
	}
}

// A fuse ends a process at a certain one of its steps: requests to the provider
// and to the journal. The zero fuse never does.
type fuse struct {
	kind  string // of step; "": of any kind
	at    moment
	steps atomic.Int64 // until then
}

// A moment is when, at a step, a process dies.
type moment int

const (
	before moment = iota
	during        // the request is on its way
	after
)

// light sets the fuse.
func (f *fuse) light(d dice) {
	kinds := []string{
		"", "", "POST files", "POST batches", "POST batches", "GET files content", "POST batches cancel", "DELETE files",
		"begin", "advance", "advance", "deliver", "deliver", "take over", "release", "claim", "discard", "abandon", "hold",
	}
	f.kind, f.at = kinds[d.IntN(len(kinds))], moment(d.IntN(3))
	steps := 1 + d.Int64N(4)
	if f.kind == "" {
		steps = 1 + d.Int64N(40)
	}
	f.steps.Store(steps)
}

// step reports whether the process still lives at that moment of a step. Others
// may go first: by chance, so that the machine's orders differ.
func (p *replica) step(kind string, at moment) bool {
	for range rand.IntN(4) {
		runtime.Gosched()
	}
	f := &p.fuse
	if f.kind == "" || f.kind == kind {
		if at == before {
			f.steps.Add(-1)
		}
		if at == f.at && f.steps.Load() == 0 {
			p.tell("dies at %q (%d)", kind, at)
			p.crash()
		}
	}
	return !p.isDead()
}

func (p *replica) tell(format string, args ...any) {
	p.w.tell("  "+p.name+": "+format, args...)
}

// decide draws from the luck that a process has with requests of a kind.
func (p *replica) decide(kind string, f func(dice)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, ok := p.luck[kind]
	if !ok {
		d = newDice(p.w.seed, p.name, kind)
		p.luck[kind] = d
	}
	f(d)
}

// A way leads from a process to the provider. What was sent may arrive even
// though its sender has died, or stopped waiting; the answer then does not.
type way struct{ p *replica }

type passage struct {
	there, back time.Duration
	arrives     bool          // though its sender has gone
	late        time.Duration // a gateway gives up at once, and the request arrives so much later
	shuffled    uint64
}

func (v *way) RoundTrip(req *http.Request) (*http.Response, error) {
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
		v.p.tell("%s %s", req.Method, req.URL.Path)
	}
	v.p.w.watchCancel(v.p, req)
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
		return res, nil
	case err := <-lost:
		return nil, err
	case <-req.Context().Done():
		return nil, req.Context().Err()
	case <-v.p.dead:
		return nil, errDead
	}
}

// pass brings a request to the provider, and its answer back.
func (v *way) pass(sender context.Context, req *http.Request) (*http.Response, error) {
	w := v.p.w
	var how passage
	v.p.decide(kindOf(req), func(d dice) {
		how = passage{there: d.between(0, w.latency), back: d.between(0, w.latency), arrives: d.chance(0.5), shuffled: d.Uint64()}
		if w.storms && d.chance(0.03) {
			how.late = d.between(time.Second, 2*time.Minute)
		}
	})
	if how.late > 0 && isCreate(req) {
		v.p.tell("a gateway gives up, %v before the create arrives", how.late)
		go func() {
			time.Sleep(how.late)
			if res, err := w.srv.Transport().RoundTrip(req); err == nil {
				res.Body.Close()
			}
		}()
		return nil, errGateway
	}
	time.Sleep(how.there)
	if (sender.Err() != nil || v.p.isDead()) && !how.arrives {
		return nil, errDead
	}
	res, err := w.srv.Transport().RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, torn := io.ReadAll(res.Body)
	if !w.server.Manners.PartialResults && strings.HasSuffix(req.URL.Path, "/content") && torn == nil {
		text = shuffle(text, how.shuffled)
	}
	time.Sleep(how.back)
	res.Body = io.NopCloser(io.MultiReader(bytes.NewReader(text), failing{torn}))
	return res, nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err == nil {
		return 0, io.EOF
	}
	return 0, f.err
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

// shuffle puts lines into another order.
func shuffle(text []byte, seed uint64) []byte {
	lines := bytes.SplitAfter(text, []byte("\n"))
	if n := len(lines); n > 0 && len(lines[n-1]) == 0 {
		lines = lines[:n-1]
		newDice(seed).Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	}
	return bytes.Join(lines, nil)
}

// runReplica starts processes, one after the other, and ends each of them in
// one way or another but for the last.
func (w *world) runReplica(i int) {
	d := newDice(w.seed, "replica", i)
	lives := 0
	if w.journal {
		lives = d.IntN(4)
	}
	for life := range lives {
		var light func(*fuse)
		if d.chance(w.hurry) {
			light = func(f *fuse) { f.light(d) }
		}
		p := w.start(fmt.Sprintf("replica %d.%d", i, life), light)
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
