package sse

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

var errNotChat = errors.New("sse: body is not a chat completion: it has no choices")

// AppendChat appends to dst the stream for a finished chat completion: its chat.completion.chunk events and [DONE].
// With includeUsage (stream_options.include_usage in the request) one more chunk before [DONE] carries the usage.
//
// Choices follow one another by index. The parts of a message come in a fixed order: role, vendor fields, content, refusal,
// annotations, function call, tool calls, audio, finish reason.
//
// The error tells that body is no JSON object with a list of choices, or has an error instead of choices; dst is then
// returned as it was.
func AppendChat(dst, body []byte, includeUsage bool) ([]byte, error) {
	parsed, err := parse(body)
	if err != nil {
		return dst, err
	}
	completion := fields(parsed)
	choices := completion.get("choices")
	if !choices.IsArray() || len(list(choices)) == 0 && completion.raw("error") != "null" {
		return dst, errNotChat
	}
	s := newChatStream(slices.Grow(dst, 2*len(body)), completion, includeUsage)
	s.choices(list(choices))
	if usage := completion.raw("usage"); includeUsage && usage != "null" {
		s.event(`[]`, `,"usage":`, usage)
	}
	return append(s.dst, "data: [DONE]\n\n"...), nil
}

// A chatStream writes the chunks of one chat completion.
type chatStream struct {
	dst    []byte
	head   string // what every chunk begins with: the completion's id, model and so on
	vendor string // other fields of the completion, for the first chunk only
	tail   string // `,"usage":null` if usage will follow
	index  string // of the choice being written
}

func newChatStream(dst []byte, completion object, includeUsage bool) *chatStream {
	s := &chatStream{dst: dst, head: chatHead(completion)}
	// Clients keep what the first chunk says of fields they do not know. An error, even null, would end the stream.
	s.vendor = completion.rest("id", "object", "created", "model", "service_tier", "system_fingerprint",
		"choices", "usage", "error")
	if includeUsage {
		s.tail = `,"usage":null`
	}
	return s
}

// chatHead returns the beginning of every chunk. Some clients believe the first chunk's, some the last one's.
func chatHead(completion object) string {
	var b strings.Builder
	b.WriteString(`data: {`)
	if id := completion.raw("id"); id != "null" {
		b.WriteString(`"id":` + id + `,`)
	}
	b.WriteString(`"object":"chat.completion.chunk"`)
	for _, name := range []string{"created", "model", "service_tier", "system_fingerprint"} {
		if value := completion.raw(name); value != "null" {
			b.WriteString(`,"` + name + `":` + value)
		}
	}
	return b.String()
}

// event writes one chunk, given its choices and what comes after them.
func (s *chatStream) event(choices string, tail ...string) {
	s.dst = appendAll(s.dst, s.head, s.vendor, `,"choices":`, choices)
	s.dst = appendAll(s.dst, tail...)
	s.dst = append(s.dst, "}\n\n"...)
	s.vendor = ""
}

// delta writes a chunk of the current choice, given the JSON between the braces of its delta.
func (s *chatStream) delta(parts ...string) { s.deltaWithLogprobs("null", parts...) }

func (s *chatStream) deltaWithLogprobs(logprobs string, parts ...string) {
	s.dst = appendAll(s.dst, s.head, s.vendor, `,"choices":[{"index":`, s.index, `,"delta":{`)
	s.dst = appendAll(s.dst, parts...)
	s.dst = appendAll(s.dst, `},"logprobs":`, logprobs, `,"finish_reason":null}]`, s.tail, "}\n\n")
	s.vendor = ""
}

// choices writes all choices. Some clients number them by arrival, so they must come in the order of their index.
func (s *chatStream) choices(choices []gjson.Result) {
	if len(choices) == 0 {
		s.event(`[]`, s.tail)
	}
	slices.SortStableFunc(choices, func(a, b gjson.Result) int {
		return cmp.Compare(a.Get("index").Int(), b.Get("index").Int())
	})
	for position, choice := range choices {
		s.choice(position, fields(choice))
	}
}

func (s *chatStream) choice(position int, choice object) {
	s.index = number(position)
	if index := choice.get("index"); index.Type == gjson.Number {
		s.index = index.Raw
	}
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

// role writes the chunk that opens a message. Its content is the first piece, "", unless none will follow.
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

// vendorFields writes all fields of a message which the API does not define, such as reasoning_content, in one chunk:
// clients that show reasoning_content or reasoning show both when they come apart, and some let the
// last piece of a field they do not know replace the ones before.
func (s *chatStream) vendorFields(message object) {
	rest := message.rest("role", "content", "refusal", "annotations", "function_call", "tool_calls", "audio")
	if rest != "" {
		s.delta(rest[1:])
	}
}

// text writes the content or the refusal of a message, with the log probabilities that belong to it.
func (s *chatStream) text(name string, value gjson.Result, logprobs object) {
	if value.Type != gjson.String && value.Type != gjson.Null {
		s.delta(`"`, name, `":`, value.Raw)
	}
	for piece, probs := range piecesWithLogprobs(inside(value), logprobs.get(name)) {
		chunkProbs := textLogprobs(name, probs)
		if piece == "" {
			s.deltaWithLogprobs(chunkProbs)
			continue
		}
		s.deltaWithLogprobs(chunkProbs, `"`, name, `":"`, piece, `"`)
	}
}

// textLogprobs returns the logprobs of a chunk of content or refusal.
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

// toolCall writes a call's id, type and name once, since clients may join what comes twice, then its arguments.
// The index is the call's position, whatever the body says. The pieces have no type: to some clients it begins a new call.
func (s *chatStream) toolCall(index string, call object) {
	kind, text := "function", "arguments"
	if call.text("type") == "custom" {
		kind, text = "custom", "input"
	}
	head := call.rest("index", kind)
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

// withoutText returns a call with the named string emptied, because its text comes in the next chunks.
func withoutText(call object, name string) string {
	if value := call.get(name); value.Type == gjson.String || value.Type == gjson.Null {
		return call.replacing(map[string]string{name: `""`})
	}
	return call.replacing(nil)
}

// audio writes the id and transcript, then the data, then when it expires.
func (s *chatStream) audio(audio object) {
	head := strings.TrimPrefix(audio.rest("transcript", "data", "expires_at"), ",")
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

// finish writes a choice's last chunk: its finish reason, which older clients forget when another chunk
// follows, and the fields the API does not define.
func (s *chatStream) finish(choice, logprobs object) {
	probs := "null"
	if rest := logprobs.rest("content", "refusal"); rest != "" {
		probs = `{"content":null,"refusal":null` + rest + `}`
	}
	rest := choice.rest("index", "message", "logprobs", "finish_reason")
	s.event(`[{"index":`+s.index+`,"delta":{},"logprobs":`+probs+
		`,"finish_reason":`+choice.raw("finish_reason")+rest+`}]`, s.tail)
}
