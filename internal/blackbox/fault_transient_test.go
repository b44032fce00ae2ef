package blackbox_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// A line that fails for a reason that may pass is resubmitted before the caller
// sees the failure, as often as Options.Resubmits says.
func TestALineThatFailsOnceIsResubmitted(t *testing.T) {
	for _, tt := range []struct {
		name      string
		outcome   batchtest.Outcome
		resubmits int
		fails     int // how often each of the failing lines fails
		status    int
		sizes     []int
	}{
		{"overloaded", batchtest.Outcome{Status: 429}, 0, 1, 200, []int{50, 10}},
		{"a fault", batchtest.Outcome{Status: 500}, 0, 1, 200, []int{50, 10}},
		{"a gateway's page", batchtest.Outcome{Status: 502, Body: []byte(`"<html>"`)}, 0, 1, 200, []int{50, 10}},
		{"a fault that stays", batchtest.Outcome{Status: 500}, 0, 9, 500, []int{50, 10}},
		{"resubmitted twice", batchtest.Outcome{Status: 503}, 2, 2, 200, []int{50, 10, 10}},
		{"not resubmitted", batchtest.Outcome{Status: 500}, -1, 1, 500, []int{50}},
		{"a bad request", batchtest.Outcome{Status: 400}, 0, 1, 400, []int{50}},
		{"no quota", batchtest.Outcome{Status: 429, Body: []byte(`{"error":{"message":"pay","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`)}, 0, 1, 429, []int{50}},
	} {
		var mu sync.Mutex
		failed := make(map[string]int)
		answer := func(l batchtest.Line) batchtest.Outcome {
			mu.Lock()
			defer mu.Unlock()
			if body := string(l.Body); strings.Contains(body, "fails") && failed[body] < tt.fails {
				failed[body]++
				return tt.outcome
			}
			return batchtest.Outcome{}
		}
		u := setup{server: batchtest.Options{Answer: answer}, options: autobatcher.Options{Resubmits: tt.resubmits}, again: true}
		u.run(t, tt.name, func(s *scene) {
			var calls []*pending
			for i := range 50 {
				text := fmt.Sprintf("text %d", i)
				if i%5 == 0 {
					text += " fails"
				}
				calls = append(calls, s.chat(text))
			}
			for i, c := range calls {
				want := 200
				if i%5 == 0 {
					want = tt.status
				}
				if r := c.within(time.Hour); r.status != want {
					s.Errorf("call %d: %d, want %d", i, r.status, want)
				}
			}
			s.sent(tt.sizes...)
		})
	}
}
