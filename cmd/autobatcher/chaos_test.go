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

// chaosLasts is how long replicas are killed.
const chaosLasts = 20 * time.Second

// TestChaos kills replicas at any moment, about one a second, while callers come
// and the provider has troubles of its own. It is run where AUTOBATCHER_CRASH is
// full.
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
		strays: 1 << 30, // whoever dies as it uploads leaves a file
	}, journal)
	ports, replicas, urls := make([]int, 3), make([]*proxyProcess, 3), make([]string, 3)
	for i := range replicas {
		ports[i] = freePort(t)
		replicas[i] = w.serve(ports[i], "0.2")
		urls[i] = replicas[i].url
	}
	var all []*callers
	kills := 0
	for end := time.Now().Add(chaosLasts); time.Now().Before(end); kills++ {
		rand.Shuffle(len(urls), func(i, j int) { urls[i], urls[j] = urls[j], urls[i] })
		all = append(all, w.call(calls, urls[0], urls[1], urls[2]))
		if rand.N(3) == 0 {
			w.srv.Control(badLuck())
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
	var sum tallied
	w.check(&sum)
	t.Logf("%d kills, %d calls, %d lines, %d bought twice, %d calls unanswered", kills, sum.calls, sum.lines, sum.twice, sum.lost)
	for _, r := range replicas {
		r.end()
	}
}

// badLuck is some trouble of the provider's.
func badLuck() (batchtest.Op, batchtest.Fault) {
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
