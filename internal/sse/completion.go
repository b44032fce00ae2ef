package sse

import (
	"errors"
	"strings"

	"github.com/tidwall/gjson"
)

var errNotCompletion = errors.New("sse: body is not a completion: it has no choices")

// AppendCompletion appends to dst the stream for a finished text completion: the chunks, which are text_completion
// objects, and [DONE]. With includeUsage (stream_options.include_usage in the request) the last chunk before [DONE] has
// the usage.
//
// The choices are ordered by index. Each choice ends with a chunk without text that has the finish reason.
//
// AppendCompletion returns an error and an unmodified dst if body is not a JSON object with a list of choices, or has an
// error instead of choices.
func AppendCompletion(dst, body []byte, includeUsage bool) ([]byte, error) {
	return appendChunks(dst, body, includeUsage, "text_completion", errNotCompletion, (*chatStream).textChoice)
}

// textChoice writes the text of a choice of a text completion, and the last chunk of the choice, with the finish reason
// and the fields that the API does not define.
func (s *chatStream) textChoice(choice object) {
	for piece, logprobs := range textPieces(choice.text("text"), choice.get("logprobs")) {
		s.textChunk(piece, logprobs, "null", "")
	}
	s.textChunk("", "null", choice.raw("finish_reason"), choice.otherFields("index", "text", "logprobs", "finish_reason"))
}

func (s *chatStream) textChunk(text, logprobs, finish, vendor string) {
	s.event(`[{"index":`+s.index+`,"text":"`+text+`","logprobs":`+logprobs+`,"finish_reason":`+finish+vendor+`}]`, s.tail)
}

// textPieces splits the content of the text of a choice into pieces of at most pieceSize bytes, each with the log
// probabilities of its tokens, or "null". The log probabilities of a text completion are lists of equal length, with one
// element for each token; the lengths of the tokens determine the piece of text, as in piecesWithLogprobs.
func textPieces(text string, logprobs gjson.Result) func(yield func(text, logprobs string) bool) {
	return func(yield func(text, logprobs string) bool) {
		lists := newTokenLists(logprobs)
		for lists.rest() > 0 {
			raw, size := lists.next()
			end := prefixSize(text, min(size, pieceSize))
			if !yield(text[:end], raw) {
				return
			}
			text = text[end:]
		}
		for piece := range pieces(text) {
			if !yield(piece, "null") {
				return
			}
		}
	}
}

// tokenLists are the log probabilities of a text completion.
type tokenLists struct {
	names  []string // as JSON
	lists  [][]gjson.Result
	others string // fields that are no list of the tokens, with a comma before each
	at     int    // the next token
	tokens []gjson.Result
}

func newTokenLists(logprobs gjson.Result) *tokenLists {
	l := &tokenLists{}
	all := fields(logprobs)
	l.tokens = list(all.get("tokens"))
	for _, f := range all {
		if elements := list(f.value); f.value.IsArray() && len(elements) == len(l.tokens) {
			l.names, l.lists = append(l.names, f.raw), append(l.lists, elements)
			continue
		}
		l.others += "," + f.raw + ":" + f.value.Raw
	}
	return l
}

func (l *tokenLists) rest() int { return len(l.tokens) - l.at }

// next returns the log probabilities of the next tokens, about pieceSize bytes, and the total length of the tokens as
// JSON.
func (l *tokenLists) next() (raw string, textSize int) {
	begin, size := l.at, 0
	for ; l.at < len(l.tokens); l.at++ {
		n := 0
		for _, elements := range l.lists {
			n += len(elements[l.at].Raw) + 1
		}
		if token := len(stringContent(l.tokens[l.at])); l.at == begin || size+n <= pieceSize && textSize+token <= pieceSize {
			size, textSize = size+n, textSize+token
			continue
		}
		break
	}
	var b strings.Builder
	for i, name := range l.names {
		b.WriteString("," + name + ":[")
		for j, element := range l.lists[i][begin:l.at] {
			if j > 0 {
				b.WriteByte(',')
			}
			b.WriteString(element.Raw)
		}
		b.WriteByte(']')
	}
	return "{" + strings.TrimPrefix(b.String()+l.others, ",") + "}", textSize
}
