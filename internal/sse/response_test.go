package sse_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tidwall/gjson"
)

func TestResponseStreamMatchesOutput(t *testing.T) {
	for name, body := range responseBodies(t) {
		t.Run(name, func(t *testing.T) {
			want, err := decode(body)
			if err != nil {
				t.Fatal(err)
			}
			events, done := mustParseEvents(t, appendResponse(t, body))
			if done {
				t.Error("[DONE] in a Responses stream")
			}
			r := rebuilder{t: t}
			for i, e := range events {
				if got := fmt.Sprint(e.data["sequence_number"]); got != fmt.Sprint(i) {
					t.Errorf("event %d has the number %s", i, got)
				}
				if e.name == "" || e.name != e.data["type"] {
					t.Errorf("event line %q for type %v", e.name, e.data["type"])
				}
				r.add(e)
			}
			if diff := cmp.Diff(want["output"], any(r.output)); diff != "" && len(r.output)+len(want["output"].([]any)) > 0 {
				t.Errorf("rebuilt output (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, events[len(events)-1].data["response"]); diff != "" {
				t.Errorf("final response (-want +got):\n%s", diff)
			}
		})
	}
}

// A rebuilder joins events to output items in the way of a client. At the done event of an item, the rebuilder compares
// the joined item with the finished item.
type rebuilder struct {
	t      *testing.T
	output []any
	item   map[string]any // the current item
}

// targets has, by event type, the field of the item that the event extends or completes. list is "" for a field of the
// item, and else the list whose element has the field.
var targets = map[string]struct{ list, index, field string }{
	"response.output_text.delta":                {"content", "content_index", "text"},
	"response.refusal.delta":                    {"content", "content_index", "refusal"},
	"response.reasoning_text.delta":             {"content", "content_index", "text"},
	"response.reasoning_summary_text.delta":     {"summary", "summary_index", "text"},
	"response.function_call_arguments.delta":    {field: "arguments"},
	"response.mcp_call_arguments.delta":         {field: "arguments"},
	"response.custom_tool_call_input.delta":     {field: "input"},
	"response.code_interpreter_call_code.delta": {field: "code"},
	"response.output_text.annotation.added":     {"content", "content_index", "annotations"},
	"response.output_text.done":                 {"content", "content_index", "text"},
	"response.refusal.done":                     {"content", "content_index", "refusal"},
	"response.reasoning_text.done":              {"content", "content_index", "text"},
	"response.reasoning_summary_text.done":      {"summary", "summary_index", "text"},
	"response.function_call_arguments.done":     {field: "arguments"},
	"response.mcp_call_arguments.done":          {field: "arguments"},
	"response.custom_tool_call_input.done":      {field: "input"},
	"response.code_interpreter_call_code.done":  {field: "code"},
	"response.content_part.done":                {"content", "content_index", ""},
	"response.reasoning_summary_part.done":      {"summary", "summary_index", ""},
	"response.content_part.added":               {"content", "content_index", ""},
	"response.reasoning_summary_part.added":     {"summary", "summary_index", ""},
}

func (r *rebuilder) add(e event) {
	kind := e.data["type"].(string)
	switch {
	case kind == "response.output_item.added":
		r.checkIndex(e, "output_index", len(r.output))
		r.item = e.data["item"].(map[string]any)
	case kind == "response.output_item.done":
		r.finish(e)
	case e.data["item_id"] != nil:
		r.checkIndex(e, "output_index", len(r.output))
		r.fill(e, kind)
	}
}

func (r *rebuilder) fill(e event, kind string) {
	id, _ := r.item["id"].(string)
	if e.data["item_id"] != id {
		r.t.Errorf("%s of item %v during %v", kind, e.data["item_id"], id)
	}
	target, ok := targets[kind]
	if !ok {
		return // the event reports only a new state
	}
	into := r.item
	if target.list != "" {
		list, _ := r.item[target.list].([]any)
		if strings.HasSuffix(kind, "part.added") {
			r.checkIndex(e, target.index, len(list))
			list = append(list, e.data["part"])
			r.item[target.list] = list
		}
		r.checkIndex(e, target.index, len(list)-1)
		into = list[len(list)-1].(map[string]any)
	}
	r.put(e, kind, target.field, into)
}

// put adds a delta or an annotation, or compares the repeated value in a done event.
func (r *rebuilder) put(e event, kind, field string, into map[string]any) {
	switch {
	case strings.HasSuffix(kind, ".delta"):
		into[field] = into[field].(string) + e.data["delta"].(string)
		if probs, ok := e.data["logprobs"].([]any); ok && len(probs) > 0 {
			into["logprobs"] = append(into["logprobs"].([]any), probs...)
		}
	case strings.HasSuffix(kind, "annotation.added"):
		list := into[field].([]any)
		r.checkIndex(e, "annotation_index", len(list))
		into[field] = append(list, e.data["annotation"])
	case strings.HasSuffix(kind, "part.done"):
		if diff := cmp.Diff(e.data["part"], any(into)); diff != "" {
			r.t.Errorf("%s (-sent +joined):\n%s", kind, diff)
		}
	case strings.HasSuffix(kind, ".done") && e.data[field] != into[field]:
		r.t.Errorf("%s has %.100q, the deltas have %.100q", kind, e.data[field], into[field])
	}
}

// finish compares the joined item with the item of the done event. Fields that have no deltas are copied from the event
// before.
func (r *rebuilder) finish(e event) {
	r.checkIndex(e, "output_index", len(r.output))
	item := e.data["item"].(map[string]any)
	for _, field := range []string{
		"status", "encrypted_content", "output", "error", "tools", "queries", "results", "outputs", "result",
	} {
		if value, ok := item[field]; ok {
			r.item[field] = value
		}
	}
	if diff := cmp.Diff(item, r.item); diff != "" {
		r.t.Errorf("item %v (-sent +joined):\n%s", item["id"], diff)
	}
	r.output = append(r.output, item)
}

func (r *rebuilder) checkIndex(e event, field string, want int) {
	if got := fmt.Sprint(e.data[field]); got != fmt.Sprint(want) {
		r.t.Errorf("%v has %s %s, want %d", e.data["type"], field, got, want)
	}
}

func TestResponseStartsInProgress(t *testing.T) {
	for name, body := range responseBodies(t) {
		t.Run(name, func(t *testing.T) {
			events, _ := mustParseEvents(t, appendResponse(t, body))
			for i, want := range []string{"response.created", "response.in_progress"} {
				if events[i].name != want {
					t.Errorf("event %d is %s, want %s", i, events[i].name, want)
				}
				response := gjson.Get(events[i].line, "response")
				if response.Get("status").String() != "in_progress" || response.Get("output").Raw != "[]" {
					t.Errorf("%s with status %s and output %s", want, response.Get("status"), response.Get("output"))
				}
				for _, field := range []string{"usage", "error", "incomplete_details", "completed_at"} {
					if value := response.Get(field); value.Type != gjson.Null {
						t.Errorf("%s with %s %s", want, field, value.Raw)
					}
				}
				for _, field := range []string{"id", "created_at", "model", "temperature"} {
					if got, want := response.Get(field).Raw, gjson.GetBytes(body, field).Raw; got != want {
						t.Errorf("%s is %s, want %s", field, got, want)
					}
				}
			}
		})
	}
}

func TestResponseLastEvent(t *testing.T) {
	tests := map[string]string{
		`"status":"completed",`:  "response.completed",
		``:                       "response.completed",
		`"status":"incomplete",`: "response.incomplete",
		`"status":"failed",`:     "response.failed",
		`"status":"cancelled",`:  "response.failed",
	}
	for status, want := range tests {
		body := `{"id":"r","object":"response",` + status + `"output":[],"x":1.50}`
		events, _ := mustParseEvents(t, appendResponse(t, []byte(body)))
		last := events[len(events)-1]
		if last.name != want {
			t.Errorf("%s ends with %s, want %s", status, last.name, want)
		}
		if got := gjson.Get(last.line, "response").Raw; got != body {
			t.Errorf("final response %s, want %s", got, body)
		}
	}
}

func TestResponseKeepsBytes(t *testing.T) {
	bodies := fixtures(t, "responses")
	events, _ := mustParseEvents(t, appendResponse(t, bodies["pretty"]))
	oneLine := bytes.ReplaceAll(bodies["pretty"], []byte("\n"), nil)
	if got := gjson.Get(events[len(events)-1].line, "response").Raw; got != string(oneLine) {
		t.Errorf("final response %s, want %s", got, oneLine)
	}
}

func TestResponseDeltasAreShort(t *testing.T) {
	for name, body := range responseBodies(t) {
		events, _ := mustParseEvents(t, appendResponse(t, body))
		for _, e := range events {
			if strings.HasSuffix(e.name, ".delta") && len(e.line) > 20<<10 {
				t.Errorf("%s: %s of %d bytes", name, e.name, len(e.line))
			}
		}
	}
}
