package autobatcher

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/provider"
)

func TestBatchedSuffix(t *testing.T) {
	tests := []struct{ method, url, want string }{
		{"POST", "https://api.openai.com/v1/chat/completions", "/chat/completions"},
		{"POST", "https://api.openai.com/v1/embeddings?x=1", "/embeddings"},
		{"POST", "http://host/responses", "/responses"},
		{"POST", "https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=1", "/chat/completions"},
		{"GET", "https://api.openai.com/v1/chat/completions", ""},
		{"post", "https://api.openai.com/v1/chat/completions", ""},
		{"POST", "https://api.openai.com/v1/completions", ""},
		{"POST", "https://api.openai.com/v1/chat/completions/", ""},
		{"POST", "https://api.openai.com/v1/chat/completions/chatcmpl-1", ""},
		{"POST", "https://api.openai.com/v1/responses/compact", ""},
		{"POST", "https://api.openai.com/v1/responses/resp_1/cancel", ""},
		{"POST", "https://api.openai.com/v1/chat%2Fcompletions", ""},
		{"POST", "https://api.openai.com/v1/Embeddings", ""},
		{"POST", "https://host/v1/x?path=/chat/completions", ""},
	}
	for _, test := range tests {
		u, err := url.Parse(test.url)
		if err != nil {
			t.Fatal(err)
		}
		if got := batchedSuffix(&http.Request{Method: test.method, URL: u}); got != test.want {
			t.Errorf("%s %s: %q, want %q", test.method, test.url, got, test.want)
		}
	}
	if got := batchedSuffix(&http.Request{Method: "POST"}); got != "" {
		t.Errorf("without a URL: %q", got)
	}
}

func TestWishes(t *testing.T) {
	for name, h := range map[string]http.Header{
		"written in lower case": {"autobatcher-deadline": {"5m"}, "autobatcher-mode": {"realtime"}, "autobatcher-completion-window": {"1h"}},
		"canonical":             {"Autobatcher-Deadline": {"5m"}, "Autobatcher-Mode": {"realtime"}, "Autobatcher-Completion-Window": {"1h"}},
	} {
		w, err := readWishes(h)
		if err != nil || !w.realtime || w.window != "1h" || w.deadline.Minutes() != 5 {
			t.Errorf("%s: %+v, %v", name, w, err)
		}
	}
	if w, err := readWishes(nil); err != nil || w != (wishes{}) {
		t.Errorf("none: %+v, %v", w, err)
	}
}

func TestRewrite(t *testing.T) {
	tests := []struct {
		name, suffix, body, want string
		stream, usage            bool
		inputs                   int
	}{
		{"streamed", "/chat/completions", `{"stream":true,"model":"m","stream_options":{"include_usage":true}}`, `{"model":"m"}`, true, true, 0},
		{"streamed without usage", "/chat/completions", `{"model":"m","stream":true}`, `{"model":"m"}`, true, false, 0},
		{"the last of several counts", "/chat/completions", `{"model":"m","stream":true,"stream":false}`, `{"model":"m"}`, false, false, 0},
		{"pretty", "/chat/completions", "{\n\t\"model\": \"m\",\n\t\"stream\": true\n}", "", true, false, 0},
		{"pretty, first", "/chat/completions", "{\n\t\"stream\": true,\n\t\"model\": \"m\"\n}", "", true, false, 0},
		{"texts", "/embeddings", `{"model":"m","input":["a","b","c"]}`, `{"model":"m","input":["a","b","c"]}`, false, false, 3},
		{"one text", "/embeddings", `{"model":"m","input":"a"}`, `{"model":"m","input":"a"}`, false, false, 1},
		{"tokens", "/embeddings", `{"model":"m","input":[1,2,3]}`, `{"model":"m","input":[1,2,3]}`, false, false, 1},
		{"lists of tokens", "/embeddings", `{"model":"m","input":[[1,2],[3]]}`, `{"model":"m","input":[[1,2],[3]]}`, false, false, 2},
		{"no input", "/embeddings", `{"model":"m"}`, `{"model":"m"}`, false, false, 1},
	}
	generic := provider.Generic()
	for _, test := range tests {
		c := &call{profile: &generic, suffix: test.suffix}
		if _, err := c.rewrite([]byte(test.body)); err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if test.want == "" {
			test.want = `{"model":"m"}`
			c.Body = compact(t, c.Body)
		}
		if string(c.Body) != test.want || c.stream != test.stream || c.usage != test.usage || c.inputs != test.inputs || c.model != "m" {
			t.Errorf("%s: body %s, stream %v, usage %v, %d inputs, model %q; want %+v", test.name, c.Body, c.stream, c.usage, c.inputs, c.model, test)
		}
	}
}

func compact(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return out.Bytes()
}

// A field of an object, name and value token for token.
type rawField struct{ name, value string }

// rawFields reads an object without understanding its values.
func rawFields(t *testing.T, b []byte) (all []rawField) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		t.Fatalf("no object: %s", b)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
		all = append(all, rawField{name.(string), string(compact(t, value))})
	}
	return all
}

// FuzzRewrite checks that whatever is accepted becomes a line of the same
// fields in the same order, but for the two that are taken out, and that
// nothing is accepted that is not one.
func FuzzRewrite(f *testing.F) {
	for _, seed := range []string{
		`{"model":"m","stream":true}`, `{"model":"m","a":1e400,"a":-0.10}`, "{ \"model\" :\r\n\"m\" , \"stream\" : false , \"x\":[ ] }",
		`{"stream":{"stream":1},"model":"\u0041","stream_options":[],"stream":""}`, `{"model":"m","str\u0065am":true}`,
		`{"":1,"model":"m","a.b":{"stream":2},"*":3,"#":4,"@this":5,"stream|x":6,"\\stream":7}`, "[]", "", `{"model":"m"} x`,
		`{"model":"m","input":[1]}`, `{"stream":true,"model":"m"}`, `{"model":"m","stream":true,}`, "{\"model\":\"m\",\"a\":\"\u2028\"}",
	} {
		f.Add([]byte(seed))
	}
	generic := provider.Generic()
	f.Fuzz(func(t *testing.T, body []byte) {
		sent := bytes.Clone(body)
		c := &call{profile: &generic, suffix: "/embeddings"}
		_, err := c.rewrite(body)
		if !bytes.Equal(sent, body) {
			t.Fatalf("the caller's bytes were changed: %q to %q", sent, body)
		}
		if err != nil {
			return
		}
		if !json.Valid(sent) || !json.Valid(c.Body) || bytes.ContainsAny(c.Body, "\r\n") {
			t.Fatalf("%q became %q", sent, c.Body)
		}
		var want []rawField
		for _, field := range rawFields(t, sent) {
			if field.name != "stream" && field.name != "stream_options" {
				want = append(want, field)
			}
		}
		if diff := cmp.Diff(want, rawFields(t, c.Body), cmp.AllowUnexported(rawField{})); diff != "" {
			t.Fatalf("%q became %q: %s", sent, c.Body, diff)
		}
		if c.model == "" || c.inputs < 0 {
			t.Fatalf("%q: model %q, %d inputs", sent, c.model, c.inputs)
		}
	})
}
