package autobatcher_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

func TestSmoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := batchtest.New(batchtest.Options{Turnaround: time.Minute})
		var mu sync.Mutex
		tr, err := autobatcher.New(autobatcher.Options{Base: srv.Transport(), OnEvent: func(e autobatcher.Event) {
			mu.Lock()
			defer mu.Unlock()
			b, _ := e.MarshalJSON()
			t.Logf("%s", b)
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		begin := time.Now()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				req, _ := http.NewRequestWithContext(context.Background(), "POST", srv.URL+"/chat/completions", strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"Hello there. Bye"}]}`))
				req.Header.Set("Authorization", "Bearer k")
				req.Header.Set("Content-Type", "application/json")
				res, err := tr.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				body, _ := io.ReadAll(res.Body)
				res.Body.Close()
				t.Log(time.Since(begin), res.Status, res.Header, string(bytes.TrimSpace(body)))
			})
		}
		wg.Wait()
	})
}
