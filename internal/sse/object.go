package sse

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

var errNotObject = errors.New("sse: body is not a JSON object")

var lineBreaks = strings.NewReplacer("\n", "", "\r", "")

// parse checks that body is a JSON object, and returns the object without the line breaks between tokens.
// (Valid JSON has no line breaks inside strings.) encoding/json validates the body, because gjson's validation overflows
// the stack, which ends the process, if the nesting is very deep; encoding/json limits the depth.
func parse(body []byte) (gjson.Result, error) {
	if !json.Valid(body) {
		return gjson.Result{}, errNotObject
	}
	parsed := gjson.Parse(lineBreaks.Replace(string(body)))
	if !parsed.IsObject() {
		return gjson.Result{}, errNotObject
	}
	parsed.Raw = strings.TrimRight(parsed.Raw, " \t")
	return parsed, nil
}

// An object is a parsed JSON object: the fields in the order of the body, with raw values. All methods accept a nil
// object, which has no fields.
type object []field

type field struct {
	name  string // decoded name
	raw   string // name as JSON
	value gjson.Result
}

// fields returns the fields of a JSON object. If value is not an object, fields returns nil, so that callers need no
// special case for a missing object.
func fields(value gjson.Result) object {
	if !value.IsObject() {
		return nil
	}
	var o object
	value.ForEach(func(key, value gjson.Result) bool {
		o = append(o, field{name: key.Str, raw: key.Raw, value: value})
		return true
	})
	return o
}

// get returns the value of the named field. If the field is absent, the method Exists of the result returns false. If a
// name is repeated, the last field counts, as in nearly every JSON decoder.
func (o object) get(name string) gjson.Result {
	for _, f := range slices.Backward(o) {
		if f.name == name {
			return f.value
		}
	}
	return gjson.Result{}
}

// raw returns the value of the named field as JSON, or "null" if the field is absent.
func (o object) raw(name string) string {
	if value := o.get(name); value.Exists() {
		return value.Raw
	}
	return "null"
}

// text returns the bytes between the quotes of the named string, with escapes; "" if the field is not a string.
func (o object) text(name string) string { return stringContent(o.get(name)) }

// otherFields returns all fields except the named fields and nulls, as JSON with a comma before each field.
func (o object) otherFields(except ...string) string {
	var b strings.Builder
	for _, f := range o {
		if f.value.Type == gjson.Null || slices.Contains(except, f.name) {
			continue
		}
		b.WriteString(",")
		b.WriteString(f.raw)
		b.WriteString(":")
		b.WriteString(f.value.Raw)
	}
	return b.String()
}

// withValues returns the object as JSON, with the given values for the fields that the object has. Absent fields are not
// added.
func (o object) withValues(values map[string]string) string {
	var b strings.Builder
	b.WriteString("{")
	for i, f := range o {
		if i > 0 {
			b.WriteString(",")
		}
		b.WriteString(f.raw)
		b.WriteString(":")
		if value, ok := values[f.name]; ok {
			b.WriteString(value)
		} else {
			b.WriteString(f.value.Raw)
		}
	}
	b.WriteString("}")
	return b.String()
}
