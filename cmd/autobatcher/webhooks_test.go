//go:build unix

package main

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

var (
	testSecret  = "whsec_" + base64.StdEncoding.EncodeToString([]byte("a secret of at least 24 bytes"))
	otherSecret = "whsec_" + base64.StdEncoding.EncodeToString([]byte("another secret of 24 bytes"))
)

// namedHost sends requests with the Host header of a public name, as a provider does
// whose webhooks pass a load balancer.
type namedHost struct{}

func (namedHost) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Host = "hooks.example"
	return http.DefaultTransport.RoundTrip(r)
}

// With webhooks, answers come within a second of the end of their batch, although serve
// polls every ten minutes.
func TestServeWithWebhooks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secrets")
	writeKey(t, file, otherSecret+"\n"+testSecret+"\n")
	for _, tt := range []struct {
		provider string
		behavior batchtest.Behavior
		flags    []string
	}{
		{"openai", batchtest.OpenAI(), []string{"--webhook-secret-file", file}},
		{"doubleword", batchtest.Doubleword(), []string{"--webhook-secret", testSecret}},
		{"openai", batchtest.OpenAI(), []string{"--webhook-secret", testSecret, "--mode", "flex"}},
	} {
		t.Run(strings.Join(append(tt.flags[2:], tt.provider), " "), func(t *testing.T) {
			t.Parallel()
			const takes = time.Second
			s := step{provider: tt.provider, flags: append(tt.flags, "--poll-interval", "10m"), server: batchtest.Options{
				Behavior: tt.behavior, Turnaround: takes, FlexDelay: takes,
			}}
			w := newWorld(t, s, filepath.Join(t.TempDir(), "journal.db"))
			p := w.serve(freePort(t), "0")
			root := strings.TrimSuffix(p.url, "/v1")
			if err := w.srv.AddWebhook(batchtest.Webhook{
				URL: root + "/autobatcher/webhook", Secret: testSecret, Transport: namedHost{}, Retries: []time.Duration{},
			}); err != nil {
				t.Fatal(err)
			}
			for _, prompt := range []string{"first", "second"} {
				began := time.Now()
				res, err := http.Post(p.url+"/responses", "application/json", strings.NewReader(`{"model":"m","input":"`+prompt+`"}`))
				if err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(text), prompt) {
					t.Errorf("%s: %s %s, %v", prompt, res.Status, text, err)
				}
				if late := time.Since(began) - takes; late > time.Second {
					t.Errorf("%s: the answer came %v after the end", prompt, late)
				}
			}
			text := get(t, root+"/metrics")
			if !strings.Contains(text, `autobatcher_webhooks_total{result="polled"} 2`) || !strings.Contains(text, `autobatcher_webhooks_total{result="refused"} 0`) {
				t.Errorf("the metrics:\n%s", text)
			}
			p.end()
			if log := p.log.String(); strings.Contains(log, testSecret[6:]) || !strings.Contains(log, "/autobatcher/webhook") {
				t.Errorf("the log holds the secret, or not the path of webhooks:\n%s", log)
			}
		})
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A mailbox receives events, and checks the signatures as OpenAI's client does.
type mailbox struct {
	*testing.T
	fail int // how many requests get 503

	mu  sync.Mutex
	got []string
}

func (m *mailbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	client := openai.NewClient(option.WithWebhookSecret(testSecret), option.WithAPIKey("any"))
	if bad := client.Webhooks.VerifySignature(body, r.Header); bad != nil || err != nil {
		m.Errorf("%s: %v, %v", body, bad, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail > 0 {
		m.fail--
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	m.got = append(m.got, string(body))
}

func (m *mailbox) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.got)
}

// --notify posts the same objects that serve writes to stdout, in the same order, also
// the last ones before the end.
func TestNotify(t *testing.T) {
	m := &mailbox{T: t, fail: 1}
	receiver := httptest.NewServer(m)
	defer receiver.Close()
	s := newSettings()
	s.baseURL, s.sandbox, s.batchWindow, s.pollInterval, s.journal = defaultBaseURL, true, 0, seconds(20*time.Millisecond), noJournal
	s.notifyURL, s.notifySecret = receiver.URL, testSecret
	var log lockedBuffer
	var mu sync.Mutex
	var want []string
	b, err := s.newBackend(t.Context(), process{}, slog.New(slog.NewJSONHandler(&log, nil)), func(e autobatcher.Event) {
		text, err := json.Marshal(e)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		want = append(want, string(text))
	})
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, "/v1/embeddings", strings.NewReader(`{"model":"m","input":"a"}`))
	r.Host = "localhost"
	w := httptest.NewRecorder()
	b.proxy.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	b.close()
	got := m.all()
	if !slices.Equal(got, want) || len(want) < 3 || !strings.Contains(want[len(want)-1], "client_closing") {
		t.Errorf("posted\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	metrics := httptest.NewRecorder()
	r = httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody)
	r.Host = "localhost"
	b.proxy.ServeHTTP(metrics, r)
	if text := metrics.Body.String(); !strings.Contains(text, `autobatcher_notifications_total{result="delivered"}`) || !strings.Contains(text, "autobatcher_notifications_pending 0") {
		t.Errorf("the metrics:\n%s", text)
	}
	if text := log.String(); strings.Contains(text, testSecret[6:]) {
		t.Errorf("the log holds the secret:\n%s", text)
	}
}

// run posts events, too, and run --dry-run posts none.
func TestRunNotifies(t *testing.T) {
	m := &mailbox{T: t}
	receiver := httptest.NewServer(m)
	defer receiver.Close()
	file := filepath.Join(t.TempDir(), "secret")
	writeKey(t, file, testSecret)
	run := func(flags ...string) {
		t.Helper()
		args := append([]string{"run", "--batch-window", "0", "--poll-interval", "0.05", "--journal", "off", "--notify", receiver.URL, "--notify-secret-file", file}, flags...)
		cmd := exec.Command("autobatcher", append(args, "--", "child", "ask", "one")...)
		cmd.Env = append(os.Environ(), "GORACE="+raceOptions, "OPENAI_API_KEY=key")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "You said: one") && !strings.Contains(string(out), "one") {
			t.Fatalf("%v: %s", err, out)
		}
	}
	run("--dry-run")
	if got := m.all(); len(got) > 0 {
		t.Errorf("a dry run posted %q", got)
	}
	run("--sandbox")
	if got := strings.Join(m.all(), "\n"); !strings.Contains(got, `"event":"batch_completed"`) || !strings.Contains(got, `"event":"client_closing"`) {
		t.Errorf("run posted %s", got)
	}
}

// A receiver that hangs delays the shutdown by three seconds.
func TestShutdownWhileTheReceiverHangs(t *testing.T) {
	release := make(chan struct{})
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer receiver.Close()
	defer close(release)
	s := step{provider: "openai", server: batchtest.Options{}, flags: []string{"--notify", receiver.URL, "--notify-secret", testSecret}}
	w := newWorld(t, s, filepath.Join(t.TempDir(), "journal.db"))
	p := w.serve(freePort(t), "0")
	w.answers(p, "one")
	began := time.Now()
	p.end()
	if d := time.Since(began); d < 2*time.Second || d > 10*time.Second {
		t.Errorf("the shutdown took %v", d)
	}
	if log := p.log.String(); !strings.Contains(log, "the last events could not be posted in time") {
		t.Errorf("the log:\n%s", log)
	}
}
