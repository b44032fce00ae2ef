package blackbox_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// TestLaneTimes measures how long calls wait in each lane, and how many requests the
// provider sees, with the default options against the same provider: batches take 7
// minutes, the flex tier waits for 30 seconds, and real time answers at once. The test
// logs the tables of docs/performance.md:
//
//	go test ./internal/blackbox -run TestLaneTimes -v
func TestLaneTimes(t *testing.T) {
	const (
		chat       = "/chat/completions"
		response   = "/responses"
		background = "/responses in the background"
	)
	server := batchtest.Options{Turnaround: 7 * time.Minute, FlexDelay: 30 * time.Second}
	var table strings.Builder
	table.WriteString("\n| lane | calls | last id | first answer | last answer | requests | per 1,000 calls |\n|---|---|---|---|---|---|---|\n")
	for _, tt := range []struct {
		mode autobatcher.Mode
		path string
		// The last answer of 1, 20 and 2,000 calls comes within last, and the provider sees
		// at most so many requests.
		last     [3]time.Duration
		requests [3]int
	}{
		{autobatcher.ModeBatch, chat, [3]time.Duration{8 * time.Minute, 8 * time.Minute, 8 * time.Minute}, [3]int{90, 90, 180}},
		{autobatcher.ModeBatch, background, [3]time.Duration{8 * time.Minute, 8 * time.Minute, 8 * time.Minute}, [3]int{90, 90, 180}},
		{autobatcher.ModeFlex, chat, [3]time.Duration{31 * time.Second, 31 * time.Second, 31 * time.Second}, [3]int{1, 20, 2000}},
		{autobatcher.ModeFlex, response, [3]time.Duration{36 * time.Second, 36 * time.Second, 36 * time.Second}, [3]int{9, 180, 18000}},
		{autobatcher.ModeAuto, chat, [3]time.Duration{33 * time.Second, 8 * time.Minute, 8 * time.Minute}, [3]int{1, 90, 180}},
		{autobatcher.ModeRealtime, chat, [3]time.Duration{time.Second, time.Second, time.Second}, [3]int{1, 20, 2000}},
	} {
		for i, calls := range []int{1, 20, 2000} {
			u := openAI(server, autobatcher.Options{Mode: tt.mode, QuietAfter: time.Second})
			var sent atomic.Int64 // Server.Requests forgets the oldest
			u.base = func(next http.RoundTripper) http.RoundTripper { return counting{next, &sent} }
			u.run(t, fmt.Sprintf("%s, %d calls to %s", tt.mode, calls, tt.path), func(s *scene) {
				replies := make(chan reply, calls)
				ids := make(chan time.Duration, calls)
				every := 5 * time.Second
				if calls > 100 {
					every = 30 * time.Second // each question costs the test CPU time
				}
				for n := range calls {
					text := fmt.Sprint(n)
					switch tt.path {
					case response:
						go func() { replies <- s.do(s.request(s.Context(), response, responseBody(text))) }()
					case background:
						go func() { replies <- s.collect(responseBody(text), every, ids) }()
					default:
						go func() { replies <- s.do(s.request(s.Context(), chat, chatBody(text))) }()
					}
				}
				var at []time.Duration
				for range calls {
					r := <-replies
					if r.err != nil || r.status != 200 {
						s.Errorf("%d %v: %s", r.status, r.err, r.body)
					}
					at = append(at, r.at)
				}
				time.Sleep(time.Minute) // files may be deleted after the answers
				first, last, requests := slices.Min(at), slices.Max(at), int(sent.Load())
				if last > tt.last[i] || requests > tt.requests[i] {
					s.Errorf("the last answer came after %v, want %v; the provider saw %d requests, want %d", last, tt.last[i], requests, tt.requests[i])
				}
				close(ids)
				var id time.Duration
				for at := range ids {
					if id = max(id, at); at > 15*time.Second {
						s.Errorf("an id came after %v", at)
					}
				}
				fmt.Fprintf(&table, "| %s, `%s` | %d | %v | %v | %v | %d | %d |\n", tt.mode, tt.path, calls, id.Round(time.Millisecond),
					first.Round(time.Millisecond), last.Round(time.Millisecond), requests, requests*1000/calls)
			})
		}
	}
	t.Log(table.String())
}

// collect makes a call in the background, and asks for the answer at intervals. ids
// receives when the id came.
func (s *scene) collect(body string, interval time.Duration, ids chan<- time.Duration) reply {
	r := s.do(s.request(s.Context(), "/responses", strings.Replace(body, "{", `{"background":true,`, 1)))
	ids <- r.at
	for id := r.id(); r.status == 200 && gjson.Get(r.body, "status").String() != "completed" && r.at < time.Hour; {
		time.Sleep(interval)
		r = s.ask(s.tr, "GET", "/responses/"+id)
	}
	return r
}

// counting counts the requests to the provider.
type counting struct {
	next http.RoundTripper
	sent *atomic.Int64
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.sent.Add(1)
	return c.next.RoundTrip(r)
}
