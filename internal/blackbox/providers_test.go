package blackbox_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// A venue is a provider to play the same scenes at: where calls are made to,
// what its server is like, and what is true there alone.
type venue struct {
	profile  string
	named    bool   // chosen by Options.Provider, since there is no host to know it by
	base     string // of the calls
	header   string // for the key; "" is Authorization
	behavior batchtest.Behavior
	window   string // that its batches ask for
	other    string // another window it has, "" without one
}

func venues() []venue {
	return []venue{
		{profile: "openai", base: "https://api.openai.com/v1", behavior: batchtest.OpenAI(), window: "24h"},
		{profile: "azure", base: "https://res.openai.azure.com/openai/v1", header: "Api-Key", behavior: batchtest.Azure(), window: "24h"},
		{profile: "azure-legacy", base: "https://res.openai.azure.com/openai/deployments/m", header: "Api-Key", behavior: batchtest.AzureLegacy(), window: "24h"},
		{profile: "doubleword", base: "https://api.doubleword.ai/v1", behavior: batchtest.Doubleword(), window: "1h", other: "24h"},
		{profile: "groq", base: "https://api.groq.com/openai/v1", behavior: batchtest.Groq(), window: "24h", other: "7d"},
		{profile: "together", base: "https://api.together.xyz/v1", behavior: batchtest.Together(), window: "24h"},
		{profile: "nebius", base: "https://api.tokenfactory.nebius.com/v1", behavior: batchtest.Nebius(), window: "24h"},
		{profile: "cerebras", base: "https://api.cerebras.ai/v1", behavior: cerebras(), window: "24h"},
		{profile: "novita", base: "https://api.novita.ai/openai/v1", behavior: novita()},
		{profile: "parasail", base: "https://api.parasail.io/v1", behavior: batchtest.Parasail(), window: "24h"},
		{profile: "deepinfra", base: "https://api.deepinfra.com/v1/openai", behavior: batchtest.DeepInfra(), window: "24h"},
		{profile: "siliconflow", base: "https://api.siliconflow.cn/v1", behavior: batchtest.SiliconFlow(), window: "24h", other: "336h"},
		{profile: "moonshot", base: "https://api.moonshot.cn/v1", behavior: batchtest.Moonshot(), window: "24h", other: "12h"},
		{profile: "zhipu", base: "https://open.bigmodel.cn/api/paas/v4", behavior: batchtest.Zhipu()},
		{profile: "dashscope", base: "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", behavior: batchtest.DashScope(), window: "24h", other: "14d"},
		{profile: "llm-d", named: true, base: "https://gateway.example/v1", behavior: batchtest.LLMD(), window: "24h", other: "90m"},
		{profile: "litellm", named: true, base: "https://proxy.example/v1", behavior: batchtest.LiteLLM(), window: "24h"},
		{profile: "generic", base: "https://unknown.example/v1", behavior: batchtest.OpenAI(), window: "24h"},
	}
}

// cerebras takes chat completions only.
func cerebras() batchtest.Behavior {
	b := batchtest.Nebius()
	b.Name, b.MaxLines, b.MaxFileBytes = "cerebras", 50_000, 200_000_000
	b.Endpoints = []string{"/v1/chat/completions"}
	return b
}

// novita has a path of its own, and needs no window.
func novita() batchtest.Behavior {
	b := batchtest.Zhipu()
	b.Name, b.BasePath, b.MaxFileBytes = "novita", "/openai/v1", 200_000_000
	b.Endpoints = []string{"/v1/chat/completions", "/v1/completions"}
	return b
}

// rules is the profile of the venue.
func (v venue) rules(t *testing.T) provider.Profile {
	t.Helper()
	p, err := provider.ByName(v.profile)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// play plays a scene at the venue.
func (v venue) play(t *testing.T, u setup, script func(s *scene)) {
	t.Helper()
	m := v.behavior
	if u.server.Behavior.Name != "" {
		m = u.server.Behavior
	}
	u.server.Behavior = m
	if v.named {
		p := v.rules(t)
		u.options.Provider = &p
	}
	u.play(t, script)
}

// ask starts a call as the venue's customers make it.
func (v venue) ask(s *scene, suffix, body string, edits ...edit) *pending {
	s.Helper()
	at, err := url.Parse(v.base + suffix)
	if err != nil {
		s.Fatal(err)
	}
	if v.profile == "azure-legacy" {
		at.RawQuery = "api-version=2024-10-21"
	}
	there := func(r *http.Request) { r.URL, r.Host = at, at.Host }
	mine := func(r *http.Request) {
		if v.header != "" {
			r.Header.Set(v.header, "sk-test")
			r.Header.Del("Authorization")
		}
	}
	return s.send(suffix, body, append([]edit{there, mine}, edits...)...)
}

// A venue's server is strict: it refuses what that provider would refuse. The
// scenes are the same everywhere.
func TestEveryProvider(t *testing.T) {
	known := map[string]bool{}
	for _, v := range venues() {
		known[v.profile] = true
		t.Run(v.profile, func(t *testing.T) {
			t.Run("a batch from call to answer", func(t *testing.T) { v.testAnswers(t) })
			t.Run("models", func(t *testing.T) { v.testModels(t) })
			t.Run("endpoints", func(t *testing.T) { v.testEndpoints(t) })
			t.Run("windows", func(t *testing.T) { v.testWindows(t) })
			t.Run("a bad line", func(t *testing.T) { v.testBadLine(t) })
			t.Run("failed lines", func(t *testing.T) { v.testFailedLines(t) })
			t.Run("unfinished lines", func(t *testing.T) { v.testUnfinished(t) })
			t.Run("a lost create", func(t *testing.T) { v.testLostCreate(t) })
			t.Run("many batches", func(t *testing.T) { v.testManyBatches(t) })
			t.Run("in real time", func(t *testing.T) { v.testRealtime(t) })
			t.Run("files", func(t *testing.T) { v.testFiles(t) })
			t.Run("limits", func(t *testing.T) { v.testLimits(t) })
			t.Run("no caller is left", func(t *testing.T) { v.testAbandoned(t) })
		})
	}
	for _, name := range provider.Names() {
		p, _ := provider.ByName(name)
		if p.Refusal == "" && p.Batches("/chat/completions") && !known[name] {
			t.Errorf("no scenes are played at %s", name)
		}
	}
}

func (v venue) testAnswers(t *testing.T) {
	v.play(t, setup{}, func(s *scene) {
		var calls []*pending
		for i := range 5 {
			calls = append(calls, v.ask(s, "/chat/completions", chatBody(fmt.Sprintf("call %d", i))))
		}
		streamed := v.ask(s, "/chat/completions", `{"model":"m","stream":true,"messages":[{"role":"user","content":"flow"}]}`)
		for i, c := range calls {
			r := c.wait().says(fmt.Sprintf("call %d", i))
			if r.status != 200 || r.at > time.Minute+10*time.Second {
				s.Errorf("status %d at %v", r.status, r.at)
			}
		}
		if r := streamed.wait(); !strings.HasSuffix(r.body, "data: [DONE]\n\n") {
			s.Errorf("stream = %.200s", r.body)
		}
		s.sent(6)
		if b := s.batch(); b.Window != v.window || b.Endpoint != v.rules(t).Endpoint("/chat/completions") {
			s.Errorf("window %q, endpoint %q", b.Window, b.Endpoint)
		}
		if bad := bytes.Contains(s.upload().Content, []byte(`"stream"`)); bad {
			s.Error("a line says stream")
		}
	})
}

func (v venue) testModels(t *testing.T) {
	v.play(t, setup{}, func(s *scene) {
		a := v.ask(s, "/chat/completions", `{"model":"a","messages":[]}`)
		b := v.ask(s, "/chat/completions", `{"model":"b","messages":[]}`)
		if x, y := a.wait(), b.wait(); x.status != 200 || y.status != 200 {
			s.Errorf("status %d and %d: %s", x.status, y.status, x.body)
		}
		want := 1
		if p := v.rules(t); p.OneModel && p.BasePathCut == "" { // else the path names the model
			want = 2
		}
		if n := len(s.srv.Uploads()); n != want {
			s.Errorf("%d files for two models, want %d", n, want)
		}
	})
}

func (v venue) testEndpoints(t *testing.T) {
	v.play(t, setup{}, func(s *scene) {
		p := v.rules(t)
		calls := map[string]*pending{
			"/chat/completions": v.ask(s, "/chat/completions", chatBody("a")),
			"/embeddings":       v.ask(s, "/embeddings", embeddingBody("a")),
			"/responses":        v.ask(s, "/responses", embeddingBody("a")),

			"/completions":        v.ask(s, "/completions", `{"model":"m","prompt":"a"}`),
			"/moderations":        v.ask(s, "/moderations", embeddingBody("a")),
			"/images/generations": v.ask(s, "/images/generations", `{"model":"m","prompt":"a"}`),
		}
		batched := 0
		for suffix, c := range calls {
			r := c.wait()
			if r.status != 200 {
				s.Errorf("%s: status %d: %s", suffix, r.status, r.body)
			}
			if batched := r.header.Get("Autobatcher-Batch-Id") != ""; batched != p.Batches(suffix) {
				s.Errorf("%s was batched: %v", suffix, batched)
			}
			if p.Batches(suffix) {
				batched++
			}
		}
		if p.OneEndpoint && len(s.srv.Uploads()) != batched || !p.OneEndpoint && len(s.srv.Uploads()) != 1 {
			s.Errorf("%d files for %d endpoints", len(s.srv.Uploads()), batched)
		}
	})
}

func (v venue) testWindows(t *testing.T) {
	v.play(t, setup{}, func(s *scene) {
		if v.other != "" {
			call := v.ask(s, "/chat/completions", chatBody("a"), with("Autobatcher-Completion-Window", v.other))
			if r := call.wait(); r.status != 200 || s.batch().Window != v.other {
				s.Errorf("status %d, window %q: %s", r.status, s.batch().Window, r.body)
			}
		}
		p, before := v.rules(t), len(s.srv.Requests())
		if p.CheckWindow("1m") != nil {
			call := v.ask(s, "/chat/completions", chatBody("b"), with("Autobatcher-Completion-Window", "1m"))
			call.wait().want(400, s.elapsed()).fails("invalid_completion_window")
			if n := len(s.srv.Requests()) - before; n != 0 {
				s.Errorf("%d requests for a window that is sure to be refused", n)
			}
		}
	})
}

// A line that the server refuses costs its own caller only.
func (v venue) testBadLine(t *testing.T) {
	m := v.behavior
	m.MaxLineBytes = 1000
	v.play(t, setup{server: batchtest.Options{Behavior: m}}, func(s *scene) {
		good, bad := v.ask(s, "/chat/completions", chatBody("good")), v.ask(s, "/chat/completions", chatBody(strings.Repeat("x", 1000)))
		too := v.ask(s, "/chat/completions", chatBody("too"))
		good.wait().want(200, s.elapsed()).says("good")
		too.wait().want(200, s.elapsed()).says("too")
		r := bad.wait()
		if m.SilentFailure { // the provider gives no reason
			r.want(424, r.at).fails("batch_failed")
			return
		}
		if r.status != 400 || !strings.Contains(r.body, "more than the maximum of 1000") {
			s.Errorf("status %d: %s; want 400 and the provider's words", r.status, r.body)
		}
		if n := s.count("POST", "/files"); n != 2 {
			s.Errorf("%d uploads, want two", n)
		}
	})
}

func (v venue) testFailedLines(t *testing.T) {
	u := setup{server: batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		if bytes.Contains(l.Body, []byte("bad")) {
			return batchtest.Outcome{Status: 422, Body: []byte(`{"error":{"message":"no","type":"t","param":null,"code":null}}`)}
		}
		return batchtest.Outcome{}
	}}}
	v.play(t, u, func(s *scene) {
		good, bad := v.ask(s, "/chat/completions", chatBody("good")), v.ask(s, "/chat/completions", chatBody("bad"))
		good.wait().want(200, s.elapsed())
		if r := bad.wait(); r.status != 422 || r.body != `{"error":{"message":"no","type":"t","param":null,"code":null}}` || r.header.Get("X-Should-Retry") != "false" {
			s.Errorf("status %d, %v: %s", r.status, r.header, r.body)
		}
	})
	v.play(t, u, func(s *scene) { v.ask(s, "/chat/completions", chatBody("bad")).wait().want(422, s.elapsed()) })
}

// A batch that ends too early is read, and calls without an answer are resubmitted.
func (v venue) testUnfinished(t *testing.T) {
	first := true
	u := setup{again: true, server: batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		never := first && bytes.Contains(l.Body, []byte("late"))
		first = first && !never
		return batchtest.Outcome{Never: never}
	}}}
	v.play(t, u, func(s *scene) {
		early, late := v.ask(s, "/chat/completions", chatBody("early")), v.ask(s, "/chat/completions", chatBody("late"))
		s.until(11 * time.Second)
		if err := s.srv.Expire(s.batch().ID); err != nil {
			s.Fatal(err)
		}
		early.wait().want(200, s.elapsed()).says("early")
		late.wait().want(200, s.elapsed()).says("late")
		s.sent(2, 1)
		for work, n := range s.srv.Paid() {
			if n != 1 {
				s.Errorf("work %.8s was paid for %d times", work, n)
			}
		}
	})
}

func (v venue) testLostCreate(t *testing.T) {
	v.play(t, setup{}, func(s *scene) {
		s.srv.Control(batchtest.OpCreate, batchtest.LoseAnswer())
		v.ask(s, "/chat/completions", chatBody("a")).wait().want(200, s.elapsed()).says("a")
		s.sent(1)
	})
	v.play(t, setup{}, func(s *scene) {
		s.srv.Control(batchtest.OpCreate, batchtest.Reset())
		v.ask(s, "/chat/completions", chatBody("a")).wait().want(200, s.elapsed()).says("a")
		s.sent(1)
	})
}

// From ten batches on one listing serves them all.
func (v venue) testManyBatches(t *testing.T) {
	u := setup{server: batchtest.Options{Turnaround: 10 * time.Minute}, options: autobatcher.Options{BatchSize: 1, PollInterval: 30 * time.Second}}
	v.play(t, u, func(s *scene) {
		var calls []*pending
		for i := range 20 {
			calls = append(calls, v.ask(s, "/chat/completions", chatBody(fmt.Sprint(i))))
		}
		for i, c := range calls {
			c.wait().want(200, s.elapsed()).says(fmt.Sprint(i))
		}
		if r := s.count("GET", "/batches/"); r > 20 {
			s.Errorf("%d batches were retrieved one by one; the list would have said it", r)
		}
		last := s.srv.Batches()[19]
		if s.elapsed() > last.Ended.Sub(s.begin)+3*time.Minute {
			s.Errorf("answered at %v, though the last batch ended at %v", s.elapsed(), last.Ended.Sub(s.begin))
		}
	})
}

func (v venue) testRealtime(t *testing.T) {
	u := setup{
		server:  batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Never: l.BatchID != ""} }},
		options: autobatcher.Options{Escalate: autobatcher.EscalateDeadline, PollInterval: time.Minute},
	}
	v.play(t, u, func(s *scene) {
		r := v.ask(s, "/chat/completions", chatBody("a"), with("Autobatcher-Deadline", "30m")).want(200, 29*time.Minute).says("a")
		if r.header.Get("Autobatcher-Mode") != "realtime" {
			s.Errorf("header = %v", r.header)
		}
	})
}

func (v venue) testFiles(t *testing.T) {
	for _, policy := range []autobatcher.FilePolicy{autobatcher.FilesExpire, autobatcher.FilesDelete} {
		v.play(t, setup{options: autobatcher.Options{Files: policy}}, func(s *scene) {
			v.ask(s, "/chat/completions", chatBody("a")).wait().want(200, s.elapsed())
			synctest.Wait()
			form, p := s.upload().Form, v.rules(t)
			asked := form.Get("expires_after[seconds]") != ""
			if want := policy == autobatcher.FilesExpire && p.FileExpiryMax > 0; asked != want {
				s.Errorf("%s: the form says %v", policy, form)
			}
			if s.upload().Deleted != (policy == autobatcher.FilesDelete) {
				s.Errorf("%s: the input was deleted: %v", policy, s.upload().Deleted)
			}
		})
	}
}

// A provider's own limits are kept by whoever calls it.
func (v venue) testLimits(t *testing.T) {
	p, m := v.rules(t), v.behavior
	p.MaxLines, m.MaxLines = 3, 3
	p.MaxBytes, m.MaxFileBytes = 1000, 1000
	p.MaxLineBytes = 0
	p.CreationsPerHour, m.CreationsPerHour = 4, 4
	// A profile of one's own is good for every host.
	u := setup{server: batchtest.Options{Behavior: m}, options: autobatcher.Options{Provider: &p}}
	u.play(t, func(s *scene) {
		var calls []*pending
		for i := range 7 {
			calls = append(calls, v.ask(s, "/chat/completions", chatBody(fmt.Sprint(i))))
		}
		calls = append(calls, v.ask(s, "/chat/completions", chatBody("7 "+strings.Repeat("x", 500))),
			v.ask(s, "/chat/completions", chatBody("8 "+strings.Repeat("x", 500))))
		for i, c := range calls {
			c.wait().want(200, s.elapsed()).says(fmt.Sprint(i))
		}
		for _, u := range s.srv.Uploads() {
			if len(u.Lines) > 3 || len(u.Content) > 1000 {
				s.Errorf("a file of %d lines, %d bytes", len(u.Lines), len(u.Content))
			}
		}
		for _, r := range s.srv.Requests() {
			if r.Status >= 400 {
				s.Errorf("%s %s was refused: %d", r.Method, r.Path, r.Status)
			}
		}
	})
}

func (v venue) testAbandoned(t *testing.T) {
	v.play(t, setup{server: batchtest.Options{Turnaround: time.Hour}}, func(s *scene) {
		call := v.ask(s, "/chat/completions", chatBody("a"))
		s.until(20 * time.Second)
		call.leave()
		s.until(5 * time.Minute)
		if b := s.batch(); !b.CancelRequested {
			s.Errorf("a batch without callers runs on: %s", b.Status)
		}
	})
}

// Where there is no such API, one sentence says so before anything is sent.
func TestRefusedProviders(t *testing.T) {
	hosts := map[string]string{
		"anthropic": "api.anthropic.com", "mistral": "api.mistral.ai", "fireworks": "api.fireworks.ai",
		"xai": "api.x.ai", "openrouter": "openrouter.ai",
		"ark": "ark.cn-beijing.volces.com", "bedrock": "bedrock-runtime-fips.us-east-1.amazonaws.com",
	}
	for name, host := range hosts {
		p, err := provider.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		setup{}.run(t, name, func(s *scene) {
			there := func(r *http.Request) { r.URL.Scheme, r.URL.Host = "https", host }
			message := s.post("/chat/completions", chatBody("a"), there).want(400, 0).fails("batch_unsupported")
			if !strings.Contains(message, p.Refusal) {
				s.Errorf("message = %s", message)
			}
			if n := len(s.srv.Requests()); n != 0 {
				s.Errorf("%d requests", n)
			}
			s.post("/chat/completions", chatBody("a"), there, with("Autobatcher-Mode", "realtime")).want(200, 0).says("a")
		})
		if _, err := autobatcher.New(autobatcher.Options{Provider: &p}); err == nil || !strings.Contains(err.Error(), p.Refusal) {
			t.Errorf("New with %s: %v; want its refusal", name, err)
		}
	}
	for _, name := range provider.Names() {
		if p, _ := provider.ByName(name); p.Refusal != "" && hosts[name] == "" {
			t.Errorf("%s is refused, but not proved here", name)
		}
	}
}

// Calls that cannot be batched, or that cost no less in a batch, pass through one by one.
func TestPassingProviders(t *testing.T) {
	for _, base := range []string{
		"https://batch.dashscope.aliyuncs.com/compatible-mode/v1",
		"https://ark.cn-beijing.volces.com/api/v3/batch",
		"https://ark.ap-southeast.bytepluses.com/api/v3/batch",
		"https://api.perplexity.ai/v1",
		"https://res.services.ai.azure.com/models",
	} {
		at, err := url.Parse(base + "/chat/completions")
		if err != nil {
			t.Fatal(err)
		}
		behavior := batchtest.OpenAI()
		behavior.BasePath = strings.TrimSuffix(at.Path, "/chat/completions")
		for _, mode := range []autobatcher.Mode{autobatcher.ModeBatch, autobatcher.ModeFlex, autobatcher.ModeAuto} {
			u := setup{server: batchtest.Options{Behavior: behavior}, options: autobatcher.Options{Mode: mode}}
			u.run(t, string(mode)+" at "+at.Host, func(s *scene) {
				s.post("/chat/completions", chatBody("a"), func(r *http.Request) { r.URL, r.Host = at, at.Host }).want(200, 0).says("a")
				if diff := cmp.Diff(map[batchtest.Tier]int{"default": 1}, s.srv.PaidTiers()); diff != "" || len(s.srv.Requests()) != 1 {
					s.Errorf("%d requests; paid (-want +got):\n%s", len(s.srv.Requests()), diff)
				}
			})
		}
	}
}

func TestMetadataLimits(t *testing.T) {
	many := map[string]string{}
	for i := range 17 {
		many[fmt.Sprint(i)] = "v"
	}
	long := map[string]string{"k": strings.Repeat("v", 513)}
	for _, metadata := range []map[string]string{many, long, {strings.Repeat("k", 65): "v"}} {
		setup{options: autobatcher.Options{Metadata: metadata}}.run(t, "known by its host", func(s *scene) {
			s.chat("a").want(400, 0).fails("invalid_metadata")
		})
	}
	doubleword(batchtest.Options{}, autobatcher.Options{Metadata: many}).run(t, "no limit", func(s *scene) {
		s.chat("a").want(200, 15*time.Second)
	})
	setup{options: autobatcher.Options{Metadata: map[string]string{"k": strings.Repeat("é", 512)}}}.run(t, "the very limit", func(s *scene) {
		s.chat("a").want(200, 15*time.Second)
		if got := s.batch().Metadata["k"]; got != strings.Repeat("é", 512) {
			s.Errorf("metadata = %q", got)
		}
	})
}

// An override holds for one's own server, whatever its host.
func TestOverrides(t *testing.T) {
	p := provider.Generic()
	p.Name, p.OneModel, p.DefaultWindow = "ours", false, "4h"
	m := batchtest.OpenAI()
	m.OneModel, m.Windows = false, []string{"4h"}
	setup{server: batchtest.Options{Behavior: m}, options: autobatcher.Options{Provider: &p}}.play(t, func(s *scene) {
		a, b := s.send("/chat/completions", `{"model":"a","messages":[]}`), s.send("/chat/completions", `{"model":"b","messages":[]}`)
		a.want(200, 15*time.Second)
		b.want(200, 15*time.Second)
		s.sent(2)
		if models := s.event(autobatcher.BatchSubmitted).Models; !slices.Equal(models, []string{"a", "b"}) {
			s.Errorf("models = %v", models)
		}
	})
}
