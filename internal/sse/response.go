package sse

import (
	"errors"
	"slices"

	"github.com/tidwall/gjson"
)

var errNotResponse = errors.New("sse: body is not a response: it has no output")

// AppendResponse appends to dst the stream for a finished object of the Responses API: response.created and
// response.in_progress with the initial response, the events of each output item, and response.completed,
// response.incomplete or response.failed with the finished response. The events are numbered from 0 without gaps. The
// stream has no [DONE], because the Responses API does not define [DONE].
//
// AppendResponse returns an error and an unmodified dst if body is not a JSON object with a list of output items.
func AppendResponse(dst, body []byte) ([]byte, error) {
	parsed, err := parse(body)
	if err != nil {
		return dst, err
	}
	response := fields(parsed)
	output := response.get("output")
	if !output.IsArray() {
		return dst, errNotResponse
	}
	s := &responseStream{dst: slices.Grow(dst, 5*len(body))}
	initial := response.withValues(map[string]string{
		"status": `"in_progress"`, "output": `[]`, "output_text": `""`, "completed_at": "null",
		"usage": "null", "error": "null", "incomplete_details": "null",
	})
	s.event("response.created", `,"response":`, initial)
	s.event("response.in_progress", `,"response":`, initial)
	for i, item := range list(output) {
		s.item(number(i), item)
	}
	s.event(lastEvent(response), `,"response":`, parsed.Raw)
	return s.dst, nil
}

// lastEvent returns the name of the last event. The API defines no event for a cancelled response; response.failed is
// used.
func lastEvent(response object) string {
	switch response.text("status") {
	case "completed", "":
		return "response.completed"
	case "incomplete":
		return "response.incomplete"
	default:
		return "response.failed"
	}
}

// A responseStream writes the events of one response.
type responseStream struct {
	dst      []byte
	sequence int
	location string // item_id and output_index of the current item, as JSON
}

// event writes one event. rest are the fields after sequence_number, with a comma before each field.
func (s *responseStream) event(name string, rest ...string) {
	s.dst = appendAll(s.dst, "event: ", name, "\ndata: {\"type\":\"", name, `","sequence_number":`, number(s.sequence))
	s.dst = appendAll(s.dst, rest...)
	s.dst = append(s.dst, "}\n\n"...)
	s.sequence++
}

// itemEvent writes one event about the current item.
func (s *responseStream) itemEvent(name string, rest ...string) {
	s.event(name, append([]string{s.location}, rest...)...)
}

func (s *responseStream) item(index string, value gjson.Result) {
	item := fields(value)
	id := item.raw("id")
	if id == "null" {
		id = `""` // clients require a string
	}
	s.location = `,"item_id":` + id + `,"output_index":` + index
	s.event("response.output_item.added", `,"output_index":`, index, `,"item":`, initialItem(item, value))
	switch item.text("type") {
	case "message":
		s.parts(item.get("content"))
	case "reasoning":
		s.summary(item.get("summary"))
		s.parts(item.get("content"))
	default:
		s.call(item)
	}
	s.event("response.output_item.done", `,"output_index":`, index, `,"item":`, value.Raw)
}

// initialItem returns an item as JSON, with the state before the first delta.
func initialItem(item object, value gjson.Result) string {
	if item == nil {
		return value.Raw
	}
	initial := map[string]string{}
	if item.raw("status") != "null" {
		initial["status"] = `"in_progress"`
	}
	for name, value := range initialFields[item.text("type")] {
		if item.raw(name) != "null" {
			initial[name] = value
		}
	}
	return item.withValues(initial)
}

// initialFields has, by item type, the initial values of the fields that are streamed or that are known only at the end.
var initialFields = map[string]map[string]string{
	"message":               {"content": `[]`},
	"reasoning":             {"summary": `[]`, "content": `[]`, "encrypted_content": `null`},
	"function_call":         {"arguments": `""`},
	"custom_tool_call":      {"input": `""`},
	"mcp_call":              {"arguments": `""`, "output": `null`, "error": `null`},
	"mcp_list_tools":        {"tools": `[]`, "error": `null`},
	"file_search_call":      {"queries": `[]`, "results": `null`},
	"code_interpreter_call": {"code": `""`, "outputs": `null`},
	"image_generation_call": {"result": `null`},
}

// A callStream describes the events of a tool call.
type callStream struct {
	before []string // names of the state events before the text
	text   string   // the field whose text is streamed; "": no text is streamed
	event  string   // prefix of the text events, before .delta and .done
	name   bool     // whether the .done event has the name of the function
	after  []string // names of the state events after the text
	failed string   // replaces "completed" in after if the call failed; "": no event
}

// callStreams has, by item type, the tool calls with specific events. The name of a state event is "response.", the item
// type, "." and the state.
var callStreams = map[string]callStream{
	"function_call":    {text: "arguments", event: "response.function_call_arguments", name: true},
	"custom_tool_call": {text: "input", event: "response.custom_tool_call_input"},
	"mcp_call": {
		before: []string{"in_progress"}, text: "arguments", event: "response.mcp_call_arguments",
		after: []string{"completed"}, failed: "failed",
	},
	"mcp_list_tools":   {before: []string{"in_progress"}, after: []string{"completed"}, failed: "failed"},
	"web_search_call":  {before: []string{"in_progress", "searching"}, after: []string{"completed"}},
	"file_search_call": {before: []string{"in_progress", "searching"}, after: []string{"completed"}},
	"code_interpreter_call": {
		before: []string{"in_progress"}, text: "code", event: "response.code_interpreter_call_code",
		after: []string{"interpreting", "completed"},
	},
	"image_generation_call": {before: []string{"in_progress", "generating"}, after: []string{"completed"}},
}

// call writes the events between response.output_item.added and response.output_item.done of a tool call. An unknown type
// has no such events.
func (s *responseStream) call(item object) {
	kind := item.text("type")
	stream := callStreams[kind]
	for _, state := range stream.before {
		s.itemEvent("response." + kind + "." + state)
	}
	s.callText(stream, item)
	for _, state := range stream.after {
		if state == "completed" && callFailed(item) {
			state = stream.failed
		}
		if state != "" {
			s.itemEvent("response." + kind + "." + state)
		}
	}
}

func callFailed(item object) bool {
	return item.text("status") == "failed" || item.raw("error") != "null"
}

func (s *responseStream) callText(stream callStream, item object) {
	value := item.get(stream.text)
	if value.Type != gjson.String {
		return
	}
	for piece := range pieces(stringContent(value)) {
		s.itemEvent(stream.event+".delta", `,"delta":`, quote(piece))
	}
	done := `,"` + stream.text + `":` + value.Raw
	if stream.name {
		done = `,"name":` + item.raw("name") + done
	}
	s.itemEvent(stream.event+".done", done)
}

// parts writes the content parts of a message or of a reasoning item.
func (s *responseStream) parts(content gjson.Result) {
	for i, value := range list(content) {
		part, location := fields(value), `,"content_index":`+number(i)
		s.itemEvent("response.content_part.added", location, `,"part":`, initialPart(part, value))
		switch part.text("type") {
		case "output_text":
			s.outputText(location, part)
		case "refusal":
			s.text("response.refusal", location, "refusal", part)
		case "reasoning_text":
			s.text("response.reasoning_text", location, "text", part)
		}
		s.itemEvent("response.content_part.done", location, `,"part":`, value.Raw)
	}
}

// initialPart returns a part as JSON, with the state before the first delta.
func initialPart(part object, value gjson.Result) string {
	switch part.text("type") {
	case "output_text":
		return part.withValues(map[string]string{"text": `""`, "annotations": `[]`, "logprobs": `[]`})
	case "refusal":
		return part.withValues(map[string]string{"refusal": `""`})
	case "reasoning_text", "summary_text":
		return part.withValues(map[string]string{"text": `""`})
	default:
		return value.Raw
	}
}

func (s *responseStream) outputText(location string, part object) {
	logprobs := part.get("logprobs")
	for piece, probs := range piecesWithLogprobs(part.text("text"), logprobs) {
		s.itemEvent("response.output_text.delta", location, `,"delta":`, quote(piece), `,"logprobs":[`, probs, `]`)
	}
	for i, annotation := range list(part.get("annotations")) {
		s.itemEvent("response.output_text.annotation.added", location,
			`,"annotation_index":`, number(i), `,"annotation":`, annotation.Raw)
	}
	all := `[]` // clients require a list
	if logprobs.IsArray() {
		all = logprobs.Raw
	}
	s.itemEvent("response.output_text.done", location, `,"text":`, quote(part.text("text")), `,"logprobs":`, all)
}

// text writes the delta events and the done event for the named string of a part.
func (s *responseStream) text(event, location, name string, part object) {
	text := part.text(name)
	for piece := range pieces(text) {
		s.itemEvent(event+".delta", location, `,"delta":`, quote(piece))
	}
	s.itemEvent(event+".done", location, `,"`, name, `":`, quote(text))
}

// summary writes the summary of a reasoning item.
func (s *responseStream) summary(summary gjson.Result) {
	for i, value := range list(summary) {
		part, location := fields(value), `,"summary_index":`+number(i)
		s.itemEvent("response.reasoning_summary_part.added", location, `,"part":`, initialPart(part, value))
		s.text("response.reasoning_summary_text", location, "text", part)
		s.itemEvent("response.reasoning_summary_part.done", location, `,"part":`, value.Raw)
	}
}
