package line_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/autobatcher/autobatcher/internal/line"
)

// A line that is not strict JSON costs the answer at most, and never the id: a
// line without an id would be executed again.
func TestParseLenient(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       line.Result
		answered   bool
	}{
		{
			"a byte order mark is no damage",
			"\ufeff" + `{"custom_id":"a","response":{"status_code":200,"body":{}}}`,
			line.Result{ID: "a", Status: 200, Body: []byte(`{}`)},
			true,
		},
		{
			"a raw TAB in a string",
			`{"custom_id":"a","response":{"status_code":200,"request_id":"r","body":{"x":"1` + "\t" + `2"}},"error":null}`,
			line.Result{ID: "a", Status: 200, RequestID: "r", Body: []byte(`{"x":"1` + "\t" + `2"}`), Malformed: true},
			true,
		},
		{
			"an unknown escape",
			`{"response":{"body":{"x":"\$5 and \"}\""},"status_code":200},"custom_id":"a"}`,
			line.Result{ID: "a", Status: 200, Body: []byte(`{"x":"\$5 and \"}\""}`), Malformed: true},
			true,
		},
		{
			"Python's numbers",
			`{"custom_id": "a", "response": {"status_code": 200, "body": {"x": [NaN, -Infinity], "y": 1}}, "error": null}`,
			line.Result{ID: "a", Status: 200, Body: []byte(`{"x": [NaN, -Infinity], "y": 1}`), Malformed: true},
			true,
		},
		{
			"damage outside of the body",
			`{"custom_id":"a","x":NaN,"response":{"status_code":400,"body":{"error":{}}}}`,
			line.Result{ID: "a", Status: 400, Body: []byte(`{"error":{}}`), Malformed: true},
			true,
		},
		{
			"damage, and a body that is a string",
			`{"custom_id":"a","x":NaN,"response":{"status_code":200,"body":"t\"ext"}}`,
			line.Result{ID: "a", Status: 200, Body: []byte(`t"ext`), Text: true, Malformed: true},
			true,
		},
		{
			"a damaged string is not a body",
			`{"custom_id":"a","response":{"status_code":200,"body":"\$"}}`,
			line.Result{ID: "a", Malformed: true},
			false,
		},
		{
			"a damaged status",
			`{"custom_id":"a","response":{"status_code":NaN,"body":{}}}`,
			line.Result{ID: "a", Malformed: true},
			false,
		},
		{
			"a damaged member beside an error",
			`{"custom_id":"a","x":NaN,"response":null,"error":{"code":"batch_expired","message":"late"}}`,
			line.Result{ID: "a", Code: "batch_expired", Message: "late", Malformed: true},
			false,
		},
		{
			"an unescaped quote",
			`{"custom_id":"a","response":{"status_code":200,"body":{"x":"say "hi" {"}}}`,
			line.Result{ID: "a", Malformed: true},
			false,
		},
		{
			"brackets that do not match",
			`{"response":{"status_code":200,"body":{"x":[1}]}},"custom_id":"a"}`,
			line.Result{ID: "a", Malformed: true},
			false,
		},
		{
			"a line that ends early",
			`{"custom_id":"a","response":{"status_code":200,"body":{"x":"\"custom_id\":\"b\"`,
			line.Result{ID: "a", Malformed: true},
			false,
		},
		{
			"more behind the object",
			`{"custom_id":"a","response":{"status_code":200,"body":{}}} x`,
			line.Result{ID: "a", Malformed: true},
			false,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := []byte(tt.text)
			got, err := line.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			clear(text) // the result must not share the memory of the line
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if got.Answered() != tt.answered {
				t.Errorf("answered: %v", got.Answered())
			}
		})
	}
}

func TestWithout(t *testing.T) {
	for _, tt := range []struct{ name, body, want string }{
		{"absent", ` {"model":"m"} `, ` {"model":"m"} `},
		{"empty", `{ }`, `{ }`},
		{"first", `{"stream":true,"model":"m"}`, `{"model":"m"}`},
		{"last", `{"model":"m", "stream" : true }`, `{"model":"m"}`},
		{"alone", `{"stream":true}`, `{}`},
		{"between", "{\n \"a\": 1,\n \"stream\": true,\n \"b\": 2\n}\n", "{\n \"a\": 1,\n \"b\": 2\n}\n"},
		{"each of several", `{"stream":true,"a":1,"stream_options":{"x":[1,"}"]},"stream":false}`, `{"a":1}`},
		{"escaped", `{"\u0073tream":true,"a":1}`, `{"a":1}`},
		{"within values", `{"a":{"stream":true},"b":["stream"]}`, `{"a":{"stream":true},"b":["stream"]}`},
		{"the other bytes stay", `{"x":1e400,"stream":1,"y":"\ud800","x":-0.0}`, `{"x":1e400,"y":"\ud800","x":-0.0}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := line.Without([]byte(tt.body), "stream", "stream_options")
			if string(got) != tt.want || err != nil {
				t.Errorf("got  %s, %v\nwant %s", got, err, tt.want)
			}
		})
	}
	for _, body := range []string{"", "[]", `"a"`, `{"a":1`, `{"a":1} x`, "null", `{"a":NaN}`} {
		if got, err := line.Without([]byte(body), "a"); !errors.Is(err, line.ErrNotObject) {
			t.Errorf("%q: %q, %v", body, got, err)
		}
	}
}

// A body of many members takes time in proportion to its length: removing one
// member after another took hours.
func TestWithoutIsLinear(t *testing.T) {
	body := []byte("{" + strings.Repeat(`"model":"m","stream":true,`, 700_000) + `"n":1}`)
	began := time.Now()
	got, err := line.Without(body, "stream")
	if err != nil || bytes.Contains(got, []byte("stream")) || bytes.Count(got, []byte("model")) != 700_000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

// Without removes what encoding/json sees, and nothing else.
func FuzzWithout(f *testing.F) {
	f.Add([]byte(`{"a":1,"\u0061":[{"a":2}],"b":"a"}`))
	f.Add([]byte(" { \"b\" : 1e400 , \"a\":\"\\\"}\" }\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		got, err := line.Without(body, "a")
		if !bytes.Equal(before, body) {
			t.Fatalf("%q became %q", before, body)
		}
		if err != nil {
			if line.Valid(body) && bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("{")) {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		want := slices.DeleteFunc(topLevel(t, body), func(m [2]string) bool { return m[0] == "a" })
		if diff := cmp.Diff(want, topLevel(t, got), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q became %q (-want +got)\n%s", body, got, diff)
		}
	})
}

// topLevel returns the members of an object in their order.
func topLevel(t *testing.T, body []byte) (all [][2]string) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if _, err := d.Token(); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		all = append(all, [2]string{key.(string), string(value)})
	}
	return all
}
