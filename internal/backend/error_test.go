package backend_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/retry"
)

func TestClassify(t *testing.T) {
	status := func(n int, message string) *backend.Error {
		return &backend.Error{Op: "POST /batches", Status: n, Body: fmt.Appendf(nil, `{"error":{"message":%q}}`, message), RetryAfter: -1}
	}
	for _, tt := range []struct {
		name string
		err  error
		want retry.Class
	}{
		{"another error", errors.New("boom"), retry.Stopped},
		{"a context", context.Canceled, retry.Stopped},
		{"no answer", backend.NoAnswer("GET /batches/b", errors.New("reset")), retry.Transient},
		{"wrapped", fmt.Errorf("around: %w", status(500, "")), retry.Transient},
		{"timeout", status(408, ""), retry.Transient},
		{"server", status(502, ""), retry.Transient},
		{"too fast", status(429, "slow down"), retry.RateLimited},
		{"quota", status(429, "insufficient_quota"), retry.Permanent},
		{"refused", status(400, "no"), retry.Permanent},
		{"no credit", status(402, "no"), retry.Permanent},
		{"redirected", status(301, "no"), retry.Permanent},
		{"unknown", status(404, "no"), retry.NotFound},
		{"gone", status(410, "no"), retry.NotFound},
		{"key", status(401, "no"), retry.Unauthorized},
		{"rights", status(403, "no"), retry.Unauthorized},
		{"Azure's file", status(400, "Only files with status 'Processed' are accepted."), retry.NotReady},
		{"a file that is not ready", status(409, "The file is not ready"), retry.NotReady},
		{"a file that is wrong", status(400, "The file does not end with .jsonl"), retry.Permanent},
	} {
		if got, asked := backend.Classify(tt.err); got != tt.want || asked != -1 {
			t.Errorf("%s: class %v, wait %v; want class %v", tt.name, got, asked, tt.want)
		}
	}
	e := status(503, "")
	e.RetryAfter = time.Minute
	if _, asked := backend.Classify(e); asked != time.Minute {
		t.Errorf("asked to wait %v, want a minute", asked)
	}
}

// The file of a refused upload is not awaited: there is no file.
func TestUploadIsNeverAwaited(t *testing.T) {
	e := &backend.Error{Uploading: true, Status: 400, Body: []byte("the file is not ready"), RetryAfter: -1}
	if e.NotReady() || !e.RefusesUpload() {
		t.Errorf("not ready %v, refused %v", e.NotReady(), e.RefusesUpload())
	}
}
