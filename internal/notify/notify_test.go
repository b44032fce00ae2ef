package notify_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/autobatcher/autobatcher/internal/notify"
)

var secret = "whsec_" + base64.StdEncoding.EncodeToString([]byte("a secret of at least 24 bytes"))

// attemptTimeout is how long a request may take.
const attemptTimeout = 10 * time.Second

const address = "https://hooks.example/secret-path?token=secret-token"

// A receiver receives events, and checks each signature as OpenAI's client does.
type receiver struct {
	t      *testing.T
	answer func(n int, r *http.Request) (*http.Response, error) // n counts the requests from 0; nil: 204

	mu  sync.Mutex
	got []post
}

type post struct {
	id, body string
	at       time.Duration // since the first request
	time     time.Time
}

func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	client := openai.NewClient(option.WithWebhookSecret(secret), option.WithAPIKey("any"))
	if err := client.Webhooks.VerifySignature(body, req.Header); err != nil || req.URL.String() != address || req.Method != http.MethodPost || req.Header.Get("Content-Type") != "application/json" {
		r.t.Errorf("%s %s: %v", req.Method, req.URL, err)
	}
	r.mu.Lock()
	n := len(r.got)
	now := time.Now()
	first := now
	if n > 0 {
		first = r.got[0].time
	}
	r.got = append(r.got, post{req.Header.Get("webhook-id"), string(body), now.Sub(first), now})
	r.mu.Unlock()
	if r.answer == nil {
		return status(204), nil
	}
	return r.answer(n, req)
}

func (r *receiver) bodies() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var bodies []string
	for _, p := range r.got {
		bodies = append(bodies, p.body)
	}
	return bodies
}

func status(code int, header ...string) *http.Response {
	res := &http.Response{StatusCode: code, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("answer"))}
	for i := 0; i < len(header); i += 2 {
		res.Header.Set(header[i], header[i+1])
	}
	return res
}

func newNotifier(t *testing.T, r *receiver) (*notify.Notifier, *lockedText) {
	t.Helper()
	log := &lockedText{}
	n, err := notify.New(notify.Options{URL: address, Secret: secret, Transport: r, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return n, log
}

// result returns the value of a metric.
func result(t *testing.T, n *notify.Notifier, name string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(n.Collectors()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			switch {
			case f.GetName() == "autobatcher_notifications_"+name:
				return m.GetGauge().GetValue()
			case len(m.Label) == 1 && m.Label[0].GetValue() == name:
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// soon is a context for a Close that need not wait.
func soon(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestEventsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{t: t, answer: func(int, *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return status(200), nil
		}}
		n, _ := newNotifier(t, r)
		var want []string
		began := time.Now()
		for i := range 20 {
			want = append(want, fmt.Sprintf(`{"event":%d}`, i))
			n.Send([]byte(want[i]))
		}
		if time.Since(began) != 0 {
			t.Error("Send blocks")
		}
		n.Close(soon(t, time.Minute))
		if got := r.bodies(); !slices.Equal(got, want) {
			t.Errorf("posted %q", got)
		}
		if result(t, n, "delivered") != 20 || result(t, n, "dropped") != 0 {
			t.Error("not all events count as delivered")
		}
		ids := map[string]bool{}
		for _, p := range r.got {
			ids[p.id] = true
		}
		if len(ids) != 20 {
			t.Errorf("%d ids for 20 events", len(ids))
		}
		n.Send([]byte(`{}`))
		if result(t, n, "dropped") != 1 {
			t.Error("an event after Close does not count as dropped")
		}
	})
}

func TestRetries(t *testing.T) {
	always := func(f func() (*http.Response, error)) func(int, *http.Request) (*http.Response, error) {
		return func(int, *http.Request) (*http.Response, error) { return f() }
	}
	for _, tt := range []struct {
		name        string
		answer      func(n int, r *http.Request) (*http.Response, error)
		least, most int           // requests for the event
		after       time.Duration // the last request comes at or after
		before      time.Duration
		delivered   bool
	}{
		{"503 once", func(n int, _ *http.Request) (*http.Response, error) {
			if n == 0 {
				return status(503), nil
			}
			return status(200), nil
		}, 2, 2, 750 * time.Millisecond, time.Second, true},
		{"a broken connection once", func(n int, _ *http.Request) (*http.Response, error) {
			if n == 0 {
				return nil, errors.New("broken")
			}
			return status(200), nil
		}, 2, 2, 750 * time.Millisecond, time.Second, true},
		{"Retry-After", func(n int, _ *http.Request) (*http.Response, error) {
			if n == 0 {
				return status(429, "Retry-After", "20"), nil
			}
			return status(200), nil
		}, 2, 2, 20 * time.Second, 20 * time.Second, true},
		{"a long Retry-After", func(n int, _ *http.Request) (*http.Response, error) {
			if n == 0 {
				return status(503, "Retry-After", "86400"), nil
			}
			return status(200), nil
		}, 2, 2, time.Minute, time.Minute, true},
		{"a redirect is not followed", always(func() (*http.Response, error) { return status(302, "Location", "https://other.example/"), nil }), 10, 30, 4 * time.Minute, 5 * time.Minute, false},
		{"down", always(func() (*http.Response, error) { return nil, errors.New("down") }), 10, 30, 4 * time.Minute, 5 * time.Minute, false},
		{"401, as before a secret is configured", always(func() (*http.Response, error) { return status(401), nil }), 10, 30, 4 * time.Minute, 5 * time.Minute, false},
		{"no answer", func(_ int, r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}, 8, 30, 4 * time.Minute, 5*time.Minute + attemptTimeout, false},
		{"400", always(func() (*http.Response, error) { return status(400), nil }), 1, 1, 0, 0, false},
		{"410", always(func() (*http.Response, error) { return status(410), nil }), 1, 1, 0, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &receiver{t: t, answer: tt.answer}
				n, log := newNotifier(t, r)
				n.Send([]byte(`{"event":1}`))
				n.Close(soon(t, time.Hour))
				last := r.got[len(r.got)-1]
				if len(r.got) < tt.least || len(r.got) > tt.most || last.at < tt.after || last.at > tt.before {
					t.Errorf("%d requests, the last after %v", len(r.got), last.at)
				}
				if last.id != r.got[0].id || last.body != `{"event":1}` {
					t.Errorf("the last request has the id %s and the body %s, the first the id %s", last.id, last.body, r.got[0].id)
				}
				if (result(t, n, "delivered") == 1) != tt.delivered || (result(t, n, "failed") == 1) == tt.delivered {
					t.Error("the metric is wrong")
				}
				if text := log.String(); strings.Contains(text, "secret") || !strings.Contains(text, "hooks.example") || strings.Count(text, "\n") > 6 {
					t.Errorf("the log:\n%s", text)
				}
			})
		})
	}
}

// While the receiver is down, the queue is bounded by events and by bytes.
func TestFullQueue(t *testing.T) {
	for _, tt := range []struct {
		size, sent, dropped int
	}{
		{100, 10_000, 0},
		{100, 10_003, 3},
		{1 << 20, 8, 0},
		{1 << 20, 12, 4},
	} {
		synctest.Test(t, func(t *testing.T) {
			n, log := newNotifier(t, &receiver{t: t, answer: func(int, *http.Request) (*http.Response, error) { return status(500), nil }})
			for range tt.sent {
				n.Send(bytes.Repeat([]byte("1"), tt.size))
			}
			if got := result(t, n, "dropped"); got != float64(tt.dropped) || result(t, n, "pending") != float64(tt.sent-tt.dropped) {
				t.Errorf("%d events of %d bytes: %v are dropped, want %d", tt.sent, tt.size, got, tt.dropped)
			}
			began := time.Now()
			n.Close(soon(t, 3*time.Second))
			if d := time.Since(began); d != 3*time.Second {
				t.Errorf("Close took %v", d)
			}
			if got := result(t, n, "dropped"); got != float64(tt.sent) || !strings.Contains(log.String(), "the last events could not be posted in time") {
				t.Errorf("after Close %v events count as dropped; the log:\n%s", got, log.String())
			}
		})
	}
}

// Events that were posted make room in the queue.
func TestRoomInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := newNotifier(t, &receiver{t: t})
		for range 20 {
			n.Send(bytes.Repeat([]byte("1"), 1<<20))
			synctest.Wait()
		}
		n.Close(soon(t, time.Second))
		if got := result(t, n, "delivered"); got != 20 {
			t.Errorf("%v of 20 events are delivered", got)
		}
	})
}

// Close ends a request that the receiver does not answer.
func TestCloseWhileTheReceiverHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := newNotifier(t, &receiver{t: t, answer: func(_ int, r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}})
		n.Send([]byte(`{}`))
		synctest.Wait()
		began := time.Now()
		n.Close(soon(t, time.Second))
		if d := time.Since(began); d != time.Second || result(t, n, "dropped") != 1 {
			t.Errorf("Close took %v", d)
		}
	})
}

// The default transport does not follow redirects, and the receiver's answer is read
// only in part.
func TestOverASocket(t *testing.T) {
	var mu sync.Mutex
	var paths []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		paths = append(paths, r.URL.Path)
		if len(paths) == 1 {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
			return
		}
		w.Write(make([]byte, 1<<20))
	}))
	defer server.Close()
	n, err := notify.New(notify.Options{URL: server.URL + "/hook", Secret: secret, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	n.Send([]byte(`{}`))
	n.Close(soon(t, 30*time.Second))
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(paths, []string{"/hook", "/hook"}) || result(t, n, "delivered") != 1 {
		t.Errorf("requests to %q", paths)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []notify.Options{
		{URL: "", Secret: secret},
		{URL: "hooks.example/secret-path", Secret: secret},
		{URL: "ftp://hooks.example/secret-path", Secret: secret},
		{URL: "https://user:secret-pass@hooks.example/", Secret: secret},
		{URL: "https://hooks.example/#secret-part", Secret: secret},
		{URL: "https:// /secret-path", Secret: secret},
		{URL: address, Secret: ""},
		{URL: address, Secret: "whsec_secret-value"},
	} {
		if _, err := notify.New(o); err == nil || strings.Contains(err.Error(), "secret-") {
			t.Errorf("%s: %v", o.URL, err)
		}
	}
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
