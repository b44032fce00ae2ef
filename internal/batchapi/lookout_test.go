package batchapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/provider"
)

// A board is a provider with so many batches, and how it was asked for them.
type board struct {
	batches int
	bare    bool

	mu              sync.Mutex
	lists, retrieve int
}

func (b *board) RoundTrip(req *http.Request) (*http.Response, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	item := func(i int) string { return fmt.Sprintf(`{"id":"b%d","status":"in_progress"}`, i) }
	if _, id, ok := strings.Cut(req.URL.Path, "/batches/b"); ok {
		b.retrieve++
		return answer(200, strings.Replace(item(0), "b0", "b"+id, 1)), nil
	}
	b.lists++
	start := 0
	fmt.Sscanf(req.URL.Query().Get("after"), "b%d", &start)
	if req.URL.Query().Get("after") != "" {
		start++
	}
	var items []string
	for i := start; i < min(start+100, b.batches); i++ {
		items = append(items, item(i))
	}
	list := "[" + strings.Join(items, ",") + "]"
	if b.bare {
		return answer(200, list), nil
	}
	return answer(200, fmt.Sprintf(`{"object":"list","data":%s,"has_more":%v}`, list, start+100 < b.batches)), nil
}

// look looks once at each of n batches, all of which are watched.
func look(t *testing.T, b *board, l *batchapi.Lookout, c *batchapi.Client, n int) {
	t.Helper()
	for i := range n {
		id := fmt.Sprintf("b%d", i)
		got, err := l.Look(t.Context(), c, id, time.Minute)
		if err != nil || got.ID != id || got.Status != "in_progress" {
			t.Fatalf("%s: %+v, %v", id, got, err)
		}
	}
}

func TestLookout(t *testing.T) {
	for _, tt := range []struct {
		name     string
		board    *board
		watched  int
		lists    int
		retrieve int
	}{
		{"a few are asked for one by one", &board{batches: 9}, 9, 0, 9},
		{"many are listed", &board{batches: 10}, 10, 1, 0},
		{"on several pages", &board{batches: 250}, 250, 3, 0},
		{"in a bare array", &board{batches: 50, bare: true}, 50, 1, 0},
		{"what the list does not show is asked for", &board{batches: 8}, 12, 1, 4},
		{"no further than the watched may be", &board{batches: 5000}, 12, 2, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, c := batchapi.NewLookout(), openai(t, tt.board)
				for range tt.watched {
					defer l.Watch()()
				}
				look(t, tt.board, l, c, tt.watched)
				if tt.board.lists != tt.lists || tt.board.retrieve != tt.retrieve {
					t.Errorf("%d lists and %d retrieves, want %d and %d", tt.board.lists, tt.board.retrieve, tt.lists, tt.retrieve)
				}
				time.Sleep(time.Minute)
				look(t, tt.board, l, c, tt.watched)
				if tt.board.lists != 2*tt.lists {
					t.Errorf("%d lists after a minute, want %d", tt.board.lists, 2*tt.lists)
				}
			})
		})
	}
	t.Run("fewer again", func(t *testing.T) {
		b := &board{batches: 20}
		l, c := batchapi.NewLookout(), openai(t, b)
		var done []func()
		for range 20 {
			done = append(done, l.Watch())
		}
		for _, d := range done[:15] {
			d()
		}
		look(t, b, l, c, 5)
		if b.lists != 0 || b.retrieve != 5 {
			t.Errorf("%d lists and %d retrieves", b.lists, b.retrieve)
		}
	})
}

// Who waits for another's listing can leave, and gets an answer if it fails.
func TestLookoutUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		via := roundTripper(func(req *http.Request) (*http.Response, error) {
			if strings.HasSuffix(req.URL.Path, "/batches") {
				<-req.Context().Done()
				return nil, req.Context().Err()
			}
			return answer(200, `{"id":"b","status":"in_progress"}`), nil
		})
		l, c := batchapi.NewLookout(), client(t, "https://api.groq.com/openai/v1", provider.Groq(), via)
		for range 10 {
			defer l.Watch()()
		}
		first := make(chan error, 1)
		go func() {
			_, err := l.Look(t.Context(), c, "b", time.Minute)
			first <- err
		}()
		synctest.Wait()
		enough := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, enough)
		defer cancel()
		if _, err := l.Look(ctx, c, "b", time.Minute); !errors.Is(err, enough) {
			t.Errorf("second: %v, want its context's cause", err)
		}
		if err := <-first; err != nil {
			t.Errorf("first: %v; a list that does not come must not cost the look", err)
		}
	})
}
