package autobatcher

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/reply"
)

// What is kept for callers that have gone is bounded, and the oldest go first.
// Answers of that size take too long to send through a provider.
func TestKeptAnswersAreBounded(t *testing.T) {
	tr, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	calls := make([]*call, 5)
	for i := range calls {
		calls[i] = &call{print: fingerprint{byte(i)}}
		tr.keep(calls[i], &answer{Answer: reply.Answer{Status: 200, Body: make([]byte, 22<<20)}}, defaultKeepFor)
	}
	for i, c := range calls {
		kept := len(tr.left[c.print]) == 1 && c.answer != nil
		if want := i >= 3; kept != want {
			t.Errorf("answer %d kept: %v, want %v", i, kept, want)
		}
	}
	if want := int64(44 << 20); tr.keptSize != want {
		t.Errorf("%d bytes are counted, want %d", tr.keptSize, want)
	}
	calls[4].keptUntil = time.Now().Add(time.Hour)
	calls[3].keptUntil = time.Now()
	if tr.prune(); calls[3].answer != nil || calls[4].answer == nil || tr.keptSize != 22<<20 {
		t.Errorf("after a day: %v, %v, %d bytes", calls[3].answer != nil, calls[4].answer != nil, tr.keptSize)
	}
}

// A proxy that had begun its answer could not pass a failure on, and each retry
// of the SDK's bought another line.
func TestAFailureThatWasNotPassedOnIsKeptForTheRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := batchtest.New(batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome {
			return batchtest.Outcome{Status: http.StatusBadRequest, Body: []byte(`{"error":{"message":"no","type":"x"}}`)}
		}})
		tr, err := New(Options{Base: srv.Transport()})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		ask := func() *http.Response {
			t.Helper()
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/embeddings", strings.NewReader(`{"model":"m","input":"x"}`))
			req.Header.Set("Authorization", "Bearer k")
			res, err := tr.RoundTrip(req)
			if err != nil || res.StatusCode != http.StatusBadRequest {
				t.Fatalf("%v, %v; want the line's 400", res, err)
			}
			io.Copy(io.Discard, res.Body)
			return res
		}
		ask().Body.(*reply.Body).Keep()
		ask().Body.Close()
		if n := len(srv.Executed()); n != 1 {
			t.Errorf("%d lines were executed for a call and its retry, want one", n)
		}
		ask().Body.(*reply.Body).Keep()
		time.Sleep(failureKeepTime)
		ask().Body.Close()
		if n := len(srv.Executed()); n != 3 {
			t.Errorf("%d lines, want three: two minutes later it is a new try", n)
		}
	})
}
