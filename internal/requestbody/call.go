package requestbody

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/reply"
)

// A Call is what the body of a model call asks for.
type Call struct {
	Body       []byte // the body of the line: without raw line breaks, "stream" and "stream_options"
	NoModel    bool   // set before Parse: the body need not name a model
	Model      string // "" only with NoModel
	Stream     bool   // the answer is to be a stream of events
	Usage      bool   // the last event of the stream is to hold the usage
	Background bool   // the caller wants an id at once, and asks for the answer later
	Tier       string // the tier that the caller wants to pay for ("service_tier"); "" for the usual tier: "auto", "default" or none
	Format     string // of the answer ("response_format"), where the body names the format by a string
	MaxOutput  int64  // the most tokens that an answer may have, as the body says; 0: not named
	Answers    int64  // the number of answers that the body asks for ("n"), at least 1
	input      []byte // the value of "input", or of the "documents" of a reranking; shares memory with the body
	badStream  string // the value of "stream", where it is neither a boolean nor null
}

// Parse reads a body without Content-Encoding into c, which must be a zero Call but for
// NoModel. A body that no line can hold is a *reply.RequestError. A deployment that is not empty
// replaces the model, as the provider would do in real time. Parse does not change
// body; c.Body may share memory with body.
func (c *Call) Parse(body []byte, deployment string) error {
	c.Answers = 1
	streams := false
	if !utf8.Valid(body) || !line.Members(body, func(name, value []byte) { streams = c.readMember(name, value) || streams }) {
		return reply.InvalidBody("", whyInvalid(body))
	}
	if c.badStream != "" {
		return reply.InvalidBody("stream", "stream is "+c.badStream+"; it must be true, false or null")
	}
	c.Body = line.OneLine(body)
	if streams {
		if err := c.remove("stream", "stream_options"); err != nil {
			return reply.InvalidBody("stream", "the request body has a stream that cannot be removed: "+err.Error())
		}
	}
	if deployment != "" && deployment != c.Model {
		if err := c.setModel(deployment); err != nil {
			return reply.InvalidBody("model", "the request body cannot name the deployment: "+err.Error())
		}
	}
	if c.Model == "" && !c.NoModel {
		return reply.InvalidBody("model", "you must provide a model parameter, and it must be a string")
	}
	if len(c.Model) > maxModel {
		return longModel(c.Model)
	}
	return nil
}

// maxModel is the maximum length of the name of a model, in bytes. Names are part of
// events, logs and the journal.
const maxModel = 256

func longModel(model string) error {
	return reply.InvalidBody("model", fmt.Sprintf("the name of the model has %d bytes; it may have %d", len(model), maxModel))
}

func (c *Call) remove(names ...string) (err error) {
	c.Body, err = line.Without(c.Body, names...)
	return err
}

func (c *Call) setModel(model string) (err error) {
	c.Model = model
	c.Body, err = line.Set(c.Body, "model", model)
	return err
}

// readMember reads a member of the body. Of several members with the same name the
// last counts. readMember reports whether the member is about streaming.
func (c *Call) readMember(name, value []byte) (streams bool) {
	switch string(name) {
	case "model":
		c.Model = text(value)
	case "stream":
		c.readStream(value)
		return true
	case "stream_options":
		c.Usage = includesUsage(value)
		return true
	case "service_tier":
		if c.Tier = text(value); c.Tier == "auto" || c.Tier == "default" {
			c.Tier = ""
		}
	case "response_format":
		c.Format = text(value)
	case "background":
		c.Background = string(value) == "true"
	case "input", "documents":
		c.input = value
	case "max_tokens", "max_completion_tokens", "max_output_tokens":
		c.MaxOutput = max(c.MaxOutput, number(value))
	case "n":
		c.Answers = max(number(value), 1)
	}
	return false
}

func (c *Call) readStream(value []byte) {
	c.Stream, c.badStream = string(value) == "true", ""
	if !c.Stream && string(value) != "false" && string(value) != "null" {
		c.badStream = strings.ToValidUTF8(string(value[:min(len(value), 20)]), "")
	}
}

// text is the text of a JSON string, or "" for any other value.
func text(value []byte) string {
	switch {
	case value[0] != '"':
		return ""
	case bytes.IndexByte(value, '\\') >= 0:
		return unescaped(value)
	}
	return string(value[1 : len(value)-1])
}

// The functions that follow are not inlined, so that a goroutine which waits for its
// answer has no room for gjson's results on its stack.

//go:noinline
func unescaped(value []byte) string { return gjson.ParseBytes(value).Str }

//go:noinline
func number(value []byte) int64 { return gjson.ParseBytes(value).Int() }

//go:noinline
func includesUsage(options []byte) bool {
	return gjson.GetBytes(options, "include_usage").Type == gjson.True
}

// Inputs is the number of embeddings that a call to the endpoint of embeddings
// asks for: the input is a text, a list of tokens, or a list of texts or of lists
// of tokens. The inputs of a reranking are its documents.
func (c *Call) Inputs() int {
	if len(c.input) == 0 || c.input[0] != '[' {
		return 1
	}
	n, tokens := 0, false
	gjson.Parse(line.View(c.input)).ForEach(func(_, value gjson.Result) bool {
		tokens = value.Type == gjson.Number
		n++
		return !tokens
	})
	if tokens {
		return 1
	}
	return n
}
