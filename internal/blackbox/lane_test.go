package blackbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

func responseBody(text string) string { return `{"model":"m","input":"` + text + `"}` }

// bodyTo is the body of a call to an endpoint that has a flex tier, or to /embeddings.
func bodyTo(path, text string) string {
	switch path {
	case "/responses":
		return responseBody(text)
	case "/embeddings":
		return embeddingBody(text)
	}
	return chatBody(text)
}

// openAI is a setup whose provider has a flex tier.
func openAI(server batchtest.Options, options autobatcher.Options) setup {
	p := provider.OpenAI()
	server.Behavior, options.Provider = batchtest.OpenAI(), &p
	return setup{server: server, options: options}
}

func TestFlex(t *testing.T) {
	const (
		chat     = "/chat/completions"
		response = "/responses"
		vector   = "/embeddings"
	)
	flex := autobatcher.Options{Mode: autobatcher.ModeFlex}
	outage := func(s *scene) { s.srv.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable()) }
	refusals := func(s *scene) {
		s.srv.Control(batchtest.OpRealtime, batchtest.FlexUnavailable(), batchtest.FlexUnavailable())
	}
	for _, tt := range []struct {
		name       string
		doubleword bool
		server     batchtest.Options
		options    autobatcher.Options
		path       string
		edits      []edit
		before     func(*scene)
		status     int
		code       string // of an error
		within     time.Duration
		paid       map[batchtest.Tier]int
	}{
		{name: "chat", server: batchtest.Options{FlexDelay: time.Minute}, options: flex, path: chat, status: 200, within: 61 * time.Second, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "the header chooses", path: chat, edits: []edit{with("Autobatcher-Mode", "flex")}, status: 200, within: time.Second, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "the header chooses a batch", options: flex, path: chat, edits: []edit{with("Autobatcher-Mode", "batch")}, status: 200, within: time.Minute, paid: map[batchtest.Tier]int{"batch": 1}},
		{name: "a response in the background", server: batchtest.Options{FlexDelay: 10 * time.Minute}, options: flex, path: response, status: 200, within: 11 * time.Minute, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "a response in the background that fails", server: batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{ResponseStatus: "failed"} }}, options: flex, path: response, status: 500, within: time.Minute, paid: map[batchtest.Tier]int{}},
		{name: "a response in the background that is incomplete", server: batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{ResponseStatus: "incomplete"} }}, options: flex, path: response, status: 200, within: time.Minute, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "doubleword", doubleword: true, server: batchtest.Options{FlexDelay: time.Minute}, options: flex, path: response, status: 200, within: 2 * time.Minute, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "embeddings have no flex tier", options: flex, path: vector, status: 200, within: time.Minute, paid: map[batchtest.Tier]int{"batch": 1}},
		{name: "doubleword's embeddings would cost the full price", doubleword: true, options: flex, path: vector, status: 200, within: time.Minute, paid: map[batchtest.Tier]int{"batch": 1}},
		{name: "a bad call", server: batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome {
			return batchtest.Outcome{Status: 400, Body: []byte(`{"error":{"message":"no","type":"invalid_request_error","code":"bad"}}`)}
		}}, options: flex, path: chat, status: 400, code: "bad", within: time.Second, paid: map[batchtest.Tier]int{}},
		{name: "refused twice", options: flex, path: chat, before: refusals, status: 200, within: 5 * time.Second, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "refused until the call falls back to a batch", options: flex, path: chat, before: outage, status: 200, within: 3 * time.Minute, paid: map[batchtest.Tier]int{"batch": 1}},
		{name: "refused until the call falls back to real time", options: autobatcher.Options{Mode: autobatcher.ModeFlex, FlexFallback: autobatcher.FallbackRealtime}, path: chat, before: outage, status: 200, within: 3 * time.Minute, paid: map[batchtest.Tier]int{"default": 1}},
		{name: "auto, alone, refused until the call falls back to real time", options: autobatcher.Options{Mode: autobatcher.ModeAuto, FlexFallback: autobatcher.FallbackRealtime}, path: chat, before: outage, status: 200, within: 4 * time.Minute, paid: map[batchtest.Tier]int{"default": 1}},
		{name: "a connection that breaks does not fall back to real time", options: autobatcher.Options{Mode: autobatcher.ModeFlex, FlexFallback: autobatcher.FallbackRealtime}, path: chat, before: func(s *scene) {
			s.srv.Control(batchtest.OpRealtime, batchtest.LoseAnswer())
		}, status: 424, code: "batch_create_unknown", within: time.Minute, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "a provider that stops waiting is not asked again", options: flex, path: chat, before: func(s *scene) {
			s.srv.Control(batchtest.OpRealtime, batchtest.Status(504, nil, `{"error":{"message":"Request timed out."}}`))
		}, status: 424, code: "batch_create_unknown", within: time.Minute, paid: map[batchtest.Tier]int{}},
		{name: "a page in place of a response is no response", options: flex, path: response, before: func(s *scene) {
			s.srv.Control(batchtest.OpRetrieveResponse, func(w http.ResponseWriter, r *http.Request) bool { batchtest.Proceed(w, r); return true }, batchtest.HTML(200))
		}, status: 200, within: time.Minute, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "refused until the call fails", options: autobatcher.Options{Mode: autobatcher.ModeFlex, FlexFallback: autobatcher.FallbackFail}, path: chat, before: outage, status: 503, code: "batch_not_submitted", within: 3 * time.Minute, paid: map[batchtest.Tier]int{}},
		{name: "a connection that breaks is not tried again", options: flex, path: chat, before: func(s *scene) {
			s.srv.Control(batchtest.OpRealtime, batchtest.LoseAnswer())
		}, status: 424, code: "batch_create_unknown", within: time.Minute, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "a gateway's answer is not tried again", options: flex, path: chat, before: func(s *scene) {
			s.srv.Control(batchtest.OpRealtime, batchtest.HTML(504))
		}, status: 424, code: "batch_create_unknown", within: time.Minute, paid: map[batchtest.Tier]int{}},
		{name: "a gateway's page is no answer", options: flex, path: chat, before: func(s *scene) {
			s.srv.Control(batchtest.OpRealtime, batchtest.HTML(200))
		}, status: 424, code: "batch_create_unknown", within: time.Minute, paid: map[batchtest.Tier]int{}},
		{name: "a redirect", options: flex, path: chat, before: func(s *scene) {
			s.srv.Control(batchtest.OpRealtime, batchtest.Redirect(308, "https://other.example/v1/chat/completions"))
		}, status: 424, code: "redirected", within: time.Second, paid: map[batchtest.Tier]int{}},
		{name: "auto, in a hurry, with an endless window", options: autobatcher.Options{Mode: autobatcher.ModeAuto, BatchWindow: math.MaxInt64, QuietAfter: -1}, path: chat, edits: []edit{with("Autobatcher-Deadline", "10m")}, status: 200, within: time.Second, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "auto, alone", options: autobatcher.Options{Mode: autobatcher.ModeAuto}, path: chat, status: 200, within: 11 * time.Second, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "auto, alone, without a flex tier", options: autobatcher.Options{Mode: autobatcher.ModeAuto}, path: vector, status: 200, within: time.Minute, paid: map[batchtest.Tier]int{"batch": 1}},
		{name: "auto, in a hurry", options: autobatcher.Options{Mode: autobatcher.ModeAuto}, path: chat, edits: []edit{with("Autobatcher-Deadline", "10m")}, status: 200, within: time.Second, paid: map[batchtest.Tier]int{"flex": 1}},
		{name: "auto, alone, refused until the call falls back to real time", options: autobatcher.Options{Mode: autobatcher.ModeAuto, FlexFallback: autobatcher.FallbackRealtime}, path: chat, before: outage, status: 200, within: 4 * time.Minute, paid: map[batchtest.Tier]int{"default": 1}},
		{name: "auto, alone, refused", options: autobatcher.Options{Mode: autobatcher.ModeAuto}, path: chat, before: outage, status: 200, within: 4 * time.Minute, paid: map[batchtest.Tier]int{"batch": 1}},
	} {
		u := openAI(tt.server, tt.options)
		if tt.doubleword {
			u = doubleword(tt.server, tt.options)
		}
		u.run(t, tt.name, func(s *scene) {
			if tt.before != nil {
				tt.before(s)
			}
			body := map[string]string{chat: chatBody("a"), response: responseBody("a"), vector: embeddingBody("a")}[tt.path]
			r := s.send(tt.path, body, tt.edits...).within(time.Hour)
			if r.err != nil || r.status != tt.status || r.at > tt.within {
				s.Errorf("%d after %v, error %v, want %d within %v: %s", r.status, r.at, r.err, tt.status, tt.within, r.body)
			}
			if tt.code != "" && !strings.Contains(r.body, `"`+tt.code+`"`) {
				s.Errorf("%s; want the code %s", r.body, tt.code)
			}
			if strings.HasPrefix(tt.code, "batch_") && (!strings.Contains(r.body, `"message":"the flex call`) || strings.Contains(r.body, "the batch")) {
				s.Errorf("%s; want a message about the flex call", r.body)
			}
			if diff := cmp.Diff(tt.paid, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}

// The profile says with which statuses the provider refuses calls for want of room: such
// calls are sent again. At a provider that does not use the status, it is the answer.
func TestFlexRefusals(t *testing.T) {
	quota := batchtest.Status(429, nil, `{"error":{"message":"You exceeded your current quota.","type":"insufficient_quota","code":"insufficient_quota"}}`)
	limit := batchtest.Status(429, nil, `{"error":{"message":"Rate limit reached.","code":"rate_limit_exceeded"}}`)
	outage := func(s *scene) { s.srv.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable()) }
	once := func(c batchtest.Fault) func(*scene) {
		return func(s *scene) { s.srv.Control(batchtest.OpRealtime, c) }
	}
	for _, tt := range []struct {
		name     string
		refusals []int // of the profile
		refuses  int   // the status of the provider
		before   func(*scene)
		path     string
		status   int
		code     string
		at       [2]time.Duration
		paid     map[batchtest.Tier]int
	}{
		{"a status of its own", []int{498}, 498, once(batchtest.FlexUnavailable()), "/chat/completions", 200, "", [2]time.Duration{time.Millisecond, 10 * time.Second}, map[batchtest.Tier]int{"flex": 1}},
		{"a status of its own, in the background", []int{429, 503}, 503, once(batchtest.FlexUnavailable()), "/responses", 200, "", [2]time.Duration{time.Millisecond, time.Minute}, map[batchtest.Tier]int{"flex": 1}},
		{"a status of its own, for longer than two minutes", []int{498}, 498, outage, "/chat/completions", 200, "", [2]time.Duration{time.Minute, 3 * time.Minute}, map[batchtest.Tier]int{"batch": 1}},
		{"a status that the provider does not use", []int{429}, 498, outage, "/chat/completions", 498, "capacity_exceeded", [2]time.Duration{}, map[batchtest.Tier]int{}},
		{"a rate limit", []int{498}, 498, once(limit), "/chat/completions", 200, "", [2]time.Duration{time.Millisecond, 10 * time.Second}, map[batchtest.Tier]int{"flex": 1}},
		{"an exhausted quota", []int{429}, 429, once(quota), "/chat/completions", 429, "insufficient_quota", [2]time.Duration{}, map[batchtest.Tier]int{}},
	} {
		u := openAI(batchtest.Options{}, autobatcher.Options{Mode: autobatcher.ModeFlex})
		u.server.Behavior.NoCapacityStatus, u.options.Provider.FlexRefusals = tt.refuses, tt.refusals
		u.run(t, tt.name, func(s *scene) {
			tt.before(s)
			body := bodyTo(tt.path, "a")
			r := s.send(tt.path, body).within(time.Hour)
			if r.err != nil || r.status != tt.status || r.at < tt.at[0] || r.at > tt.at[1] || !strings.Contains(r.body, tt.code) {
				s.Errorf("%d after %v, error %v; want %d %s after %v: %s", r.status, r.at, r.err, tt.status, tt.code, tt.at, r.body)
			}
			if diff := cmp.Diff(tt.paid, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}

// In mode auto, calls that their batch did not answer are sent at the flex tier, where
// that pays for nothing twice, and then in real time.
func TestAutoClimbs(t *testing.T) {
	auto := autobatcher.Options{Mode: autobatcher.ModeAuto, Resubmits: -1}
	realtime, escalates, fallsBack, noTier := auto, auto, auto, hopeless
	fallsBack.FlexFallback, noTier.FlexModels = autobatcher.FallbackRealtime, []string{"o3"}
	realtime.FlexFallback, realtime.Escalate = autobatcher.FallbackRealtime, autobatcher.EscalateFailed
	escalates.Escalate = autobatcher.EscalateFailed
	unread := func(s *scene) { s.srv.Keep(batchtest.OpContent, batchtest.Status(500, nil, "{}")) }
	full := func(s *scene) { s.srv.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable()) }
	for _, tt := range []struct {
		name    string
		server  batchtest.Options
		options autobatcher.Options
		before  func(*scene)
		path    string
		status  int
		mode    string // header of the answer
		paid    map[batchtest.Tier]int
	}{
		{"the batch fails", hopeless, auto, nil, "/chat/completions", 200, "flex", map[batchtest.Tier]int{"flex": 2}},
		{"the flex tier has no room", hopeless, realtime, full, "/chat/completions", 200, "realtime", map[batchtest.Tier]int{"default": 2}},
		{"the flex tier has no room, and the fallback is a batch", hopeless, escalates, full, "/chat/completions", 200, "realtime", map[batchtest.Tier]int{"default": 2}},
		{"the flex tier has no room, and no call is escalated", hopeless, auto, full, "/chat/completions", 424, "", map[batchtest.Tier]int{}},
		{"the model has no flex tier", noTier, realtime, nil, "/chat/completions", 200, "realtime", map[batchtest.Tier]int{"default": 2}},
		{"the model has no flex tier, and the fallback is real time", noTier, fallsBack, nil, "/chat/completions", 200, "realtime", map[batchtest.Tier]int{"default": 2}},
		{"the model has no flex tier, and no call is escalated", noTier, auto, nil, "/chat/completions", 424, "", map[batchtest.Tier]int{}},
		{"an endpoint without a flex tier", hopeless, auto, nil, "/embeddings", 424, "", map[batchtest.Tier]int{}},
		{"mode batch", hopeless, autobatcher.Options{Resubmits: -1}, nil, "/chat/completions", 424, "", map[batchtest.Tier]int{}},
		{"the answers are paid for and cannot be read", batchtest.Options{}, auto, unread, "/chat/completions", 424, "", map[batchtest.Tier]int{"batch": 2}},
	} {
		openAI(tt.server, tt.options).run(t, tt.name, func(s *scene) {
			if tt.before != nil {
				tt.before(s)
			}
			var calls []*pending
			for _, text := range []string{"a", "b"} {
				body := bodyTo(tt.path, text)
				calls = append(calls, s.send(tt.path, body))
			}
			for _, c := range calls {
				if r := c.within(48 * time.Hour); r.err != nil || r.status != tt.status || r.header.Get("Autobatcher-Mode") != tt.mode {
					s.Errorf("%d %q, %v, want %d %q: %s", r.status, r.header.Get("Autobatcher-Mode"), r.err, tt.status, tt.mode, r.body)
				}
			}
			if tt.mode != "" {
				s.sent(2) // no call goes back to a batch
			}
			if diff := cmp.Diff(tt.paid, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}

// A call in mode auto whose deadline comes near climbs to the flex tier while there is time
// for it, and then to real time.
func TestCallsClimbNearTheirDeadline(t *testing.T) {
	slow := func(delay time.Duration) batchtest.Options {
		return batchtest.Options{Turnaround: 10 * time.Hour, FlexDelay: delay}
	}
	options := func(mode autobatcher.Mode, when autobatcher.Escalation) autobatcher.Options {
		return autobatcher.Options{Mode: mode, Escalate: when, PollInterval: time.Minute}
	}
	full := func(s *scene) { s.srv.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable()) }
	auto := options(autobatcher.ModeAuto, autobatcher.EscalateDeadline)
	limited := auto
	limited.Prices = []byte(`{"m": {"input_cost_per_token": 0.001, "output_cost_per_token": 0.001}}`)
	limited.Budget = autobatcher.Budget{USD: 1.5} // half a dollar for each call in a batch or at the flex tier
	const at = 2*time.Hour - time.Minute - 15*time.Minute
	for _, tt := range []struct {
		name    string
		server  batchtest.Options
		options autobatcher.Options
		before  func(*scene)
		path    string
		status  int
		mode    string // header of the answer
		within  [2]time.Duration
		paid    map[batchtest.Tier]int
	}{
		{"in time", slow(10 * time.Minute), auto, nil, "/chat/completions", 200, "flex", [2]time.Duration{at + 10*time.Minute, at + 11*time.Minute}, map[batchtest.Tier]int{"flex": 2}},
		{"in the background", slow(10 * time.Minute), auto, nil, "/responses", 200, "flex", [2]time.Duration{at + 10*time.Minute, at + 12*time.Minute}, map[batchtest.Tier]int{"flex": 2}},
		{"no room", slow(0), auto, full, "/chat/completions", 200, "realtime", [2]time.Duration{119 * time.Minute, 119*time.Minute + time.Second}, map[batchtest.Tier]int{"default": 2}},
		{"too slow", slow(time.Hour), auto, nil, "/chat/completions", 200, "realtime", [2]time.Duration{119 * time.Minute, 119*time.Minute + time.Second}, map[batchtest.Tier]int{"default": 2}},
		{"no flex tier", slow(0), auto, nil, "/embeddings", 200, "realtime", [2]time.Duration{119 * time.Minute, 119*time.Minute + time.Second}, map[batchtest.Tier]int{"default": 2}},
		{"mode batch", slow(0), options(autobatcher.ModeBatch, autobatcher.EscalateDeadline), nil, "/chat/completions", 200, "realtime", [2]time.Duration{119 * time.Minute, 119*time.Minute + time.Second}, map[batchtest.Tier]int{"default": 2}},
		{"not allowed", slow(0), options(autobatcher.ModeAuto, autobatcher.EscalateFailed), nil, "/chat/completions", 424, "", [2]time.Duration{2 * time.Hour, 2 * time.Hour}, map[batchtest.Tier]int{}},
		{"the batch is in time", batchtest.Options{Turnaround: time.Hour}, auto, nil, "/chat/completions", 200, "", [2]time.Duration{30 * time.Minute, 62 * time.Minute}, map[batchtest.Tier]int{"batch": 2}},
	} {
		openAI(tt.server, tt.options).run(t, tt.name, func(s *scene) {
			if tt.before != nil {
				tt.before(s)
			}
			var calls []*pending
			for _, text := range []string{"a", "b"} {
				body := bodyTo(tt.path, text)
				calls = append(calls, s.send(tt.path, body, with("Autobatcher-Deadline", "2h")))
			}
			for _, c := range calls {
				r := c.within(3 * time.Hour)
				if r.err != nil || r.status != tt.status || r.header.Get("Autobatcher-Mode") != tt.mode || r.at < tt.within[0] || r.at > tt.within[1] {
					s.Errorf("%d %q after %v, %v; want %d %q after %v: %s", r.status, r.header.Get("Autobatcher-Mode"), r.at, r.err, tt.status, tt.mode, tt.within, r.body)
				}
			}
			s.until(24 * time.Hour)
			if diff := cmp.Diff(tt.paid, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
			if first := s.srv.Batches()[0]; len(s.srv.Batches()) != 1 || first.CancelRequested != (tt.paid["batch"] == 0) {
				s.Errorf("%d batches, the first %+v", len(s.srv.Batches()), first)
			}
		})
	}
	openAI(slow(10*time.Minute), limited).run(t, "the budget has room for one call", func(s *scene) {
		for _, text := range []string{"a", "b"} {
			s.send("/chat/completions", `{"model":"m","max_tokens":900,"messages":[{"role":"user","content":"`+text+`"}]}`, with("Autobatcher-Deadline", "2h"))
		}
		s.until(3 * time.Hour)
		if got := s.srv.PaidTiers()["flex"]; got != 1 {
			s.Errorf("%d calls at the flex tier, want 1", got)
		}
	})
}

// The time of a flex call is the time until the answer, also of a call that is held open
// at the provider. A call that the provider refuses at once says nothing about the time of
// an answer, and neither does the time before a call is sent again.
func TestFlexTimes(t *testing.T) {
	const took = 8 * time.Minute
	bad := func(l batchtest.Line) batchtest.Outcome {
		if strings.Contains(string(l.Body), "bad") {
			return batchtest.Outcome{Status: 400}
		}
		return batchtest.Echo(l)
	}
	for _, path := range []string{"/chat/completions", "/responses"} {
		openAI(batchtest.Options{FlexDelay: took, Answer: bad}, autobatcher.Options{Mode: autobatcher.ModeFlex}).run(t, path, func(s *scene) {
			s.srv.Control(batchtest.OpRealtime, batchtest.Status(400, nil, `{"error":{"message":"no"}}`), batchtest.FlexUnavailable())
			if r := s.post(path, bodyTo(path, "bad")); r.status != 400 {
				s.Errorf("%d %s", r.status, r.body)
			}
			synctest.Wait() // a batch ends after its callers have their answers
			if known := s.tr.Stats().Times; len(known) != 0 {
				s.Errorf("a call that was refused teaches %+v", known)
			}
			s.post(path, bodyTo(path, "good")).says("good")
			synctest.Wait()
			known := s.tr.Stats().Times
			if len(known) != 1 || known[0].Count != 1 || known[0].Median < took || known[0].Median > took+10*time.Second {
				s.Errorf("times %+v, want one of %v", known, took)
			}
		})
	}
	auto := autobatcher.Options{Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute}
	openAI(batchtest.Options{Turnaround: 10 * time.Hour, FlexDelay: took}, auto).run(t, "a call climbs in time", func(s *scene) {
		s.srv.Control(batchtest.OpRealtime, func(w http.ResponseWriter, r *http.Request) bool {
			time.Sleep(2 * time.Minute)
			batchtest.Proceed(w, r)
			return true
		})
		s.post("/chat/completions", chatBody("x"), with("Autobatcher-Mode", "flex"))
		one, two := s.chat("a", with("Autobatcher-Deadline", "2h")), s.chat("b", with("Autobatcher-Deadline", "2h"))
		for _, c := range []*pending{one, two} {
			if r := c.within(3 * time.Hour); r.status != 200 || r.header.Get("Autobatcher-Mode") != "flex" {
				s.Errorf("%d, lane %q, after %v: %s", r.status, r.header.Get("Autobatcher-Mode"), r.at, r.body)
			}
		}
		s.until(24 * time.Hour)
		if diff := cmp.Diff(map[batchtest.Tier]int{"flex": 3}, s.srv.PaidTiers()); diff != "" {
			s.Errorf("paid (-want +got):\n%s", diff)
		}
	})
}

// Mode auto learns from batches that end too late, too: from batches that expire, and from
// batches that the provider never ends.
func TestAutoLearnsFromLateBatches(t *testing.T) {
	const day = 24 * time.Hour
	late := autobatcher.Options{Resubmits: -1}
	for _, tt := range []struct {
		name string
		u    setup
		then func(*scene, *pending) // while the call waits for its batch
		want time.Duration          // the time that is known afterwards; 0: none
	}{
		{"expired", openAI(batchtest.Options{Turnaround: 2 * day}, late), nil, day},
		{"overdue", doubleword(batchtest.Options{Turnaround: 3 * day}, autobatcher.Options{CompletionWindow: "24h", Resubmits: -1}), nil, 2 * day},
		{"cancelled", openAI(batchtest.Options{Turnaround: 2 * day}, late), func(_ *scene, c *pending) { c.left() }, 0},
		{"failed", openAI(batchtest.Options{Turnaround: 2 * day}, late), func(s *scene, _ *pending) {
			if err := s.srv.FailBatch(s.batch().ID, "quota_exceeded", "no credit", 0); err != nil {
				s.Error(err)
			}
		}, 0},
	} {
		tt.u.run(t, tt.name, func(s *scene) {
			first := s.chat("a", with("Autobatcher-Mode", "batch"))
			s.until(time.Minute)
			if tt.then != nil {
				tt.then(s, first)
			}
			s.until(3 * day)
			known := s.tr.Stats().Times
			if tt.want == 0 {
				if len(known) != 0 || s.batch().Status != tt.name {
					s.Errorf("times %+v, want none; the batch is %s", known, s.batch().Status)
				}
				return
			}
			if len(known) != 1 || known[0].Count != 1 || known[0].Median < tt.want || known[0].Median > tt.want+5*time.Minute {
				s.Errorf("times %+v, want one of %v", known, tt.want)
			}
			auto := []edit{with("Autobatcher-Mode", "auto"), with("Autobatcher-Deadline", "2h")}
			one, two := s.chat("b", auto...), s.chat("c", auto...)
			for _, c := range []*pending{one, two} {
				if r := c.within(3 * time.Hour); r.status != 200 || r.header.Get("Autobatcher-Mode") != "flex" {
					s.Errorf("%d, lane %q: %s", r.status, r.header.Get("Autobatcher-Mode"), r.body)
				}
			}
		})
	}
}

// The caller of a call that has climbed leaves, and makes the call again: the call gets
// the line of its batch, and no third line is paid for.
func TestACallThatClimbedComesBack(t *testing.T) {
	o := autobatcher.Options{Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute}
	openAI(batchtest.Options{Turnaround: 3 * time.Hour, FlexDelay: 10 * time.Minute}, o).run(t, "back", func(s *scene) {
		first := s.send("/responses", responseBody("a"), with("Autobatcher-Deadline", "2h"))
		s.send("/responses", responseBody("b"))
		s.until(time.Hour + 46*time.Minute)
		first.left()
		s.until(time.Hour + 47*time.Minute)
		if r := s.send("/responses", responseBody("a")).within(4 * time.Hour); r.status != 200 || r.header.Get("Autobatcher-Mode") != "" {
			s.Errorf("%d %v %s", r.status, r.header, r.body)
		}
		s.until(5 * time.Hour)
		if diff := cmp.Diff(map[batchtest.Tier]int{"batch": 2}, s.srv.PaidTiers()); diff != "" {
			s.Errorf("paid (-want +got):\n%s", diff)
		}
		s.sent(2)
	})
}

// A retry that gets the flex call of an earlier call, which was alone in its batch, is at the
// flex tier already, and does not climb there again.
func TestARetryAtTheFlexTierDoesNotClimb(t *testing.T) {
	p := provider.Doubleword()
	o := autobatcher.Options{Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, Provider: &p}
	for _, path := range []string{"/responses", "/chat/completions"} {
		scenario := setup{server: batchtest.Options{Behavior: batchtest.Doubleword(), FlexDelay: 30 * time.Minute}, options: o}
		scenario.run(t, path, func(s *scene) {
			first := s.send(path, bodyTo(path, "a"))
			s.until(time.Minute)
			first.left()
			s.until(2 * time.Minute)
			retry := s.send(path, bodyTo(path, "a"), with("Autobatcher-Deadline", "65m")) // the deadline is near after 4 minutes
			if r := retry.within(2 * time.Hour); r.status != 200 || r.header.Get("Autobatcher-Mode") != "flex" || r.at > 32*time.Minute {
				s.Errorf("%d %v after %v: %s", r.status, r.header, r.at, r.body)
			}
			s.until(5 * time.Hour)
			if diff := cmp.Diff(map[batchtest.Tier]int{"flex": 1}, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}

// A call that has climbed gets the answer of its batch, if the batch answers first: no call
// is sent in real time, and the caller does not wait for the flex tier.
func TestTheBatchAnswersACallThatClimbed(t *testing.T) {
	for name, store := range map[string]journal.Store{"without a journal": nil, "with a journal": journal.NewMemory()} {
		o := autobatcher.Options{Mode: autobatcher.ModeAuto, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute, Journal: store}
		openAI(batchtest.Options{Turnaround: 106 * time.Minute, FlexDelay: 40 * time.Minute}, o).run(t, name, func(s *scene) {
			first := s.send("/responses", responseBody("a"), with("Autobatcher-Deadline", "2h"))
			s.send("/responses", responseBody("b"))
			r := first.within(2 * time.Hour)
			if r.status != 200 || r.header.Get("Autobatcher-Mode") != "" || r.at < 105*time.Minute || r.at > 108*time.Minute || !strings.Contains(r.body, "a") {
				s.Errorf("%d %v after %v: %s", r.status, r.header, r.at, r.body)
			}
			s.until(2 * time.Hour)
			if stats := s.tr.Stats(); stats.Answered != 2 || stats.Flex.Answered != 0 || stats.Failed != 0 {
				s.Errorf("%+v", stats)
			}
			s.until(24 * time.Hour)
			if diff := cmp.Diff(map[batchtest.Tier]int{"batch": 2}, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
			if again := s.send("/responses", responseBody("a")).within(time.Hour); again.header.Get("Autobatcher-Batch-Id") == r.header.Get("Autobatcher-Batch-Id") {
				s.Error("the answer was given to a second call")
			}
			s.sent(2)
		})
	}
}

// A response that failed in the background has the error of a call in the foreground,
// with all members of OpenAI's errors.
func TestErrorOfAResponseInTheBackground(t *testing.T) {
	server := batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{ResponseStatus: "failed"} }}
	openAI(server, autobatcher.Options{Mode: autobatcher.ModeFlex}).run(t, "failed", func(s *scene) {
		r := s.send("/responses", responseBody("a")).within(time.Hour)
		var got struct {
			Error map[string]any `json:"error"`
		}
		if err := json.Unmarshal([]byte(r.body), &got); err != nil {
			s.Fatal(err)
		}
		if e := got.Error; len(e) != 4 || e["code"] != "server_error" || e["type"] != "server_error" || e["param"] != nil || e["message"] == "" {
			s.Errorf("%d %s", r.status, r.body)
		}
	})
}

// The caller's own choice of a tier that costs another price is respected.
func TestServiceTier(t *testing.T) {
	for tier, want := range map[string]map[batchtest.Tier]int{
		`"flex"`: {"flex": 1}, `"priority"`: {"priority": 1},
		`"auto"`: {"batch": 1}, `"default"`: {"batch": 1}, `null`: {"batch": 1},
	} {
		openAI(batchtest.Options{}, autobatcher.Options{}).run(t, tier, func(s *scene) {
			r := s.post("/chat/completions", `{"service_tier":`+tier+`,"model":"m","messages":[{"role":"user","content":"a"}]}`)
			if r.status != http.StatusOK {
				s.Errorf("%d %s", r.status, r.body)
			}
			if diff := cmp.Diff(want, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}

// A batch is sent when no call has come for a while; the queue after it waits its
// whole window.
func TestQuietAfter(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after time.Duration
		calls []time.Duration // when calls come
		sent  []int           // calls in each batch
		last  time.Duration   // when the last call is answered
	}{
		{"twenty calls at once", time.Second, make([]time.Duration, 20), []int{20}, 1250*time.Millisecond + 500*time.Millisecond},
		{"calls that keep coming", time.Second, []time.Duration{0, 700 * time.Millisecond, 1400 * time.Millisecond}, []int{3}, 2500*time.Millisecond + 500*time.Millisecond},
		{"calls every two seconds", time.Second, []time.Duration{0, 2 * time.Second, 4 * time.Second, 6 * time.Second}, []int{1, 3}, 12*time.Second + 5*time.Second},
		{"a second burst", time.Second, []time.Duration{0, 0, 11 * time.Second, 11 * time.Second}, []int{2, 2}, 12250*time.Millisecond + 500*time.Millisecond},
		{"never early", -1, []time.Duration{0}, []int{1}, 10*time.Second + 5*time.Second},
	} {
		openAI(batchtest.Options{}, autobatcher.Options{QuietAfter: tt.after}).run(t, tt.name, func(s *scene) {
			var calls []*pending
			for i, at := range tt.calls {
				s.until(at)
				calls = append(calls, s.chat(string(rune('a'+i))))
			}
			var last time.Duration
			for _, c := range calls {
				last = max(last, c.wait().at)
			}
			if last != tt.last {
				s.Errorf("the last answer came at %v, want %v", last, tt.last)
			}
			s.sent(tt.sent...)
		})
	}
}

// A process that dies while calls run at the flex tier leaves their ids in the
// journal: nothing is paid for twice.
func TestFlexAfterACrash(t *testing.T) {
	p := provider.OpenAI()
	o := autobatcher.Options{Mode: autobatcher.ModeFlex, Provider: &p}
	for _, tt := range []struct {
		name, path, body string
		shutdown         bool // instead of a crash
		full             bool // the tier has no room until the crash
		status           int
		want             string // in the body
		paid             int
	}{
		{"a response in the background", "/responses", responseBody("one"), false, false, 200, "one", 1},
		{"a response in the background, after Close", "/responses", responseBody("one"), true, false, 200, "one", 1},
		{"a call that was held open", "/chat/completions", chatBody("one"), false, false, 424, "batch_create_unknown", 0},
		{"a call that was refused", "/chat/completions", chatBody("one"), false, true, 200, "one", 1},
		{"a response in the background that was refused", "/responses", responseBody("one"), false, true, 200, "one", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, batchtest.Options{Behavior: batchtest.OpenAI(), FlexDelay: 10 * time.Minute})
				post := func(p *process) <-chan outcome {
					return p.ask(t.Context(), "", func(r *http.Request) {
						r.URL.Path = strings.TrimSuffix(r.URL.Path, "/chat/completions") + tt.path
						r.Body, r.ContentLength = io.NopCloser(strings.NewReader(tt.body)), int64(len(tt.body))
					})
				}
				room := func() {}
				if tt.full {
					room = f.srv.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable())
				}
				a := f.start(o)
				post(a)
				time.Sleep(time.Minute)
				if room(); tt.shutdown {
					a.Close()
				} else {
					a.cut()
				}
				b := f.start(o)
				r := <-post(b)
				if r.err != nil || r.status != tt.status || !strings.Contains(r.body, tt.want) {
					t.Errorf("%d %v %s; want %d with %s", r.status, r.err, r.body, tt.status, tt.want)
				}
				f.wantPaid(tt.paid, 0)
			})
		})
	}
}

// The caller of a flex call leaves, and makes the same call later: what was paid for
// answers the call, and nothing is paid for twice.
func TestAFlexCallThatComesBack(t *testing.T) {
	const chat, response = "/chat/completions", "/responses"
	for _, tt := range []struct {
		name       string
		doubleword bool
		path       string
		delay      time.Duration
		full       bool // the tier has no room until the call comes back
		poll       time.Duration
		leaves     time.Duration
		closes     bool // the first process, which gets the second call otherwise
		elsewhere  bool // the second call goes to another process
		back       time.Duration
		status     int
		within     time.Duration // of the second call
		paid       int
	}{
		{name: "a call that was held open", path: chat, delay: 10 * time.Minute, leaves: 5 * time.Minute, back: 11 * time.Minute, status: 200, within: time.Minute, paid: 1},
		{name: "a call that was held open by another process", path: chat, delay: 10 * time.Minute, leaves: 5 * time.Minute, elsewhere: true, back: 11 * time.Minute, status: 424, within: time.Minute, paid: 1},
		{name: "a call that was refused until its process closed", path: chat, full: true, leaves: time.Minute, closes: true, elsewhere: true, back: 2 * time.Minute, status: 200, within: time.Minute, paid: 1},
		{name: "a response that was deleted since no caller waited", doubleword: true, path: response, delay: 20 * time.Minute, leaves: time.Minute, back: 15 * time.Minute, status: 200, within: 21 * time.Minute, paid: 1},
		{name: "a deleted response, at another process", doubleword: true, path: response, delay: 20 * time.Minute, leaves: time.Minute, elsewhere: true, back: 10 * time.Minute, status: 200, within: 21 * time.Minute, paid: 1},
		{name: "a response that ended before it was to be deleted", doubleword: true, path: response, delay: time.Minute, poll: time.Hour, leaves: 30 * time.Second, back: 10 * time.Minute, status: 200, within: time.Hour, paid: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, behavior := provider.OpenAI(), batchtest.OpenAI()
				if tt.doubleword {
					p, behavior = provider.Doubleword(), batchtest.Doubleword()
				}
				f := newFleet(t, batchtest.Options{Behavior: behavior, FlexDelay: tt.delay})
				o := autobatcher.Options{Mode: autobatcher.ModeFlex, Provider: &p, PollInterval: tt.poll}
				post := func(ctx context.Context, p *process) <-chan outcome {
					body := map[string]string{chat: chatBody("one"), response: responseBody("one")}[tt.path]
					return p.ask(ctx, "", func(r *http.Request) {
						r.URL.Path = strings.TrimSuffix(r.URL.Path, chat) + tt.path
						r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
					})
				}
				room := func() {}
				if tt.full {
					room = f.srv.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable())
				}
				a := f.start(o)
				ctx, leave := context.WithCancel(t.Context())
				first := post(ctx, a)
				time.Sleep(tt.leaves)
				if tt.closes {
					a.Close()
				}
				leave()
				<-first
				time.Sleep(tt.back - tt.leaves)
				room()
				b := a
				if tt.elsewhere {
					b = f.start(o)
				}
				r := <-post(t.Context(), b)
				if r.err != nil || r.status != tt.status || r.at > tt.back+tt.within {
					t.Errorf("%d %v after %v: %s; want %d within %v", r.status, r.err, r.at, r.body, tt.status, tt.back+tt.within)
				}
				f.wantPaid(tt.paid, 0)
			})
		})
	}
}

// A response that runs in the background, and that no caller waits for, is cancelled.
func TestFlexIsCancelled(t *testing.T) {
	for name, u := range map[string]setup{
		"openai":     openAI(batchtest.Options{FlexDelay: time.Hour}, autobatcher.Options{Mode: autobatcher.ModeFlex}),
		"doubleword": doubleword(batchtest.Options{FlexDelay: time.Hour}, autobatcher.Options{Mode: autobatcher.ModeFlex}),
	} {
		u.run(t, name, func(s *scene) {
			call := s.send("/responses", responseBody("a"))
			s.until(time.Minute)
			call.left()
			s.until(10 * time.Minute)
			all := s.srv.Responses()
			if len(all) != 1 || !all[0].CancelRequested && !all[0].Deleted || len(s.srv.Executed()) != 0 {
				s.Errorf("%+v; want one response, cancelled or deleted, and nothing executed", all)
			}
		})
	}
}

// The cost of a call at the flex tier is that of the tier in the answer.
func TestFlexCosts(t *testing.T) {
	prices := []byte(`{"m": {"input_cost_per_token": 0.1, "output_cost_per_token": 0.2, "input_cost_per_token_flex": 0.05, "output_cost_per_token_flex": 0.1}}`)
	for tier, share := range map[batchtest.Tier]float64{"": 0.5, batchtest.TierDefault: 1} {
		server := batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
			o := batchtest.Echo(l)
			o.Tier = tier
			return o
		}}
		openAI(server, autobatcher.Options{Mode: autobatcher.ModeFlex, Prices: prices}).run(t, string(tier), func(s *scene) {
			s.post("/chat/completions", chatBody("a"))
			c := s.tr.Stats().Cost
			full := 0.1*float64(c.InputTokens) + 0.2*float64(c.OutputTokens)
			if c.Priced != 1 || math.Abs(c.USD-full*share) > 1e-9 || math.Abs(c.Savings-full*(1-share)) > 1e-9 {
				s.Errorf("%+v; want %v of %v US dollars", c, share, full)
			}
		})
	}
}

// A caller that asked for a stream gets one.
func TestFlexStream(t *testing.T) {
	openAI(batchtest.Options{}, autobatcher.Options{Mode: autobatcher.ModeFlex}).play(t, func(s *scene) {
		r := s.post("/chat/completions", `{"stream":true,"model":"m","messages":[{"role":"user","content":"a"}]}`)
		if r.status != 200 || !strings.HasPrefix(r.header.Get("Content-Type"), "text/event-stream") || !strings.HasSuffix(r.body, "data: [DONE]\n\n") {
			s.Errorf("%d %v %s", r.status, r.header, r.body)
		}
		if got := r.header.Get("Autobatcher-Mode"); got != "flex" {
			s.Errorf("Autobatcher-Mode is %q, want flex", got)
		}
	})
}

// A flex call that may be paid for is not sent again, with each value of Escalate.
func TestABrokenFlexCallIsSentOnce(t *testing.T) {
	for _, when := range []autobatcher.Escalation{autobatcher.EscalateNever, autobatcher.EscalateFailed, autobatcher.EscalateDeadline} {
		for name, fault := range map[string]batchtest.Fault{"the connection breaks": batchtest.LoseAnswer(), "the provider stops waiting": batchtest.Status(504, nil, `{"error":{"message":"x"}}`), "the request timed out": batchtest.Status(408, nil, `{"error":{"message":"x"}}`), "a gateway stops waiting": batchtest.HTML(408), "a gateway got no answer": batchtest.Status(502, nil, `{"error":{"message":"x"}}`), "a gateway waited too long": batchtest.Status(524, nil, `{"error":{"message":"x"}}`)} {
			for _, path := range []string{"/chat/completions", "/responses"} {
				o := autobatcher.Options{Mode: autobatcher.ModeFlex, Escalate: when}
				openAI(batchtest.Options{}, o).run(t, fmt.Sprint(when, ", ", name, path), func(s *scene) {
					s.srv.Control(batchtest.OpRealtime, fault)
					r := s.send(path, bodyTo(path, "a")).within(3 * time.Hour)
					if n := s.count("POST", path); n != 1 || r.status != 424 {
						s.Errorf("sent %d times, %d: %s; want once, 424", n, r.status, r.body)
					}
				})
			}
		}
	}
}

// The message for a flex call whose deadline came is true of a call that was sent and is
// held open, and of a call that was not sent. The same call again is paid for once.
func TestLateFlexCalls(t *testing.T) {
	o := autobatcher.Options{Mode: autobatcher.ModeFlex}
	for _, tt := range []struct {
		name, path string
		full       bool
		deadline   time.Duration
		says       string
		answered   time.Duration // when the same call again is answered, at the latest
	}{
		{"a call that is held open", "/chat/completions", false, 5 * time.Minute, "the flex call did not answer within the call's deadline of 5m0s; if the call was sent, the same call again to this process gets its answer", 10 * time.Minute},
		{"a response in the background", "/responses", false, 5 * time.Minute, "takes over its line", 10*time.Minute + time.Minute},
		{"a call that no room was found for", "/chat/completions", true, time.Minute, "the flex call did not answer within the call's deadline of 1m0s; if the call was sent, the same call again to this process gets its answer", 16 * time.Minute},
	} {
		openAI(batchtest.Options{FlexDelay: 10 * time.Minute}, o).run(t, tt.name, func(s *scene) {
			stop := func() {}
			if tt.full {
				stop = s.srv.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable())
			}
			m := s.send(tt.path, bodyTo(tt.path, "a"), with("Autobatcher-Deadline", tt.deadline.String())).want(424, tt.deadline).fails("batch_deadline_exceeded")
			if !strings.Contains(m, tt.says) {
				s.Errorf("message %q, want %q", m, tt.says)
			}
			s.until(6 * time.Minute)
			stop()
			r := s.send(tt.path, bodyTo(tt.path, "a")).within(time.Hour)
			if r.status != 200 || r.at > tt.answered {
				s.Errorf("the same call again: %d after %v, want 200 after %v: %s", r.status, r.at, tt.answered, r.body)
			}
			if diff := cmp.Diff(map[batchtest.Tier]int{"flex": 1}, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}

// A retry may get the line of an earlier call in another lane. The lane of the line decides
// whether the retry is sent again, and in which lane.
func TestRetriesInAnotherLane(t *testing.T) {
	slow := func(f batchtest.Fault) batchtest.Fault {
		return func(w http.ResponseWriter, r *http.Request) bool {
			time.Sleep(time.Minute)
			return f(w, r)
		}
	}
	full := func(s *scene) { s.srv.Control(batchtest.OpRealtime, every(14, batchtest.FlexUnavailable())...) } // for two minutes
	loses := func(s *scene) { s.srv.Control(batchtest.OpRealtime, slow(batchtest.LoseAnswer())) }
	unread := func(s *scene) { s.srv.Keep(batchtest.OpContent, batchtest.HTML(403)) }
	const never, failed = autobatcher.EscalateNever, autobatcher.EscalateFailed
	const toBatch, realtime = autobatcher.FallbackBatch, autobatcher.FallbackRealtime
	for _, tt := range []struct {
		name          string
		first, second string // modes
		before        func(*scene)
		escalate      autobatcher.Escalation
		fallback      autobatcher.FlexFallback
		status        int
		mode          string // header of the answer
		paid          map[batchtest.Tier]int
	}{
		{"a flex call that may be paid for, mode batch", "flex", "batch", loses, failed, toBatch, 424, "flex", map[batchtest.Tier]int{"flex": 1}},
		{"a flex call that may be paid for, mode auto", "flex", "auto", loses, failed, toBatch, 424, "flex", map[batchtest.Tier]int{"flex": 1}},
		{"a lone call that may be paid for", "auto", "auto", loses, failed, toBatch, 424, "flex", map[batchtest.Tier]int{"flex": 1}},
		{"no room, mode batch", "flex", "batch", full, never, toBatch, 200, "", map[batchtest.Tier]int{"batch": 1}},
		{"no room, a lone call", "auto", "auto", full, never, toBatch, 200, "", map[batchtest.Tier]int{"batch": 1}},
		{"no room, mode batch, else real time", "flex", "batch", full, never, realtime, 200, "realtime", map[batchtest.Tier]int{"default": 1}},
		{"no room, a lone call, else real time", "auto", "auto", full, never, realtime, 200, "realtime", map[batchtest.Tier]int{"default": 1}},
		{"results of a batch that cannot be read, mode flex", "batch", "flex", unread, failed, toBatch, 200, "realtime", map[batchtest.Tier]int{"batch": 1, "default": 1}},
	} {
		o := autobatcher.Options{Escalate: tt.escalate, FlexFallback: tt.fallback, PollInterval: time.Minute}
		openAI(batchtest.Options{Turnaround: time.Hour}, o).run(t, tt.name, func(s *scene) {
			tt.before(s)
			first := s.chat("a", with("Autobatcher-Mode", tt.first))
			s.until(30 * time.Second)
			first.left()
			s.until(31 * time.Second)
			r := s.chat("a", with("Autobatcher-Mode", tt.second)).within(48 * time.Hour)
			if r.status != tt.status || r.header.Get("Autobatcher-Mode") != tt.mode {
				s.Errorf("%d %q after %v, want %d %q: %s", r.status, r.header.Get("Autobatcher-Mode"), r.at, tt.status, tt.mode, r.body)
			}
			if got := s.tr.Stats(); (got.Failed == 1) != (tt.status == 424) || got.Flex.Failed != got.Failed {
				s.Errorf("%d calls failed, %d of them at the flex tier", got.Failed, got.Flex.Failed)
			}
			if diff := cmp.Diff(tt.paid, s.srv.PaidTiers()); diff != "" {
				s.Errorf("paid (-want +got):\n%s", diff)
			}
		})
	}
}
