package batchtest_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

var webhookSecret = "whsec_" + base64.StdEncoding.EncodeToString([]byte("a secret of at least 24 bytes"))

// A receiver is a webhook's handler that checks each request as OpenAI's own client
// does. The answers are the given statuses, and then 200.
type receiver struct {
	t *testing.T

	mu       sync.Mutex
	statuses []int
	got      []received
}

type received struct {
	At              time.Time
	Created, Signed time.Time // by the provider's clock
	Type            string
	ID              string // of the batch or response
	Header          string // webhook-id
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		r.t.Error(err)
	}
	client := openai.NewClient(option.WithWebhookSecret(webhookSecret), option.WithAPIKey("any"))
	e, err := client.Webhooks.Unwrap(body, req.Header)
	if err != nil {
		r.t.Errorf("%v: %s %v", err, body, req.Header)
		return
	}
	var shape struct{ ID, Object string }
	if err := json.Unmarshal(body, &shape); err != nil || !strings.HasPrefix(shape.ID, "evt_") || shape.Object != "event" || e.CreatedAt == 0 {
		r.t.Errorf("event = %s (%v)", body, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	signed, _ := strconv.ParseInt(req.Header.Get("webhook-timestamp"), 10, 64)
	r.got = append(r.got, received{
		time.Now(), time.Unix(e.CreatedAt, 0), time.Unix(signed, 0), e.Type, e.Data.ID, req.Header.Get("webhook-id"),
	})
	status := 200
	if len(r.statuses) > 0 {
		status, r.statuses = r.statuses[0], r.statuses[1:]
	}
	w.WriteHeader(status)
}

func (a *api) webhook(w batchtest.Webhook) {
	a.t.Helper()
	w.Secret = webhookSecret
	if err := a.server.AddWebhook(w); err != nil {
		a.t.Fatal(err)
	}
}

func TestWebhookEvents(t *testing.T) {
	batch := func(a *api) string { return a.create(chatLines(2))["id"].(string) }
	background := func(a *api) string { return a.respond(inBackground) }
	after := func(d time.Duration, make func(*api) string, f func(a *api, id string)) func(*api) string {
		return func(a *api) string {
			id := make(a)
			time.Sleep(d)
			f(a, id)
			return id
		}
	}
	always := func(o batchtest.Outcome) func(batchtest.Line) batchtest.Outcome {
		return func(batchtest.Line) batchtest.Outcome { return o }
	}
	cancel := func(path string) func(*api, string) {
		return func(a *api, id string) { a.post(path+id+"/cancel", "") }
	}
	slowCancel := batchtest.OpenAI()
	slowCancel.CancelTime = 10 * time.Minute
	noExpiry := batchtest.Azure()
	stuck := batchtest.OpenAI()
	stuck.StuckCancelling = true
	tests := []struct {
		name     string
		behavior batchtest.Behavior
		answer   func(batchtest.Line) batchtest.Outcome
		do       func(a *api) string
		want     string
		at       time.Duration
	}{
		{"a batch completes", batchtest.OpenAI(), nil, batch, "batch.completed", 63 * time.Minute},
		{"a batch fails", batchtest.OpenAI(), nil, func(a *api) string {
			return a.create(chatLine("a", "x") + chatLine("a", "x"))["id"].(string)
		}, "batch.failed", time.Minute},
		{"a batch is made to fail", batchtest.OpenAI(), nil, after(time.Hour, batch, func(a *api, id string) {
			_ = a.server.FailBatch(id, "x", "y", 0)
		}), "batch.failed", time.Hour},
		{"a batch expires", batchtest.OpenAI(), always(batchtest.Outcome{Never: true}), batch, "batch.expired", 24 * time.Hour},
		{"the last line is too late", batchtest.OpenAI(), always(batchtest.Outcome{Delay: 24 * time.Hour}), batch, "batch.expired", 24 * time.Hour},
		{"the last line is in time", batchtest.OpenAI(), always(batchtest.Outcome{Delay: 24*time.Hour - time.Minute}), batch, "batch.completed", 24*time.Hour + 2*time.Minute},
		{"a batch that never ends", noExpiry, always(batchtest.Outcome{Never: true}), batch, "", 0},
		{"a batch without expiry", noExpiry, always(batchtest.Outcome{Delay: 40 * time.Hour}), batch, "batch.completed", 40*time.Hour + 3*time.Minute},
		{"a batch is finished", batchtest.OpenAI(), nil, after(30*time.Minute, batch, func(a *api, id string) {
			_ = a.server.Finish(id)
		}), "batch.completed", 32 * time.Minute},
		{"a batch is cancelled", slowCancel, nil, after(30*time.Minute, batch, cancel("/batches/")), "batch.cancelled", 40 * time.Minute},
		{"a batch is cancelling for ever", stuck, nil, after(0, batch, cancel("/batches/")), "", 0},
		{"a response completes", batchtest.OpenAI(), nil, background, "response.completed", 10 * time.Minute},
		{"a response fails", batchtest.OpenAI(), always(batchtest.Outcome{Status: 500}), background, "response.failed", 10 * time.Minute},
		{"a response is incomplete", batchtest.OpenAI(), always(batchtest.Outcome{ResponseStatus: "incomplete"}), background, "response.incomplete", 10 * time.Minute},
		{"a response is cancelled", batchtest.OpenAI(), nil, after(time.Minute, background, cancel("/responses/")), "response.cancelled", time.Minute},
		{"a response is deleted while queued", batchtest.OpenAI(), nil, after(time.Minute, background, func(a *api, id string) {
			a.act("delete", id)
		}), "", 0},
		{"a response in the foreground", batchtest.OpenAI(), nil, func(a *api) string { return a.respond("") }, "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(t, batchtest.Options{
					Behavior: tt.behavior, Answer: tt.answer, Validating: time.Minute, Turnaround: time.Hour, Finalizing: 2 * time.Minute,
					ResponseQueued: 10 * time.Minute, ClockOffset: -time.Second,
				})
				r := &receiver{t: t}
				a.webhook(batchtest.Webhook{Handler: r})
				start := time.Now()
				id := tt.do(a)
				time.Sleep(100 * time.Hour)
				synctest.Wait()
				var want []received
				if tt.want != "" {
					at := start.Add(tt.at)
					want = []received{{At: at, Created: at.Add(-time.Second), Signed: at.Add(-time.Second), Type: tt.want, ID: id}}
				}
				if diff := cmp.Diff(want, r.got, cmpopts.IgnoreFields(received{}, "Header")); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestWebhookDeliveries(t *testing.T) {
	retries := []time.Duration{time.Second, 2 * time.Second}
	tests := []struct {
		name     string
		webhook  batchtest.Webhook
		statuses []int
		want     []time.Duration // of each request, after the end
	}{
		{"accepted", batchtest.Webhook{}, nil, []time.Duration{0}},
		{"204 is accepted", batchtest.Webhook{}, []int{204}, []time.Duration{0}},
		{"late", batchtest.Webhook{Delay: time.Minute}, nil, []time.Duration{time.Minute}},
		{"twice", batchtest.Webhook{Duplicates: 1}, nil, []time.Duration{0, 0}},
		{"retried", batchtest.Webhook{Retries: retries}, []int{500}, []time.Duration{0, time.Second}},
		{"a redirect is no success", batchtest.Webhook{Retries: retries}, []int{308}, []time.Duration{0, time.Second}},
		{"given up", batchtest.Webhook{Retries: retries}, []int{500, 400, 301, 500}, []time.Duration{0, time.Second, 3 * time.Second}},
		{"one attempt", batchtest.Webhook{Retries: []time.Duration{}}, []int{500}, []time.Duration{0}},
		{"the usual retries", batchtest.Webhook{}, []int{500, 500, 500}, []time.Duration{0, 5 * time.Second, 305 * time.Second, 2105 * time.Second}},
		{"a filter that matches", batchtest.Webhook{Events: []string{"batch.completed"}, Account: "sk-test"}, nil, []time.Duration{0}},
		{"another type", batchtest.Webhook{Events: []string{"batch.failed"}}, nil, nil},
		{"another account", batchtest.Webhook{Account: "sk-other"}, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(t, batchtest.Options{Turnaround: time.Hour})
				a.create(chatLines(1)) // before the webhook
				r := &receiver{t: t, statuses: slices.Clone(tt.statuses)}
				tt.webhook.Handler = r
				a.webhook(tt.webhook)
				time.Sleep(time.Hour)
				end := time.Now()
				time.Sleep(100 * time.Hour)
				synctest.Wait()
				var got []time.Duration
				for i, g := range r.got {
					got = append(got, g.At.Sub(end))
					if g.Header == "" || g.Header != r.got[0].Header {
						t.Errorf("webhook-id %d = %q", i, g.Header)
					}
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("times (-want +got):\n%s", diff)
				}
				statuses := append(slices.Clone(tt.statuses), 200, 200)
				for i, d := range a.server.Deliveries() {
					if d.Attempt != i+1 || d.Status != statuses[i] || d.Time.Sub(end) != tt.want[i] || d.ObjectID != r.got[i].ID || d.WebhookID != r.got[i].Header {
						t.Errorf("delivery %d = %+v", i, d)
					}
				}
				if n := len(a.server.Deliveries()); n != len(tt.want) {
					t.Errorf("%d deliveries, want %d", n, len(tt.want))
				}
			})
		})
	}
}

func TestWebhooksKnowWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{Turnaround: time.Minute, ResponseQueued: time.Minute})
		a.respond(inBackground)
		a.create(chatLines(1))
		time.Sleep(time.Hour) // the first webhook does not hear of these two
		a.respond(inBackground)
		a.create(chatLines(1))
		r := &receiver{t: t}
		a.webhook(batchtest.Webhook{Handler: r})
		time.Sleep(time.Hour)
		synctest.Wait()
		var got []string
		for _, g := range r.got {
			got = append(got, g.Type)
		}
		slices.Sort(got)
		if diff := cmp.Diff([]string{"batch.completed", "response.completed"}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestWebhooksOfDoubleword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail := func(l batchtest.Line) (o batchtest.Outcome) {
			if l.CustomID == "line-1" {
				o.Status = 400
			}
			return o
		}
		a := newAPI(t, batchtest.Options{Behavior: batchtest.Doubleword(), Turnaround: time.Minute, Answer: fail})
		var bodies []string
		a.webhook(batchtest.Webhook{Handler: http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
			body, _ := io.ReadAll(req.Body)
			bodies = append(bodies, string(body))
		})})
		start := time.Now()
		b := a.create(chatLines(2))
		a.respond(inBackground)
		a.post("/batches/"+a.create(chatLines(1))["id"].(string)+"/cancel", "")
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(bodies) != 1 {
			t.Fatalf("events = %v, want 1", bodies)
		}
		text := func(at time.Time) string { return at.UTC().Format(time.RFC3339) }
		want := map[string]any{
			"type": "batch.completed", "timestamp": text(start.Add(time.Minute)),
			"data": map[string]any{
				"batch_id": "batch_" + b["id"].(string), "status": "completed",
				"created_at": text(start), "finished_at": text(start.Add(time.Minute)),
				"request_counts": map[string]any{"total": 2.0, "completed": 1.0, "failed": 1.0, "cancelled": 0.0},
				"output_file_id": "file_" + b["output_file_id"].(string), "error_file_id": "file_" + b["error_file_id"].(string),
			},
		}
		if diff := cmp.Diff(want, answer{body: bodies[0]}.json(t)); diff != "" {
			t.Errorf("event (-want +got):\n%s", diff)
		}
	})
}

func TestWebhookSecrets(t *testing.T) {
	coded := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for secret, ok := range map[string]bool{
		"whsec_" + coded(24): true, "whsec_" + coded(64): true,
		"": false, coded(24): false, "whsec_": false, "whsec_" + coded(23): false, "whsec_" + coded(65): false, "whsec_%": false,
	} {
		s := batchtest.New(batchtest.Options{})
		if err := s.AddWebhook(batchtest.Webhook{Secret: secret}); (err == nil) != ok {
			t.Errorf("%q: %v", secret, err)
		}
		s.Close()
	}
}

func TestCloseEndsDeliveries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{})
		ended := false
		a.webhook(batchtest.Webhook{Handler: http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
			<-req.Context().Done() // the first delivery hangs
			time.Sleep(time.Second)
			ended = true
			panic(http.ErrAbortHandler)
		})})
		a.webhook(batchtest.Webhook{Handler: http.NotFoundHandler()}) // the second waits for its retry
		a.create(chatLines(1))
		time.Sleep(time.Second)
		start := time.Now()
		a.server.Close()
		if took := time.Since(start); took != time.Second || !ended {
			t.Errorf("Close took %v, and the handler has ended: %v", took, ended)
		}
	})
}

func TestASilentWebhookIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{})
		var at []time.Time
		a.webhook(batchtest.Webhook{Retries: []time.Duration{time.Second}, Handler: http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
			at = append(at, time.Now())
			<-req.Context().Done()
			panic(http.ErrAbortHandler)
		})})
		start := time.Now()
		a.create(chatLines(1))
		time.Sleep(time.Hour)
		synctest.Wait()
		if diff := cmp.Diff([]time.Time{start, start.Add(31 * time.Second)}, at); diff != "" {
			t.Errorf("attempts (-want +got):\n%s", diff)
		}
		for _, d := range a.server.Deliveries() {
			if d.Status != 0 {
				t.Errorf("delivery = %+v", d)
			}
		}
	})
}

func TestWebhookOverASocket(t *testing.T) {
	events := make(chan string, 10)
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		events <- req.Method + " " + req.URL.Path + " " + req.Header.Get("Content-Type")
		http.Redirect(w, req, "/elsewhere", http.StatusTemporaryRedirect)
	}))
	defer target.Close()
	a := newAPI(t, batchtest.Options{})
	broken := errors.New("no route")
	a.webhook(batchtest.Webhook{URL: target.URL + "/hook", Retries: []time.Duration{}})
	a.webhook(batchtest.Webhook{Retries: []time.Duration{}, Transport: roundTripper(func(*http.Request) (*http.Response, error) {
		events <- "transport"
		return nil, broken
	})})
	a.create(chatLines(1))
	got := []string{<-events, <-events}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"POST /hook application/json", "transport"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
