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

// parse checks that body is a JSON object and returns it without the line breaks between its tokens.
// (Valid JSON has none inside its strings.) It leaves validation to encoding/json, which refuses bodies nested so
// deeply that gjson, checking them, would overflow the stack and end the process.
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

// An object is a JSON object read once: its fields in the order they were written, with their values still raw.
type object []field

type field struct {
	name  string // decoded
	raw   string // as written, with its quotes
	value gjson.Result
}

// fields reads an object. Of anything else it makes an empty one, so that a missing object needs no special case.
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

// get returns the value of the named field, or a Result that does not exist. Of a repeated field the last one counts,
// as it does for nearly every JSON decoder.
func (o object) get(name string) gjson.Result {
	for _, f := range slices.Backward(o) {
		if f.name == name {
			return f.value
		}
	}
	return gjson.Result{}
}

// raw returns the named field's JSON, "null" if there is none.
func (o object) raw(name string) string {
	if value := o.get(name); value.Exists() {
		return value.Raw
	}
	return "null"
}

// text returns what stands between the quotes of the named string, escapes and all; "" if it is no string.
func (o object) text(name string) string { return inside(o.get(name)) }

// rest returns the fields that are neither null nor among the named ones, as JSON with a comma before each.
func (o object) rest(except ...string) string {
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

// replacing returns the object as JSON with other values for some of its fields. Fields it does not have are not added.
func (o object) replacing(values map[string]string) string {
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
