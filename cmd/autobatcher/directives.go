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

// directivesHelp is the part of the help about directives: text in a prompt that
// determines the outcome of the call.
const directivesHelp = `A prompt, or the input of an embedding, can contain a directive, which
determines the outcome of the call:

   sandbox: status 429           the call fails with status 429
   sandbox: error CODE           the line ends without a response, with error CODE
   sandbox: missing              the line is counted, but has no result
   sandbox: never                the line never finishes
   sandbox: call NAME {…}        the model calls the tool NAME with the arguments
   sandbox: delay 30s            the line finishes 30 s after the batch began
   sandbox: delay 30s status 500 the same, with the outcome of the second directive`

// answerLine answers a line like batchtest.Echo, unless the prompt contains a
// directive.
func answerLine(l batchtest.Line) batchtest.Outcome {
	if _, directive, found := strings.Cut(prompt(l.Body), "sandbox: "); found {
		return applyDirective(l, directive)
	}
	return batchtest.Echo(l)
}

// applyDirective returns the outcome that a directive asks for. An invalid
// directive is ignored.
func applyDirective(l batchtest.Line, directive string) batchtest.Outcome {
	verb, rest, _ := strings.Cut(directive, " ")
	object, rest, _ := strings.Cut(rest, " ")
	switch strings.TrimSpace(verb) {
	case "status":
		if status, err := strconv.Atoi(object); err == nil && status >= 400 && status <= 599 {
			return batchtest.Outcome{Status: status}
		}
	case "error":
		return batchtest.Outcome{Code: object, Message: "the prompt asks the sandbox to fail"}
	case "missing":
		return batchtest.Outcome{Missing: true}
	case "never":
		return batchtest.Outcome{Never: true}
	case "call":
		return batchtest.Outcome{Body: callTool(l, object, rest)} // nil: Echo's body
	case "delay":
		if d, err := time.ParseDuration(object); err == nil {
			outcome := applyDirective(l, rest)
			outcome.Delay = d
			return outcome
		}
	}
	return batchtest.Echo(l)
}

// prompt returns the last text of a request: the last message of a chat, the last
// item of a response's input, the last input of an embedding or a moderation, or the
// prompt of a completion or an image.
func prompt(body []byte) string {
	messages := gjson.GetBytes(body, "messages")
	if !messages.Exists() {
		messages = gjson.GetBytes(body, "input")
	}
	if !messages.Exists() {
		messages = gjson.GetBytes(body, "prompt")
	}
	last := messages
	if all := messages.Array(); messages.IsArray() && len(all) > 0 {
		last = all[len(all)-1]
	}
	if content := last.Get("content"); content.Exists() {
		last = content
	}
	if parts := last.Array(); last.IsArray() && len(parts) > 0 {
		last = parts[len(parts)-1].Get("text")
	}
	return last.String()
}

// callTool returns Echo's body with a tool call instead of text, or nil for an endpoint
// without tools.
func callTool(l batchtest.Line, name, arguments string) []byte {
	if !json.Valid([]byte(arguments)) {
		arguments = "{}"
	}
	body := batchtest.Echo(l).Body
	switch {
	case strings.HasSuffix(l.URL, "/responses"):
		return set(body, "output.0", map[string]any{
			"id": "fc_sandbox", "type": "function_call", "status": "completed",
			"call_id": "call_sandbox", "name": name, "arguments": arguments,
		})
	case !strings.HasSuffix(l.URL, "/chat/completions"):
		return nil
	}
	body = set(body, "choices.0.message.content", nil)
	body = set(body, "choices.0.message.tool_calls", []any{map[string]any{
		"id": "call_sandbox", "type": "function",
		"function": map[string]any{"name": name, "arguments": arguments},
	}})
	return set(body, "choices.0.finish_reason", "tool_calls")
}

// set sets a value in a JSON body.
func set(body []byte, path string, value any) []byte {
	changed, err := sjson.SetBytes(body, path, value)
	if err != nil {
		panic(err) // all callers pass valid paths and bodies
	}
	return changed
}
