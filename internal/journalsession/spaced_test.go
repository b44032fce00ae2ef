package journalsession_test

import (
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// Many wishes cause few calls: the first at once, the next half a second after the end of
// the one before, and the last one after the last wish.
func TestSpaced(t *testing.T) {
	bubble(t, func(t *testing.T, store journal.Store) {
		o := open(t, store, false)
		var at []time.Duration
		began, work := time.Now(), func() {}
		soon := o.Spaced(func() {
			at = append(at, time.Since(began))
			work()
		})
		later := func() {
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		want := func(moments ...time.Duration) {
			t.Helper()
			if !slices.Equal(at, moments) {
				t.Errorf("called at %v, want %v", at, moments)
			}
		}
		for range 1000 {
			soon()
		}
		synctest.Wait()
		want(0)
		work = func() { time.Sleep(2 * time.Second) }
		for range 1000 {
			soon()
			time.Sleep(time.Millisecond)
		}
		later()
		want(0, 500*time.Millisecond, 3*time.Second)
		work = runtime.Goexit
		soon()
		later()
		soon()
		later()
		if len(at) != 5 {
			t.Errorf("called %d times, want 5: also after a call that exited the goroutine", len(at))
		}
		o.stop()
		soon()
		synctest.Wait()
		if len(at) != 5 {
			t.Errorf("called %d times, want 5: not after the end", len(at))
		}
	})
}
