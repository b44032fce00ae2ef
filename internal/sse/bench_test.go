package sse_test

import (
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/sse"
)

func BenchmarkAppendChat1KB(b *testing.B) {
	body := chatBody(`"content":"`+strings.Repeat("some words ", 80)+`","refusal":null`, `null`)
	var stream []byte
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if stream, err = sse.AppendChat(stream[:0], body, true); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendResponse1KB(b *testing.B) {
	body := []byte(`{"id":"resp_1","object":"response","created_at":1,"model":"m","status":"completed","output":[{"id":"msg_1","type":"message",` +
		`"status":"completed","role":"assistant","content":[{"type":"output_text","text":"` + strings.Repeat("some words ", 70) + `","annotations":[]}]}]}`)
	var stream []byte
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if stream, err = sse.AppendResponse(stream[:0], body); err != nil {
			b.Fatal(err)
		}
	}
}
