package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

const (
	chatCall   = `{"model":"m","messages":[]}`
	streamCall = `{"model":"m","messages":[],"stream":true}`
	events     = "text/event-stream; charset=utf-8"
	oneChunk   = `data: {"id":"chatcmpl-real","object":"chat.completion.chunk","created":7,"model":"m-2026","choices":[{"index":0,"delta":{"content":"hi"}}]}` + "\n\ndata: [DONE]\n\n"
)

// goOpenAI are the headers by which go-openai is known.
var goOpenAI = []string{"Accept", "text/event-stream", "Cache-Control", "no-cache", "User-Agent", "Go-http-client/1.1"}

// arrivals reads a response, and notes what came when since the call was made.
func arrivals(t *testing.T, begun time.Time, res *http.Response) (got []string, err error) {
	t.Helper()
	defer res.Body.Close()
	buffer := make([]byte, 1<<20)
	for {
		n, err := res.Body.Read(buffer)
		if n > 0 {
			got = append(got, time.Since(begun).String()+" "+string(buffer[:n]))
		}
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
	}
}

// TestHeartbeats: when a held call is committed, and what keeps it alive.
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
			name: "answered in the grace", path: "/v1/chat/completions", body: chatCall, kind: json, answer: answer,
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
			name: "chat stream", path: "/v1/chat/completions", body: streamCall, kind: events, answer: oneChunk,
			takes: 256 * time.Second, committed: 240 * time.Second,
			want: []string{"4m0s : waiting for the batch\n", "4m15s : waiting for the batch\n", "4m16s " + oneChunk},
		},
		{
			name: "responses stream", path: "/v1/responses", body: streamCall, kind: events, answer: "event: x\ndata: {}\n\n", header: goOpenAI,
			takes: 241 * time.Second, committed: 240 * time.Second,
			want: []string{"4m0s : waiting for the batch\n", "4m1s event: x\ndata: {}\n\n"},
		},
		{
			name: "never", o: proxy.Options{Grace: -1}, path: "/v1/chat/completions", body: chatCall, kind: json, answer: answer,
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
			name: "nonsense timeout", path: "/v1/chat/completions", body: chatCall, kind: json, answer: answer,
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
				test.o.Transport = after(test.takes, 200, test.kind, test.answer)
				begun := time.Now()
				res := post(t, serve(t, newProxy(t, test.o)), test.path, test.body, test.header...)
				if got := time.Since(begun); got != test.committed {
					t.Errorf("committed after %v, want %v", got, test.committed)
				}
				if res.StatusCode != 200 || res.Header.Get("Content-Type") != test.kind {
					t.Errorf("%s %v", res.Status, res.Header)
				}
				got, err := arrivals(t, begun, res)
				if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
					t.Error(diff, err)
				}
			})
		})
	}
}

// TestChunksForGoOpenAI: its heartbeats are chunks, and all chunks have one id.
func TestChunksForGoOpenAI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		p := newProxy(t, proxy.Options{Transport: after(256*time.Second, 200, events, oneChunk)})
		res := post(t, serve(t, p), "/v1/chat/completions", `{"model":"a \"b\"","stream":true}`, goOpenAI...)
		got, err := arrivals(t, begun, res)
		if err != nil || len(got) != 3 || got[0][len("4m0s "):] != got[1][len("4m15s "):] {
			t.Fatalf("%v %q", err, got)
		}
		_, rest, _ := strings.Cut(got[0], `"id":"`)
		id, _, _ := strings.Cut(rest, `"`)
		_, rest, _ = strings.Cut(got[0], `"created":`)
		created, _, _ := strings.Cut(rest, `,`)
		want := []string{
			`4m0s data: {"id":"` + id + `","object":"chat.completion.chunk","created":` + created + `,"model":"a \"b\"","choices":[{"index":0,"delta":{},"finish_reason":null}]}` + "\n\n",
			"4m16s " + strings.NewReplacer("chatcmpl-real", id, `"created":7`, `"created":`+created).Replace(oneChunk),
		}
		if diff := cmp.Diff(want, []string{got[0], got[2]}); diff != "" || id == "" {
			t.Error(diff)
		}
	})
}

// TestTwoStreamsHaveTwoIDs: the heartbeats of two calls are of two completions.
func TestTwoStreamsHaveTwoIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := serve(t, newProxy(t, proxy.Options{Transport: after(250*time.Second, 200, events, oneChunk)}))
		bodies := make(chan string)
		for range 2 {
			go func() { bodies <- all(t, post(t, client, "/v1/chat/completions", streamCall, goOpenAI...)) }()
		}
		if one, two := <-bodies, <-bodies; one == two {
			t.Errorf("both are %s", one)
		}
	})
}

// TestLateFailures: a failure after 200 never ends cleanly, and never is an
// error's body under 200.
func TestLateFailures(t *testing.T) {
	closed := failing(5*time.Minute, autobatcher.ErrClosed)
	refused := after(5*time.Minute, 400, "application/json", `{"error":{"message":"no such model","type":"invalid_request_error","param":null,"code":"model_not_found"}}`)
	const sentence = `"message":"no such model"`
	for _, test := range []struct {
		name, path, body string
		header           []string
		transport        http.RoundTripper
		want             []string // in what came before the end
	}{
		{"JSON", "/v1/chat/completions", chatCall, nil, refused, nil},
		{"embeddings", "/v1/embeddings", chatCall, nil, refused, nil},
		{"closed", "/v1/responses", chatCall, nil, closed, nil},
		{"chat stream", "/v1/chat/completions", streamCall, nil, refused, []string{`data: {"error":{`, sentence}},
		{"go-openai", "/v1/chat/completions", streamCall, goOpenAI, refused, []string{`"delta":{}`, `data: {"error":{`, sentence}},
		{"responses stream", "/v1/responses", streamCall, nil, refused, []string{"event: error\n", sentence}},
		{"stream, closed", "/v1/chat/completions", streamCall, nil, closed, []string{`"code":"shutting_down"`}},
		{"stream, HTML", "/v1/chat/completions", streamCall, nil, after(5*time.Minute, 502, "text/html", "<html>"), []string{`"code":"upstream_error"`}},
		{"stream, JSON instead", "/v1/chat/completions", streamCall, nil, after(5*time.Minute, 200, "application/json", `{"id":"x"}`), []string{`"error"`}},
		{"JSON, stream instead", "/v1/chat/completions", chatCall, nil, after(5*time.Minute, 200, events, oneChunk), nil},
		{"panic", "/v1/chat/completions", chatCall, nil, transport(func(r *http.Request) (*http.Response, error) {
			_ = read(r)
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
					t.Errorf("a clean end: %v", err)
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

// TestBrokenAnswer: an answer that breaks off is passed on broken.
func TestBrokenAnswer(t *testing.T) {
	for _, takes := range []time.Duration{0, 5 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
				res, err := after(takes, 200, "application/json", "")(r)
				if err == nil {
					res.ContentLength = -1
					res.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"half":`), broken{}))
				}
				return res, err
			})})
			res := post(t, serve(t, p), "/v1/chat/completions", chatCall)
			defer res.Body.Close()
			if _, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("after %v: a clean end", takes)
			}
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// TestStreamFlows: a held call's answer that is still being made is sent as it comes.
func TestStreamFlows(t *testing.T) {
	for _, header := range [][]string{nil, goOpenAI} {
		synctest.Test(t, func(t *testing.T) {
			p := newProxy(t, proxy.Options{Grace: time.Second, Transport: transport(func(r *http.Request) (*http.Response, error) {
				res, err := after(2*time.Second, 200, events, "")(r)
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
			begun := time.Now()
			res := post(t, serve(t, p), "/v1/chat/completions", streamCall, header...)
			got, err := arrivals(t, begun, res)
			want := []string{"3s data: 1\n\n", "4s data: 1\n\n", "5s data: 1\n\n"}
			if diff := cmp.Diff(want, got[1:]); diff != "" || err != nil {
				t.Error(diff, err)
			}
		})
	}
}

// TestCallerGone: the Transport learns of it at once, before and after the
// commit, and nothing is left behind.
func TestCallerGone(t *testing.T) {
	for _, patience := range []time.Duration{time.Minute, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			left := make(chan time.Duration, 1)
			begun := time.Now()
			p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
				_, err := after(24*time.Hour, 200, "", "")(r)
				left <- time.Since(begun)
				return nil, err
			})})
			client := serve(t, p)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
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
			if got := <-left; got != patience {
				t.Errorf("noticed after %v, want %v", got, patience)
			}
			synctest.Wait()
			if u := p.Usage(); u.Waiting != 0 || u.Failed != 1 {
				t.Errorf("%+v", u)
			}
		})
	}
}

// TestStuckCaller: a caller who takes nothing is given up in a minute.
func TestStuckCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := make(chan time.Duration, 1)
		begun := time.Now()
		p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			_ = read(r)
			<-r.Context().Done()
			left <- time.Since(begun)
			return nil, r.Context().Err()
		})})
		conn := dialRaw(t, p)
		io.WriteString(conn, "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
		if got, want := <-left, 240*time.Second+time.Minute; got != want {
			t.Errorf("given up after %v, want %v", got, want)
		}
	})
}

// TestHTTP10IsNeverCommitted: it cannot tell a broken end from a clean one.
func TestHTTP10IsNeverCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		conn := dialRaw(t, newProxy(t, proxy.Options{Transport: after(time.Hour, 400, "application/json", `{}`)}))
		io.WriteString(conn, "POST /v1/embeddings HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if all(t, res); res.StatusCode != 400 || time.Since(begun) != time.Hour {
			t.Errorf("%s after %v", res.Status, time.Since(begun))
		}
	})
}

// TestKeptConnection: no deadline of one call outlives it on its connection.
func TestKeptConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := serve(t, newProxy(t, proxy.Options{Transport: after(4*time.Minute+time.Second, 200, "application/json", `{}`)}))
		for _, path := range []string{"/v1/embeddings", "/v1/models", "/health", "/metrics", "/v1/embeddings", "/nothing"} {
			res := post(t, client, path, chatCall)
			all(t, res)
			time.Sleep(2 * time.Minute)
		}
	})
}
