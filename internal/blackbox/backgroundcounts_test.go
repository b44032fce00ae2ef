package blackbox_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// An answer is counted once, paid for once in the statistics, and downloaded once at each
// process, however often and wherever callers ask for the answer.
func TestBackgroundAnswersCountOnce(t *testing.T) {
	for name, tt := range map[string]asking{
		"the first process lives":                 {profile: provider.OpenAI(), downloads: 3, costs: 1},
		"the first process ends before the batch": {profile: provider.OpenAI(), end: 30 * time.Minute, downloads: 2, costs: 1},
		"others ask before the batch ends":        {profile: provider.OpenAI(), before: true, end: 30 * time.Minute, downloads: 2, costs: 1},
		"the first process ends after the batch":  {profile: provider.OpenAI(), end: 3 * time.Hour, downloads: 3, costs: 1},
		"results of a batch that runs":            {profile: provider.Doubleword(), behavior: batchtest.Doubleword(), before: true, downloads: -1},
	} {
		t.Run(name, func(t *testing.T) {
			o := autobatcher.Options{Journal: journal.NewMemory(), Provider: &tt.profile}
			server := batchtest.Options{Behavior: tt.behavior, Turnaround: time.Hour}
			setup{server: server, options: o}.play(t, func(s *scene) { s.askOften(o, tt) })
		})
	}
}

type asking struct {
	profile   provider.Profile
	behavior  batchtest.Behavior
	before    bool          // callers ask another replica while the batch runs
	end       time.Duration // when the first process ends; 0: after the test
	downloads int           // of all replicas; negative: polls are downloads, too
	costs     int           // events with the cost; none for models without a price
}

// askOften submits three calls, asks two other replicas and, while it lives, the first
// process for the answers, and checks what the three have counted.
func (s *scene) askOften(o autobatcher.Options, tt asking) {
	s.Helper()
	o.OnEvent = s.record
	counting := []*autobatcher.Transport{s.tr, s.another(o), s.another(o)}
	all := counting
	var calls []*pending
	for i := range 3 {
		calls = append(calls, s.send("/responses", fmt.Sprintf(`{"model":"gpt-4o-mini","background":true,"input":"call %d"}`, i)))
	}
	ids := make([]string, len(calls))
	for i, c := range calls {
		ids[i] = c.wait().id()
	}
	if tt.end > 0 && tt.end < time.Hour {
		s.until(tt.end)
		all[0].Close()
		all = all[1:]
	}
	if tt.before {
		s.ask(all[len(all)-1], "GET", "/responses/"+ids[1]).state("in_progress")
	}
	s.until(3 * time.Hour)
	if tt.end > time.Hour {
		all[0].Close()
		all = all[1:]
	}
	for range 3 {
		for _, tr := range all {
			for i, id := range ids {
				s.ask(tr, "GET", "/responses/"+id).state("completed").says(fmt.Sprintf("call %d", i))
				synctest.Wait()
			}
		}
	}
	s.until(4 * time.Hour)
	var answered, priced int64
	for _, tr := range counting {
		st := tr.Stats()
		answered += st.Answered
		priced += st.Cost.Priced + st.Cost.Unpriced
	}
	if answered != 3 || priced != 3 {
		s.Errorf("%d answers and %d costs are counted, want 3 and 3", answered, priced)
	}
	ends := map[autobatcher.EventName]int{}
	for _, name := range s.eventNames() {
		ends[name]++
	}
	if ends[autobatcher.BatchCompleted] != 1 || ends[autobatcher.BatchResumed] > 1 || ends[autobatcher.BatchCost] != tt.costs {
		s.Errorf("events %v: want one end and one cost", ends)
	}
	if n := s.count("GET", "/files/", "/content"); tt.downloads >= 0 && n != tt.downloads {
		s.Errorf("%d downloads, want %d", n, tt.downloads)
	}
	s.sent(3)
	if text := string(s.upload().Content); strings.Count(text, "call ") != 3 {
		s.Errorf("input = %s", text)
	}
}

// A process that has read answers of a batch reports the batch once its owner has ended.
func TestBackgroundOwnerEnds(t *testing.T) {
	p := provider.Doubleword()
	o := autobatcher.Options{Journal: journal.NewMemory(), Provider: &p}
	server := batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: 2 * time.Hour}
	setup{server: server, options: o}.play(t, func(s *scene) {
		var calls []*pending
		for i := range 4 {
			calls = append(calls, s.send("/responses", fmt.Sprintf(`{"model":"m","background":true,"input":"call %d"}`, i)))
		}
		id := calls[0].wait().id()
		events := map[autobatcher.EventName]int{}
		o.OnEvent = func(e autobatcher.Event) { events[e.Name]++ }
		other := s.another(o)
		state := ""
		for at := time.Minute; state != "completed" && at < 110*time.Minute; at += time.Minute {
			s.until(at)
			state = gjson.Get(s.ask(other, "GET", "/responses/"+id).body, "status").String()
		}
		if state != "completed" {
			s.Fatalf("status %q, want a result of the batch while it runs", state)
		}
		s.tr.Close()
		s.until(5 * time.Hour)
		synctest.Wait()
		if events[autobatcher.BatchCompleted] != 1 {
			s.Errorf("events %v: want one end", events)
		}
	})
}

// Answers that are too many for the memory are read again, without counts and events.
func TestBackgroundAnswersBeyondMemory(t *testing.T) {
	p, store := provider.OpenAI(), journal.NewMemory()
	o := autobatcher.Options{Journal: store, Provider: &p}
	setup{server: longAnswers(), options: o}.play(t, func(s *scene) {
		o.OnEvent = s.record
		other := s.another(o)
		one, two := s.send("/responses", inBackground), s.send("/responses", inBackground)
		ids := []string{one.wait().id(), two.wait().id()}
		s.until(2 * time.Hour)
		before, downloads := s.eventNames(), s.count("GET", "/files/", "/content")
		for range 2 {
			for _, id := range ids {
				s.ask(other, "GET", "/responses/"+id).state("completed").says("hello")
			}
		}
		if n := s.count("GET", "/files/", "/content") - downloads; n < 2 {
			s.Errorf("%d downloads at the other process, want more than one", n)
		}
		st := other.Stats()
		if after := s.eventNames(); st.Answered != 0 || st.Cost != (autobatcher.Cost{}) || len(after) != len(before) {
			s.Errorf("the other process has counted %+v, and events %v", st, after[len(before):])
		}
	})
}

// longAnswers are a server whose answers have 33 MiB each: a process keeps one of them.
func longAnswers() batchtest.Options {
	pad := strings.Repeat("x", 33<<20)
	return batchtest.Options{Turnaround: time.Hour, Answer: func(l batchtest.Line) batchtest.Outcome {
		o := batchtest.Echo(l)
		o.Body, _ = sjson.SetBytes(o.Body, "metadata.pad", pad)
		return o
	}}
}

// Without a journal, answers that are too many for the memory are lost, and the reply says what
// helps.
func TestBackgroundAnswersBeyondMemoryWithoutJournal(t *testing.T) {
	setup{server: longAnswers()}.play(t, func(s *scene) {
		one, two := s.send("/responses", inBackground), s.send("/responses", inBackground)
		ids := []string{one.wait().id(), two.wait().id()}
		s.until(2 * time.Hour)
		var lost []reply
		for _, id := range ids {
			if r := s.ask(s.tr, "GET", "/responses/"+id); r.status == 404 {
				lost = append(lost, r)
			} else {
				r.state("completed").says("hello")
			}
		}
		if len(lost) != 1 {
			s.Fatalf("%d answers are lost, want one", len(lost))
		}
		for _, part := range []string{"64 MiB", "--journal", "Options.Journal"} {
			if message := gjson.Get(lost[0].body, "error.message").String(); !strings.Contains(message, part) {
				s.Errorf("message %q does not have %q", message, part)
			}
		}
	})
}

// Other processes know a call that is sent again because its batch gave no answer.
func TestBackgroundSentAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		end  bool // the first process ends before the call is sent again
		want string
	}{
		"the first process lives": {want: "completed"},
		"the first process ends":  {end: true, want: "failed"},
	} {
		var again atomic.Bool
		server := batchtest.Options{Turnaround: time.Hour, Answer: func(l batchtest.Line) batchtest.Outcome {
			if again.Load() {
				return batchtest.Echo(l)
			}
			return batchtest.Outcome{Never: true}
		}}
		o := autobatcher.Options{Journal: journal.NewMemory()}
		setup{server: server, options: o, again: true}.run(t, name, func(s *scene) {
			other := s.another(o)
			id := s.submit()
			s.until(30 * time.Minute)
			again.Store(true)
			s.srv.Expire(s.batch().ID)
			for len(s.tr.Stats().Queues) == 0 {
				time.Sleep(100 * time.Millisecond)
			}
			s.ask(other, "GET", "/responses/"+id).state("in_progress")
			if tt.end {
				s.tr.Close()
			}
			for i := 0; len(s.tr.Stats().Batches) == 0 && i < 50; i++ {
				if r := s.ask(other, "GET", "/responses/"+id); r.status != 200 {
					s.Errorf("%d %s", r.status, r.body)
				}
				time.Sleep(100 * time.Millisecond)
			}
			s.until(4 * time.Hour)
			s.ask(other, "GET", "/responses/"+id).state(tt.want)
		})
	}
}
