package batchapi_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
)

func TestErrorsAreClassified(t *testing.T) {
	quota := `{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`
	for _, tt := range []struct {
		name    string
		status  int
		body    string
		limited bool
		passes  bool // Transient
		message string
		code    string
	}{
		{"rate limit", 429, `{"error":{"message":"slow down","code":"rate_limit_exceeded"}}`, true, false, "slow down", "rate_limit_exceeded"},
		{"quota", 429, quota, false, false, "You exceeded your current quota", "insufficient_quota"},
		{"unverified", 429, `{"error":"too_many_requests","message":"Unverified accounts may not"}`, false, false, "Unverified accounts may not", ""},
		{"text", 400, "Line 3: no\n", false, false, "Line 3: no", ""},
		{"spend cap", 402, "Insufficient balance", false, false, "Insufficient balance", ""},
		{"detail", 422, `{"detail":"no window"}`, false, false, "no window", ""},
		{"a page", 502, "<html>bad gateway</html>", false, true, "<html>bad gateway</html>", ""},
		{"timeout", 408, ``, false, true, "", ""},
		{"gone", 404, `{"error":{"message":"No such batch"}}`, false, false, "No such batch", ""},
		{"an error that is text", 500, `{"error":"boom"}`, false, true, "boom", ""},
		{"broken JSON", 500, `{"error":{"message":"half`, false, true, `{"error":{"message":"half`, ""},
		{"a number for a code", 400, `{"code":1210,"message":"bad"}`, false, false, "bad", ""},
		{"not UTF-8", 500, "\xff\xfeoops", false, true, "oops", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := openai(t, always(tt.status, tt.body)).Retrieve(t.Context(), "b")
			e := failure(t, err)
			if e.Status != tt.status || e.RateLimited() != tt.limited || e.Transient() != tt.passes || e.Message() != tt.message || e.Code() != tt.code {
				t.Errorf("status %d, limited %v, transient %v, message %q, code %q", e.Status, e.RateLimited(), e.Transient(), e.Message(), e.Code())
			}
			if e.Ambiguous() != tt.passes || !strings.Contains(e.Error(), "GET /batches/b") {
				t.Errorf("ambiguous %v: %v", e.Ambiguous(), e)
			}
		})
	}
}

func TestTheLineOfARefusal(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
		want   int
	}{
		{400, "Line 3: missing model", 3},
		{400, "Invalid JSON on line 12: expected value", 12},
		{403, "Line 1: The model 'x' does not exist", 1},
		{400, `{"error":{"message":"Line 40000: no"}}`, 40000},
		{422, "Line 2: no", 2},
		{402, "Line 2: no", 0},
		{401, "Line 2: no", 0},
		{429, "Line 2: no", 0},
		{500, "Line 2: no", 0},
		{400, "Credit line 1 is used up", 0},
		{400, "Deadline 5: passed", 0},
		{400, "Lines 3 to 5", 0},
		{400, "Line 99999999999: no", 0},
		{400, "no line at all", 0},
	} {
		_, err := openai(t, always(tt.status, tt.body)).UploadOnce(t.Context(), backend.Params{Name: "x"}, file(1))
		if got := failure(t, err).Line(); got != tt.want {
			t.Errorf("%d %s: line %d, want %d", tt.status, tt.body, got, tt.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		name   string
		header []string
		min    time.Duration
		max    time.Duration
	}{
		{"seconds", []string{"Retry-After", "7"}, 7 * time.Second, 7 * time.Second},
		{"a fraction", []string{"Retry-After", "0.5"}, 500 * time.Millisecond, 500 * time.Millisecond},
		{"milliseconds", []string{"Retry-After-Ms", "1500"}, 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"milliseconds win", []string{"Retry-After-Ms", "1500", "Retry-After", "7"}, 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"a date", []string{"Retry-After", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)}, 59 * time.Minute, time.Hour},
		{"a date of old", []string{"Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 0},
		{"nothing", nil, -1, -1},
		{"nonsense", []string{"Retry-After", "soon"}, -1, -1},
		{"not a number", []string{"Retry-After", "NaN"}, -1, -1},
		{"negative", []string{"Retry-After", "-5"}, -1, -1},
		{"beyond all", []string{"Retry-After", "1e300"}, 24 * time.Hour, 24 * time.Hour},
		{"a date beyond all", []string{"Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"}, time.Hour, 24 * time.Hour},
		{"for ever", []string{"Retry-After", "Inf"}, 24 * time.Hour, 24 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := openai(t, always(429, `{}`, tt.header...)).Retrieve(t.Context(), "b")
			if got := failure(t, err).RetryAfter; got < tt.min || got > tt.max {
				t.Errorf("%v, want %v to %v", got, tt.min, tt.max)
			}
		})
	}
}

func TestErrorBodiesAreBounded(t *testing.T) {
	for name, status := range map[string]int{"an error": 500, "a refusal": 400, "a redirect to nowhere": 304} {
		t.Run(name, func(t *testing.T) {
			read := 0
			w := &wire{answer: func(sent, int) (*http.Response, error) {
				res := answer(status, "")
				res.Body, res.ContentLength = io.NopCloser(counting{&read}), -1
				return res, nil
			}}
			_, err := openai(t, w).Retrieve(t.Context(), "b")
			e := failure(t, err)
			if len(e.Body) > 64<<10 || read > 1<<20 || len(e.Error()) > 2000 {
				t.Errorf("kept %d bytes, read %d, text of %d", len(e.Body), read, len(e.Error()))
			}
		})
	}
	t.Run("an object", func(t *testing.T) {
		read := 0
		w := &wire{answer: func(sent, int) (*http.Response, error) {
			res := answer(200, "")
			res.Body, res.ContentLength = io.NopCloser(counting{&read}), -1
			return res, nil
		}}
		if _, err := openai(t, w).Retrieve(t.Context(), "b"); err == nil || read > 16<<20 {
			t.Errorf("read %d bytes, %v", read, err)
		}
	})
}

// counting is an endless body.
type counting struct{ n *int }

func (c counting) Read(p []byte) (int, error) {
	*c.n += len(p)
	if *c.n > 64<<20 {
		return 0, io.EOF // enough to have failed
	}
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}
