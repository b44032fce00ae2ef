package batchapi_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/internal/backend"
)

func TestCleanup(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers []func() (*http.Response, error)
		fails   bool
	}{
		{"deleted", []func() (*http.Response, error){says(200, "{}")}, false},
		{"gone already", []func() (*http.Response, error){says(404, "{}")}, false},
		{"busy for a while", []func() (*http.Response, error){says(503, "{}"), reset, says(200, "{}")}, false},
		{"forbidden", []func() (*http.Response, error){says(403, "{}")}, true},
		{"broken", []func() (*http.Response, error){says(500, "{}")}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				w := &wire{answer: func(sent, int) (*http.Response, error) {
					n++
					return tt.answers[min(n, len(tt.answers))-1]()
				}}
				began := time.Now()
				if err := openai(t, w).Cleanup(t.Context(), backend.Handle{FileID: "f"}, nil); (err != nil) != tt.fails {
					t.Error(err)
				}
				if took := time.Since(began); took > time.Minute {
					t.Errorf("took %v", took)
				}
			})
		})
	}
	t.Run("which files", func(t *testing.T) {
		w := always(200, "{}")
		h := backend.Handle{FileID: "f", BatchID: "b"}
		for _, deleted := range []bool{false, true} {
			h.InputDeleted = deleted
			if err := openai(t, w).Cleanup(t.Context(), h, []string{"o", "", "https://cdn.example/e"}); err != nil {
				t.Error(err)
			}
		}
		var got []string
		for _, s := range w.requests() {
			got = append(got, s.method+" "+strings.TrimPrefix(s.url, "https://api.openai.com/v1"))
		}
		want := []string{"DELETE /files/f", "DELETE /files/o", "DELETE /files/o"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

// A batch that has ended is not cancelled: Doubleword would turn the completed
// batch into a cancelled batch.
func TestCancelLooksFirst(t *testing.T) {
	for _, tt := range []struct {
		name    string
		look    func() (*http.Response, error)
		cancels int
		is      error
		fails   bool
	}{
		{"running", says(200, `{"id":"b","status":"in_progress"}`), 1, nil, false},
		{"validating", says(200, `{"id":"b","status":"Validating"}`), 1, nil, false},
		{"completed", says(200, `{"id":"b","status":"COMPLETED"}`), 0, backend.ErrEnded, true},
		{"failed", says(200, `{"id":"b","status":"failed"}`), 0, backend.ErrEnded, true},
		{"expired", says(200, `{"id":"b","status":"expired"}`), 0, backend.ErrEnded, true},
		{"cancelled", says(200, `{"id":"b","status":"cancelled"}`), 0, backend.ErrEnded, true},
		{"cancelling", says(200, `{"id":"b","status":"cancelling"}`), 0, nil, false},
		{"not known", says(500, `{}`), 0, nil, true},
		{"gone", says(404, `{}`), 0, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cancels := 0
			w := &wire{answer: func(s sent, _ int) (*http.Response, error) {
				if s.method == http.MethodPost {
					cancels++
					return answer(200, `{"id":"b","status":"cancelling"}`), nil
				}
				return tt.look()
			}}
			err := openai(t, w).Cancel(t.Context(), backend.Handle{BatchID: "b"})
			if cancels != tt.cancels || (err != nil) != tt.fails || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%d cancellations, %v", cancels, err)
			}
		})
	}
}
