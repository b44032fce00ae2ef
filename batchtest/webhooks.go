package batchtest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// webhookTimeout ends one attempt to post an event.
const webhookTimeout = 30 * time.Second

// retrySchedule is the default of Webhook.Retries.
var retrySchedule = []time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 8 * time.Hour, 24 * time.Hour,
}

// A Webhook is where the Server posts an event when a batch or a background response
// has ended. The types of events are batch.completed, batch.failed, batch.expired,
// batch.cancelled, response.completed, response.failed, response.incomplete and
// response.cancelled. The body has the shape of OpenAI, or of Doubleword
// ([Behavior].BatchWebhooks):
//
//	{"id":"evt_…","object":"event","created_at":1735689600,"type":"batch.completed","data":{"id":"batch_…"}}
//
// Each request is signed as Standard Webhooks says: the headers webhook-id, equal in all
// requests for one event, webhook-timestamp, the seconds of the provider's clock, and
// webhook-signature, "v1," and the HMAC-SHA256 of "id.timestamp.body" in base64.
type Webhook struct {
	// URL is the address. The default is "http://webhook.invalid/", which only
	// Handler or Transport can reach.
	URL string
	// Secret signs the requests: "whsec_" and 24 to 64 bytes in base64.
	Secret string
	// Handler receives the requests in process, so that a webhook works in a
	// testing/synctest bubble. Handler must return when the context of the request
	// ends, since Close waits for Handler. Nil: Transport sends the requests.
	Handler http.Handler
	// Transport sends the requests; nil means [http.DefaultTransport]. Redirects are
	// not followed.
	Transport http.RoundTripper

	// Events are the types of events to post; empty means every type.
	Events []string
	// Account limits the events to the batches and responses of one account; empty
	// means every account.
	Account string
	// Delay is how long after the end of a batch or response the event is posted
	// first.
	Delay time.Duration
	// Retries are the waits before further attempts after an answer other than 2xx,
	// or no answer within 30 seconds. Nil means 5 s, 5 min, 30 min, 2 h, 8 h and 24 h.
	// After the last attempt the event is dropped. An empty list means one attempt.
	Retries []time.Duration
	// Duplicates is how many further times an accepted event is posted, at once.
	Duplicates int
}

// A Delivery is an attempt to post an event to a [Webhook].
type Delivery struct {
	// WebhookID is the header webhook-id. Type is the type of the event, and
	// ObjectID the id of the batch or response in the API.
	WebhookID, Type, ObjectID string
	URL                       string
	// Attempt counts the requests for the event, from 1.
	Attempt int
	// Status is the status of the answer; zero without an answer.
	Status int
	Body   []byte
	// Time is when the attempt began.
	Time time.Time
}

// AddWebhook makes the Server post the events of all batches and background responses
// that have not ended yet, until Close. The only error is a Secret that is malformed.
func (s *Server) AddWebhook(w Webhook) error {
	secret, prefixed := strings.CutPrefix(w.Secret, "whsec_")
	key, err := base64.StdEncoding.Strict().DecodeString(secret)
	if !prefixed || err != nil || len(key) < 24 || len(key) > 64 {
		return errors.New(`batchtest: the secret of a webhook must be "whsec_" and 24 to 64 bytes in base64`)
	}
	if w.URL == "" {
		w.URL = "http://webhook.invalid/"
	}
	if w.Retries == nil {
		w.Retries = retrySchedule
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hooks == nil {
		s.hooks = s.startHooksLocked()
	}
	s.hooks.targets = append(s.hooks.targets, &target{w, key})
	return nil
}

// Deliveries returns all attempts to post events to webhooks that have ended, the
// oldest first.
func (s *Server) Deliveries() []Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hooks == nil {
		return nil
	}
	return slices.Clone(s.hooks.deliveries)
}

// A target is a webhook with the decoded key.
type target struct {
	Webhook
	key []byte
}

// hooks watches the batches and background responses of a Server, and posts an event at
// the end of each. One goroutine waits for the next end; each delivery has a goroutine
// of its own. The Server's mu guards the fields except changed.
type hooks struct {
	targets    []*target
	watched    []watched
	deliveries []Delivery
	changed    chan struct{} // has room for one signal
}

// A watched object is a batch or a background response.
type watched interface {
	// nextEndLocked brings the object up to now, and returns when the object ends:
	// zero means never. The Server's mu must be held.
	nextEndLocked(now time.Time) time.Time
	// eventLocked is the event of the end. The Server's mu must be held.
	eventLocked() event
}

// An event says that an object of an account has ended.
type event struct {
	account, kind, objectID string
	data                    any // of Doubleword's events
}

// startHooksLocked starts the goroutine that waits for the ends of objects, beginning
// with the objects that have not ended. The caller holds mu.
func (s *Server) startHooksLocked() *hooks {
	h := &hooks{changed: make(chan struct{}, 1)}
	now := time.Now()
	for _, b := range s.order {
		if b.advanceLocked(now); b.end == "" {
			h.watchLocked(b)
		}
	}
	for _, c := range s.calls {
		if c.response != nil && c.ended(now).IsZero() {
			h.watchLocked(c)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.goroutines.Go(func() {
		defer cancel()
		s.watch(ctx, h)
	})
	return h
}

// watchLocked adds an object. The caller holds mu. A nil receiver ignores the object.
func (h *hooks) watchLocked(w watched) {
	if h != nil {
		h.watched = append(h.watched, w)
	}
}

// wake makes the goroutine look again, after a change of an object. A nil receiver does
// nothing.
func (h *hooks) wake() {
	if h == nil {
		return
	}
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// watch posts an event at the end of each object until the Server closes.
func (s *Server) watch(ctx context.Context, h *hooks) {
	for {
		var due <-chan time.Time
		if next := s.announce(ctx, h); !next.IsZero() {
			due = time.After(time.Until(next))
		}
		select {
		case <-s.closing:
			return
		case <-h.changed:
		case <-due:
		}
	}
}

// announce starts the deliveries for the objects that have ended, and returns when the
// next object ends: zero means never.
func (s *Server) announce(ctx context.Context, h *hooks) (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	h.watched = slices.DeleteFunc(h.watched, func(w watched) bool {
		end := w.nextEndLocked(now)
		if !end.IsZero() && !end.After(now) {
			s.deliverLocked(ctx, h, w.eventLocked(), end)
			return true
		}
		if !end.IsZero() && (next.IsZero() || end.Before(next)) {
			next = end
		}
		return false
	})
	return next
}

// deliverLocked starts a goroutine for each webhook that wants the event. The caller
// holds mu.
func (s *Server) deliverLocked(ctx context.Context, h *hooks, e event, end time.Time) {
	if s.behavior.BatchWebhooks && e.data == nil {
		return
	}
	for _, t := range h.targets {
		if (t.Account != "" && t.Account != e.account) || !allowed(t.Events, e.kind) {
			continue
		}
		d := Delivery{WebhookID: s.newID("wh_"), Type: e.kind, ObjectID: e.objectID, URL: t.URL, Body: marshal(s.eventView(e, end))}
		s.goroutines.Go(func() { s.deliver(ctx, t, d) })
	}
}

// eventView is the body of an event.
func (s *Server) eventView(e event, end time.Time) object {
	if s.behavior.BatchWebhooks {
		return object{"type": e.kind, "timestamp": s.clock(end).UTC().Format(time.RFC3339), "data": e.data}
	}
	return object{
		"id": s.newID("evt_"), "object": "event", "created_at": s.clock(end).Unix(), "type": e.kind,
		"data": object{"id": e.objectID},
	}
}

// deliver posts an event until the webhook has accepted the event, and all duplicates,
// or the last attempt has failed.
func (s *Server) deliver(ctx context.Context, t *target, d Delivery) {
	wait, retries, copies := t.Delay, t.Retries, t.Duplicates
	for {
		if !sleep(ctx, wait) {
			return
		}
		d.Attempt++
		d.Time = time.Now()
		d.Status = t.post(ctx, d, s.clock(d.Time))
		s.mu.Lock()
		s.hooks.deliveries = append(s.hooks.deliveries, d)
		s.mu.Unlock()
		switch accepted := d.Status >= 200 && d.Status <= 299; {
		case accepted && copies > 0:
			wait = 0
			copies--
		case accepted, len(retries) == 0:
			return
		default:
			wait, retries = retries[0], retries[1:]
		}
	}
}

// post sends one request, and returns the status of the answer, or zero without an
// answer.
func (t *target) post(ctx context.Context, d Delivery, at time.Time) (status int) {
	ctx, cancel := context.WithTimeout(ctx, webhookTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.URL, bytes.NewReader(d.Body))
	if err != nil {
		return 0
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "batchtest")
	t.sign(req.Header, d, at)
	if t.Handler != nil {
		return handled(t.Handler, req)
	}
	transport := t.Transport
	if transport == nil {
		transport = http.DefaultTransport
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return 0
	}
	_, _ = io.CopyN(io.Discard, res.Body, 64<<10) // so that the connection can be used again
	_ = res.Body.Close()
	return res.StatusCode
}

// sign sets the headers of Standard Webhooks.
func (t *target) sign(header http.Header, d Delivery, at time.Time) {
	seconds := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, t.key)
	_, _ = fmt.Fprintf(mac, "%s.%s.%s", d.WebhookID, seconds, d.Body) // a hash never fails
	header.Set("Webhook-Id", d.WebhookID)
	header.Set("Webhook-Timestamp", seconds)
	header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// handled calls a handler in process, and returns the status of the answer, or zero if
// the handler aborted the request.
func handled(h http.Handler, req *http.Request) (status int) {
	defer func() {
		switch p := recover(); p {
		case nil, http.ErrAbortHandler:
		default:
			panic(p)
		}
	}()
	req.RemoteAddr, req.RequestURI = "in-process", req.URL.RequestURI()
	rec := &recorder{ResponseWriter: &nowhere{}}
	h.ServeHTTP(rec, req)
	rec.WriteHeader(http.StatusOK) // has no effect if the handler has set the status
	return rec.status
}

func (b *batch) nextEndLocked(now time.Time) time.Time {
	b.advanceLocked(now)
	return b.endsAtLocked()
}

// eventLocked needs an ended batch.
func (b *batch) eventLocked() event {
	e := event{account: b.owner.account, kind: "batch." + b.end, objectID: b.id}
	if b.server.behavior.BatchWebhooks && (b.end == completed || b.end == failed) {
		e.data = b.webhookView()
	}
	return e
}

// webhookView is the data of Doubleword's events.
func (b *batch) webhookView() object {
	named := func(prefix, id string) *string {
		if id == "" {
			return nil
		}
		return nonEmpty(prefix + id)
	}
	text := func(t time.Time) string { return b.server.clock(t).UTC().Format(time.RFC3339) }
	return object{
		"batch_id": "batch_" + b.id, "status": b.end, "created_at": text(b.created), "finished_at": text(b.ended),
		"request_counts": object{
			"total": len(b.lines), "completed": b.completed, "failed": b.failed,
			"cancelled": len(b.lines) - b.completed - b.failed,
		},
		"output_file_id": named("file_", b.resultID(outputs)), "error_file_id": named("file_", b.resultID(failures)),
	}
}

func (c *call) nextEndLocked(now time.Time) time.Time {
	switch {
	case !c.ended(now).IsZero():
		return c.ended(now)
	case c.withdrawn:
		return time.Time{}
	}
	return c.done
}

// eventLocked needs an ended background response.
func (c *call) eventLocked() event {
	now := time.Now()
	return event{account: c.owner.account, kind: "response." + c.status(now), objectID: c.response.id}
}
