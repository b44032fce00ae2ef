package line_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/autobatcher/autobatcher/internal/line"
)

func file(lines ...line.Line) line.File {
	return line.File{Lines: len(lines), At: func(i int) *line.Line { return &lines[i] }}
}

func TestFileIsItsLinesJoined(t *testing.T) {
	for _, lines := range [][]line.Line{
		nil,
		{{ID: "a", URL: "/v1/embeddings", Body: []byte(`{"model":"m"}`)}},
		{
			{ID: "a", URL: "/v1/embeddings", Body: []byte(`{"model":"m","n":1e400}`)},
			{ID: "b", URL: "/v1/responses", Body: []byte(`{}`)},
			{ID: "c", URL: "/v1/chat/completions", Body: bytes.Repeat([]byte(" "), 100_000)},
		},
	} {
		var want [][]byte
		for i := range lines {
			text := lines[i].Append(nil)
			if lines[i].Size() != len(text) {
				t.Errorf("Size = %d, but Append wrote %d bytes", lines[i].Size(), len(text))
			}
			want = append(want, text)
		}
		whole := bytes.Join(want, []byte("\n"))
		f := file(lines...)
		if err := iotest.TestReader(f.NewReader(), whole); err != nil {
			t.Error(err)
		}
		if f.Size() != int64(len(whole)) {
			t.Errorf("File.Size = %d, but it reads as %d bytes", f.Size(), len(whole))
		}
	}
}

// A bare file has lines without a method and a url.
func TestBareFile(t *testing.T) {
	f := file(line.Line{ID: "a", URL: "/v1/embeddings", Body: []byte(`{"input":1}`)}, line.Line{ID: "b", Body: []byte(`{}`)})
	f.Bare = true
	want := `{"custom_id":"a","body":{"input":1}}` + "\n" + `{"custom_id":"b","body":{}}`
	if err := iotest.TestReader(f.NewReader(), []byte(want)); err != nil {
		t.Error(err)
	}
	if f.Size() != int64(len(want)) {
		t.Errorf("File.Size = %d, but it reads as %d bytes", f.Size(), len(want))
	}
}

func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		body, own, others string
		err               error
	}{
		{`{"input":[ "a" ],"model":"m"}`, `{"input":[ "a" ]}`, `{"model":"m"}`, nil},
		{`{"z":1.50,"input":"<","a":{"y": 1,"x": 2},"model":"m"}`, `{"input":"<"}`, `{"a":{"y":1,"x":2},"model":"m","z":1.50}`, nil},
		{`{"model":"n","inp\u0075t":1,"mod\u0065l":"m","n":null}`, `{"inp\u0075t":1}`, `{"model":"m"}`, nil},
		{`{}`, `{}`, `{}`, nil},
		{`{"input":"` + strings.Repeat("x", 200) + `","m":"` + strings.Repeat("x", 97) + `"}`, `{"input":"` + strings.Repeat("x", 200) + `"}`, `{"m":"` + strings.Repeat("x", 97) + `"}`, nil},
		{`{"m":"` + strings.Repeat("x", 98) + `"}`, "", "", line.ErrOthersTooLong},
		{`[]`, "", "", line.ErrNotObject},
	} {
		own, others, err := line.Split([]byte(tt.body), []string{"input"}, 100)
		if string(own) != tt.own || string(others) != tt.others || !errors.Is(err, tt.err) {
			t.Errorf("%s: %s and %s, %v; want %s and %s, %v", tt.body, own, others, err, tt.own, tt.others, tt.err)
		}
	}
}

func TestAppend(t *testing.T) {
	l := line.Line{ID: "id-1", URL: "/v1/chat/completions", Body: []byte(`{"model":"m"}`)}
	want := `{"custom_id":"id-1","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}`
	if got := string(l.Append(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestValid(t *testing.T) {
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, tt := range []struct {
		name, text string
		want       bool
	}{
		{"object", `{"a":1}`, true},
		{"text", `"a"`, true},
		{"empty", ``, false},
		{"two values", `{} {}`, false},
		{"raw line break in a string", "\"a\nb\"", false},
		{"deep", nested(10_000), true},
		{"too deep", nested(10_001), false},
		{"deep enough to end the process", nested(20_000_000), false},
		{"many brackets, but shallow", "[" + strings.Repeat("[],", 20_000) + "[]]", true},
		{"many brackets in a string", `"` + strings.Repeat(`[\"`, 20_000) + `"`, true},
	} {
		if got := line.Valid([]byte(tt.text)); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Strings are read many bytes at once: each byte counts at each place.
func TestValidStrings(t *testing.T) {
	for size := range 100 {
		for at := range size {
			for c, want := range map[byte]bool{'x': true, ' ': true, 0x7f: true, 0x80: true, 0xff: true, 0x1f: false, 0: false, '\\': false, '"': false} {
				text := []byte(`"` + strings.Repeat("x", size) + `"`)
				text[1+at] = c
				if got := line.Valid(text); got != want {
					t.Fatalf("byte %q at %d of a string of %d bytes: got %v, want %v", c, at, size, got, want)
				}
			}
		}
	}
}

func TestOneLine(t *testing.T) {
	for size := range 20 { // several bytes are read at once
		for at := range size + 1 {
			in := `"` + strings.Repeat("x", at) + "\u2028" + strings.Repeat("x", size-at) + `"` + "\n"
			want := `"` + strings.Repeat("x", at) + `\u2028` + strings.Repeat("x", size-at) + `"`
			if got := string(line.OneLine([]byte(in))); got != want {
				t.Errorf("OneLine(%q) = %q, want %q", in, got, want)
			}
		}
	}
	for in, want := range map[string]string{
		`{"a":"b\nc"}`:                           `{"a":"b\nc"}`,
		"{\r\n  \"a\": 1\n}\n":                   `{  "a": 1}`,
		"{\"a\":\"b\u2028c\u2029\u0085\u2027\"}": "{\"a\":\"b\\u2028c\\u2029\\u0085\u2027\"}",
	} {
		if got := string(line.OneLine([]byte(in))); got != want {
			t.Errorf("OneLine(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestHasLoneSurrogate(t *testing.T) {
	for in, want := range map[string]bool{
		`{}`: false, `"\n\\ud800"`: false, `"\ud83d\ude00"`: false, `"\uD83D\uDE00 \u00e9"`: false, `"\"`: false, `"\ud83d\\ude00"`: true,
		`"\ud800"`: true, `"\udc00"`: true, `"\ud83d\ud83d\ude00"`: true, `"\ude00\ud83d"`: true, `"\\\ud800"`: true,
	} {
		if got := line.HasLoneSurrogate([]byte(in)); got != want {
			t.Errorf("HasLoneSurrogate(%s) = %v", in, got)
		}
	}
}

func TestParse(t *testing.T) {
	serialized := func(inner string) string {
		text, _ := json.Marshal(inner)
		return `{"custom_id":"a","response":null,"error":{"code":null,"message":` + string(text) + `}}`
	}
	for _, tt := range []struct {
		name, text string
		want       line.Result
	}{
		{
			"an answer",
			`{"id":"batch_req_1","custom_id":"a","response":{"status_code":200,"request_id":"req_1","body":{"n": 1.50}},"error":null}`,
			line.Result{ID: "a", Status: 200, RequestID: "req_1", Body: []byte(`{"n": 1.50}`)},
		},
		{
			"an error answer",
			`{"custom_id":"a","response":{"status_code":429,"request_id":null,"body":{"error":{"message":"slow"}}},"error":null}`,
			line.Result{ID: "a", Status: 429, Body: []byte(`{"error":{"message":"slow"}}`)},
		},
		{
			"an error with a message in place of a body",
			`{"batch_id":"b","custom_id":"a","response":{"status_code":500,"message":"Internal \"Server\" Error"},"error":null}`,
			line.Result{ID: "a", Status: 500, Message: `Internal "Server" Error`},
		},
		{
			"a body beside a message",
			`{"custom_id":"a","response":{"status_code":400,"message":"no","body":{}}}`,
			line.Result{ID: "a", Status: 400, Body: []byte(`{}`)},
		},
		{
			"of several members the last counts",
			`{"response":{"status_code":500,"request_id":"r","body":{}},"custom_id":"b","custom_id":"a","response":{"status_code":500,"status_c\u006fde":200,"body":{},"body":[1]}}`,
			line.Result{ID: "a", Status: 200, Body: []byte(`[1]`)},
		},
		{
			"a response that another follows, which is none",
			`{"custom_id":"a","response":{"status_code":200,"body":{}},"response":null,"error":{"code":"x","message":"y"}}`,
			line.Result{ID: "a", Code: "x", Message: "y"},
		},
		{
			"a deep body",
			`{"custom_id":"a","response":{"status_code":200,"body":` + strings.Repeat("[", 9_998) + strings.Repeat("]", 9_998) + `}}`,
			line.Result{ID: "a", Status: 200, Body: []byte(strings.Repeat("[", 9_998) + strings.Repeat("]", 9_998))},
		},
		{
			"a body that is too deep for JSON",
			`{"custom_id":"a","response":{"status_code":200,"body":` + strings.Repeat("[", 9_999) + strings.Repeat("]", 9_999) + `}}`,
			line.Result{ID: "a", Status: 200, Body: []byte(strings.Repeat("[", 9_999) + strings.Repeat("]", 9_999)), Malformed: true},
		},
		{
			"a response that is not strict JSON",
			`{"custom_id":"a","response":{"status_code":200,"body":{"n":NaN}}}`,
			line.Result{ID: "a", Status: 200, Body: []byte(`{"n":NaN}`), Malformed: true},
		},
		{
			"a body that is a string",
			`{"custom_id":"a","response":{"status_code":200,"body":"data: \"x\"\n"}}`,
			line.Result{ID: "a", Status: 200, Body: []byte("data: \"x\"\n"), Text: true},
		},
		{
			"a body that is JSON in a string",
			`{"custom_id":"a","response":{"status_code":200,"body":"{\"id\":\"x\"}"}}`,
			line.Result{ID: "a", Status: 200, Body: []byte(`{"id":"x"}`)},
		},
		{
			"expired",
			`{"custom_id":"a","response":null,"error":{"code":"batch_expired","message":"too late"}}`,
			line.Result{ID: "a", Code: "batch_expired", Message: "too late"},
		},
		{
			"no reason at all",
			`{"custom_id":"a","response":null,"error":null}`,
			line.Result{ID: "a"},
		},
		{
			"a reason that is a string",
			`{"custom_id":"a","error":"boom"}`,
			line.Result{ID: "a", Message: "boom"},
		},
		{
			"a serialized HTTP answer",
			serialized(`{"type":"NonRetriableHttpStatus","details":{"status":400,"body":"{\"error\":{\"message\":\"no\"}}"}}`),
			line.Result{ID: "a", Status: 400, Body: []byte(`{"error":{"message":"no"}}`)},
		},
		{
			"a serialized HTTP answer that is text",
			serialized(`{"type":"RetriableHttpStatus","details":{"status":503,"body":"down"}}`),
			line.Result{ID: "a", Status: 503, Body: []byte("down"), Text: true},
		},
		{
			"a serialized reason",
			serialized(`{"type":"Timeout","details":{"error":"after 600 s"}}`),
			line.Result{ID: "a", Code: "Timeout", Message: "after 600 s"},
		},
		{
			"a serialized reason without details",
			serialized(`{"type":"BatchTerminated"}`),
			line.Result{ID: "a", Code: "BatchTerminated"},
		},
		{
			"an error without a body",
			`{"custom_id":"a","response":{"status_code":400},"error":{"code":"bad","message":"no such parameter"}}`,
			line.Result{ID: "a", Status: 400, Code: "bad", Message: "no such parameter"},
		},
		{
			"a status that is none",
			`{"custom_id":"a","response":{"status_code":0,"body":{}},"error":{"code":"x","message":"y"}}`,
			line.Result{ID: "a", Body: []byte(`{}`), Code: "x", Message: "y"},
		},
		{
			"an informational status, which is no answer",
			`{"custom_id":"a","response":{"status_code":101,"body":{}},"error":{"code":"x","message":"y"}}`,
			line.Result{ID: "a", Body: []byte(`{}`), Code: "x", Message: "y"},
		},
		{
			"a status that does not exist",
			`{"custom_id":"a","response":{"status_code":600,"body":{}},"error":{"code":"x","message":"y"}}`,
			line.Result{ID: "a", Body: []byte(`{}`), Code: "x", Message: "y"},
		},
		{
			"an error code that looks like a status is none",
			`{"custom_id":"a","response":null,"error":{"code":429,"message":"y"}}`,
			line.Result{ID: "a", Code: "429", Message: "y"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := []byte(tt.text)
			got, err := line.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			clear(text) // what was read must not share the line's memory
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestParseMalformed(t *testing.T) {
	for _, text := range []string{"", "null", "[]", "{}", `{"custom_id":""}`, `{"custom_id":7}`, "<html>", `{"custom_id":7`, `"{\"custom_id\":\"a\"`, `{"custom_id":"a"}{"custom_id":"b"}`} {
		if _, err := line.Parse([]byte(text)); !errors.Is(err, line.ErrMalformed) {
			t.Errorf("Parse(%q): error %v, want ErrMalformed", text, err)
		}
	}
}

func TestReader(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	torn := errors.New("torn")
	for _, tt := range []struct {
		name  string
		src   io.Reader
		want  []string
		err   error
		lines int
	}{
		{"empty", strings.NewReader(""), nil, io.EOF, 0},
		{"lines", strings.NewReader("a\nb\r\n"), []string{"a", "b"}, io.EOF, 2},
		{"empty lines count as position, not as lines", strings.NewReader("\na\n\n"), []string{"a"}, io.EOF, 3},
		{"last line without a break", strings.NewReader("a\n{}"), []string{"a", "{}"}, io.EOF, 2},
		{"last line torn", strings.NewReader("a\n{"), []string{"a"}, line.ErrTruncated, 1},
		{"last line torn in a string", strings.NewReader("a\n{\"b\":\"c}"), []string{"a"}, line.ErrTruncated, 1},
		{"last line torn after a string", strings.NewReader("a\n\"b\"c"), []string{"a"}, line.ErrTruncated, 1},
		{"last line whole, but not strict JSON", strings.NewReader("a\n{\"b\":NaN}"), []string{"a", "{\"b\":NaN}"}, io.EOF, 2},
		{"a byte order mark before the only line", strings.NewReader("\ufeff{\"b\":NaN}"), []string{"\ufeff{\"b\":NaN}"}, io.EOF, 1},
		{"broken off", io.MultiReader(strings.NewReader("a\n{}"), iotest.ErrReader(torn)), []string{"a"}, torn, 1},
		{"longer than the buffer", strings.NewReader(long + "\nb\n"), []string{long, "b"}, io.EOF, 2},
		{"over the limit", strings.NewReader(strings.Repeat("y", 500_000) + "\nb\n"), []string{"too long", "b"}, io.EOF, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := line.NewReader(iotest.OneByteReader(tt.src), 300_000)
			var got []string
			var err error
			for err == nil {
				var text []byte
				text, err = r.Next()
				if errors.Is(err, line.ErrTooLong) {
					got, err = append(got, "too long"), nil
				} else if err == nil {
					got = append(got, string(text))
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if whole := errors.Is(err, io.EOF); whole && r.Offset() != tt.src.(interface{ Size() int64 }).Size() {
				t.Errorf("Offset = %d at the end", r.Offset())
			}
			if !errors.Is(err, tt.err) || r.Lines() != tt.lines {
				t.Errorf("ended with %v after %d lines, want %v after %d", err, r.Lines(), tt.err, tt.lines)
			}
		})
	}
}

// A line that never ends must not keep the reader busy for ever, and must not be
// held in memory.
func TestReaderEndlessLine(t *testing.T) {
	const limit = 100_000
	src := &io.LimitedReader{R: zeros{}, N: 1 << 30}
	r := line.NewReader(io.MultiReader(strings.NewReader("{}\n"), src), limit)
	if text, err := r.Next(); string(text) != "{}" || err != nil {
		t.Fatalf("%q, %v", text, err)
	}
	if _, err := r.Next(); !errors.Is(err, line.ErrEndless) {
		t.Errorf("error %v, want ErrEndless", err)
	}
	if got := 1<<30 - src.N; got > 10*limit {
		t.Errorf("%d bytes were read", got)
	}
	if r.Lines() != 1 || r.Offset() != 3 || len(r.Rest()) > limit {
		t.Errorf("%d lines, offset %d, rest of %d bytes", r.Lines(), r.Offset(), len(r.Rest()))
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// What Append writes, any JSON reader must read as the same four values.
func FuzzAppend(f *testing.F) {
	f.Add("id", []byte(`{"a":"\u0000\ud800","b":[1e400,-0]}`))
	f.Fuzz(func(t *testing.T, id string, body []byte) {
		if !json.Valid(body) || !line.Valid(body) {
			return
		}
		l := line.Line{ID: fmt.Sprintf("%x", id), URL: "/v1/embeddings", Body: line.OneLine(body)}
		text := l.Append(nil)
		var got struct {
			ID     string          `json:"custom_id"`
			Method string          `json:"method"`
			URL    string          `json:"url"`
			Body   json.RawMessage `json:"body"`
		}
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		if bytes.ContainsAny(text, "\r\n") {
			t.Errorf("a line break within a line: %q", text)
		}
		if got.ID != l.ID || got.Method != "POST" || got.URL != l.URL {
			t.Errorf("got %+v", got)
		}
		var before, after bytes.Buffer
		if json.Compact(&before, body) != nil || json.Compact(&after, got.Body) != nil || before.String() != after.String() {
			t.Errorf("body %s became %s", body, got.Body)
		}
	})
}

// Whatever a provider sends, reading ends, and every result has an id.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"custom_id":"a","response":{"status_code":200,"body":{}}}` + "\n\n{\n"))
	f.Add([]byte("\ufeff{\"custom_id\":\"a\",\"response\":{\"status_code\":200,\"body\":{\"x\":\"\t\",\"y\":-Infinity}}}"))
	f.Add([]byte(`{"custom_id":"a","response":{"status_code":200,"body":"\$"},"error":{"message":"half`))
	f.Add([]byte(`{"custom_id":"a","error":{"message":"{\"type\":\"T\",\"details\":{\"status\":500,\"body\":[]}}"}}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r := line.NewReader(bytes.NewReader(text), 1<<20)
		for {
			b, err := r.Next()
			if err != nil {
				break
			}
			result, err := line.Parse(b)
			if err == nil && (result.ID == "" || result.Status != 0 && (result.Status < 200 || result.Status > 599)) {
				t.Errorf("Parse(%q) = %+v", b, result)
			}
		}
		if r.Offset() > int64(len(text)) || r.Offset() > 0 && r.Offset() < int64(len(text)) && text[r.Offset()-1] != '\n' {
			t.Errorf("Offset %d of %d bytes", r.Offset(), len(text))
		}
		if r.Lines() > bytes.Count(text, []byte("\n"))+1 {
			t.Errorf("%d lines in %q", r.Lines(), text)
		}
	})
}

// Valid and Members agree with encoding/json.
func FuzzValid(f *testing.F) {
	for _, text := range []string{
		`{"a":1,"b\u0041":[{"a":2},[]," \" \\ "],"c":"é\n"}`, ` { "b" : -1.5e+400 , "a":{} } `, `[0,-0,01,1.,.5,1e,-]`, `"\ud800\x"`, "\"a\tb\"", `{"a":1,}`, `[,]`, `{"a"}`,
		`tru`, `null`, `[true,false]`, `"` + strings.Repeat("x", 20) + "\x1f" + `"`, "\"\xff\x80 \x7f\"", `{"a":[1}`, `{"a":1}}`, `{"":{"":""}}`, `"12345678\`, `"\u12`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := json.Valid(b)
		if got := line.Valid(b); got != want {
			t.Fatalf("Valid(%q) = %v, want %v", b, got, want)
		}
		var members [][2]string
		object := line.Members(b, func(name, value []byte) { members = append(members, [2]string{string(name), string(value)}) })
		if object != (want && bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{"))) {
			t.Fatalf("Members(%q) = %v", b, object)
		}
		if !object || !utf8.Valid(b) || line.HasLoneSurrogate(b) { // encoding/json changes the names
			return
		}
		if diff := cmp.Diff(topLevel(t, b), members, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%q (-want +got)\n%s", b, diff)
		}
	})
}
