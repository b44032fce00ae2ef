package eventqueue_test

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/eventqueue"
)

// The handler is called once for each event, in order, and never twice at a time,
// whatever the handler does with an event.
func TestOrder(t *testing.T) {
	for _, tt := range []struct {
		name   string
		handle func() // called for event 2 of 5
		panics []int
	}{
		{"a handler that returns", func() {}, nil},
		{"a handler that is slow", func() { time.Sleep(time.Hour) }, nil},
		{"a handler that panics", func() { panic("no") }, []int{2}},
		{"a handler that exits its goroutine", runtime.Goexit, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got, panics []int
				running := false
				q := eventqueue.New(func(n int) {
					if running {
						t.Error("the handler is called twice at a time")
					}
					running = true
					defer func() { running = false }()
					got = append(got, n)
					if n == 2 {
						tt.handle()
					}
				}, func(n int, _ any) { panics = append(panics, n) }, nil)
				for n := range 5 {
					q.Emit(n)
				}
				if took := elapsed(func() { q.Wait(t.Context()) }); took > time.Hour {
					t.Errorf("Wait took %v", took)
				}
				if want := []int{0, 1, 2, 3, 4}; !slices.Equal(got, want) || !slices.Equal(panics, tt.panics) {
					t.Errorf("events %v, panics %v; want %v and %v", got, panics, want, tt.panics)
				}
				q.Emit(5) // a queue that was idle goes on
				q.Wait(t.Context())
				if !slices.Contains(got, 5) {
					t.Error("an event after Wait was not delivered")
				}
			})
		})
	}
}

func elapsed(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}

// Emit does not block while a handler hangs, and Wait ends with its context.
func TestAHandlerThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		q := eventqueue.New(func(int) { <-hang }, nil, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		took := elapsed(func() {
			q.Emit(1)
			q.Emit(2)
			q.Wait(ctx)
		})
		if took != 2*time.Second {
			t.Errorf("took %v, want the two seconds of the context", took)
		}
		close(hang)
	})
}

// The events that wait for a handler are bounded, and the queue goes on once the
// handler does.
func TestPendingEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang, got, full := make(chan struct{}), 0, 0
		q := eventqueue.New(func(int) { <-hang; got++ }, nil, func() { full++ })
		q.Emit(0)
		synctest.Wait() // the handler hangs
		for n := range eventqueue.MaxPending + 100 {
			q.Emit(n)
		}
		close(hang)
		q.Wait(t.Context())
		if got != eventqueue.MaxPending+1 || full != 1 {
			t.Errorf("%d events were handled, and the queue was full %d times", got, full)
		}
		q.Emit(1)
		if q.Wait(t.Context()); got != eventqueue.MaxPending+2 {
			t.Error("an event after the queue had room was not handled")
		}
	})
}

// A handler may emit an event, and events without a handler are dropped.
func TestEmitInHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q *eventqueue.Queue[int]
		var got []int
		q = eventqueue.New(func(n int) {
			got = append(got, n)
			if n < 3 {
				q.Emit(n + 1)
			}
		}, nil, nil)
		q.Emit(0)
		q.Wait(t.Context())
		if !slices.Equal(got, []int{0, 1, 2, 3}) {
			t.Errorf("events %v", got)
		}
		none := eventqueue.New[int](nil, nil, nil)
		none.Emit(1)
		none.Wait(t.Context())
	})
}
