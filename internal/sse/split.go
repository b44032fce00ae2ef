package sse

import (
	"iter"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// pieceSize is the maximum size, in bytes, of the part of a JSON string or of a list of log probabilities in one event.
// With pieceSize, a line stays well below 64 KiB. pieceSize is a multiple of four, so that each piece of base64 text can
// be decoded separately.
const pieceSize = 8 << 10

// stringContent returns the bytes between the quotes of a JSON string, with escapes; "" if value is not a string.
func stringContent(value gjson.Result) string {
	if value.Type != gjson.String {
		return ""
	}
	return value.Raw[1 : len(value.Raw)-1]
}

// pieces splits the content of a JSON string into pieces of at most pieceSize bytes. The concatenation of the pieces is
// the text. An empty text has no pieces.
func pieces(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for text != "" {
			end := prefixSize(text, pieceSize)
			if !yield(text[:end]) {
				return
			}
			text = text[end:]
		}
	}
}

// piecesWithLogprobs is pieces with the log probabilities of the tokens in each piece, as the elements of a JSON array.
// The lengths of the tokens determine the piece of text for each token. If a token is written differently from the text
// (a token can be half a character), the boundaries of a piece can be wrong by some characters, or the piece is empty.
func piecesWithLogprobs(text string, logprobs gjson.Result) iter.Seq2[string, string] {
	return func(yield func(text, logprobs string) bool) {
		for group := range logprobGroups(logprobs) {
			end := prefixSize(text, min(group.textSize, pieceSize))
			if !yield(text[:end], group.raw) {
				return
			}
			text = text[end:]
		}
		for piece := range pieces(text) {
			if !yield(piece, "") {
				return
			}
		}
	}
}

// A logprobGroup is a sequence of consecutive log probabilities.
type logprobGroup struct {
	raw      string // JSON array elements, without the brackets
	textSize int    // total length of the tokens, as JSON
}

// logprobGroups splits a list of log probabilities into groups of about pieceSize bytes. There are no groups if
// logprobs is not a list.
func logprobGroups(logprobs gjson.Result) iter.Seq[logprobGroup] {
	return func(yield func(logprobGroup) bool) {
		var elements []string
		var rawSize, textSize int
		flush := func() bool {
			group := logprobGroup{strings.Join(elements, ","), textSize}
			elements, rawSize, textSize = nil, 0, 0
			return group.raw == "" || yield(group)
		}
		for _, element := range list(logprobs) {
			if rawSize+len(element.Raw) > pieceSize && !flush() {
				return
			}
			elements = append(elements, element.Raw)
			rawSize += len(element.Raw) + 1
			textSize += len(stringContent(element.Get("token")))
		}
		flush()
	}
}

// list returns the elements of an array, or nil if value is not an array.
func list(value gjson.Result) []gjson.Result {
	if !value.IsArray() {
		return nil
	}
	return value.Array()
}

// prefixSize returns the length of the longest prefix of text, the content of a JSON string, that has at most limit bytes
// and does not end inside a character.
func prefixSize(text string, limit int) int {
	if len(text) <= limit {
		return len(text)
	}
	end := 0
	for {
		next := end + characterSize(text[end:])
		if next > limit {
			return end
		}
		end = next
	}
}

// characterSize returns the length of the first character of text: a rune, an escape, or a surrogate pair of two escapes.
func characterSize(text string) int {
	switch {
	case text[0] != '\\':
		_, size := utf8.DecodeRuneInString(text)
		return size
	case text[1] != 'u':
		return len(`\n`)
	case isSurrogate(text, "89abAB") && isSurrogate(text[len(`\uD83D`):], "cdefCDEF"):
		return len(`\uD83D\uDE00`)
	default:
		return len(`\u0000`)
	}
}

// isSurrogate reports whether text begins with the escape of a surrogate. digits are the possible second digits of the
// escape: 89ab for a high surrogate, cdef for a low surrogate.
func isSurrogate(text, digits string) bool {
	return len(text) >= len(`\uD83D`) && text[0] == '\\' && text[1] == 'u' &&
		(text[2] == 'd' || text[2] == 'D') && strings.IndexByte(digits, text[3]) >= 0
}
