package simulation

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	simulations = flag.Uint64("seeds", 12, "how many schedules TestSimulation plays")
	firstSeed   = flag.Uint64("from", 1, "the first of them")
	oneSeed     = flag.Uint64("seed", 0, "the only schedule TestSimulation plays")
)

// TestSimulation plays random schedules and checks after each what must always
// hold; see check_test.go for what that is, exactly.
//
// Each actor of a schedule (a client, a replica, the weather) and each stream of
// decisions (the requests of a kind that a process makes, the answers to a
// prompt) draws from a generator of its own, so that it decides the same
// whatever the others do.
func TestSimulation(t *testing.T) {
	if *oneSeed != 0 {
		playOne(t)
		return
	}
	var sum tally
	t.Run("", func(t *testing.T) {
		for seed := *firstSeed; seed < *firstSeed+*simulations; seed++ {
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				t.Parallel()
				if wrongs := simulate(t, seed, mutant{}, &sum); len(wrongs) > 0 {
					t.Errorf("%s\nto find it again: go run ./internal/simulation/machine -seed %d -orders 200", strings.Join(wrongs, "\n"), seed)
				}
			})
		}
	})
	t.Log(sum.String())
}

// playOne plays one schedule and tells its story. The machine reads it: the last
// line is the tally.
func playOne(t *testing.T) {
	var sum tally
	wrongs := simulate(t, *oneSeed, mutant{}, &sum)
	for _, wrong := range wrongs {
		t.Error(wrong)
	}
	fmt.Println(sum.String())
}

// simulate plays one schedule and returns what went wrong.
func simulate(t *testing.T, seed uint64, m mutant, sum *tally) (wrongs []string) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, m)
		w.play()
		w.check()
		w.store.Close()
		w.tally.addTo(sum)
		wrongs = w.wrongs
		if *oneSeed != 0 {
			fmt.Printf("%+v\n%s", w.plan, w.story.String())
		}
		time.Sleep(time.Minute) // what is still on its way arrives, and is forgotten
	})
	return wrongs
}
