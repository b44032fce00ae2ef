package requestbody_test

import (
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/requestbody"
)

func parse(body []byte, deployment string) (c requestbody.Call, err error) {
	err = c.Parse(body, deployment)
	return c, err
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, body, deployment string
		want                   requestbody.Call // without Body
		line                   string
	}{
		{"plain", `{"model":"m","x":1}`, "", requestbody.Call{Model: "m"}, `{"model":"m","x":1}`},
		{"stream", `{"model":"m","stream":true}`, "", requestbody.Call{Model: "m", Stream: true}, `{"model":"m"}`},
		{"stream with usage", `{"stream_options":{"include_usage":true},"stream":true,"model":"m"}`, "", requestbody.Call{Model: "m", Stream: true, Usage: true}, `{"model":"m"}`},
		{"no stream", `{"model":"m","stream":false}`, "", requestbody.Call{Model: "m"}, `{"model":"m"}`},
		{"escaped name", `{"model":"m","str\u0065am":true}`, "", requestbody.Call{Model: "m", Stream: true}, `{"model":"m"}`},
		{"stream is null", `{"model":"m","stream":true,"stream":null}`, "", requestbody.Call{Model: "m"}, `{"model":"m"}`},
		{"the last stream counts", `{"model":"m","stream":"yes","stream":true}`, "", requestbody.Call{Model: "m", Stream: true}, `{"model":"m"}`},
		{"other line separators", "{\"model\":\"m\",\"x\":\"a\u2028b\u2029c\u0085\"}", "", requestbody.Call{Model: "m"}, `{"model":"m","x":"a\u2028b\u2029c\u0085"}`},
		{"background", `{"model":"m","background":true}`, "", requestbody.Call{Model: "m", Background: true}, `{"model":"m","background":true}`},
		{"last model counts", `{"model":"a","model":"b"}`, "", requestbody.Call{Model: "b"}, `{"model":"a","model":"b"}`},
		{"line breaks", "{\n\"model\":\r\n\"m\"}", "", requestbody.Call{Model: "m"}, `{"model":"m"}`},
		{"same deployment", `{"model":"m"}`, "m", requestbody.Call{Model: "m"}, `{"model":"m"}`},
		{"other deployment", `{"model":"a","x":1}`, "d", requestbody.Call{Model: "d"}, `{"x":1,"model":"d"}`},
		{"deployment alone", `{"x":1}`, "d", requestbody.Call{Model: "d"}, `{"x":1,"model":"d"}`},
	} {
		got, err := parse([]byte(tt.body), tt.deployment)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if string(got.Body) != tt.line {
			t.Errorf("%s: line %s, want %s", tt.name, got.Body, tt.line)
		}
		if got.Model != tt.want.Model || got.Stream != tt.want.Stream || got.Usage != tt.want.Usage || got.Background != tt.want.Background {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestParseWithoutModel(t *testing.T) {
	for body, want := range map[string]string{`{"input":"x"}`: "", `{"input":"x","model":"m"}`: "m", `{"input":"x","model":null}`: ""} {
		c := requestbody.Call{NoModel: true}
		if err := c.Parse([]byte(body), ""); err != nil || c.Model != want || string(c.Body) != body {
			t.Errorf("%s: %q, %s, %v; want model %q", body, c.Model, c.Body, err, want)
		}
	}
	for _, body := range []string{`{"model":"` + strings.Repeat("m", 257) + `"}`, `{`} {
		c := requestbody.Call{NoModel: true}
		if err := c.Parse([]byte(body), ""); status(err) != 400 {
			t.Errorf("%.20s: %v, want status 400", body, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, body := range []string{
		"", " ", "[]", `"text"`, `{"model":"m"`, `{"model":"m"}}`, "{\"model\":\"\xff\"}", `{}`, `{"model":1}`, `{"model":""}`, `{"model":"m","model":null}`,
		`{"model":"m","stream":"true"}`, `{"model":"m","stream":"True"}`, `{"model":"m","stream":1}`, `{"model":"m","stream":{}}`, `{"model":"m","stream":true,"str\u0065am":"false"}`,
		`{"model":"` + strings.Repeat("m", 257) + `"}`, `{"model":"` + strings.Repeat("é", 129) + `"}`,
	} {
		if c, err := parse([]byte(body), ""); status(err) != 400 {
			t.Errorf("%q: %+v, %v; want status 400", body, c, err)
		}
	}
}

// The message says what is wrong, where, and what to send instead.
func TestParseNamesTheFault(t *testing.T) {
	for _, tt := range []struct{ body, want string }{
		{"", "empty"},
		{" \n", "empty"},
		{"\ufeff" + `{"model":"m"}`, "without a byte order mark"},
		{"\xff\xfe{\x00}\x00", "UTF-16"},
		{"{\"model\":\"\xff\"}", "UTF-8: byte 11"},
		{`{"model":"m","temperature":NaN}`, "NaN at byte 28"},
		{`{"model":"m","x":[1,-Infinity]}`, "-Infinity at byte 21"},
		{`{"model":"m","x":Infinity}`, "Infinity at byte 18"},
		{`{"model":"m","x":nan}`, "nan at byte 18"},
		{`{"model":"m"`, "ends after 12 bytes"},
		{`{"model":"m",}`, "at byte 14"},
		{`{'model':"m"}`, "at byte 2"},
		{"{\"model\":\"a\tb\"}", "at byte 12"},
		{`{"model":"m"}}`, "at byte 14"},
		{`[{"model":"m"}]`, "not a JSON object"},
		{`{"model":"m","x":` + strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001) + `}`, "exceeded max depth"},
	} {
		_, err := parse([]byte(tt.body), "")
		if status(err) != 400 || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.60q: %v; want %q", tt.body, err, tt.want)
		}
	}
}

// The name of a deployment replaces the name of the model, and has the same limit.
func TestLongModel(t *testing.T) {
	longest := strings.Repeat("m", 256)
	if c, err := parse([]byte(`{"model":"`+longest+`"}`), ""); err != nil || c.Model != longest {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := parse([]byte(`{"model":"m"}`), longest+"m"); status(err) != 400 {
		t.Errorf("%+v, %v; want status 400", c, err)
	}
}

func TestInputs(t *testing.T) {
	for body, want := range map[string]int{
		`{"model":"m"}`:                                   1,
		`{"model":"m","input":"text"}`:                    1,
		`{"model":"m","input":[]}`:                        0,
		`{"model":"m","input":[1,2,3]}`:                   1,
		`{"model":"m","query":"q","documents":["a","b"]}`: 2,
		`{"model":"m","input":["a","b","c"]}`:             3,
		`{"model":"m","input":[[1,2],[3]]}`:               2,
		`{"model":"m","input":["a"],"input":["b","c"]}`:   2,
	} {
		c, err := parse([]byte(body), "")
		if err != nil || c.Inputs() != want {
			t.Errorf("%s: %d inputs, %v; want %d", body, c.Inputs(), err, want)
		}
	}
}
