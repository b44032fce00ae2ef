package main

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/autobatcher/autobatcher/batchtest"
)

// steering is the part of the help that says how to provoke things.
const steering = `A prompt, or an embedding's input, can say what is to become of its call:

   sandbox: status 429           the call fails with that status
   sandbox: error CODE           the line ends without a response, with that code
   sandbox: missing              the line is counted, but its result never written
   sandbox: never                the line never finishes
   sandbox: call NAME {…}        the model calls the tool NAME with these arguments
   sandbox: delay 30s            the line finishes that long after its batch began
   sandbox: delay 30s status 500 the same, and then what follows`

// obey answers like batchtest.Echo, unless the prompt gives an order.
func obey(l batchtest.Line) batchtest.Outcome {
	if _, order, found := strings.Cut(prompt(l.Body), "sandbox: "); found {
		return follow(l, order)
	}
	return batchtest.Echo(l)
}

// follow follows an order. One that makes no sense is no order.
func follow(l batchtest.Line, order string) batchtest.Outcome {
	verb, rest, _ := strings.Cut(order, " ")
	object, rest, _ := strings.Cut(rest, " ")
	switch strings.TrimSpace(verb) {
	case "status":
		if status, err := strconv.Atoi(object); err == nil && status >= 400 && status <= 599 {
			return batchtest.Outcome{Status: status}
		}
	case "error":
		return batchtest.Outcome{Code: object, Message: "the sandbox was told to fail"}
	case "missing":
		return batchtest.Outcome{Missing: true}
	case "never":
		return batchtest.Outcome{Never: true}
	case "call":
		return batchtest.Outcome{Body: callTool(l, object, rest)} // nil for an embedding: Echo's
	case "delay":
		if d, err := time.ParseDuration(object); err == nil {
			late := follow(l, rest)
			late.Delay = d
			return late
		}
	}
	return batchtest.Echo(l)
}

// prompt is the last thing that the caller said: in a chat, in a response's
// input, or as the last text to embed.
func prompt(body []byte) string {
	messages := gjson.GetBytes(body, "messages")
	if !messages.Exists() {
		messages = gjson.GetBytes(body, "input")
	}
	last := messages
	if said := messages.Array(); messages.IsArray() && len(said) > 0 {
		last = said[len(said)-1]
	}
	if content := last.Get("content"); content.Exists() {
		last = content
	}
	if parts := last.Array(); last.IsArray() && len(parts) > 0 {
		last = parts[len(parts)-1].Get("text")
	}
	return last.String()
}

// callTool is Echo's answer with a tool call in the place of its text.
func callTool(l batchtest.Line, name, arguments string) []byte {
	if !json.Valid([]byte(arguments)) {
		arguments = "{}"
	}
	body := batchtest.Echo(l).Body
	switch {
	case strings.HasSuffix(l.URL, "/embeddings"):
		return nil
	case strings.HasSuffix(l.URL, "/responses"):
		return set(body, "output.0", map[string]any{
			"id": "fc_sandbox", "type": "function_call", "status": "completed",
			"call_id": "call_sandbox", "name": name, "arguments": arguments,
		})
	}
	body = set(body, "choices.0.message.content", nil)
	body = set(body, "choices.0.message.tool_calls", []any{map[string]any{
		"id": "call_sandbox", "type": "function",
		"function": map[string]any{"name": name, "arguments": arguments},
	}})
	return set(body, "choices.0.finish_reason", "tool_calls")
}

func set(body []byte, path string, value any) []byte {
	changed, err := sjson.SetBytes(body, path, value)
	if err != nil {
		panic(err) // the paths and the body are our own
	}
	return changed
}
