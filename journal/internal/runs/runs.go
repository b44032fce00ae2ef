// Package runs finds the lines of a large batch by fingerprint.
//
// Fingerprints are random. With a database index on fingerprints, each new line
// would change a different page of an index as large as the journal. The database
// therefore does not index the lines of a large batch. Begin writes the
// fingerprints once, sorted and packed into runs, and a run does not change until
// the last line is delivered or the batch is deleted. A lookup reads one run of
// each large batch with open lines. An entry may lead to a delivered line, which no
// longer exists.
//
// The database indexes the lines of small batches. The number of small batches has
// no limit, and a lookup must not read a run of each small batch.
package runs

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/autobatcher/autobatcher/journal"
)

const (
	// Large is the number of lines of the smallest large batch.
	Large = 512

	// entriesPerRun is small enough for PostgreSQL to keep a run in the row.
	entriesPerRun = 96

	entrySize = len(Short{}) + 4
)

// A Short is the part of a fingerprint in a journal, long enough to be unique.
type Short [16]byte

// Shorten returns the part of h for a journal.
func Shorten(h journal.Hash) Short { return Short(h[:len(Short{})]) }

// First is the beginning of s. Runs are ordered by First.
func (s Short) First() uint32 { return binary.BigEndian.Uint32(s[:]) }

// compare orders as bytes.Compare does, and is faster.
func compare(a, b Short) int {
	if c := cmp.Compare(binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(b[:8])); c != 0 {
		return c
	}
	return cmp.Compare(binary.BigEndian.Uint64(a[8:]), binary.BigEndian.Uint64(b[8:]))
}

// A Run is a part of the sorted fingerprints of a batch. Fingerprints with the
// same First are in the same run. The only run that may contain a fingerprint is
// the last run with a First not larger than the fingerprint's.
type Run struct {
	First   uint32
	Entries []byte
}

// An Entry is a fingerprint and the index of a line.
type Entry struct {
	Short Short
	N     int
}

// Pack returns the runs of a batch, in order. A batch may have 2^32 lines.
func Pack(lines []journal.Line) (all []Run) {
	entries := make([]Entry, len(lines))
	for n := range lines {
		entries[n] = Entry{Shorten(lines[n].Fingerprint), n}
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		if c := compare(a.Short, b.Short); c != 0 {
			return c
		}
		return a.N - b.N
	})
	for len(entries) > 0 {
		n := runLength(entries)
		all = append(all, pack(entries[:n]))
		entries = entries[n:]
	}
	return all
}

// Number estimates the number of runs of a batch.
func Number(lines int) int { return lines/entriesPerRun + 1 }

// runLength is the number of entries of the next run.
func runLength(entries []Entry) int {
	n := min(entriesPerRun, len(entries))
	for n < len(entries) && entries[n].Short.First() == entries[n-1].Short.First() {
		n++
	}
	return n
}

func pack(entries []Entry) Run {
	r := Run{First: entries[0].Short.First(), Entries: make([]byte, 0, len(entries)*entrySize)}
	for _, e := range entries {
		r.Entries = append(r.Entries, e.Short[:]...)
		r.Entries = binary.BigEndian.AppendUint32(r.Entries, uint32(e.N))
	}
	return r
}

// Find appends the wanted entries of a run to found, ordered by fingerprint and
// line. wanted must be sorted. Find ignores an incomplete entry at the end.
func Find(found []Entry, entries []byte, wanted []Short) []Entry {
	n := len(entries) / entrySize
	if n == 0 {
		return found
	}
	from, _ := slices.BinarySearchFunc(wanted, at(entries, 0).Short, compare)
	last := at(entries, n-1).Short
	i := 0
	for _, w := range wanted[from:] {
		if compare(w, last) > 0 {
			break
		}
		i = search(entries, i, n, w)
		for ; i < n && at(entries, i).Short == w; i++ {
			found = append(found, at(entries, i))
		}
	}
	return found
}

// search returns the index of the first entry from i on not less than w.
func search(entries []byte, i, n int, w Short) int {
	for i < n {
		middle := int(uint(i+n) / 2)
		if compare(at(entries, middle).Short, w) < 0 {
			i = middle + 1
		} else {
			n = middle
		}
	}
	return i
}

func at(entries []byte, i int) Entry {
	e := entries[i*entrySize:][:entrySize]
	return Entry{Short(e), int(binary.BigEndian.Uint32(e[len(Short{}):]))}
}

// Wanted are the fingerprints of a request.
type Wanted map[Short]*Want

// A Want is the number of lines of a fingerprint to find. A negative Count means
// all lines.
type Want struct {
	Full  journal.Hash
	Count int
}

// Count returns how often each of the fingerprints occurs.
func Count(fingerprints []journal.Hash) Wanted {
	wanted := make(Wanted, len(fingerprints))
	for _, h := range fingerprints {
		if w := wanted[Shorten(h)]; w != nil {
			w.Count++
			continue
		}
		wanted[Shorten(h)] = &Want{Full: h, Count: 1}
	}
	return wanted
}

// All wants every line of the fingerprints.
func All(fingerprints []journal.Hash) Wanted {
	wanted := make(Wanted, len(fingerprints))
	for _, h := range fingerprints {
		wanted[Shorten(h)] = &Want{Full: h, Count: -1}
	}
	return wanted
}

// Clone returns a copy of w with counts of its own.
func (w Wanted) Clone() Wanted {
	clone := make(Wanted, len(w))
	for s, want := range w {
		copied := *want
		clone[s] = &copied
	}
	return clone
}

// Take reports whether a further line of s is wanted, and counts the line.
func (w Wanted) Take(s Short) bool {
	if !w.Open(s) {
		return false
	}
	w[s].Count--
	return true
}

// Open reports whether a further line of s is wanted.
func (w Wanted) Open(s Short) bool { return w[s] != nil && w[s].Count != 0 }

// Sorted returns the fingerprints of further wanted lines, in order.
func (w Wanted) Sorted() []Short {
	all := make([]Short, 0, len(w))
	for s, want := range w {
		if want.Count != 0 {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, compare)
	return all
}
