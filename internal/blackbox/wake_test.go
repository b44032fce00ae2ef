package blackbox_test

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// webhooks has the server post its webhooks to Transport.Wake, until lose is true. The
// result counts the webhooks of batches that the Transport polls.
func (s *scene) webhooks(lose *atomic.Bool) *atomic.Int64 {
	s.Helper()
	var woken atomic.Int64
	err := s.srv.AddWebhook(batchtest.Webhook{
		Secret: "whsec_" + base64.StdEncoding.EncodeToString([]byte("a secret of at least 24 bytes")),
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				s.Error(err)
			}
			data := gjson.GetBytes(body, "data")
			id := strings.TrimPrefix(cmp.Or(data.Get("id").String(), data.Get("batch_id").String()), "batch_")
			if !lose.Load() && (s.tr.Wake(id) || s.tr.Wake("batch_"+id)) {
				woken.Add(1)
			}
		}),
	})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(s.srv.Close)
	return &woken
}

func TestTransportWake(t *testing.T) {
	slow := autobatcher.Options{PollInterval: 10 * time.Minute}
	server := batchtest.Options{Turnaround: 2 * time.Minute, FlexDelay: time.Minute}
	var arrive, lose atomic.Bool
	lose.Store(true)
	setup{server: server, options: slow}.run(t, "without webhooks the next poll finds the end", func(s *scene) {
		s.webhooks(&lose)
		s.chat("a").want(200, 10*time.Minute+10*time.Second)
		synctest.Wait()
	})
	setup{server: server, options: slow}.run(t, "a batch", func(s *scene) {
		woken := s.webhooks(&arrive)
		s.chat("a").want(200, 2*time.Minute+10*time.Second).says("a")
		synctest.Wait() // the webhook has been counted
		if s.tr.Wake("batch_unknown") || s.tr.Wake("") || s.tr.Wake(s.batch().ID) || woken.Load() != 1 {
			s.Errorf("Wake knows batches that are not polled, or %d webhooks did not wake exactly one batch", woken.Load())
		}
	})
	doubleword(server, slow).run(t, "a batch of Doubleword", func(s *scene) {
		s.webhooks(&arrive)
		s.chat("a").want(200, 2*time.Minute+10*time.Second).says("a")
	})
	flex := slow
	flex.Mode = autobatcher.ModeFlex
	openAI(server, flex).run(t, "a response in the background", func(s *scene) {
		s.webhooks(&arrive)
		r := s.post("/responses", responseBody("a"))
		r.want(200, time.Minute)
	})
	setup{server: batchtest.Options{Turnaround: 10 * time.Second}, options: slow}.run(t, "a batch that ended before the answer to its create arrived", func(s *scene) {
		s.webhooks(&arrive)
		s.srv.Control(batchtest.OpCreate, func(w http.ResponseWriter, r *http.Request) bool {
			answer := httptest.NewRecorder()
			batchtest.Proceed(answer, r)
			time.Sleep(30 * time.Second)
			w.WriteHeader(answer.Code)
			w.Write(answer.Body.Bytes())
			return true
		})
		s.chat("a").want(200, 40*time.Second).says("a")
	})
	setup{server: server, options: slow}.run(t, "the first look is too early", func(s *scene) {
		s.webhooks(&arrive)
		s.srv.Control(batchtest.OpRetrieve, rewrite(func([]byte, http.Header) []byte { return []byte(`{"id":"batch_x","status":"finalizing"}`) }))
		s.chat("a").want(200, 12*time.Minute+10*time.Second) // the next poll
	})
	setup{server: server}.run(t, "a closed Transport", func(s *scene) {
		call := s.chat("a")
		s.until(time.Minute)
		s.tr.Close()
		if call.left(); s.tr.Wake(s.batch().ID) {
			s.Error("a closed Transport polls a batch")
		}
	})
}

// After three announced batches, the Transport polls every five minutes, until an
// announcement is missing.
func TestPollsSlowDown(t *testing.T) {
	var lose atomic.Bool
	polls := func(s *scene) int { return s.count(http.MethodGet, "/batches/") }
	setup{server: batchtest.Options{Turnaround: 22 * time.Minute}}.play(t, func(s *scene) {
		s.webhooks(&lose)
		// Before the last answer, each poll is at most a minute late.
		for round, want := range []struct {
			polls int
			late  time.Duration
			lost  bool
		}{
			{0, 0, false},
			{0, 0, false},
			{0, 0, false},
			{5, 0, false},              // four polls, and the poll that the webhook asks for
			{5, 3 * time.Minute, true}, // the webhook is lost: the poll after 25 minutes finds the end
			{0, time.Minute, true},
		} {
			lose.Store(want.lost)
			before, began := polls(s), s.elapsed()
			s.chat(fmt.Sprint("round ", round)).wait().says(fmt.Sprint("round ", round))
			n, late := polls(s)-before, s.elapsed()-began-10*time.Second-22*time.Minute
			if want.polls > 0 && n != want.polls || want.polls == 0 && n < 50 || late > want.late {
				s.Errorf("round %d: %d polls, and the answer came %v after the end; want %d polls (0: many) and at most %v", round, n, late, want.polls, want.late)
			}
		}
	})
}

// A flex call that is held open ends without an announcement, and says nothing about
// webhooks: responses in the background are polled as rarely as before.
func TestHeldCallsKeepTheTrustInWebhooks(t *testing.T) {
	var arrive atomic.Bool
	openAI(batchtest.Options{FlexDelay: time.Minute}, autobatcher.Options{Mode: autobatcher.ModeFlex}).play(t, func(s *scene) {
		s.webhooks(&arrive)
		gets := func(text string) int {
			before := s.count(http.MethodGet, "/responses/")
			s.post("/responses", responseBody(text)).says(text)
			synctest.Wait()
			return s.count(http.MethodGet, "/responses/") - before
		}
		first := gets("one")
		gets("two")
		gets("three")
		trusted := gets("four")
		s.post("/chat/completions", chatBody("held")).says("held")
		if after := gets("five"); trusted >= first || after > trusted {
			s.Errorf("%d requests for the first response, %d for the fourth, %d after a call that was held open", first, trusted, after)
		}
	})
}

// Where polls bring answers, polls stay as frequent.
func TestPollsOfPartialResults(t *testing.T) {
	var lose atomic.Bool
	doubleword(batchtest.Options{Turnaround: 22 * time.Minute}, autobatcher.Options{}).play(t, func(s *scene) {
		woken := s.webhooks(&lose)
		for round := range 4 {
			before := s.count(http.MethodGet, "/batches/")
			s.chat(fmt.Sprint("round ", round)).wait().says(fmt.Sprint("round ", round))
			if n := s.count(http.MethodGet, "/batches/") - before; n < 50 {
				s.Errorf("round %d: %d polls", round, n)
			}
			time.Sleep(time.Minute)
		}
		if woken.Load() != 4 {
			s.Errorf("%d webhooks of 4 batches", woken.Load())
		}
	})
}

// TestWebhookRequests measures how many requests the provider sees for 1,000 waiting
// calls, with and without webhooks, after the first batches were announced. The test
// logs the table of docs/performance.md:
//
//	go test ./internal/blackbox -run TestWebhookRequests -v
func TestWebhookRequests(t *testing.T) {
	const calls = 1000
	var table strings.Builder
	table.WriteString("\n| Lane | Answers after | Requests without webhooks | Requests with webhooks | Last answer, without and with |\n|---|---|---|---|---|\n")
	for _, tt := range []struct {
		mode        autobatcher.Mode
		path        string
		takes       time.Duration
		most, least int // requests with webhooks at most, and without webhooks at least
	}{
		{autobatcher.ModeBatch, "/chat/completions", 7 * time.Minute, 5, 80},
		{autobatcher.ModeBatch, "/chat/completions", 6 * time.Hour, 80, 500},
		{autobatcher.ModeFlex, "/responses", 30 * time.Second, 3 * calls, 8 * calls},
	} {
		var sent [2]int
		var last [2]time.Duration
		for i, webhooks := range []bool{false, true} {
			u := openAI(batchtest.Options{Turnaround: tt.takes, FlexDelay: tt.takes}, autobatcher.Options{Mode: tt.mode, QuietAfter: time.Second})
			var requests atomic.Int64 // Server.Requests forgets the oldest
			u.base = func(next http.RoundTripper) http.RoundTripper { return counting{next, &requests} }
			u.run(t, fmt.Sprintf("%s %v %v", tt.mode, tt.takes, webhooks), func(s *scene) {
				var lose atomic.Bool
				lose.Store(!webhooks)
				s.webhooks(&lose)
				ask := func(n int) <-chan reply {
					body := chatBody(fmt.Sprint(n))
					if tt.path == "/responses" {
						body = responseBody(fmt.Sprint(n))
					}
					answer := make(chan reply, 1)
					go func() { answer <- s.do(s.request(s.Context(), tt.path, body)) }()
					return answer
				}
				for n := range 3 {
					<-ask(calls + n)
				}
				time.Sleep(time.Minute) // files may be deleted after the answers
				requests.Store(0)
				began := s.elapsed()
				answers := make([]<-chan reply, calls)
				for n := range answers {
					answers[n] = ask(n)
				}
				for _, answer := range answers {
					r := <-answer
					if r.err != nil || r.status != 200 {
						s.Errorf("%d %v: %s", r.status, r.err, r.body)
					}
					last[i] = max(last[i], r.at-began)
				}
				time.Sleep(time.Minute)
				sent[i] = int(requests.Load())
			})
		}
		if sent[0] < tt.least || sent[1] > tt.most || last[1] > last[0] {
			t.Errorf("%s, %v: %d requests and %v without webhooks, %d and %v with webhooks; want at least %d and at most %d requests, and no later answers",
				tt.mode, tt.takes, sent[0], last[0], sent[1], last[1], tt.least, tt.most)
		}
		fmt.Fprintf(&table, "| %s, `%s` | %v | %d | %d | %v, %v |\n", tt.mode, tt.path, tt.takes, sent[0], sent[1], last[0].Round(time.Second/10), last[1].Round(time.Second/10))
	}
	t.Log(table.String())
}
