package line

import "bytes"

// separators are the characters at which some programs divide a text into lines,
// beside the line break, and their escapes. Valid JSON has the separators in
// strings only.
var separators = []struct{ char, escape []byte }{
	{[]byte("\u2028"), []byte(`\u2028`)}, {[]byte("\u2029"), []byte(`\u2029`)}, {[]byte("\u0085"), []byte(`\u0085`)},
}

// OneLine returns body, valid JSON, as one line: without raw line breaks, and with
// other line separators escaped. OneLine returns body unchanged if body has none.
// Valid JSON has raw line breaks only between tokens, so the tokens stay the same.
func OneLine(body []byte) []byte {
	if bytes.IndexByte(body, '\n') >= 0 || bytes.IndexByte(body, '\r') >= 0 {
		out := make([]byte, 0, len(body))
		for _, c := range body {
			if c != '\n' && c != '\r' {
				out = append(out, c)
			}
		}
		body = out
	}
	for _, s := range separators {
		if bytes.Contains(body, s.char) {
			body = bytes.ReplaceAll(body, s.char, s.escape)
		}
	}
	return body
}

// HasLoneSurrogate reports whether a string in valid JSON has the escape of one
// half of a surrogate pair without the other half. Many JSON parsers refuse that.
func HasLoneSurrogate(b []byte) bool {
	for {
		i := bytes.IndexByte(b, '\\')
		if i < 0 || i+1 >= len(b) {
			return false
		}
		b = b[i:]
		length := len(`\n`)
		switch halfOf(b) {
		case lowHalf:
			return true
		case highHalf:
			if halfOf(b[len(`\ud800`):]) != lowHalf {
				return true
			}
			length = len(`\ud800\udc00`)
		case noHalf:
		}
		b = b[length:]
	}
}

// A half says which half of a surrogate pair an escape is.
type half int

const (
	noHalf half = iota
	highHalf
	lowHalf
)

// halfOf returns which half of a surrogate pair the escape is that b begins with.
func halfOf(b []byte) half {
	if len(b) < len(`\ud800`) || b[0] != '\\' || b[1] != 'u' || b[2] != 'd' && b[2] != 'D' {
		return noHalf
	}
	switch b[3] {
	case '8', '9', 'a', 'A', 'b', 'B':
		return highHalf
	case 'c', 'C', 'd', 'D', 'e', 'E', 'f', 'F':
		return lowHalf
	}
	return noHalf
}
