// Package journaltest is the specification of journal.Store, as tests. A
// backend's own test is
//
//	func TestStore(t *testing.T) {
//		journaltest.Run(t, func(t *testing.T) func() journal.Store {
//			path := filepath.Join(t.TempDir(), "journal")
//			return func() journal.Store { return open(t, path) }
//		})
//	}
//
// and the tests of the backend's own features.
package journaltest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// A Fresh makes a new, empty journal for a test. The returned function opens the
// journal in the same way as a further process, and calls t.Fatal after an error. The
// test closes the journal.
type Fresh func(t *testing.T) (open func() journal.Store)

// Run checks a backend against the documentation of journal.Store.
func Run(t *testing.T, fresh Fresh) {
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"life", lifeTests},
		{"hold", holdTests},
		{"lease", leaseTests},
		{"owner", ownerTests},
		{"large", largeTests},
		{"withdraw", withdrawTests},
		{"race", raceTests},
		{"model", modelTests},
	} {
		for _, test := range group.tests {
			t.Run(group.name+"/"+test.name, func(t *testing.T) { test.run(newSuite(t, fresh(t))) })
		}
	}
}

type test struct {
	name string
	run  func(s *suite)
}

// A suite is a test and its journal.
type suite struct {
	*testing.T
	open func() journal.Store
	journal.Store
}

func newSuite(t *testing.T, open func() journal.Store) *suite {
	s := &suite{T: t, open: open}
	s.Store = s.another()
	return s
}

// another opens the journal again.
func (s *suite) another() journal.Store {
	s.Helper()
	store := s.open()
	s.Cleanup(func() { store.Close() })
	return store
}

// ok ends the test after an error.
func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// long is a lease longer than a test.
const long = time.Hour

// alive gives each of the owners a long lease.
func (s *suite) alive(owners ...string) {
	s.Helper()
	for _, owner := range owners {
		s.beat(owner, long)
	}
}

// gone ends the owner's lease.
func (s *suite) gone(owner string) {
	s.Helper()
	s.beat(owner, 0)
}

// beat gives the owner a lease, and returns the report of Heartbeat.
func (s *suite) beat(owner string, lease time.Duration) (expired bool) {
	s.Helper()
	expired, err := s.Heartbeat(s.Context(), owner, lease)
	s.ok(err)
	return expired
}

// beat gives the owner a lease.
func beat(ctx context.Context, store journal.Store, owner string, lease time.Duration) error {
	_, err := store.Heartbeat(ctx, owner, lease)
	return err
}

// begin begins a batch of the usual account, with a line for each fingerprint.
func (s *suite) begin(owner, ref string, fingerprints ...string) {
	s.Helper()
	s.ok(s.Begin(s.Context(), batch(owner, ref), lines(fingerprints...)))
}

// running begins a batch and advances the batch to Running.
func (s *suite) running(owner, ref string, fingerprints ...string) {
	s.Helper()
	s.begin(owner, ref, fingerprints...)
	s.advance(owner, ref, journal.Step{State: journal.Running, BatchID: "batch-" + ref})
}

func (s *suite) advance(owner, ref string, step journal.Step) {
	s.Helper()
	s.ok(s.Advance(s.Context(), owner, ref, step))
}

// take takes lines over, and returns their names as "ref/n".
func (s *suite) take(owner string, fingerprints ...string) []string {
	s.Helper()
	taken, err := s.TakeOver(s.Context(), owner, account, hashes(fingerprints...))
	s.ok(err)
	return names(taken)
}

// batch returns the record of a batch.
func (s *suite) batch(ref string) journal.Batch {
	s.Helper()
	all, err := s.Batches(s.Context(), journal.Filter{Ref: ref})
	s.ok(err)
	if len(all) != 1 {
		s.Fatalf("the journal has %d batches %q, want 1", len(all), ref)
	}
	return all[0]
}

// refs lists the refs of the batches selected by f.
func (s *suite) refs(f journal.Filter) []string {
	s.Helper()
	all, err := s.Batches(s.Context(), f)
	s.ok(err)
	refs := []string{}
	for _, b := range all {
		refs = append(refs, b.Ref)
	}
	return refs
}

// counts checks how many lines of a batch are delivered, held and open.
func (s *suite) counts(ref string, delivered, held, open int) {
	s.Helper()
	b := s.batch(ref)
	got := [...]int{b.Lines, b.Delivered, b.Held, b.Open}
	want := [...]int{delivered + held + open, delivered, held, open}
	if got != want {
		s.Errorf("%s: lines, delivered, held, open = %v, want %v", ref, got, want)
	}
}

// same checks a list of names.
func (s *suite) same(what string, got []string, want ...string) {
	s.Helper()
	if !slices.Equal(got, want) {
		s.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// account is the account of most tests.
var account = hash("account")

// hash makes a different hash for each name.
func hash(name string) journal.Hash {
	h := journal.Hash{31: 0xff}
	copy(h[:], name)
	return h
}

func hashes(names ...string) []journal.Hash {
	all := make([]journal.Hash, len(names))
	for i, name := range names {
		all[i] = hash(name)
	}
	return all
}

func batch(owner, ref string) journal.Batch {
	return journal.Batch{
		Ref: ref, Owner: owner, Account: account,
		Upstream: "https://api.example.com/v1", Provider: "example", Endpoint: "/v1/chat/completions",
		Window: "24h", Models: []string{"large", "small"},
	}
}

func lines(fingerprints ...string) []journal.Line {
	all := make([]journal.Line, len(fingerprints))
	for n, name := range fingerprints {
		all[n] = journal.Line{N: n, CustomID: customID(n), Fingerprint: hash(name)}
	}
	return all
}

func customID(n int) string { return fmt.Sprintf("11111111-2222-4333-8444-%012d", n) }

// names lists the lines in order, as "ref/n".
func names(taken []journal.Taken) []string {
	all := []string{}
	for _, t := range taken {
		for _, l := range t.Lines {
			all = append(all, fmt.Sprintf("%s/%d", t.Batch.Ref, l.N))
		}
	}
	return all
}
