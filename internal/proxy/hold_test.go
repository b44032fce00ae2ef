package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

const (
	chatCall    = `{"model":"m","messages":[]}`
	streamCall  = `{"model":"m","messages":[],"stream":true}`
	events      = "text/event-stream; charset=utf-8"
	chunkStream = `data: {"id":"chatcmpl-real","object":"chat.completion.chunk","created":7,"model":"m-2026","choices":[{"index":0,"delta":{"content":"hi"}}]}` + "\n\ndata: [DONE]\n\n"
)

// goOpenAIHeaders are the headers that identify go-openai.
var goOpenAIHeaders = []string{"Accept", "text/event-stream", "Cache-Control", "no-cache", "User-Agent", "Go-http-client/1.1"}

// readTimed reads a response, and returns each piece with the time since start.
func readTimed(t *testing.T, start time.Time, res *http.Response) (got []string, err error) {
	t.Helper()
	defer res.Body.Close()
	buffer := make([]byte, 1<<20)
	for {
		n, err := res.Body.Read(buffer)
		if n > 0 {
			got = append(got, time.Since(start).String()+" "+string(buffer[:n]))
		}
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
	}
}

// TestHeartbeats checks when 200 is committed, and which heartbeats follow.
func TestHeartbeats(t *testing.T) {
	const json, answer = "application/json", `{"id":"x"}`
	for _, test := range []struct {
		name       string
		o          proxy.Options
		path, body string
		header     []string
		kind       string // Content-Type of the Transport's response
		answer     string
		takes      time.Duration
		committed  time.Duration
		want       []string
	}{
		{
			name: "response within the grace", path: "/v1/chat/completions", body: chatCall, kind: json, answer: answer,
			takes: 239 * time.Second, committed: 239 * time.Second, want: []string{"3m59s " + answer},
		},
		{
			name: "JSON", path: "/v1/chat/completions", body: chatCall, kind: json, answer: answer,
			takes: 280 * time.Second, committed: 240 * time.Second,
			want: []string{"4m0s \n", "4m15s \n", "4m30s \n", "4m40s " + answer},
		},
		{
			name: "embeddings never stream", path: "/v1/embeddings", body: `{"stream":true}`, kind: json, answer: answer,
			takes: 241 * time.Second, committed: 240 * time.Second, want: []string{"4m0s \n", "4m1s " + answer},
		},
		{
			name: "chat stream", path: "/v1/chat/completions", body: streamCall, kind: events, answer: chunkStream,
			takes: 256 * time.Second, committed: 240 * time.Second,
			want: []string{"4m0s : waiting for the batch\n", "4m15s : waiting for the batch\n", "4m16s " + chunkStream},
		},
		{
			name: "responses stream", path: "/v1/responses", body: streamCall, kind: events, answer: "event: x\ndata: {}\n\n", header: goOpenAIHeaders,
			takes: 241 * time.Second, committed: 240 * time.Second,
			want: []string{"4m0s : waiting for the batch\n", "4m1s event: x\ndata: {}\n\n"},
		},
		{
			name: "no grace limit", o: proxy.Options{Grace: -1}, path: "/v1/chat/completions", body: chatCall, kind: json, answer: answer,
			takes: 24 * time.Hour, committed: 24 * time.Hour, want: []string{"24h0m0s " + answer},
		},
		{
			name: "options", o: proxy.Options{Grace: 30 * time.Second, Heartbeat: 20 * time.Second}, path: "/v1/responses", body: chatCall, kind: json, answer: answer,
			takes: time.Minute, committed: 30 * time.Second, want: []string{"30s \n", "50s \n", "1m0s " + answer},
		},
		{
			name: "announced timeout", path: "/v1/chat/completions", body: chatCall, kind: json, answer: answer, header: []string{"X-Stainless-Timeout", "10"},
			takes: 15 * time.Second, committed: 8 * time.Second, want: []string{"8s \n", "13s \n", "15s " + answer},
		},
		{
			name: "announced read timeout", path: "/v1/chat/completions", body: chatCall, kind: json, answer: answer,
			header: []string{"X-Stainless-Timeout", "600", "X-Stainless-Read-Timeout", "20.5"},
			takes:  17 * time.Second, committed: 16400 * time.Millisecond, want: []string{"16.4s \n", "17s " + answer},
		},
		{
			name: "long timeout", path: "/v1/chat/completions", body: chatCall, kind: json, answer: answer, header: []string{"X-Stainless-Read-Timeout", "600"},
			takes: 241 * time.Second, committed: 240 * time.Second, want: []string{"4m0s \n", "4m1s " + answer},
		},
		{
			name: "invalid timeout", path: "/v1/chat/completions", body: chatCall, kind: json, answer: answer,
			header: []string{"X-Stainless-Timeout", "NaN", "X-Stainless-Read-Timeout", "-1"},
			takes:  241 * time.Second, committed: 240 * time.Second, want: []string{"4m0s \n", "4m1s " + answer},
		},
		{
			name: "realtime", path: "/v1/chat/completions", body: chatCall, kind: json, answer: answer, header: []string{"Autobatcher-Mode", "realtime"},
			takes: 10 * time.Minute, committed: 10 * time.Minute, want: []string{"10m0s " + answer},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test.o.Transport = respondAfter(test.takes, 200, test.kind, test.answer)
				start := time.Now()
				res := post(t, serve(t, newProxy(t, test.o)), test.path, test.body, test.header...)
				if got := time.Since(start); got != test.committed {
					t.Errorf("committed after %v, want %v", got, test.committed)
				}
				if res.StatusCode != 200 || res.Header.Get("Content-Type") != test.kind {
					t.Errorf("%s %v", res.Status, res.Header)
				}
				got, err := readTimed(t, start, res)
				if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
					t.Error(diff, err)
				}
			})
		})
	}
}

// TestChunksForGoOpenAI checks that go-openai gets chunks as heartbeats, and that
// heartbeats and response chunks have the same id.
func TestChunksForGoOpenAI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		p := newProxy(t, proxy.Options{Transport: respondAfter(256*time.Second, 200, events, chunkStream)})
		res := post(t, serve(t, p), "/v1/chat/completions", `{"model":"a \"b\"","stream":true}`, goOpenAIHeaders...)
		got, err := readTimed(t, start, res)
		if err != nil || len(got) != 3 || got[0][len("4m0s "):] != got[1][len("4m15s "):] {
			t.Fatalf("%v %q", err, got)
		}
		_, rest, _ := strings.Cut(got[0], `"id":"`)
		id, _, _ := strings.Cut(rest, `"`)
		_, rest, _ = strings.Cut(got[0], `"created":`)
		created, _, _ := strings.Cut(rest, `,`)
		want := []string{
			`4m0s data: {"id":"` + id + `","object":"chat.completion.chunk","created":` + created + `,"model":"a \"b\"","choices":[{"index":0,"delta":{},"finish_reason":null}]}` + "\n\n",
			"4m16s " + strings.NewReplacer("chatcmpl-real", id, `"created":7`, `"created":`+created).Replace(chunkStream),
		}
		if diff := cmp.Diff(want, []string{got[0], got[2]}); diff != "" || id == "" {
			t.Error(diff)
		}
	})
}

// TestStreamsHaveDistinctIDs checks that the heartbeats of two calls have
// different completion ids.
func TestStreamsHaveDistinctIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := serve(t, newProxy(t, proxy.Options{Transport: respondAfter(250*time.Second, 200, events, chunkStream)}))
		bodies := make(chan string)
		for range 2 {
			go func() { bodies <- readAll(t, post(t, client, "/v1/chat/completions", streamCall, goOpenAIHeaders...)) }()
		}
		if one, two := <-bodies, <-bodies; one == two {
			t.Errorf("both streams are %s", one)
		}
	})
}

// TestFailuresAfterCommit checks that a failure after the commit breaks the
// connection, and that an error body never arrives as a JSON response with
// status 200.
func TestFailuresAfterCommit(t *testing.T) {
	closed := failAfter(5*time.Minute, autobatcher.ErrClosed)
	refused := respondAfter(5*time.Minute, 400, "application/json", `{"error":{"message":"no such model","type":"invalid_request_error","param":null,"code":"model_not_found"}}`)
	const message = `"message":"no such model"`
	for _, test := range []struct {
		name, path, body string
		header           []string
		transport        http.RoundTripper
		want             []string // parts of the body before the broken end
	}{
		{"JSON", "/v1/chat/completions", chatCall, nil, refused, nil},
		{"embeddings", "/v1/embeddings", chatCall, nil, refused, nil},
		{"closed", "/v1/responses", chatCall, nil, closed, nil},
		{"chat stream", "/v1/chat/completions", streamCall, nil, refused, []string{`data: {"error":{`, message}},
		{"go-openai", "/v1/chat/completions", streamCall, goOpenAIHeaders, refused, []string{`"delta":{}`, `data: {"error":{`, message}},
		{"responses stream", "/v1/responses", streamCall, nil, refused, []string{"event: error\n", message}},
		{"stream, closed", "/v1/chat/completions", streamCall, nil, closed, []string{`"code":"shutting_down"`}},
		{"stream, HTML", "/v1/chat/completions", streamCall, nil, respondAfter(5*time.Minute, 502, "text/html", "<html>"), []string{`"code":"upstream_error"`}},
		{"stream, JSON instead", "/v1/chat/completions", streamCall, nil, respondAfter(5*time.Minute, 200, "application/json", `{"id":"x"}`), []string{`"error"`}},
		{"JSON, stream instead", "/v1/chat/completions", chatCall, nil, respondAfter(5*time.Minute, 200, events, chunkStream), nil},
		{"panic", "/v1/chat/completions", chatCall, nil, transport(func(r *http.Request) (*http.Response, error) {
			_ = wait(r)
			time.Sleep(5 * time.Minute)
			panic("defect")
		}), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				res := post(t, serve(t, newProxy(t, proxy.Options{Transport: test.transport})), test.path, test.body, test.header...)
				if res.StatusCode != 200 {
					t.Fatal(res.Status)
				}
				defer res.Body.Close()
				b, err := io.ReadAll(res.Body)
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("the response ended with %v, want io.ErrUnexpectedEOF", err)
				}
				body := string(b)
				for _, want := range test.want {
					if !strings.Contains(body, want) {
						t.Errorf("no %s in %q", want, body)
					}
				}
				if len(test.want) == 0 && strings.Trim(body, "\n") != "" {
					t.Errorf("more than newlines: %q", body)
				}
			})
		})
	}
}

// TestTruncatedResponse checks that a response body with a read error breaks the
// client's connection.
func TestTruncatedResponse(t *testing.T) {
	for _, takes := range []time.Duration{0, 5 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
				res, err := respondAfter(takes, 200, "application/json", "")(r)
				if err == nil {
					res.ContentLength = -1
					res.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"half":`), failingReader{}))
				}
				return res, err
			})})
			res := post(t, serve(t, p), "/v1/chat/completions", chatCall)
			defer res.Body.Close()
			if _, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("after %v: the response has a clean end", takes)
			}
		})
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// TestStreamIsFlushed checks that each piece of a response in progress is sent
// without delay.
func TestStreamIsFlushed(t *testing.T) {
	for _, header := range [][]string{nil, goOpenAIHeaders} {
		synctest.Test(t, func(t *testing.T) {
			p := newProxy(t, proxy.Options{Grace: time.Second, Transport: transport(func(r *http.Request) (*http.Response, error) {
				res, err := respondAfter(2*time.Second, 200, events, "")(r)
				body, w := io.Pipe()
				res.Body, res.ContentLength = body, -1
				go func() {
					for range 3 {
						time.Sleep(time.Second)
						io.WriteString(w, "data: 1\n\n")
					}
					w.Close()
				}()
				return res, err
			})})
			start := time.Now()
			res := post(t, serve(t, p), "/v1/chat/completions", streamCall, header...)
			got, err := readTimed(t, start, res)
			want := []string{"3s data: 1\n\n", "4s data: 1\n\n", "5s data: 1\n\n"}
			if diff := cmp.Diff(want, got[1:]); diff != "" || err != nil {
				t.Error(diff, err)
			}
		})
	}
}

// TestClientDisconnects checks that a disconnect cancels the context of the call,
// before and after the commit, and that the call ends.
func TestClientDisconnects(t *testing.T) {
	for _, timeout := range []time.Duration{time.Minute, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			canceled := make(chan time.Duration, 1)
			start := time.Now()
			p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
				_, err := respondAfter(24*time.Hour, 200, "", "")(r)
				canceled <- time.Since(start)
				return nil, err
			})})
			client := serve(t, p)
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://proxy/v1/embeddings", strings.NewReader(chatCall))
			res, err := client.Do(r)
			if err == nil {
				_, err = io.ReadAll(res.Body)
				res.Body.Close()
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			if got := <-canceled; got != timeout {
				t.Errorf("canceled after %v, want %v", got, timeout)
			}
			synctest.Wait()
			if u := p.Usage(); u.Waiting != 0 || u.Failed != 1 {
				t.Errorf("%+v", u)
			}
		})
	}
}

// TestStalledClient checks that a call is canceled when the client has read
// nothing for a minute.
func TestStalledClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		canceled := make(chan time.Duration, 1)
		start := time.Now()
		p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			_ = wait(r)
			<-r.Context().Done()
			canceled <- time.Since(start)
			return nil, r.Context().Err()
		})})
		conn := dial(t, p)
		io.WriteString(conn, "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
		if got, want := <-canceled, 240*time.Second+time.Minute; got != want {
			t.Errorf("canceled after %v, want %v", got, want)
		}
	})
}

// TestHTTP10GetsNoHeartbeat checks HTTP/1.0 clients, which cannot distinguish an
// aborted response from a complete response.
func TestHTTP10GetsNoHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		conn := dial(t, newProxy(t, proxy.Options{Transport: respondAfter(time.Hour, 400, "application/json", `{}`)}))
		io.WriteString(conn, "POST /v1/embeddings HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if readAll(t, res); res.StatusCode != 400 || time.Since(start) != time.Hour {
			t.Errorf("%s after %v", res.Status, time.Since(start))
		}
	})
}

// TestReusedConnection checks that the deadlines of a call do not affect later
// calls on the same connection.
func TestReusedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := serve(t, newProxy(t, proxy.Options{Transport: respondAfter(4*time.Minute+time.Second, 200, "application/json", `{}`)}))
		for _, path := range []string{"/v1/embeddings", "/v1/models", "/health", "/metrics", "/v1/embeddings", "/nothing"} {
			res := post(t, client, path, chatCall)
			readAll(t, res)
			time.Sleep(2 * time.Minute)
		}
	})
}

// The Transport keeps the caller of a line for a retry, and what frees the memory of the
// body, for up to a day. They keep nothing of the request, such as its header and its
// connection.
func TestKeptCallerKeepsNoRequest(t *testing.T) {
	var kept *caller.Caller
	var release func()
	p, err := proxy.New(proxy.Options{
		Upstream: &url.URL{Scheme: "http", Host: "upstream.test"}, APIKey: "k",
		Transport: transport(func(r *http.Request) (*http.Response, error) {
			kept, release = caller.Of(r.Context()), caller.Hold(r.Context())
			_, err := io.Copy(io.Discard, r.Body)
			return responseTo(r, http.StatusOK, "application/json", "{}"), err
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	call := func() weak.Pointer[http.Request] {
		r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, "http://localhost/v1/chat/completions", strings.NewReader(chatCall))
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			t.Fatal(w.Code, w.Body)
		}
		return weak.Make(r)
	}
	request := call()
	for range 100 { // goroutines of the call may not have ended
		for range 1000 { // the runtime forgets stopped timers, as those of the call, when there are many
			time.AfterFunc(time.Hour, func() {}).Stop()
		}
		runtime.GC()
		if request.Value() == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if request.Value() != nil {
		t.Error("the request is still in memory")
	}
	release()
	if kept.Realtime() {
		t.Error("a call that has ended may be sent in real time")
	}
}
