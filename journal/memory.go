package journal

import (
	"cmp"
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"sync"
	"time"
)

// Memory is a Store that lasts as long as the process: the reference that
// other backends are compared with.
type Memory struct {
	key Hash

	mu      sync.Mutex
	owners  map[string]lease
	batches map[string]*memoryBatch
	begun   int
}

type lease struct{ heard, until time.Time }

type memoryBatch struct {
	Batch
	seq   int
	lines map[int]*memoryLine // those not delivered
}

type memoryLine struct {
	Line
	owner string // "" if open
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty journal.
func NewMemory() *Memory {
	m := &Memory{owners: make(map[string]lease), batches: make(map[string]*memoryBatch)}
	rand.Read(m.key[:])
	return m
}

// lock locks m, and opens what belongs to owners whose lease ran out.
func (m *Memory) lock() {
	m.mu.Lock()
	for name, l := range m.owners {
		if !l.until.After(time.Now()) {
			delete(m.owners, name)
			m.orphan(name)
		}
	}
}

func (m *Memory) orphan(owner string) {
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

// owned finds a batch that owner carries on.
func (m *Memory) owned(owner, ref string) (*memoryBatch, error) {
	b := m.batches[ref]
	switch {
	case b == nil:
		return nil, ErrNoBatch
	case b.Owner != owner:
		return nil, ErrNotOwner
	}
	return b, nil
}

func (m *Memory) leased(owner string) error {
	if _, ok := m.owners[owner]; !ok {
		return ErrLapsed
	}
	return nil
}

// inOrder lists the batches, those begun first in front.
func (m *Memory) inOrder() []*memoryBatch {
	return slices.SortedFunc(maps.Values(m.batches), func(a, b *memoryBatch) int { return a.seq - b.seq })
}

// Key implements Store.
func (m *Memory) Key(context.Context) (Hash, error) { return m.key, nil }

// Heartbeat implements Store.
func (m *Memory) Heartbeat(_ context.Context, owner string, d time.Duration) (fresh bool, err error) {
	m.mu.Lock() // not m.lock: an owner that comes back keeps what it has
	defer m.mu.Unlock()
	if d <= 0 {
		delete(m.owners, owner)
		m.orphan(owner)
		return true, nil
	}
	_, known := m.owners[owner]
	now := time.Now()
	m.owners[owner] = lease{heard: now, until: now.Add(d)}
	return !known, nil
}

// Owners implements Store.
func (m *Memory) Owners(context.Context) ([]Owner, error) {
	m.lock()
	defer m.mu.Unlock()
	var all []Owner
	for name, l := range m.owners {
		all = append(all, Owner{Name: name, Silent: time.Since(l.heard), Left: time.Until(l.until)})
	}
	slices.SortFunc(all, func(a, b Owner) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// Begin implements Store.
func (m *Memory) Begin(_ context.Context, b Batch, lines []Line) error {
	m.lock()
	defer m.mu.Unlock()
	if err := m.leased(b.Owner); err != nil {
		return err
	}
	if m.batches[b.Ref] != nil {
		return ErrExists
	}
	m.begun++
	made := &memoryBatch{seq: m.begun, lines: make(map[int]*memoryLine, len(lines))}
	made.Batch = Batch{
		Ref: b.Ref, Owner: b.Owner, Payer: b.Payer, Upstream: b.Upstream, Provider: b.Provider,
		Endpoint: b.Endpoint, Window: b.Window, Models: slices.Clone(b.Models),
		State: Uploading, Began: time.Now().UTC(), Lines: len(lines),
	}
	for n, l := range lines {
		l.N = n
		made.lines[n] = &memoryLine{Line: l, owner: b.Owner}
	}
	m.batches[b.Ref] = made
	return nil
}

// Advance implements Store.
func (m *Memory) Advance(_ context.Context, owner, ref string, s Step) error {
	m.lock()
	defer m.mu.Unlock()
	b, err := m.owned(owner, ref)
	if err != nil {
		return err
	}
	b.State = s.State
	b.InputFileID = cmp.Or(s.InputFileID, b.InputFileID)
	b.BatchID = cmp.Or(s.BatchID, b.BatchID)
	b.Status = cmp.Or(s.Status, b.Status)
	now := time.Now().UTC()
	if s.State == Running && b.Created.IsZero() {
		b.Created = now
	}
	if s.State == Ended && b.Ended.IsZero() {
		b.Ended = now
	}
	return nil
}

// Discard implements Store.
func (m *Memory) Discard(_ context.Context, owner, ref string) error {
	m.lock()
	defer m.mu.Unlock()
	_, err := m.owned(owner, ref)
	if err == nil {
		delete(m.batches, ref)
	}
	return err
}

// Claim implements Store.
func (m *Memory) Claim(_ context.Context, owner, ref string) (bool, error) {
	m.lock()
	defer m.mu.Unlock()
	if err := m.leased(owner); err != nil {
		return false, err
	}
	b := m.batches[ref]
	if b == nil {
		return false, ErrNoBatch
	}
	b.Owner = cmp.Or(b.Owner, owner)
	return b.Owner == owner, nil
}

// TakeOver implements Store.
func (m *Memory) TakeOver(_ context.Context, owner string, payer Hash, prints []Hash) ([]Taken, error) {
	m.lock()
	defer m.mu.Unlock()
	if err := m.leased(owner); err != nil {
		return nil, err
	}
	wanted := make(map[Hash]int)
	for _, p := range prints {
		wanted[p]++
	}
	var all []Taken
	for _, b := range m.inOrder() {
		if b.Payer != payer || b.State == Cancelling {
			continue
		}
		if lines := b.takeOver(owner, wanted); lines != nil {
			all = append(all, Taken{Batch: b.known(), Lines: lines})
		}
	}
	return all, nil
}

// takeOver takes those of the batch's lines that are wanted.
func (b *memoryBatch) takeOver(owner string, wanted map[Hash]int) []Line {
	var taken []Line
	for _, n := range slices.Sorted(maps.Keys(b.lines)) {
		l := b.lines[n]
		if l.owner == "" && wanted[l.Print] > 0 {
			wanted[l.Print]--
			l.owner = owner
			taken = append(taken, l.Line)
		}
	}
	return taken
}

// known is the batch without its counts.
func (b *memoryBatch) known() Batch {
	k := b.Batch
	k.Models = slices.Clone(k.Models)
	k.Lines = 0
	return k
}

// Hold implements Store.
func (m *Memory) Hold(_ context.Context, owner, ref string, lines []int) error {
	m.lock()
	defer m.mu.Unlock()
	if err := m.leased(owner); err != nil {
		return err
	}
	m.change(ref, lines, func(l *memoryLine) {
		if l.owner == "" && m.batches[ref].State != Cancelling {
			l.owner = owner
		}
	})
	return nil
}

// change applies f to those of a batch's lines that were not delivered.
func (m *Memory) change(ref string, lines []int, f func(*memoryLine)) {
	if b := m.batches[ref]; b != nil {
		for _, n := range lines {
			if l := b.lines[n]; l != nil {
				f(l)
			}
		}
	}
}

// Release implements Store.
func (m *Memory) Release(_ context.Context, owner, ref string, lines []int) error {
	m.lock()
	defer m.mu.Unlock()
	m.change(ref, lines, func(l *memoryLine) {
		if l.owner == owner {
			l.owner = ""
		}
	})
	return nil
}

// Deliver implements Store.
func (m *Memory) Deliver(_ context.Context, owner, ref string, lines []int) error {
	m.lock()
	defer m.mu.Unlock()
	m.change(ref, lines, func(l *memoryLine) {
		if l.owner == owner || l.owner == "" {
			delete(m.batches[ref].lines, l.N)
		}
	})
	return nil
}

// Abandon implements Store.
func (m *Memory) Abandon(_ context.Context, owner, ref string) (bool, error) {
	m.lock()
	defer m.mu.Unlock()
	b, err := m.owned(owner, ref)
	if err != nil || b.State != Running || b.held() > 0 {
		return false, err
	}
	b.State = Cancelling
	return true, nil
}

func (b *memoryBatch) held() int {
	held := 0
	for _, l := range b.lines {
		if l.owner != "" {
			held++
		}
	}
	return held
}

// Batches implements Store.
func (m *Memory) Batches(_ context.Context, f Filter) ([]Batch, error) {
	m.lock()
	defer m.mu.Unlock()
	var all []Batch
	for _, b := range m.inOrder() {
		if b.matches(f) {
			all = append(all, b.counted())
		}
	}
	return all, nil
}

func (b *memoryBatch) matches(f Filter) bool {
	return (f.Ref == "" || f.Ref == b.Ref) &&
		(f.Payer == nil || *f.Payer == b.Payer) &&
		(!f.Unfinished || b.State != Ended || len(b.lines) > 0)
}

func (b *memoryBatch) counted() Batch {
	k := b.known()
	k.Lines = b.Lines
	k.Held = b.held()
	k.Open = len(b.lines) - k.Held
	k.Delivered = b.Lines - len(b.lines)
	return k
}

// Forget implements Store.
func (m *Memory) Forget(_ context.Context, ended, begun time.Duration) (int, error) {
	m.lock()
	defer m.mu.Unlock()
	before := len(m.batches)
	maps.DeleteFunc(m.batches, func(_ string, b *memoryBatch) bool {
		old := b.State == Ended && time.Since(b.Ended) >= ended || b.Owner == "" && time.Since(b.Began) >= begun
		return old && b.held() == 0
	})
	return before - len(m.batches), nil
}

// Close implements Store. The journal stays readable, so that a test may let
// its next process find it.
func (m *Memory) Close() error { return nil }
