// Package usage reads the token counts in the answers of chat completions, of the
// Responses API and of embeddings: in a complete body with Of, in a body that
// comes in pieces, such as a stream of events, with a Scanner.
package usage

import (
	"bytes"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/line"
)

// Tokens is the number of tokens of an answer.
type Tokens struct {
	Input  int64 // includes Cached
	Cached int64 // input that the provider's cache had
	Output int64
}

// Of reads the token counts of a complete body.
func Of(body []byte) Tokens {
	var s Scanner
	s.Scan(body) // faster than a parser, in particular for embeddings
	if s.Total == 0 {
		s.Tokens, _, _ = tokensOf(gjson.GetBytes(body, "usage"))
	}
	return s.Tokens
}

// tokensOf reads a usage object. Chat completions and embeddings name the counts
// prompt_tokens and completion_tokens; the Responses API names the counts
// input_tokens and output_tokens. known is true if the object names its total.
func tokensOf(object gjson.Result) (t Tokens, total int64, known bool) {
	if !object.IsObject() {
		return t, 0, false
	}
	object.ForEach(func(name, value gjson.Result) bool {
		switch name.Str {
		case "prompt_tokens", "input_tokens":
			t.Input = max(value.Int(), t.Input)
		case "completion_tokens", "output_tokens":
			t.Output = max(value.Int(), t.Output)
		case "prompt_tokens_details", "input_tokens_details":
			t.Cached = max(value.Get("cached_tokens").Int(), t.Cached)
		case "prompt_cache_hit_tokens":
			t.Cached = max(value.Int(), t.Cached)
		case "total_tokens":
			total, known = value.Int(), true
		}
		return true
	})
	if t.Input == 0 && t.Output == 0 {
		t.Input = total // of embeddings and rerankings at Voyage, which names the total alone
	}
	t.Cached = min(t.Cached, t.Input)
	return t, total, known
}

// A Scanner reads a body that comes in pieces. The last usage object counts,
// because some providers send a running total in every event of a stream. The
// memory of a Scanner is bounded. The zero Scanner is ready for use. A Scanner is
// not safe for concurrent use.
type Scanner struct {
	Tokens

	Total int64 // all tokens, as the provider says
	Names *Names

	usage finder
}

// Names are the names in a body.
type Names struct {
	Tier  string // the last "service_tier"
	Model string // the first "model"

	tier, model finder
}

// Scan processes the next piece of the body. The names are read unless s.Names is
// nil.
func (s *Scanner) Scan(b []byte) {
	s.usage.scan(b, `"usage"`, func(value []byte) {
		if t, total, known := tokensOf(gjson.Parse(line.View(value))); known {
			s.Tokens, s.Total = t, total
		}
	})
	if s.Names != nil {
		s.Names.scan(b)
	}
}

func (n *Names) scan(b []byte) {
	n.tier.scan(b, `"service_tier"`, func(value []byte) {
		if tier := gjson.ParseBytes(value); tier.Type == gjson.String {
			n.Tier = tier.String()
		}
	})
	if n.Model != "" {
		return
	}
	n.model.scan(b, `"model"`, func(value []byte) {
		if model := gjson.ParseBytes(value); n.Model == "" && model.Type == gjson.String {
			n.Model = model.String()
		}
	})
}

// Tier returns the "service_tier" of a complete body, "" without one. A member of that
// name in another object, such as the caller's metadata, does not count.
func Tier(body []byte) string { return gjson.GetBytes(body, "service_tier").Str }

// Model returns the first "model" of a complete body, "" without one.
func Model(body []byte) string {
	const key = `"model"`
	for {
		i := bytes.Index(body, []byte(key))
		if i < 0 {
			return ""
		}
		body = body[i+len(key):]
		if value, _ := firstValue(body); len(value) > 0 && value[0] == '"' {
			return gjson.ParseBytes(value).String()
		}
	}
}

// A finder finds the values of a key in a body that comes in pieces.
type finder struct {
	pending []byte // the incomplete start of a possible member
}

// maxValue is the size of the longest member that is read, in bytes.
const maxValue = 2 << 10

// scan processes the next piece of the body, and calls found for each value of
// the key that is an object or a string, in the order of the body. The key has its
// quotes. Inside a JSON string the quotes would be escaped, so the key cannot match
// text.
func (f *finder) scan(b []byte, key string, found func(value []byte)) {
	if len(f.pending) > 0 {
		joined := slices.Concat(f.pending, b[:min(len(b), maxValue)])
		f.pending = nil
		f.search(joined[:min(len(joined), maxValue+len(key))], key, found)
		if len(f.pending) > 0 && len(joined) < maxValue {
			return // all of b is part of pending
		}
		f.pending = nil
	}
	f.search(b, key, found)
}

// search calls found for the values in b, and saves the incomplete start of a
// member at the end of b in pending.
func (f *finder) search(b []byte, key string, found func(value []byte)) {
	for {
		i := bytes.Index(b, []byte(key))
		if i < 0 {
			break
		}
		b = b[i:]
		value, complete := firstValue(b[len(key):])
		if !complete && len(b) < maxValue {
			f.pending = bytes.Clone(b)
			return
		}
		if len(value) > 0 {
			found(value)
		}
		b = b[len(key):]
	}
	for n := min(len(key)-1, len(b)); n > 0; n-- {
		if bytes.HasSuffix(b, []byte(key[:n])) {
			f.pending = []byte(key[:n])
			return
		}
	}
}

// firstValue returns the object or string at the start of b, where b follows a
// key. The value is nil if it is neither. complete is false if b ends before the
// end of the value.
func firstValue(b []byte) (value []byte, complete bool) {
	b = bytes.TrimLeft(b, ": \t\r\n")
	switch {
	case len(b) == 0:
		return nil, false
	case b[0] == '"':
		if end := bytes.IndexByte(b[1:], '"'); end >= 0 { // no tier and no model has an escaped quote
			return b[:end+2], true
		}
		return nil, false
	case b[0] != '{':
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
