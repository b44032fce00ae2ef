package proxy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
)

// A lateStream makes the events before an answer that is late, and makes the answer
// continue these events: clients expect one id in all chunks of a chat stream, and
// consecutive numbers in all events of a response.
type lateStream struct {
	format  heartbeatFormat
	id      string // of the completion or the response, until the answer's id is known
	model   string
	created int64 // in Unix seconds
	events  int   // of a response, sent so far
}

// heartbeat returns the next event before the answer.
func (s *lateStream) heartbeat() []byte {
	if s.format == formatChunk {
		return fmt.Appendf(nil, `data: {"id":%q,"object":"chat.completion.chunk","created":%d,"model":%s,"choices":[{"index":0,"delta":{},"finish_reason":null}]}`+"\n\n",
			s.id, s.created, quote(s.model))
	}
	if s.format == formatText {
		return fmt.Appendf(nil, `data: {"id":%q,"object":"text_completion","created":%d,"model":%s,"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":null}]}`+"\n\n",
			s.id, s.created, quote(s.model))
	}
	if s.events == 0 {
		return append(s.responseEvent("response.created"), s.responseEvent("response.in_progress")...)
	}
	return s.responseEvent("response.in_progress")
}

// responseEvent returns an event with a response that has no output yet.
func (s *lateStream) responseEvent(kind string) []byte {
	number := s.events
	s.events++
	return fmt.Appendf(nil, "event: %s\ndata: "+`{"type":%q,"sequence_number":%d,"response":{"id":%q,"object":"response","created_at":%d,"status":"in_progress","model":%s,"output":[],`+
		`"error":null,"incomplete_details":null,"instructions":null,"metadata":{},"parallel_tool_calls":true,"temperature":null,"tool_choice":"auto","tools":[],"top_p":null,"usage":null}}`+"\n\n",
		kind, kind, number, s.id, s.created, quote(s.model))
}

// quote returns a text as JSON.
func quote(text string) []byte {
	b, err := json.Marshal(text)
	if err != nil {
		panic(err) // cannot happen: strings always marshal
	}
	return b
}

// readEvent reads the lines of an event up to and with the blank line at its end.
// The error is io.EOF behind the last event.
func readEvent(r *bufio.Reader) (event []byte, err error) {
	for {
		line, err := r.ReadBytes('\n')
		event = append(event, line...)
		if err != nil || len(bytes.TrimRight(line, "\r\n")) == 0 {
			return event, err
		}
	}
}

// continued returns an event of the answer as a continuation of the events before.
// Events without JSON are returned unchanged.
func (s *lateStream) continued(event []byte) []byte {
	at := bytes.Index(event, []byte("data: {"))
	if at < 0 || at > 0 && event[at-1] != '\n' {
		return event
	}
	at += len("data: ")
	end := bytes.IndexByte(event[at:], '\n')
	if end < 0 {
		end = len(event) - at
	}
	data := event[at : at+end]
	switch s.format {
	case formatChunk, formatText:
		data = s.chunk(data)
	case formatResponse:
		data = s.response(data)
	case formatNone, formatNewline, formatComment: // no event was sent before
	}
	if data == nil {
		return nil
	}
	out := append(make([]byte, 0, at+len(data)+2), event[:at]...)
	out = append(out, data...)
	return append(out, event[at+end:]...)
}

// chunk returns a chunk with the id and the creation time of the chunks before.
func (s *lateStream) chunk(data []byte) []byte {
	if !gjson.GetBytes(data, "choices").Exists() {
		return data
	}
	return set(set(data, "id", s.id), "created", s.created)
}

// response returns an event with the next number, or nil for an event that was sent
// before.
func (s *lateStream) response(data []byte) []byte {
	switch gjson.GetBytes(data, "type").String() {
	case "response.created", "response.in_progress":
		return nil
	}
	if gjson.GetBytes(data, "sequence_number").Exists() {
		data = set(data, "sequence_number", s.events)
		s.events++
	}
	return data
}

// set sets a member of a JSON object.
func set(data []byte, name string, value any) []byte {
	changed, err := sjson.SetBytes(data, name, value)
	if err != nil {
		return data
	}
	return changed
}
