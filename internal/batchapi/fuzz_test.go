package batchapi_test

import (
	"errors"
	"net/http"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/autobatcher/autobatcher/internal/backend"
)

// Whatever a provider sends in place of a batch, it is one with an id, or an
// Error.
func FuzzBatchObject(f *testing.F) {
	for _, seed := range []string{
		`{"id":"b","status":"Completed","request_counts":{"total":1e99},"expires_at":"2023-11-14T22:13:20Z"}`,
		`{"id":{"x":1},"errors":{"data":[{"line":-1},{"line":"7"},null]}}`,
		`{"job":{"id":"b"}}`, `[{"id":"b"}]`, `{"data":[{"id":"b","input_file_id":"f","created_at":-1}],"has_more":true}`, `{"id":"`, "\xff",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c := openai(t, always(200, string(body)))
		b, err := c.Retrieve(t.Context(), "b")
		var failed *backend.Error
		switch {
		case err != nil && !errors.As(err, &failed):
			t.Errorf("%T: %v", err, err)
		case err == nil && b.Handle.BatchID == "":
			t.Errorf("a batch without an id: %+v", b)
		}
		b, existence, err := c.ReadList(t.Context(), "f", time.Now())
		if existence == backend.Found && (b.Handle.BatchID == "" || b.Handle.FileID != "f" || err != nil) {
			t.Errorf("found %+v, %v", b, err)
		}
	})
}

// Whatever a refusal looks like, it can be told, and asks for no more than a
// day's wait.
func FuzzError(f *testing.F) {
	f.Add(429, "3", "", []byte(`{"error":{"message":"slow","code":"rate_limit_exceeded"}}`))
	f.Add(400, "", "", []byte("Line 3: \xff"))
	f.Add(503, "Fri, 31 Dec 1999 23:59:59 GMT", "1e400", []byte(`{"error":["a"],"detail":7}`))
	f.Fuzz(func(t *testing.T, status int, after, afterMs string, body []byte) {
		if status < 300 || status > 599 || status/100 == 3 {
			return
		}
		w := &wire{answer: func(sent, int) (*http.Response, error) {
			res := answer(status, string(body))
			res.Header["Retry-After"], res.Header["Retry-After-Ms"] = []string{after}, []string{afterMs}
			return res, nil
		}}
		_, err := openai(t, w).Retrieve(t.Context(), "b")
		e := failure(t, err)
		if e.Status != status || !utf8.ValidString(e.Error()) || e.Line() < 0 || e.Line() > 9_999_999 {
			t.Errorf("status %d, line %d: %q", e.Status, e.Line(), e)
		}
		if e.RetryAfter > 24*time.Hour {
			t.Errorf("wait %v for %q, %q", e.RetryAfter, after, afterMs)
		}
		if e.RateLimited() && e.Transient() {
			t.Error("both a rate limit and a fault")
		}
	})
}
