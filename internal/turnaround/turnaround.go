// Package turnaround remembers how long batches and calls at the flex tier took.
package turnaround

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

const (
	// maxKnown bounds the number of kinds that a Book remembers, and kept the number
	// of times of each kind: the newest count.
	maxKnown = 1000
	kept     = 50
)

// A Kind is what has a turnaround of its own.
type Kind struct {
	Provider string // name of the profile
	Model    string
	Window   string // completion window, or provider.FlexWindow
}

// Times are the turnaround times of a kind.
type Times struct {
	Provider, Model, Window string
	Count                   int // of the times that were seen, at most 50
	Median, P90             time.Duration
}

// A Book remembers the turnaround times of a process. The zero Book is empty. A Book
// is safe for concurrent use.
type Book struct {
	mu    sync.Mutex
	known map[Kind]*ring
}

// ring holds the newest times of a kind.
type ring struct {
	times []time.Duration
	next  int
}

// Add adds the time that a batch with calls of the models took. A Book that is full
// starts anew.
func (b *Book) Add(provider, window string, models []string, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, model := range models {
		b.addLocked(Kind{provider, model, window}, took)
	}
}

func (b *Book) addLocked(k Kind, took time.Duration) {
	r := b.known[k]
	if r == nil {
		if b.known == nil || len(b.known) >= maxKnown {
			b.known = make(map[Kind]*ring)
		}
		r = new(ring)
		b.known[k] = r
	}
	if len(r.times) < kept {
		r.times = append(r.times, took)
		return
	}
	r.times[r.next] = took
	r.next = (r.next + 1) % kept
}

// Of returns the times of a kind. Their Count is 0 if no time is known.
func (b *Book) Of(k Kind) Times {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.timesLocked(k)
}

func (b *Book) timesLocked(k Kind) Times {
	r := b.known[k]
	if r == nil {
		return Times{Provider: k.Provider, Model: k.Model, Window: k.Window}
	}
	sorted := slices.Sorted(slices.Values(r.times))
	n := len(sorted)
	return Times{k.Provider, k.Model, k.Window, n, sorted[n/2], sorted[n*9/10]}
}

// All returns the times of all kinds, sorted by their names.
func (b *Book) All() []Times {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]Times, 0, len(b.known))
	for k := range b.known {
		all = append(all, b.timesLocked(k))
	}
	slices.SortFunc(all, func(a, b Times) int {
		return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.Model, b.Model), cmp.Compare(a.Window, b.Window))
	})
	return all
}
