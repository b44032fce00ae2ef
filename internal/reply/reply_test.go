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
	"github.com/autobatcher/autobatcher/internal/sse"
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
			reply.FromResult(&line.Result{Status: 200, RequestID: "req", Body: []byte(`{"n": 1.50}`)}),
			"200 OK", `{"n": 1.50}`,
			map[string]string{"Content-Type": "application/json", "X-Request-Id": "req", "X-Should-Retry": ""},
		},
		{
			"a success that is text",
			reply.FromResult(&line.Result{Status: 200, Body: []byte("hello"), Text: true}),
			"200 OK", "hello",
			map[string]string{"Content-Type": "text/plain; charset=utf-8"},
		},
		{
			"an error in OpenAI's shape",
			reply.FromResult(&line.Result{Status: 429, Body: []byte(`{"error":{"message":"slow","x":1}}`)}),
			"429 Too Many Requests", `{"error":{"message":"slow","x":1}}`,
			map[string]string{"X-Should-Retry": "", "Retry-After": ""},
		},
		{
			"an error that does not pass",
			reply.FromResult(&line.Result{Status: 429, Body: []byte(`{"error":{"message":"pay","code":"insufficient_quota"}}`)}),
			"429 Too Many Requests", `{"error":{"message":"pay","code":"insufficient_quota"}}`,
			map[string]string{"X-Should-Retry": "false", "Retry-After": ""},
		},
		{
			"an error in a different shape is wrapped",
			reply.FromResult(&line.Result{Status: 422, Body: []byte(`{"error":"no"}`)}),
			"422 Unprocessable Entity", `{"error":{"message":"{\"error\":\"no\"}","type":"invalid_request_error","param":null,"code":null}}`,
			map[string]string{"Content-Type": "application/json"},
		},
		{
			"an error without a body has the message of the result",
			reply.FromResult(&line.Result{Status: 500, Code: "boom", Message: "it broke"}),
			"500 Internal Server Error", `{"error":{"message":"it broke","type":"server_error","param":null,"code":"boom"}}`,
			nil,
		},
		{
			"a success whose status allows no body",
			reply.FromResult(&line.Result{Status: 204, Body: []byte(`{"id":"x"}`)}),
			"200 OK", `{"id":"x"}`,
			map[string]string{"Content-Type": "application/json", "X-Should-Retry": ""},
		},
		{
			"a success whose body JavaScript ignores",
			reply.FromResult(&line.Result{Status: 205, Body: []byte(`{"id":"x"}`)}),
			"200 OK", `{"id":"x"}`,
			nil,
		},
		{
			"ids that break the connection in a header",
			reply.Answer{Status: 200, Body: []byte("{}"), RequestID: "a\x01b", BatchID: "a\r\nX-Evil: 1", CustomID: strings.Repeat("x", 257)},
			"200 OK", "{}",
			map[string]string{"X-Request-Id": "", "Autobatcher-Batch-Id": "", "Autobatcher-Custom-Id": ""},
		},
		{
			"an id of the longest length",
			reply.Answer{Status: 200, Body: []byte("{}"), RequestID: strings.Repeat("~", 256), BatchID: "é"},
			"200 OK", "{}",
			map[string]string{"X-Request-Id": strings.Repeat("~", 256), "Autobatcher-Batch-Id": ""},
		},
		{
			"an error whose status allows no body",
			reply.FromResult(&line.Result{Status: 304, Body: []byte(`{"error":{"message":"no"}}`)}),
			"424 Failed Dependency", `{"error":{"message":"no"}}`,
			map[string]string{"X-Should-Retry": "false"},
		},
		{
			"a status without a body",
			reply.FromResult(&line.Result{Status: 304}),
			"424 Failed Dependency", `{"error":{"message":"the result of the request has the status 304 and no body","type":"batch_error","param":null,"code":"batch_line_unreadable"}}`,
			map[string]string{"X-Should-Retry": "false"},
		},
		{
			"a local failure",
			reply.Failure(424, "batch_expired", "too late"),
			"424 Failed Dependency", `{"error":{"message":"too late","type":"batch_error","param":null,"code":"batch_expired"}}`,
			map[string]string{"X-Should-Retry": "false"},
		},
		{
			"a local failure after which a retry is safe",
			reply.Failure(503, "batch_not_submitted", "down"),
			"503 Service Unavailable", `{"error":{"message":"down","type":"server_error","param":null,"code":"batch_not_submitted"}}`,
			map[string]string{"Retry-After": "5", "X-Should-Retry": ""},
		},
		{
			"a rejected batch",
			reply.BatchRejected(402, []byte("Insufficient balance"), "Insufficient balance"),
			"402 Payment Required", `{"error":{"message":"the provider refused the batch: Insufficient balance","type":"insufficient_quota","param":null,"code":"batch_refused"}}`,
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
	res := chat.Stream(request(), sse.Chat, false)
	if got := text(t, res); !strings.Contains(got, `"content":"hi"`) || !strings.HasSuffix(got, "data: [DONE]\n\n") {
		t.Errorf("got %s", got)
	}
	if ct := res.Header.Get("Content-Type"); ct != "text/event-stream; charset=utf-8" {
		t.Error(ct)
	}

	streamed := reply.Answer{Status: 200, Body: []byte("data: {}\n\n"), Text: true}
	if got := text(t, streamed.Stream(request(), sse.Chat, false)); got != "data: {}\n\n" {
		t.Errorf("a result that is a stream became %q", got)
	}

	for _, format := range []sse.Format{sse.Chat, sse.Completion, sse.Response} {
		invalid := reply.Answer{Status: 200, BatchID: "b", Body: []byte("[]")}
		res := invalid.Stream(request(), format, false)
		var body struct {
			Error struct{ Code, Message string }
		}
		if err := json.Unmarshal([]byte(text(t, res)), &body); err != nil || res.StatusCode != 424 || body.Error.Code != "batch_line_unreadable" || !strings.Contains(body.Error.Message, "batch b ") {
			t.Errorf("%s: %+v, %v", res.Status, body, err)
		}
	}
}

// An error that came with status 200 reaches a caller that wanted a stream in the
// provider's words.
func TestStreamOfAnErrorWithStatus200(t *testing.T) {
	for body, status := range map[string]int{
		`{"error":{"message":"in their words","code":null}}`:                  424,
		`{"error":{"message":"in their words","code":502},"choices":null}`:    502,
		`{"error":{"message":"in their words","code":"503"}}`:                 503,
		`{"error":{"message":"in their words","status":429},"choices":[]}`:    429,
		`{"error":{"message":"in their words","code":7},"object":"response"}`: 424,
	} {
		for _, format := range []sse.Format{sse.Chat, sse.Completion, sse.Response} {
			a := reply.Answer{Status: 200, Body: []byte(body), BatchID: "b"}
			res := a.Stream(request(), format, false)
			if got := text(t, res); res.StatusCode != status || got != body || res.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s became %s %s", body, res.Status, got)
			}
		}
	}
}

func TestUndelivered(t *testing.T) {
	for _, tt := range []struct {
		name               string
		read, disconnected bool
		want               int
	}{
		{"read to the end", true, true, 0},
		{"closed early by a connected caller", false, false, 0},
		{"closed early by a disconnected caller", false, true, 1},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		a := reply.Answer{Status: 200, Body: []byte("{}")}
		body := a.Response(request().WithContext(ctx)).Body.(*reply.Body)
		var notified receiver
		body.Receiver = &notified
		if tt.read {
			io.Copy(io.Discard, body)
		}
		if tt.disconnected {
			cancel()
		}
		body.Close()
		body.Close()
		if notified.undelivered != tt.want || notified.delivered != 1-tt.want {
			t.Errorf("%s: delivered %d times, undelivered %d times, want %d", tt.name, notified.delivered, notified.undelivered, tt.want)
		}
	}
}

// A receiver counts its notifications.
type receiver struct{ delivered, undelivered int }

func (r *receiver) FromLine() bool { return true }
func (r *receiver) Delivered()     { r.delivered++ }
func (r *receiver) Undelivered()   { r.undelivered++ }
