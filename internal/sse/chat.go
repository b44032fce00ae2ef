package sse

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

var errNotChat = errors.New("sse: body is not a chat completion: it has no choices")

// AppendChat appends to dst the stream for a finished chat completion: the chat.completion.chunk events and [DONE].
// With includeUsage (stream_options.include_usage in the request) the last chunk before [DONE] has the usage.
//
// The choices are ordered by index. The parts of a message have a fixed order: role, vendor fields, content, refusal,
// annotations, function call, tool calls, audio, finish reason.
//
// AppendChat returns an error and an unmodified dst if body is not a JSON object with a list of choices, or has an error
// instead of choices.
func AppendChat(dst, body []byte, includeUsage bool) ([]byte, error) {
	return appendChunks(dst, body, includeUsage, "chat.completion.chunk", errNotChat, (*chatStream).choice)
}

// appendChunks appends to dst the stream for a finished completion, in chunks of a kind. choice writes a choice.
// malformed is the error for a body that is no completion.
func appendChunks(dst, body []byte, includeUsage bool, kind string, malformed error, choice func(*chatStream, object)) ([]byte, error) {
	parsed, err := parse(body)
	if err != nil {
		return dst, err
	}
	completion := fields(parsed)
	choices := completion.get("choices")
	if !choices.IsArray() || len(list(choices)) == 0 && completion.raw("error") != "null" {
		return dst, malformed
	}
	s := newChatStream(slices.Grow(dst, 2*len(body)), completion, kind, includeUsage)
	s.choices(list(choices), func(o object) { choice(s, o) })
	if usage := completion.raw("usage"); includeUsage && usage != "null" {
		s.event(`[]`, `,"usage":`, usage)
	}
	return append(s.dst, "data: [DONE]\n\n"...), nil
}

// A chatStream writes the chunks of one chat completion, or of one text completion.
type chatStream struct {
	dst    []byte
	head   string // start of every chunk, with the id, the model and other fields of the completion
	vendor string // fields that the API does not define, with a comma before each; "" after the first chunk
	tail   string // `,"usage":null` if the last chunk has the usage
	index  string // index of the current choice, as JSON
}

func newChatStream(dst []byte, completion object, kind string, includeUsage bool) *chatStream {
	s := &chatStream{dst: dst, head: chatHead(completion, kind)}
	// For unknown fields, clients keep the values of the first chunk. "error" is excluded, because some clients end the
	// stream at an error field, even with the value null.
	s.vendor = completion.otherFields("id", "object", "created", "model", "service_tier", "system_fingerprint",
		"choices", "usage", "error")
	if includeUsage {
		s.tail = `,"usage":null`
	}
	return s
}

// chatHead returns the start of every chunk, which is an object of the kind. Every chunk repeats the fields, because some clients use the values of the
// first chunk and some the values of the last chunk.
func chatHead(completion object, kind string) string {
	var b strings.Builder
	b.WriteString(`data: {`)
	if id := completion.raw("id"); id != "null" {
		b.WriteString(`"id":` + id + `,`)
	}
	b.WriteString(`"object":"` + kind + `"`)
	for _, name := range []string{"created", "model", "service_tier", "system_fingerprint"} {
		if value := completion.raw(name); value != "null" {
			b.WriteString(`,"` + name + `":` + value)
		}
	}
	return b.String()
}

// event writes one chunk with the given choices, followed by the tail.
func (s *chatStream) event(choices string, tail ...string) {
	s.dst = appendAll(s.dst, s.head, s.vendor, `,"choices":`, choices)
	s.dst = appendAll(s.dst, tail...)
	s.dst = append(s.dst, "}\n\n"...)
	s.vendor = ""
}

// delta writes a chunk of the current choice. The parts are the JSON between the braces of the delta.
func (s *chatStream) delta(parts ...string) { s.deltaWithLogprobs("null", parts...) }

func (s *chatStream) deltaWithLogprobs(logprobs string, parts ...string) {
	s.dst = appendAll(s.dst, s.head, s.vendor, `,"choices":[{"index":`, s.index, `,"delta":{`)
	s.dst = appendAll(s.dst, parts...)
	s.dst = appendAll(s.dst, `},"logprobs":`, logprobs, `,"finish_reason":null}]`, s.tail, "}\n\n")
	s.vendor = ""
}

// choices writes all choices in the order of the indexes, because some clients number the choices by arrival. write
// writes one choice.
func (s *chatStream) choices(choices []gjson.Result, write func(choice object)) {
	if len(choices) == 0 {
		s.event(`[]`, s.tail)
	}
	slices.SortStableFunc(choices, func(a, b gjson.Result) int {
		return cmp.Compare(a.Get("index").Int(), b.Get("index").Int())
	})
	for position, choice := range choices {
		s.index = number(position)
		if index := choice.Get("index"); index.Type == gjson.Number {
			s.index = index.Raw
		}
		write(fields(choice))
	}
}

func (s *chatStream) choice(choice object) {
	message := fields(choice.get("message"))
	logprobs := fields(choice.get("logprobs"))
	s.role(message)
	s.vendorFields(message)
	s.text("content", message.get("content"), logprobs)
	s.text("refusal", message.get("refusal"), logprobs)
	s.annotations(message.get("annotations"))
	s.functionCall(message.get("function_call"))
	for i, call := range list(message.get("tool_calls")) {
		s.toolCall(number(i), fields(call))
	}
	s.audio(fields(message.get("audio")))
	s.finish(choice, logprobs)
}

// role writes the first chunk of a message. The content is "" if the content of the message is a string, else null.
func (s *chatStream) role(message object) {
	role, content := message.raw("role"), "null"
	if role == "null" {
		role = `"assistant"`
	}
	if message.get("content").Type == gjson.String {
		content = `""`
	}
	s.delta(`"role":`, role, `,"content":`, content, `,"refusal":null`)
}

// vendorFields writes all fields of a message that the API does not define, such as reasoning_content, in one chunk.
// Some clients show both reasoning_content and reasoning if the fields arrive in separate chunks, and some clients keep
// only the last piece of an unknown field.
func (s *chatStream) vendorFields(message object) {
	vendor := message.otherFields("role", "content", "refusal", "annotations", "function_call", "tool_calls", "audio")
	if vendor != "" {
		s.delta(vendor[1:])
	}
}

// text writes the content or the refusal of a message, with the log probabilities of the tokens.
func (s *chatStream) text(name string, value gjson.Result, logprobs object) {
	if value.Type != gjson.String && value.Type != gjson.Null {
		s.delta(`"`, name, `":`, value.Raw)
	}
	for piece, probs := range piecesWithLogprobs(stringContent(value), logprobs.get(name)) {
		chunkProbs := textLogprobs(name, probs)
		if piece == "" {
			s.deltaWithLogprobs(chunkProbs)
			continue
		}
		s.deltaWithLogprobs(chunkProbs, `"`, name, `":"`, piece, `"`)
	}
}

// textLogprobs returns the logprobs object of a chunk of content or refusal.
func textLogprobs(name, probs string) string {
	switch {
	case probs == "":
		return "null"
	case name == "content":
		return `{"content":[` + probs + `],"refusal":null}`
	default:
		return `{"content":null,"refusal":[` + probs + `]}`
	}
}

func (s *chatStream) annotations(annotations gjson.Result) {
	if len(list(annotations)) > 0 {
		s.delta(`"annotations":`, annotations.Raw)
	}
}

func (s *chatStream) functionCall(value gjson.Result) {
	if !value.IsObject() {
		return
	}
	call := fields(value)
	s.delta(`"function_call":`, withoutText(call, "arguments"))
	for piece := range pieces(call.text("arguments")) {
		s.delta(`"function_call":{"arguments":"`, piece, `"}`)
	}
}

// toolCall writes the id, the type and the name of a tool call in the first chunk only, because clients concatenate
// repeated strings, and then the arguments. The index is the position of the call in the list; an index in the body is
// ignored. The chunks with arguments have no type, because some clients start a new call at each type.
func (s *chatStream) toolCall(index string, call object) {
	kind, text := "function", "arguments"
	if call.text("type") == "custom" {
		kind, text = "custom", "input"
	}
	head := call.otherFields("index", kind)
	if call.raw("type") == "null" {
		head += `,"type":"function"`
	}
	function := fields(call.get(kind))
	if function != nil {
		head += `,"` + kind + `":` + withoutText(function, text)
	}
	s.delta(`"tool_calls":[{"index":`, index, head, `}]`)
	for piece := range pieces(function.text(text)) {
		s.delta(`"tool_calls":[{"index":`, index, `,"`, kind, `":{"`, text, `":"`, piece, `"}}]`)
	}
}

// withoutText returns a call with an empty string for the named field. The text of the field follows in later chunks.
func withoutText(call object, name string) string {
	if value := call.get(name); value.Type == gjson.String || value.Type == gjson.Null {
		return call.withValues(map[string]string{name: `""`})
	}
	return call.withValues(nil)
}

// audio writes the id and the transcript, then the data, then the expiration time.
func (s *chatStream) audio(audio object) {
	head := strings.TrimPrefix(audio.otherFields("transcript", "data", "expires_at"), ",")
	separator := ","
	if head == "" {
		separator = ""
	}
	for piece := range pieces(audio.text("transcript")) {
		s.delta(`"audio":{`, head, separator, `"transcript":"`, piece, `"}`)
		head, separator = "", ""
	}
	if head != "" {
		s.delta(`"audio":{`, head, `}`)
	}
	for piece := range pieces(audio.text("data")) {
		s.delta(`"audio":{"data":"`, piece, `"}`)
	}
	if expires := audio.raw("expires_at"); expires != "null" {
		s.delta(`"audio":{"expires_at":`, expires, `}`)
	}
}

// finish writes the last chunk of a choice, with the finish reason and the fields that the API does not define. The
// finish reason must come last, because older clients drop the reason when another chunk of the choice follows.
func (s *chatStream) finish(choice, logprobs object) {
	probs := "null"
	if vendor := logprobs.otherFields("content", "refusal"); vendor != "" {
		probs = `{"content":null,"refusal":null` + vendor + `}`
	}
	vendor := choice.otherFields("index", "message", "logprobs", "finish_reason")
	s.event(`[{"index":`+s.index+`,"delta":{},"logprobs":`+probs+
		`,"finish_reason":`+choice.raw("finish_reason")+vendor+`}]`, s.tail)
}
