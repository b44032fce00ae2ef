package proxy_test

import (
	"bufio"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/internal/webhook"
)

var webhookSecret = "whsec_" + base64.StdEncoding.EncodeToString([]byte("a secret of at least 24 bytes"))

// signedWebhook returns the headers of a webhook, signed now.
func signedWebhook(t testing.TB, id, body string) []string {
	t.Helper()
	s, err := webhook.Secret(webhookSecret)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	signature, err := s.Sign(id, now, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return []string{"webhook-id", id, "webhook-timestamp", strconv.FormatInt(now.Unix(), 10), "webhook-signature", signature}
}

// A waker records which batches are polled. It knows the batch batch_1.
type waker struct {
	mu    sync.Mutex
	asked []string
}

func (w *waker) wake(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, id)
	return id == "batch_1"
}

// withWebhooks adds webhooks to the options.
func withWebhooks(t testing.TB, o proxy.Options) (proxy.Options, *waker) {
	t.Helper()
	v, err := webhook.NewVerifier([]string{webhookSecret})
	if err != nil {
		t.Fatal(err)
	}
	w := &waker{}
	o.Webhooks, o.Wake = v, w.wake
	return o, w
}

const (
	webhookPath = "/autobatcher/webhook"
	batchEnded  = `{"type":"batch.completed","data":{"id":"batch_1"}}`
)

func TestWebhooks(t *testing.T) {
	o, w := withWebhooks(t, proxy.Options{})
	client := serve(t, newProxy(t, o))
	signed := func(id, body string) []string { return signedWebhook(t, id, body) }
	unknown := strings.Replace(batchEnded, "batch_1", "batch_2", 1)
	large := strings.Replace(batchEnded, "{", "{"+strings.Repeat(" ", 64<<10), 1)
	for _, tt := range []struct {
		name, body string
		header     []string
		status     int
		code       string
	}{
		{"a batch that is polled", batchEnded, signed("1", batchEnded), 204, ""},
		{"the same again", batchEnded, signed("1", batchEnded), 204, ""},
		{"a batch that is not polled", unknown, signed("2", unknown), 204, ""},
		{"another event", `{"type":"x","data":{}}`, signed("3", `{"type":"x","data":{}}`), 204, ""},
		{"not signed", batchEnded, nil, 401, "invalid_webhook_signature"},
		{"another body is signed", batchEnded, signed("4", unknown), 401, "invalid_webhook_signature"},
		{"no event", `{}`, signed("5", `{}`), 400, "invalid_webhook"},
		{"too large", large, signed("6", large), 413, "request_too_large"},
	} {
		res := post(t, client, webhookPath, tt.body, tt.header...)
		if res.StatusCode != tt.status {
			t.Errorf("%s: %s", tt.name, res.Status)
		}
		if tt.code == "" {
			if text := readAll(t, res); text != "" {
				t.Errorf("%s: body %q", tt.name, text)
			}
		} else if code, _ := apiError(t, res); code != tt.code {
			t.Errorf("%s: code %q, want %q", tt.name, code, tt.code)
		}
	}
	if want := []string{"batch_1", "1", "batch_2", "2"}; !slices.Equal(w.asked, want) {
		t.Errorf("polled %q, want %q", w.asked, want)
	}
	got := metrics(t, client)
	for _, line := range []string{
		`autobatcher_webhooks_total{result="polled"} 1`,
		`autobatcher_webhooks_total{result="ignored"} 3`,
		`autobatcher_webhooks_total{result="refused"} 4`,
	} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("the metrics have no line %s", line)
		}
	}
	if strings.Contains(got, `endpoint="other"`) {
		t.Error("a webhook counts as a call")
	}
}

// Webhooks need no client key and may name any host. The rules for all other requests
// stay, and nothing but the exact path receives webhooks.
func TestWebhookAccess(t *testing.T) {
	signed := signedWebhook(t, "1", "")
	for _, tt := range []struct {
		name, method, target, host string
		o                          proxy.Options
		header                     []string
		status                     int
	}{
		{"any host", "POST", webhookPath, "hooks.example", proxy.Options{}, signed, 400},
		{"any host, client keys", "POST", webhookPath, "hooks.example", proxy.Options{ClientKeys: []string{"one"}}, signed, 400},
		{"any host, forwarded keys", "POST", webhookPath, "hooks.example", proxy.Options{ForwardKey: true}, signed, 400},
		{"a client key is no signature", "POST", webhookPath, "proxy", proxy.Options{ClientKeys: []string{"one"}}, []string{"Authorization", "Bearer one"}, 401},
		{"a page of another origin", "POST", webhookPath, "proxy", proxy.Options{}, []string{"Origin", "https://evil.example"}, 401},
		{"GET", "GET", webhookPath, "proxy", proxy.Options{}, signed, 405},
		{"preflight", "OPTIONS", webhookPath, "proxy", proxy.Options{}, nil, 405},
		{"CONNECT", "CONNECT", webhookPath, "proxy", proxy.Options{}, signed, 405},
		{"below the path", "POST", webhookPath + "/x", "hooks.example", proxy.Options{}, signed, 421},
		{"below the path, client keys", "POST", webhookPath + "/x", "hooks.example", proxy.Options{ClientKeys: []string{"one"}}, signed, 401},
		{"the page", "GET", "/", "hooks.example", proxy.Options{}, signed, 421},
		{"a call", "POST", "/v1/embeddings", "hooks.example", proxy.Options{}, signed, 421},
		{"a call, client keys", "POST", "/v1/embeddings", "proxy", proxy.Options{ClientKeys: []string{"one"}}, signed, 401},
		{"the provider's path", "POST", "/webhooks", "hooks.example", proxy.Options{}, signed, 421},
	} {
		o, w := withWebhooks(t, tt.o)
		o.Page = page
		res := ask(t, newProxy(t, o), tt.method, tt.target, tt.host, tt.header...)
		if res.StatusCode != tt.status || len(w.asked) > 0 { // 400: the signature is right, and the body is no event
			t.Errorf("%s: %s, want %d; polled %q", tt.name, res.Status, tt.status, w.asked)
		}
	}
}

// Without a secret the path is closed, with and without a key.
func TestWebhooksAreOff(t *testing.T) {
	for _, o := range []proxy.Options{{}, {ClientKeys: []string{"one"}}, {ForwardKey: true}} {
		o.Page = page
		res := post(t, serve(t, newProxy(t, o)), webhookPath, batchEnded, append(signedWebhook(t, "1", batchEnded), "Authorization", "Bearer one")...)
		if code, _ := apiError(t, res); res.StatusCode != http.StatusNotFound || code != "not_found" {
			t.Errorf("%+v: %s", o.ClientKeys, res.Status)
		}
	}
}

// Anyone can send a body: few bodies are read at the same time, and not for long. The
// log has one warning a minute.
func TestWebhookFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, w := withWebhooks(t, proxy.Options{})
		var log lockedText
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		p := newProxy(t, o)
		began := time.Now()
		timeouts := make(chan time.Duration, 64)
		for range 64 {
			conn := dial(t, p)
			io.WriteString(conn, "POST "+webhookPath+" HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{")
			go func() {
				if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil && res.StatusCode == http.StatusRequestTimeout {
					timeouts <- time.Since(began)
				}
			}()
		}
		synctest.Wait()
		client := serve(t, p)
		res := post(t, client, webhookPath, batchEnded, signedWebhook(t, "1", batchEnded)...)
		if code, _ := apiError(t, res); res.StatusCode != http.StatusServiceUnavailable || code != "too_many_webhooks" || res.Header.Get("Retry-After") == "" {
			t.Errorf("the 65th webhook: %s", res.Status)
		}
		time.Sleep(11 * time.Second)
		if len(timeouts) != 64 || <-timeouts != 10*time.Second {
			t.Errorf("%d of 64 slow bodies were refused after 10s", len(timeouts))
		}
		res = post(t, client, webhookPath, batchEnded, signedWebhook(t, "1", batchEnded)...)
		if readAll(t, res); res.StatusCode != http.StatusNoContent || !slices.Contains(w.asked, "batch_1") {
			t.Errorf("after the flood: %s", res.Status)
		}
		for range 100 {
			readAll(t, post(t, client, webhookPath, batchEnded, "webhook-id", "1", "webhook-timestamp", "forged-text", "webhook-signature", "v1,x"))
		}
		time.Sleep(time.Minute)
		readAll(t, post(t, client, webhookPath, batchEnded))
		if got := log.String(); strings.Count(got, "a webhook was refused") != 2 || strings.Contains(got, "forged-text") {
			t.Errorf("the log:\n%s", got)
		}
	})
}

type lockedText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
