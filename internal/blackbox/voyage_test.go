package blackbox_test

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// atVoyage sends a call to Voyage.
func atVoyage(r *http.Request) {
	u, _ := url.Parse("https://api.voyageai.com" + r.URL.Path)
	r.URL, r.Host = u, u.Host
}

// voyage is a setup whose provider takes the parameters with the batch.
func voyage(server batchtest.Options) setup {
	server.Behavior = batchtest.Voyage()
	return setup{server: server}
}

// anyID matches the id of a line.
var anyID = regexp.MustCompile(`"custom_id":"[^"]*"`)

const (
	documents = `{"input":["a","b"],"model":"voyage-4","input_type":"document","output_dimension":4}`
	reranking = `{"query":"q","documents":["a","b","c"],"model":"rerank-2.5","top_k":2}`
)

// An answer of a batch equals the answer in real time, and a line has the texts only.
func TestVoyage(t *testing.T) {
	for _, tt := range []struct{ path, body, line, params string }{
		{"/embeddings", documents, `{"input":["a","b"]}`, `{"input_type":"document","model":"voyage-4","output_dimension":4}`},
		{"/rerank", reranking, `{"query":"q","documents":["a","b","c"]}`, `{"model":"rerank-2.5","top_k":2}`},
	} {
		voyage(batchtest.Options{}).run(t, tt.path, func(s *scene) {
			batched := s.post(tt.path, tt.body, atVoyage).want(200, s.elapsed())
			if batched.header.Get("Autobatcher-Batch-Id") == "" {
				s.Errorf("the call was not batched: %v", batched.header)
			}
			if b := s.batch(); b.Window != "12h" || b.Endpoint != "/v1"+tt.path {
				s.Errorf("window %q, endpoint %q", b.Window, b.Endpoint)
			}
			want := `{"custom_id":"","body":` + tt.line + `}`
			if got := anyID.ReplaceAllString(string(s.upload().Content), `"custom_id":""`); got != want {
				s.Errorf("line %s, want %s", got, want)
			}
			if got := string(s.srv.Executed()[0].Body); !strings.HasSuffix(got, tt.params[1:]) {
				s.Errorf("executed %s, want the parameters %s", got, tt.params)
			}
			realtime := s.post(tt.path, tt.body, atVoyage, with("Autobatcher-Mode", "realtime")).want(200, s.elapsed())
			if diff := cmp.Diff(realtime.body, batched.body); diff != "" {
				s.Errorf("the answer (-real time +batch):\n%s", diff)
			}
		})
	}
}

// Calls share a batch if their parameters are equal, however they are written.
func TestVoyageParameters(t *testing.T) {
	const document = `{"model":"voyage-4","input_type":"document"}`
	body := func(params, text string) string { return `{"input":"` + text + `",` + params[1:] }
	voyage(batchtest.Options{}).play(t, func(s *scene) {
		var calls []*pending
		for i, params := range []string{
			document, `{"input_type":"document","model":"voyage-4"}`, `{"input_type" : "document", "truncation":null, "model":"x", "mod\u0065l":"voyage-4"}`,
			`{"model":"voyage-4","input_type":"query"}`, `{"model":"voyage-4-lite","input_type":"document"}`,
		} {
			calls = append(calls, s.send("/embeddings", body(params, fmt.Sprint(i)), atVoyage))
		}
		for _, c := range calls {
			c.wait().want(200, s.elapsed())
		}
		var sizes []int
		for _, u := range s.srv.Uploads() {
			sizes = append(sizes, len(u.Lines))
		}
		slices.Sort(sizes) // queues of equal age are sent in any order
		if diff := cmp.Diff([]int{1, 1, 3}, sizes); diff != "" {
			s.Errorf("sizes of the batches (-want +got):\n%s", diff)
		}
		paid := s.srv.PaidPrompts()
		if len(paid) != 5 {
			s.Errorf("paid for %v, want five texts", paid)
		}
		for _, e := range s.srv.Executed() {
			want := map[string]string{"3": "query"}[e.Prompt()]
			if kind := gjson.GetBytes(e.Body, "input_type").String(); want == "query" && kind != want || want == "" && kind != "document" {
				s.Errorf("text %s was executed with the input_type %q", e.Prompt(), kind)
			}
		}
	})
}

func TestVoyageRefusesLongParameters(t *testing.T) {
	voyage(batchtest.Options{}).play(t, func(s *scene) {
		r := s.post("/embeddings", `{"input":"a","model":"m","x":"`+strings.Repeat("x", 5000)+`"}`, atVoyage).want(400, 0)
		if message := r.fails("invalid_request"); !strings.Contains(message, "4096 bytes") || len(s.srv.Requests()) != 0 {
			s.Errorf("%d requests; message %q", len(s.srv.Requests()), message)
		}
		s.post("/embeddings", `{"model":"m","input":"`+strings.Repeat("x", 5000)+`"}`, atVoyage).want(200, s.elapsed())
	})
}

// A line that failed has a message in place of a body, and costs its own caller only. The
// caller gets the message in the shape that SDKs can read.
func TestVoyageFailedLine(t *testing.T) {
	u := voyage(batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		if l.Prompt() == "bad" {
			return batchtest.Outcome{Status: 400, Body: []byte(`{"error":{"message":"too \"long\""}}`)}
		}
		return batchtest.Outcome{}
	}})
	u.play(t, func(s *scene) {
		good, bad := s.send("/embeddings", embeddingBody("good"), atVoyage), s.send("/embeddings", embeddingBody("bad"), atVoyage)
		good.wait().want(200, s.elapsed())
		if r := bad.wait().want(400, s.elapsed()); gjson.Get(r.body, "error.message").String() != `too "long"` {
			s.Errorf("body %s", r.body)
		}
	})
}

// A call that is resubmitted keeps its parameters, and a create without an answer makes one
// batch.
func TestVoyageAgain(t *testing.T) {
	first := true
	u := voyage(batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome {
		never := first
		first = false
		return batchtest.Outcome{Never: never}
	}})
	u.again = true
	u.run(t, "an expired batch", func(s *scene) {
		call := s.send("/embeddings", documents, atVoyage)
		s.until(11 * time.Second)
		if err := s.srv.Expire(s.batch().ID); err != nil {
			s.Fatal(err)
		}
		call.wait().want(200, s.elapsed())
		s.sent(1, 1)
		if e := s.srv.Executed(); len(e) != 1 || gjson.GetBytes(e[0].Body, "input_type").String() != "document" {
			s.Errorf("executed %+v", e)
		}
	})
	for name, fault := range map[string]batchtest.Fault{"the answer is lost": batchtest.LoseAnswer(), "the connection breaks": batchtest.Reset()} {
		voyage(batchtest.Options{}).run(t, name, func(s *scene) {
			s.srv.Control(batchtest.OpCreate, fault)
			s.send("/embeddings", documents, atVoyage).wait().want(200, s.elapsed())
			s.sent(1)
		})
	}
}

// A process that dies leaves its batch to the next process, which answers the retry; a retry
// with other parameters is another call.
func TestVoyageAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, batchtest.Options{Behavior: batchtest.Voyage(), Turnaround: time.Hour})
		ask := func(p *process, body string) *http.Response {
			req, err := http.NewRequestWithContext(t.Context(), "POST", "https://api.voyageai.com/v1/embeddings", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return nil
			}
			req.Header.Set("Authorization", "Bearer sk-test")
			req.Header.Set("Content-Type", "application/json")
			res, err := p.RoundTrip(req)
			if err != nil {
				return nil
			}
			t.Cleanup(func() { res.Body.Close() })
			return res
		}
		dead := f.start(autobatcher.Options{})
		go ask(dead, documents)
		time.Sleep(5 * time.Minute)
		dead.cut()
		next := f.start(autobatcher.Options{})
		done := make(chan *http.Response)
		go func() { done <- ask(next, documents) }()
		other := ask(next, strings.Replace(documents, "document", "query", 1))
		if retried := <-done; retried == nil || other == nil || retried.StatusCode != 200 || other.StatusCode != 200 {
			t.Errorf("%v and %v, want 200", retried, other)
		}
		var kinds []string
		for _, e := range f.srv.Executed() {
			kinds = append(kinds, gjson.GetBytes(e.Body, "input_type").String())
		}
		if diff := cmp.Diff([]string{"document", "query"}, kinds); diff != "" {
			t.Errorf("executed (-want +got):\n%s", diff)
		}
	})
}
