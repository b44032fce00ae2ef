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

// modelTests do at random whatever a Store can do, and compare what comes of it
// with what comes of it in memory.
var modelTests = []test{
	{"does what the reference does", func(s *suite) {
		seed := rand.Uint64()
		if again := os.Getenv("JOURNALTEST_SEED"); again != "" {
			_, err := fmt.Sscan(again, &seed)
			s.ok(err)
		}
		m := &model{suite: s, rand: rand.New(rand.NewPCG(seed, 0)), ref: journal.NewMemory()}
		for range modelSteps {
			m.step()
			if s.Failed() {
				s.Fatalf("again with JOURNALTEST_SEED=%d; the steps were\n%s", seed, m.story)
			}
		}
	}},
}

// modelSteps is how many steps are compared. Each change of a backend waits for
// its disk.
const modelSteps = 600

// A model is the journal that is tested, and the reference beside it.
type model struct {
	*suite
	rand  *rand.Rand
	ref   *journal.Memory
	story string
}

func (m *model) owner() string { return fmt.Sprint("owner", m.rand.IntN(3)) }

func (m *model) batch() string { return fmt.Sprint("batch", m.rand.IntN(5)) }

func (m *model) payer() journal.Hash { return hash(fmt.Sprint("payer", m.rand.IntN(2))) }

func (m *model) prints() []string {
	all := make([]string, m.rand.IntN(5))
	for i := range all {
		all[i] = fmt.Sprint("print", m.rand.IntN(3))
	}
	return all
}

func (m *model) places() []int {
	all := make([]int, m.rand.IntN(4))
	for i := range all {
		all[i] = m.rand.IntN(5)
	}
	return all
}

func (m *model) age() time.Duration { return []time.Duration{0, long}[m.rand.IntN(2)] }

// step does something to both, and compares the results, and then all that both
// know.
func (m *model) step() {
	ctx, owner, ref := m.Context(), m.owner(), m.batch()
	switch m.rand.IntN(13) {
	case 0:
		lease := []time.Duration{0, long, long, long}[m.rand.IntN(4)]
		m.compare(fmt.Sprintf("Heartbeat(%s, %v)", owner, lease), func(s journal.Store) (any, error) {
			fresh, err := s.Heartbeat(ctx, owner, lease)
			return fresh || lease == 0, err
		})
	case 1, 2, 3:
		b, own := batch(owner, ref), lines(m.prints()...)
		b.Payer = m.payer()
		m.compare(fmt.Sprintf("Begin(%s, %s, %d lines)", owner, ref, len(own)), func(s journal.Store) (any, error) {
			return nil, s.Begin(ctx, b, own)
		})
	case 4, 5:
		step := journal.Step{
			State: []journal.State{
				journal.Uploading, journal.Uploaded, journal.Creating, journal.Running, journal.Running, journal.Cancelling, journal.Ended,
			}[m.rand.IntN(7)],
			InputFileID: []string{"", "file"}[m.rand.IntN(2)], BatchID: []string{"", "id"}[m.rand.IntN(2)], Status: []string{"", "done"}[m.rand.IntN(2)],
		}
		m.compare(fmt.Sprintf("Advance(%s, %s, %v)", owner, ref, step), func(s journal.Store) (any, error) {
			return nil, s.Advance(ctx, owner, ref, step)
		})
	case 6:
		m.compare(fmt.Sprintf("Discard(%s, %s)", owner, ref), func(s journal.Store) (any, error) { return nil, s.Discard(ctx, owner, ref) })
	case 7:
		m.compare(fmt.Sprintf("Claim(%s, %s)", owner, ref), func(s journal.Store) (any, error) { return s.Claim(ctx, owner, ref) })
	case 8:
		payer, prints := m.payer(), m.prints()
		m.compare(fmt.Sprintf("TakeOver(%s, %v, %v)", owner, payer[:6], prints), func(s journal.Store) (any, error) {
			taken, err := s.TakeOver(ctx, owner, payer, hashes(prints...))
			return names(taken), err
		})
	case 9:
		m.changes(owner, ref)
	case 10:
		m.compare(fmt.Sprintf("Abandon(%s, %s)", owner, ref), func(s journal.Store) (any, error) { return s.Abandon(ctx, owner, ref) })
	case 11:
		if ended, begun := m.age(), m.age(); m.rand.IntN(4) == 0 { // or nothing would ever be there
			m.compare(fmt.Sprintf("Forget(%v, %v)", ended, begun), func(s journal.Store) (any, error) { return s.Forget(ctx, ended, begun) })
		}
	case 12:
		m.compare("Owners()", func(s journal.Store) (any, error) {
			all, err := s.Owners(ctx)
			for i := range all {
				all[i].Silent, all[i].Left = 0, 0
			}
			return all, err
		})
	}
	f := journal.Filter{Unfinished: m.rand.IntN(2) == 0}
	if payer := m.payer(); m.rand.IntN(4) == 0 {
		f.Payer = &payer
	}
	m.compare("", func(s journal.Store) (any, error) { return s.Batches(ctx, f) })
}

// changes does something to lines.
func (m *model) changes(owner, ref string) {
	places, ctx := m.places(), m.Context()
	for _, change := range []struct {
		name string
		do   func(journal.Store) error
	}{
		{"Hold", func(s journal.Store) error { return s.Hold(ctx, owner, ref, places) }},
		{"Release", func(s journal.Store) error { return s.Release(ctx, owner, ref, places) }},
		{"Deliver", func(s journal.Store) error { return s.Deliver(ctx, owner, ref, places) }},
	} {
		if m.rand.IntN(2) == 0 {
			m.compare(fmt.Sprintf("%s(%s, %s, %v)", change.name, owner, ref, places), func(s journal.Store) (any, error) { return nil, change.do(s) })
		}
	}
}

// compare does the same to the journal and to the reference.
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
