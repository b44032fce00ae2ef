package proxy

import (
	"bytes"
	"slices"

	"github.com/tidwall/gjson"
)

// Usage is what went through a Proxy since New. Tokens are those that answers
// told of: a stream that was not asked for its usage has none.
type Usage struct {
	PromptTokens, CompletionTokens, TotalTokens int64

	Waiting  int   // calls held now
	Answered int64 // calls answered with a status below 400
	Failed   int64 // calls answered with an error, broken off late, or left by their callers

	BytesIn, BytesOut int64 // of the calls' bodies and of their answers'
}

// A tally finds the usage in an answer that flows past. The last one counts:
// some providers tell of it in every chunk.
type tally struct {
	pending                   []byte // begins with what may be a usage, and breaks off
	prompt, completion, total int64
}

// usageKey can be nothing but the key: inside a string its quotes would be escaped.
const usageKey = `"usage"`

// maxUsage is the longest usage looked at, in bytes.
const maxUsage = 2 << 10

// see looks at the next piece of the answer.
func (t *tally) see(b []byte) {
	if len(t.pending) > 0 {
		joined := slices.Concat(t.pending, b[:min(len(b), maxUsage)])
		t.pending = nil
		t.search(joined[:min(len(joined), maxUsage+len(usageKey))])
		if len(t.pending) > 0 && len(joined) < maxUsage {
			return // b is part of what is pending
		}
		t.pending = nil
	}
	t.search(b)
}

// search notes the usages in b, and keeps what may be the beginning of one.
func (t *tally) search(b []byte) {
	for {
		i := bytes.Index(b, []byte(usageKey))
		if i < 0 {
			break
		}
		b = b[i:]
		object, whole := firstObject(b[len(usageKey):])
		if !whole && len(b) < maxUsage {
			t.pending = bytes.Clone(b)
			return
		}
		t.note(object)
		b = b[len(usageKey):]
	}
	for n := min(len(usageKey)-1, len(b)); n > 0; n-- {
		if bytes.HasSuffix(b, []byte(usageKey[:n])) {
			t.pending = []byte(usageKey[:n])
			return
		}
	}
}

// firstObject is the object that is the value of the key before b. whole is
// false if b breaks off where that could still come.
func firstObject(b []byte) (object []byte, whole bool) {
	b = bytes.TrimLeft(b, ": \t\r\n")
	if len(b) == 0 {
		return nil, false
	}
	if b[0] != '{' {
		return nil, true
	}
	depth := 0
	for i, ch := range b {
		switch ch {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return b[:i+1], true
			}
		}
	}
	return nil, false
}

// note reads a usage. Chat and embeddings say prompt and completion, responses
// input and output.
func (t *tally) note(object []byte) {
	got := gjson.GetManyBytes(object, "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens")
	if !got[4].Exists() {
		return
	}
	t.prompt = got[0].Int() + got[2].Int()
	t.completion = got[1].Int() + got[3].Int()
	t.total = got[4].Int()
}
