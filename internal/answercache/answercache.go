// Package answercache keeps values for a limited time within a limited number of
// bytes.
package answercache

import (
	"container/heap"
	"time"
)

// overhead is what an entry costs in memory beside its value's own bytes.
const overhead = 256

// A Cache holds entries until they expire. Beyond its limit the entry that
// expires first is dropped first. A Cache is not safe for concurrent use; its
// owner locks.
type Cache struct {
	limit   int64 // bytes
	size    int64
	entries expiries
	onDrop  func(value any)
}

// An Entry is the handle of a value in a Cache.
type Entry struct {
	value   any
	size    int64
	expires time.Time
	index   int
}

// New returns an empty Cache that holds at most limit bytes. onDrop is called
// for each value that the Cache drops by itself.
func New(limit int64, onDrop func(value any)) *Cache {
	return &Cache{limit: limit, onDrop: onDrop}
}

// Put adds a value of size bytes that expires after keepFor, and drops what has
// expired or is too much, which can be the new value itself.
func (c *Cache) Put(value any, size int64, keepFor time.Duration) *Entry {
	e := &Entry{value: value, size: size + overhead, expires: time.Now().Add(keepFor)}
	heap.Push(&c.entries, e)
	c.size += e.size
	c.Prune()
	return e
}

// Remove takes an entry out. An entry that is not in the Cache any more is
// ignored.
func (c *Cache) Remove(e *Entry) {
	if e.index >= 0 {
		heap.Remove(&c.entries, e.index)
		c.size -= e.size
	}
}

// Prune drops the entries that have expired or are too much.
func (c *Cache) Prune() {
	for len(c.entries) > 0 {
		first := c.entries[0]
		if c.size <= c.limit && time.Now().Before(first.expires) {
			return
		}
		c.Remove(first)
		c.onDrop(first.value)
	}
}

// expiries is a heap of entries; the entry that expires first is in front.
type expiries []*Entry

func (h expiries) Len() int           { return len(h) }
func (h expiries) Less(i, j int) bool { return h[i].expires.Before(h[j].expires) }
func (h expiries) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *expiries) Push(x any) {
	e := x.(*Entry) //nolint:forcetypeassert // heap.Push passes what Put gave
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *expiries) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	e.index = -1
	return e
}
