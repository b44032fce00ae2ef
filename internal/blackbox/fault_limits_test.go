package blackbox_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// A limit of enqueued tokens of any size is learned, and stays a limit: it never
// makes batches smaller than the calls that come together.
func TestALargeTokenLimitIsLearned(t *testing.T) {
	for _, limit := range []string{"15,000,000,000", "2,147,483,648", "4000000000", "9,223,372,036,854,775,807", "99999999999999999999"} {
		setup{server: batchtest.Options{Turnaround: time.Minute}}.run(t, limit, func(s *scene) {
			call := s.chat("first")
			s.until(12 * time.Second)
			if err := s.srv.FailBatch(s.batch().ID, "token_limit_exceeded", "Enqueued token limit reached. Limit: "+limit+" enqueued tokens.", 0); err != nil {
				s.Fatal(err)
			}
			call.within(2 * time.Hour).says("first")
			for hours := range 35 {
				if hours%5 != 0 && hours < 28 {
					continue
				}
				s.until(2*time.Hour + time.Duration(hours)*time.Hour)
				before := len(s.srv.Batches())
				for _, c := range s.chats(3) {
					c.within(time.Hour)
				}
				if n := len(s.srv.Batches()) - before; n != 1 {
					s.Fatalf("%d batches for three calls, %d hours after the limit was learned", n, hours)
				}
			}
		})
	}
}

// hourly is a setup of a provider that allows so many creations in an hour, with a
// batch for each call.
func hourly(n int, turnaround time.Duration) setup {
	p := provider.OpenAI()
	p.CreationsPerHour = n
	return setup{
		server:  batchtest.Options{Turnaround: turnaround},
		options: autobatcher.Options{BatchSize: 1, Provider: &p, PollInterval: time.Minute},
	}
}

// Batches are created in the order in which their calls came, also where each has
// to wait for the hourly limit.
func TestTheHourlyLimitIsFirstComeFirstServed(t *testing.T) {
	hourly(2, time.Minute).play(t, func(s *scene) {
		var calls []*pending
		for i := range 12 {
			calls = append(calls, s.chat(said(i)))
			s.until(s.elapsed() + 7*time.Minute)
		}
		for _, c := range calls {
			c.within(12 * time.Hour)
		}
		var order []string
		batches := s.srv.Batches()
		slices.SortStableFunc(batches, func(a, b batchtest.Batch) int { return a.Created.Compare(b.Created) })
		for _, b := range batches {
			order = append(order, string(b.Lines[0].Body))
		}
		for i, body := range order {
			if body != chatBody(said(i)) {
				s.Fatalf("batch %d is of %s; want the order of arrival: %v", i, body, order)
			}
		}
	})
}

// Only a batch that is created uses up a creation of the hour.
func TestABatchThatIsNotCreatedUsesNoCreation(t *testing.T) {
	hourly(1, time.Minute).run(t, "its caller left", func(s *scene) {
		s.chat("first").within(time.Hour)
		gone, stays := s.chat("gone"), s.chat("stays")
		s.until(10 * time.Minute)
		gone.left()
		if r := stays.within(5 * time.Hour).says("stays"); r.at > 70*time.Minute {
			s.Errorf("answered at %v; the turn of the caller who left was free at 60 minutes", r.at)
		}
	})
	hourly(2, 30*time.Minute).run(t, "its call took over a line", func(s *scene) {
		first := s.chat("text")
		s.until(time.Minute)
		first.left()
		again := s.chat("text")
		s.until(2 * time.Minute)
		if r := s.chat("other").within(5 * time.Hour).says("other"); r.at > 40*time.Minute {
			s.Errorf("answered at %v; the second creation of the hour was free", r.at)
		}
		again.within(time.Hour).says("text")
		s.sent(1, 1)
	})
	hourly(2, time.Minute).run(t, "its upload was refused", func(s *scene) {
		s.srv.Control(batchtest.OpUpload, batchtest.HTML(403))
		s.chat("refused").within(time.Hour).want(403, 0)
		s.chat("second").within(time.Hour)
		if r := s.chat("third").within(5 * time.Hour).says("third"); r.at > 10*time.Minute {
			s.Errorf("answered at %v; the second creation of the hour was free", r.at)
		}
	})
}

// A file that is too large for the provider, or for a proxy in front of it, is
// divided. A single line that is too large is refused with the provider's 413.
func TestAFileThatIsTooLargeIsDivided(t *testing.T) {
	limit := func(bytes int) func(http.RoundTripper) http.RoundTripper {
		return func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				if !strings.HasSuffix(req.URL.Path, "/files") {
					return next.RoundTrip(req)
				}
				return tooLarge(next, req, bytes)
			})
		}
	}
	u := setup{base: limit(1 << 20)}
	pad := strings.Repeat("x", 60_000)
	u.run(t, "30 calls of 60 kB behind a limit of 1 MB", func(s *scene) {
		s.answered(s.rush(30, func(i int) (string, string) { return "/chat/completions", chatBody(said(i) + pad) }), said)
		if n := len(s.srv.Batches()); n > 4 {
			s.Errorf("%d batches, want the file in halves", n)
		}
	})
	u.run(t, "one line is too large", func(s *scene) {
		large, small := s.chat(strings.Repeat("x", 2<<20)), s.chat("small")
		small.within(time.Hour).says("small")
		if r := large.within(time.Hour); r.status != 413 {
			s.Errorf("status %d, want 413: %.200s", r.status, r.body)
		}
	})
	setup{base: limit(10)}.run(t, "every line is too large", func(s *scene) {
		for _, r := range s.rush(5, numbered) {
			if r.status != 413 {
				s.Errorf("status %d, want 413: %.200s", r.status, r.body)
			}
		}
	})
}

// tooLarge answers 413, with a page as nginx writes it, to a larger body.
func tooLarge(next http.RoundTripper, req *http.Request, limit int) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	req.Body.Close()
	if err != nil {
		return nil, err
	}
	if len(body) > limit {
		text := "<html><head><title>413 Request Entity Too Large</title></head></html>"
		return &http.Response{
			StatusCode: 413, Header: http.Header{"Content-Type": {"text/html"}},
			Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text)), Request: req,
		}, nil
	}
	clone := req.Clone(req.Context())
	clone.Body = io.NopCloser(bytes.NewReader(body))
	return next.RoundTrip(clone)
}

// A validation that counts every line as failed has run none of them: the bad line
// costs its caller alone.
func TestAValidationThatCountsFailedLines(t *testing.T) {
	poisoned(false).play(t, func(s *scene) {
		s.srv.Keep(batchtest.OpRetrieve, rewrite(func(body []byte, _ http.Header) []byte {
			if !bytes.Contains(body, []byte(`"status":"failed"`)) {
				return body
			}
			counts := bytes.Index(body, []byte(`"request_counts":{`))
			end := counts + bytes.IndexByte(body[counts:], '}') + 1
			return append(append(slices.Clone(body[:counts]), `"request_counts":{"total":3,"completed":0,"failed":3}`...), body[end:]...)
		}))
		good, bad, also := s.chat("good"), s.chat(poison), s.chat("also")
		good.within(time.Hour).says("good")
		also.within(time.Hour).says("also")
		if r := bad.within(time.Hour); r.status != 400 {
			s.Errorf("status %d, want 400: %s", r.status, r.body)
		}
	})
}

// A batch that failed, ran nothing, names nothing and has no file is divided until
// the bad line is alone. A line that is alone may be innocent, so its caller gets
// a 424.
func TestABatchThatFailedWithoutAReasonIsDivided(t *testing.T) {
	p := provider.LLMD()
	u := setup{again: true, server: batchtest.Options{Behavior: batchtest.LLMD()}, options: autobatcher.Options{Provider: &p}}
	for _, n := range []int{1, 2, 8, 30} {
		u.run(t, fmt.Sprintf("one line of %d", n), func(s *scene) {
			s.srv.Keep(batchtest.OpRetrieve, s.failsWith("bad"))
			bad := n * 2 / 3
			replies := s.rush(n, func(i int) (string, string) {
				if i == bad {
					return "/chat/completions", chatBody(said(i) + "bad")
				}
				return numbered(i)
			})
			for i, r := range replies {
				switch {
				case i == bad && r.status == 424:
					r.fails("batch_failed")
				case i == bad || r.status != 200:
					s.Errorf("call %d: status %d: %.200s", i, r.status, r.body)
				}
			}
			if uploads := s.count("POST", "/files"); uploads > 13 {
				s.Errorf("%d uploads to find one line of %d", uploads, n)
			}
		})
	}
}

// failsWith says that every batch with a line of that text failed, and nothing more.
func (s *scene) failsWith(text string) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		for _, b := range s.srv.Batches() {
			bad := slices.ContainsFunc(b.Lines, func(l batchtest.BatchLine) bool { return bytes.Contains(l.Body, []byte(text)) })
			if b.ID == r.PathValue("id") && bad {
				fmt.Fprintf(w, `{"id":%q,"object":"batch","status":"failed","errors":null,"output_file_id":null,"error_file_id":null,"request_counts":{"total":0,"completed":0,"failed":0}}`, b.ID)
				return true
			}
		}
		return false
	}
}
