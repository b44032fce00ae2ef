package sse

import (
	"iter"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// pieceSize is the most bytes of a string's JSON, and of a list of log probabilities, that go into one event.
// It leaves a line ample room below 64 KiB. Being a multiple of four, it also leaves base64 decodable piece by piece.
const pieceSize = 8 << 10

// inside returns what stands between the quotes of a JSON string, escapes and all; "" if value is no string.
func inside(value gjson.Result) string {
	if value.Type != gjson.String {
		return ""
	}
	return value.Raw[1 : len(value.Raw)-1]
}

// pieces cuts the inside of a JSON string into pieces of at most pieceSize. Joined, they are the text again.
// An empty text has none.
func pieces(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for text != "" {
			end := cut(text, pieceSize)
			if !yield(text[:end]) {
				return
			}
			text = text[end:]
		}
	}
}

// piecesWithLogprobs is pieces with the log probabilities of each piece's tokens beside it, as the inside of a JSON array.
// Which text belongs to which token is told from the tokens' lengths; where a token is not written
// like the text it stands for (half a character, say), a piece may be off by some characters or empty.
func piecesWithLogprobs(text string, logprobs gjson.Result) iter.Seq2[string, string] {
	return func(yield func(text, logprobs string) bool) {
		for group := range logprobGroups(logprobs) {
			end := cut(text, min(group.textSize, pieceSize))
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

// A logprobGroup is some consecutive log probabilities.
type logprobGroup struct {
	raw      string // JSON array elements, without the brackets
	textSize int    // how long their tokens are, as JSON
}

// logprobGroups cuts a list of log probabilities into groups of about pieceSize. What is no list has none.
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
			textSize += len(inside(element.Get("token")))
		}
		flush()
	}
}

// list returns the elements of an array, none for any other value.
func list(value gjson.Result) []gjson.Result {
	if !value.IsArray() {
		return nil
	}
	return value.Array()
}

// cut returns the length of the longest beginning of text, the inside of a JSON string, that is at most limit bytes
// and does not end inside a character.
func cut(text string, limit int) int {
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

// characterSize returns the length of the first character of text: a rune, an escape, or the two
// escapes of a surrogate pair.
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

// isSurrogate reports whether text begins with the escape of a surrogate whose third-last digit is among kinds.
func isSurrogate(text, kinds string) bool {
	return len(text) >= len(`\uD83D`) && text[0] == '\\' && text[1] == 'u' &&
		(text[2] == 'd' || text[2] == 'D') && strings.IndexByte(kinds, text[3]) >= 0
}
