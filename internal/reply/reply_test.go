package reply_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/reply"
)

func request() *http.Request {
	return httptest.NewRequest(http.MethodPost, "/v1/chat/completions", nil)
}

func text(t *testing.T, res *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(res.Body)
	if err != nil || int64(len(body)) != res.ContentLength {
		t.Errorf("read %d bytes (%v), ContentLength %d", len(body), err, res.ContentLength)
	}
	return string(body)
}

func TestResponse(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer reply.Answer
		status string
		body   string
		header map[string]string
	}{
		{
			"a success, byte for byte",
			reply.Of(&line.Result{Status: 200, RequestID: "req", Body: []byte(`{"n": 1.50}`)}),
			"200 OK", `{"n": 1.50}`,
			map[string]string{"Content-Type": "application/json", "X-Request-Id": "req", "X-Should-Retry": ""},
		},
		{
			"a success that is text",
			reply.Of(&line.Result{Status: 200, Body: []byte("hello"), Text: true}),
			"200 OK", "hello",
			map[string]string{"Content-Type": "text/plain; charset=utf-8"},
		},
		{
			"an error as SDKs read it",
			reply.Of(&line.Result{Status: 429, Body: []byte(`{"error":{"message":"slow","x":1}}`)}),
			"429 Too Many Requests", `{"error":{"message":"slow","x":1}}`,
			map[string]string{"X-Should-Retry": "false", "Retry-After": ""},
		},
		{
			"an error in another shape is wrapped",
			reply.Of(&line.Result{Status: 422, Body: []byte(`{"error":"no"}`)}),
			"422 Unprocessable Entity", `{"error":{"message":"{\"error\":\"no\"}","type":"invalid_request_error","param":null,"code":null}}`,
			map[string]string{"Content-Type": "application/json"},
		},
		{
			"an error without a body says its reason",
			reply.Of(&line.Result{Status: 500, Code: "boom", Message: "it broke"}),
			"500 Internal Server Error", `{"error":{"message":"it broke","type":"server_error","param":null,"code":"boom"}}`,
			nil,
		},
		{
			"a failure of ours",
			reply.Failure(424, "batch_expired", "too late"),
			"424 Failed Dependency", `{"error":{"message":"too late","type":"batch_error","param":null,"code":"batch_expired"}}`,
			map[string]string{"X-Should-Retry": "false"},
		},
		{
			"one after which a retry is safe",
			reply.Failure(503, "batch_not_submitted", "down"),
			"503 Service Unavailable", `{"error":{"message":"down","type":"server_error","param":null,"code":"batch_not_submitted"}}`,
			map[string]string{"Retry-After": "5", "X-Should-Retry": ""},
		},
		{
			"a refusal of the provider's, in its own words",
			reply.Refused(402, []byte("Insufficient balance"), "Insufficient balance"),
			"402 Payment Required", `{"error":{"message":"the provider refused the batch: Insufficient balance","type":"invalid_request_error","param":null,"code":"batch_refused"}}`,
			nil,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := request()
			res := tt.answer.Response(req)
			if res.Status != tt.status || res.Request != req || res.Proto != "HTTP/1.1" || res.ProtoMajor != 1 || res.ProtoMinor != 1 {
				t.Errorf("%s %s", res.Proto, res.Status)
			}
			if got := text(t, res); got != tt.body {
				t.Errorf("body %s, want %s", got, tt.body)
			}
			for name, want := range tt.header {
				if got := res.Header.Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestStream(t *testing.T) {
	chat := reply.Answer{Status: 200, BatchID: "b", Body: []byte(`{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}`)}
	res := chat.Stream(request(), false, false)
	if got := text(t, res); !strings.Contains(got, `"content":"hi"`) || !strings.HasSuffix(got, "data: [DONE]\n\n") {
		t.Errorf("got %s", got)
	}
	if ct := res.Header.Get("Content-Type"); ct != "text/event-stream; charset=utf-8" {
		t.Error(ct)
	}

	already := reply.Answer{Status: 200, Body: []byte("data: {}\n\n"), Text: true}
	if got := text(t, already.Stream(request(), false, false)); got != "data: {}\n\n" {
		t.Errorf("a stream that the provider batched became %q", got)
	}

	for _, responses := range []bool{false, true} {
		nonsense := reply.Answer{Status: 200, BatchID: "b", Body: []byte("[]")}
		res := nonsense.Stream(request(), responses, false)
		var body struct {
			Error struct{ Code, Message string }
		}
		if err := json.Unmarshal([]byte(text(t, res)), &body); err != nil || res.StatusCode != 424 || body.Error.Code != "batch_line_unreadable" || !strings.Contains(body.Error.Message, "batch b ") {
			t.Errorf("%s: %+v, %v", res.Status, body, err)
		}
	}
}

func TestUnread(t *testing.T) {
	for _, tt := range []struct {
		name       string
		read, gone bool
		want       int
	}{
		{"read to its end", true, true, 0},
		{"left unread by a caller that is there", false, false, 0},
		{"left unread by a caller that has gone", false, true, 1},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		a := reply.Answer{Status: 200, Body: []byte("{}")}
		body := a.Response(request().WithContext(ctx)).Body.(*reply.Body)
		unread := 0
		body.Unread = func() { unread++ }
		if tt.read {
			io.Copy(io.Discard, body)
		}
		if tt.gone {
			cancel()
		}
		body.Close()
		body.Close()
		if unread != tt.want {
			t.Errorf("%s: given back %d times, want %d", tt.name, unread, tt.want)
		}
	}
}
