package blackbox_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// The tests in this file repeat reports from public issue trackers about other batch
// clients.

// A file that is too large for the provider or for a gateway is divided, whatever form
// the refusal has (bespokelabsai/curator#610 and #111, openclaw/openclaw#89138).
func TestRefusalsOfALargeFile(t *testing.T) {
	for name, refusal := range map[string]struct {
		status int
		body   string
	}{
		"page of a gateway": {413, "<html><head><title>413 Request Entity Too Large</title></head></html>"},
		"gateway in JSON":   {413, `{"error":{"message":"Request body too large. Maximum allowed: 10 MB","type":"payload_too_large","code":"PAYLOAD_TOO_LARGE"}}`},
		"OpenAI":            {400, `{"error":{"message":"File is too large.","type":"invalid_request_error","param":null,"code":null}}`},
	} {
		limit := func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				if strings.HasSuffix(req.URL.Path, "/files") && req.Method == http.MethodPost {
					body, err := io.ReadAll(req.Body)
					if err != nil {
						return nil, err
					}
					if len(body) > 1<<20 {
						return &http.Response{StatusCode: refusal.status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(refusal.body)), Request: req}, nil
					}
					req = req.Clone(req.Context())
					req.Body = io.NopCloser(strings.NewReader(string(body)))
				}
				return next.RoundTrip(req)
			})
		}
		setup{base: limit}.run(t, name, func(s *scene) {
			pad := strings.Repeat("x", 60_000)
			s.answered(s.rush(30, func(i int) (string, string) { return "/chat/completions", chatBody(said(i) + pad) }), said)
			if n := len(s.srv.Batches()); n > 4 {
				s.Errorf("%d batches, want the file in halves", n)
			}
			s.paidOnce()
		})
	}
}

// A batch that expires has an output file of what it finished, and an error file of the
// rest (warmbly/warmbly#333, bespokelabsai/curator#226): what is finished is delivered,
// and only the rest is sent again, once.
func TestExpiredWithOneResult(t *testing.T) {
	for _, resubmits := range []int{-1, 1} {
		u := setup{options: autobatcher.Options{Resubmits: resubmits}, server: batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
			return batchtest.Outcome{Never: !strings.Contains(string(l.Body), "number 3,")}
		}}}
		u.run(t, fmt.Sprint("resubmits ", resubmits), func(s *scene) {
			for i, r := range s.rush(10, numbered) {
				if i == 3 {
					r.want(200, r.at).says(said(3))
					continue
				}
				if r.status != 424 || r.header.Get("X-Should-Retry") != "false" || r.header.Get("Retry-After") != "" {
					s.Errorf("call %d: %d %v", i, r.status, r.header)
				}
				r.fails("batch_expired")
			}
			if resubmits == 1 {
				s.sent(10, 9)
			} else {
				s.sent(10)
			}
			s.paidOnce()
		})
	}
}

// The results name a line once more as expired that they have answered: the paid answer
// counts.
func TestAnAnsweredLineThatExpires(t *testing.T) {
	setup{again: true}.play(t, func(s *scene) {
		s.srv.Keep(batchtest.OpContent, rewriteOutput(func(body []byte, _ http.Header) []byte {
			var failures strings.Builder
			for line := range strings.Lines(string(body)) {
				_, rest, _ := strings.Cut(line, `"custom_id":`)
				id, _, _ := strings.Cut(rest, ",")
				fmt.Fprintf(&failures, `{"id":"x","custom_id":%s,"response":null,"error":{"code":"batch_expired","message":"too late"}}`+"\n", id)
			}
			return []byte(string(body) + failures.String())
		}))
		for i, r := range s.rush(3, numbered) {
			r.want(200, r.at).says(said(i))
		}
		s.sent(3)
		s.paidOnce()
	})
}

// No custom id is used twice, in one batch or in two: servers confuse equal ids, also
// of different batches (sgl-project/sglang#1415 and #4026, llm-d/llm-d-batch-gateway#147).
func TestCustomIDsAreUnique(t *testing.T) {
	setup{options: autobatcher.Options{BatchSize: 10}}.play(t, func(s *scene) {
		seen := map[string]bool{}
		for _, r := range s.rush(100, func(int) (string, string) { return "/chat/completions", chatBody("the same text") }) {
			id := r.header.Get("Autobatcher-Custom-Id")
			if r.status != 200 || id == "" || seen[id] {
				s.Errorf("%d, custom id %q", r.status, id)
			}
			seen[id] = true
		}
	})
}
