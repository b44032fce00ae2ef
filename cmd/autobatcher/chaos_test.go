//go:build unix

package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/pgtest"
)

// chaosDuration is how long TestChaos kills replicas.
const chaosDuration = 20 * time.Second

// TestChaos kills a replica about once a second, at random moments, while callers
// make calls and the provider has faults. TestChaos runs with AUTOBATCHER_CRASH=full
// only.
func TestChaos(t *testing.T) {
	if os.Getenv("AUTOBATCHER_CRASH") != "full" {
		t.Skip("AUTOBATCHER_CRASH is not full")
	}
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		chaos(t, filepath.Join(t.TempDir(), "journal.db"))
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		url, err := pgtest.Run(t).NewDatabase(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		chaos(t, url)
	})
}

func chaos(t *testing.T, journal string) {
	w := newWorld(t, step{
		provider: "openai", server: batchtest.Options{Turnaround: time.Second},
		strayFiles: 1 << 30, // a replica that is killed during an upload leaves a file
	}, journal)
	ports, replicas, urls := make([]int, 3), make([]*proxyProcess, 3), make([]string, 3)
	for i := range replicas {
		ports[i] = freePort(t)
		replicas[i] = w.serve(ports[i], "0.2")
		urls[i] = replicas[i].url
	}
	var all []*callers
	kills := 0
	for end := time.Now().Add(chaosDuration); time.Now().Before(end); kills++ {
		rand.Shuffle(len(urls), func(i, j int) { urls[i], urls[j] = urls[j], urls[i] })
		all = append(all, w.call(calls, urls[0], urls[1], urls[2]))
		if rand.N(3) == 0 {
			w.srv.Control(randomFault())
		}
		time.Sleep(rand.N(time.Second))
		victim := rand.N(len(replicas))
		replicas[victim].kill()
		time.Sleep(rand.N(time.Second))
		replicas[victim] = w.serve(ports[victim], "0.2")
	}
	for _, c := range all {
		c.wait()
		if w.callers == nil {
			w.callers = c
			continue
		}
		w.callers.join(c)
	}
	var sum crashTotals
	w.check(&sum)
	t.Logf("%d kills, %d calls, %d lines, %d paid for twice, %d calls unanswered", kills, sum.calls, sum.lines, sum.paidTwice, sum.lost)
	for _, r := range replicas {
		r.end()
	}
}

// soakPause is the shortest time between two kills of TestSoak. To find out whether
// a batch exists whose create was not answered takes half a minute, and a process
// that dies begins anew: with more kills the callers would wait until the kills end.
const soakPause = 6 * time.Second

// TestSoak has 200 clients call two replicas without a pause for as long as
// AUTOBATCHER_SOAK says ("10m"), and kills a replica every few seconds. Both
// replicas have the same SQLite file.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("AUTOBATCHER_SOAK"))
	if err != nil {
		t.Skip("AUTOBATCHER_SOAK is not a duration")
	}
	w := newWorld(t, step{
		provider: "openai", server: batchtest.Options{Turnaround: time.Second},
		strayFiles: 1 << 30, // a replica that is killed during an upload leaves a file
	}, filepath.Join(t.TempDir(), "journal.db"))
	ports, replicas := []int{freePort(t), freePort(t)}, make([]*proxyProcess, 2)
	for i, port := range ports {
		replicas[i] = w.serve(port, "0.2")
	}
	end := time.Now().Add(length)
	w.callers = w.callUntil(end, 200, replicas[0].url, replicas[1].url)
	kills := 0
	for ; time.Now().Before(end); kills++ {
		if rand.N(3) == 0 {
			w.srv.Control(randomFault())
		}
		time.Sleep(soakPause + rand.N(2*soakPause))
		victim := rand.N(len(replicas))
		replicas[victim].kill()
		time.Sleep(rand.N(time.Second))
		replicas[victim] = w.serve(ports[victim], "0.2")
	}
	w.callers.wait()
	var sum crashTotals
	w.check(&sum)
	t.Logf("%v, 200 clients, %d kills, %d calls, %d lines, %d paid for twice, %d calls unanswered", length, kills, sum.calls, sum.lines, sum.paidTwice, sum.lost)
	for _, r := range replicas {
		r.end()
	}
}

// randomFault returns a random fault of the provider.
func randomFault() (batchtest.Op, batchtest.Fault) {
	switch rand.N(5) {
	case 0:
		return batchtest.OpCreate, batchtest.LoseAnswer()
	case 1:
		return batchtest.OpUpload, batchtest.Reset()
	case 2:
		return batchtest.OpContent, batchtest.Tear(200)
	case 3:
		return batchtest.OpRetrieve, batchtest.HTML(502)
	}
	return batchtest.OpCreate, batchtest.HTML(503)
}
