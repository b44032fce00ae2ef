package proxy

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// scan feeds body to a scanner in pieces of n bytes.
func scan(body []byte, n int) *scanner {
	var s scanner
	for len(body) > 0 {
		piece := body[:min(n, len(body))]
		s.see(piece)
		body = body[len(piece):]
	}
	return &s
}

func TestScanner(t *testing.T) {
	for _, test := range []struct {
		body   string
		stream bool
		model  string
	}{
		{`{"model":"m","stream":true}`, true, `"m"`},
		{` { "stream" : true , "model" : "a\"\\b\u00e9" } `, true, `"a\"\\b\u00e9"`},
		{`{"stream":false,"model":""}`, false, `""`},
		{`{"model":"stream"}`, false, `"stream"`},
		{`{"model":"m","stream":null}`, false, `"m"`},
		{`{"user":"\"stream\":true"}`, false, `""`},
		{`{"tools":[{"stream":true}],"x":{"stream":true,"model":"no"}}`, false, `""`},
		{`{"messages":[{"content":"\\\" } ] {"}],"stream":true}`, true, `""`},
		{`{"a":"\\","stream":true}`, true, `""`},
		{`{"stream":true,"stream":false}`, false, `""`},
		{`{"stream":false,"stream":true}`, true, `""`},
		{`{"model":7}`, false, `""`},
		{`{"model":["a"]}`, false, `""`},
		{`{"model":"` + strings.Repeat("x", 1000) + `","stream":true}`, true, `""`},
		{`{"` + strings.Repeat("x", 1000) + `":1,"stream":true}`, true, `""`},
		{``, false, `""`},
		{`[]}}}{"stream":true}`, false, `""`},
	} {
		for n := 1; n < 9; n++ {
			s := scan([]byte(test.body), n)
			if s.stream() != test.stream || s.model() != test.model {
				t.Errorf("in pieces of %d: %s: stream %v, model %s", n, test.body, s.stream(), s.model())
			}
		}
	}
}

// FuzzScanner compares with encoding/json, whatever the pieces.
func FuzzScanner(f *testing.F) {
	f.Add([]byte(`{"model":"m\\","messages":[{"content":"\"stream\":true"}],"stream":true}`), 3)
	f.Add([]byte(`{"stream" :false, "model": "\ud83d\ude00"}`), 1)
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		s := scan(body, max(n, 1))
		if !json.Valid([]byte(s.model())) {
			t.Errorf("the model is not JSON: %s", s.model())
		}
		var want map[string]any
		if json.Unmarshal(body, &want) != nil || bytes.Contains(body, []byte(`\u`)) {
			return // refused anyway, or a key spelled as nobody spells it
		}
		stream, isBool := want["stream"].(bool)
		if isBool && bytes.Count(body, []byte(`"stream"`)) == 1 && s.stream() != stream {
			t.Errorf("stream is %v in %s", s.stream(), body)
		}
		if !bytes.Contains(body, []byte(`"stream"`)) && s.stream() {
			t.Errorf("stream found in %s", body)
		}
	})
}

// tallied feeds an answer to a tally in pieces of n bytes.
func tallied(body []byte, n int) *tally {
	var u tally
	for len(body) > 0 {
		piece := body[:min(n, len(body))]
		u.see(piece)
		body = body[len(piece):]
	}
	return &u
}

func TestTally(t *testing.T) {
	for _, test := range []struct {
		name, body                string
		prompt, completion, total int64
	}{
		{"chat", `{"id":"x","usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":1}},"x":null}`, 3, 4, 7},
		{"embeddings", `{"usage": {"prompt_tokens": 5, "total_tokens": 5}}`, 5, 0, 5},
		{"response", `{"usage" : {"input_tokens":1,"input_tokens_details":{"cached_tokens":0},"output_tokens":2,"total_tokens":3}}`, 1, 2, 3},
		{"none", `{"usage":null,"choices":[]}`, 0, 0, 0},
		{"in a text", `{"content":"\"usage\":{\"total_tokens\":9}"}`, 0, 0, 0},
		{"in a schema", `{"usage":{"input_tokens":1,"output_tokens":1,"total_tokens":2},"tools":[{"usage":{"type":"string"}}]}`, 1, 1, 2},
		{"stream", "data: {\"usage\":null}\n\ndata: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}\n\ndata: [DONE]\n\n", 1, 1, 2},
		{"running usage", `{"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}{"usage":{"prompt_tokens":1,"completion_tokens":5,"total_tokens":6}}`, 1, 5, 6},
		{"cut", `{"usage":{"prompt_tokens":1`, 0, 0, 0},
		{"endless", `{"usage":{"a":` + strings.Repeat("1", 5000) + `,"b":{"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`, 1, 1, 2},
		{"text", `no JSON "usag`, 0, 0, 0},
	} {
		for _, n := range []int{1, 2, 7, 40, 1000, 100000} {
			u := tallied([]byte(test.body), n)
			if u.prompt != test.prompt || u.completion != test.completion || u.total != test.total {
				t.Errorf("%s in pieces of %d: %d + %d = %d", test.name, n, u.prompt, u.completion, u.total)
			}
			if len(u.pending) > 2*maxUsage {
				t.Errorf("%s: keeps %d bytes", test.name, len(u.pending))
			}
		}
	}
}

// FuzzTally: whatever the pieces, the tokens are the same.
func FuzzTally(f *testing.F) {
	f.Add([]byte(`{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`), 5)
	f.Add([]byte(`"usage"::{"usage":{"total_tokens":1}}`), 1)
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		if len(body) > maxUsage {
			return // one that is cut off may be seen or not
		}
		whole, pieces := tallied(body, len(body)+1), tallied(body, max(n, 1))
		if whole.total != pieces.total || whole.prompt != pieces.prompt || whole.completion != pieces.completion {
			t.Errorf("%d tokens at once, %d in pieces of %d: %s", whole.total, pieces.total, n, body)
		}
	})
}
