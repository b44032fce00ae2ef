package journaltest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/autobatcher/autobatcher/journal"
)

// modelTests call the methods of a Store at random, and compare the results with the
// results of the reference.
var modelTests = []test{
	{"does what the reference does", func(s *suite) {
		seed := rand.Uint64()
		if again := os.Getenv("JOURNALTEST_SEED"); again != "" {
			_, err := fmt.Sscan(again, &seed)
			s.ok(err)
		}
		m := &model{suite: s, rand: rand.New(rand.NewPCG(seed, 0)), ref: newReference()}
		for range modelSteps {
			m.step()
			if s.Failed() {
				s.Fatalf("again with JOURNALTEST_SEED=%d; the steps were\n%s", seed, m.story)
			}
		}
	}},
}

// modelSteps is the number of compared steps. Each change of a backend waits for the
// disk.
const modelSteps = 600

// A model is the tested journal and the reference.
type model struct {
	*suite
	rand  *rand.Rand
	ref   *reference
	story string
}

func (m *model) owner() string { return fmt.Sprint("owner", m.rand.IntN(3)) }

func (m *model) batch() string { return fmt.Sprint("batch", m.rand.IntN(5)) }

func (m *model) account() journal.Hash { return hash(fmt.Sprint("account", m.rand.IntN(2))) }

func (m *model) fingerprints() []string {
	all := make([]string, m.rand.IntN(5))
	for i := range all {
		all[i] = fmt.Sprint("print", m.rand.IntN(3))
	}
	return all
}

// begun are the fingerprints of a new batch, sometimes of a large batch.
func (m *model) begun() []string {
	if m.rand.IntN(8) > 0 {
		return m.fingerprints()
	}
	all := many("print0", 500+m.rand.IntN(100))
	for i := range all {
		all[i] = fmt.Sprint("print", m.rand.IntN(300))
	}
	return all
}

func (m *model) places() []int {
	all := make([]int, m.rand.IntN(4))
	for i := range all {
		all[i] = m.rand.IntN([]int{5, 600}[m.rand.IntN(2)])
	}
	return all
}

func (m *model) age() time.Duration { return []time.Duration{0, long}[m.rand.IntN(2)] }

// step calls a method of both, and compares the results and the lists of batches.
func (m *model) step() {
	ctx, owner, ref := m.Context(), m.owner(), m.batch()
	switch m.rand.IntN(16) {
	case 0:
		lease := []time.Duration{0, long, long, long}[m.rand.IntN(4)]
		m.compare(fmt.Sprintf("Heartbeat(%s, %v)", owner, lease), func(s journal.Store) (any, error) {
			fresh, err := s.Heartbeat(ctx, owner, lease)
			return fresh || lease == 0, err
		})
	case 1, 2, 3:
		b, own := batch(owner, ref), lines(m.begun()...)
		b.Account = m.account()
		m.compare(fmt.Sprintf("Begin(%s, %s, %d lines)", owner, ref, len(own)), func(s journal.Store) (any, error) {
			return nil, s.Begin(ctx, b, own)
		})
	case 4, 5:
		step := journal.Step{
			State: []journal.State{
				journal.Uploading, journal.Uploaded, journal.Creating, journal.Running, journal.Running, journal.Cancelling, journal.Ended,
			}[m.rand.IntN(7)],
			InputFileID: []string{"", "file"}[m.rand.IntN(2)], BatchID: []string{"", "id"}[m.rand.IntN(2)], Status: []string{"", "done"}[m.rand.IntN(2)],
			Cost: []string{"", "1.5"}[m.rand.IntN(2)], Savings: []string{"", "-2"}[m.rand.IntN(2)],
		}
		m.compare(fmt.Sprintf("Advance(%s, %s, %v)", owner, ref, step), func(s journal.Store) (any, error) {
			return nil, s.Advance(ctx, owner, ref, step)
		})
	case 6:
		m.compare(fmt.Sprintf("Discard(%s, %s)", owner, ref), func(s journal.Store) (any, error) { return nil, s.Discard(ctx, owner, ref) })
	case 7:
		m.compare(fmt.Sprintf("Claim(%s, %s)", owner, ref), func(s journal.Store) (any, error) { return s.Claim(ctx, owner, ref) })
	case 9:
		m.changes(owner, ref)
	case 10:
		m.compare(fmt.Sprintf("Abandon(%s, %s)", owner, ref), func(s journal.Store) (any, error) { return s.Abandon(ctx, owner, ref) })
	case 11:
		if ended, begun := m.age(), m.age(); m.rand.IntN(4) == 0 { // more often would leave an empty journal
			m.compare(fmt.Sprintf("Forget(%v, %v)", ended, begun), func(s journal.Store) (any, error) { return s.Forget(ctx, ended, begun) })
		}
	case 13:
		m.compare("Owners()", func(s journal.Store) (any, error) {
			all, err := s.Owners(ctx)
			for i := range all {
				all[i].Silent, all[i].Left = 0, 0
			}
			return all, err
		})
	case 8, 12, 14, 15:
		m.lookup(owner)
	}
	f := journal.Filter{Unfinished: m.rand.IntN(2) == 0, Orphans: m.rand.IntN(4) == 0}
	if account := m.account(); m.rand.IntN(4) == 0 {
		f.Account = &account
	}
	m.compare("", func(s journal.Store) (any, error) { return s.Batches(ctx, f) })
}

// lookup calls a method that finds lines by fingerprint.
func (m *model) lookup(owner string) {
	ctx, account, fingerprints := m.Context(), m.account(), m.fingerprints()
	prints := hashes(fingerprints...)
	methods := []struct {
		name string
		do   func(journal.Store) (any, error)
	}{
		{"TakeOver", func(s journal.Store) (any, error) { return s.TakeOver(ctx, owner, account, prints) }},
		{"Held", func(s journal.Store) (any, error) { return s.Held(ctx, owner, account, prints) }},
		{"Find", func(s journal.Store) (any, error) { return s.Find(ctx, account, prints) }},
		{"Withdraw", func(s journal.Store) (any, error) { return s.Withdraw(ctx, account, prints) }},
	}
	method := methods[m.rand.IntN(len(methods))]
	m.compare(fmt.Sprintf("%s(%s, %v, %v)", method.name, owner, account[:8], fingerprints), method.do)
}

// changes calls methods that change lines.
func (m *model) changes(owner, ref string) {
	places, ctx := m.places(), m.Context()
	for _, change := range []struct {
		name string
		do   func(journal.Store) error
	}{
		{"Hold", func(s journal.Store) error { return s.Hold(ctx, owner, ref, places) }},
		{"Release", func(s journal.Store) error { return s.Release(ctx, owner, ref, places) }},
		{"SetResponse", func(s journal.Store) error { return s.SetResponse(ctx, owner, ref, len(places), ref) }},
		{"Deliver", func(s journal.Store) error { return s.Deliver(ctx, owner, ref, places) }},
	} {
		if m.rand.IntN(2) == 0 {
			m.compare(fmt.Sprintf("%s(%s, %s, %v)", change.name, owner, ref, places), func(s journal.Store) (any, error) { return nil, change.do(s) })
		}
	}
}

// compare makes the same call to the journal and to the reference.
func (m *model) compare(what string, do func(journal.Store) (any, error)) {
	m.Helper()
	if what != "" {
		m.story += what + "\n"
	}
	got, err := do(m.Store)
	want, wantErr := do(m.ref)
	if !errors.Is(err, wantErr) {
		m.Errorf("%s: error %v, want %v", what, err, wantErr)
	}
	if diff := cmp.Diff(want, got, ignoreTimes, cmpopts.EquateEmpty()); err == nil && diff != "" {
		m.Errorf("%s (-want +got)\n%s", what, diff)
	}
}
