// Package sse turns a finished response body into the stream of server-sent events that the provider would have sent.
//
// A caller with "stream": true expects an event stream, but a batch returns one finished body.
// [AppendChat], [AppendCompletion] and [AppendResponse] convert such a body to the complete stream; [Append] chooses by
// the [Format]. [AppendChatError] and [AppendResponseError] write the event for a failure after the status code was sent.
//
// The files: sse.go holds the formats and the error events, chat.go the chat completions, completion.go the text
// completions, response.go the Responses API, object.go reads JSON objects, split.go splits long strings.
//
// # Preserved bytes
//
// Values are copied from the body byte for byte: numbers, escapes and unknown fields are not decoded and encoded again.
// There are two exceptions. Line breaks between tokens are removed, because the data of an event is one line.
// Long strings are split into pieces of about 8 KiB that end between two characters.
// In a stream, null and an absent field have the same meaning, so nulls are omitted where the API does not require a null.
//
// # Line length
//
// Some clients cannot read a line of 64 KiB or more. Lines of a chat stream are shorter, unless one of these values is
// longer, which cannot be split: model reasoning and other vendor fields, annotations, and tool calls whose arguments
// are not a string. (For such a field clients keep only the latest piece, or cannot join two pieces.)
// In a Responses stream only the delta events are short: the API repeats whole texts, items and the response
// in the final events.
//
// # Concurrency
//
// All functions are pure and safe for concurrent use. No function modifies body. dst is modified only by appending.
package sse

import (
	"errors"
	"strconv"

	"github.com/tidwall/gjson"
)

// A Format is the form of the streams of an endpoint.
type Format int

// The formats.
const (
	None       Format = iota // the endpoint has no stream that can be made from a finished answer
	Chat                     // chunks of a chat completion
	Completion               // chunks of a text completion
	Response                 // events of the Responses API
)

var errNoFormat = errors.New("sse: the endpoint has no streams")

// Append appends to dst the stream for a finished answer in the format f, as [AppendChat], [AppendCompletion] and
// [AppendResponse] do. The format None is an error.
func Append(dst, body []byte, f Format, includeUsage bool) ([]byte, error) {
	switch f {
	case Chat:
		return AppendChat(dst, body, includeUsage)
	case Completion:
		return AppendCompletion(dst, body, includeUsage)
	case Response:
		return AppendResponse(dst, body)
	case None:
	}
	return dst, errNoFormat
}

// AppendChatError appends to dst the error event of a stream of a chat or text completion, for a failure after the headers were sent.
// object is the error object with message, type, param and code. If object is not a JSON object, AppendChatError
// makes an error object with the bytes as the message.
//
// The caller should break the connection afterwards, because some clients take a clean end for a success even after
// the error event.
func AppendChatError(dst, object []byte) []byte {
	dst = append(dst, `data: {"error":`...)
	dst = appendErrorObject(dst, object)
	return append(dst, "}\n\n"...)
}

// AppendResponseError is [AppendChatError] for the Responses API. The event has the number 0, so only comments may
// come before the event.
//
// The error is nested, in contrast to the API's reference: clients report a nested error as a failure, but pass a flat
// error on as an ordinary event.
func AppendResponseError(dst, object []byte) []byte {
	dst = append(dst, "event: error\ndata: {\"type\":\"error\",\"sequence_number\":0,\"error\":"...)
	dst = appendErrorObject(dst, object)
	return append(dst, "}\n\n"...)
}

func appendErrorObject(dst, object []byte) []byte {
	if parsed, err := parse(object); err == nil {
		return append(dst, parsed.Raw...)
	}
	dst = append(dst, `{"message":`...)
	dst = gjson.AppendJSONString(dst, string(object))
	return append(dst, `,"type":"server_error","param":null,"code":null}`...)
}

// appendAll appends the parts to dst in order.
func appendAll(dst []byte, parts ...string) []byte {
	for _, part := range parts {
		dst = append(dst, part...)
	}
	return dst
}

// quote returns the JSON string with the given content, which must be escaped already.
func quote(content string) string { return `"` + content + `"` }

// number returns n as JSON.
func number(n int) string { return strconv.Itoa(n) }
