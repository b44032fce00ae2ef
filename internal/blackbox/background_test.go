package blackbox_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
)

const inBackground = `{"model":"m","background":true,"metadata":{"k":"v"},"input":"hello"}`

// ask asks for an answer by its id.
func (s *scene) ask(tr *autobatcher.Transport, method, path string, edits ...edit) reply {
	s.Helper()
	req := s.request(context.Background(), path, "", edits...)
	req.Method, req.Body, req.GetBody, req.ContentLength = method, nil, nil, 0
	other := &scene{T: s.T, tr: tr, begin: s.begin}
	return other.do(req)
}

// submit makes a call in the background, and returns its id.
func (s *scene) submit(edits ...edit) string {
	s.Helper()
	r := s.post("/responses", inBackground, edits...)
	r.state("queued")
	return gjson.Get(r.body, "id").String()
}

// state checks that a reply is a response of that status.
func (r reply) state(want string) reply {
	r.t.Helper()
	got := gjson.Parse(r.body)
	if r.err != nil || r.status != 200 || got.Get("status").String() != want || got.Get("object").String() != "response" || !got.Get("background").Bool() {
		r.t.Errorf("status %d, error %v, body %.300s; want a response that is %s", r.status, r.err, r.body, want)
	}
	return r
}

func TestBackground(t *testing.T) {
	hour := batchtest.Options{Turnaround: time.Hour}
	setup{server: hour}.run(t, "the answer comes later, as often as asked for", func(s *scene) {
		r := s.post("/responses", inBackground).want(200, 10*time.Second)
		r.state("queued")
		id := gjson.Get(r.body, "id").String()
		if !strings.HasPrefix(id, "resp_autobatcher_") || gjson.Get(r.body, "metadata.k").String() != "v" || gjson.Get(r.body, "model").String() != "m" {
			s.Errorf("response = %s", r.body)
		}
		s.ask(s.tr, "GET", "/responses/"+id).state("in_progress")
		s.until(2 * time.Hour)
		for range 3 {
			got := s.ask(s.tr, "GET", "/responses/"+id).state("completed").says("hello")
			if gjson.Get(got.body, "id").String() != id || gjson.Get(got.body, "metadata.k").String() != "v" || got.header.Get("Autobatcher-Batch-Id") != s.batch().ID {
				s.Errorf("id = %s, metadata %s, header %v", gjson.Get(got.body, "id"), gjson.Get(got.body, "metadata"), got.header)
			}
		}
		if text := string(s.upload().Content); strings.Contains(text, "background") {
			s.Errorf("line = %s", text)
		}
		s.ask(s.tr, "POST", "/responses/"+id+"/cancel").state("completed") // too late
		for _, other := range []edit{key("other"), with("OpenAI-Project", "other")} {
			s.ask(s.tr, "GET", "/responses/"+id, other).fails("response_not_found")
			s.ask(s.tr, "POST", "/responses/"+id+"/cancel", other).fails("response_not_found")
			s.ask(s.tr, "DELETE", "/responses/"+id, other).fails("response_not_found")
		}
		if r := s.ask(s.tr, "DELETE", "/responses/"+id); r.status != 200 || !gjson.Get(r.body, "deleted").Bool() {
			s.Errorf("DELETE: %d %s", r.status, r.body)
		}
		if r := s.ask(s.tr, "GET", "/responses/"+id); r.status != 404 {
			s.Errorf("after DELETE: %d %s", r.status, r.body)
		}
		s.sent(1)
	})
	setup{server: hour}.run(t, "a call that is cancelled", func(s *scene) {
		id := s.submit()
		r := s.ask(s.tr, "POST", "/responses/"+id+"/cancel").state("cancelled")
		if gjson.Get(r.body, "metadata.k").String() != "v" {
			s.Errorf("metadata = %s", r.body)
		}
		s.until(10 * time.Minute)
		s.ask(s.tr, "GET", "/responses/"+id).state("cancelled")
		if b := s.batch(); b.Status != "cancelled" {
			s.Errorf("the batch is %s", b.Status)
		}
	})
	setup{server: batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Never: true} }}}.run(t, "a batch without an answer", func(s *scene) {
		id := s.submit()
		s.until(24*time.Hour - time.Minute)
		s.ask(s.tr, "GET", "/responses/"+id).state("in_progress")
		s.srv.Expire(s.batch().ID)
		s.until(24 * time.Hour)
		r := s.ask(s.tr, "GET", "/responses/"+id).state("failed")
		if gjson.Get(r.body, "error.code").String() != "batch_expired" {
			s.Errorf("error = %s", r.body)
		}
	})
	setup{}.run(t, "a call that cannot be batched", func(s *scene) {
		s.post("/responses", `{"model":"m","background":true,`).want(400, 0).fails("invalid_request")
		s.post("/responses", `{"background":true,"input":"a"}`).want(400, 0).fails("invalid_request")
	})
	setup{server: hour}.run(t, "equal calls are different calls", func(s *scene) {
		one, two := s.send("/responses", inBackground), s.send("/responses", inBackground)
		a, b := gjson.Get(one.wait().body, "id").String(), gjson.Get(two.wait().body, "id").String()
		if a == b || a == "" {
			s.Errorf("ids %s and %s", a, b)
		}
		s.sent(2)
	})
	setup{server: hour}.run(t, "a caller that left gets its id", func(s *scene) {
		first := s.send("/responses", inBackground)
		first.left()
		s.submit()
		s.sent(1)
	})
	setup{server: hour}.run(t, "a stream is held", func(s *scene) {
		r := s.post("/responses", `{"model":"m","background":true,"stream":true,"input":"hello"}`)
		if !strings.Contains(r.body, "response.completed") || r.at < time.Hour {
			s.Errorf("after %v: %.300s", r.at, r.body)
		}
	})
	setup{server: hour, options: autobatcher.Options{KeepFor: -1}}.run(t, "nothing is kept", func(s *scene) {
		s.post("/responses", inBackground).want(200, 0) // passes through
	})
}

// A question does not keep an answer for longer, also if there are many questions.
func TestQuestionsDoNotKeepAnAnswer(t *testing.T) {
	setup{server: batchtest.Options{Turnaround: 3 * time.Hour}, options: autobatcher.Options{KeepFor: time.Hour, PollInterval: time.Minute}}.run(t, "without a journal", func(s *scene) {
		id := s.send("/responses", inBackground).wait().id()
		for _, tt := range []struct {
			at     time.Duration
			status int
		}{{10 * time.Minute, 200}, {30 * time.Minute, 200}, {59 * time.Minute, 200}, {62 * time.Minute, 404}} {
			s.until(3*time.Hour + tt.at)
			if r := s.ask(s.tr, "GET", "/responses/"+id); r.status != tt.status {
				s.Errorf("%d, %v after the end of the batch, want %d", r.status, tt.at, tt.status)
			}
		}
	})
}

// A call in the background runs as long as its batch, also beyond KeepFor, and the answer
// is there for at least KeepFor from then on.
func TestBackgroundKeepsAnswersFromTheEnd(t *testing.T) {
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name       string
		turnaround time.Duration
		keepFor    time.Duration
		journal    bool
		restart    bool          // the first process ends while the batch runs
		last       time.Duration // from the end on, that the answer is there for certain
	}{
		{"past a day", 26 * time.Hour, 0, false, false, day - time.Minute},
		{"past a day, with a journal", 26 * time.Hour, 0, true, false, day - time.Minute},
		{"past a day, at another process", 26 * time.Hour, 0, true, true, day - time.Minute},
		{"past a short time", 3 * time.Hour, time.Hour, false, false, 59 * time.Minute},
		{"past a short time, with a journal", 3 * time.Hour, time.Hour, true, false, 59 * time.Minute},
		{"past a short time, at another process", 3 * time.Hour, time.Hour, true, true, 59 * time.Minute},
	} {
		o := autobatcher.Options{CompletionWindow: "24h", KeepFor: tt.keepFor, PollInterval: time.Minute}
		if tt.journal {
			o.Journal = journal.NewMemory()
		}
		u := doubleword(batchtest.Options{Turnaround: tt.turnaround}, o)
		u.run(t, tt.name, func(s *scene) {
			tr, calls := s.tr, []*pending{s.send("/responses", inBackground)}
			if tt.journal { // without, the answer is kept from its arrival on, which may come before the end of a batch of two
				calls = append(calls, s.send("/responses", inBackground))
			}
			id := calls[0].wait().id()
			end := s.elapsed() + tt.turnaround
			s.until(end / 2)
			s.ask(tr, "GET", "/responses/"+id).state("in_progress")
			if tt.restart {
				tr.Close()
				tr = s.another(u.options)
			}
			for _, c := range calls[1:] { // at another process, no caller waits for the batch then
				s.ask(tr, "POST", "/responses/"+c.wait().id()+"/cancel").state("cancelled")
			}
			for _, at := range []time.Duration{end + 5*time.Minute, end + tt.last} {
				s.until(at)
				s.ask(tr, "GET", "/responses/"+id).state("completed").says("hello")
			}
			s.until(end + 3*day) // the journal forgets batches once an hour
			if r := s.ask(tr, "GET", "/responses/"+id); r.status != 404 {
				s.Errorf("three days after the end: %d %.200s", r.status, r.body)
			}
			s.sent(len(calls))
		})
	}
}

func TestBackgroundOutlivesItsProcess(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cancels bool
		end     func(*autobatcher.Transport)
	}{
		{"Close", true, func(tr *autobatcher.Transport) { tr.Close() }},
		{"Shutdown", true, func(tr *autobatcher.Transport) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := tr.Shutdown(ctx); err != nil {
				t.Error(err)
			}
		}},
	} {
		store := journal.NewMemory()
		setup{server: batchtest.Options{Turnaround: time.Hour}, options: autobatcher.Options{Journal: store, CancelOnClose: tt.cancels}}.run(t, tt.name, func(s *scene) {
			first, second := s.send("/responses", inBackground), s.send("/responses", inBackground, with("Idempotency-Key", "k"))
			one, two := gjson.Get(first.wait().body, "id").String(), gjson.Get(second.wait().body, "id").String()
			if again := s.submit(with("Idempotency-Key", "k")); again != two {
				s.Errorf("with the same key: %s, then %s", two, again)
			}
			tt.end(s.tr)
			next := s.another(autobatcher.Options{Journal: store})
			s.until(30 * time.Minute)
			s.ask(next, "POST", "/responses/"+two+"/cancel").state("cancelled")
			s.until(40 * time.Minute) // nobody here waits for the other line of the batch
			s.ask(next, "GET", "/responses/"+one).state("in_progress")
			s.until(3 * time.Hour)
			s.ask(next, "GET", "/responses/"+one).state("completed").says("hello")
			s.ask(next, "GET", "/responses/"+one).state("completed").says("hello")
			third := s.another(autobatcher.Options{Journal: store})
			s.ask(third, "GET", "/responses/"+one).state("completed").says("hello")
			s.ask(third, "DELETE", "/responses/"+one)
			s.until(4 * time.Hour)
			for _, tr := range []*autobatcher.Transport{next, third} {
				if r := s.ask(tr, "GET", "/responses/"+one); r.status != 404 {
					s.Errorf("after DELETE: %d %s", r.status, r.body)
				}
			}
			s.sent(2)
		})
	}
}

func TestBackgroundAtAnotherReplica(t *testing.T) {
	store := journal.NewMemory()
	o := autobatcher.Options{Journal: store}
	setup{server: batchtest.Options{Turnaround: time.Hour}, options: o}.play(t, func(s *scene) {
		other := s.another(o)
		one, two, three := s.send("/responses", inBackground), s.send("/responses", inBackground), s.send("/responses", inBackground)
		a, b, c := gjson.Get(one.wait().body, "id").String(), gjson.Get(two.wait().body, "id").String(), gjson.Get(three.wait().body, "id").String()
		s.ask(other, "GET", "/responses/"+a).state("in_progress")
		s.until(5 * time.Minute)
		s.ask(other, "POST", "/responses/"+b+"/cancel").state("cancelled")
		s.ask(other, "DELETE", "/responses/"+c)
		s.until(10 * time.Minute)
		for _, id := range []string{b, c} {
			if r := s.ask(s.tr, "GET", "/responses/"+id); r.status != 404 {
				s.Errorf("%s was withdrawn at another replica: %d %s", id, r.status, r.body)
			}
		}
		s.until(2 * time.Hour)
		for range 2 {
			s.ask(other, "GET", "/responses/"+a).state("completed").says("hello")
			s.ask(s.tr, "GET", "/responses/"+a).state("completed").says("hello")
		}
		s.sent(3)
	})
}

func TestRespondAsync(t *testing.T) {
	setup{server: batchtest.Options{Turnaround: time.Hour}}.play(t, func(s *scene) {
		r := s.post("/chat/completions", chatBody("hello"), with("Prefer", "wait=1, respond-async")).want(202, 10*time.Second)
		location, err := r.res.Location() // relative to the call
		if err != nil {
			s.Fatal(err)
		}
		place := strings.TrimPrefix(location.String(), s.srv.URL)
		if !strings.HasPrefix(place, "/chat/completions/call_autobatcher_") || gjson.Get(r.body, "location").String() != r.header.Get("Location") || r.header.Get("Preference-Applied") != "respond-async" {
			s.Fatalf("header = %v", r.header)
		}
		s.ask(s.tr, "GET", place).want(202, 10*time.Second)
		s.until(2 * time.Hour)
		got := s.ask(s.tr, "GET", place).want(200, 2*time.Hour).says("hello")
		if gjson.Get(got.body, "object").String() != "chat.completion" || got.header.Get("Content-Type") != "application/json" {
			s.Errorf("answer = %s %v", got.body, got.header)
		}
		if r := s.ask(s.tr, "DELETE", place); r.status != 200 || r.header.Get("Content-Type") != "application/json" {
			s.Errorf("DELETE: %d %s", r.status, r.body)
		}
		s.ask(s.tr, "GET", place).fails("response_not_found")
	})
}

// another returns another Transport in front of the provider.
func (s *scene) another(o autobatcher.Options) *autobatcher.Transport {
	s.Helper()
	o.Base, o.Resubmits, o.QuietAfter = s.srv.Transport(), -1, -1
	tr, err := autobatcher.New(o)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { tr.Close() })
	return tr
}
