package line

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"github.com/tidwall/gjson"
)

// The functions of this file return the index behind what they read, or -1 if b is
// not valid there. They are not recursive, and need little stack: a caller that
// waits keeps the stack that its call once needed, and the text of another program
// decides about the depth.

// maxDepth bounds the nesting of accepted values, as encoding/json does.
const maxDepth = 10_000

// Valid reports whether b is one valid JSON value, nested at most 10,000 deep.
// Strings need not be UTF-8.
func Valid(b []byte) bool { return scanEnd(b, scanValue(b, 0, maxDepth)) }

// Members validates b as Valid does, and calls visit for each member of the object
// in b, in order, with the name without escapes. Value shares memory with b. Members
// returns false if b is not a valid object; visit may have been called for members
// before the error.
func Members(b []byte, visit func(name, value []byte)) bool {
	return scanEnd(b, scanMembers(b, 0, func(name []byte, i int) int {
		end := scanValue(b, i, maxDepth-1)
		if end >= 0 {
			visit(name, b[i:end])
		}
		return end
	}))
}

// scanMembers reads an object, and space before the object. It calls value for each
// member, in order, with the name without escapes: value reads the value of the member,
// which begins at b[i].
func scanMembers(b []byte, i int, value func(name []byte, i int) int) int {
	i = scanSpace(b, i)
	if i == len(b) || b[i] != '{' {
		return -1
	}
	i = scanSpace(b, i+1)
	if i < len(b) && b[i] == '}' {
		return i + 1
	}
	for {
		name := i
		end := scanString(b, name)
		if i = scanColon(b, end); i < 0 || i == len(b) {
			return -1
		}
		if i = value(unquote(b[name:end]), i); i < 0 {
			return -1
		}
		if i = scanSpace(b, i); i == len(b) || b[i] != ',' {
			if i < len(b) && b[i] == '}' {
				return i + 1
			}
			return -1
		}
		i = scanSpace(b, i+1)
	}
}

// unquote returns the text of a JSON string.
func unquote(quoted []byte) []byte {
	text := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(text, '\\') >= 0 {
		return []byte(gjson.ParseBytes(quoted).Str)
	}
	return text
}

// scanEnd reports whether only space follows.
func scanEnd(b []byte, i int) bool { return i >= 0 && scanSpace(b, i) == len(b) }

// scanSpace skips space.
func scanSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// scanColon skips the colon behind a name, and space.
func scanColon(b []byte, i int) int {
	if i < 0 {
		return -1
	}
	if i = scanSpace(b, i); i == len(b) || b[i] != ':' {
		return -1
	}
	return scanSpace(b, i+1)
}

// scanValue reads a value, and space before the value, nested at most limit deep.
func scanValue(b []byte, i, limit int) int {
	var shallow [32]byte
	open := shallow[:0] // the brackets that close what is open
	for {
		if i = scanSpace(b, i); i == len(b) {
			return -1
		}
		switch c := b[i]; c {
		case '{', '[':
			if open = append(open, c+2); len(open) > limit { // '}' and ']' stand two behind in ASCII
				return -1
			}
			i = scanSpace(b, i+1)
			if i < len(b) && b[i] == c+2 {
				break
			}
			if c == '{' {
				i = scanColon(b, scanString(b, i))
			}
			if i < 0 {
				return -1
			}
			continue
		default:
			i = scanScalar(b, i)
		}
		if i, open = scanClosing(b, i, open); i < 0 || len(open) == 0 {
			return i
		}
	}
}

// scanClosing reads the brackets behind a value or an empty bracket, and the comma
// and the name before the next value.
func scanClosing(b []byte, i int, open []byte) (int, []byte) {
	for i >= 0 && len(open) > 0 {
		i = scanSpace(b, i)
		last := open[len(open)-1]
		switch {
		case i == len(b):
			return -1, open
		case b[i] == last:
			open = open[:len(open)-1]
			i++
		case b[i] != ',':
			return -1, open
		case last == '}':
			return scanColon(b, scanString(b, scanSpace(b, i+1))), open
		default:
			return i + 1, open
		}
	}
	return i, open
}

// scanScalar reads a string, a number, true, false or null.
func scanScalar(b []byte, i int) int {
	switch b[i] {
	case '"':
		return scanString(b, i)
	case 't':
		return scanWord(b, i, "true")
	case 'f':
		return scanWord(b, i, "false")
	case 'n':
		return scanWord(b, i, "null")
	}
	return scanNumber(b, i)
}

func scanWord(b []byte, i int, word string) int {
	if len(b)-i < len(word) || string(b[i:i+len(word)]) != word {
		return -1
	}
	return i + len(word)
}

func scanNumber(b []byte, i int) int {
	if b[i] == '-' {
		i++
	}
	begin := i
	i = scanDigits(b, i)
	if i == begin || b[begin] == '0' && i > begin+1 {
		return -1
	}
	if i < len(b) && b[i] == '.' {
		begin = i + 1
		if i = scanDigits(b, begin); i == begin {
			return -1
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		begin = i + 1
		if begin < len(b) && (b[begin] == '+' || b[begin] == '-') {
			begin++
		}
		if i = scanDigits(b, begin); i == begin {
			return -1
		}
	}
	return i
}

func scanDigits(b []byte, i int) int {
	for i < len(b) && b[i] >= '0' && b[i] <= '9' {
		i++
	}
	return i
}

// scanString reads a string.
func scanString(b []byte, i int) int {
	if i >= len(b) || b[i] != '"' {
		return -1
	}
	for i = scanPlain(b, i+1); i < len(b); i = scanPlain(b, i) {
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c != '\\': // a control character
			return -1
		}
		if i = scanEscape(b, i+1); i < 0 {
			return -1
		}
	}
	return -1
}

// scanPlain skips bytes that stand for themselves in a string: all bytes but the
// quote, the backslash and control characters. It reads eight bytes at once.
func scanPlain(b []byte, i int) int {
	const each, high = 0x0101010101010101, 0x8080808080808080
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		quote, backslash := x^'"'*each, x^'\\'*each
		// The highest bit of a byte is set where a subtraction borrows: where x is below
		// a space, or where the others are 0. Above such a byte a bit may be wrong.
		if found := ((x - ' '*each) | (quote - each) | (backslash - each)) &^ x & high; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(b) && b[i] >= ' ' && b[i] != '"' && b[i] != '\\' {
		i++
	}
	return i
}

// scanEscape reads what follows a backslash.
func scanEscape(b []byte, i int) int {
	if i == len(b) {
		return -1
	}
	switch b[i] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 1
	case 'u':
		if len(b)-i <= 4 {
			return -1
		}
		for _, c := range b[i+1 : i+5] {
			if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'f') {
				return -1
			}
		}
		return i + 5
	}
	return -1
}
