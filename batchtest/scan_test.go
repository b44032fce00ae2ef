package batchtest

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

func FuzzFieldsAgreeWithEncodingJSON(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"a":1}`, ` { "a" : "x\"y\\" , "b":[1,{"c":"]}"}],"d":null } `, `{"a":1,"a":2}`, `{"":{}}`,
		`["a",[1],{"b":2}, -1e3 ,true]`, `[`, `{"a"`, `{"a":`, `{"a":1,`, `{"a":"\\\\\""}`, `{"\u0061":1}`, `{"\b0":0}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		fields := map[string]string{}
		eachField(raw, func(key, value []byte) bool {
			fields[string(key)] = string(value)
			return true
		})
		var items []string
		eachItem(raw, func(value []byte) bool {
			items = append(items, string(value))
			return true
		})
		if !utf8.Valid(raw) {
			return // no JSON: encoding/json replaces bytes in keys
		}
		var object map[string]json.RawMessage
		if json.Unmarshal(raw, &object) == nil && object != nil {
			compare(t, len(object), len(fields))
			for name, value := range object {
				compare(t, string(value), fields[name])
				compareFields(t, raw, object, name)
			}
		}
		var array []json.RawMessage
		if json.Unmarshal(raw, &array) == nil {
			compare(t, len(array), len(items))
			for i := range array {
				compare(t, string(array[i]), items[i])
			}
		}
	})
}

// compareFields removes and replaces a field of raw, and compares the fields with those
// of object.
func compareFields(t *testing.T, raw []byte, object map[string]json.RawMessage, name string) {
	t.Helper()
	for _, tt := range []struct {
		raw  []byte
		want string // the value of the field; empty: there is no such field
	}{{withoutField(raw, name), ""}, {withField(raw, name, "new"), `"new"`}, {withField(withoutField(raw, name), name, 1), "1"}} {
		var got map[string]json.RawMessage
		if err := json.Unmarshal(tt.raw, &got); err != nil {
			t.Fatalf("%s: %v", tt.raw, err)
		}
		compare(t, tt.want, string(got[name]))
		for other, value := range object {
			if other != name {
				compare(t, string(value), string(got[other]))
			}
		}
	}
}

func compare[T comparable](t *testing.T, want, got T) {
	t.Helper()
	if want != got {
		t.Errorf("got %v, want %v", got, want)
	}
}
