package autobatcher_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
)

var (
	simulations = flag.Int("seeds", 12, "how many schedules TestSimulation plays, from seed 1 on")
	oneSeed     = flag.Uint64("seed", 0, "the only schedule TestSimulation plays")
)

// TestSimulation plays random schedules of calls, retries, crashes, restarts
// and troubles of the network, the provider and the journal, over hours of
// simulated time, and checks after each what must always hold; see
// simulation_check_test.go for what that is, exactly.
//
// A schedule follows from its seed alone: each actor (a client, a replica, the
// weather) and each stream of decisions (the requests of a kind that a process
// makes, the answers to a prompt) draws from a generator of its own, so that it
// decides the same whatever the others do. What does not follow from the seed
// is the order of goroutines that are ready at the same instant, the jitter of
// a backoff (at most a quarter of it) and the text of random ids. A seed
// that failed nearly always fails again; -count 20 helps with the rest.
func TestSimulation(t *testing.T) {
	first, last := uint64(1), uint64(*simulations)
	if *oneSeed != 0 {
		first, last = *oneSeed, *oneSeed
	}
	var sum tally
	t.Run("", func(t *testing.T) {
		for seed := first; seed <= last; seed++ {
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				t.Parallel()
				wrongs := simulate(t, seed, mutant{}, &sum)
				for _, wrong := range wrongs {
					t.Error(wrong)
				}
				if len(wrongs) > 0 {
					t.Errorf("to see it again: go test -run 'TestSimulation$' -seed %d -v .", seed)
				}
			})
		}
	})
	t.Log(sum.String())
}

// simulate plays one schedule and returns what went wrong.
func simulate(t *testing.T, seed uint64, m mutant, sum *tally) (wrongs []string) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, m)
		w.play()
		w.check()
		w.tally.addTo(sum)
		wrongs = w.wrongs
		if *oneSeed != 0 {
			t.Logf("%+v\n%s", w.plan, w.story.String())
		}
		time.Sleep(time.Minute) // what is still on its way arrives, and is forgotten
	})
	return wrongs
}

// A tally counts what simulations came to.
type tally struct {
	seeds, seconds, calls, tries, answered, errors, gaveUp atomic.Int64
	starts, crashes, closes, shutdowns                     atomic.Int64
	batches, lines, takenOver, calledOff, lost             atomic.Int64
	duplicates, losses                                     atomic.Int64
}

func (a *tally) each(b *tally, f func(mine, other *atomic.Int64)) {
	for _, p := range [][2]*atomic.Int64{
		{&a.seeds, &b.seeds},
		{&a.seconds, &b.seconds},
		{&a.calls, &b.calls},
		{&a.tries, &b.tries},
		{&a.answered, &b.answered},
		{&a.errors, &b.errors},
		{&a.gaveUp, &b.gaveUp},
		{&a.starts, &b.starts},
		{&a.crashes, &b.crashes},
		{&a.closes, &b.closes},
		{&a.shutdowns, &b.shutdowns},
		{&a.batches, &b.batches},
		{&a.lines, &b.lines},
		{&a.takenOver, &b.takenOver},
		{&a.calledOff, &b.calledOff},
		{&a.lost, &b.lost},
		{&a.duplicates, &b.duplicates},
		{&a.losses, &b.losses},
	} {
		f(p[0], p[1])
	}
}

func (a *tally) addTo(sum *tally) {
	a.each(sum, func(mine, other *atomic.Int64) { other.Add(mine.Load()) })
}

func (a *tally) String() string {
	return fmt.Sprintf("%d seeds, %d simulated hours: %d calls in %d tries (%d answered, %d ended in an error, %d gave up); "+
		"%d processes started, %d crashed, %d closed, %d shut down; %d batches, %d lines executed and checked "+
		"(%d answered by a line that another process had sent, %d lines called off, %d lost by the provider); %d duplicates, %d losses",
		a.seeds.Load(), a.seconds.Load()/3600, a.calls.Load(), a.tries.Load(), a.answered.Load(), a.errors.Load(), a.gaveUp.Load(),
		a.starts.Load(), a.crashes.Load(), a.closes.Load(), a.shutdowns.Load(), a.batches.Load(), a.lines.Load(),
		a.takenOver.Load(), a.calledOff.Load(), a.lost.Load(), a.duplicates.Load(), a.losses.Load())
}

// A world is everything there is in one simulation. Its mutex is never held
// while anything waits.
type world struct {
	plan
	mutant
	*testing.T
	srv    *batchtest.Server
	store  journal.Store
	begin  time.Time
	over   chan struct{} // closed when the clients are done
	calm   atomic.Bool   // the journal does not fail any more
	tally  tally
	story  strings.Builder
	wrongs []string

	mu      sync.Mutex
	up      []*replica // where clients send their calls
	all     []*replica
	asked   map[ident]int // calls, not tries
	handed  map[lineID][]handing
	planned map[string]int // how often each prompt was executed
	record  *record
}

// An ident is what makes calls the same: n of them are n lines.
type ident struct{ key, text string }

// A lineID names a line of the provider's.
type lineID struct{ batch, custom string }

// A handing is an answer given to a client.
type handing struct {
	call *errand
	by   *replica
}

func newWorld(t *testing.T, seed uint64, m mutant) *world {
	w := &world{
		plan: newPlan(seed), mutant: m, T: t, begin: time.Now(), over: make(chan struct{}),
		asked: make(map[ident]int), handed: make(map[lineID][]handing), planned: make(map[string]int),
		record: newRecord(),
	}
	w.server.Answer = w.answer
	w.srv = batchtest.New(w.server)
	w.store = journal.NewMemory()
	return w
}

// tell adds to the story that a replay shows.
func (w *world) tell(format string, args ...any) {
	if *oneSeed == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(&w.story, "%12v  %s\n", time.Since(w.begin).Round(time.Millisecond), fmt.Sprintf(format, args...))
}

func (w *world) wrong(format string, args ...any) {
	w.tell("WRONG: "+format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrongs = append(w.wrongs, fmt.Sprintf("seed %d: "+format, append([]any{w.seed}, args...)...))
}

// play lets everybody act until all clients have what they want, and then
// lets a last process see to what was left behind.
func (w *world) play() {
	var clients, others sync.WaitGroup
	for i := range w.replicas {
		others.Go(func() { w.runReplica(i) })
	}
	if w.storms {
		others.Go(w.runWeather)
	}
	for i := range w.clients {
		clients.Go(func() { w.runClient(i) })
	}
	clients.Wait()
	close(w.over)
	others.Wait()
	w.epilogue()
}

// sleep waits, and reports whether clients still wait for something then.
func (w *world) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-w.over:
		return false
	}
}

// answer decides what becomes of a line. What an executed line says is unlike
// what any other says.
func (w *world) answer(l batchtest.Line) batchtest.Outcome {
	text := textOf(l.Body)
	w.mu.Lock()
	w.planned[text]++
	d := newDice(w.seed, "line", text, w.planned[text])
	w.mu.Unlock()
	o := batchtest.Outcome{Displaced: d.chance(0.1)}
	if d.chance(w.flaws) {
		switch d.IntN(6) {
		case 0:
			o.Missing = true
		case 1:
			o.Garbage = `{"custom_id": what`
		case 2:
			o.Code, o.Message = "request_timeout", "too slow"
		case 3:
			o.Status = []int{400, 429, 500, 503}[d.IntN(4)]
		case 4, 5:
			o.Delay = d.between(time.Second, 2*w.server.Turnaround)
		}
	}
	o.Never = w.never && d.chance(0.1)
	if o.Status < 300 {
		o.Body = sign(batchtest.Echo(l).Body, text, lineID{l.BatchID, l.CustomID})
	}
	return o
}

// sign puts the name of its line into an answer.
func sign(body []byte, text string, id lineID) []byte {
	name := id.batch + "/" + id.custom
	if signed := strings.ReplaceAll(string(body), text, text+" "+name); signed != string(body) {
		return []byte(signed)
	}
	return []byte(strings.TrimSuffix(string(body), "}") + `,"line":"` + name + `"}`)
}

// An errand is one call of a client's, with all its tries.
type errand struct {
	ident
	prompt prompt
}

// runClient makes calls, one after the other or several at once.
func (w *world) runClient(i int) {
	d := newDice(w.seed, "client", i)
	for range w.callsEach {
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
		burst.Wait()
	}
}

// call makes one call. Equal ones are made on purpose.
func (w *world) call(d dice, client int) {
	p := w.prompts[d.IntN(len(w.prompts))]
	e := &errand{ident: ident{w.keys[d.IntN(len(w.keys))], p.text}, prompt: p}
	w.tally.calls.Add(1)
	w.mu.Lock()
	w.asked[e.ident]++
	w.mu.Unlock()
	w.insist(d, client, e)
}

// insist tries a call as SDKs do: the same bytes, until there is an answer, or
// until it was tried often enough.
func (w *world) insist(d dice, client int, e *errand) {
	patience := forever // of a try
	if d.chance(0.4) {
		patience = d.between(time.Second, 2*w.server.Turnaround)
	}
	deadline := time.Duration(0)
	if d.chance(0.1) {
		deadline = d.between(time.Second, w.server.Turnaround)
	}
	tries := 1 + d.IntN(8)
	for try := 1; try <= tries; try++ {
		p := w.pick(d)
		if p == nil { // nobody is there; a load balancer says so at once
			time.Sleep(d.between(time.Second, 5*time.Minute))
			try--
			continue
		}
		w.tally.tries.Add(1)
		w.tell("client %d asks %s for %v (try %d, patience %v)", client, p.name, e.ident, try, patience)
		if end := w.try(p, e, patience, deadline); end != "" {
			w.tell("client %d: %s", client, end)
			return
		}
		w.tell("client %d got nothing from %s", client, p.name)
		time.Sleep(d.of(d.between(time.Millisecond, 2*time.Second), d.between(time.Second, time.Minute), d.between(time.Second, 10*time.Minute)))
	}
	w.tally.gaveUp.Add(1)
	w.tell("client %d gives up", client)
}

// forever is a client without a timeout.
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

// try makes a call once. It returns how the call ended, or "" if it is to be
// tried again.
func (w *world) try(p *replica, e *errand, patience, deadline time.Duration) string {
	ctx, cancel := context.WithTimeout(context.Background(), min(patience, w.longest()))
	defer cancel()
	defer context.AfterFunc(p.gone, cancel)()
	began := time.Now()
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, w.srv.URL+e.prompt.path, strings.NewReader(e.prompt.body))
	req.Header.Set("Authorization", "Bearer "+e.key)
	req.Header.Set("Content-Type", "application/json")
	if deadline > 0 {
		req.Header.Set("Autobatcher-Deadline", deadline.String())
	}
	res, err := p.tr.RoundTrip(req)
	if took := time.Since(began); took >= w.longest() {
		w.wrong("%v hangs: nothing after %v", e.ident, took)
	}
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, autobatcher.ErrClosed) {
			w.wrong("%v ended in the error %v", e.ident, err)
		}
		return ""
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.wrong("%v: body: %v", e.ident, err)
	}
	return w.weigh(p, e, res, body)
}

// longest is how long a call may take. A batch ends by its window and a day's
// patience at the latest, and a call may ride twice.
func (w *world) longest() time.Duration {
	if w.never {
		return 100 * time.Hour
	}
	return 30 * time.Hour
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

// runWeather troubles the provider.
func (w *world) runWeather() {
	d := newDice(w.seed, "weather")
	for w.sleep(d.between(time.Second, w.length/8)) {
		switch n := d.IntN(20); {
		case n < 14:
			op := []batchtest.Op{
				batchtest.OpCreate, batchtest.OpCreate, batchtest.OpCreate, batchtest.OpUpload, batchtest.OpRetrieve,
				batchtest.OpContent, batchtest.OpContent, batchtest.OpList, batchtest.OpCancel,
			}[d.IntN(9)]
			for range 1 + d.IntN(3) {
				w.srv.Control(op, badLuck(d))
			}
			w.tell("faults at %s", op)
		case n < 16:
			f := []batchtest.Fault{batchtest.Status(503, nil, "{}"), batchtest.Reset(), batchtest.HTML(502), batchtest.RateLimit(time.Minute)}[d.IntN(4)]
			stop := w.srv.Keep(batchtest.OpAny, f)
			length := d.between(time.Second, 15*time.Minute)
			w.tell("outage of %v", length)
			w.sleep(length)
			stop()
		default:
			w.strike(d)
		}
	}
}

func badLuck(d dice) batchtest.Fault {
	switch d.IntN(9) {
	case 0, 1:
		return batchtest.LoseAnswer()
	case 7:
		return batchtest.Hang()
	case 2:
		return batchtest.Reset()
	case 3:
		return batchtest.Status([]int{500, 503, 504, 408}[d.IntN(4)], nil, `{"error":{"message":"trouble"}}`)
	case 4:
		return batchtest.HTML(502)
	case 5:
		return batchtest.RateLimit(d.between(0, time.Minute))
	case 6:
		return batchtest.Tear(d.IntN(2000))
	}
	return batchtest.Delay(d.between(time.Millisecond, 4*time.Second))
}

// strike ends a batch before its time, as the provider or its owner may.
func (w *world) strike(d dice) {
	batches := w.srv.Batches()
	if len(batches) == 0 {
		return
	}
	b := batches[d.IntN(len(batches))]
	switch d.IntN(4) {
	case 0:
		w.tell("%s expires", b.ID)
		_ = w.srv.Expire(b.ID)
	case 1:
		code := []string{"invalid_json_line", "token_limit_exceeded", "server_error", "invalid_request"}[d.IntN(4)]
		w.tell("%s fails: %s", b.ID, code)
		_ = w.srv.FailBatch(b.ID, code, "struck", d.IntN(2))
	case 2:
		w.tell("%s is cancelled by another", b.ID)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, w.srv.URL+"/batches/"+b.ID+"/cancel", nil)
		req.Header.Set("Authorization", "Bearer "+b.APIKey)
		if res, err := w.srv.Transport().RoundTrip(req); err == nil {
			res.Body.Close()
		}
	case 3:
		_ = w.srv.Finish(b.ID)
	}
}

// epilogue lets a last process find what was left behind, and all batches end.
func (w *world) epilogue() {
	time.Sleep(5 * time.Minute) // leases run out, and patience with batches nobody waits for
	w.checkDeserted()
	w.calm.Store(true)
	last := w.start("the last", nil)
	w.recoverAll(last)
	for range 24 {
		for _, b := range w.srv.Batches() {
			_ = w.srv.Finish(b.ID)
		}
		time.Sleep(max(10*time.Minute, w.options.PollInterval))
		if w.allEnded() {
			break
		}
	}
	w.checkIdle()
	w.tally.seeds.Add(1)
	w.tally.seconds.Add(int64(time.Since(w.begin) / time.Second))
	for _, p := range w.all {
		p.conclude(func() { p.tr.Close() })
	}
	w.srv.Close() // ends what hangs there
}
