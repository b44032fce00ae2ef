package journaltest

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/autobatcher/autobatcher/journal"
)

// raceTests are about owners with simultaneous requests. Each owner opens the journal
// separately.
var raceTests = []test{
	{"no line goes to two owners", func(s *suite) {
		const owners, each = 6, 40
		fingerprints := slices.Repeat([]string{"p", "q", "r"}, each)
		s.alive("dead")
		s.running("dead", "one", fingerprints...)
		s.running("dead", "two", fingerprints...)
		s.gone("dead")

		var mu sync.Mutex
		takers := make(map[string]int)
		s.atOnce(owners, func(owner string, store journal.Store) error {
			for {
				taken, err := store.TakeOver(s.Context(), owner, account, hashes("p", "q", "r", "p"))
				if err != nil || len(taken) == 0 {
					return err
				}
				mu.Lock()
				for _, name := range names(taken) {
					takers[name]++
				}
				mu.Unlock()
			}
		})
		for name, n := range takers {
			if n != 1 {
				s.Errorf("%s was taken %d times", name, n)
			}
		}
		if len(takers) != 2*len(fingerprints) {
			s.Errorf("%d lines were taken, want %d", len(takers), 2*len(fingerprints))
		}
	}},
	{"a single owner claims a batch", func(s *suite) {
		const batches = 20
		s.alive("dead")
		for i := range batches {
			s.begin("dead", fmt.Sprint("batch", i), "p")
		}
		s.gone("dead")
		var mu sync.Mutex
		claimed := make(map[string][]string)
		s.atOnce(4, func(owner string, store journal.Store) error {
			for i := range batches {
				ref := fmt.Sprint("batch", i)
				ok, err := store.Claim(s.Context(), owner, ref)
				if err != nil {
					return err
				}
				if ok {
					mu.Lock()
					claimed[ref] = append(claimed[ref], owner)
					mu.Unlock()
				}
			}
			return nil
		})
		for i := range batches {
			ref := fmt.Sprint("batch", i)
			if got := claimed[ref]; len(got) != 1 || s.batch(ref).Owner != got[0] {
				s.Errorf("%s was claimed by %q and is %q's", ref, got, s.batch(ref).Owner)
			}
		}
	}},
	{"a batch is abandoned or a line is taken, never both", func(s *suite) {
		const batches = 20
		s.alive("a")
		for i := range batches {
			ref := fmt.Sprint("batch", i)
			s.running("a", ref, "p")
			s.ok(s.Release(s.Context(), "a", ref, []int{0}))
		}
		var mu sync.Mutex
		joined, abandoned := make(map[string]bool), make(map[string]bool)
		s.atOnce(4, func(owner string, store journal.Store) error {
			for i := range batches {
				taken, err := store.TakeOver(s.Context(), owner, account, hashes("p"))
				if err != nil {
					return err
				}
				ref := fmt.Sprint("batch", batches-1-i)
				ok, err := store.Abandon(s.Context(), "a", ref)
				if err != nil {
					return err
				}
				mu.Lock()
				for _, t := range taken {
					joined[t.Batch.Ref] = true
				}
				abandoned[ref] = abandoned[ref] || ok
				mu.Unlock()
			}
			return nil
		})
		for ref := range joined {
			if abandoned[ref] {
				s.Errorf("%s was joined and abandoned", ref)
			}
		}
		if len(joined) == 0 {
			s.Error("no batch was joined")
		}
	}},
	{"open lines are found during other changes of the batch", func(s *suite) {
		s.alive("a")
		s.running("a", "one", "p", "q")
		done := make(chan struct{})
		var wg sync.WaitGroup
		for _, f := range []func(store journal.Store) error{
			func(store journal.Store) error {
				return store.Advance(s.Context(), "a", "one", journal.Step{State: journal.Running})
			},
			func(store journal.Store) error {
				_, err := store.Forget(s.Context(), 0, long)
				return err
			},
			func(store journal.Store) error {
				_, err := store.Claim(s.Context(), "a", "one")
				return err
			},
			func(store journal.Store) error { return beat(s.Context(), store, "a", long) },
			func(store journal.Store) error { return s.dies(store) },
		} {
			store := s.another()
			wg.Go(func() { s.repeat(done, func() error { return f(store) }) })
		}
		s.alive("b")
		for range 20 {
			s.ok(s.Release(s.Context(), "b", "one", []int{0}))
			s.ok(s.Release(s.Context(), "a", "one", []int{0}))
			s.same("taken", s.take("b", "p"), "one/0")
		}
		close(done)
		wg.Wait()
	}},
	{"lines are withdrawn while they change hands", func(s *suite) {
		const rounds, owners = 10, 4
		own := []string{"p", "q", "r", "s"}
		s.alive("a")
		for i := range rounds {
			s.running("a", fmt.Sprint("batch", i), append(own, own...)...)
		}
		done := make(chan struct{})
		var wg sync.WaitGroup
		for i := range owners {
			owner, store := fmt.Sprint("owner", i), s.another()
			s.alive(owner)
			wg.Go(func() { s.repeat(done, func() error { return s.passesOn(store, owner, own) }) })
		}
		for i := range rounds {
			s.ok(s.Release(s.Context(), "a", fmt.Sprint("batch", i), upTo(len(own))))
		}
		for _, p := range own {
			s.withdraws(2*rounds, p)
			s.same("found", s.find(p))
		}
		close(done)
		wg.Wait()
		for i := range rounds {
			s.counts(fmt.Sprint("batch", i), 2*len(own), 0, 0)
		}
	}},
	{"each line is withdrawn once", func(s *suite) {
		const owners, n = 4, 1000
		s.alive("a")
		s.running("a", "one", numbered(n)...)
		s.running("a", "two", many("p1", 10)...)
		s.ok(s.Release(s.Context(), "a", "one", upTo(n/2)))
		var mu sync.Mutex
		total := 0
		s.atOnce(owners, func(_ string, store journal.Store) error {
			withdrawn, err := store.Withdraw(s.Context(), account, hashes(numbered(n)...))
			mu.Lock()
			defer mu.Unlock()
			total += withdrawn
			return err
		})
		if total != n+10 {
			s.Errorf("%d lines were withdrawn, want %d", total, n+10)
		}
		s.counts("one", n, 0, 0)
		s.counts("two", 10, 0, 0)
	}},
	{"lines are withdrawn while they are delivered, and their batches deleted", func(s *suite) {
		const rounds = 10
		s.atOnce(4, func(owner string, store journal.Store) error {
			for i := range rounds {
				if err := s.withdrawsBeside(store, owner, fmt.Sprint(owner, "-", i)); err != nil {
					return err
				}
			}
			return nil
		})
		s.same("left", s.refs(journal.Filter{}))
		s.same("found", s.find("p"))
	}},
	{"whole lives side by side", func(s *suite) {
		const owners, rounds = 4, 5
		s.atOnce(owners, func(owner string, store journal.Store) error {
			for i := range rounds {
				if err := life(s, store, owner, fmt.Sprint(owner, "-", i)); err != nil {
					return err
				}
			}
			return nil
		})
		all, err := s.Batches(s.Context(), journal.Filter{})
		s.ok(err)
		if len(all) != owners*rounds {
			s.Errorf("%d batches, want %d", len(all), owners*rounds)
		}
		for _, b := range all {
			if b.Delivered != 3 || b.State != journal.Ended {
				s.Errorf("%s: %d delivered, %s", b.Ref, b.Delivered, b.State)
			}
		}
	}},
}

// dies is the life of an owner with a single batch.
func (s *suite) dies(store journal.Store) error {
	const owner, ref = "short-lived", "of the short-lived owner"
	if err := beat(s.Context(), store, owner, long); err != nil {
		return err
	}
	if err := store.Begin(s.Context(), batch(owner, ref), lines("r")); err != nil {
		return err
	}
	if err := store.Discard(s.Context(), owner, ref); err != nil {
		return err
	}
	return beat(s.Context(), store, owner, 0)
}

// passesOn takes lines over and releases half of them. The other half is released at
// the next call.
func (s *suite) passesOn(store journal.Store, owner string, fingerprints []string) error {
	_, err := store.TakeOver(s.Context(), owner, account, hashes(fingerprints...))
	if err != nil {
		return err
	}
	held, err := store.Held(s.Context(), owner, account, hashes(fingerprints...))
	for _, t := range held {
		ns := make([]int, 0, len(t.Lines))
		for _, l := range t.Lines {
			ns = append(ns, l.N)
		}
		if err == nil {
			err = store.Release(s.Context(), owner, t.Batch.Ref, ns[:(len(ns)+1)/2])
		}
	}
	return err
}

// withdrawsBeside delivers the lines of a batch and deletes the batch, while another
// process withdraws lines of all batches.
func (s *suite) withdrawsBeside(store journal.Store, owner, ref string) error {
	if err := store.Begin(s.Context(), batch(owner, ref), lines("p", ref, "p", "p", ref, "p")); err != nil {
		return err
	}
	withdrawn := make(chan error, 1)
	go func() {
		_, err := s.Withdraw(s.Context(), account, hashes("p"))
		withdrawn <- err
	}()
	errs := []error{
		store.Release(s.Context(), owner, ref, []int{0, 1}),
		store.Deliver(s.Context(), owner, ref, []int{0, 1, 2, 5}),
		store.Advance(s.Context(), owner, ref, journal.Step{State: journal.Ended}),
		store.Release(s.Context(), owner, ref, []int{3, 4}),
	}
	_, err := store.Forget(s.Context(), 0, long)
	errs = append(errs, err, <-withdrawn)
	return errors.Join(errs...)
}

// repeat calls f until done is closed or f fails.
func (s *suite) repeat(done <-chan struct{}, f func() error) {
	for {
		select {
		case <-done:
			return
		default:
		}
		if err := f(); err != nil {
			s.Error(err)
			return
		}
	}
}

// life advances a batch from Begin to Deliver. Two callers disconnect and return in
// between.
func life(s *suite, store journal.Store, owner, ref string) error {
	ctx := s.Context()
	own := hashes(ref, ref+"'", ref+`"`)
	var group []journal.Line
	for n, p := range own {
		group = append(group, journal.Line{CustomID: customID(n), Fingerprint: p})
	}
	steps := []func() error{
		func() error { return beat(ctx, store, owner, long) },
		func() error { return store.Begin(ctx, batch(owner, ref), group) },
		func() error { return store.Advance(ctx, owner, ref, journal.Step{State: journal.Creating}) },
		func() error {
			return store.Advance(ctx, owner, ref, journal.Step{State: journal.Running, BatchID: ref})
		},
		func() error { return store.Release(ctx, owner, ref, []int{0, 2}) },
		func() error {
			taken, err := store.TakeOver(ctx, owner, account, own)
			if err == nil && len(names(taken)) != 2 {
				err = fmt.Errorf("%s took %q back", owner, names(taken))
			}
			return err
		},
		func() error { return store.Advance(ctx, owner, ref, journal.Step{State: journal.Ended}) },
		func() error { return store.Deliver(ctx, owner, ref, []int{0, 1, 2}) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// atOnce runs f for several owners at the same time, each with a Store of its own.
func (s *suite) atOnce(owners int, f func(owner string, store journal.Store) error) {
	s.Helper()
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range owners {
		owner, store := fmt.Sprint("owner", i), s.another()
		s.alive(owner)
		wg.Go(func() {
			<-start
			if err := f(owner, store); err != nil {
				s.Errorf("%s: %v", owner, err)
			}
		})
	}
	close(start)
	wg.Wait()
}
