package line

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
)

// ErrNotObject is the error of Without for a body that is not a JSON object.
var ErrNotObject = errors.New("not a JSON object")

// Without returns body, a JSON object, without its members of the given names.
// Every occurrence of a member is removed, however its name is escaped. All other
// bytes stay, apart from the commas between the removed members. Without does not
// change body; it returns body itself if nothing was removed. The time is
// proportional to the length of body.
func Without(body []byte, names ...string) ([]byte, error) {
	if !Valid(body) {
		return nil, ErrNotObject
	}
	out := make([]byte, 0, len(body))
	out = append(out, body[:bytes.IndexByte(body, '{')+1]...)
	kept, removed := 0, 0
	rest, ok := members(body, func(m member) {
		if slices.Contains(names, m.name()) {
			removed++
			return
		}
		if kept > 0 {
			out = append(out, ',')
		}
		kept++
		out = append(out, m.raw...)
	})
	switch {
	case !ok:
		return nil, ErrNotObject
	case removed == 0:
		return body, nil
	}
	out = append(out, '}')
	return append(out, rest...), nil
}

// ErrOthersTooLong is the error of Split where the other members have too many bytes.
var ErrOthersTooLong = errors.New("the other members are too long")

// Split divides body, a JSON object, into an object with the members of the given names,
// whose bytes are unchanged, and an object with the other members in a canonical form:
// sorted by name, without space, and without null, which means the same as no member. Of
// several members with the same name the last counts. The other members may have most
// bytes in body.
func Split(body []byte, names []string, most int) (own, others []byte, err error) {
	left, size := make(map[string]json.RawMessage), 0
	if !Members(body, func(name, value []byte) {
		if slices.Contains(names, string(name)) {
			return
		}
		if size += len(name) + len(value); size <= most {
			left[string(name)] = value
		}
	}) {
		return nil, nil, ErrNotObject
	}
	if size > most {
		return nil, nil, ErrOthersTooLong
	}
	if own, err = Without(body, slices.Collect(maps.Keys(left))...); err != nil {
		return nil, nil, err
	}
	maps.DeleteFunc(left, func(_ string, value json.RawMessage) bool { return string(value) == "null" })
	others, err = json.Marshal(left)
	return own, others, err
}

// Set returns body, a valid JSON object, with one member of that name, which has the
// value. The bytes of the other members are unchanged, and so is body.
func Set(body []byte, name string, value any) ([]byte, error) {
	rest, err := Without(body, name)
	if err != nil {
		return nil, err
	}
	return sjson.SetBytes(rest, name, value)
}

// A member is a member of an object.
type member struct {
	key   []byte // with its quotes
	value []byte
	raw   []byte // all bytes between two commas
}

// name is the name of the member without escapes.
func (m member) name() string {
	if bytes.IndexByte(m.key, '\\') < 0 {
		return string(m.key[1 : len(m.key)-1])
	}
	return gjson.ParseBytes(m.key).Str
}

// members calls visit for each member of the object at the beginning of b, and
// returns what follows the object. It reports false if b does not begin with an
// object, or if the object's brackets, quotes, colons and commas do not match;
// visit may have been called for members before the error. What stands within
// values need not be strict JSON.
func members(b []byte, visit func(member)) (rest []byte, ok bool) {
	b = skipSpace(b)
	if len(b) == 0 || b[0] != '{' {
		return nil, false
	}
	b = b[1:]
	if next := skipSpace(b); len(next) > 0 && next[0] == '}' {
		return next[1:], true
	}
	for {
		m, after, ok := cutMember(b)
		if !ok || len(after) == 0 {
			return nil, false
		}
		visit(m)
		switch after[0] {
		case ',':
			b = after[1:]
		case '}':
			return after[1:], true
		default:
			return nil, false
		}
	}
}

// cutMember cuts a member and the space around it from the beginning of b.
func cutMember(b []byte) (m member, rest []byte, ok bool) {
	key := skipSpace(b)
	if len(key) == 0 || key[0] != '"' {
		return m, nil, false
	}
	m.key, rest, ok = cutString(key)
	if rest = skipSpace(rest); !ok || len(rest) == 0 || rest[0] != ':' {
		return m, nil, false
	}
	m.value, rest, ok = cutValue(rest[1:])
	rest = skipSpace(rest)
	m.raw = b[:len(b)-len(rest)]
	return m, rest, ok
}

// cutValue cuts a value from the beginning of b. A string ends at the next quote
// without a backslash, an object or array at the bracket that closes it, and any
// other value before the next comma, closing bracket or space.
func cutValue(b []byte) (value, rest []byte, ok bool) {
	b = skipSpace(b)
	if len(b) == 0 {
		return nil, nil, false
	}
	switch b[0] {
	case '"':
		return cutString(b)
	case '{', '[':
		return cutNested(b)
	}
	n := bytes.IndexAny(b, ",]} \t\r\n")
	if n < 0 {
		n = len(b)
	}
	return b[:n], b[n:], n > 0
}

// cutString cuts a string from the beginning of b, which is a quote.
func cutString(b []byte) (value, rest []byte, ok bool) {
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return b[:i+1], b[i+1:], true
		}
	}
	return nil, nil, false
}

// cutNested cuts an object or array from the beginning of b. A string that is not
// followed by a comma, a colon or a bracket holds a quote that is not escaped: the
// end of the value is not known then.
func cutNested(b []byte) (value, rest []byte, ok bool) {
	var open []byte // the brackets that close what is open
	for i := 0; i < len(b); i++ {
		switch c := b[i]; c {
		case '"':
			text, after, ok := cutString(b[i:])
			if after = skipSpace(after); !ok || len(after) == 0 || strings.IndexByte(",:]}", after[0]) < 0 {
				return nil, nil, false
			}
			i += len(text) - 1
		case '{', '[':
			open = append(open, c+2) // '}' and ']' stand two behind in ASCII
		case '}', ']':
			if open[len(open)-1] != c {
				return nil, nil, false
			}
			if open = open[:len(open)-1]; len(open) == 0 {
				return b[:i+1], b[i+1:], true
			}
		}
	}
	return nil, nil, false
}

func skipSpace(b []byte) []byte { return bytes.TrimLeft(b, " \t\r\n") }

var bom = []byte("\ufeff")

// trimBOM removes the byte order mark that some programs write before the first
// line.
func trimBOM(b []byte) []byte { return bytes.TrimPrefix(b, bom) }

// parseLenient reads a line that is not strict JSON, such as a line with a raw TAB
// in a string, an escape that JSON does not know, or NaN. If the brackets and
// quotes of the line match, the members of the line are cut out as they stand.
// Otherwise only the id is read.
func parseLenient(b []byte) (Result, error) {
	var id string
	var response, failure []byte
	rest, ok := members(b, func(m member) {
		switch m.name() {
		case "custom_id":
			id = text(m.value)
		case "response":
			response = m.value
		case "error":
			failure = m.value
		}
	})
	if !ok || len(skipSpace(rest)) > 0 {
		return parseID(b)
	}
	if id == "" {
		return Result{}, ErrMalformed
	}
	r := Result{ID: id, Malformed: true}
	r.readLenientResponse(response)
	if (r.Status == 0 || len(r.Body) == 0) && Valid(failure) {
		r.readError(gjson.ParseBytes(failure))
	}
	return r, nil
}

// readLenientResponse reads the status and the body of a response. Neither is
// kept without the other.
func (r *Result) readLenientResponse(response []byte) {
	var status, body []byte
	if _, ok := members(response, func(m member) {
		switch m.name() {
		case "status_code":
			status = m.value
		case "request_id":
			r.RequestID = text(m.value)
		case "body":
			body = m.value
		}
	}); !ok || !Valid(status) {
		return
	}
	code := httpStatus(gjson.ParseBytes(status))
	switch {
	case code == 0 || len(body) == 0:
	case Valid(body):
		r.Status = code
		r.setBody(gjson.ParseBytes(body))
	case body[0] == '{' || body[0] == '[':
		r.Status, r.Body = code, bytes.Clone(body)
	}
}

// text is the text of a JSON string, or empty for any other value.
func text(value []byte) string {
	if !Valid(value) {
		return ""
	}
	return strings.Clone(gjson.ParseBytes(value).Str)
}

// namedID matches a custom_id whose quotes are not escaped, as they would be
// within a string.
var namedID = regexp.MustCompile(`(?:^|[^\\])"custom_id"\s*:\s*"([\x20\x21\x23-\x5b\x5d-\x7e]{1,64})"`)

// parseID reads the id of a damaged line. A line with two ids has no readable id.
func parseID(b []byte) (Result, error) {
	found := namedID.FindAllSubmatch(b, 2)
	if len(found) != 1 {
		return Result{}, ErrMalformed
	}
	return Result{ID: string(found[0][1]), Malformed: true}, nil
}
