package proxy_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

// TestBackgroundKeys checks that the answer of a call in the background is there for its
// client key only, without other routes of the account, and that no memory stays reserved.
func TestBackgroundKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, upstream, _ := newKeyedProxy(t, batchtest.Options{Turnaround: time.Hour}, autobatcher.Options{}, proxy.Options{})
		ask := func(method, path, key string, want int) string {
			t.Helper()
			r, err := http.NewRequest(method, "http://proxy"+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+key)
			res, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body := readAll(t, res)
			if res.StatusCode != want {
				t.Errorf("%s %s with %q: %s %s, want %d", method, path, key, res.Status, body, want)
			}
			return body
		}
		body := readAll(t, post(t, client, "/v1/responses", `{"model":"m","input":"a","background":true}`, "Authorization", "Bearer one"))
		path := "/v1/responses/" + gjson.Get(body, "id").String()
		res := post(t, client, "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"b"}]}`, "Authorization", "Bearer one", "Prefer", "respond-async")
		readAll(t, res)
		location, err := res.Location()
		if err != nil || res.StatusCode != 202 {
			t.Fatalf("%s %v %v", res.Status, res.Header, err)
		}
		for _, at := range []string{path, location.Path} {
			ask("GET", at, "two", 404)
			ask("DELETE", at, "two", 404)
			ask("POST", at+"/cancel", "two", 404)
			ask("GET", at, "three", 401)
		}
		if got := ask("GET", path, "one", 200); gjson.Get(got, "status").String() != "in_progress" {
			t.Errorf("before the end: %s", got)
		}
		ask("GET", location.Path, "one", 202)
		time.Sleep(2 * time.Hour)
		if got := ask("GET", path, "one", 200); gjson.Get(got, "status").String() != "completed" || !strings.Contains(got, "You said: a") {
			t.Errorf("after the end: %s", got)
		}
		if got := ask("GET", location.Path, "one", 200); gjson.Get(got, "object").String() != "chat.completion" || !strings.Contains(got, "You said: b") {
			t.Errorf("after the end: %s", got)
		}
		ask("GET", path, "two", 404)
		ask("GET", "/v1/responses/resp_"+strings.Repeat("0", 48), "one", 403) // the provider's
		ask("DELETE", path, "one", 200)
		ask("GET", path, "one", 404)
		if n := len(upstream.Executed()); n != 2 {
			t.Errorf("%d lines were executed, want 2", n)
		}
		metrics := ask("GET", "/metrics", "one", 200)
		if !strings.Contains(metrics, "\nautobatcher_request_memory_bytes 0\n") {
			t.Error("memory is reserved after the last call")
		}
	})
}

// TestBackgroundAfterGrace checks that a client finds its answer also if status 200 was
// sent before the batch was created.
func TestBackgroundAfterGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, _ := newKeyedProxy(t, batchtest.Options{Turnaround: time.Hour}, autobatcher.Options{QuietAfter: -1}, proxy.Options{Grace: time.Second, Heartbeat: time.Second})
		res := post(t, client, "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"b"}]}`, "Authorization", "Bearer one", "Prefer", "respond-async")
		body := readAll(t, res)
		if res.StatusCode != 200 || res.Header.Get("Location") != "" || !strings.HasPrefix(body, "\n") {
			t.Errorf("%s %v %q; want a status that was sent early", res.Status, res.Header, body)
		}
		location, err := res.Request.URL.Parse(gjson.Get(body, "location").String())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		ask, err := http.NewRequest(http.MethodGet, location.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		ask.Header.Set("Authorization", "Bearer one")
		answer, err := client.Do(ask)
		if err != nil {
			t.Fatal(err)
		}
		if text := readAll(t, answer); answer.StatusCode != 200 || !strings.Contains(text, "You said: b") {
			t.Errorf("GET %s: %s %s", location, answer.Status, text)
		}
	})
}
