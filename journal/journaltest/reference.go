package journaltest

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// A reference is the naive implementation of journal.Store. The random test compares
// every backend with the reference. A reference has no index: each method reads every
// batch and line, and the death of an owner changes all lines and batches of the
// owner. Leases never run out. A reference is not safe for concurrent use.
type reference struct {
	owners  map[string]time.Duration // the living, and their leases
	batches map[string]*referenceBatch
	begun   int
}

type referenceBatch struct {
	journal.Batch
	seq   int
	lines map[int]*referenceLine // the undelivered lines
}

type referenceLine struct {
	journal.Line
	owner string // "" if open
}

var _ journal.Store = (*reference)(nil)

func newReference() *reference {
	return &reference{owners: make(map[string]time.Duration), batches: make(map[string]*referenceBatch)}
}

// open opens the lines and batches of an owner.
func (m *reference) open(owner string) {
	for _, b := range m.batches {
		if b.Owner == owner {
			b.Owner = ""
		}
		for _, l := range b.lines {
			if l.owner == owner {
				l.owner = ""
			}
		}
	}
}

// owned finds a batch run by owner.
func (m *reference) owned(owner, ref string) (*referenceBatch, error) {
	b := m.batches[ref]
	switch {
	case b == nil:
		return nil, journal.ErrNoBatch
	case b.Owner != owner:
		return nil, journal.ErrNotOwner
	}
	return b, nil
}

func (m *reference) leased(owner string) error {
	if m.owners[owner] == 0 {
		return journal.ErrLapsed
	}
	return nil
}

// inOrder returns the batches in the order of their Begin.
func (m *reference) inOrder() []*referenceBatch {
	return slices.SortedFunc(maps.Values(m.batches), func(a, b *referenceBatch) int { return a.seq - b.seq })
}

func (b *referenceBatch) inOrder() []*referenceLine {
	return slices.SortedFunc(maps.Values(b.lines), func(a, b *referenceLine) int { return a.N - b.N })
}

func (m *reference) Key(context.Context) (journal.Hash, error) { return hash("key"), nil }

func (m *reference) Heartbeat(_ context.Context, owner string, d time.Duration) (expired bool, err error) {
	if d <= 0 {
		delete(m.owners, owner)
		m.open(owner)
		return true, nil
	}
	expired = m.owners[owner] == 0
	m.owners[owner] = d
	return expired, nil
}

func (m *reference) Owners(context.Context) (all []journal.Owner, _ error) {
	for _, name := range slices.Sorted(maps.Keys(m.owners)) {
		all = append(all, journal.Owner{Name: name, Left: m.owners[name]})
	}
	return all, nil
}

func (m *reference) Begin(_ context.Context, b journal.Batch, lines []journal.Line) error {
	if err := m.leased(b.Owner); err != nil {
		return err
	}
	if m.batches[b.Ref] != nil {
		return journal.ErrExists
	}
	m.begun++
	made := &referenceBatch{Batch: b, seq: m.begun, lines: make(map[int]*referenceLine, len(lines))}
	made.Models = slices.Clone(b.Models)
	made.State, made.Began, made.Lines = journal.Uploading, time.Now(), len(lines)
	for n, l := range lines {
		l.N = n
		made.lines[n] = &referenceLine{Line: l, owner: b.Owner}
	}
	m.batches[b.Ref] = made
	return nil
}

func (m *reference) Advance(_ context.Context, owner, ref string, s journal.Step) error {
	b, err := m.owned(owner, ref)
	if err != nil {
		return err
	}
	b.State = s.State
	b.InputFileID = cmp.Or(s.InputFileID, b.InputFileID)
	b.BatchID = cmp.Or(s.BatchID, b.BatchID)
	b.Status = cmp.Or(s.Status, b.Status)
	b.Cost, b.Savings = cmp.Or(s.Cost, b.Cost), cmp.Or(s.Savings, b.Savings)
	if s.State == journal.Ended && b.Ended.IsZero() {
		b.Ended = time.Now()
	}
	return nil
}

func (m *reference) Discard(_ context.Context, owner, ref string) error {
	_, err := m.owned(owner, ref)
	if err == nil {
		delete(m.batches, ref)
	}
	return err
}

func (m *reference) Claim(_ context.Context, owner, ref string) (bool, error) {
	if err := m.leased(owner); err != nil {
		return false, err
	}
	b := m.batches[ref]
	if b == nil {
		return false, journal.ErrNoBatch
	}
	b.Owner = cmp.Or(b.Owner, owner)
	return b.Owner == owner, nil
}

func (m *reference) TakeOver(_ context.Context, owner string, account journal.Hash, fingerprints []journal.Hash) ([]journal.Taken, error) {
	if err := m.leased(owner); err != nil {
		return nil, err
	}
	wanted := make(map[journal.Hash]int)
	for _, f := range fingerprints {
		wanted[f]++
	}
	return m.collect(account, func(b *referenceBatch, l *referenceLine) bool {
		if l.owner != "" || b.State == journal.Cancelling || wanted[l.Fingerprint] == 0 {
			return false
		}
		wanted[l.Fingerprint]--
		l.owner = owner
		return true
	}), nil
}

func (m *reference) Held(_ context.Context, owner string, account journal.Hash, fingerprints []journal.Hash) ([]journal.Taken, error) {
	return m.collect(account, func(_ *referenceBatch, l *referenceLine) bool {
		return l.owner == owner && slices.Contains(fingerprints, l.Fingerprint)
	}), nil
}

func (m *reference) Find(_ context.Context, account journal.Hash, fingerprints []journal.Hash) ([]journal.Taken, error) {
	return m.collect(account, func(_ *referenceBatch, l *referenceLine) bool {
		return slices.Contains(fingerprints, l.Fingerprint)
	}), nil
}

func (m *reference) Withdraw(_ context.Context, account journal.Hash, fingerprints []journal.Hash) (withdrawn int, _ error) {
	m.collect(account, func(b *referenceBatch, l *referenceLine) bool {
		if slices.Contains(fingerprints, l.Fingerprint) {
			delete(b.lines, l.N)
			withdrawn++
		}
		return false
	})
	return withdrawn, nil
}

// collect returns the matching lines of the account, in order.
func (m *reference) collect(account journal.Hash, match func(*referenceBatch, *referenceLine) bool) (all []journal.Taken) {
	for _, b := range m.inOrder() {
		if b.Account != account {
			continue
		}
		var found []journal.Line
		for _, l := range b.inOrder() {
			if match(b, l) {
				found = append(found, l.Line)
			}
		}
		if found != nil {
			known := b.Batch
			known.Lines = 0
			all = append(all, journal.Taken{Batch: known, Lines: found})
		}
	}
	return all
}

func (m *reference) Hold(_ context.Context, owner, ref string, lines []int) error {
	if err := m.leased(owner); err != nil {
		return err
	}
	m.change(ref, lines, func(l *referenceLine) {
		if l.owner == "" && m.batches[ref].State != journal.Cancelling {
			l.owner = owner
		}
	})
	return nil
}

// change applies f to the undelivered lines among lines.
func (m *reference) change(ref string, lines []int, f func(*referenceLine)) {
	b := m.batches[ref]
	if b == nil {
		return
	}
	for _, n := range lines {
		if l := b.lines[n]; l != nil {
			f(l)
		}
	}
}

func (m *reference) Release(_ context.Context, owner, ref string, lines []int) error {
	m.change(ref, lines, func(l *referenceLine) {
		if l.owner == owner {
			l.owner = ""
		}
	})
	return nil
}

func (m *reference) SetResponse(_ context.Context, owner, ref string, line int, responseID string) error {
	m.change(ref, []int{line}, func(l *referenceLine) {
		if l.owner == owner {
			l.ResponseID = responseID
		}
	})
	return nil
}

func (m *reference) Deliver(_ context.Context, owner, ref string, lines []int) error {
	m.change(ref, lines, func(l *referenceLine) {
		if l.owner == owner || l.owner == "" {
			delete(m.batches[ref].lines, l.N)
		}
	})
	return nil
}

func (m *reference) Abandon(_ context.Context, owner, ref string) (bool, error) {
	b, err := m.owned(owner, ref)
	if err != nil || b.State != journal.Running || b.held() > 0 {
		return false, err
	}
	b.State = journal.Cancelling
	return true, nil
}

func (b *referenceBatch) held() (held int) {
	for _, l := range b.lines {
		if l.owner != "" {
			held++
		}
	}
	return held
}

func (m *reference) Batches(_ context.Context, f journal.Filter) (all []journal.Batch, _ error) {
	for _, b := range m.inOrder() {
		if b.matches(f) {
			all = append(all, b.counted(f))
		}
	}
	return all, nil
}

func (b *referenceBatch) matches(f journal.Filter) bool {
	return (f.Ref == "" || f.Ref == b.Ref) &&
		(f.Account == nil || *f.Account == b.Account) &&
		(!f.Unfinished || b.State != journal.Ended || len(b.lines) > 0) &&
		(!f.Orphans || b.State != journal.Ended && b.Owner == "")
}

func (b *referenceBatch) counted(f journal.Filter) journal.Batch {
	k := b.Batch
	if f.Orphans {
		return k
	}
	k.Held = b.held()
	k.Open = len(b.lines) - k.Held
	k.Delivered = b.Lines - len(b.lines)
	return k
}

func (m *reference) Forget(_ context.Context, ended, begun time.Duration) (int, error) {
	before := len(m.batches)
	maps.DeleteFunc(m.batches, func(_ string, b *referenceBatch) bool {
		old := b.State == journal.Ended && time.Since(b.Ended) >= ended || b.Owner == "" && time.Since(b.Began) >= begun
		return old && b.held() == 0
	})
	return before - len(m.batches), nil
}

func (m *reference) Close() error { return nil }
