package proxy_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

// eventData returns the data of the events in a stream.
func eventData(stream string) (data []string) {
	for event := range strings.SplitSeq(stream, "\n\n") {
		if _, text, found := strings.Cut(event, "data: "); found {
			data = append(data, text)
		}
	}
	return data
}

// TestLateStreams checks that known clients get events while a call waits, since
// some clients end a stream without events, and that the answer continues these
// events.
func TestLateStreams(t *testing.T) {
	stainless := []string{"X-Stainless-Lang", "python"}
	vercel := []string{"User-Agent", "ai/6.0.1 ai-sdk/provider-utils/3.0.0 runtime/node.js/20"}
	for _, test := range []struct {
		name, path string
		header     []string
		events     bool // events come while the call waits
	}{
		{"chat, OpenAI's SDK", "/v1/chat/completions", stainless, true},
		{"chat, go-openai", "/v1/chat/completions", goOpenAIHeaders, true},
		{"chat, Vercel", "/v1/chat/completions", vercel, true},
		{"chat, unknown client", "/v1/chat/completions", nil, false},
		{"responses, OpenAI's SDK", "/v1/responses", stainless, true},
		{"responses, Vercel", "/v1/responses", vercel, false}, // takes the id of response.created for the id of the answer
		{"responses, unknown client", "/v1/responses", nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, _, _ := newBatchingProxy(t, slowServer, proxy.Options{})
				body := `{"model":"m \"x\"","stream":true,"input":"Why?","messages":[{"role":"user","content":"Why?"}]}`
				res := post(t, client, test.path, body, test.header...)
				start := time.Now()
				pieces, err := readTimed(t, start, res)
				if err != nil {
					t.Fatal(err)
				}
				if res.Header.Get("Autobatcher-Custom-Id") == "" || !strings.HasPrefix(res.Header.Get("Autobatcher-Batch-Id"), "batch_") {
					t.Errorf("headers %v, want the ids of line and batch", res.Header)
				}
				if res.Trailer.Get("X-Request-Id") == "" || res.Trailer.Get("Autobatcher-Custom-Id") != res.Header.Get("Autobatcher-Custom-Id") {
					t.Errorf("trailers %v, want the ids of request and line", res.Trailer)
				}
				if early := strings.Contains(pieces[3], "data: {"); early != test.events {
					t.Errorf("the fourth piece is %q", pieces[3])
				}
				var stream strings.Builder
				for _, piece := range pieces {
					_, text, _ := strings.Cut(piece, " ")
					stream.WriteString(text)
				}
				if test.path == "/v1/responses" {
					wantOneResponse(t, eventData(stream.String()))
				} else {
					wantOneCompletion(t, eventData(stream.String()))
				}
			})
		})
	}
}

// wantOneCompletion checks that all chunks belong to one completion.
func wantOneCompletion(t *testing.T, data []string) {
	t.Helper()
	text := ""
	for _, chunk := range data {
		if chunk == "[DONE]" {
			break
		}
		if !gjson.Valid(chunk) || gjson.Get(chunk, "id").Str != gjson.Get(data[0], "id").Str || gjson.Get(chunk, "created").Int() != gjson.Get(data[0], "created").Int() {
			t.Fatalf("chunk %s after %s", chunk, data[0])
		}
		text += gjson.Get(chunk, "choices.0.delta.content").Str
	}
	if !strings.Contains(text, "Why?") || data[len(data)-1] != "[DONE]" {
		t.Errorf("text %q, last event %s", text, data[len(data)-1])
	}
}

// wantOneResponse checks that the events are numbered, and that the response is
// created once and then completed.
func wantOneResponse(t *testing.T, data []string) {
	t.Helper()
	created := 0
	for i, event := range data {
		kind := gjson.Get(event, "type").Str
		if n := gjson.Get(event, "sequence_number"); !gjson.Valid(event) || n.Int() != int64(i) || (kind == "response.created") != (i == 0) {
			t.Fatalf("event %d is %s", i, event)
		}
		if kind == "response.created" {
			created++
		}
	}
	last := data[len(data)-1]
	if created != 1 || gjson.Get(last, "type").Str != "response.completed" || !strings.Contains(last, "Why?") {
		t.Errorf("created %d times, last event %s", created, last)
	}
}

// TestALateFailureContinuesTheEvents checks that the event of a late failure has
// the next number, and that the connection breaks behind the event.
func TestALateFailureContinuesTheEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := slowServer
		server.Answer = func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: 400} }
		client, _, _ := newBatchingProxy(t, server, proxy.Options{})
		res := post(t, client, "/v1/responses", `{"model":"m","stream":true,"input":"x"}`, "X-Stainless-Lang", "js")
		pieces, err := readTimed(t, time.Now(), res)
		data := eventData(strings.Join(pieces, ""))
		last := data[len(data)-1]
		if err == nil || gjson.Get(last, "type").Str != "error" || gjson.Get(last, "sequence_number").Int() != int64(len(data)-1) {
			t.Errorf("error %v, last of %d events: %s", err, len(data), last)
		}
	})
}

// TestNoHeartbeatBeforeTheCallWaits checks that a call whose body the Transport
// has not accepted yet can still be refused with a status.
func TestNoHeartbeatBeforeTheCallWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := transport(func(r *http.Request) (*http.Response, error) {
			time.Sleep(time.Hour)
			return nil, errors.New("no")
		})
		res := post(t, serve(t, newProxy(t, proxy.Options{Transport: slow})), "/v1/chat/completions", streamCall)
		defer res.Body.Close()
		if res.StatusCode == http.StatusOK {
			t.Error("200 was committed")
		}
	})
}
