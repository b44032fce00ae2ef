package blackbox_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// Headers that say on whose behalf a call is made separate callers and are forwarded
// with every request about their batch.
func TestTenantHeadersSeparateCallers(t *testing.T) {
	for _, name := range []string{"X-Org-Id", "X-Scope-OrgID", "X-User-Id", "X-Workspace-Id", "X-MaaS-Username", "X-Forwarded-User", "X-Auth-Request-User"} {
		setup{}.run(t, name, func(s *scene) {
			a, b := s.chat("same", with(name, "alice")), s.chat("same", with(name, "bob"))
			a.within(time.Hour).want(200, 15*time.Second)
			b.within(time.Hour).want(200, 15*time.Second)
			s.sent(1, 1)
			sent := map[string]int{}
			for _, r := range s.srv.Requests() {
				sent[r.Header.Get(name)]++
			}
			if sent["alice"] != sent["bob"] || sent[""] != 0 {
				s.Errorf("requests by the value of %s: %v; want every request to carry its caller's", name, sent)
			}
		})
	}
}

// The endpoints of the caller's own Profile decide what is batched.
func TestEndpointsOfTheProfileAreBatched(t *testing.T) {
	for _, endpoint := range []string{"/moderations", "/completions", "/images/generations"} {
		p := provider.OpenAI()
		p.Endpoints = []string{endpoint}
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		m := batchtest.OpenAI()
		m.Endpoints = nil
		setup{server: batchtest.Options{Behavior: m}, options: autobatcher.Options{Provider: &p}}.run(t, endpoint, func(s *scene) {
			call := s.send(endpoint, `{"model":"m","input":"text","prompt":"text"}`)
			r := call.within(time.Hour)
			if r.err != nil || r.header.Get("Autobatcher-Batch-Id") == "" {
				s.Fatalf("status %d, error %v, %v; want an answer from a batch", r.status, r.err, r.header)
			}
			if got := s.upload().Lines[0].URL; got != "/v1"+endpoint {
				s.Errorf("the line is for %s", got)
			}
			s.chat("text").within(time.Hour).want(200, s.elapsed())
			if n := s.count("POST", "/chat/completions"); n != 1 {
				s.Errorf("%d chat calls passed through, want 1: the profile does not batch them", n)
			}
		})
	}
}

// At Azure's dated API the deployment in the path decides which model answers, also
// where the body names another model or none. The line names the deployment.
func TestTheDeploymentInThePathIsTheModel(t *testing.T) {
	for name, body := range map[string]string{
		"another model": `{"model":"gpt-x","messages":[{"role":"user","content":"text"}]}`,
		"no model":      `{"messages":[{"role":"user","content":"text"}]}`,
		"a null model":  `{"model":null,"messages":[{"role":"user","content":"text"}]}`,
		"two models":    `{"model":"a","messages":[{"role":"user","content":"text"}],"model":"b"}`,
		"an escaped":    `{"mod\u0065l":"gpt-x","messages":[{"role":"user","content":"text"}]}`,
		"the same":      `{"model":"d","messages":[{"role":"user","content":"text"}]}`,
	} {
		u := setup{server: batchtest.Options{Behavior: batchtest.AzureLegacy()}}
		u.run(t, name, func(s *scene) {
			at, err := url.Parse("https://res.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21")
			if err != nil {
				s.Fatal(err)
			}
			call := s.send("", body, func(r *http.Request) {
				r.URL, r.Host = at, at.Host
				r.Header.Del("Authorization")
				r.Header.Set("Api-Key", "k")
			})
			call.within(time.Hour).says("text")
			line := s.upload().Lines[0]
			if n := strings.Count(string(line.Body), `"d"`); line.Model != "d" || n != 1 || strings.Contains(string(line.Body), "gpt-x") {
				s.Errorf("the line is %s; want the deployment as its one model", line.Body)
			}
			if models := s.event(autobatcher.BatchSubmitted).Models; !cmp.Equal(models, []string{"d"}) {
				s.Errorf("the event names the models %v", models)
			}
		})
	}
	u := setup{server: batchtest.Options{Behavior: batchtest.AzureLegacy()}}
	u.run(t, "two deployments share no file", func(s *scene) {
		var calls []*pending
		for _, deployment := range []string{"d", "e"} {
			at := &url.URL{Scheme: "https", Host: "res.openai.azure.com", Path: "/openai/deployments/" + deployment + "/chat/completions", RawQuery: "api-version=2024-10-21"}
			calls = append(calls, s.send("", chatBody("text"), func(r *http.Request) { r.URL, r.Host = at, at.Host }))
		}
		for _, c := range calls {
			c.within(time.Hour).says("text")
		}
		s.sent(1, 1)
	})
}

// llm-d takes several endpoints in one file, and expires files where it is asked to.
func TestLLMDMixesEndpointsAndExpiresFiles(t *testing.T) {
	p := provider.LLMD()
	u := setup{server: batchtest.Options{Behavior: batchtest.LLMD()}, options: autobatcher.Options{Provider: &p, Files: autobatcher.FilesExpire}}
	u.server.Behavior.OneEndpoint, u.server.Behavior.FileExpiry = false, true
	create := created(&u)
	u.play(t, func(s *scene) {
		chat, embedding := s.chat("text"), s.send("/embeddings", embeddingBody("text"))
		chat.within(time.Hour).says("text")
		if r := embedding.within(time.Hour); r.status != 200 {
			s.Errorf("status %d: %s", r.status, r.body)
		}
		s.sent(2)
		if s.upload().Form.Get("expires_after[seconds]") == "" || !strings.Contains(*create, "output_expires_after") {
			s.Errorf("form %v, create %s; want both expiries", s.upload().Form, *create)
		}
	})
}

// A file must not expire before the batch that it belongs to has ended and its
// results were kept as long as promised.
func TestFilesOutliveTheirBatch(t *testing.T) {
	for window, keep := range map[string]time.Duration{"24h": 0, "7d": 0, "336h": 0, "1h": 200 * time.Hour} {
		p := provider.OpenAI()
		p.Windows, p.MinWindow, p.MaxWindow = nil, time.Hour, 15*24*time.Hour
		m := batchtest.OpenAI()
		m.Windows = nil
		u := setup{server: batchtest.Options{Behavior: m}, options: autobatcher.Options{
			Provider: &p, Files: autobatcher.FilesExpire, CompletionWindow: window, KeepFor: keep,
		}}
		create := created(&u)
		u.run(t, fmt.Sprint(window, " kept for ", keep), func(s *scene) {
			s.chat("text").within(time.Hour).says("text")
			length, err := time.ParseDuration(strings.Replace(window, "7d", "168h", 1))
			if err != nil {
				s.Fatal(err)
			}
			input, _ := time.ParseDuration(s.upload().Form.Get("expires_after[seconds]") + "s")
			var output int64
			if _, seconds, ok := strings.Cut(*create, `"seconds":`); ok {
				fmt.Sscan(seconds, &output)
			}
			if input <= length {
				s.Errorf("the input file expires after %v, the window is %v", input, length)
			}
			if least := max(24*time.Hour, keep); time.Duration(output)*time.Second < least {
				s.Errorf("the results expire after %v, and are promised for %v", time.Duration(output)*time.Second, least)
			}
		})
	}
}

// Requests about files and batches say that the autobatcher makes them.
func TestTheUserAgentIsOurs(t *testing.T) {
	setup{}.play(t, func(s *scene) {
		s.chat("text", with("User-Agent", "the caller's/1.0")).within(time.Hour).says("text")
		for _, r := range s.srv.Requests() {
			if agent := r.Header.Get("User-Agent"); !strings.HasPrefix(agent, "autobatcher") {
				s.Errorf("%s %s has the User-Agent %q", r.Method, r.Path, agent)
			}
		}
	})
}

// A call that passes through keeps its own User-Agent.
func TestTheUserAgentOfAPassingCall(t *testing.T) {
	var got string
	setup{base: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			got = r.Header.Get("User-Agent")
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}")), Request: r}, nil
		})
	}}.play(t, func(s *scene) {
		s.chat("text", with("User-Agent", "the caller's/1.0"), with("Autobatcher-Mode", "realtime")).within(time.Hour)
		if got != "the caller's/1.0" {
			s.Errorf("User-Agent %q", got)
		}
	})
}
