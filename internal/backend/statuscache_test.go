package backend_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
)

// A board is a Backend that knows the states of its batches, and counts how it
// was asked.
type board struct {
	backend.Backend // panics when another method is called

	hidden map[string]bool                 // batches that the list does not show
	fail   func(ctx context.Context) error // of a request for all

	mu          sync.Mutex
	all, single int
}

func (b *board) Status(ctx context.Context, hs []backend.Handle) ([]backend.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(hs) == 1 {
		b.single++
		return []backend.Status{{Handle: hs[0], Word: "in_progress"}}, nil
	}
	b.all++
	if b.fail != nil {
		b.mu.Unlock()
		err := b.fail(ctx)
		b.mu.Lock()
		return nil, err
	}
	states := make([]backend.Status, len(hs))
	for i, h := range hs {
		states[i] = backend.Status{Handle: h, Word: "in_progress"}
		if b.hidden[h.BatchID] {
			states[i] = backend.Status{Handle: h, Err: backend.ErrNotListed}
		}
	}
	return states, nil
}

func handle(i int) backend.Handle { return backend.Handle{BatchID: fmt.Sprintf("b%d", i)} }

// watch watches n batches until the end of the test.
func watch(t *testing.T, c *backend.StatusCache, n int) []*backend.Watch {
	ws := make([]*backend.Watch, n)
	for i := range ws {
		ws[i] = c.Watch(handle(i))
		t.Cleanup(ws[i].Done)
	}
	return ws
}

func look(t *testing.T, ws []*backend.Watch, b backend.Backend) {
	t.Helper()
	for i, w := range ws {
		s, err := w.Look(t.Context(), b, time.Minute)
		if err != nil || s.Handle != handle(i) || s.Word != "in_progress" {
			t.Fatalf("%d: %+v, %v", i, s, err)
		}
	}
}

func TestStatusCache(t *testing.T) {
	for _, tt := range []struct {
		name        string
		board       *board
		watched     int
		all, single int // requests for each round of looks
	}{
		{"a few are asked for alone", &board{}, 9, 0, 9},
		{"many are asked for together", &board{}, 10, 1, 0},
		{"what the list does not show is asked for alone", &board{hidden: map[string]bool{"b3": true, "b7": true}}, 12, 1, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ws := watch(t, backend.NewStatusCache(0), tt.watched)
				for round := 1; round <= 2; round++ {
					look(t, ws, tt.board)
					if tt.board.all != round*tt.all || tt.board.single != round*tt.single {
						t.Errorf("round %d: asked %d times for all and %d times alone", round, tt.board.all, tt.board.single)
					}
					time.Sleep(time.Minute)
				}
			})
		})
	}
	t.Run("fewer again", func(t *testing.T) {
		b, c := &board{}, backend.NewStatusCache(0)
		ws := watch(t, c, 5)
		watch(t, c, 5) // twice the same batch counts once
		for i := range 20 {
			c.Watch(handle(i)).Done()
		}
		look(t, ws, b)
		if b.all != 0 || b.single != 5 {
			t.Errorf("asked %d times for all and %d times alone", b.all, b.single)
		}
	})
	t.Run("a list that fails is left alone for ten minutes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, c := &board{fail: func(context.Context) error { return errors.New("no list") }}, backend.NewStatusCache(0)
			ws := watch(t, c, 10)
			look(t, ws, b)
			time.Sleep(9 * time.Minute)
			look(t, ws, b)
			if b.all != 1 || b.single != 20 {
				t.Errorf("asked %d times for all and %d times alone", b.all, b.single)
			}
			time.Sleep(time.Minute)
			look(t, ws[:1], b)
			if b.all != 2 {
				t.Errorf("asked %d times for all", b.all)
			}
		})
	})
}

// A look that waits for the list of another look ends with its context, and a list
// that does not come is replaced by a request for the batch.
func TestStatusCacheUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{fail: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		ws := watch(t, backend.NewStatusCache(0), 10)
		first := make(chan error, 1)
		go func() {
			_, err := ws[0].Look(t.Context(), b, time.Minute)
			first <- err
		}()
		synctest.Wait()
		enough := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, enough)
		defer cancel()
		began := time.Now()
		if _, err := ws[1].Look(ctx, b, time.Minute); time.Since(began) != time.Second {
			t.Errorf("the second look ended after %v with %v", time.Since(began), err)
		}
		if err := <-first; err != nil || time.Since(began) != time.Minute {
			t.Errorf("the first look ended after %v with %v", time.Since(began), err)
		}
	})
}
