package collector_test

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/autobatcher/autobatcher/internal/collector"
)

// A key may refer to an account with its credentials, and is not kept for longer than
// a window after its queue was sealed early.
func TestKeysOfEarlyQueuesAreForgotten(t *testing.T) {
	type account struct{ credential string }
	type call struct {
		key  *account
		slot collector.Slot[*account, *call]
	}
	synctest.Test(t, func(t *testing.T) {
		var queue *collector.Queue[*account, *call]
		c := collector.New(
			func(c *call) collector.Entry[*account, *call] {
				return collector.Entry[*account, *call]{Key: &c.key, Slot: &c.slot}
			},
			func(q *collector.Queue[*account, *call]) bool { queue = q; return true },
		)
		key := &account{"secret"}
		known := weak.Make(key)
		c.Add(&call{key: key})
		if err := queue.Wait(t.Context(), 10*time.Second, time.Second); err != nil || !queue.IsFull() || !queue.Early() {
			t.Fatalf("%v; the queue is not sealed early", err)
		}
		queue = nil
		time.Sleep(10 * time.Second)
		synctest.Wait()
		runtime.GC()
		if known.Value() != nil {
			t.Error("the Collector keeps the key")
		}
		runtime.KeepAlive(c)
	})
}
