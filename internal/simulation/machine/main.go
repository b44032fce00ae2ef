// Command machine plays schedules of the simulation exactly: each in a
// WebAssembly machine of its own, with a single processor, whose clock and
// random numbers follow from the seed. So does the order of goroutines: a schedule
// that fails fails again, with the same log, on any computer.
//
//	go run ./internal/simulation/machine -seeds 1000
//	go run ./internal/simulation/machine -seed 28
//
// The command exits 1 if a schedule failed, and prints the schedule's log.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// errFailed is the error for a schedule that failed, after its log was printed.
var errFailed = errors.New("a check of the simulation failed")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		os.Exit(1)
	}
}

// settings are the values of the flags.
type settings struct {
	seed          uint64
	from, seeds   uint64
	order, orders uint64
	parallel      int
	twice         bool
	draws         string
}

func (s *settings) parse(args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("machine", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Uint64Var(&s.seed, "seed", 0, "play this schedule only, and print its log")
	flags.Uint64Var(&s.seeds, "seeds", 100, "how many schedules to play")
	flags.Uint64Var(&s.from, "from", 1, "the first seed")
	flags.Uint64Var(&s.order, "order", 0, "the first order of goroutines, a seed of its own")
	flags.Uint64Var(&s.orders, "orders", 1, "in how many orders to play each schedule, beginning with -order")
	flags.IntVar(&s.parallel, "parallel", runtime.NumCPU(), "how many schedules to play at once; each takes up to 2 GB of memory")
	flags.BoolVar(&s.twice, "twice", false, "play each schedule twice, and fail if the second log differs")
	flags.StringVar(&s.draws, "draws", "all", "what a schedule may draw beyond the basic faults: all, old (nothing), or names of draws, separated by commas")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is one argument too many", flags.Arg(0))
	}
	if s.parallel < 1 {
		return fmt.Errorf("-parallel is %d; it must be at least 1", s.parallel)
	}
	return nil
}

// schedules are the schedules to play.
func (s *settings) schedules() (all []schedule) {
	first, end := s.from, s.from+s.seeds
	if s.seed != 0 {
		first, end = s.seed, s.seed+1
	}
	for seed := first; seed < end; seed++ {
		for order := s.order; order < s.order+s.orders; order++ {
			all = append(all, schedule{seed, order})
		}
	}
	return all
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var s settings
	if err := s.parse(args, stderr); err != nil {
		return err
	}
	began := time.Now()
	fmt.Fprintln(stderr, "building the machine, which takes half a minute or more …")
	m, err := build(ctx, stderr)
	if err != nil {
		return err
	}
	m.draws = s.draws
	sum, failed := playAll(ctx, m, &s, stdout, stderr)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	for _, what := range slices.Sorted(maps.Keys(sum)) {
		fmt.Fprintf(stdout, "%10s  %s\n", humanize.Comma(sum[what]), what)
	}
	fmt.Fprintf(stdout, "%d schedules played in %v, %d failed\n", len(s.schedules()), time.Since(began).Round(time.Second), failed)
	if failed > 0 {
		return errFailed
	}
	return nil
}

// playAll plays the schedules, several at once, and adds up their tallies.
func playAll(ctx context.Context, m *machine, s *settings, stdout, stderr io.Writer) (sum map[string]int64, failed int) {
	schedules := s.schedules()
	progress := mpb.NewWithContext(ctx, mpb.WithOutput(stderr))
	bar := progress.AddBar(int64(len(schedules)),
		mpb.PrependDecorators(decor.CountersNoUnit("%d of %d schedules")),
		mpb.AppendDecorators(decor.AverageETA(decor.ET_STYLE_GO)))
	var mu sync.Mutex
	sum = make(map[string]int64)
	conclude := func(o *outcome) {
		mu.Lock()
		defer mu.Unlock()
		bar.Increment()
		for what, n := range o.tally {
			sum[what] += n
		}
		if o.err != nil {
			failed++
		}
		if o.err != nil || s.seed != 0 && s.orders == 1 {
			fmt.Fprintf(stdout, "%s", o.log)
		}
		if o.err != nil {
			fmt.Fprintf(stdout, "FAILED: %v\nto see it again: go run ./internal/simulation/machine -seed %d -order %d -draws %s\n\n", o.err, o.seed, o.order, s.draws)
		}
	}
	var work sync.WaitGroup
	next := make(chan schedule)
	for range s.parallel {
		work.Go(func() {
			for sched := range next {
				conclude(m.playSurely(ctx, sched, s.twice))
			}
		})
	}
	for _, sched := range schedules {
		next <- sched
	}
	close(next)
	work.Wait()
	progress.Shutdown()
	return sum, failed
}
