package simulation

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
)

// A world is the state of one simulation. The mutex is never held across the
// network or the journal, or while a goroutine sleeps.
type world struct {
	plan
	*testing.T
	srv             *batchtest.Server
	provider        http.RoundTripper    // the server as processes reach it
	open            func() journal.Store // opens the journal, as another process does
	store           journal.Store        // the journal, for the checks
	setJournalClock func()               // must be called before each use of a journal; see postgres_test.go
	begin           time.Time
	over            chan struct{} // closed when the clients are done
	journalCalm     atomic.Bool   // the journal does not fail any more
	tally           tally
	log             strings.Builder
	failures        []string

	mu          sync.Mutex
	up          []*replica // where clients send their calls
	all         []*replica
	asked       map[ident]int // how many calls clients made, not counting retries
	handed      map[lineID][]delivery
	planned     map[string]int  // how often each prompt was executed
	failedWhole map[string]bool // ids of batches that the provider failed, without results
	record      *record

	refusalsSoFar  []refusal
	revoked        map[string][]time.Time // when each credential of a key ends, but for the newest
	downloadFault  downloadFault          // what is wrong with each download now
	lastFault      time.Time              // when a fault that delays answers ended
	visits         map[ident][]*visit
	sent           map[string]sentLine // by custom id
	flexPosts      []*flexPost
	flexNames      int                  // how many names answers of flex calls have got
	flexAnswers    map[string][]byte    // as the provider sent them, by id
	escalatedLines []lineID             // of calls that were sent in real time
	climbedLines   map[string]time.Time // when the call of a line climbed last, by custom id
	customIDs      map[string]ident     // of the lines that answered calls
	unknown        map[ident][]*replica // the processes that said that the outcome of a call is not known

	backgroundCalls   []*backgroundCall
	excusedBackground map[ident]int     // lines that may be paid for once more, by excuseAttempt
	answeredIDs       map[lineID]string // the id that got the answer of a line
	announcements     int
}

// An ident is what equal calls have in common. n equal calls are n lines.
type ident struct{ key, text string }

// A lineID names a line at the provider.
type lineID struct{ batch, custom string }

// A delivery is an answer that a process gave to a client.
type delivery struct {
	call *clientCall
	by   *replica
	at   time.Time
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		plan: newPlan(seed), T: t, begin: time.Now(), over: make(chan struct{}),
		asked: make(map[ident]int), handed: make(map[lineID][]delivery), planned: make(map[string]int),
		failedWhole: make(map[string]bool), record: newRecord(), setJournalClock: func() {}, visits: make(map[ident][]*visit), revoked: make(map[string][]time.Time), sent: make(map[string]sentLine),
		flexAnswers: make(map[string][]byte), climbedLines: make(map[string]time.Time), unknown: make(map[ident][]*replica), customIDs: make(map[string]ident),
		excusedBackground: make(map[ident]int), answeredIDs: make(map[lineID]string),
	}
	w.server.Answer = w.answer
	w.srv = batchtest.New(w.server)
	w.addWebhook()
	w.provider = w.newProvider()
	w.open = newJournal(w)
	w.store = w.open()
	return w
}

// newJournal makes a journal, and returns how to open the journal.
var newJournal = inMemory

func inMemory(*world) func() journal.Store {
	store := journal.NewMemory()
	return func() journal.Store { return store }
}

// logf adds a line to the log that the flag -seed prints.
func (w *world) logf(format string, args ...any) {
	if *oneSeed == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(&w.log, "%12v  %s\n", time.Since(w.begin).Round(time.Millisecond), fmt.Sprintf(format, args...))
}

func (w *world) failf(format string, args ...any) {
	w.logf("WRONG: "+format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures = append(w.failures, fmt.Sprintf("seed %d: "+format, append([]any{w.seed}, args...)...))
}

// play runs all actors until the clients are done. Then a last process finds and
// ends what earlier processes left behind.
func (w *world) play() {
	var clients, others sync.WaitGroup
	for i := range w.replicas {
		others.Go(func() { w.runReplica(i) })
	}
	for _, run := range w.faults() {
		others.Go(run)
	}
	for i := range w.clients {
		clients.Go(func() { w.runClient(i) })
	}
	for i := range w.background.clients {
		clients.Go(func() { w.runBackgroundClient(i) })
	}
	for i := range w.lanes.climbers {
		clients.Go(func() { w.runClimber(i) })
	}
	if w.burst > 0 {
		clients.Go(w.runBurst)
	}
	clients.Wait()
	close(w.over)
	others.Wait()
	w.finishAll()
}

// faults are the actors that make trouble in this schedule.
func (w *world) faults() (all []func()) {
	for _, f := range []struct {
		drawn bool
		run   func()
	}{
		{w.providerFaults, w.runProviderFaults},
		{w.gatewayErrors, w.runGatewayErrors},
		{w.longRetryAfter, w.runLongRetryAfter},
		{len(w.downloadFaults) > 0, w.runDownloadFaults},
		{w.refusals, w.runRefusals},
		{w.partitions, w.runPartitions},
		{w.rotation, w.runRotation},
		{w.lanes.faults, w.runLaneFaults},
		{w.lanes.full, w.runFullTier},
	} {
		if f.drawn {
			all = append(all, f.run)
		}
	}
	return all
}

// faultEnds notes that a fault which may delay answers has just ended.
func (w *world) faultEnds() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastFault = time.Now()
}

// sleep waits for d. It returns false, at once, when all clients are done.
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

// answer decides the outcome of a line. No two executed lines have the same answer.
func (w *world) answer(l batchtest.Line) batchtest.Outcome {
	text := textOf(l.Body)
	w.mu.Lock()
	w.planned[text]++
	n := w.planned[text]
	d := newDice(w.seed, "line", text, n)
	w.mu.Unlock()
	if isFlex(l) {
		return w.answerFlex(l, text, n, d)
	}
	if l.BatchID == "" {
		return batchtest.Outcome{Body: sign(batchtest.Echo(l).Body, text, lineID{"realtime", "now"})}
	}
	o := batchtest.Outcome{Displaced: d.chance(0.1)}
	if d.chance(w.flawChance) {
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

// sign adds the name of a line to the line's answer.
func sign(body []byte, text string, id lineID) []byte {
	name := id.batch + "/" + id.custom
	if signed := strings.ReplaceAll(string(body), text, text+" "+name); signed != string(body) {
		return []byte(signed)
	}
	return []byte(strings.TrimSuffix(string(body), "}") + `,"line":"` + name + `"}`)
}

// finishAll starts a last process, which finds what earlier processes left behind,
// and ends all batches.
func (w *world) finishAll() {
	// Leases run out, and batches for which nobody waits are cancelled: after the
	// idle time, and two downloads that may have stalled for five minutes each.
	time.Sleep(15*time.Minute + w.options.AbandonAfter)
	w.checkUnused()
	w.checkFlexCancelled()
	w.journalCalm.Store(true)
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
		p.closeOnce(func() { p.tr.Close() })
	}
	w.srv.Close() // ends requests that hang there
}
