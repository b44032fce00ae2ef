package simulation

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
)

// A world is everything there is in one simulation. Its mutex is never held
// while anything waits.
type world struct {
	plan
	mutant
	*testing.T
	srv    *batchtest.Server
	open   func() journal.Store // as another process would
	store  journal.Store        // for the checks
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
	planned map[string]int  // how often each prompt was executed
	struck  map[string]bool // ids of batches that the provider failed, with all they had
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
		struck: make(map[string]bool), record: newRecord(),
	}
	w.server.Answer = w.answer
	w.srv = batchtest.New(w.server)
	w.open = newJournal(w)
	w.store = w.open()
	return w
}

// newJournal makes a journal and says how to open it.
var newJournal = inMemory

func inMemory(*world) func() journal.Store {
	store := journal.NewMemory()
	return func() journal.Store { return store }
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
	if l.BatchID == "" {
		return batchtest.Outcome{Body: sign(batchtest.Echo(l).Body, text, lineID{"realtime", "now"})}
	}
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

// epilogue lets a last process find what was left behind, and all batches end.
func (w *world) epilogue() {
	// Leases run out, and so does patience with batches nobody waits for: two
	// minutes, after two downloads that may have stalled for five each.
	time.Sleep(15 * time.Minute)
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
	w.tally.add(countSeeds, 1)
	w.tally.add(countSeconds, int64(time.Since(w.begin)/time.Second))
	for _, p := range w.all {
		p.conclude(func() { p.tr.Close() })
	}
	w.srv.Close() // ends what hangs there
}
