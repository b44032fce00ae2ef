// Command mutants tests the simulation, and some other tests. It builds the
// simulation once for each of a list of deliberate bugs in the source of
// autobatcher, and requires that the simulation fails. For a bug that is out of
// the reach of the simulation, the list names the test that must fail instead.
//
//	go run ./internal/simulation/mutants
//	go run ./internal/simulation/mutants -share 1/4
//	go run ./internal/simulation/mutants -only "blindly|clock"
//
// The source tree is not changed: the mutated copy of a file reaches the
// compiler through go build's -overlay flag. A mutant whose old text is missing
// from its file, or occurs twice, is an error, so that a mutant cannot stop
// mutating when the source changes.
//
// The command exits 1 if a mutant survived, if a mutant does not compile, or if
// a check fails without any mutation.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"sync"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// settings are the values of the flags.
type settings struct {
	share    share
	only     *regexp.Regexp
	list     bool
	verbose  bool
	parallel int
}

func (s *settings) parse(args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", "", "run only the mutants whose name matches this regular expression")
	part := flags.String("share", "1/1", "run only the k-th of n shares of the mutants, written k/n")
	flags.BoolVar(&s.list, "list", false, "list the mutants and check their old texts, without running any")
	flags.BoolVar(&s.verbose, "v", false, "print all output of each simulation")
	flags.IntVar(&s.parallel, "parallel", runtime.NumCPU(), "how many mutants to build and run at once")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if s.parallel < 1 {
		return fmt.Errorf("-parallel is %d; the least is 1", s.parallel)
	}
	var err error
	if s.share, err = parseShare(*part); err != nil {
		return err
	}
	s.only, err = regexp.Compile(*only)
	return err
}

// A share is the k-th of n parts of the list of mutants.
type share struct{ k, n int }

func parseShare(text string) (share, error) {
	var s share
	if _, err := fmt.Sscanf(text, "%d/%d", &s.k, &s.n); err != nil || s.k < 1 || s.k > s.n {
		return s, fmt.Errorf("-share is %q; want k/n with 1 <= k <= n", text)
	}
	return s, nil
}

// selected are the mutants that the flags ask for. Neighbours in the list go to
// different shares, so that each share has mutants of each package.
func (s *settings) selected(all []mutant) (chosen []mutant) {
	for i, m := range all {
		if i%s.share.n == s.share.k-1 && s.only.MatchString(m.name) {
			chosen = append(chosen, m)
		}
	}
	return chosen
}

var errSurvived = errors.New("a mutant survived")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var s settings
	if err := s.parse(args, stderr); err != nil {
		return err
	}
	lab, err := newLab(ctx)
	if err != nil {
		return err
	}
	defer lab.close()
	if err := lab.checkTexts(mutants); err != nil {
		return err
	}
	chosen := s.selected(mutants)
	if s.list {
		for _, m := range chosen {
			fmt.Fprintf(stdout, "%-28s %s\n", m.file, m.name)
		}
		return nil
	}
	began := time.Now()
	caught := runAll(ctx, lab, &s, chosen, stdout)
	fmt.Fprintf(stdout, "%d of %d mutants caught in %v\n", caught, len(chosen), time.Since(began).Round(time.Second))
	if caught < len(chosen) {
		return errSurvived
	}
	return ctx.Err()
}

// runAll runs the mutants, several at once, and returns how many were caught.
func runAll(ctx context.Context, lab *lab, s *settings, chosen []mutant, stdout io.Writer) (caught int) {
	var mu sync.Mutex
	report := func(m mutant, v verdict) {
		mu.Lock()
		defer mu.Unlock()
		if v.caught {
			caught++
		}
		fmt.Fprintf(stdout, "%s\n", v.line(m))
		if s.verbose {
			fmt.Fprintf(stdout, "%s\n", v.output)
		}
	}
	var work sync.WaitGroup
	next := make(chan mutant)
	for range s.parallel {
		work.Go(func() {
			for m := range next {
				report(m, lab.try(ctx, m))
			}
		})
	}
	for _, m := range chosen {
		next <- m
	}
	close(next)
	work.Wait()
	return caught
}
