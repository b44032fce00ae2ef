package blackbox_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/credential"
	"github.com/autobatcher/autobatcher/internal/flexapi"
	"github.com/autobatcher/autobatcher/provider"
)

// Answers to calls at the flex tier that the provider billed at another tier are counted,
// have the price of that tier, and are logged once for each model.
func TestOtherTiers(t *testing.T) {
	prices := autobatcher.Options{Prices: []byte(`{"m": {"input_cost_per_token": 8, "output_cost_per_token": 8, "input_cost_per_token_batches": 5, "output_cost_per_token_batches": 5,
		"input_cost_per_token_flex": 4, "output_cost_per_token_flex": 4, "input_cost_per_token_priority": 16, "output_cost_per_token_priority": 16}}`)}
	answersAt := func(tier batchtest.Tier) batchtest.Options {
		return batchtest.Options{FlexDelay: time.Minute, Answer: func(l batchtest.Line) batchtest.Outcome {
			o := batchtest.Echo(l)
			o.Tier = tier
			return o
		}}
	}
	names := func(tier string) batchtest.Options { // the answer names a tier that the provider does not sell
		return batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
			o := batchtest.Echo(l)
			o.Body = []byte(strings.Replace(string(o.Body), "{", `{"service_tier":"`+tier+`",`, 1))
			return o
		}}
	}
	const chat, response = "/chat/completions", "/responses"
	for _, tt := range []struct {
		name   string
		server batchtest.Options
		mode   autobatcher.Mode
		path   string
		leaves bool // the caller, before the answer
		tokens float64
		other  int64
		logged string // the tier
	}{
		{"chat at the flex tier", answersAt(""), "flex", chat, false, 4, 0, ""},
		{"chat at the default tier", answersAt("default"), "flex", chat, false, 8, 1, "default"},
		{"chat at a dearer tier", answersAt("priority"), "flex", chat, false, 16, 1, "priority"},
		{"chat whose caller leaves", answersAt("default"), "flex", chat, true, 8, 1, "default"},
		{"a response in the background at the flex tier", answersAt(""), "flex", response, false, 4, 0, ""},
		{"a response in the background at the default tier", answersAt("default"), "flex", response, false, 8, 1, "default"},
		{"a line of a batch that names no tier", answersAt("default"), "batch", chat, false, 5, 0, ""},
		{"a line of a batch that names its tier", names("batch"), "batch", chat, false, 5, 0, ""},
		{"a line of a batch that names another tier", names("default"), "batch", response, false, 5, 0, ""},
		{"a call in real time", answersAt(""), "realtime", chat, false, 0, 0, ""},
	} {
		var log bytes.Buffer
		o := prices
		o.Mode, o.Logger = tt.mode, slog.New(slog.NewTextHandler(&log, nil))
		openAI(tt.server, o).run(t, tt.name, func(s *scene) {
			body := map[string]func(string) string{chat: chatBody, response: responseBody}[tt.path]
			for i := range int64(3) {
				call := s.send(tt.path, body(fmt.Sprint(i)))
				if tt.leaves {
					s.until(s.elapsed() + 30*time.Second)
					call.left()
					s.until(s.elapsed() + time.Minute)
				} else if r := call.within(time.Hour); r.err != nil || r.status != 200 {
					s.Fatalf("%d %v: %s", r.status, r.err, r.body)
				}
				synctest.Wait()
				stats := s.tr.Stats()
				c := stats.Cost
				if want := tt.other * (i + 1); c.OtherTier != want || want > 0 && (len(stats.Costs) != 1 || stats.Costs[0].Model != "m" || stats.Costs[0].Lane != autobatcher.ModeFlex || stats.Costs[0].Cost != c) {
					s.Errorf("after %d calls: %+v; want %d at another tier", i+1, stats.Costs, want)
				}
				if want := tt.tokens * float64(c.InputTokens+c.OutputTokens); math.Abs(c.USD-want) > 1e-9 || tt.tokens > 0 && c.Priced != i+1 {
					s.Errorf("after %d calls: %+v; want a cost of %v", i+1, c, want)
				}
			}
			warned := strings.Count(log.String(), "billed a call at the flex tier at another tier")
			if int64(warned) != tt.other || !strings.Contains(log.String(), tt.logged) {
				s.Errorf("%d warnings, want %d for the tier %q:\n%s", warned, tt.other, tt.logged, log.String())
			}
		})
	}
}

// A call that takes over the line of an earlier call in another lane has the lane, and the
// cost, of the line.
func TestTheLaneOfATakenLine(t *testing.T) {
	prices := []byte(`{"m": {"input_cost_per_token": 8, "output_cost_per_token": 8, "input_cost_per_token_batches": 5, "output_cost_per_token_batches": 5}}`)
	server := batchtest.Options{Turnaround: time.Hour, Answer: func(l batchtest.Line) batchtest.Outcome {
		o := batchtest.Echo(l)
		o.Body = []byte(strings.Replace(string(o.Body), "{", `{"service_tier":"default",`, 1))
		return o
	}}
	openAI(server, autobatcher.Options{Prices: prices}).run(t, "", func(s *scene) {
		first := s.send("/chat/completions", chatBody("one"))
		s.until(time.Minute)
		first.left()
		r := s.do(s.request(s.Context(), "/chat/completions", chatBody("one"), with("Autobatcher-Mode", "flex")))
		synctest.Wait()
		stats := s.tr.Stats()
		c := stats.Cost
		if r.status != 200 || r.header.Get("Autobatcher-Mode") != "" || len(s.srv.Executed()) != 1 {
			s.Errorf("status %d, mode %q, executed %d", r.status, r.header.Get("Autobatcher-Mode"), len(s.srv.Executed()))
		}
		if want := 5 * float64(c.InputTokens+c.OutputTokens); c.USD != want || c.OtherTier != 0 || stats.Flex.Answered != 0 || stats.Answered != 1 {
			s.Errorf("%+v; want a cost of %v, in a batch", stats, want)
		}
	})
}

// The statistics count the calls at the flex tier apart, in the lane where they wait or end.
func TestFlexStats(t *testing.T) {
	slow := batchtest.Options{FlexDelay: 12 * time.Minute, Turnaround: time.Hour}
	bad := slow
	bad.Answer = func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: 400} }
	options := func(mode autobatcher.Mode, fallback autobatcher.FlexFallback) autobatcher.Options {
		return autobatcher.Options{Mode: mode, FlexFallback: fallback}
	}
	full := func(s *scene) { s.srv.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable()) }
	for _, tt := range []struct {
		name    string
		server  batchtest.Options
		options autobatcher.Options
		before  func(*scene)
		path    string
		waiting autobatcher.FlexStats // after ten minutes
		ended   autobatcher.FlexStats
	}{
		{"chat", slow, options("flex", ""), nil, "/chat/completions", autobatcher.FlexStats{Waiting: 2}, autobatcher.FlexStats{Answered: 2}},
		{"in the background", slow, options("flex", ""), nil, "/responses", autobatcher.FlexStats{Waiting: 2}, autobatcher.FlexStats{Answered: 2}},
		{"error answers", bad, options("flex", ""), nil, "/chat/completions", autobatcher.FlexStats{Waiting: 2}, autobatcher.FlexStats{Answered: 2, Errors: 2}},
		{"no room", slow, options("flex", "fail"), full, "/chat/completions", autobatcher.FlexStats{Failed: 2}, autobatcher.FlexStats{Failed: 2}},
		{"no room, and then in a batch", slow, options("flex", "batch"), full, "/chat/completions", autobatcher.FlexStats{}, autobatcher.FlexStats{}},
		{"no room, and then in real time", slow, options("flex", "realtime"), full, "/chat/completions", autobatcher.FlexStats{}, autobatcher.FlexStats{}},
		{"a batch", slow, options("batch", ""), nil, "/chat/completions", autobatcher.FlexStats{}, autobatcher.FlexStats{}},
	} {
		openAI(tt.server, tt.options).run(t, tt.name, func(s *scene) {
			if tt.before != nil {
				tt.before(s)
			}
			calls := []*pending{s.send(tt.path, bodyTo(tt.path, "a")), s.send(tt.path, bodyTo(tt.path, "b"))}
			s.until(10 * time.Minute)
			if got := s.tr.Stats().Flex; got != tt.waiting {
				s.Errorf("after ten minutes %+v, want %+v", got, tt.waiting)
			}
			for _, c := range calls {
				c.wait()
			}
			synctest.Wait()
			if got := s.tr.Stats().Flex; got != tt.ended {
				s.Errorf("at the end %+v, want %+v", got, tt.ended)
			}
		})
	}
}

// A response in the background that somebody else cancels, such as a person on the page of
// serve, ends without an answer: at Doubleword, where it is deleted, after ten minutes.
func TestFlexIsCancelledElsewhere(t *testing.T) {
	server, options := batchtest.Options{FlexDelay: 50 * time.Minute}, autobatcher.Options{Mode: autobatcher.ModeFlex}
	for _, tt := range []struct {
		name  string
		setup setup
		code  string
		ends  [2]time.Duration
	}{
		{"openai", openAI(server, options), autobatcher.CodeBatchCancelled, [2]time.Duration{time.Minute, 2 * time.Minute}},
		{"doubleword", doubleword(server, options), autobatcher.CodeBatchLost, [2]time.Duration{10 * time.Minute, 12 * time.Minute}},
	} {
		tt.setup.run(t, tt.name, func(s *scene) {
			call := s.send("/responses", responseBody("a"))
			s.until(time.Minute)
			base, err := url.Parse(s.srv.URL)
			if err != nil {
				s.Fatal(err)
			}
			other := flexapi.New(base, credential.With(http.Header{"Authorization": {"Bearer sk-test"}}, s.srv.Transport()), tt.setup.options.Provider, new(flexapi.Models), slog.New(slog.DiscardHandler))
			if err := other.Cancel(s.Context(), backend.Handle{BatchID: s.event(autobatcher.BatchSubmitted).BatchID}); err != nil {
				s.Fatal(err)
			}
			r := call.within(time.Hour)
			if r.status != http.StatusFailedDependency || !strings.Contains(r.body, tt.code) || r.at < tt.ends[0] || r.at > tt.ends[1] {
				s.Errorf("%d after %v, %v: %s; want %s after %v", r.status, r.at, r.err, r.body, tt.code, tt.ends)
			}
			if len(s.srv.Executed()) != 0 {
				s.Error("the call was executed")
			}
		})
	}
}

// With a journal, the line of a call whose caller has left belongs to no call. Its answer is
// counted at its tier all the same.
func TestOtherTierWithoutACaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := func(batchtest.Line) batchtest.Outcome {
			return batchtest.Outcome{Tier: "default", Delay: 5 * time.Minute}
		}
		f := newFleet(t, batchtest.Options{Behavior: batchtest.OpenAI(), Answer: answer})
		p := provider.OpenAI()
		a := f.start(autobatcher.Options{Mode: autobatcher.ModeFlex, Provider: &p, AbandonAfter: -1})
		ctx, leave := context.WithCancel(t.Context())
		call := a.ask(ctx, "one")
		time.Sleep(time.Minute)
		leave()
		<-call
		time.Sleep(10 * time.Minute)
		if c := a.Stats().Cost; c.OtherTier != 1 || c.Priced+c.Unpriced != 1 {
			t.Errorf("%+v; want one answer at another tier", c)
		}
	})
}
