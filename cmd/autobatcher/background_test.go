//go:build unix

package main

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/batchtest"
)

// TestBackgroundAndKill kills serve while some clients have the ids of their calls and
// others have not: a second process answers for all, and pays for none again. Clients
// without an id repeat their calls with the same Idempotency-Key.
func TestBackgroundAndKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t, step{server: batchtest.Options{Turnaround: 3 * time.Second}, provider: "openai"}, filepath.Join(t.TempDir(), "j.db"))
	port := freePort(t)
	first := w.serve(port, "0.2")
	ids := make([]string, calls)
	var known, clients sync.WaitGroup
	known.Add(calls / 2)
	for i := range ids {
		clients.Go(func() {
			if i >= calls/2 { // a batch of their own, in whose midst serve is killed
				known.Wait()
			}
			for ids[i] == "" {
				ids[i] = gjson.Get(w.ask(first.url, "POST", "/responses", fmt.Sprintf(`{"model":"m","input":"prompt %d.","background":true}`, i), fmt.Sprint("k", i)), "id").String()
			}
			if i < calls/2 {
				known.Done()
			}
		})
	}
	known.Wait()
	w.until(func() bool { return len(w.srv.Uploads()) == 2 })
	first.kill()
	second := w.serve(port, "0.2")
	clients.Wait()
	for i, id := range ids {
		var body string
		w.until(func() bool {
			body = w.ask(second.url, "GET", "/responses/"+id, "", "")
			return gjson.Get(body, "status").String() == "completed"
		})
		if !strings.Contains(body, fmt.Sprintf("prompt %d.", i)) || gjson.Get(body, "id").String() != id {
			t.Errorf("the answer for %d is %s", i, body)
		}
	}
	if executed := w.srv.Executed(); len(executed) != calls {
		t.Errorf("%d lines were executed, want %d", len(executed), calls)
	}
	second.end()
}

// ask sends a request, and returns the body of the answer, or "" if none came.
func (w *world) ask(base, method, path, body, key string) string {
	r, err := http.NewRequestWithContext(w.Context(), method, base+path, strings.NewReader(body))
	if err != nil {
		w.Error(err)
		return ""
	}
	r.Header.Set("Content-Type", "application/json")
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		time.Sleep(50 * time.Millisecond)
		return ""
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return string(text)
}
