package blackbox_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

func (r reply) id() string { return gjson.Get(r.body, "id").String() }

// A call that a client repeats, because it did not get the id, is paid for once.
func TestBackgroundCallsThatAreRepeated(t *testing.T) {
	hour := setup{server: batchtest.Options{Turnaround: time.Hour}}
	keyed := func(name string) edit { return with("Idempotency-Key", name) }
	hour.run(t, "the first attempt leaves while the second waits", func(s *scene) {
		first, second := s.send("/responses", inBackground, keyed("k")), s.send("/responses", inBackground, keyed("k"))
		first.left()
		id := second.wait().id()
		s.until(3 * time.Hour)
		s.ask(s.tr, "GET", "/responses/"+id).state("completed").says("hello")
		s.sent(1)
	})
	hour.run(t, "two equal calls", func(s *scene) {
		one, two := s.send("/responses", inBackground), s.send("/responses", inBackground)
		one.left()
		two.left()
		one, two = s.send("/responses", inBackground), s.send("/responses", inBackground)
		a, b := one.wait().id(), two.wait().id()
		s.until(3 * time.Hour)
		for _, id := range []string{a, b} {
			s.ask(s.tr, "GET", "/responses/"+id).state("completed").says("hello")
		}
		if a == b {
			s.Errorf("both calls have the id %s", a)
		}
		s.sent(2)
	})
	hour.run(t, "a call that nobody repeats", func(s *scene) {
		s.send("/responses", inBackground).left()
		s.until(30 * time.Minute)
		if b := s.batch(); b.Status != "cancelled" {
			s.Errorf("the batch is %s", b.Status)
		}
	})
	hour.run(t, "an equal call with another key", func(s *scene) {
		s.send("/responses", inBackground, keyed("one")).left()
		again, other := s.send("/responses", inBackground, keyed("two")), s.send("/responses", inBackground, keyed("one"))
		if a, b := again.wait().id(), other.wait().id(); a == b {
			s.Errorf("calls with different keys have the id %s", a)
		}
		s.sent(2)
	})
	hour.run(t, "another call with the same key", func(s *scene) {
		s.submit(keyed("k"))
		if r := s.post("/responses", strings.Replace(inBackground, "hello", "bye", 1), keyed("k")); r.status != 422 {
			s.Errorf("%d %s", r.status, r.body)
		}
		s.sent(1)
	})
	hour.run(t, "a call that was cancelled", func(s *scene) {
		id := s.submit(keyed("k"))
		s.ask(s.tr, "POST", "/responses/"+id+"/cancel").state("cancelled")
		if r := s.post("/responses", inBackground, keyed("k")).state("cancelled"); r.id() != id {
			s.Errorf("the id is %s, then %s", id, r.id())
		}
		s.until(time.Hour)
		s.sent(1)
	})
	hour.run(t, "a call that was deleted", func(s *scene) {
		id := s.submit(keyed("k"))
		s.ask(s.tr, "DELETE", "/responses/"+id)
		s.submit(keyed("k"))
		s.until(3 * time.Hour)
		s.ask(s.tr, "GET", "/responses/"+id).state("completed").says("hello")
	})
	store := journal.NewMemory()
	hour.options.Journal = store
	hour.run(t, "at another replica", func(s *scene) {
		other := &scene{T: s.T, srv: s.srv, tr: s.another(autobatcher.Options{Journal: store}), begin: s.begin}
		first := s.submit(keyed("k"))
		if second := other.submit(keyed("k")); second != first {
			s.Errorf("ids %s and %s", first, second)
		}
		s.until(3 * time.Hour)
		if third := other.submit(keyed("k")); third != first {
			s.Errorf("ids %s and %s", first, third)
		}
		s.ask(other.tr, "GET", "/responses/"+first).state("completed").says("hello")
		s.sent(1)
	})
}

// A retry at another replica finds the call, however long the batch takes to be created, and
// gets an id that stays.
func TestBackgroundCallsThatAreRepeatedElsewhere(t *testing.T) {
	keyed := with("Idempotency-Key", "k")
	play := func(name string, server batchtest.Options, script func(s, other *scene)) {
		store := journal.NewMemory()
		o := autobatcher.Options{Journal: store}
		setup{server: server, options: o}.run(t, name, func(s *scene) {
			script(s, &scene{T: s.T, srv: s.srv, tr: s.another(o), begin: s.begin})
		})
	}
	hour := batchtest.Options{Turnaround: time.Hour}
	completes := func(s, other *scene, id string) {
		s.Helper()
		s.until(20 * time.Minute) // the first replica has had no caller for the call meanwhile
		for _, at := range []*scene{s, other} {
			s.ask(at.tr, "GET", "/responses/"+id).state("in_progress")
		}
		s.until(3 * time.Hour)
		for _, at := range []*scene{s, other} {
			s.ask(at.tr, "GET", "/responses/"+id).state("completed").says("hello")
		}
		s.sent(1)
	}
	play("after the batch was created", hour, func(s, other *scene) {
		s.send("/responses", inBackground, keyed).left()
		s.until(time.Minute)
		completes(s, other, other.submit(keyed))
	})
	play("while the batch is being created", hour, func(s, other *scene) {
		s.srv.Control(batchtest.OpCreate, batchtest.Delay(time.Minute))
		s.send("/responses", inBackground, keyed).left()
		s.until(20 * time.Second)
		second := other.send("/responses", inBackground, keyed)
		s.until(30 * time.Second)
		second.left()
		completes(s, other, other.submit(keyed))
	})
	play("the batch is created after two minutes", hour, func(s, other *scene) {
		s.srv.Control(batchtest.OpCreate, func(w http.ResponseWriter, r *http.Request) bool {
			answer := httptest.NewRecorder()
			batchtest.Proceed(answer, r)
			time.Sleep(3 * time.Minute)
			w.WriteHeader(answer.Code)
			_, _ = w.Write(answer.Body.Bytes())
			return true
		})
		first := s.send("/responses", inBackground, keyed)
		s.until(15 * time.Second)
		first.left()
		s.until(150 * time.Second)
		completes(s, other, other.submit(keyed))
	})
}

// A process that has read the answers of a batch, and answers a question, leaves every line
// to the other processes.
func TestBackgroundAnswersOfAnEarlierProcess(t *testing.T) {
	store := journal.NewMemory()
	o := autobatcher.Options{Journal: store}
	setup{server: batchtest.Options{Turnaround: time.Hour}, options: o}.play(t, func(s *scene) {
		calls := []*pending{s.send("/responses", inBackground), s.send("/responses", inBackground), s.send("/responses", inBackground)}
		var ids []string
		for _, call := range calls {
			ids = append(ids, call.wait().id())
		}
		s.tr.Close()
		next := s.another(o)
		s.ask(next, "GET", "/responses/"+ids[0]).state("in_progress")
		s.until(3 * time.Hour)
		for _, id := range ids {
			s.ask(next, "GET", "/responses/"+id).state("completed")
			s.until(s.elapsed() + time.Minute)
			s.ask(s.another(o), "GET", "/responses/"+id).state("completed")
		}
		s.sent(3)
	})
}

// The bytes of a body are given back exactly once, however the call ends.
func TestBackgroundGivesMemoryBack(t *testing.T) {
	p := provider.OpenAI()
	openAI := setup{options: autobatcher.Options{Provider: &p}}
	for name, tt := range map[string]struct {
		edits []edit
		u     setup
	}{
		"a window that the provider does not have": {edits: []edit{with("Autobatcher-Completion-Window", "7m")}, u: openAI},
		"an answer": {u: openAI},
		"a deadline": {
			edits: []edit{with("Autobatcher-Deadline", "30m"), with("Autobatcher-Mode", "auto")},
			u:     setup{server: batchtest.Options{Turnaround: 2 * time.Hour}, options: autobatcher.Options{Escalate: autobatcher.EscalateDeadline, Provider: &p}},
		},
	} {
		tt.u.run(t, name, func(s *scene) {
			held := new(holder)
			req := s.request(caller.Observe(context.Background(), held), "/responses", inBackground, tt.edits...)
			s.do(req)
			s.until(24 * time.Hour)
			s.tr.Close()
			if h, r := held.holds.Load(), held.releases.Load(); h != r || h == 0 {
				s.Errorf("held %d times, released %d times", h, r)
			}
		})
	}
}

type holder struct{ holds, releases atomic.Int64 }

func (h *holder) Waiting(caller.Call) {}

func (h *holder) Hold() func() {
	h.holds.Add(1)
	return func() { h.releases.Add(1) }
}

// No answer that was paid for is lost because the call went another way than its batch.
func TestBackgroundInOtherLanes(t *testing.T) {
	final := func(s *scene, id string) string {
		s.until(30 * time.Hour / 2)
		return gjson.Get(s.ask(s.tr, "GET", "/responses/"+id).body, "status").String()
	}
	never := batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Never: true} }}
	setup{server: never, options: autobatcher.Options{Escalate: autobatcher.EscalateFailed}}.run(t, "the batch expires", func(s *scene) {
		id := s.submit()
		s.until(time.Hour)
		s.srv.Expire(s.batch().ID)
		if got := final(s, id); got != "failed" || len(s.srv.Executed()) != 0 {
			s.Errorf("status %q, executed %d", got, len(s.srv.Executed()))
		}
	})
	setup{server: batchtest.Options{Turnaround: 2 * time.Hour}, options: autobatcher.Options{Escalate: autobatcher.EscalateDeadline}}.run(t, "the deadline is near", func(s *scene) {
		id := s.submit(with("Autobatcher-Deadline", "30m"))
		if got := final(s, id); got != "failed" {
			s.Errorf("status %q", got)
		}
		if n := s.count("POST", "/responses"); n != 0 {
			s.Errorf("%d calls in real time", n)
		}
	})
	for _, mode := range []string{"flex", "auto"} { // a call in the background is alone in its batch
		openAI(batchtest.Options{}, autobatcher.Options{QuietAfter: time.Second}).run(t, mode, func(s *scene) {
			id := s.post("/responses", inBackground, with("Autobatcher-Mode", mode), with("Autobatcher-Deadline", "10h")).id()
			if got := final(s, id); got != "completed" {
				s.Errorf("status %q", got)
			}
			if diff := cmp.Diff(map[batchtest.Tier]int{batchtest.TierBatch: 1}, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}

// A call that another process took over is withdrawn there, too.
func TestBackgroundWithdrawnAtAThirdProcess(t *testing.T) {
	store := journal.NewMemory()
	o := autobatcher.Options{Journal: store}
	setup{server: batchtest.Options{Turnaround: 2 * time.Hour}, options: o}.play(t, func(s *scene) {
		id := s.submit()
		s.tr.Close()
		second, third := s.another(o), s.another(o)
		s.ask(second, "GET", "/responses/"+id).state("in_progress")
		s.until(10 * time.Minute)
		s.ask(third, "POST", "/responses/"+id+"/cancel").state("cancelled")
		s.until(time.Hour)
		if b := s.batch(); b.Status != "cancelled" {
			s.Errorf("the batch is %s", b.Status)
		}
		if r := s.ask(second, "GET", "/responses/"+id); r.status != 404 {
			s.Errorf("%d %s", r.status, r.body)
		}
	})
}

// A call that is deleted at another process right after its batch was created is not kept by
// the first process.
func TestBackgroundWithdrawnAtOnce(t *testing.T) {
	store := journal.NewMemory()
	o := autobatcher.Options{Journal: store}
	setup{server: batchtest.Options{Turnaround: time.Hour}, options: o}.play(t, func(s *scene) {
		other := s.another(o)
		id := s.submit()
		if r := s.ask(other, "DELETE", "/responses/"+id); r.status != 200 {
			s.Errorf("DELETE: %d %s", r.status, r.body)
		}
		s.until(10 * time.Minute)
		if b := s.batch(); b.Status != "cancelled" {
			s.Errorf("the batch is %s", b.Status)
		}
		for _, tr := range []*autobatcher.Transport{s.tr, other} {
			s.ask(tr, "GET", "/responses/"+id).fails("response_not_found")
		}
	})
}

// Without a journal nobody can ask for an answer after the end of the process.
func TestBackgroundShutdownWithoutJournal(t *testing.T) {
	setup{server: batchtest.Options{Turnaround: time.Hour}}.play(t, func(s *scene) {
		first := s.send("/responses", inBackground)
		if err := s.tr.Shutdown(context.Background()); err != nil {
			s.Error(err)
		}
		if r := first.wait(); r.err == nil {
			s.Errorf("%d %s", r.status, r.body)
		}
		s.sent()
	})
}

func TestBackgroundShapes(t *testing.T) {
	hour := setup{server: batchtest.Options{Turnaround: time.Hour}}
	hour.run(t, "a query", func(s *scene) {
		r := s.post("/responses?b=1&a=2&c=x%20y", inBackground)
		for _, more := range []string{"", "&include[]=a&include%5B%5D=b", "&stream=false"} {
			s.ask(s.tr, "GET", "/responses/"+r.id()+"?b=1&a=2&c=x%20y"+more).state("in_progress")
		}
	})
	hour.run(t, "a query with what questions have", func(s *scene) {
		for _, query := range []string{"?b=1&include[]=x", "?b=1&include%5B%5D=x&stream=false", "?starting_after=7&b=1&stream=true"} {
			r := s.post("/responses"+query, inBackground)
			r.state("queued")
			for _, asked := range []string{"", "&include[]=a&include%5B%5D=b", "&stream=false"} {
				s.ask(s.tr, "GET", "/responses/"+r.id()+"?b=1"+asked).state("in_progress")
			}
			s.ask(s.tr, "POST", "/responses/"+r.id()+"/cancel?b=1").state("cancelled")
		}
	})
	hour.run(t, "a query with what questions have, at another endpoint", func(s *scene) {
		for i, query := range []string{"?include=x", "?stream=true", "?b=1&starting_after=7", "?api-version=2024&include_usage=true"} {
			r := s.post("/chat/completions"+query, chatBody("hello"), with("Prefer", "respond-async"))
			place := "/chat/" + r.header.Get("Location")
			if r := s.ask(s.tr, "GET", place); r.status != http.StatusAccepted {
				s.Errorf("GET %s: %d %s", place, r.status, r.body)
			}
			s.until(time.Duration(i+1) * 2 * time.Hour)
			s.ask(s.tr, "GET", place).says("hello")
			if r := s.ask(s.tr, "DELETE", place); r.status != http.StatusOK {
				s.Errorf("DELETE %s: %d %s", place, r.status, r.body)
			}
		}
	})
	hour.run(t, "gzip", func(s *scene) {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write([]byte(inBackground))
		w.Close()
		r := s.post("/responses", b.String(), with("Content-Encoding", "gzip"))
		r.state("queued")
		s.until(2 * time.Hour)
		s.ask(s.tr, "GET", "/responses/"+r.id()).state("completed").says("hello")
	})
	for name, metadata := range map[string]string{
		"a control character": "{\"k\":\"a\tb\"}", "a line break": "{\n\"k\":\n\"v\"}", "no UTF-8": "{\"k\":\"\xff\"}", "a lone surrogate": `{"k":"\ud800"}`,
		"nested":     strings.Repeat(`{"a":`, 12000) + "1" + strings.Repeat("}", 12000),
		"duplicates": `{"k":"v","k":"w"}`,
		"a list":     `[1]`,
	} {
		hour.run(t, "metadata with "+name, func(s *scene) {
			defer func() {
				if p := recover(); p != nil {
					s.Errorf("panic: %.200v", p)
				}
			}()
			req := s.request(context.Background(), "/responses", `{"model":"m","background":true,"input":"hello","metadata":`+metadata+`}`)
			s.do(req)
		})
	}
	hour.run(t, "ids that nobody has", func(s *scene) {
		id := "resp_autobatcher_" + strings.Repeat("0", 32)
		for _, path := range []string{"/" + id, "/x/" + id, "/responses/" + id, "/responses/" + id + "/cancel", "//" + id} {
			for _, method := range []string{"GET", "HEAD", "PUT", "PATCH", "POST", "DELETE", "OPTIONS"} {
				if r := s.ask(s.tr, method, path); r.err != nil || r.status != http.StatusNotFound && r.status != http.StatusMethodNotAllowed {
					s.Errorf("%s %s: %d %v", method, path, r.status, r.err)
				}
			}
		}
	})
	hour.run(t, "two questions at once", func(s *scene) {
		id := s.submit()
		s.until(2 * time.Hour)
		var replies [4]reply
		done := make(chan int)
		for i := range replies {
			go func() {
				replies[i] = s.ask(s.tr, "GET", "/responses/"+id)
				done <- i
			}()
		}
		for range replies {
			<-done
		}
		synctest.Wait()
		for _, r := range replies {
			r.state("completed").says("hello")
		}
	})
}

// A question long after the end of a batch says nothing about how long batches take.
func TestBackgroundAnswersTeachNoTurnaround(t *testing.T) {
	p, store := provider.OpenAI(), journal.NewMemory()
	setup{server: batchtest.Options{Turnaround: time.Hour}, options: autobatcher.Options{Journal: store, Provider: &p}}.play(t, func(s *scene) {
		id := s.submit()
		s.until(14 * time.Hour)
		for range 30 {
			s.ask(s.tr, "GET", "/responses/"+id).state("completed")
		}
		auto := []edit{with("Autobatcher-Mode", "auto"), with("Autobatcher-Deadline", "3h")}
		one, two := s.chat("a", auto...), s.chat("b", auto...)
		for _, call := range []*pending{one, two} {
			if r := call.wait(); r.header.Get("Autobatcher-Mode") != "" || r.status != 200 {
				s.Errorf("%d, lane %q", r.status, r.header.Get("Autobatcher-Mode"))
			}
		}
	})
}
