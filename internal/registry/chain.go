package registry

// chains are calls by fingerprint. Calls with equal fingerprints form a chain, in
// the order in which they were pushed. A call is in one chain at most.
type chains[R any] map[Fingerprint]chain[R]

type chain[R any] struct{ first, last *Call[R] }

func (m chains[R]) push(c *Call[R]) {
	ch := m[c.Fingerprint]
	if ch.first == nil {
		ch.first = c
	} else {
		ch.last.next, c.prev = c, ch.last
	}
	ch.last = c
	m[c.Fingerprint] = ch
}

// remove takes c out of its chain. A call that is in no chain of m is ignored.
func (m chains[R]) remove(c *Call[R]) {
	ch, ok := m[c.Fingerprint]
	if !ok || c.prev == nil && ch.first != c {
		return
	}
	if c.prev == nil {
		ch.first = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		ch.last = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
	if ch.first == nil {
		delete(m, c.Fingerprint)
		return
	}
	m[c.Fingerprint] = ch
}
