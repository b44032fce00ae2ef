package requestbody

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/autobatcher/autobatcher/internal/line"
)

// whyInvalid says what is wrong with a body that is not a JSON object in UTF-8. The
// position of a fault is counted from 1, in bytes.
func whyInvalid(body []byte) string {
	if !utf8.Valid(body) {
		if bytes.HasPrefix(body, []byte("\xff\xfe")) || bytes.HasPrefix(body, []byte("\xfe\xff")) {
			return "the request body is UTF-16; send UTF-8"
		}
		return fmt.Sprintf("the request body is not valid UTF-8: byte %d", invalidByte(body))
	}
	text := bytes.TrimLeft(body, " \t\r\n")
	switch {
	case len(text) == 0:
		return "the request body is empty; send a JSON object"
	case bytes.HasPrefix(text, []byte("\ufeff")):
		return "the request body begins with a byte order mark (U+FEFF), which JSON does not allow; send UTF-8 without a byte order mark"
	case !line.Valid(body):
		return "the request body is not valid JSON: " + syntaxError(body)
	}
	return "the request body is valid JSON, but not a JSON object"
}

// invalidByte is the position of the first byte that is not UTF-8.
func invalidByte(body []byte) int {
	for i := 0; i < len(body); {
		r, size := utf8.DecodeRune(body[i:])
		if r == utf8.RuneError && size == 1 {
			return i + 1
		}
		i += size
	}
	return len(body)
}

// notNumbers are values that some languages write as numbers.
var notNumbers = []string{"-NaN", "NaN", "nan", "-Infinity", "Infinity"}

// syntaxError describes the first fault of a body that is not valid JSON.
func syntaxError(body []byte) string {
	var value json.RawMessage
	var fault *json.SyntaxError
	if err := json.Unmarshal(body, &value); !errors.As(err, &fault) {
		return "the value cannot be read"
	}
	at := int(fault.Offset) - 1 // of the byte that is wrong
	for _, name := range notNumbers {
		for start := max(at-1, 0); start <= at; start++ {
			if bytes.HasPrefix(body[start:], []byte(name)) {
				return fmt.Sprintf("%s at byte %d is not a JSON number; send null, or a finite number", name, start+1)
			}
		}
	}
	if at+1 >= len(body) && fault.Error() == "unexpected end of JSON input" {
		return fmt.Sprintf("the body ends after %d bytes, before the end of the object", len(body))
	}
	return fmt.Sprintf("%s, at byte %d", fault.Error(), at+1)
}
