package autobatcher_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// An answer is the body of its line, byte for byte, with the line's own status, as
// net/http would have read it.
func TestAnAnswerIsItsLine(t *testing.T) {
	const odd = `{"a":1e400, "b":0.10,"c":"\u00e9\/é","c":null,"id":12345678901234567890 }`
	for _, status := range []int{200, 201} {
		server := batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: status, Body: []byte(odd)} }}
		try(t, http.StatusText(status), server, autobatcher.Options{}, func(t *trial) {
			a := t.call("/chat/completions", chat("a"))
			if a.err != nil || a.res.StatusCode != status || a.body != odd || a.at != 15*time.Second {
				t.Fatalf("%v, %v at %v: %s", a.err, a.res, a.at, a.body)
			}
			b := t.srv.Batches()[0]
			want := http.Header{
				"Content-Type": {"application/json"}, "Content-Length": {fmt.Sprint(len(odd))},
				"X-Request-Id":         {"req_" + b.ID + "-0"},
				"Autobatcher-Batch-Id": {b.ID}, "Autobatcher-Custom-Id": {b.Lines[0].CustomID},
			}
			if diff := cmp.Diff(want, a.res.Header); diff != "" {
				t.Error(diff)
			}
			r := a.res
			if r.Request == nil || r.Status != fmt.Sprint(status, " ", http.StatusText(status)) || r.Proto != "HTTP/1.1" || r.ProtoMajor != 1 || r.ProtoMinor != 1 ||
				r.ContentLength != int64(len(odd)) || r.Uncompressed || r.TransferEncoding != nil {
				t.Errorf("response %+v", r)
			}
		})
	}
	text := batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Body: []byte("plain text")} }}
	try(t, "an answer that is no JSON", text, autobatcher.Options{}, func(t *trial) {
		a := t.call("/chat/completions", chat("a"))
		if a.err != nil || a.body != "plain text" || a.res.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%v, %v: %s", a.err, a.res, a.body)
		}
	})
}

// A result line in any shape becomes a response: its own where there is a response, or
// else an error of ours that names the batch and quotes the provider.
func TestResultLines(t *testing.T) {
	long := strings.Repeat("long ", 100_000)
	tests := []struct {
		name, line string // ID stands for the custom id
		status     int
		body       string // "": an error of ours, see code
		code, says string
	}{
		{"a line longer than a scanner's 64 KB", `{"custom_id":"ID","response":{"status_code":200,"body":{"a":"` + long + `"}}}`, 200, `{"a":"` + long + `"}`, "", ""},
		{"fields in another order", `{"error":null,"response":{"body":{"a":1},"status_code":200},"custom_id":"ID"}`, 200, `{"a":1}`, "", ""},
		{"status as text", `{"custom_id":"ID","response":{"status_code":"200","body":{}}}`, 200, `{}`, "", ""},
		{"a status that is none", `{"custom_id":"ID","response":{"status_code":0,"body":{}},"error":{"code":"c","message":"why"}}`, 424, "", "c", "why"},
		{"an error code that looks like a status", `{"custom_id":"ID","response":null,"error":{"code":"429","message":"why"}}`, 424, "", "429", "why"},
		{"a numeric code", `{"custom_id":"ID","response":null,"error":{"code":500,"message":"why"}}`, 424, "", "500", "why"},
		{"an error as text", `{"custom_id":"ID","response":null,"error":"why"}`, 424, "", "batch_line_failed", "why"},
		{"neither response nor error", `{"custom_id":"ID","response":null,"error":null}`, 424, "", "batch_line_failed", ""},
		{"nothing at all", `{"custom_id":"ID"}`, 424, "", "batch_line_failed", ""},
		{"an error without a body, as vLLM writes it", `{"custom_id":"ID","response":{"status_code":400},"error":{"code":"c","message":"why"}}`, 400, "", "c", "why"},
		{"an error whose body is no error", `{"custom_id":"ID","response":{"status_code":400,"body":{"detail":"why"}}}`, 400, "", "", "why"},
		{"a timeout at Doubleword", `{"custom_id":"ID","response":null,"error":{"code":null,"message":"{\"type\":\"NetworkError\",\"details\":{\"error\":\"why\"}}"}}`, 424, "", "NetworkError", "why"},
		{"terminated at Doubleword", `{"custom_id":"ID","response":null,"error":{"code":null,"message":"{\"type\":\"TaskTerminated\"}"}}`, 424, "", "TaskTerminated", ""},
		{"success without a body", `{"custom_id":"ID","response":{"status_code":200,"body":null},"error":null}`, 424, "", "batch_line_failed", ""},
	}
	for _, test := range tests {
		server := batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
			return batchtest.Outcome{Garbage: strings.ReplaceAll(test.line, "ID", l.CustomID)}
		}}
		try(t, test.name, server, autobatcher.Options{}, func(t *trial) {
			a := t.call("/chat/completions", chat("a"))
			if a.err != nil || a.res.StatusCode != test.status || a.at != 15*time.Second {
				t.Fatalf("%v, %v at %v: %.200s", a.err, a.res, a.at, a.body)
			}
			switch {
			case test.body != "" && a.body != test.body:
				t.Errorf("body %.200s", a.body)
			case test.body == "" && (test.code != "" && !strings.Contains(a.body, `"code":"`+test.code+`"`) || !strings.Contains(a.body, test.says)):
				t.Errorf("body %s; want code %q and the words %q", a.body, test.code, test.says)
			case test.status == 424 && !strings.Contains(a.body, t.srv.Batches()[0].ID):
				t.Errorf("body %s does not name the batch", a.body)
			}
			if test.status >= 400 && a.res.Header.Get("X-Should-Retry") != "false" {
				t.Errorf("header %v lets SDKs retry the call", a.res.Header)
			}
		})
	}
}

// A call that asked for a stream gets its finished answer as a stream of events.
func TestStreams(t *testing.T) {
	text := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Body: []byte(`"words"`)} }
	tests := []struct {
		name, path, body string
		server           batchtest.Options
		status           int
		streamed         bool
		says             string
	}{
		{"chat", "/chat/completions", `{"model":"m","stream":true,"messages":[]}`, batchtest.Options{}, 200, true, "data: [DONE]"},
		{"responses", "/responses", `{"model":"m","stream":true,"input":"a"}`, batchtest.Options{}, 200, true, "response.completed"},
		{"stream false", "/chat/completions", `{"model":"m","stream":false,"messages":[]}`, batchtest.Options{}, 200, false, `"object":"chat.completion"`},
		{"the last of two counts", "/chat/completions", `{"model":"m","stream":true,"stream":false,"messages":[]}`, batchtest.Options{}, 200, false, `"object":"chat.completion"`},
		{"embeddings do not stream", "/embeddings", `{"model":"m","stream":true,"input":"a"}`, batchtest.Options{}, 200, false, `"object":"embedding"`},
		{"a failed line is no stream", "/chat/completions", `{"model":"m","stream":true,"messages":[]}`, batchtest.Options{FailRate: 1}, 500, false, `"error"`},
		{"an answer that cannot be streamed", "/chat/completions", `{"model":"m","stream":true,"messages":[]}`, batchtest.Options{Answer: text}, 424, false, "batch_line_unreadable"},
	}
	for _, test := range tests {
		try(t, test.name, test.server, autobatcher.Options{}, func(t *trial) {
			a := t.call(test.path, test.body)
			if a.err != nil || a.res.StatusCode != test.status || !strings.Contains(a.body, test.says) {
				t.Fatalf("%v, %v: %s", a.err, a.res, a.body)
			}
			kind := map[bool]string{true: "text/event-stream; charset=utf-8", false: "application/json"}[test.streamed]
			if got := a.res.Header.Get("Content-Type"); got != kind || test.streamed && a.res.Header.Get("Cache-Control") != "no-cache" {
				t.Errorf("header %v; want the type %s", a.res.Header, kind)
			}
			if a.res.ContentLength != int64(len(a.body)) || a.res.Header.Get("Autobatcher-Batch-Id") != t.srv.Batches()[0].ID {
				t.Errorf("length %d of %d, header %v", a.res.ContentLength, len(a.body), a.res.Header)
			}
		})
	}
}
