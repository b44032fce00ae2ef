package blackbox_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// rush makes n different calls at once and returns how each ended.
func (s *scene) rush(n int, body func(i int) (path, body string)) []reply {
	s.Helper()
	replies := make([]reply, n)
	var wg sync.WaitGroup
	for i := range replies {
		path, text := body(i)
		req := s.request(s.Context(), path, text)
		wg.Go(func() { replies[i] = s.do(req) })
	}
	wg.Wait()
	return replies
}

// answered checks that every call got an answer of its own.
func (s *scene) answered(replies []reply, says func(i int) string) {
	s.Helper()
	for i, r := range replies {
		if r.err != nil || r.status != 200 || !strings.Contains(r.body, says(i)) {
			s.Fatalf("call %d: status %d, error %v: %.300s; want it to say %q", i, r.status, r.err, r.body, says(i))
		}
	}
}

// numbered is the body of the i-th chat call, and said what it is answered.
func numbered(i int) (path, body string) { return "/chat/completions", chatBody(said(i)) }
func said(i int) string                  { return fmt.Sprintf("number %d,", i) }

// The provider's own numbers, not smaller ones: a file has 5,000 lines at
// SiliconFlow, and 50,000 embedding inputs at OpenAI.
func TestRealLimits(t *testing.T) {
	siliconflow := provider.SiliconFlow()
	setup{
		server:  batchtest.Options{Behavior: batchtest.SiliconFlow()},
		options: autobatcher.Options{Provider: &siliconflow, BatchSize: 1 << 20},
	}.run(t, "one line too many", func(s *scene) {
		s.answered(s.rush(5001, numbered), said)
		s.sent(5000, 1)
	})
	setup{options: autobatcher.Options{BatchSize: 1 << 20}}.run(t, "one embedding input too many", func(s *scene) {
		inputs := func(n int) string { return `{"model":"m","input":["` + strings.Repeat(`a","`, n-1) + `b"]}` }
		replies := s.rush(11, func(i int) (string, string) {
			if i == 10 {
				return "/embeddings", inputs(1)
			}
			return "/embeddings", inputs(5000)
		})
		s.answered(replies, func(int) string { return `"object":"list"` })
		s.sent(10, 1)
	})
	setup{}.run(t, "a call with too many inputs", func(s *scene) {
		s.send("/embeddings", `{"model":"m","input":[`+strings.Repeat(`"a",`, 50_000)+`"b"]}`).want(400, 0).fails("invalid_request")
		if n := len(s.srv.Requests()); n != 0 {
			s.Errorf("%d requests", n)
		}
	})
	doubleword(batchtest.Options{}, autobatcher.Options{}).run(t, "a line over Doubleword's limit", func(s *scene) {
		s.chat(strings.Repeat("x", 10<<20)).want(413, 0).fails("request_too_large")
		if n := len(s.srv.Requests()); n != 0 {
			s.Errorf("%d requests", n)
		}
	})
}

// poisoned is a provider that refuses lines with the word poison: at upload,
// naming the first (Doubleword), or while validating, naming all (OpenAI).
func poisoned(atUpload bool) setup {
	m := batchtest.OpenAI()
	p := provider.OpenAI()
	if atUpload {
		m, p = batchtest.Doubleword(), provider.Doubleword()
	}
	m.MaxLineBytes = 500
	return setup{server: batchtest.Options{Behavior: m}, options: autobatcher.Options{Provider: &p}}
}

var poison = strings.Repeat("poison ", 80)

func TestBadLines(t *testing.T) {
	for name, atUpload := range map[string]bool{"named at upload": true, "named while validating": false} {
		poisoned(atUpload).run(t, name+"/several at once", func(s *scene) {
			bad := map[int]bool{0: true, 3: true, 4: true, 9: true}
			replies := s.rush(10, func(i int) (string, string) {
				if bad[i] {
					return "/chat/completions", chatBody(said(i) + poison)
				}
				return numbered(i)
			})
			for i, r := range replies {
				want := map[bool]int{true: 400, false: 200}[bad[i]]
				if r.status != want || want == 200 && !strings.Contains(r.body, said(i)) {
					s.Errorf("call %d: status %d: %.200s; want %d", i, r.status, r.body, want)
				}
				if want == 400 && !strings.Contains(r.fails(codeOf(r)), "The body has") {
					s.Errorf("call %d does not get the provider's message: %s", i, r.body)
				}
				if want == 400 && r.header.Get("X-Should-Retry") != "false" {
					s.Errorf("call %d may be retried: %v", i, r.header)
				}
			}
			if n := s.count("POST", "/files"); n > 5 {
				s.Errorf("%d uploads for four bad lines", n)
			}
			s.paidOnce()
		})
		poisoned(atUpload).run(t, name+"/every line", func(s *scene) {
			replies := s.rush(5, func(int) (string, string) { return "/chat/completions", chatBody(poison) })
			for _, r := range replies {
				if r.status != 400 {
					s.Errorf("status %d: %s", r.status, r.body)
				}
			}
		})
		poisoned(atUpload).run(t, name+"/whose caller has left", func(s *scene) {
			s.srv.Control(batchtest.OpUpload, batchtest.Delay(time.Minute))
			good, bad := s.chat("good"), s.chat(poison)
			s.until(15 * time.Second)
			bad.leave()
			good.wait().want(200, s.elapsed()).says("good")
		})
	}
}

// codeOf is the code of an error, whatever it is.
func codeOf(r reply) string {
	_, rest, _ := strings.Cut(r.body, `"code":"`)
	code, _, _ := strings.Cut(rest, `"`)
	return code
}

// paidOnce checks that no work was paid for twice.
func (s *scene) paidOnce() {
	s.Helper()
	for work, n := range s.srv.Paid() {
		if n != 1 {
			s.Errorf("work %.8s was paid for %d times", work, n)
		}
	}
}

// Sixty callers with a model that does not exist must not cost the others their
// answers, nor the provider sixty uploads.
func TestManyBadLinesNamedOneByOne(t *testing.T) {
	doubleword(batchtest.Options{Models: []string{"m"}}, autobatcher.Options{}).play(t, func(s *scene) {
		replies := s.rush(120, func(i int) (string, string) {
			path, body := numbered(i)
			if i%2 == 1 {
				body = strings.Replace(body, `"m"`, `"no-such-model"`, 1)
			}
			return path, body
		})
		lost := 0
		for i, r := range replies {
			if i%2 == 0 && r.status != 200 {
				lost++
			}
			if i%2 == 1 && r.status != 400 && r.status != 403 {
				s.Errorf("bad call %d: status %d: %s", i, r.status, r.body)
			}
		}
		if lost > 0 {
			s.Errorf("%d callers lost their answers to the bad lines of others", lost)
		}
		if n := s.count("POST", "/files"); n > 30 {
			s.Errorf("%d uploads to tell one unknown model from another", n)
		}
	})
}

// unnamed makes the server forget which line was bad.
func unnamed(body []byte, _ http.Header) []byte {
	for n := range 100 {
		body = bytes.ReplaceAll(body, fmt.Appendf(nil, `"line":%d,`, n), []byte(`"line":null,`))
	}
	return body
}

func TestABadLineThatIsNotNamed(t *testing.T) {
	for _, n := range []int{1, 2, 7, 64} {
		u := poisoned(false)
		u.run(t, fmt.Sprintf("among %d", n), func(s *scene) {
			s.srv.Keep(batchtest.OpRetrieve, rewrite(unnamed))
			guilty := n * 2 / 3
			replies := s.rush(n, func(i int) (string, string) {
				if i == guilty {
					return "/chat/completions", chatBody(poison)
				}
				return numbered(i)
			})
			for i, r := range replies {
				if i == guilty && (r.status != 400 || !strings.Contains(r.body, "The body has")) || i != guilty && (r.status != 200 || !strings.Contains(r.body, said(i))) {
					s.Errorf("call %d: status %d: %.200s", i, r.status, r.body)
				}
			}
			if uploads := s.count("POST", "/files"); uploads > 13 {
				s.Errorf("%d uploads to find one line of %d", uploads, n)
			}
			s.paidOnce()
		})
	}
	t.Run("at upload", func(t *testing.T) {
		setup{}.play(t, func(s *scene) {
			s.srv.Keep(batchtest.OpUpload, refusePoison(`{"error":{"message":"Invalid file format: the file does not match the expected schema.","type":"invalid_request_error","param":"file","code":"invalid_file"}}`))
			good, bad := s.chat("good"), s.chat("poison")
			good.wait().want(200, s.elapsed()).says("good")
			if r := bad.wait(); r.status != 400 {
				s.Errorf("status %d: %s", r.status, r.body)
			}
		})
	})
}

// refusePoison answers 400 to an upload with a line that says poison.
func refusePoison(body string) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		var content bytes.Buffer
		content.ReadFrom(r.Body)
		if bytes.Contains(content.Bytes(), []byte("poison")) {
			return batchtest.Status(400, nil, body)(w, r)
		}
		clone := r.Clone(r.Context())
		clone.Body = readCloser{&content}
		batchtest.Proceed(w, clone)
		return true
	}
}

type readCloser struct{ *bytes.Buffer }

func (readCloser) Close() error { return nil }

// A refusal that no line causes fails every call of the batch at once, with the reason.
func TestRefusedWhole(t *testing.T) {
	refusal := func(code, text string) string {
		return `{"error":{"message":"` + text + `","type":"t","param":null,"code":"` + code + `"}}`
	}
	for name, tt := range map[string]struct {
		op     batchtest.Op
		status int
		body   string
	}{
		"quota at upload":    {batchtest.OpUpload, 429, refusal("insufficient_quota", "You exceeded your current quota.")},
		"quota at create":    {batchtest.OpCreate, 429, refusal("insufficient_quota", "You exceeded your current quota.")},
		"unverified account": {batchtest.OpCreate, 429, `{"error":"too_many_requests","message":"Unverified accounts may send 1,000 requests per hour.","retry_after_seconds":30}`},
		"spend cap":          {batchtest.OpCreate, 402, "Spend cap of line 1 reached"},
		"balance":            {batchtest.OpUpload, 402, "Insufficient balance"},
		"key":                {batchtest.OpUpload, 401, refusal("invalid_api_key", "Incorrect API key provided.")},
		"permission":         {batchtest.OpCreate, 403, refusal("", "Your project has no access to batches.")},
		"window":             {batchtest.OpCreate, 400, refusal("", "Invalid value: '24h'.")},
	} {
		setup{}.run(t, name, func(s *scene) {
			s.srv.Keep(tt.op, batchtest.Status(tt.status, nil, tt.body))
			for _, r := range s.rush(40, numbered) {
				if r.want(tt.status, 10*time.Second); s.Failed() {
					break
				}
				if r.header.Get("X-Should-Retry") != "false" || !strings.Contains(r.body, `"error"`) {
					s.Errorf("%v: %s", r.header, r.body)
				}
			}
			if n := s.count("POST", "/files"); n != 1 {
				s.Errorf("%d uploads, want one", n)
			}
		})
	}
	for _, code := range []string{"insufficient_quota", "billing_hard_limit_reached", "model_not_found", "empty_file", "too_many_tasks", "something_new"} {
		setup{server: batchtest.Options{Turnaround: time.Hour}}.run(t, "while validating/"+code, func(s *scene) {
			call, other := s.chat("a"), s.chat("b")
			s.until(12 * time.Second)
			if err := s.srv.FailBatch(s.batch().ID, code, "The reason.", 0); err != nil {
				s.Fatal(err)
			}
			for _, c := range []*pending{call, other} {
				if m := c.want(424, 15*time.Second).fails("batch_failed"); !strings.Contains(m, "The reason.") || !strings.Contains(m, code) {
					s.Errorf("message = %s", m)
				}
			}
			s.sent(2)
		})
	}
}

// queueOf makes a provider that holds so many tokens at a time.
func queueOf(tokens int64, tell bool, turnaround time.Duration) setup {
	m := batchtest.OpenAI()
	m.ShowTokenLimit = tell
	return setup{
		server:  batchtest.Options{Behavior: m, MaxEnqueuedTokens: tokens, Turnaround: turnaround},
		options: autobatcher.Options{PollInterval: 30 * time.Second},
	}
}

func failedBatches(s *scene) (n int) {
	for _, b := range s.srv.Batches() {
		if b.Status == "failed" {
			n++
		}
	}
	return n
}

func TestEnqueuedTokenLimit(t *testing.T) {
	long := strings.Repeat("x", 4000) // a thousand tokens
	thousand := func(i int) (string, string) { return "/chat/completions", chatBody(said(i) + long) }
	for name, tell := range map[string]bool{"named": true, "not named": false} {
		u := queueOf(10_500, tell, 10*time.Minute)
		u.run(t, name+"/too much at once", func(s *scene) {
			s.answered(s.rush(20, thousand), said)
			if n := failedBatches(s); n > 4 {
				s.Errorf("%d batches were refused to learn one limit", n)
			}
			s.paidOnce()
		})
		u.run(t, name+"/others run", func(s *scene) {
			first := s.chat("first " + strings.Repeat("x", 32_000))
			s.until(11 * time.Second)
			second := s.chat("second " + strings.Repeat("x", 32_000))
			first.wait().want(200, s.elapsed())
			if r := second.wait(); r.status != 200 || r.at > time.Hour {
				s.Errorf("status %d at %v: %s", r.status, r.at, r.body)
			}
			before := failedBatches(s)
			if before != 1 {
				s.Errorf("%d batches were refused, want one", before)
			}
			// What was learned holds: the next two take their turns.
			third, fourth := s.chat("third "+strings.Repeat("x", 32_000)), (*pending)(nil)
			s.until(s.elapsed() + 11*time.Second)
			fourth = s.chat("fourth " + strings.Repeat("x", 32_000))
			third.wait().want(200, s.elapsed())
			fourth.wait().want(200, s.elapsed())
			if n := failedBatches(s); n != before {
				s.Errorf("%d batches were refused after the limit was learned", n-before)
			}
		})
	}
	u := queueOf(10_500, true, 10*time.Minute)
	u.run(t, "later batches are made to fit", func(s *scene) {
		s.answered(s.rush(20, thousand), said)
		before := failedBatches(s)
		s.answered(s.rush(30, thousand), said)
		if n := failedBatches(s) - before; n > 0 {
			s.Errorf("%d batches were refused though the limit was known", n)
		}
	})
	u.run(t, "another model and another key are not held back", func(s *scene) {
		first := s.chat("first " + strings.Repeat("x", 40_000))
		s.until(11 * time.Second)
		second := s.chat("second " + strings.Repeat("x", 40_000))
		s.until(2 * time.Minute)
		body := strings.Replace(chatBody("other "+strings.Repeat("x", 40_000)), `"m"`, `"other"`, 1)
		model, owner := s.send("/chat/completions", body), s.chat("owner "+strings.Repeat("x", 40_000), key("sk-other"))
		for _, c := range []*pending{model, owner} {
			if r := c.wait(); r.status != 200 || r.at > 13*time.Minute {
				s.Errorf("status %d at %v", r.status, r.at)
			}
		}
		first.wait()
		second.wait().want(200, s.elapsed())
	})
	u.run(t, "a line that can never fit", func(s *scene) {
		s.chat("first")
		r := s.chat(strings.Repeat("x", 80_000)).wait()
		if r.status < 400 || r.status > 499 || r.at > 25*time.Hour {
			s.Errorf("status %d at %v; want an error within a day: %.200s", r.status, r.at, r.body)
		}
		if n := s.count("POST", "/files"); n > 60 {
			s.Errorf("%d uploads of a line that can never fit", n)
		}
	})
	u.run(t, "the way out while held back", func(s *scene) {
		s.chat("first " + strings.Repeat("x", 32_000))
		s.until(11 * time.Second)
		second := s.chat("second "+strings.Repeat("x", 32_000), with("Autobatcher-Deadline", "3m"))
		second.want(424, 3*time.Minute+11*time.Second).fails("batch_deadline_exceeded")
	})
}

// A limit that somebody else's batches made tight for an hour must not make
// batches tiny for ever.
func TestTheTokenLimitIsLearnedAnew(t *testing.T) {
	setup{options: autobatcher.Options{PollInterval: time.Minute}}.play(t, func(s *scene) {
		loosen := s.srv.Keep(batchtest.OpRetrieve, func(w http.ResponseWriter, r *http.Request) bool {
			id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
			return batchtest.Status(200, nil, `{"id":"`+id+`","object":"batch","status":"failed","errors":{"object":"list","data":[{"code":"token_limit_exceeded","message":"Enqueued token limit reached.","line":null,"param":null}]}}`)(w, r)
		})
		early := make(chan []reply, 1)
		go func() { early <- s.rush(8, numbered) }()
		s.until(2 * time.Hour)
		loosen()
		<-early
		s.until(12 * time.Hour)
		before := len(s.srv.Batches())
		s.rush(100, numbered)
		s.rush(100, numbered)
		if n := len(s.srv.Batches()) - before; n > 20 {
			s.Errorf("%d batches for two windows of a hundred calls, ten hours after the queue was full", n)
		}
	})
}

func TestCreationsPerHour(t *testing.T) {
	m, p := batchtest.OpenAI(), provider.OpenAI()
	m.CreationsPerHour, p.CreationsPerHour = 3, 3
	u := setup{server: batchtest.Options{Behavior: m}, options: autobatcher.Options{Provider: &p, BatchSize: 1}}
	u.run(t, "never refused", func(s *scene) {
		replies := s.rush(7, numbered)
		s.answered(replies, said)
		for _, b := range s.srv.Batches() {
			if at := b.Created.Sub(s.begin) / time.Hour; at > 2 {
				s.Errorf("created at %v", b.Created.Sub(s.begin))
			}
		}
		for _, r := range s.srv.Requests() {
			if r.Status == 429 {
				s.Errorf("%s %s was refused", r.Method, r.Path)
			}
		}
	})
	u.run(t, "each key for itself", func(s *scene) {
		s.rush(3, numbered)
		if r := s.chat("a", key("sk-other")).wait(); r.status != 200 || r.at > time.Minute {
			s.Errorf("status %d at %v", r.status, r.at)
		}
	})
	u.run(t, "a call that left before its turn is never sent", func(s *scene) {
		s.rush(3, numbered)
		late := s.chat("late")
		s.until(10 * time.Minute)
		late.leave()
		s.until(3 * time.Hour)
		if n := len(s.srv.Batches()); n != 3 {
			s.Errorf("%d batches, want three: the fourth call's caller had gone before it was sent", n)
		}
	})
	u.run(t, "a deadline that comes before the turn", func(s *scene) {
		s.rush(3, numbered)
		began := s.elapsed()
		m := s.chat("late", with("Autobatcher-Deadline", "10m")).want(424, began+10*time.Minute).fails("batch_deadline_exceeded")
		if !strings.Contains(m, "before the call was sent") {
			s.Errorf("message = %s", m)
		}
		s.until(3 * time.Hour)
		if n := len(s.srv.Batches()); n != 3 {
			s.Errorf("%d batches, want three: the caller's error says that the call was not sent", n)
		}
	})
}

// Retry-After is kept in each of its three spellings, while submitting and
// while watching.
func TestRetryAfter(t *testing.T) {
	limited := func(s *scene, name, value string) batchtest.Fault {
		return batchtest.Status(429, http.Header{name: {value}}, `{"error":{"message":"slow down","type":"t","param":null,"code":"rate_limit_exceeded"}}`)
	}
	for name, header := range map[string]func(s *scene) (string, string){
		"seconds":      func(*scene) (string, string) { return "Retry-After", "120" },
		"milliseconds": func(*scene) (string, string) { return "Retry-After-Ms", "120000" },
		"a date": func(s *scene) (string, string) {
			return "Retry-After", s.begin.Add(132 * time.Second).UTC().Format(http.TimeFormat)
		},
	} {
		for op, moment := range map[batchtest.Op]time.Duration{
			batchtest.OpUpload: 10 * time.Second, batchtest.OpCreate: 10 * time.Second, batchtest.OpRetrieve: 15 * time.Second,
		} {
			setup{}.run(t, name+"/"+string(op), func(s *scene) {
				field, value := header(s)
				s.srv.Control(op, limited(s, field, value))
				r := s.chat("a").wait()
				earliest := min(moment+120*time.Second, 132*time.Second)
				if r.status != 200 || r.at < earliest || r.at > earliest+20*time.Second {
					s.Errorf("status %d at %v, want not before %v and soon after", r.status, r.at, earliest)
				}
			})
		}
	}
}

// Clients that were rate limited at the same moment retry at different moments.
func TestRetriesAreSpread(t *testing.T) {
	moments := map[time.Duration]bool{}
	for range 8 {
		setup{}.play(t, func(s *scene) {
			s.srv.Control(batchtest.OpCreate, batchtest.RateLimit(time.Minute))
			moments[s.chat("a").wait().at] = true
		})
	}
	if len(moments) < 4 {
		t.Errorf("eight clients came back at %d different moments", len(moments))
	}
}

// manyBatches is a setup of which each call is a batch that takes a while.
func manyBatches() setup {
	return setup{
		server:  batchtest.Options{Turnaround: 5 * time.Minute},
		options: autobatcher.Options{BatchSize: 1, PollInterval: 20 * time.Second},
	}
}

func TestOneListingForManyBatches(t *testing.T) {
	manyBatches().run(t, "instead of a hundred retrieves", func(s *scene) {
		s.answered(s.rush(100, numbered), said)
		retrieved := s.count("GET", "/batches/")
		listed := s.count("GET", "/batches") - retrieved
		if retrieved > 20 || listed == 0 || listed > 60 {
			s.Errorf("%d retrieves and %d listings of a hundred batches in five minutes", retrieved, listed)
		}
	})
	manyBatches().run(t, "each key its own", func(s *scene) {
		var calls []*pending
		for i := range 24 {
			calls = append(calls, s.chat(said(i), key(fmt.Sprintf("sk-%d", i%2))))
		}
		for i, c := range calls {
			c.wait().want(200, s.elapsed()).says(said(i))
		}
	})
	for name, fault := range map[string]batchtest.Fault{
		"no such list":    batchtest.Status(404, nil, `{"error":{"message":"Not found","type":"t","param":null,"code":null}}`),
		"not allowed":     batchtest.Status(405, nil, `Method Not Allowed`),
		"forbidden":       batchtest.Status(403, nil, `{"error":{"message":"no","type":"t","param":null,"code":null}}`),
		"broken":          batchtest.Status(500, nil, `oops`),
		"reset":           batchtest.Reset(),
		"silent":          batchtest.Hang(),
		"odd":             batchtest.Status(200, nil, `{"data":7}`),
		"nonsense":        batchtest.HTML(200),
		"an empty list":   batchtest.Status(200, nil, `{"object":"list","data":[],"has_more":false}`),
		"strangers alone": batchtest.Status(200, nil, `{"object":"list","data":[{"id":"batch_x","status":"completed"}],"has_more":true}`),
	} {
		manyBatches().run(t, "a list that is of no use/"+name, func(s *scene) {
			s.srv.Keep(batchtest.OpList, fault)
			for i, r := range s.rush(12, numbered) {
				if r.status != 200 || r.at > 30*time.Minute {
					s.Errorf("call %d: status %d at %v: %.200s", i, r.status, r.at, r.body)
				}
			}
		})
	}
	manyBatches().run(t, "hidden behind many others", func(s *scene) {
		mine := make(chan []reply, 1)
		go func() { mine <- s.rush(12, numbered) }()
		s.until(time.Minute)
		// The same account's other program makes three hundred batches meanwhile.
		other, err := autobatcher.New(autobatcher.Options{Base: s.srv.Transport(), BatchSize: 1, PollInterval: 4 * time.Minute})
		if err != nil {
			s.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 300 {
			req := s.request(s.Context(), "/chat/completions", chatBody(fmt.Sprint("theirs ", i)))
			wg.Go(func() {
				if res, err := other.RoundTrip(req); err == nil {
					res.Body.Close()
				}
			})
		}
		replies := <-mine
		s.answered(replies, said)
		for _, r := range replies {
			if r.at > 7*time.Minute {
				s.Errorf("answered at %v", r.at)
			}
		}
		wg.Wait()
		other.Close()
	})
}

// A batch whose callers went away while it was uploaded is not created. One of
// them may come back in the very moment of that.
func TestARetryOfABatchThatHadNoCallers(t *testing.T) {
	setup{options: autobatcher.Options{BatchWindow: time.Second}}.play(t, func(s *scene) {
		s.srv.Control(batchtest.OpUpload, batchtest.Delay(10*time.Second))
		s.srv.Control(batchtest.OpDeleteFile, batchtest.Delay(40*time.Second))
		first := s.chat("a")
		s.until(5 * time.Second)
		first.leave()
		s.until(20 * time.Second) // its file is being deleted
		s.chat("a").wait().want(200, s.elapsed()).says("a")
		s.sent(1)
	})
}

// A large batch that waits for room in the provider's queue is not overtaken
// for ever by small ones.
func TestALargeBatchGetsItsTurn(t *testing.T) {
	u := queueOf(10_500, true, 30*time.Minute)
	u.options.BatchSize = 1
	u.play(t, func(s *scene) {
		first := s.chat("first " + strings.Repeat("x", 32_000))
		s.until(time.Second)
		s.chat("second "+strings.Repeat("x", 32_000)).wait().want(200, s.elapsed()) // the limit is learned
		first.wait()
		began := s.elapsed()
		small := func(i int) *pending { return s.chat(fmt.Sprint("small ", i) + strings.Repeat("x", 16_000)) }
		calls := []*pending{small(0), small(1)}
		large := s.chat("large " + strings.Repeat("x", 32_000))
		for i := 2; i < 20; i++ {
			s.until(s.elapsed() + 12*time.Minute)
			calls = append(calls, small(i))
		}
		if r := large.wait(); r.status != 200 || r.at-began > 2*time.Hour {
			s.Errorf("status %d after %v; want its turn within two hours", r.status, r.at-began)
		}
		for _, c := range calls {
			if r := c.wait(); r.status != 200 {
				s.Errorf("status %d: %s", r.status, r.body)
			}
		}
	})
}

// An error file that is named, and empty, does not make a refused batch one
// that ran.
func TestRefusedBatchWithAnErrorFile(t *testing.T) {
	u := poisoned(false)
	u.run(t, "a bad line", func(s *scene) {
		s.srv.Control(batchtest.OpRetrieve, field("error_file_id", `"file-none"`))
		good, bad := s.chat("good"), s.chat(poison)
		if r := bad.wait(); r.status != 400 {
			s.Errorf("status %d: %s", r.status, r.body)
		}
		good.wait().want(200, s.elapsed()).says("good")
	})
	u = queueOf(10_500, true, 10*time.Minute)
	u.run(t, "too many tokens", func(s *scene) {
		first := s.chat("first " + strings.Repeat("x", 32_000))
		s.until(11 * time.Second)
		second := s.chat("second " + strings.Repeat("x", 32_000))
		s.until(45 * time.Second) // between the first's poll and the second's
		s.srv.Control(batchtest.OpRetrieve, field("error_file_id", `"file-none"`))
		first.wait().want(200, s.elapsed())
		if r := second.wait(); r.status != 200 {
			s.Errorf("status %d: %s", r.status, r.body)
		}
	})
}
