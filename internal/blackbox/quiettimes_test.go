package blackbox_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// TestQuietTimes measures what the choice of QuietAfter costs: how long the calls of
// different programs wait, and how many batches they become, at a provider that takes a
// second for a batch. The test logs a table of docs/performance.md:
//
//	go test ./internal/blackbox -run TestQuietTimes -v
func TestQuietTimes(t *testing.T) {
	values := []time.Duration{-1, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}
	const (
		windows  = 0 // the place of the value that waits whole windows
		standard = 3 // the place of the default
	)
	var table strings.Builder
	table.WriteString("\n| calls | whole windows | 0.25 s | 0.5 s | 1 s (default) | 2 s | 4 s |\n|---|---|---|---|---|---|---|\n")
	for _, tt := range []struct {
		name string
		play func(call func(text string))
		last time.Duration // the last answer comes within last with the default
		more int           // batches with the default, beyond those with whole windows
	}{
		{"20 at once", atTimes(make([]time.Duration, 20)), 3 * time.Second, 0},
		{"20, each after the answer before", workers(1, 20), 3 * time.Minute, 0},
		{"200 by 20 workers, each after the worker's answer before", workers(20, 200), 90 * time.Second, 0},
		{"200 within 20 s, at random", atTimes(random(200, 100*time.Millisecond)), 30 * time.Second, 1},
		{"60 within a minute, at random", atTimes(random(60, time.Second)), 80 * time.Second, 3},
		{"20 every 5 s, for a minute", atTimes(bursts(12, 20, 5*time.Second)), 80 * time.Second, 2},
		{"20 every 30 s, for 3 minutes", atTimes(bursts(6, 20, 30*time.Second)), 154 * time.Second, 0},
	} {
		fmt.Fprintf(&table, "| %s", tt.name)
		var batches []int
		for i, quiet := range values {
			u := openAI(batchtest.Options{Turnaround: time.Second}, autobatcher.Options{QuietAfter: quiet})
			u.run(t, fmt.Sprintf("%s, %v", tt.name, quiet), func(s *scene) {
				var mu sync.Mutex
				var waited, last time.Duration
				var calls int
				tt.play(func(text string) {
					began := time.Since(s.begin)
					r := s.do(s.request(s.Context(), "/chat/completions", chatBody(text)))
					if r.err != nil || r.status != 200 {
						s.Errorf("%d %v: %s", r.status, r.err, r.body)
					}
					mu.Lock()
					defer mu.Unlock()
					calls++
					waited += r.at - began
					last = max(last, r.at)
				})
				n := len(s.srv.Batches())
				batches = append(batches, n)
				if i == standard && (last > tt.last || n > batches[windows]+tt.more) {
					s.Errorf("the last answer came after %v, want %v; %d batches, and %d with whole windows", last, tt.last, n, batches[windows])
				}
				fmt.Fprintf(&table, " | %.1f s, %d", (waited / time.Duration(calls)).Seconds(), n)
			})
		}
		table.WriteString(" |\n")
	}
	t.Log(table.String())
}

// atTimes makes calls at the given times.
func atTimes(times []time.Duration) func(func(string)) {
	return func(call func(string)) {
		var wg sync.WaitGroup
		for i, at := range times {
			wg.Go(func() {
				if at > 0 {
					time.Sleep(at)
				}
				call(fmt.Sprint("call ", i))
			})
		}
		wg.Wait()
	}
}

// workers makes calls by several workers, each of which waits for its answer.
func workers(n, calls int) func(func(string)) {
	return func(call func(string)) {
		var wg sync.WaitGroup
		for w := range n {
			wg.Go(func() {
				for i := w; i < calls; i += n {
					call(fmt.Sprint("call ", i))
				}
			})
		}
		wg.Wait()
	}
}

// random returns the times of n calls that come independently of each other, with the
// given mean between them.
func random(n int, mean time.Duration) []time.Duration {
	draw := rand.New(rand.NewPCG(1, 2))
	var times []time.Duration
	var at time.Duration
	for range n {
		at += time.Duration(draw.ExpFloat64() * float64(mean))
		times = append(times, at)
	}
	return times
}

// bursts returns the times of bursts of calls, each of which is spread over 300 ms.
func bursts(n, calls int, every time.Duration) []time.Duration {
	var times []time.Duration
	for b := range n {
		for c := range calls {
			times = append(times, time.Duration(b)*every+time.Duration(c)*300*time.Millisecond/time.Duration(calls))
		}
	}
	return times
}
