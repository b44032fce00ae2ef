package blackbox_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/backend"
)

// A call whose model has no flex tier goes where FlexFallback says, and in mode auto to the
// batch in which the call was alone. After a refusal that names the parameter, no call of
// the model asks for the tier for an hour; after another refusal, the next call asks again.
func TestModelsWithoutFlexTier(t *testing.T) {
	const chat, response = "/chat/completions", "/responses"
	options := func(mode autobatcher.Mode, fallback autobatcher.FlexFallback) autobatcher.Options {
		return autobatcher.Options{Mode: mode, FlexFallback: fallback}
	}
	const flex, auto = autobatcher.ModeFlex, autobatcher.ModeAuto
	const batch, realtime, fail = autobatcher.FallbackBatch, autobatcher.FallbackRealtime, autobatcher.FallbackFail
	refuses := func(body string) func(*scene) {
		return func(s *scene) {
			s.srv.Keep(batchtest.OpRealtime, batchtest.Status(400, nil, body))
		}
	}
	for _, tt := range []struct {
		name    string
		options autobatcher.Options
		path    string
		before  func(*scene)
		edits   []edit
		status  int
		mode    string // header of the answers
		code    string // in the answers
		posts   int    // calls that were sent alone: at the flex tier or in real time
		paid    map[batchtest.Tier]int
	}{
		{name: "flex, else a batch", options: options(flex, batch), path: chat, status: 200, posts: 2, paid: map[batchtest.Tier]int{"batch": 3}},
		{name: "flex, else a batch, in the background", options: options(flex, batch), path: response, status: 200, posts: 2, paid: map[batchtest.Tier]int{"batch": 3}},
		{name: "flex, else real time", options: options(flex, realtime), path: chat, status: 200, mode: "realtime", posts: 2 + 3, paid: map[batchtest.Tier]int{"default": 3}},
		{name: "flex, else an error", options: options(flex, fail), path: chat, status: 400, mode: "flex", code: `"service_tier"`, posts: 2, paid: map[batchtest.Tier]int{}},
		{name: "auto, alone, else a batch", options: options(auto, batch), path: chat, status: 200, posts: 2, paid: map[batchtest.Tier]int{"batch": 3}},
		{name: "auto, alone, else real time", options: options(auto, realtime), path: chat, status: 200, posts: 2, paid: map[batchtest.Tier]int{"batch": 3}},
		{name: "auto, alone, else an error", options: options(auto, fail), path: response, status: 200, posts: 2, paid: map[batchtest.Tier]int{"batch": 3}},
		{name: "auto, in a hurry, else a batch", options: options(auto, batch), path: chat, edits: []edit{with("Autobatcher-Deadline", "10m")}, status: 200, posts: 2, paid: map[batchtest.Tier]int{"batch": 3}},
		{name: "auto, in a hurry, else real time", options: options(auto, realtime), path: chat, edits: []edit{with("Autobatcher-Deadline", "10m")}, status: 200, mode: "realtime", posts: 2 + 3, paid: map[batchtest.Tier]int{"default": 3}},
		{
			name: "a message without a param", options: options(flex, batch), path: chat, before: refuses(`{"error":{"message":"Unsupported service_tier: flex","type":"invalid_request_error"}}`),
			status: 200, posts: 3, paid: map[batchtest.Tier]int{"batch": 3},
		},
		{
			name: "another message", options: options(flex, batch), path: chat, before: refuses(`{"error":{"message":"Flex is not available for this model.","type":"invalid_request_error","param":null}}`),
			status: 200, posts: 3, paid: map[batchtest.Tier]int{"batch": 3},
		},
	} {
		var log bytes.Buffer
		tt.options.Logger = slog.New(slog.NewTextHandler(&log, nil))
		openAI(batchtest.Options{FlexModels: []string{"o3"}}, tt.options).run(t, tt.name, func(s *scene) {
			if tt.before != nil {
				tt.before(s)
			}
			for i, at := range []time.Duration{0, 30 * time.Minute, 61 * time.Minute} {
				s.until(at)
				text := string(rune('a' + i))
				r := s.post(tt.path, map[string]string{chat: chatBody(text), response: responseBody(text)}[tt.path], tt.edits...)
				if r.err != nil || r.status != tt.status || r.header.Get("Autobatcher-Mode") != tt.mode || !strings.Contains(r.body, tt.code) || r.at-at > time.Minute {
					s.Errorf("call %d: %d %q after %v, %v; want %d %q within a minute: %s", i, r.status, r.header.Get("Autobatcher-Mode"), r.at-at, r.err, tt.status, tt.mode, r.body)
				}
			}
			if got := s.count("POST", tt.path); got != tt.posts {
				s.Errorf("%d calls were sent alone, want %d", got, tt.posts)
			}
			s.tr.Close()
			if got := strings.Count(log.String(), backend.ErrNoTier.Error()); tt.options.FlexFallback == batch && got != tt.posts {
				s.Errorf("%d calls left the flex tier, want %d: a call whose model is known to have no flex tier goes to a batch at once\n%s", got, tt.posts, &log)
			}
			if diff := cmp.Diff(tt.paid, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}

// Other models, and other accounts, still ask for the tier. A refusal for another reason is
// the answer, also if the refusal names the tier.
func TestModelsWithoutFlexTierAreRemembered(t *testing.T) {
	o := autobatcher.Options{Mode: autobatcher.ModeFlex}
	openAI(batchtest.Options{FlexModels: []string{"o3"}}, o).run(t, "by model and account", func(s *scene) {
		for _, tt := range []struct {
			text, model, key string
			posts            int // so far
		}{
			{"a", "m", "sk-test", 1}, {"b", "m", "sk-test", 1}, {"c", "o3", "sk-test", 2}, {"d", "m", "sk-other", 3}, {"e", "m", "sk-other", 3},
		} {
			r := s.post("/chat/completions", strings.Replace(chatBody(tt.text), `"m"`, `"`+tt.model+`"`, 1), key(tt.key))
			if got := s.count("POST", "/chat/completions"); r.status != 200 || got != tt.posts {
				s.Errorf("call %s: %d, %d calls were sent alone, want %d: %s", tt.text, r.status, got, tt.posts, r.body)
			}
		}
		if diff := cmp.Diff(map[batchtest.Tier]int{"batch": 4, "flex": 1}, s.srv.PaidTiers()); diff != "" {
			s.Errorf("paid (-want +got):\n%s", diff)
		}
	})
	openAI(batchtest.Options{FlexModels: []string{"o3"}}, o).run(t, "by a call that waits for room", func(s *scene) {
		s.srv.Control(batchtest.OpRealtime, batchtest.RateLimit(30*time.Second))
		a := s.chat("a")
		s.until(time.Second)
		b := s.chat("b")
		for _, call := range []*pending{a, b} {
			if r := call.within(3 * time.Minute); r.status != 200 {
				s.Errorf("%d: %s", r.status, r.body)
			}
		}
		if got := s.count("POST", "/chat/completions"); got != 2 {
			s.Errorf("%d calls were sent at the flex tier, want 2: of a call without room and of a call that was refused", got)
		}
	})
	for _, tt := range []struct{ name, refusal string }{
		{"another reason", `{"error":{"message":"Invalid content: what is a service_tier?","type":"invalid_request_error","param":"messages[0].content"}}`},
		{"a prompt in the message", `{"error":{"message":"1 validation error for ChatCompletionRequest\nmessages.0.role\n  Input should be 'user' [type=literal_error, input_value='service_tier', input_type=str]","type":"BadRequestError","param":null,"code":400}}`},
	} {
		for _, fallback := range []autobatcher.FlexFallback{autobatcher.FallbackBatch, autobatcher.FallbackRealtime, autobatcher.FallbackFail} {
			openAI(batchtest.Options{}, autobatcher.Options{Mode: autobatcher.ModeFlex, FlexFallback: fallback}).run(t, tt.name+", else "+string(fallback), func(s *scene) {
				s.srv.Control(batchtest.OpRealtime, batchtest.Status(400, nil, tt.refusal))
				if r := s.post("/chat/completions", chatBody("a")); r.status != 400 || r.body != tt.refusal {
					s.Errorf("%d %s; want the refusal", r.status, r.body)
				}
				if r := s.post("/chat/completions", chatBody("b")); r.status != 200 || s.srv.PaidTiers()["flex"] != 1 {
					s.Errorf("%d, paid %v; want an answer at the flex tier", r.status, s.srv.PaidTiers())
				}
			})
		}
	}
}

// A call whose deadline is near, and whose model has no flex tier, waits for its batch again,
// and then goes on to real time. Further calls of the model do not leave their batch before.
func TestModelsWithoutFlexTierNearADeadline(t *testing.T) {
	for _, tt := range []struct {
		name       string
		turnaround time.Duration
		mode       string
		at         time.Duration // after the call, of the calls with a deadline
	}{
		{"real time", 10 * time.Hour, "realtime", 2*time.Hour - time.Minute},
		{"the batch answers", 110 * time.Minute, "", 110 * time.Minute},
	} {
		o := autobatcher.Options{Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute}
		openAI(batchtest.Options{FlexModels: []string{"o3"}, Turnaround: tt.turnaround}, o).run(t, tt.name, func(s *scene) {
			sent := make(map[*pending]time.Duration)
			for _, at := range []time.Duration{0, 30 * time.Minute} {
				s.until(at)
				sent[s.chat(at.String(), with("Autobatcher-Deadline", "2h"))] = at
				s.chat(at.String() + " without a deadline")
			}
			for call, at := range sent {
				r := call.within(4 * time.Hour)
				if after := r.at - at; r.status != 200 || r.header.Get("Autobatcher-Mode") != tt.mode || after < tt.at || after > tt.at+2*time.Minute {
					s.Errorf("%d %q after %v, want %q after %v: %s", r.status, r.header.Get("Autobatcher-Mode"), after, tt.mode, tt.at, r.body)
				}
			}
			want := 1 // of a call at the flex tier
			if tt.mode == "realtime" {
				want += len(sent)
			}
			if got := s.count("POST", "/chat/completions"); got != want {
				s.Errorf("%d calls were sent alone, want %d", got, want)
			}
		})
	}
}

// In mode auto, calls that their batch did not answer go on to real time if FlexFallback
// says so, also if the model is known to have no flex tier.
func TestModelsWithoutFlexTierAfterABatch(t *testing.T) {
	server := hopeless
	server.FlexModels = []string{"o3"}
	for _, tt := range []struct {
		fallback autobatcher.FlexFallback
		status   int
		paid     map[batchtest.Tier]int
	}{
		{autobatcher.FallbackRealtime, 200, map[batchtest.Tier]int{"default": 3}},
		{autobatcher.FallbackFail, 424, map[batchtest.Tier]int{}},
	} {
		o := autobatcher.Options{Mode: autobatcher.ModeAuto, Resubmits: -1, FlexFallback: tt.fallback}
		openAI(server, o).run(t, string(tt.fallback), func(s *scene) {
			a, b := s.chat("a"), s.chat("b")
			s.post("/chat/completions", chatBody("c"), with("Autobatcher-Mode", "flex")) // is refused
			for _, call := range []*pending{a, b} {
				if r := call.within(48 * time.Hour); r.status != tt.status {
					s.Errorf("%d, want %d: %s", r.status, tt.status, r.body)
				}
			}
			if diff := cmp.Diff(tt.paid, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}

// A client that leaves a call that went on to real time, since its model has no flex tier,
// gets an answer in real time on its retry, and not the refusal of the flex tier.
func TestRetriesOfCallsWithoutFlexTier(t *testing.T) {
	for _, mode := range []autobatcher.Mode{autobatcher.ModeFlex, autobatcher.ModeAuto} {
		for _, path := range []string{"/chat/completions", "/responses"} {
			for _, tt := range []struct {
				name   string
				delay  time.Duration // of each answer to a call that is sent alone
				faults []batchtest.Fault
			}{
				{"in real time", 5 * time.Minute, nil},
				{"at the flex tier", 0, []batchtest.Fault{batchtest.Delay(40 * time.Second)}},
			} {
				server := batchtest.Options{FlexModels: []string{"o3"}, Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Delay: tt.delay} }}
				for _, o := range toRealtime {
					o.Mode = mode
					openAI(server, o).run(t, string(mode)+path+tt.name+string(o.FlexFallback), func(s *scene) {
						s.srv.Control(batchtest.OpRealtime, tt.faults...)
						const hurry = "10m"
						call := s.send(path, bodyTo(path, "a"), with("Autobatcher-Deadline", hurry))
						s.until(30 * time.Second)
						call.left()
						s.until(2 * time.Minute)
						r := s.send(path, bodyTo(path, "a"), with("Autobatcher-Deadline", hurry)).within(2 * time.Hour)
						if r.status != 200 || r.header.Get("Autobatcher-Mode") != "realtime" {
							s.Errorf("the retry: %d %q: %s", r.status, r.header.Get("Autobatcher-Mode"), r.body)
						}
						if diff := cmp.Diff(map[batchtest.Tier]int{"default": 1}, s.srv.PaidTiers()); diff != "" {
							s.Errorf("paid (-want +got):\n%s", diff)
						}
					})
				}
			}
		}
	}
}

// toRealtime are the options by which a call that the flex tier refuses goes on to real time.
var toRealtime = []autobatcher.Options{
	{FlexFallback: autobatcher.FallbackRealtime},
	{FlexFallback: autobatcher.FallbackFail, Escalate: autobatcher.EscalateFailed},
}

// A call that the flex tier refuses for its model, and that would go on to real time if the
// limit had room, gets 503, which SDKs retry: the refusal would say that a retry does not help.
func TestModelsWithoutFlexTierAtTheLimit(t *testing.T) {
	for _, o := range toRealtime {
		o.Mode, o.EscalateLimit = autobatcher.ModeFlex, 1
		openAI(batchtest.Options{FlexModels: []string{"o3"}}, o).run(t, string(o.FlexFallback), func(s *scene) {
			for _, tt := range []struct {
				at     time.Duration
				text   string
				status int
			}{{0, "a", 200}, {time.Minute, "b", 503}, {61 * time.Minute, "b", 200}} {
				s.until(tt.at)
				if r := s.chat(tt.text).within(time.Minute); r.status != tt.status || r.status == 503 && !strings.Contains(r.body, autobatcher.CodeNotSubmitted) {
					s.Errorf("call %s after %v: %d, want %d: %s", tt.text, tt.at, r.status, tt.status, r.body)
				}
			}
			if diff := cmp.Diff(map[batchtest.Tier]int{"default": 2}, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}
