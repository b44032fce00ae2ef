package simulation

import (
	"flag"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	simulations = flag.Uint64("seeds", 12, "how many schedules TestSimulation plays")
	firstSeed   = flag.Uint64("from", 1, "the seed of the first schedule")
	oneSeed     = flag.Uint64("seed", 0, "play only the schedule of this seed, and print its log")
	drawn       = flag.String("draws", "all", "what a schedule may draw beyond the basic faults: all, batches (all but lanes, climbs, quiet, background and webhooks), old (nothing), or names of draws, separated by commas")
	stopAtFirst = flag.Bool("first", false, "start no schedule after the first failure")
)

// TestSimulation plays random schedules and checks after each schedule what must
// always hold; check_test.go lists the checks and their exceptions.
//
// Each actor of a schedule (a client, a replica, the provider's faults) and each
// stream of decisions (the requests of a kind that a process makes, the answers
// to a prompt) draws from a generator of its own, so that each decides the same
// whatever the other actors do.
func TestSimulation(t *testing.T) {
	if err := checkDraws(*drawn); err != nil {
		t.Fatal(err)
	}
	prepareJournal(t)
	if *oneSeed != 0 {
		playOne(t)
		return
	}
	var sum tally
	var failed atomic.Bool
	t.Run("", func(t *testing.T) {
		for seed := *firstSeed; seed < *firstSeed+*simulations; seed++ {
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				t.Parallel()
				if *stopAtFirst && failed.Load() {
					return
				}
				if failures := simulate(t, seed, &sum); len(failures) > 0 {
					failed.Store(true)
					t.Errorf("%s\nto play this schedule again: go run ./internal/simulation/machine -seed %d -draws %s -orders 200",
						strings.Join(failures, "\n"), seed, *drawn)
				}
			})
		}
	})
	t.Log(sum.String())
}

// prepareJournal starts what the journals of all schedules need. It must be
// called outside of any bubble.
var prepareJournal = func(*testing.T) {}

// playOne plays one schedule and prints its log. The last line is the tally,
// which the machine reads.
func playOne(t *testing.T) {
	var sum tally
	for _, failure := range simulate(t, *oneSeed, &sum) {
		t.Error(failure)
	}
	fmt.Println(sum.String())
}

// simulate plays one schedule and returns what went wrong.
func simulate(t *testing.T, seed uint64, sum *tally) (failures []string) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed)
		w.play()
		w.check()
		w.store.Close()
		time.Sleep(24 * time.Hour) // Close does not wait for event handlers that sleep
		w.tally.addTo(sum)
		failures = w.failures
		if *oneSeed != 0 {
			fmt.Printf("%+v\n%s", w.plan, w.log.String())
		}
		time.Sleep(time.Minute) // requests under way arrive, and leases run out
	})
	return failures
}
