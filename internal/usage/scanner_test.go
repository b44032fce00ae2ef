package usage

import (
	"slices"
	"strings"
	"testing"
)

// scanUsage returns a scanner that has scanned body in pieces of n bytes.
func scanUsage(body []byte, n int) *Scanner {
	u := Scanner{Names: &Names{}}
	for piece := range slices.Chunk(body, n) {
		u.Scan(piece)
	}
	return &u
}

func TestUsageScanner(t *testing.T) {
	for _, test := range []struct {
		name, body                string
		prompt, completion, total int64
	}{
		{"chat", `{"id":"x","usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":1}},"x":null}`, 3, 4, 7},
		{"embeddings", `{"usage": {"prompt_tokens": 5, "total_tokens": 5}}`, 5, 0, 5},
		{"response", `{"usage" : {"input_tokens":1,"input_tokens_details":{"cached_tokens":0},"output_tokens":2,"total_tokens":3}}`, 1, 2, 3},
		{"a total alone", `{"data":[],"model":"m","usage":{"total_tokens":33}}`, 33, 0, 33},
		{"none", `{"usage":null,"choices":[]}`, 0, 0, 0},
		{"in a text", `{"content":"\"usage\":{\"total_tokens\":9}"}`, 0, 0, 0},
		{"in a schema", `{"usage":{"input_tokens":1,"output_tokens":1,"total_tokens":2},"tools":[{"usage":{"type":"string"}}]}`, 1, 1, 2},
		{"stream", "data: {\"usage\":null}\n\ndata: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}\n\ndata: [DONE]\n\n", 1, 1, 2},
		{"running total", `{"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}{"usage":{"prompt_tokens":1,"completion_tokens":5,"total_tokens":6}}`, 1, 5, 6},
		{"cut off", `{"usage":{"prompt_tokens":1`, 0, 0, 0},
		{"longer than the limit", `{"usage":{"a":` + strings.Repeat("1", 5000) + `,"b":{"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`, 1, 1, 2},
		{"not JSON", `no JSON "usag`, 0, 0, 0},
	} {
		for _, n := range []int{1, 2, 7, 40, 1000, 100000} {
			u := scanUsage([]byte(test.body), n)
			if u.Input != test.prompt || u.Output != test.completion || u.Total != test.total {
				t.Errorf("%s in pieces of %d: %d + %d = %d", test.name, n, u.Input, u.Output, u.Total)
			}
			if len(u.usage.pending) > 2*maxValue {
				t.Errorf("%s: %d bytes are pending", test.name, len(u.usage.pending))
			}
		}
	}
}

// FuzzUsageScanner checks that the size of the pieces does not change the counts.
func FuzzUsageScanner(f *testing.F) {
	f.Add([]byte(`{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`), 5)
	f.Add([]byte(`"usage"::{"usage":{"total_tokens":1}}`), 1)
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		if len(body) > maxValue {
			return // a usage object longer than maxValue may be found or missed
		}
		whole, pieces := scanUsage(body, len(body)+1), scanUsage(body, max(n, 1))
		if whole.Total != pieces.Total || whole.Tokens != pieces.Tokens || whole.Names.Tier != pieces.Names.Tier {
			t.Errorf("%d tokens at once, %d in pieces of %d: %s", whole.Total, pieces.Total, n, body)
		}
	})
}

func TestNames(t *testing.T) {
	for _, test := range []struct{ name, body, model, tier string }{
		{"chat", `{"id":"x","model":"m-1","choices":[{"message":{"content":"\"model\":\"no\""}}],"service_tier":"flex"}`, "m-1", "flex"},
		{"the last tier", "data: {\"model\":\"m\",\"service_tier\":\"auto\"}\n\ndata: {\"service_tier\" : \"default\"}\n\n", "m", "default"},
		{"the first model", `{"model":"m","metadata":{"model":"other"}}`, "m", ""},
		{"neither", `{"model":null,"service_tier":null}`, "", ""},
	} {
		for _, n := range []int{1, 2, 7, 1000} {
			if got := Model([]byte(test.body)); got != test.model {
				t.Errorf("%s: model %q", test.name, got)
			}
			if s := scanUsage([]byte(test.body), n); s.Names.Model != test.model || s.Names.Tier != test.tier {
				t.Errorf("%s in pieces of %d: model %q, tier %q", test.name, n, s.Names.Model, s.Names.Tier)
			}
		}
	}
}

func TestTier(t *testing.T) {
	for body, want := range map[string]string{
		`{"service_tier":"flex","metadata":{"service_tier":"default"}}`: "flex",
		`{"metadata":{"service_tier":"default"},"service_tier":"flex"}`: "flex",
		`{"metadata":{"service_tier":"default"}}`:                       "",
		`{"service_tier":null}`:                                         "",
		`{"service_tier":1}`:                                            "",
		`no JSON`:                                                       "",
	} {
		if got := Tier([]byte(body)); got != want {
			t.Errorf("%s: tier %q, want %q", body, got, want)
		}
	}
}

func TestOf(t *testing.T) {
	for body, want := range map[string]Tokens{
		`{"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}`: {9, 2, 4},
		`{"usage":{"input_tokens":9,"output_tokens":4,"input_tokens_details":{"cached_tokens":12}}}`:      {9, 9, 4},
		`{"usage":{"prompt_tokens":-9}}`: {},
		`{"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_cache_hit_tokens":3,"total_tokens":13}}`: {9, 3, 4},
		`{"data":[{"embedding":[1,2]}],"usage":{"prompt_tokens":9,"total_tokens":9}}`:                       {9, 0, 0},
		`{"usage":null}`: {},
		`no JSON`:        {},
	} {
		if got := Of([]byte(body)); got != want {
			t.Errorf("%s: %+v", body, got)
		}
	}
}
