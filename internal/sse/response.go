package sse

import (
	"errors"
	"slices"

	"github.com/tidwall/gjson"
)

var errNotResponse = errors.New("sse: body is not a response: it has no output")

// AppendResponse appends to dst the stream for a finished object of the Responses API: response.created and
// response.in_progress with the response as it was before any output, the events of each output item, and
// response.completed, response.incomplete or response.failed with the response as it is.
// Events are numbered from 0 without a gap. There is no [DONE]: this API has none.
//
// The error tells that body is no JSON object with a list of output items; dst is then returned as it was.
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
	begun := response.replacing(map[string]string{
		"status": `"in_progress"`, "output": `[]`, "output_text": `""`, "completed_at": "null",
		"usage": "null", "error": "null", "incomplete_details": "null",
	})
	s.event("response.created", `,"response":`, begun)
	s.event("response.in_progress", `,"response":`, begun)
	for i, item := range list(output) {
		s.item(number(i), item)
	}
	s.event(lastEvent(response), `,"response":`, parsed.Raw)
	return s.dst, nil
}

// lastEvent names the event that ends the stream. A cancelled response has none of its own.
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
	place    string // item_id and output_index of the item being written
}

// event writes one event, given its name and its other fields with a comma before each.
func (s *responseStream) event(name string, rest ...string) {
	s.dst = appendAll(s.dst, "event: ", name, "\ndata: {\"type\":\"", name, `","sequence_number":`, number(s.sequence))
	s.dst = appendAll(s.dst, rest...)
	s.dst = append(s.dst, "}\n\n"...)
	s.sequence++
}

// itemEvent is event for one about the current item.
func (s *responseStream) itemEvent(name string, rest ...string) {
	s.event(name, append([]string{s.place}, rest...)...)
}

func (s *responseStream) item(index string, value gjson.Result) {
	item := fields(value)
	id := item.raw("id")
	if id == "null" {
		id = `""` // clients insist on a string
	}
	s.place = `,"item_id":` + id + `,"output_index":` + index
	s.event("response.output_item.added", `,"output_index":`, index, `,"item":`, itemBegun(item, value))
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

// itemBegun returns an item as it was before any of its content came.
func itemBegun(item object, value gjson.Result) string {
	if item == nil {
		return value.Raw
	}
	blanks := map[string]string{}
	if item.raw("status") != "null" {
		blanks["status"] = `"in_progress"`
	}
	for name, blank := range blankFields[item.text("type")] {
		if item.raw(name) != "null" {
			blanks[name] = blank
		}
	}
	return item.replacing(blanks)
}

// blankFields tells what the fields which an item receives little by little hold at first, by item type.
var blankFields = map[string]map[string]string{
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

// A callStream tells which events stream a tool call.
type callStream struct {
	before []string // its states before the text
	text   string   // the field whose text is streamed, if any
	event  string   // the text's events, without .delta and .done
	name   bool     // whether the text's last event names the function
	after  []string // its states after the text
	failed string   // the last state of a call that failed, if there is an event for it
}

// callStreams has the tool calls with events of their own. Their states' events are named after the item type.
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

// call writes the events between the added and the done event of a tool call; none for a type without any.
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
	for piece := range pieces(inside(value)) {
		s.itemEvent(stream.event+".delta", `,"delta":`, quote(piece))
	}
	done := `,"` + stream.text + `":` + value.Raw
	if stream.name {
		done = `,"name":` + item.raw("name") + done
	}
	s.itemEvent(stream.event+".done", done)
}

// parts writes the content of a message or of a reasoning item.
func (s *responseStream) parts(content gjson.Result) {
	for i, value := range list(content) {
		part, place := fields(value), `,"content_index":`+number(i)
		s.itemEvent("response.content_part.added", place, `,"part":`, partBegun(part, value))
		switch part.text("type") {
		case "output_text":
			s.outputText(place, part)
		case "refusal":
			s.text("response.refusal", place, "refusal", part)
		case "reasoning_text":
			s.text("response.reasoning_text", place, "text", part)
		}
		s.itemEvent("response.content_part.done", place, `,"part":`, value.Raw)
	}
}

// partBegun returns a part as it was before its text came.
func partBegun(part object, value gjson.Result) string {
	switch part.text("type") {
	case "output_text":
		return part.replacing(map[string]string{"text": `""`, "annotations": `[]`, "logprobs": `[]`})
	case "refusal":
		return part.replacing(map[string]string{"refusal": `""`})
	case "reasoning_text", "summary_text":
		return part.replacing(map[string]string{"text": `""`})
	default:
		return value.Raw
	}
}

func (s *responseStream) outputText(place string, part object) {
	logprobs := part.get("logprobs")
	for piece, probs := range piecesWithLogprobs(part.text("text"), logprobs) {
		s.itemEvent("response.output_text.delta", place, `,"delta":`, quote(piece), `,"logprobs":[`, probs, `]`)
	}
	for i, annotation := range list(part.get("annotations")) {
		s.itemEvent("response.output_text.annotation.added", place,
			`,"annotation_index":`, number(i), `,"annotation":`, annotation.Raw)
	}
	all := `[]` // clients insist on a list
	if logprobs.IsArray() {
		all = logprobs.Raw
	}
	s.itemEvent("response.output_text.done", place, `,"text":`, quote(part.text("text")), `,"logprobs":`, all)
}

// text writes the delta events for the named string of a part, and their done event.
func (s *responseStream) text(event, place, name string, part object) {
	text := part.text(name)
	for piece := range pieces(text) {
		s.itemEvent(event+".delta", place, `,"delta":`, quote(piece))
	}
	s.itemEvent(event+".done", place, `,"`, name, `":`, quote(text))
}

// summary writes the summary of a reasoning item.
func (s *responseStream) summary(summary gjson.Result) {
	for i, value := range list(summary) {
		part, place := fields(value), `,"summary_index":`+number(i)
		s.itemEvent("response.reasoning_summary_part.added", place, `,"part":`, partBegun(part, value))
		s.text("response.reasoning_summary_text", place, "text", part)
		s.itemEvent("response.reasoning_summary_part.done", place, `,"part":`, value.Raw)
	}
}
