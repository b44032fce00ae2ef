package proxy_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/provider"
)

// wantMetric checks a line of /metrics.
func wantMetric(t *testing.T, client *http.Client, line string) {
	t.Helper()
	if got := metrics(t, client); !strings.Contains(got, "\n"+line+"\n") {
		t.Errorf("the metrics lack %q:\n%s", line, got)
	}
}

// postAndRead sends a call and reads the response.
func postAndRead(t *testing.T, client *http.Client, path, body string) *http.Response {
	t.Helper()
	res := post(t, client, path, body)
	readAll(t, res)
	return res
}

// keepBody reads and keeps the body of a call, as a Transport does, and responds
// after a minute.
var keepBody = respondAfter(time.Minute, http.StatusOK, "application/json", `{}`)

// TestMaxQueued checks that only calls which wait to be sent count: neither calls in
// batches, nor calls whose body has not arrived.
func TestMaxQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, p, _ := newBatchingProxy(t, slowServer, proxy.Options{MaxQueued: 2, Grace: -1})
		body, w := io.Pipe() // a body that does not arrive
		defer w.Close()
		for range 3 {
			go func() {
				if res, err := client.Post("http://proxy/v1/responses", "application/json", body); err == nil {
					res.Body.Close()
				}
			}()
		}
		go io.WriteString(w, "{")
		synctest.Wait()
		var calls sync.WaitGroup
		fill := func(round int) {
			for i := range 2 {
				calls.Go(func() {
					res := post(t, client, "/v1/embeddings", fmt.Sprintf(`{"model":"m","input":"%d %d"}`, round, i))
					if body := readAll(t, res); res.StatusCode != 200 {
						t.Errorf("%s %s", res.Status, body)
					}
				})
			}
			synctest.Wait()
		}
		for round := range 3 {
			fill(round)
			res := post(t, client, "/v1/embeddings", `{"model":"m","input":"more"}`)
			if code, _ := apiError(t, res); res.StatusCode != 429 || code != "too_many_calls_queued" || res.Header.Get("Retry-After") == "" {
				t.Errorf("round %d: %s %s %v", round, res.Status, code, res.Header)
			}
			time.Sleep(time.Minute) // the batch is sent
		}
		if got := p.Usage().Waiting; got < 6 {
			t.Errorf("%d calls are held", got)
		}
		wantMetric(t, client, `autobatcher_refused_total{reason="queue"} 3`)
		calls.Wait()
	})
}

// TestMaxQueuedWhileCallsAreParsed checks that calls count from the arrival of their
// body, before the Transport has queued them, and that a call which the Transport
// refuses does not count any more.
func TestMaxQueuedWhileCallsAreParsed(t *testing.T) {
	for name, status := range map[string]int{"queued": 200, "refused": 400} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var queued atomic.Int64
				p := newProxy(t, proxy.Options{
					MaxQueued: 2, Grace: -1,
					Stats: func() autobatcher.Stats { return autobatcher.Stats{Queued: int(queued.Load())} },
					Transport: transport(func(r *http.Request) (*http.Response, error) {
						if _, err := io.ReadAll(r.Body); err != nil {
							return nil, err
						}
						time.Sleep(time.Second) // to parse
						if status == 200 {
							queued.Add(1)
							defer queued.Add(-1)
							caller.ObserverOf(r.Context()).Waiting(caller.Call{})
							time.Sleep(time.Second)
						}
						return responseTo(r, status, "application/json", `{}`), nil
					}),
				})
				client := serve(t, p)
				var accepted, refused atomic.Int64
				var calls sync.WaitGroup
				for round := range 3 {
					for range 5 {
						calls.Go(func() {
							if res := postAndRead(t, client, "/v1/embeddings", "{}"); res.StatusCode == 429 {
								refused.Add(1)
							} else {
								accepted.Add(1)
							}
						})
						time.Sleep(100 * time.Millisecond) // the queue is measured each time
					}
					calls.Wait()
					time.Sleep(time.Minute)
					if a, r := accepted.Load(), refused.Load(); a != int64(2*(round+1)) || r != int64(3*(round+1)) {
						t.Fatalf("round %d: %d calls were accepted, %d refused", round, a, r)
					}
				}
			})
		})
	}
}

// TestMaxQueuedAndCallsInRealtime checks that calls which are sent at once take no place
// in the queue of calls that wait to be sent.
func TestMaxQueuedAndCallsInRealtime(t *testing.T) {
	openai := provider.OpenAI()
	for name, test := range map[string]struct {
		mode       autobatcher.Mode
		path, body string
	}{
		"every call in real time": {autobatcher.ModeRealtime, "/v1/responses", `{"model":"m","input":"%d"}`},
		"a tier":                  {autobatcher.ModeBatch, "/v1/responses", `{"model":"m","input":"%d","service_tier":"priority"}`},
		"at the flex tier":        {autobatcher.ModeFlex, "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"%d"}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				upstream := batchtest.New(batchtest.Options{Behavior: batchtest.OpenAI()})
				slow := transport(func(r *http.Request) (*http.Response, error) {
					res, err := upstream.Transport().RoundTrip(r)
					time.Sleep(10 * time.Minute)
					return res, err
				})
				tr, err := autobatcher.New(autobatcher.Options{Base: proxy.LimitRealtime(slow, 0), Provider: &openai, Mode: test.mode})
				if err != nil {
					t.Fatal(err)
				}
				defer tr.Close()
				client := serve(t, newProxy(t, proxy.Options{MaxQueued: 1, Grace: -1, Upstream: parse(t, upstream.URL), Transport: tr, Stats: tr.Stats}))
				var calls sync.WaitGroup
				for i := range 3 {
					calls.Go(func() {
						res := post(t, client, test.path, fmt.Sprintf(test.body, i))
						if body := readAll(t, res); res.StatusCode != 200 {
							t.Errorf("%s %s", res.Status, body)
						}
					})
					time.Sleep(time.Minute)
					if s := tr.Stats(); s.Queued != 0 || len(s.Queues) != 0 {
						t.Errorf("%d calls wait to be sent, in %d queues", s.Queued, len(s.Queues))
					}
				}
				calls.Wait()
			})
		})
	}
}

// TestFullQueueAndABodyInRealtime checks that a call which is sent in real time while its
// body arrives is not refused when others fill the queue meanwhile.
func TestFullQueueAndABodyInRealtime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := batchtest.New(slowServer)
		tr, err := autobatcher.New(autobatcher.Options{Base: proxy.LimitRealtime(upstream.Transport(), 0), Mode: autobatcher.ModeRealtime, QuietAfter: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		client := serve(t, newProxy(t, proxy.Options{MaxQueued: 1, Grace: -1, Upstream: parse(t, upstream.URL), Transport: tr, Stats: tr.Stats}))
		body, w := io.Pipe()
		defer w.Close()
		var calls sync.WaitGroup
		calls.Go(func() {
			res, err := client.Post("http://proxy/v1/embeddings", "application/json", body)
			if err != nil {
				t.Error(err)
				return
			}
			if text := readAll(t, res); res.StatusCode != 200 {
				t.Errorf("%s %s", res.Status, text)
			}
		})
		io.WriteString(w, `{"model":"m",`)
		synctest.Wait() // the proxy has begun to read the body
		calls.Go(func() {
			readAll(t, post(t, client, "/v1/embeddings", `{"model":"m","input":"waits"}`, "Autobatcher-Mode", "batch"))
		})
		synctest.Wait()
		if tr.Stats().Queued != 1 {
			t.Error("the queue is not full")
		}
		io.WriteString(w, `"input":"a"}`)
		w.Close()
		calls.Wait()
	})
}

// TestTinyAnnouncedTimeout checks that a client cannot cause heartbeats more often
// than once a second.
func TestTinyAnnouncedTimeout(t *testing.T) {
	for _, timeout := range []string{"1e-9", "0.001", "0.5"} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			p := newProxy(t, proxy.Options{Transport: respondAfter(10*time.Second, 200, "application/json", `{}`)})
			res := post(t, serve(t, p), "/v1/embeddings", chatCall, "X-Stainless-Timeout", timeout)
			if got := time.Since(start); got != time.Second {
				t.Errorf("timeout %s: the answer began after %v", timeout, got)
			}
			if got := strings.Count(readAll(t, res), "\n"); got < 9 || got > 10 {
				t.Errorf("timeout %s: %d heartbeats in 10 s", timeout, got)
			}
		})
	}
}

// TestMaxPassedThrough checks the limit of requests that pass through.
func TestMaxPassedThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := serve(t, newProxy(t, proxy.Options{MaxPassedThrough: 1, Transport: keepBody}))
		done := make(chan struct{})
		go func() {
			defer close(done)
			readAll(t, post(t, client, "/v1/files", ""))
		}()
		synctest.Wait()
		res := post(t, client, "/v1/files", "")
		if code, _ := apiError(t, res); res.StatusCode != 503 || code != "too_many_requests_passed_through" || res.Header.Get("Retry-After") == "" {
			t.Errorf("%s %s", res.Status, code)
		}
		if res := postAndRead(t, client, "/v1/embeddings", "{}"); res.StatusCode != 200 {
			t.Errorf("a held call: %s", res.Status)
		}
		<-done
		if res := postAndRead(t, client, "/v1/files", ""); res.StatusCode != 200 {
			t.Errorf("afterwards: %s", res.Status)
		}
	})
}

// TestMaxSentInRealtime checks that held calls which the Transport sends in real time
// count as requests that pass through. A call that is not escalated for that reason
// stays in its batch, which answers in time.
func TestMaxSentInRealtime(t *testing.T) {
	groq := provider.Groq()
	for name, test := range map[string]struct {
		profile    *provider.Profile
		path, body string
		want       int64 // sum of the statuses of two calls
		unpriced   int64 // answers in real time of both rounds whose cost is not estimated
	}{
		"a tier":      {nil, "/v1/responses", `{"model":"m","input":"%d","service_tier":"priority"}`, 200 + 503, 2},
		"not batched": {&groq, "/v1/embeddings", `{"model":"m","input":"%d"}`, 200 + 503, 2},
		"escalated":   {nil, "/v1/embeddings", `{"model":"m","input":"%d"}`, 200 + 200, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				upstream := batchtest.New(batchtest.Options{Turnaround: 9*time.Minute + 30*time.Second})
				var sent atomic.Int64
				slow := transport(func(r *http.Request) (*http.Response, error) {
					if strings.HasSuffix(r.URL.Path, test.path) {
						sent.Add(1)
						time.Sleep(time.Minute)
						_, err := io.Copy(io.Discard, r.Body)
						return responseTo(r, 200, "application/json", `{}`), err
					}
					return upstream.Transport().RoundTrip(r)
				})
				tr, err := autobatcher.New(autobatcher.Options{Base: proxy.LimitRealtime(slow, 0), Provider: test.profile, Escalate: autobatcher.EscalateDeadline, PollInterval: time.Second})
				if err != nil {
					t.Fatal(err)
				}
				defer tr.Close()
				p := newProxy(t, proxy.Options{MaxPassedThrough: 1, Grace: -1, Upstream: parse(t, upstream.URL), Transport: tr})
				client := serve(t, p)
				for round := range 2 { // the place of an answered call is free
					var calls sync.WaitGroup
					var statuses atomic.Int64
					for i := range 2 {
						calls.Go(func() {
							res := post(t, client, test.path, fmt.Sprintf(test.body, 2*round+i), "Autobatcher-Deadline", "10m")
							statuses.Add(int64(res.StatusCode))
							if res.StatusCode == 200 {
								readAll(t, res)
							} else if code, _ := apiError(t, res); code != "too_many_requests_passed_through" || res.Header.Get("Retry-After") == "" {
								t.Errorf("%s %s", res.Status, code)
							}
						})
					}
					calls.Wait()
					if got := statuses.Load(); got != test.want {
						t.Errorf("round %d: sum of the statuses %d, want %d", round, got, test.want)
					}
					if got := int(sent.Load()); got != round+1 {
						t.Errorf("%d calls were sent in real time in %d rounds", got, round+1)
					}
					synctest.Wait()
				}
				if got := p.Usage().Realtime; got != test.unpriced {
					t.Errorf("%d answers have no estimate of their cost, want %d", got, test.unpriced)
				}
			})
		})
	}
}

// TestMaxAtFlexTier checks that calls at the flex tier, which hold a connection each, leave
// connections for batches: a call beyond the limit waits, and goes to a
// batch after two minutes, as without room at the provider.
func TestMaxAtFlexTier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		openai := provider.OpenAI()
		upstream := batchtest.New(batchtest.Options{Behavior: batchtest.OpenAI(), FlexDelay: 10 * time.Minute})
		var flex, most atomic.Int64
		base := transport(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/chat/completions") {
				most.Store(max(most.Load(), flex.Add(1)))
				defer flex.Add(-1)
			}
			return upstream.Transport().RoundTrip(r)
		})
		tr, err := autobatcher.New(autobatcher.Options{Base: proxy.LimitRealtime(base, 2), Provider: &openai, Mode: autobatcher.ModeFlex})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		client := serve(t, newProxy(t, proxy.Options{Grace: -1, Upstream: parse(t, upstream.URL), Transport: tr}))
		var calls sync.WaitGroup
		call := func(name string, within time.Duration) {
			calls.Go(func() {
				began := time.Now()
				res := post(t, client, "/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"`+name+`"}]}`)
				if body := readAll(t, res); res.StatusCode != 200 || time.Since(began) > within {
					t.Errorf("%s: %s after %v: %s", name, res.Status, time.Since(began), body)
				}
			})
			synctest.Wait()
		}
		for _, name := range []string{"a", "b"} {
			call(name, 10*time.Minute+time.Second)
		}
		time.Sleep(9*time.Minute + 30*time.Second)
		call("in a while", 11*time.Minute) // there is room after 30 s
		calls.Wait()
		if diff := cmp.Diff(map[batchtest.Tier]int{"flex": 3}, upstream.PaidTiers()); diff != "" {
			t.Errorf("paid (-want +got):\n%s", diff)
		}
		for _, name := range []string{"c", "d"} {
			call(name, 10*time.Minute+time.Second)
		}
		call("too many", 5*time.Minute)
		calls.Wait()
		if diff := cmp.Diff(map[batchtest.Tier]int{"flex": 5, "batch": 1}, upstream.PaidTiers()); diff != "" {
			t.Errorf("paid (-want +got):\n%s", diff)
		}
		if most.Load() != 2 {
			t.Errorf("%d calls were sent at the same time", most.Load())
		}
	})
}

// TestRoomAfterTheCall checks that a call takes no room when the Transport asks for room
// after the end of the call: a batch may fail while the client leaves.
func TestRoomAfterTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var room func() bool
		client := serve(t, newProxy(t, proxy.Options{MaxPassedThrough: 1, Transport: transport(func(r *http.Request) (*http.Response, error) {
			room = caller.Of(r.Context()).Realtime
			return responseTo(r, 200, "application/json", `{}`), nil
		})}))
		for range 2 {
			postAndRead(t, client, "/v1/embeddings", "{}")
			if room() {
				t.Error("there is room for a call that has ended")
			}
			if res := postAndRead(t, client, "/v1/files", ""); res.StatusCode != 200 {
				t.Errorf("a request that passes through: %s", res.Status)
			}
		}
	})
}

// TestBodilessStatus checks that a result line with a status that allows no body does
// not break the connection.
func TestBodilessStatus(t *testing.T) {
	for _, status := range []int{http.StatusNoContent, http.StatusResetContent, http.StatusNotModified} {
		synctest.Test(t, func(t *testing.T) {
			client, _, _ := newBatchingProxy(t, batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome {
				return batchtest.Outcome{Status: status, Body: []byte(`{"id":"x"}`)}
			}}, proxy.Options{})
			res := post(t, client, "/v1/embeddings", `{"model":"m","input":"a"}`)
			if body := readAll(t, res); res.StatusCode != 200 || body != `{"id":"x"}` {
				t.Errorf("%d: %s %s", status, res.Status, body)
			}
		})
	}
}

// TestUnsafeIDs checks that an id of the provider which no header can hold does not break
// the connection of a late answer. reply checks the answers in time.
func TestUnsafeIDs(t *testing.T) {
	for _, id := range []string{"a\x01b", strings.Repeat("x", 100_000)} {
		synctest.Test(t, func(t *testing.T) {
			p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
				if _, err := io.ReadAll(r.Body); err != nil {
					return nil, err
				}
				caller.ObserverOf(r.Context()).Waiting(caller.Call{Name: func() (batchID, customID string) { return id, "custom-1" }})
				time.Sleep(time.Hour)
				a := reply.Answer{Status: 200, Body: []byte("{}"), RequestID: id, BatchID: id, CustomID: "custom-1"}
				return a.Response(r), nil
			})})
			res := post(t, serve(t, p), "/v1/embeddings", "{}")
			if body := readAll(t, res); strings.TrimSpace(body) != "{}" || res.Header.Get("Autobatcher-Custom-Id") != "custom-1" || res.Header.Get("Autobatcher-Batch-Id") != "" {
				t.Errorf("%s %q %v", res.Status, body, res.Header)
			}
		})
	}
}

// TestStreamsPerConnection checks that one HTTP/2 connection carries a limited number
// of requests, and that a client with more requests opens further connections.
func TestStreamsPerConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := serveH2C(t, newProxy(t, proxy.Options{Transport: keepBody}))
		base := client.Transport.(*http.Transport)
		var connections atomic.Int64
		connect := base.DialContext
		base.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			connections.Add(1)
			return connect(ctx, network, address)
		}
		if res := postAndRead(t, client, "/v1/embeddings", "{}"); res.StatusCode != 200 { // the client learns the limit
			t.Fatal(res.Status)
		}
		var calls sync.WaitGroup
		for range 1000 {
			calls.Go(func() { readAll(t, post(t, client, "/v1/embeddings", "{}")) })
		}
		calls.Wait()
		if got := connections.Load(); got < 4 {
			t.Errorf("1000 calls used %d connections", got)
		}
	})
}

// TestHTTP2ClientAcceptsNoBytes checks that the response to a client without a key
// does not keep a stream for ever if the client's flow control accepts no bytes.
func TestHTTP2ClientAcceptsNoBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := dial(t, newProxy(t, proxy.Options{ClientKeys: []string{"key"}}))
		frame := func(kind, flags byte, stream uint32, payload string) string {
			head := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
			return string(binary.BigEndian.AppendUint32(append(head, flags), stream)) + payload
		}
		go io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+
			frame(4, 0, 0, "\x00\x04\x00\x00\x00\x00")+ // SETTINGS: initial window 0
			frame(1, 5, 1, "\x82\x86\x44\x03/v1\x41\x01x")) // HEADERS: GET http://x/v1
		start := time.Now()
		for {
			var head [9]byte
			if _, err := io.ReadFull(conn, head[:]); err != nil {
				t.Fatalf("after %v: %v", time.Since(start), err)
			}
			payload := make([]byte, binary.BigEndian.Uint32(head[:4])>>8)
			if _, err := io.ReadFull(conn, payload); err != nil {
				t.Fatal(err)
			}
			switch {
			case head[3] == 6 && head[4] == 0: // PING: the client is alive
				go io.WriteString(conn, frame(6, 1, 0, string(payload)))
			case head[3] == 3: // RST_STREAM
				if got := time.Since(start); got > 2*time.Minute {
					t.Errorf("the stream was reset after %v", got)
				}
				return
			}
			if time.Since(start) > time.Hour {
				t.Fatal("the stream was not reset within an hour")
			}
		}
	})
}

// TestUpstreamThatDoesNotAnswer checks that a request which passes through, and a held
// call that is sent in real time, get 504 when no response begins, and that the time
// for an upload does not count.
func TestUpstreamThatDoesNotAnswer(t *testing.T) {
	groq := provider.Groq()
	for name, test := range map[string]struct{ path, body string }{
		"passed through":              {"/v1/moderations", `{"model":"m","input":"a"}`},
		"passed through, no body":     {"/v1/models", ""},
		"held, and sent in real time": {"/v1/embeddings", `{"model":"m","input":"a"}`},
	} {
		for delay, want := range map[time.Duration]int{59 * time.Minute: 200, 1000 * time.Hour: 504} {
			t.Run(fmt.Sprintf("%s, %v", name, delay), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					slow := transport(func(r *http.Request) (*http.Response, error) {
						time.Sleep(30 * time.Minute) // before the body is read
						if r.Body != nil {
							if _, err := io.Copy(io.Discard, r.Body); err != nil {
								return nil, err
							}
						}
						select {
						case <-time.After(delay):
							return responseTo(r, 200, "application/json", `{}`), nil
						case <-r.Context().Done():
							return nil, r.Context().Err()
						}
					})
					if test.body == "" {
						slow = respondAfter(delay, 200, "application/json", `{}`)
					}
					tr, err := autobatcher.New(autobatcher.Options{Base: proxy.LimitRealtime(slow, 0), Provider: &groq})
					if err != nil {
						t.Fatal(err)
					}
					defer tr.Close()
					client := serve(t, newProxy(t, proxy.Options{PassThroughTimeout: 40 * time.Minute, Transport: tr}))
					method := http.MethodPost
					if test.body == "" {
						method = http.MethodGet
					}
					r, err := http.NewRequest(method, "http://proxy"+test.path, strings.NewReader(test.body))
					if err != nil {
						t.Fatal(err)
					}
					began := time.Now()
					res, err := client.Do(r)
					if err != nil {
						t.Fatal(err)
					}
					if res.StatusCode != want {
						t.Errorf("%s after %v, want %d", res.Status, time.Since(began), want)
					}
					if res.StatusCode == 200 {
						readAll(t, res)
						return
					}
					if code, _ := apiError(t, res); code != "upstream_timeout" || res.Header.Get("X-Should-Retry") != "false" || time.Since(began) > 91*time.Minute {
						t.Errorf("code %s after %v, headers %v", code, time.Since(began), res.Header)
					}
				})
			})
		}
	}
}
