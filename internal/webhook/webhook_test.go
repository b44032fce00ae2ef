package webhook_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/autobatcher/autobatcher/internal/webhook"
)

func secretOf(text string) string {
	return "whsec_" + base64.StdEncoding.EncodeToString([]byte(text))
}

var secret = secretOf("a secret of at least 24 bytes")

// sign returns the headers of a webhook.
func sign(t testing.TB, secret, id string, at time.Time, body string) http.Header {
	t.Helper()
	s, err := webhook.Secret(secret)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := s.Sign(id, at, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	h := make(http.Header)
	h.Set("webhook-id", id)
	h.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
	h.Set("webhook-signature", signature)
	return h
}

func newVerifier(t testing.TB, secrets ...string) *webhook.Verifier {
	t.Helper()
	v, err := webhook.NewVerifier(secrets)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

const completed = `{"id":"evt_1","object":"event","created_at":1735689600,"type":"batch.completed","data":{"id":"batch_1"}}`

// The test vector of the Standard Webhooks specification, without the check of the
// timestamp.
func TestSignatureOfTheSpecification(t *testing.T) {
	s, err := webhook.Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Sign("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want || err != nil {
		t.Errorf("signature %s, %v; want %s", got, err, want)
	}
}

func TestVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		other := secretOf("another secret of 24 bytes or more")
		good := sign(t, secret, "wh_1", now, completed)
		with := func(name, value string) http.Header {
			h := good.Clone()
			h.Set(name, value)
			if value == "" {
				h.Del(name)
			}
			return h
		}
		signature := good.Get("webhook-signature")
		wrong := sign(t, other, "wh_1", now, completed).Get("webhook-signature")
		for _, tt := range []struct {
			name   string
			header http.Header
			body   string
			want   error
		}{
			{"good", good, completed, nil},
			{"several signatures", with("webhook-signature", wrong+" "+signature+" v1a,xyz"), completed, nil},
			{"another version only", with("webhook-signature", "v2,"+strings.TrimPrefix(signature, "v1,")), completed, webhook.ErrSignature},
			{"without a version", with("webhook-signature", strings.TrimPrefix(signature, "v1,")), completed, webhook.ErrSignature},
			{"another secret", with("webhook-signature", wrong), completed, webhook.ErrSignature},
			{"a shorter signature", with("webhook-signature", signature[:20]), completed, webhook.ErrSignature},
			{"an empty signature", with("webhook-signature", "v1,"), completed, webhook.ErrSignature},
			{"another body", good, completed + " ", webhook.ErrSignature},
			{"another id", with("webhook-id", "wh_2"), completed, webhook.ErrSignature},
			{"another timestamp", with("webhook-timestamp", strconv.FormatInt(now.Unix()+1, 10)), completed, webhook.ErrSignature},
			{"no id", with("webhook-id", ""), completed, webhook.ErrSignature},
			{"no timestamp", with("webhook-timestamp", ""), completed, webhook.ErrSignature},
			{"no signature", with("webhook-signature", ""), completed, webhook.ErrSignature},
			{"a timestamp that is no number", with("webhook-timestamp", "now"), completed, webhook.ErrSignature},
			{"a timestamp that is too great", with("webhook-timestamp", "9223372036854775807"), completed, webhook.ErrSignature},
			{"no headers", http.Header{}, completed, webhook.ErrSignature},
			{"5 minutes old", sign(t, secret, "wh_1", now.Add(-5*time.Minute), completed), completed, nil},
			{"older than 5 minutes", sign(t, secret, "wh_1", now.Add(-5*time.Minute-time.Second), completed), completed, webhook.ErrSignature},
			{"5 minutes in the future", sign(t, secret, "wh_1", now.Add(5*time.Minute), completed), completed, nil},
			{"more than 5 minutes in the future", sign(t, secret, "wh_1", now.Add(5*time.Minute+time.Second), completed), completed, webhook.ErrSignature},
		} {
			ids, err := newVerifier(t, secret).Verify(tt.header, []byte(tt.body))
			if !errors.Is(err, tt.want) || (err == nil) != (len(ids) > 0) {
				t.Errorf("%s: ids %q, error %v; want error %v", tt.name, ids, err, tt.want)
			}
			// OpenAI's own client decides in the same way, but needs no version.
			client := openai.NewClient(option.WithWebhookSecret(secret), option.WithAPIKey("any"))
			if theirs := client.Webhooks.VerifySignature([]byte(tt.body), tt.header); (theirs == nil) != (err == nil) && tt.name != "without a version" {
				t.Errorf("%s: OpenAI's client says %v", tt.name, theirs)
			}
		}
		if _, err := newVerifier(t, other, secret).Verify(good, []byte(completed)); err != nil {
			t.Errorf("the second secret: %v", err)
		}
		if _, err := newVerifier(t).Verify(good, []byte(completed)); !errors.Is(err, webhook.ErrSignature) {
			t.Errorf("without a secret: %v", err)
		}
	})
}

func TestEvents(t *testing.T) {
	event := func(kind, data string) string { return `{"type":"` + kind + `","data":` + data + `}` }
	for _, tt := range []struct {
		body string
		ids  []string
		want error
	}{
		{event("batch.completed", `{"id":"batch_1"}`), []string{"batch_1", "1"}, nil},
		{event("batch.failed", `{"id":"batch_1"}`), []string{"batch_1", "1"}, nil},
		{event("batch.expired", `{"id":"batch_1"}`), []string{"batch_1", "1"}, nil},
		{event("batch.cancelled", `{"id":"batch_1"}`), []string{"batch_1", "1"}, nil},
		{event("response.completed", `{"id":"resp_1"}`), []string{"resp_1"}, nil},
		{event("response.failed", `{"id":"resp_1"}`), []string{"resp_1"}, nil},
		{event("response.cancelled", `{"id":"resp_1"}`), []string{"resp_1"}, nil},
		{event("response.incomplete", `{"id":"resp_1"}`), []string{"resp_1"}, nil},
		// Doubleword
		{event("batch.completed", `{"batch_id":"batch_0b53-4c","status":"completed"}`), []string{"batch_0b53-4c", "0b53-4c"}, nil},
		// Other events
		{event("batch.created", `{"id":"batch_1"}`), nil, nil},
		{event("eval.run.succeeded", `{"id":"eval_1"}`), nil, nil},
		// No events
		{``, nil, webhook.ErrMalformed},
		{`[]`, nil, webhook.ErrMalformed},
		{`{"type":"batch.completed","data":{"id":"batch_1"}`, nil, webhook.ErrMalformed},
		{`{"type":1,"data":{"id":"batch_1"}}`, nil, webhook.ErrMalformed},
		{event("batch.completed", `"batch_1"`), nil, webhook.ErrMalformed},
		{event("batch.completed", `{}`), nil, webhook.ErrMalformed},
		{event("batch.completed", `{"id":"`+strings.Repeat("b", 257)+`"}`), nil, webhook.ErrMalformed},
	} {
		ids, err := newVerifier(t, secret).Verify(sign(t, secret, "wh_1", time.Now(), tt.body), []byte(tt.body))
		if !slices.Equal(ids, tt.ids) || !errors.Is(err, tt.want) {
			t.Errorf("%s: %q, %v; want %q, %v", tt.body, ids, err, tt.ids, tt.want)
		}
	}
}

// A webhook that is sent again says nothing new.
func TestRepeatedWebhooks(t *testing.T) {
	v := newVerifier(t, secret)
	send := func(id string) bool {
		ids, err := v.Verify(sign(t, secret, id, time.Now(), completed), []byte(completed))
		if err != nil {
			t.Fatal(err)
		}
		return len(ids) > 0
	}
	if !send("wh_1") || send("wh_1") || !send("wh_2") || send("wh_1") {
		t.Error("a repeated webhook counts, or a new one does not")
	}
	for i := range 5000 { // more than are remembered
		if !send(fmt.Sprint("other ", i)) {
			t.Fatalf("webhook %d counts as repeated", i)
		}
	}
	if send("other 4999") || send("other 1000") || !send("wh_1") {
		t.Error("the memory for repeated webhooks has not the size that the documentation says")
	}
}

func TestSecrets(t *testing.T) {
	for text, ok := range map[string]bool{
		secret:                                   true,
		secretOf("16 bytes or more"):             true,
		secretOf(strings.Repeat("s", 200)):       true,
		"":                                       false,
		"whsec_":                                 false,
		secretOf("15 bytes ......"):              false,
		strings.TrimPrefix(secret, "whsec_"):     false,
		"whsec_not base64 at all, but long text": false,
	} {
		_, err := webhook.NewVerifier([]string{text})
		if (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
		if err != nil && len(text) > 6 && strings.Contains(err.Error(), text[6:]) {
			t.Errorf("the error contains the secret: %v", err)
		}
	}
}

// FuzzVerify checks that no request is accepted whose signature is not that of its id,
// timestamp and body, and that a signed request is accepted or malformed.
func FuzzVerify(f *testing.F) {
	f.Add("wh_1", "1735689600", "v1,abc v1,def", completed)
	f.Add("", "-1", "v1,", `{"type":"batch.completed","data":{"id":"b"}}`)
	f.Add("a.b", "+5", "v1,,", `{"type":"response.failed","data":{"id":""}}`)
	f.Add("x", "9223372036854775807", " v1, ", `{"type":"batch.failed","data":{"batch_id":"batch_"}}`)
	f.Fuzz(func(t *testing.T, id, timestamp, signature, body string) {
		v := newVerifier(t, secret)
		h := http.Header{}
		h.Set("webhook-id", id)
		h.Set("webhook-timestamp", timestamp)
		h.Set("webhook-signature", signature)
		if ids, err := v.Verify(h, []byte(body)); !errors.Is(err, webhook.ErrSignature) {
			t.Fatalf("accepted: %q, %v", ids, err)
		}
		ids, err := v.Verify(sign(t, secret, id, time.Now(), body), []byte(body))
		switch {
		case id == "":
			if !errors.Is(err, webhook.ErrSignature) {
				t.Fatalf("a webhook without an id: %v", err)
			}
		case err != nil && !errors.Is(err, webhook.ErrMalformed):
			t.Fatalf("a signed webhook is refused: %v", err)
		case err != nil && len(ids) > 0, slices.Contains(ids, ""):
			t.Fatalf("ids %q with error %v", ids, err)
		}
	})
}
