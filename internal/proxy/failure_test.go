package proxy_test

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

// TestFailures checks that errors are reported with their codes, and that the client
// gets the whole error nevertheless.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := strings.Repeat("x", 10_000)
		var mu sync.Mutex
		var got []proxy.Failure
		server := batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
			switch {
			case strings.Contains(string(l.Body), "code"):
				return batchtest.Outcome{Status: 400, Body: []byte(`{"error":{"code":"invalid_prompt","type":"t","message":"` + long + `"}}`)}
			case strings.Contains(string(l.Body), "type"):
				return batchtest.Outcome{Status: 404, Body: []byte(`{"error":{"code":null,"type":"no_such_model","message":"no"}}`)}
			case strings.Contains(string(l.Body), "never"):
				return batchtest.Outcome{Never: true}
			}
			return batchtest.Outcome{}
		}}
		client, _, _ := newBatchingProxy(t, server, proxy.Options{Grace: -1, OnFailure: func(f proxy.Failure) {
			mu.Lock()
			defer mu.Unlock()
			f.BatchID = strings.TrimRight(f.BatchID, "0123456789abcdef") // the ids are random
			got = append(got, f)
		}})
		var calls sync.WaitGroup
		for _, text := range []string{"code", "type", "never", "ok"} {
			calls.Go(func() {
				res := post(t, client, "/v1/embeddings", `{"model":"m","input":"`+text+`"}`)
				if body := readAll(t, res); text == "code" && !strings.Contains(body, long) {
					t.Errorf("the client got %d bytes of the error", len(body))
				}
			})
		}
		calls.Wait()
		readAll(t, post(t, client, "/v1/embeddings", `{"input":"a"}`))
		slices.SortFunc(got, func(x, y proxy.Failure) int {
			return cmp.Or(cmp.Compare(x.Status, y.Status), cmp.Compare(x.Code, y.Code))
		})
		want := []proxy.Failure{
			{BatchID: "batch_", Status: 400, Code: "invalid_prompt", FromLine: true},
			{Status: 400, Code: "invalid_request", Refused: true},
			{BatchID: "batch_", Status: 404, Code: "no_such_model", FromLine: true},
			{BatchID: "batch_", Status: http.StatusFailedDependency, Code: "batch_expired"},
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("failures (-want +got):\n%s", diff)
		}
	})
}
