package journal

import (
	"cmp"
	"container/list"
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"sync"
	"time"
)

// Memory is a Store in memory, for tests. As for every Store, the cost of a method
// depends on the touched lines.
type Memory struct {
	key Hash

	mu      sync.Mutex
	owners  map[string]*memoryOwner // the living
	batches map[string]*memoryBatch
	begun   int

	// calls lists the undelivered lines of each call, the oldest first.
	calls map[memoryCall]*list.List

	// unended are the batches before their end, by owner, dead or alive.
	unended map[*memoryOwner]map[*memoryBatch]bool
}

type memoryOwner struct {
	name         string
	heard, until time.Time
	dead         bool
}

// alive reports whether o has not died. A nil o is not alive.
func (o *memoryOwner) alive() bool { return o != nil && !o.dead }

type memoryCall struct{ account, fingerprint Hash }

type memoryBatch struct {
	Batch // with an Owner of ""
	seq   int
	owner *memoryOwner
	lines map[int]*memoryLine  // the undelivered lines
	held  map[*memoryOwner]int // the number of lines by holder; nil: released
}

type memoryLine struct {
	Line
	batch *memoryBatch
	owner *memoryOwner // nil if released
	place *list.Element
}

func (l *memoryLine) open() bool { return !l.owner.alive() }

// give makes owner the holder of the line.
func (l *memoryLine) give(owner *memoryOwner) {
	l.uncount()
	l.owner = owner
	l.batch.held[owner]++
}

func (l *memoryLine) uncount() {
	if l.batch.held[l.owner]--; l.batch.held[l.owner] == 0 {
		delete(l.batch.held, l.owner)
	}
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty journal.
func NewMemory() *Memory {
	m := &Memory{
		owners: make(map[string]*memoryOwner), batches: make(map[string]*memoryBatch),
		calls: make(map[memoryCall]*list.List), unended: make(map[*memoryOwner]map[*memoryBatch]bool),
	}
	rand.Read(m.key[:])
	return m
}

// lock locks m and removes the owners whose leases ran out, except for the owner
// of the request. lock returns that owner, nil if unknown.
func (m *Memory) lock(owner string) *memoryOwner {
	m.mu.Lock()
	for name, o := range m.owners {
		if name != owner && o.lapsed() {
			m.removeOwnerLocked(o)
		}
	}
	return m.owners[owner]
}

func (o *memoryOwner) lapsed() bool { return !o.until.After(time.Now()) }

func (m *Memory) removeOwnerLocked(o *memoryOwner) {
	o.dead = true
	delete(m.owners, o.name)
}

// leased returns ErrLapsed unless the lease of o runs.
func leased(o *memoryOwner) error {
	if !o.alive() || o.lapsed() {
		return ErrLapsed
	}
	return nil
}

// ownedLocked finds a batch run by o.
func (m *Memory) ownedLocked(o *memoryOwner, ref string) (*memoryBatch, error) {
	b := m.batches[ref]
	switch {
	case b == nil:
		return nil, ErrNoBatch
	case o == nil || b.owner != o:
		return nil, ErrNotOwner
	}
	return b, nil
}

// Key implements Store.
func (m *Memory) Key(context.Context) (Hash, error) { return m.key, nil }

// Heartbeat implements Store.
func (m *Memory) Heartbeat(_ context.Context, owner string, d time.Duration) (expired bool, err error) {
	m.mu.Lock() // not m.lock: heartbeats remove no other owner
	defer m.mu.Unlock()
	o := m.owners[owner]
	if d <= 0 {
		if o != nil {
			m.removeOwnerLocked(o)
		}
		return true, nil
	}
	if o == nil {
		o = &memoryOwner{name: owner}
		m.owners[owner] = o
		expired = true
	}
	o.heard = time.Now()
	o.until = o.heard.Add(d)
	return expired, nil
}

// Owners implements Store.
func (m *Memory) Owners(context.Context) ([]Owner, error) {
	m.lock("")
	defer m.mu.Unlock()
	var all []Owner
	for name, o := range m.owners {
		all = append(all, Owner{Name: name, Silent: time.Since(o.heard), Left: time.Until(o.until)})
	}
	slices.SortFunc(all, func(a, b Owner) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// Begin implements Store.
func (m *Memory) Begin(_ context.Context, b Batch, lines []Line) error {
	o := m.lock(b.Owner)
	defer m.mu.Unlock()
	if err := leased(o); err != nil {
		return err
	}
	if m.batches[b.Ref] != nil {
		return ErrExists
	}
	m.begun++
	made := &memoryBatch{
		Batch: Batch{
			Ref: b.Ref, Account: b.Account, Upstream: b.Upstream, Provider: b.Provider,
			Endpoint: b.Endpoint, Window: b.Window, Models: slices.Clone(b.Models), Traces: b.Traces,
			State: Uploading, Began: time.Now().UTC(), Lines: len(lines),
		},
		seq: m.begun, lines: make(map[int]*memoryLine, len(lines)), held: make(map[*memoryOwner]int),
	}
	m.batches[b.Ref] = made
	m.runLocked(made, o)
	for n, l := range lines {
		l.N, l.ResponseID = n, ""
		m.addLocked(&memoryLine{Line: l, batch: made, owner: o})
	}
	return nil
}

func (m *Memory) addLocked(l *memoryLine) {
	b := l.batch
	b.lines[l.N] = l
	b.held[l.owner]++
	call := memoryCall{b.Account, l.Fingerprint}
	if m.calls[call] == nil {
		m.calls[call] = list.New()
	}
	l.place = m.calls[call].PushBack(l)
}

func (m *Memory) removeLocked(l *memoryLine) {
	delete(l.batch.lines, l.N)
	l.uncount()
	call := memoryCall{l.batch.Account, l.Fingerprint}
	m.calls[call].Remove(l.place)
	if m.calls[call].Len() == 0 {
		delete(m.calls, call)
	}
}

// runLocked makes o the owner of the batch.
func (m *Memory) runLocked(b *memoryBatch, o *memoryOwner) {
	m.unlistLocked(b)
	b.owner = o
	if b.State == Ended {
		return
	}
	if m.unended[o] == nil {
		m.unended[o] = make(map[*memoryBatch]bool)
	}
	m.unended[o][b] = true
}

func (m *Memory) unlistLocked(b *memoryBatch) {
	delete(m.unended[b.owner], b)
	if len(m.unended[b.owner]) == 0 {
		delete(m.unended, b.owner)
	}
}

// Advance implements Store.
func (m *Memory) Advance(_ context.Context, owner, ref string, s Step) error {
	o := m.lock(owner)
	defer m.mu.Unlock()
	b, err := m.ownedLocked(o, ref)
	if err != nil {
		return err
	}
	b.State = s.State
	b.InputFileID = cmp.Or(s.InputFileID, b.InputFileID)
	b.BatchID = cmp.Or(s.BatchID, b.BatchID)
	b.Status = cmp.Or(s.Status, b.Status)
	b.Cost, b.Savings = cmp.Or(s.Cost, b.Cost), cmp.Or(s.Savings, b.Savings)
	now := time.Now().UTC()
	if s.State == Running && b.Created.IsZero() {
		b.Created = now
	}
	if s.State == Ended && b.Ended.IsZero() {
		b.Ended = now
	}
	m.runLocked(b, o)
	return nil
}

// Discard implements Store.
func (m *Memory) Discard(_ context.Context, owner, ref string) error {
	o := m.lock(owner)
	defer m.mu.Unlock()
	b, err := m.ownedLocked(o, ref)
	if err == nil {
		m.deleteLocked(b)
	}
	return err
}

func (m *Memory) deleteLocked(b *memoryBatch) {
	for _, l := range b.lines {
		m.removeLocked(l)
	}
	m.unlistLocked(b)
	delete(m.batches, b.Ref)
}

// Claim implements Store.
func (m *Memory) Claim(_ context.Context, owner, ref string) (bool, error) {
	o := m.lock(owner)
	defer m.mu.Unlock()
	if err := leased(o); err != nil {
		return false, err
	}
	b := m.batches[ref]
	if b == nil {
		return false, ErrNoBatch
	}
	if !b.owner.alive() {
		m.runLocked(b, o)
	}
	return b.owner == o, nil
}

// TakeOver implements Store.
func (m *Memory) TakeOver(_ context.Context, owner string, account Hash, fingerprints []Hash) ([]Taken, error) {
	o := m.lock(owner)
	defer m.mu.Unlock()
	if err := leased(o); err != nil {
		return nil, err
	}
	var taken []*memoryLine
	for f, n := range count(fingerprints) {
		free := func(l *memoryLine) bool { return l.open() && l.batch.State != Cancelling }
		for _, l := range m.findLocked(memoryCall{account, f}, n, free) {
			l.give(o)
			taken = append(taken, l)
		}
	}
	return group(taken), nil
}

// Held implements Store.
func (m *Memory) Held(_ context.Context, owner string, account Hash, fingerprints []Hash) ([]Taken, error) {
	o := m.lock(owner)
	defer m.mu.Unlock()
	if o == nil {
		return nil, nil
	}
	var held []*memoryLine
	for f := range count(fingerprints) {
		mine := func(l *memoryLine) bool { return l.owner == o }
		held = append(held, m.findLocked(memoryCall{account, f}, -1, mine)...)
	}
	return group(held), nil
}

// Find implements Store.
func (m *Memory) Find(_ context.Context, account Hash, fingerprints []Hash) ([]Taken, error) {
	m.mu.Lock() // not m.lock: Find removes no owner
	defer m.mu.Unlock()
	return group(m.undeliveredLocked(account, fingerprints)), nil
}

// Withdraw implements Store.
func (m *Memory) Withdraw(_ context.Context, account Hash, fingerprints []Hash) (int, error) {
	m.mu.Lock() // as Find
	defer m.mu.Unlock()
	lines := m.undeliveredLocked(account, fingerprints)
	for _, l := range lines {
		m.removeLocked(l)
	}
	return len(lines), nil
}

// undeliveredLocked returns the undelivered lines of each fingerprint.
func (m *Memory) undeliveredLocked(account Hash, fingerprints []Hash) (found []*memoryLine) {
	for f := range count(fingerprints) {
		found = append(found, m.findLocked(memoryCall{account, f}, -1, func(*memoryLine) bool { return true })...)
	}
	return found
}

// count returns how often each fingerprint occurs.
func count(fingerprints []Hash) map[Hash]int {
	counts := make(map[Hash]int, len(fingerprints))
	for _, f := range fingerprints {
		counts[f]++
	}
	return counts
}

// findLocked returns the first n matching lines of a call, all if n is negative.
func (m *Memory) findLocked(call memoryCall, n int, match func(*memoryLine) bool) (found []*memoryLine) {
	lines := m.calls[call]
	if lines == nil {
		return nil
	}
	for e := lines.Front(); e != nil && len(found) != n; e = e.Next() {
		if l := e.Value.(*memoryLine); match(l) {
			found = append(found, l)
		}
	}
	return found
}

// group orders lines and groups them by batch.
func group(lines []*memoryLine) (all []Taken) {
	slices.SortFunc(lines, func(a, b *memoryLine) int {
		return cmp.Or(cmp.Compare(a.batch.seq, b.batch.seq), cmp.Compare(a.N, b.N))
	})
	for i, l := range lines {
		if i == 0 || lines[i-1].batch != l.batch {
			all = append(all, Taken{Batch: l.batch.known()})
		}
		last := &all[len(all)-1]
		last.Lines = append(last.Lines, l.Line)
	}
	return all
}

// known is the batch without its counts.
func (b *memoryBatch) known() Batch {
	k := b.Batch
	k.Models = slices.Clone(k.Models)
	k.Lines = 0
	if b.owner.alive() {
		k.Owner = b.owner.name
	}
	return k
}

// Hold implements Store.
func (m *Memory) Hold(_ context.Context, owner, ref string, lines []int) error {
	o := m.lock(owner)
	defer m.mu.Unlock()
	if err := leased(o); err != nil {
		return err
	}
	m.changeLocked(ref, lines, func(l *memoryLine) {
		if l.open() && l.batch.State != Cancelling {
			l.give(o)
		}
	})
	return nil
}

// changeLocked applies f to the undelivered lines among lines.
func (m *Memory) changeLocked(ref string, lines []int, f func(*memoryLine)) {
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

// Release implements Store.
func (m *Memory) Release(_ context.Context, owner, ref string, lines []int) error {
	o := m.lock(owner)
	defer m.mu.Unlock()
	m.changeLocked(ref, lines, func(l *memoryLine) {
		if o != nil && l.owner == o {
			l.give(nil)
		}
	})
	return nil
}

// SetResponse implements Store.
func (m *Memory) SetResponse(_ context.Context, owner, ref string, line int, responseID string) error {
	o := m.lock(owner)
	defer m.mu.Unlock()
	m.changeLocked(ref, []int{line}, func(l *memoryLine) {
		if o != nil && l.owner == o {
			l.ResponseID = responseID
		}
	})
	return nil
}

// Deliver implements Store.
func (m *Memory) Deliver(_ context.Context, owner, ref string, lines []int) error {
	o := m.lock(owner)
	defer m.mu.Unlock()
	m.changeLocked(ref, lines, func(l *memoryLine) {
		if l.open() || l.owner == o {
			m.removeLocked(l)
		}
	})
	return nil
}

// Abandon implements Store.
func (m *Memory) Abandon(_ context.Context, owner, ref string) (bool, error) {
	o := m.lock(owner)
	defer m.mu.Unlock()
	b, err := m.ownedLocked(o, ref)
	if err != nil || b.State != Running || b.heldByLiving() > 0 {
		return false, err
	}
	b.State = Cancelling
	return true, nil
}

func (b *memoryBatch) heldByLiving() (held int) {
	for o, n := range b.held {
		if o.alive() {
			held += n
		}
	}
	return held
}

// Batches implements Store.
func (m *Memory) Batches(_ context.Context, f Filter) ([]Batch, error) {
	m.lock("")
	defer m.mu.Unlock()
	var all []Batch
	for _, b := range m.candidatesLocked(f) {
		if b.matches(f) {
			all = append(all, b.counted(f))
		}
	}
	return all, nil
}

// candidatesLocked returns in order the batches to match with f.
func (m *Memory) candidatesLocked(f Filter) (found []*memoryBatch) {
	switch {
	case f.Ref != "":
		if b := m.batches[f.Ref]; b != nil {
			found = append(found, b)
		}
	case f.Orphans:
		for o, batches := range m.unended {
			if !o.alive() {
				found = slices.AppendSeq(found, maps.Keys(batches))
			}
		}
	default:
		found = slices.Collect(maps.Values(m.batches))
	}
	slices.SortFunc(found, func(a, b *memoryBatch) int { return a.seq - b.seq })
	return found
}

func (b *memoryBatch) matches(f Filter) bool {
	return (f.Account == nil || *f.Account == b.Account) &&
		(!f.Unfinished || b.State != Ended || len(b.lines) > 0) &&
		(!f.Orphans || b.State != Ended && !b.owner.alive())
}

func (b *memoryBatch) counted(f Filter) Batch {
	k := b.known()
	k.Lines = b.Lines
	if f.Orphans {
		return k
	}
	k.Held = b.heldByLiving()
	k.Open = len(b.lines) - k.Held
	k.Delivered = b.Lines - len(b.lines)
	return k
}

// Forget implements Store.
func (m *Memory) Forget(_ context.Context, ended, begun time.Duration) (forgotten int, err error) {
	m.lock("")
	defer m.mu.Unlock()
	for _, b := range m.batches {
		old := b.State == Ended && time.Since(b.Ended) >= ended || !b.owner.alive() && time.Since(b.Began) >= begun
		if old && b.heldByLiving() == 0 {
			m.deleteLocked(b)
			forgotten++
		}
	}
	return forgotten, nil
}

// Close implements Store. The journal stays readable for the next process of a test.
func (m *Memory) Close() error { return nil }
