package batchtest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
)

// streamChat sends the first choice of a chat completion as server-sent events: the text
// word by word, and the arguments of tool calls member by member.
func streamChat(w http.ResponseWriter, l Line, body []byte) {
	beginStream(w)
	id, _ := unquote(field(body, "id"))
	tier, _ := unquote(field(body, "service_tier"))
	var choice []byte
	eachItem(field(body, "choices"), func(first []byte) bool {
		choice = first
		return false
	})
	message := field(choice, "message")
	send := func(delta any, finish any) {
		sendEvent(w, "", chunk(l, id, tier, []any{object{"index": 0, "delta": delta, "finish_reason": finish}}))
	}
	if text, isText := unquote(field(message, "content")); isText {
		send(object{"role": "assistant", "content": ""}, nil)
		for word := range strings.SplitAfterSeq(text, " ") {
			send(object{"content": word}, nil)
		}
	} else {
		send(object{"role": "assistant", "content": nil}, nil)
	}
	calls := 0
	eachItem(field(message, "tool_calls"), func(call []byte) bool {
		for _, delta := range toolCall(calls, call) {
			send(object{"tool_calls": []any{delta}}, nil)
		}
		calls++
		return true
	})
	finish, known := unquote(field(choice, "finish_reason"))
	if !known {
		finish = "stop"
	}
	send(object{}, finish)
	if string(field(field(l.Body, "stream_options"), "include_usage")) == "true" {
		last := chunk(l, id, tier, []any{})
		last["usage"] = json.RawMessage(field(body, "usage"))
		sendEvent(w, "", last)
	}
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

// toolCall returns the pieces of a tool call: first the name, then the arguments.
func toolCall(index int, call []byte) []object {
	function := field(call, "function")
	arguments, _ := unquote(field(function, "arguments"))
	pieces := []object{{
		"index": index, "id": json.RawMessage(field(call, "id")), "type": json.RawMessage(field(call, "type")),
		"function": json.RawMessage(withField(function, "arguments", "")),
	}}
	for piece := range strings.SplitAfterSeq(arguments, ":") {
		pieces = append(pieces, object{"index": index, "function": object{"arguments": piece}})
	}
	return pieces
}

// streamText sends the text of a text completion as server-sent events, word by word.
func streamText(w http.ResponseWriter, l Line, body []byte) {
	beginStream(w)
	id, _ := unquote(field(body, "id"))
	send := func(choices []any, usage any) {
		c := object{"id": id, "object": "text_completion", "created": answeredAt, "model": l.Model, "choices": choices}
		if usage != nil {
			c["usage"] = usage
		}
		sendEvent(w, "", c)
	}
	eachItem(field(body, "choices"), func(choice []byte) bool {
		text, _ := unquote(field(choice, "text"))
		index := json.RawMessage(field(choice, "index"))
		for word := range strings.SplitAfterSeq(text, " ") {
			send([]any{object{"index": index, "text": word, "logprobs": nil, "finish_reason": nil}}, nil)
		}
		send([]any{object{"index": index, "text": "", "logprobs": nil, "finish_reason": json.RawMessage(field(choice, "finish_reason"))}}, nil)
		return true
	})
	if string(field(field(l.Body, "stream_options"), "include_usage")) == "true" {
		send([]any{}, json.RawMessage(field(body, "usage")))
	}
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

// streamImages sends images as server-sent events of that name, without partial images.
func streamImages(w http.ResponseWriter, name string, body []byte) {
	beginStream(w)
	eachItem(field(body, "data"), func(image []byte) bool {
		sendEvent(w, name, object{
			"type": name, "b64_json": json.RawMessage(field(image, "b64_json")), "created_at": answeredAt,
			"usage": json.RawMessage(field(body, "usage")),
		})
		return true
	})
}

// chunk is one chunk of a stream. An empty tier is left out.
func chunk(l Line, id, tier string, choices []any) object {
	c := object{
		"id": id, "object": "chat.completion.chunk", "created": answeredAt, "model": l.Model, "choices": choices,
	}
	if tier != "" {
		c["service_tier"] = tier
	}
	return c
}

// A responseStream sends a response as server-sent events.
type responseStream struct {
	w        http.ResponseWriter
	sequence int
}

// streamResponse sends a response, with the text of messages word by word.
func streamResponse(w http.ResponseWriter, body []byte) {
	beginStream(w)
	s := &responseStream{w: w}
	status, _ := unquote(field(body, "status"))
	begun := withField(withField(withField(body, "status", inProgress), "output", []any{}), "usage", nil)
	s.send("response.created", object{"response": json.RawMessage(begun)})
	s.send("response.in_progress", object{"response": json.RawMessage(begun)})
	index := 0
	eachItem(field(body, "output"), func(item []byte) bool {
		s.item(index, item)
		index++
		return true
	})
	s.send("response."+cmp.Or(status, completed), object{"response": json.RawMessage(body)})
}

// item sends an item of the output.
func (s *responseStream) item(index int, item []byte) {
	begun := withField(item, "status", inProgress)
	if field(item, "content") != nil {
		begun = withField(begun, "content", []any{})
	}
	arguments, isCall := unquote(field(item, "arguments"))
	if isCall {
		begun = withField(begun, "arguments", "")
	}
	s.send("response.output_item.added", object{"output_index": index, "item": json.RawMessage(begun)})
	id, _ := unquote(field(item, "id"))
	part := 0
	eachItem(field(item, "content"), func(content []byte) bool {
		s.part(object{"item_id": id, "output_index": index, "content_index": part}, content)
		part++
		return true
	})
	if kind, _ := unquote(field(item, "type")); isCall && kind == "function_call" {
		for piece := range strings.SplitAfterSeq(arguments, ":") {
			s.send("response.function_call_arguments.delta", object{"item_id": id, "output_index": index, "delta": piece})
		}
		s.send("response.function_call_arguments.done", object{
			"item_id": id, "output_index": index, "name": json.RawMessage(field(item, "name")), "arguments": arguments,
		})
	}
	s.send("response.output_item.done", object{"output_index": index, "item": json.RawMessage(item)})
}

// part sends a part of a message that is at the place.
func (s *responseStream) part(place object, content []byte) {
	send := func(kind, name string, value any) {
		fields := maps.Clone(place)
		fields[name] = value
		if strings.HasPrefix(kind, "response.output_text.") {
			fields["logprobs"] = []any{}
		}
		s.send(kind, fields)
	}
	text, isText := unquote(field(content, "text"))
	begun := content
	if isText {
		begun = withField(content, "text", "")
	}
	send("response.content_part.added", "part", json.RawMessage(begun))
	if isText {
		for word := range strings.SplitAfterSeq(text, " ") {
			send("response.output_text.delta", "delta", word)
		}
		send("response.output_text.done", "text", text)
	}
	send("response.content_part.done", "part", json.RawMessage(content))
}

func (s *responseStream) send(kind string, fields object) {
	fields["type"], fields["sequence_number"] = kind, s.sequence
	s.sequence++
	sendEvent(s.w, kind, fields)
}

func beginStream(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
}

// sendEvent writes and flushes a server-sent event. An empty name is left out.
func sendEvent(w http.ResponseWriter, name string, v any) {
	if name != "" {
		_, _ = fmt.Fprintf(w, "event: %s\n", name)
	}
	_, _ = fmt.Fprintf(w, "data: %s\n\n", marshal(v))
	_ = http.NewResponseController(w).Flush()
}
