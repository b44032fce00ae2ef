package proxy_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// newKeyedProxy starts a proxy with the client keys one and two, in front of a
// Transport with the options to.
func newKeyedProxy(t *testing.T, server batchtest.Options, to autobatcher.Options, o proxy.Options) (*http.Client, *batchtest.Server, *autobatcher.Transport) {
	t.Helper()
	upstream := batchtest.New(server)
	to.Base = upstream.Transport()
	tr, err := autobatcher.New(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	if !o.ForwardKey {
		o.ClientKeys = []string{"one", "two"}
	}
	o.Upstream, o.Transport, o.Stats, o.Grace = parse(t, upstream.URL), tr, tr.Stats, cmp.Or(o.Grace, -1)
	return serve(t, newProxy(t, o)), upstream, tr
}

// leave sends a call with a key, and disconnects after d.
func leave(t *testing.T, client *http.Client, d time.Duration, key, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://proxy/v1/embeddings", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	if _, err := client.Do(r); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	synctest.Wait()
}

// TestClientKeysDoNotShareLines checks that a call takes over the line of an earlier
// call only if both have the same client key: a line that runs, an answer that was
// kept, and a line that the journal knows.
func TestClientKeysDoNotShareLines(t *testing.T) {
	const body = `{"model":"m","input":"a"}`
	for name, wait := range map[string]time.Duration{"running line": 2 * time.Minute, "kept answer": time.Hour} {
		for _, withJournal := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", journal: ", withJournal), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					o := autobatcher.Options{AbandonAfter: -1}
					if withJournal {
						o.Journal = journal.NewMemory()
					}
					client, upstream, _ := newKeyedProxy(t, slowServer, o, proxy.Options{})
					leave(t, client, time.Minute, "one", body)
					time.Sleep(wait)
					if res := post(t, client, "/v1/embeddings", body, "Authorization", "Bearer two"); res.StatusCode != 200 {
						t.Errorf("two: %s", res.Status)
					} else {
						readAll(t, res)
					}
					if n := len(upstream.Executed()); n != 2 {
						t.Errorf("%d lines were executed for two client keys, want 2", n)
					}
					readAll(t, post(t, client, "/v1/embeddings", body, "Authorization", "Bearer one"))
					if n := len(upstream.Executed()); n != 2 {
						t.Errorf("%d lines were executed after the retry of the first key, want 2", n)
					}
				})
			})
		}
	}
}

// TestClientKeysShareBatches checks that client keys cost no efficiency, and that
// the statistics name the keys without revealing a key.
func TestClientKeysShareBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, upstream, tr := newKeyedProxy(t, batchtest.Options{Turnaround: time.Minute}, autobatcher.Options{}, proxy.Options{})
		done := make(chan string)
		for _, key := range []string{"one", "two", "two"} {
			go func() {
				done <- readAll(t, post(t, client, "/v1/embeddings", `{"model":"m","input":"a"}`, "Api-Key", key))
			}()
		}
		synctest.Wait()
		stats := tr.Stats()
		if len(stats.Queues) != 1 || !slices.Equal(stats.Queues[0].Callers, []string{"key 1", "key 2"}) {
			t.Errorf("%+v", stats.Queues)
		}
		for range 3 {
			<-done
		}
		if n := len(upstream.Batches()); n != 1 || len(upstream.Executed()) != 3 {
			t.Errorf("%d batches, %d lines; want 1 and 3", n, len(upstream.Executed()))
		}
	})
}

// TestEscalationBudgets checks that no caller can use up the escalations of another:
// not with client keys, and not with forwarded keys.
func TestEscalationBudgets(t *testing.T) {
	for name, o := range map[string]proxy.Options{"client keys": {}, "forwarded keys": {ForwardKey: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				to := autobatcher.Options{Escalate: autobatcher.EscalateDeadline, EscalateLimit: 2}
				client, _, _ := newKeyedProxy(t, batchtest.Options{Turnaround: time.Hour}, to, o)
				ask := func(key, input string) int {
					res := post(t, client, "/v1/embeddings", `{"model":"m","input":"`+input+`"}`, "Api-Key", key, "Authorization", "Bearer "+key, "Autobatcher-Deadline", "2m")
					readAll(t, res)
					return res.StatusCode
				}
				for i, want := range []int{200, 200, 424} {
					if got := ask("one", fmt.Sprint(i)); got != want {
						t.Errorf("call %d of one: %d, want %d", i, got, want)
					}
				}
				if got := ask("two", "a"); got != 200 {
					t.Errorf("two, after one has used up the budget of one: %d", got)
				}
			})
		})
	}
}

// TestClosedHeaders checks that RefuseClientHeaders refuses each header of
// autobatcher, and a call that asks for real time in its body.
func TestClosedHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, upstream, _ := newKeyedProxy(t, batchtest.Options{}, autobatcher.Options{}, proxy.Options{RefuseClientHeaders: true})
		for _, header := range [][]string{
			{"Autobatcher-Mode", "realtime"},
			{"Autobatcher-Mode", "batch"},
			{"Autobatcher-Mode", "flex"},
			{"Autobatcher-Mode", "auto"},
			{"autobatcher-deadline", "1ms"},
			{"Autobatcher-Completion-Window", "1h"},
			{"Autobatcher-Unknown", "x"},
			{"Autobatcher-Mode", "realtime", "Connection", "Autobatcher-Mode"},
		} {
			res := post(t, client, "/v1/embeddings", `{"model":"m","input":"a"}`, append(header, "Api-Key", "one")...)
			code, message := apiError(t, res)
			if res.StatusCode != 400 || code != "header_closed" || !strings.Contains(message, http.CanonicalHeaderKey(header[0])) || !strings.Contains(message, "--client-headers") {
				t.Errorf("%q: %s %s %s", header, res.Status, code, message)
			}
		}
		res := post(t, client, "/v1/responses", `{"model":"m","input":"a","background":true}`, "Api-Key", "one")
		if body := readAll(t, res); res.StatusCode != 200 || gjson.Get(body, "status").String() != "queued" { // in a batch, too
			t.Errorf("background: %s %s", res.Status, body)
		}
		for _, tier := range []string{`"service_tier":"flex"`, `"service_tier":"priority"`, `"service_ti\u0065r":"priority"`} {
			res := post(t, client, "/v1/responses", `{"model":"m","input":"a",`+tier+`}`, "Api-Key", "one")
			if code, _ := apiError(t, res); res.StatusCode != 400 || code != "service_tier_closed" {
				t.Errorf("%s: %s %s", tier, res.Status, code)
			}
		}
		res = post(t, client, "/v1/embeddings", `{"model":"m","input":"a"}`, "Api-Key", "one")
		if readAll(t, res); res.StatusCode != 200 || len(upstream.Executed()) != 2 {
			t.Errorf("without headers: %s, %d lines", res.Status, len(upstream.Executed()))
		}
	})
}

// TestCallsThatAreNotBatched checks that, with RefuseClientHeaders, a call which the
// provider does not batch does not go upstream at full price.
func TestCallsThatAreNotBatched(t *testing.T) {
	for _, test := range []struct {
		profile provider.Profile
		refuse  bool
		path    string
		body    string
		want    int
	}{
		{provider.Groq(), true, "/v1/embeddings", `{}`, 404},
		{provider.Groq(), true, "/v1/responses", `{}`, 404},
		{provider.Groq(), true, "/v1/responses", `{"background":true}`, 404},
		{provider.Groq(), true, "/v1/chat/completions", `{}`, 200},
		{provider.Groq(), false, "/v1/embeddings", `{}`, 200},
		{provider.Azure(), true, "/v1/embeddings", `{}`, 404},
		{provider.Azure(), true, "/v1/responses", `{}`, 200},
		{provider.AzureLegacy(), true, "/openai/deployments/d/embeddings", `{}`, 404},
		{provider.OpenAI(), true, "/v1/embeddings", `{}`, 200},
		{provider.Profile{}, true, "/v1/responses", `{}`, 200},
	} {
		upstream, calls := counted()
		p := newProxy(t, proxy.Options{
			Transport: upstream, Profile: test.profile, AuthHeader: test.profile.AuthHeader, RefuseClientHeaders: test.refuse, ClientKeys: []string{"k"},
		})
		res := post(t, serve(t, p), test.path, test.body, "Api-Key", "k")
		if want := test.want == 200; res.StatusCode != test.want || (calls.Load() > 0) != want {
			t.Errorf("%s %s: %s, %d calls", test.profile.Name, test.path, res.Status, calls.Load())
		}
		if test.want == 200 {
			readAll(t, res)
		} else if code, message := apiError(t, res); code != autobatcher.CodeBatchUnsupported || !strings.Contains(message, "no batches") {
			t.Errorf("%s %s: %s %s", test.profile.Name, test.path, code, message)
		}
	}
}

// TestModeIsReadOnce checks that the proxy and the Transport read the same mode, and
// so agree on the price.
func TestModeIsReadOnce(t *testing.T) {
	for _, test := range []struct {
		name   string
		header http.Header
		status int
		lines  int // lines of batches; -1: the call is refused
	}{
		{"realtime", http.Header{"Autobatcher-Mode": {"realtime"}}, 200, 0},
		{"batch", http.Header{"Autobatcher-Mode": {"batch"}}, 200, 1},
		{"hop by hop", http.Header{"Autobatcher-Mode": {"realtime"}, "Connection": {"keep-alive, autobatcher-mode"}}, 200, 0},
		{"hop by hop, batch", http.Header{"Autobatcher-Mode": {"batch"}, "Connection": {"Autobatcher-Mode"}}, 200, 1},
		{"two values", http.Header{"Autobatcher-Mode": {"batch", "realtime"}}, 400, -1},
		{"two values, reversed", http.Header{"Autobatcher-Mode": {"realtime", "batch"}}, 400, -1},
		{"twice the same", http.Header{"Autobatcher-Mode": {"realtime", "realtime"}}, 200, 0},
		{"a list", http.Header{"Autobatcher-Mode": {"batch, realtime"}}, 400, -1},
		{"unknown", http.Header{"Autobatcher-Mode": {"REALTIME"}}, 400, -1},
		{"deadline, hop by hop", http.Header{"Autobatcher-Deadline": {"1s"}, "Connection": {"Autobatcher-Deadline"}}, 424, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, p, upstream := newBatchingProxy(t, batchtest.Options{Turnaround: time.Minute}, proxy.Options{})
				r, err := http.NewRequest(http.MethodPost, "http://proxy/v1/embeddings", strings.NewReader(`{"model":"m","input":"a"}`))
				if err != nil {
					t.Fatal(err)
				}
				r.Header = test.header
				r.Header.Set("Content-Type", "application/json")
				res, err := client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				readAll(t, res)
				lines := 0
				for _, upload := range upstream.Uploads() {
					lines += len(upload.Lines)
				}
				if res.StatusCode != test.status || lines != max(test.lines, 0) {
					t.Errorf("%s, %d lines in batches", res.Status, lines)
				}
				synctest.Wait()
				if u := p.Usage(); u.Answered+u.Failed != 1 || u.Waiting != 0 {
					t.Errorf("%+v", u)
				}
			})
		})
	}
}

// TestClientsDoNotChooseThePayer checks that RefuseClientHeaders removes the headers
// that select who pays: otherwise each value would also make a batch of its own.
func TestClientsDoNotChooseThePayer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for refuse, want := range map[bool]int{true: 1, false: 3} {
			client, upstream, _ := newKeyedProxy(t, batchtest.Options{Turnaround: time.Minute}, autobatcher.Options{}, proxy.Options{RefuseClientHeaders: refuse})
			done := make(chan int)
			for _, header := range [][]string{{"OpenAI-Project", "a"}, {"OpenAI-Organization", "b"}, {"OpenAI-Project", "c"}} {
				go func() {
					res := post(t, client, "/v1/embeddings", `{"model":"m","input":"a"}`, append(header, "Api-Key", "one")...)
					readAll(t, res)
					done <- res.StatusCode
				}()
			}
			for range 3 {
				if status := <-done; status != 200 {
					t.Error(status)
				}
			}
			if n := len(upstream.Batches()); n != want {
				t.Errorf("with RefuseClientHeaders %v: %d batches, want %d", refuse, n, want)
			}
		}
	})
}
