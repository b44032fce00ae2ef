// Package sse turns a finished answer into the stream of server-sent events its provider would have sent.
//
// A caller who asked for "stream": true waits for an event stream, but a batch answers with one finished body.
// [AppendChat] and [AppendResponse] write the whole stream for such a body; [AppendChatError] and
// [AppendResponseError] write the event for a failure that comes too late for a status code.
//
// # What is kept
//
// Values are cut out of the body as they were written: numbers, escapes and fields this package has never heard of
// are not decoded and encoded again. Only line breaks between tokens are removed, since an event's data is one line,
// and only long strings are cut, into pieces of about 8 KiB which end between two characters.
// A null means the same as an absent field in a stream, so nulls are left out where the API does not ask for them.
//
// # Line length
//
// Some clients cannot read a line of 64 KiB or more. Chat streams stay below that as long as every value that may not be
// cut does: model reasoning and other vendor fields, annotations, and tool calls whose arguments are not a string.
// (Clients overwrite such a field with the latest piece, or have no way to join two.)
// In a Responses stream only the delta events are short: the API repeats whole texts, items and the response
// in the events that end them.
//
// # Concurrency
//
// All functions are pure and safe for concurrent use. They never modify body, and dst only by appending to it.
package sse

import (
	"strconv"

	"github.com/tidwall/gjson"
)

// AppendChatError appends to dst the event that tells the reader of a chat stream about a failure after the
// stream's headers were sent. The object is the error itself, with its message, type, param and code; anything
// but a JSON object becomes the message of one.
//
// Some clients take a stream that ends normally for a success even after this event, so the connection
// should be aborted next.
func AppendChatError(dst, object []byte) []byte {
	dst = append(dst, `data: {"error":`...)
	dst = appendErrorObject(dst, object)
	return append(dst, "}\n\n"...)
}

// AppendResponseError is [AppendChatError] for the Responses API. It is numbered 0, as the first event of a stream
// which has so far held only comments.
//
// The error is nested, unlike in the API's reference: clients raise on the nested form and
// hand the flat one over as an ordinary event.
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

// appendAll appends the parts to dst, in order.
func appendAll(dst []byte, parts ...string) []byte {
	for _, part := range parts {
		dst = append(dst, part...)
	}
	return dst
}

// quote puts back the quotes around the inside of a JSON string.
func quote(inside string) string { return `"` + inside + `"` }

// number is the JSON for n.
func number(n int) string { return strconv.Itoa(n) }
