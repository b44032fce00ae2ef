package collector_test

import (
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/autobatcher/autobatcher/internal/collector"
)

// A call of the tests.
type call struct {
	key    string
	bytes  int64
	inputs int
	slot   collector.Slot[string, *call]
}

// A desk is a Collector whose batches are only noted.
type desk struct {
	*collector.Collector[string, *call]
	limits  collector.Limits
	refuses bool
	queues  []*collector.Queue[string, *call]
}

func newDesk(l collector.Limits) *desk {
	d := &desk{limits: l}
	d.Collector = collector.New(
		func(c *call) collector.Entry[string, *call] {
			return collector.Entry[string, *call]{Key: &c.key, Slot: &c.slot, Bytes: c.bytes, Inputs: c.inputs, Limits: d.limits}
		},
		func(q *collector.Queue[string, *call]) bool {
			if d.refuses {
				return false
			}
			d.queues = append(d.queues, q)
			return true
		})
	return d
}

// sizes is how many calls each queue has.
func (d *desk) sizes() (sizes []int) {
	for _, q := range d.queues {
		n, _ := q.Size()
		sizes = append(sizes, n)
	}
	return sizes
}

func full(q *collector.Queue[string, *call]) bool {
	select {
	case <-q.Full():
		return true
	default:
		return false
	}
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limits collector.Limits
		calls  []call
		sizes  []int
		full   []bool
	}{
		{"no limits", collector.Limits{}, []call{{bytes: 9}, {bytes: 9}, {bytes: 9}}, []int{3}, []bool{false}},
		{"calls", collector.Limits{Calls: 2}, []call{{}, {}, {}}, []int{2, 1}, []bool{true, false}},
		{"bytes are reached", collector.Limits{Bytes: 10}, []call{{bytes: 5}, {bytes: 5}, {bytes: 1}}, []int{2, 1}, []bool{true, false}},
		{"bytes would be exceeded", collector.Limits{Bytes: 10}, []call{{bytes: 5}, {bytes: 6}}, []int{1, 1}, []bool{true, false}},
		{"a call larger than the limit goes alone", collector.Limits{Bytes: 10}, []call{{bytes: 1}, {bytes: 50}, {bytes: 1}}, []int{1, 1, 1}, []bool{true, true, false}},
		{"inputs", collector.Limits{Inputs: 10}, []call{{inputs: 6}, {inputs: 4}, {inputs: 1}}, []int{2, 1}, []bool{true, false}},
		{"keys", collector.Limits{Calls: 2}, []call{{key: "a"}, {key: "b"}, {key: "a"}}, []int{2, 1}, []bool{true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(tt.limits)
			for i := range tt.calls {
				if !d.Add(&tt.calls[i]) {
					t.Fatal("refused")
				}
			}
			if got := d.sizes(); !slices.Equal(got, tt.sizes) {
				t.Errorf("sizes %v, want %v", got, tt.sizes)
			}
			for i, q := range d.queues {
				if full(q) != tt.full[i] {
					t.Errorf("queue %d is full: %v", i, full(q))
				}
			}
		})
	}
}

func TestDrop(t *testing.T) {
	d := newDesk(collector.Limits{})
	first, second, early := &call{bytes: 3}, &call{bytes: 4}, &call{}
	d.Drop(early)
	if !d.Add(early) || len(d.queues) != 0 {
		t.Error("a call that left before it was queued is queued")
	}
	d.Add(first)
	d.Add(second)
	q := d.queues[0]
	emptied := 0
	q.OnEmpty(func() { emptied++ })
	d.Drop(first)
	d.Drop(first) // once more changes nothing
	if n, bytes := q.Size(); n != 1 || bytes != 4 || emptied != 0 || !slices.Equal(q.Calls(), []*call{second}) {
		t.Errorf("%d calls of %d bytes, emptied %d times", n, bytes, emptied)
	}
	d.Drop(second)
	if emptied != 1 || !full(q) {
		t.Errorf("emptied %d times, sealed: %v", emptied, full(q))
	}
	d.Add(&call{})
	if len(d.queues) != 2 {
		t.Error("a call joined a queue whose calls have left")
	}
	late := 0
	q.OnEmpty(func() { late++ })
	if late != 1 {
		t.Error("OnEmpty of an empty queue was not called")
	}
}

func TestTakenCallsAreNotDropped(t *testing.T) {
	d := newDesk(collector.Limits{})
	c := &call{}
	d.Add(c)
	q := d.queues[0]
	q.OnEmpty(func() { t.Error("the queue counts as empty") })
	if taken := q.Take(); !slices.Equal(taken, []*call{c}) {
		t.Errorf("took %v", taken)
	}
	d.Drop(c)
	if again := q.Take(); len(again) != 0 {
		t.Error("a call was taken twice")
	}
}

func TestEnd(t *testing.T) {
	d := newDesk(collector.Limits{})
	d.Add(&call{key: "a"})
	d.Add(&call{key: "b"})
	if sealed := d.SealAll(); len(sealed) != 2 || !full(sealed[0]) || !full(sealed[1]) {
		t.Errorf("sealed %d queues", len(sealed))
	}
	if len(d.SealAll()) != 0 {
		t.Error("a sealed queue still collects")
	}
	d.refuses = true
	if d.Add(&call{}) {
		t.Error("took a call whose batch could not be started")
	}
	d.refuses = false
	d.End()
	if d.Add(&call{}) || len(d.queues) != 2 {
		t.Error("took a call after the end")
	}
}

func TestGroup(t *testing.T) {
	d := newDesk(collector.Limits{Calls: 1})
	calls := []*call{{key: "a"}, {key: "b"}, {key: "a"}}
	queues := d.Group(calls)
	if len(queues) != 2 || !slices.Equal(queues[0].Take(), []*call{calls[0], calls[2]}) || !full(queues[1]) {
		t.Errorf("%d queues", len(queues))
	}
	if q := d.Recovered("a"); !full(q) || len(q.Take()) != 0 {
		t.Error("the queue of a recovered batch takes calls")
	}
}

// Whatever is added, dropped and sealed: each call that has not left is in exactly
// one queue of its key, and no queue of more than one call exceeds its limits.
func TestEachCallIsTakenOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := collector.Limits{
			Calls: rapid.IntRange(0, 4).Draw(t, "calls"), Bytes: rapid.Int64Range(0, 20).Draw(t, "bytes"), Inputs: rapid.IntRange(0, 5).Draw(t, "inputs"),
		}
		d := newDesk(limits)
		stays := make(map[*call]bool)
		var all []*call
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				d.SealAll()
			case 1:
				if len(all) > 0 {
					c := rapid.SampledFrom(all).Draw(t, "dropped")
					d.Drop(c)
					delete(stays, c)
				}
			default:
				c := &call{key: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key"), bytes: rapid.Int64Range(1, 10).Draw(t, "size"), inputs: rapid.IntRange(0, 3).Draw(t, "inputs of the call")}
				all, stays[c] = append(all, c), true
				d.Add(c)
			}
		}
		for _, q := range d.queues {
			calls := q.Take()
			var bytes int64
			inputs := 0
			for _, c := range calls {
				if !stays[c] || c.key != q.Key {
					t.Fatalf("a queue of %s has a call of %s that stays: %v", q.Key, c.key, stays[c])
				}
				delete(stays, c)
				bytes, inputs = bytes+c.bytes, inputs+c.inputs
			}
			if len(calls) > 1 && (limits.Calls > 0 && len(calls) > limits.Calls || limits.Bytes > 0 && bytes > limits.Bytes || limits.Inputs > 0 && inputs > limits.Inputs) {
				t.Fatalf("%d calls, %d bytes and %d inputs exceed %+v", len(calls), bytes, inputs, limits)
			}
		}
		if len(stays) > 0 {
			t.Fatalf("%d calls are in no queue", len(stays))
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	d := newDesk(collector.Limits{Calls: 7})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			c := &call{bytes: 1}
			d.Add(c)
			if i%5 == 0 {
				d.Drop(c)
			}
		})
	}
	wg.Wait()
	total := 0
	for _, q := range d.queues {
		total += len(q.Take())
	}
	if total != 40 {
		t.Errorf("%d calls, want 40", total)
	}
}
