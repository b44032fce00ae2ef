package batchapi_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/backend"
)

// A board is a provider with a number of batches, and how it was asked for them.
type board struct {
	batches int
	bare    bool // the list is an array
	repeats bool // "after" is ignored

	lists, retrieves int
}

func (b *board) RoundTrip(req *http.Request) (*http.Response, error) {
	item := func(i int) string { return fmt.Sprintf(`{"id":"b%d","status":"in_progress"}`, i) }
	if _, id, ok := strings.Cut(req.URL.Path, "/batches/b"); ok {
		b.retrieves++
		return answer(200, strings.Replace(item(0), "b0", "b"+id, 1)), nil
	}
	b.lists++
	start := 0
	if after := req.URL.Query().Get("after"); after != "" && !b.repeats {
		fmt.Sscanf(after, "b%d", &start)
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

func TestStatusOfMany(t *testing.T) {
	for _, tt := range []struct {
		name      string
		board     *board
		handles   int
		lists     int
		retrieves int
		unlisted  int
	}{
		{"a few are asked for one by one", &board{batches: 9}, 9, 0, 9, 0},
		{"many are listed", &board{batches: 10}, 10, 1, 0, 0},
		{"on several pages", &board{batches: 250}, 250, 3, 0, 0},
		{"in a bare array", &board{batches: 50, bare: true}, 50, 1, 0, 0},
		{"in a list that does not show all", &board{batches: 8}, 12, 1, 0, 4},
		{"in a list that repeats its page", &board{batches: 250, repeats: true}, 250, 2, 0, 150},
		{"no further than they may be", &board{batches: 5000}, 12, 2, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hs := make([]backend.Handle, tt.handles)
			for i := range hs {
				hs[i] = backend.Handle{FileID: "f", BatchID: fmt.Sprintf("b%d", i), InputDeleted: i == 3}
			}
			states, err := openai(t, tt.board).Status(t.Context(), hs)
			if err != nil || len(states) != tt.handles {
				t.Fatalf("%d states, %v", len(states), err)
			}
			unlisted := 0
			for i, s := range states {
				if s.Handle != hs[i] || s.Err == nil && s.Word != "in_progress" {
					t.Errorf("%d: %+v", i, s)
				}
				if errors.Is(s.Err, backend.ErrNotListed) {
					unlisted++
				}
			}
			if tt.board.lists != tt.lists || tt.board.retrieves != tt.retrieves || unlisted != tt.unlisted {
				t.Errorf("%d lists, %d retrieves, %d not listed", tt.board.lists, tt.board.retrieves, unlisted)
			}
		})
	}
}

// The failure of one look does not hide the states of the other batches.
func TestStatusOfOneFails(t *testing.T) {
	w := &wire{answer: func(s sent, _ int) (*http.Response, error) {
		if strings.HasSuffix(s.url, "/b1") {
			return answer(404, "{}"), nil
		}
		return answer(200, `{"id":"b","status":"completed"}`), nil
	}}
	states, err := openai(t, w).Status(t.Context(), []backend.Handle{{BatchID: "b"}, {BatchID: "b1"}, {BatchID: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if states[0].Phase != backend.Ended || states[2].Phase != backend.Ended || failure(t, states[1].Err).Status != 404 || states[1].Handle.BatchID != "b1" {
		t.Errorf("%+v", states)
	}
	if _, err := openai(t, always(500, "{}")).Status(t.Context(), make([]backend.Handle, 10)); failure(t, err).Status != 500 {
		t.Errorf("a list that fails: %v", err)
	}
}
