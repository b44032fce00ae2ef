package requestbody

import (
	"fmt"
	"strings"
	"unsafe"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/reply"
)

// A Call is what the body of a model call asks for.
type Call struct {
	Body       []byte // the body of the line: without raw line breaks, "stream" and "stream_options"
	Model      string // never empty
	Stream     bool   // the answer is to be a stream of events
	Usage      bool   // the last event of the stream is to hold the usage
	Background bool   // the provider answers at once, before the call has run
	Tier       string // the tier that the caller wants to pay for ("service_tier"); "" for the usual tier: "auto", "default" or none
	MaxOutput  int64  // the most tokens that an answer may have, as the body says; 0: not named
	Answers    int64  // the number of answers that the body asks for ("n"), at least 1
	input      gjson.Result
	badStream  string // the value of "stream", where it is neither a boolean nor null
}

// Parse reads a body without Content-Encoding. A body that no line can hold is a
// *reply.RequestError. A deployment that is not empty replaces the model, as the
// provider would do in real time. Parse does not change body; Call.Body may share
// memory with body.
func Parse(body []byte, deployment string) (Call, error) {
	if fault := whyInvalid(body); fault != "" {
		return Call{}, reply.InvalidBody("", fault)
	}
	c, streams := readMembers(body)
	if c.badStream != "" {
		return Call{}, reply.InvalidBody("stream", "stream is "+c.badStream+"; it must be true, false or null")
	}
	c.Body, c.Model = line.OneLine(body), strings.Clone(c.Model)
	var err error
	if streams {
		if c.Body, err = line.Without(c.Body, "stream", "stream_options"); err != nil {
			return Call{}, reply.InvalidBody("stream", "the request body has a stream that cannot be removed: "+err.Error())
		}
	}
	if deployment != "" && deployment != c.Model {
		if err := c.setModel(deployment); err != nil {
			return Call{}, reply.InvalidBody("model", "the request body cannot name the deployment: "+err.Error())
		}
	}
	if c.Model == "" {
		return Call{}, reply.InvalidBody("model", "you must provide a model parameter, and it must be a string")
	}
	if len(c.Model) > maxModel {
		return Call{}, reply.InvalidBody("model", fmt.Sprintf("the name of the model has %d bytes; it may have %d", len(c.Model), maxModel))
	}
	return c, nil
}

// maxModel is the maximum length of the name of a model, in bytes. Names are part of
// events, logs and the journal.
const maxModel = 256

func (c *Call) setModel(model string) (err error) {
	c.Model = model
	c.Body, err = line.Set(c.Body, "model", model)
	return err
}

// readMembers reads the members of a valid JSON object. Of several members with
// the same name the last counts. Streams reports whether the object has a member
// about streaming. The strings of the result share memory with body.
func readMembers(body []byte) (c Call, streams bool) {
	c.Answers = 1
	gjson.Parse(view(body)).ForEach(func(name, value gjson.Result) bool {
		switch name.String() {
		case "model":
			c.Model = ""
			if value.Type == gjson.String {
				c.Model = value.Str
			}
		case "stream":
			c.Stream, streams = value.Type == gjson.True, true
			switch value.Type {
			case gjson.True, gjson.False, gjson.Null:
				c.badStream = ""
			case gjson.Number, gjson.String, gjson.JSON:
				c.badStream = strings.ToValidUTF8(value.Raw[:min(len(value.Raw), 20)], "")
			}
		case "stream_options":
			c.Usage, streams = value.Get("include_usage").Type == gjson.True, true
		case "service_tier":
			c.Tier = ""
			if value.Str != "auto" && value.Str != "default" {
				c.Tier = strings.Clone(value.Str)
			}
		case "background":
			c.Background = value.Type == gjson.True
		case "input":
			c.input = value
		case "max_tokens", "max_completion_tokens", "max_output_tokens":
			c.MaxOutput = max(c.MaxOutput, value.Int())
		case "n":
			c.Answers = max(value.Int(), 1)
		}
		return true
	})
	return c, streams
}

// view is b as a string without a copy, for as long as b does not change.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Inputs is the number of embeddings that a call to the endpoint of embeddings
// asks for: the input is a text, a list of tokens, or a list of texts or of lists
// of tokens.
func (c *Call) Inputs() int {
	if !c.input.IsArray() {
		return 1
	}
	n, tokens := 0, false
	c.input.ForEach(func(_, value gjson.Result) bool {
		tokens = value.Type == gjson.Number
		n++
		return !tokens
	})
	if tokens {
		return 1
	}
	return n
}
