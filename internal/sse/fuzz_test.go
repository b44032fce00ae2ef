package sse_test

import (
	"testing"

	"github.com/autobatcher/autobatcher/internal/sse"
)

func FuzzChat(f *testing.F) {
	for _, body := range fixtures(f, "chat") {
		f.Add(body, true)
	}
	f.Fuzz(func(t *testing.T, body []byte, includeUsage bool) {
		stream, err := sse.AppendChat(nil, body, includeUsage)
		if err != nil {
			return
		}
		events, done := mustParseEvents(t, stream)
		if !done {
			t.Error("no [DONE]")
		}
		for _, e := range events {
			if _, ok := e.data["error"]; ok || e.name != "" {
				t.Errorf("event %q %s", e.name, e.line)
			}
		}
	})
}

func FuzzResponse(f *testing.F) {
	for _, body := range fixtures(f, "responses") {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		stream, err := sse.AppendResponse(nil, body)
		if err != nil {
			return
		}
		events, done := mustParseEvents(t, stream)
		if done || len(events) < 3 {
			t.Errorf("%d events, [DONE] %v", len(events), done)
		}
		for _, e := range events {
			if _, ok := e.data["error"]; ok || e.name != e.data["type"] {
				t.Errorf("event %q %s", e.name, e.line)
			}
		}
	})
}

func FuzzErrors(f *testing.F) {
	f.Add([]byte(`{"message":"no","type":"server_error","param":null,"code":null}`))
	f.Add([]byte("upstream\r\nclosed the \xff connection"))
	f.Fuzz(func(t *testing.T, object []byte) {
		for _, stream := range [][]byte{sse.AppendChatError(nil, object), sse.AppendResponseError(nil, object)} {
			events, _ := mustParseEvents(t, stream)
			if _, ok := events[0].data["error"].(map[string]any); !ok || len(events) != 1 {
				t.Errorf("got %s, want one event with an error object", stream)
			}
		}
	})
}
