package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/provider"
)

// What holds for calls in batches also holds at the flex tier.

// newFlexProxy starts a proxy like newKeyedProxy, whose calls are sent at the flex tier.
func newFlexProxy(t *testing.T, server batchtest.Options, to autobatcher.Options, o proxy.Options) (*http.Client, *batchtest.Server, *autobatcher.Transport) {
	t.Helper()
	openai := provider.OpenAI()
	server.Behavior, to.Provider, to.Mode = batchtest.OpenAI(), &openai, autobatcher.ModeFlex
	return newKeyedProxy(t, server, to, o)
}

var flexBodies = map[string]string{
	"/v1/chat/completions": `{"model":"m","messages":[{"role":"user","content":"%s"}]}`, // held open
	"/v1/responses":        `{"model":"m","input":"%s"}`,                                // in the background
}

// TestClientKeysDoNotShareFlexCalls checks that a call takes over a call at the flex tier
// only if both have the same client key.
func TestClientKeysDoNotShareFlexCalls(t *testing.T) {
	for path, body := range flexBodies {
		for name, wait := range map[string]time.Duration{"running": time.Minute, "kept answer": time.Hour} {
			t.Run(path+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					client, upstream, _ := newFlexProxy(t, batchtest.Options{FlexDelay: 10 * time.Minute}, autobatcher.Options{AbandonAfter: -1}, proxy.Options{})
					body := fmt.Sprintf(body, "a")
					disconnect(t, client, time.Minute, path, "one", body)
					time.Sleep(wait)
					for i, key := range []string{"two", "one"} {
						if res := post(t, client, path, body, "Authorization", "Bearer "+key); res.StatusCode != 200 {
							t.Errorf("%s: %s", key, res.Status)
						} else {
							readAll(t, res)
						}
						if diff := cmp.Diff(map[batchtest.Tier]int{"flex": 2}, upstream.PaidTiers()); diff != "" {
							t.Errorf("paid after call %d (-want +got):\n%s", i, diff)
						}
					}
				})
			})
		}
	}
}

// disconnect sends a call with a key, and disconnects after d.
func disconnect(t *testing.T, client *http.Client, d time.Duration, path, key, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://proxy"+path, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	r.Header.Set("Authorization", "Bearer "+key)
	if res, err := client.Do(r); err == nil {
		res.Body.Close()
		t.Error(res.Status)
	}
}

// TestFlexFallbackBudgets checks that calls which the flex tier has no room for count
// against the escalations of their own client key.
func TestFlexFallbackBudgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, upstream, _ := newFlexProxy(t, batchtest.Options{}, autobatcher.Options{FlexFallback: autobatcher.FallbackRealtime, EscalateLimit: 2}, proxy.Options{})
		upstream.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable())
		ask := func(key, text string) int {
			res := post(t, client, "/v1/chat/completions", fmt.Sprintf(flexBodies["/v1/chat/completions"], text), "Api-Key", key)
			readAll(t, res)
			return res.StatusCode
		}
		for i, want := range []int{200, 200, 503} {
			if got := ask("one", fmt.Sprint(i)); got != want {
				t.Errorf("call %d of one: %d, want %d", i, got, want)
			}
		}
		if got := ask("two", "a"); got != 200 {
			t.Errorf("two, after one has used up the budget of one: %d", got)
		}
		if diff := cmp.Diff(map[batchtest.Tier]int{"default": 3}, upstream.PaidTiers()); diff != "" {
			t.Errorf("paid (-want +got):\n%s", diff)
		}
	})
}

// TestFlexHidesTheKey checks answers of the flex tier that repeat the key.
func TestFlexHidesTheKey(t *testing.T) {
	for path, body := range flexBodies {
		for _, status := range []int{200, 401} {
			synctest.Test(t, func(t *testing.T) {
				leaky, _ := json.Marshal(map[string]any{"error": map[string]string{"message": "bad key " + operatorKey, "type": "t"}})
				server := batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
					o := batchtest.Echo(l)
					if status == 401 {
						return batchtest.Outcome{Status: status, Body: leaky}
					}
					o.Body = []byte(strings.ReplaceAll(string(o.Body), "echoed", operatorKey))
					return o
				}}
				client, _, _ := newFlexProxy(t, server, autobatcher.Options{}, proxy.Options{APIKey: operatorKey})
				res := post(t, client, path, fmt.Sprintf(body, "echoed"), "Authorization", "Bearer one")
				if got := readAll(t, res); (res.StatusCode == 200) != (status == 200) || leaks(got) || leaks(fmt.Sprint(res.Header)) || !strings.Contains(got, "***") {
					t.Errorf("%s: %s %v %s", path, res.Status, res.Header, got)
				}
			})
		}
	}
}

// TestMemoryOfFlexCalls checks that the body of a call at the flex tier counts while the
// call runs, and that the body of a call whose client left is freed at the end.
func TestMemoryOfFlexCalls(t *testing.T) {
	for path, body := range flexBodies {
		synctest.Test(t, func(t *testing.T) {
			client, _, _ := newFlexProxy(t, batchtest.Options{FlexDelay: 10 * time.Minute}, autobatcher.Options{}, proxy.Options{MaxMemory: 1000})
			body := fmt.Sprintf(body, strings.Repeat("x", 600))
			go disconnect(t, client, 2*time.Minute, path, "one", body)
			time.Sleep(time.Minute)
			res := post(t, client, path, body, "Authorization", "Bearer two")
			if code, _ := apiError(t, res); code != "out_of_memory" {
				t.Errorf("%s: another call meanwhile: %s %s", path, res.Status, code)
			}
			time.Sleep(20 * time.Minute)
			if res := post(t, client, path, body, "Authorization", "Bearer two"); res.StatusCode != 200 {
				t.Errorf("%s: later: %s", path, res.Status)
			} else {
				readAll(t, res)
			}
		})
	}
}

// TestLateFlexAnswers checks that the trailers of a late answer name the lane, also if the
// call was to be sent in a batch otherwise.
func TestLateFlexAnswers(t *testing.T) {
	for path, body := range flexBodies {
		synctest.Test(t, func(t *testing.T) {
			openai := provider.OpenAI()
			upstream := batchtest.New(batchtest.Options{Behavior: batchtest.OpenAI(), FlexDelay: 10 * time.Minute})
			tr, err := autobatcher.New(autobatcher.Options{Base: upstream.Transport(), Provider: &openai})
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			client := serve(t, newProxy(t, proxy.Options{Upstream: parse(t, upstream.URL), Transport: tr, Stats: tr.Stats}))
			res := post(t, client, path, fmt.Sprintf(body, "late"), "Autobatcher-Mode", "flex")
			got := readAll(t, res)
			if !strings.HasPrefix(got, "\n") || !strings.Contains(got, "late") || res.Header.Get("Autobatcher-Custom-Id") == "" || res.Trailer.Get("Autobatcher-Mode") != "flex" {
				t.Errorf("%s: headers %v, trailers %v, %s", path, res.Header, res.Trailer, got)
			}
		})
	}
}
