package autobatcher_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/provider"
)

// A router shows what the Transport makes of a request: a line of a batch file, a
// request that passes through, or an answer of the Transport's own. It refuses each
// upload, so that every call ends at once.
type router struct {
	tr     *autobatcher.Transport
	line   []byte        // of the last upload
	passed *http.Request // the last request that was no upload
}

func newRouter(t testing.TB, p provider.Profile) *router {
	t.Helper()
	r := &router{}
	o := autobatcher.Options{Base: r, BatchSize: 1}
	if p.Name != "" {
		o.Provider = &p
	}
	var err error
	if o.QuietAfter == 0 {
		o.QuietAfter = -1 // the times below are those of whole windows
	}
	if r.tr, err = autobatcher.New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.tr.Close() })
	return r
}

var passedAnswer = &http.Response{StatusCode: 299, Body: http.NoBody}

func (r *router) RoundTrip(req *http.Request) (*http.Response, error) {
	_, params, _ := mime.ParseMediaType(req.Header.Get("Content-Type"))
	if params["boundary"] == "" {
		r.passed = req
		return passedAnswer, nil
	}
	defer req.Body.Close()
	form := multipart.NewReader(req.Body, params["boundary"])
	for {
		part, err := form.NextPart()
		if err != nil {
			return &http.Response{StatusCode: 403, Header: http.Header{}, Body: http.NoBody, Request: req}, nil
		}
		if part.FileName() != "" {
			r.line, _ = io.ReadAll(part)
		}
	}
}

// send makes a call to a host that no profile knows.
func (r *router) send(t testing.TB, suffix, body string, header http.Header) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://host.example/v1"+suffix, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	r.line, r.passed = nil, nil
	res, err := r.tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// body is the body on the line.
func (r *router) body(t testing.TB) string {
	t.Helper()
	var line struct{ Body json.RawMessage }
	if err := json.Unmarshal(r.line, &line); err != nil {
		t.Fatalf("%v in the line %q", err, r.line)
	}
	return string(line.Body)
}

func TestWhatIsBatched(t *testing.T) {
	tests := []struct {
		method, url string
		batched     bool
	}{
		{"POST", "https://host.example/v1/chat/completions", true},
		{"POST", "https://host.example/v1/embeddings?x=1", true},
		{"POST", "http://host.example/responses", true},
		{"POST", "https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=1", true},
		{"GET", "https://host.example/v1/chat/completions", false},
		{"post", "https://host.example/v1/chat/completions", false},
		{"POST", "https://host.example/v1/completions", false},
		{"POST", "https://host.example/v1/chat/completions/", false},
		{"POST", "https://host.example/v1/chat/completions/chatcmpl-1", false},
		{"POST", "https://host.example/v1/responses/compact", false},
		{"POST", "https://host.example/v1/responses/resp_1/cancel", false},
		{"POST", "https://host.example/v1/chat%2Fcompletions", false},
		{"POST", "https://host.example/v1/Embeddings", false},
		{"POST", "https://host.example/v1/x?path=/chat/completions", false},
		{"POST", "https://host.example/v1/moderations", false},
		{"POST", "https://api.openai.com/v1/completions", true},
		{"POST", "https://api.openai.com/v1/moderations", true},
		{"POST", "https://api.openai.com/v1/images/generations", true},
		{"POST", "https://api.openai.com/v1/images/edits", true},
		{"POST", "https://api.openai.com/v1/images/variations", false},
		{"POST", "https://api.openai.com/v1/videos", false},
		{"POST", "https://api.doubleword.ai/v1/completions", true},
		{"POST", "https://api.groq.com/openai/v1/completions", false},
		{"POST", "https://host.example/v1/files", false},
		{"GET", "https://host.example/v1/models?limit=1&x=%2F", false},
		{"DELETE", "https://host.example/v1/files/file-1", false},
	}
	for _, test := range tests {
		r := newRouter(t, provider.Profile{})
		req, err := http.NewRequestWithContext(t.Context(), test.method, test.url, strings.NewReader(chat("text")))
		if err != nil {
			t.Fatal(err)
		}
		res, err := r.tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case test.batched && (r.line == nil || r.passed != nil):
			t.Errorf("%s %s was not batched", test.method, test.url)
		case !test.batched && (r.passed != req || res != passedAnswer):
			t.Errorf("%s %s: got %p for request %p; want the very request passed on, and its answer returned", test.method, test.url, r.passed, req)
		}
	}
	r := newRouter(t, provider.Profile{})
	if _, err := r.tr.RoundTrip(&http.Request{Method: http.MethodPost}); err != nil || r.passed == nil {
		t.Errorf("a request without a URL: %v; want it passed on", err)
	}
	u := &url.URL{Scheme: "https", Host: "host.example", Path: "/v1/chat/completions"}
	if _, err := r.tr.RoundTrip(&http.Request{Method: http.MethodPost, URL: u, Body: io.NopCloser(strings.NewReader(chat("text")))}); err != nil || r.line == nil {
		t.Errorf("a request without headers: %v; want it batched", err)
	}
}

// The line holds the caller's body, without stream and stream_options.
func TestLines(t *testing.T) {
	for name, test := range map[string]struct{ body, want string }{
		"as it is":                 {`{"model":"m", "a":1e400,"b":-0.10}`, `{"model":"m", "a":1e400,"b":-0.10}`},
		"streamed":                 {`{"stream":true,"model":"m","stream_options":{"include_usage":true}}`, `{"model":"m"}`},
		"streamed, at the end":     {`{"model":"m","stream":true}`, `{"model":"m"}`},
		"streamed several times":   {`{"model":"m","stream":true,"stream":false}`, `{"model":"m"}`},
		"not streamed":             {`{"model":"m","stream":false}`, `{"model":"m"}`},
		"pretty":                   {"{\n\t\"model\": \"m\",\n\t\"stream\": true\n}", `{"model":"m"}`},
		"pretty, and stream first": {"{\n\t\"stream\": true,\n\t\"model\": \"m\"\n}", `{"model":"m"}`},
	} {
		r := newRouter(t, provider.Profile{})
		r.send(t, "/chat/completions", test.body, nil)
		got := r.body(t)
		if strings.Contains(name, "pretty") {
			got = compact(t, got)
		}
		if got != test.want {
			t.Errorf("%s: the line holds %s; want %s", name, got, test.want)
		}
	}
}

// A file holds a limited number of embedding inputs, which are counted for each call.
func TestInputsAreCounted(t *testing.T) {
	for input, want := range map[string]int{
		`"a"`: 1, `["a"]`: 1, `["a","b","c"]`: 3, `[1,2,3]`: 1, `[[1,2],[3]]`: 2, `[["a"],"b"]`: 2,
	} {
		for _, limit := range []int{want, want - 1} {
			if limit == 0 {
				continue // no limit
			}
			p := provider.Generic()
			p.MaxInputs = limit
			r := newRouter(t, p)
			res := r.send(t, "/embeddings", `{"model":"m","input":`+input+`}`, nil)
			if accepted := r.line != nil; accepted != (limit >= want) || !accepted && res.StatusCode != 400 {
				t.Errorf("input %s with a limit of %d: accepted %v, status %d", input, limit, accepted, res.StatusCode)
			}
		}
	}
}

func compact(t testing.TB, text string) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, []byte(text)); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return out.String()
}

// A source is a request body that notes when Close is called, and may break.
type source struct {
	io.Reader
	closed atomic.Bool
}

func (s *source) Close() error { s.closed.Store(true); return nil }

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("pipe burst") }

func gzipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, text)
	w.Close()
	return b.String()
}

func deflated(text string) string {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	io.WriteString(w, text)
	w.Close()
	return b.String()
}

// What the Transport cannot batch is answered at once, in OpenAI's error shape,
// before anything is sent. An SDK must not retry the call.
func TestRefusedCalls(t *testing.T) {
	tests := []struct {
		name, body    string
		header, value string
		length        int64 // announced; 0: the true length
		status        int
		code, param   string
	}{
		{name: "no body", status: 400, code: "invalid_request"},
		{name: "blanks", body: " \n ", status: 400, code: "invalid_request"},
		{name: "no JSON", body: "nonsense", status: 400, code: "invalid_request"},
		{name: "half an object", body: `{"model":"m"`, status: 400, code: "invalid_request"},
		{name: "two objects", body: `{"model":"m"}{"model":"m"}`, status: 400, code: "invalid_request"},
		{name: "a list", body: `[{"model":"m"}]`, status: 400, code: "invalid_request"},
		{name: "a text", body: `"model"`, status: 400, code: "invalid_request"},
		{name: "no model", body: `{"messages":[]}`, status: 400, code: "invalid_request", param: "model"},
		{name: "an empty model", body: `{"model":""}`, status: 400, code: "invalid_request", param: "model"},
		{name: "a null model", body: `{"model":null}`, status: 400, code: "invalid_request", param: "model"},
		{name: "a model that is an object", body: `{"model":{"a":1}}`, status: 400, code: "invalid_request", param: "model"},
		{name: "not UTF-8", body: "{\"model\":\"\xff\"}", status: 400, code: "invalid_request"},
		{name: "a byte order mark", body: "\ufeff" + `{"model":"m"}`, status: 400, code: "invalid_request"},
		{name: "nested too deep", body: `{"model":"m","a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}", status: 400, code: "invalid_request"},
		{name: "too large, announced", body: chat(strings.Repeat("x", 100)), status: 413, code: "request_too_large"},
		{name: "too large, not announced", body: chat(strings.Repeat("x", 100)), length: -1, status: 413, code: "request_too_large"},
		{name: "too large, announced as less", body: chat(strings.Repeat("x", 100)), length: 5, status: 413, code: "request_too_large"},
		{name: "a gzip bomb", body: gzipped(chat(strings.Repeat("x", 1<<20))), header: "Content-Encoding", value: "gzip", status: 413, code: "request_too_large"},
		{name: "an unknown encoding", body: "x", header: "Content-Encoding", value: "br", status: 415, code: "unsupported_content_encoding"},
		{name: "not gzip", body: chat("a"), header: "Content-Encoding", value: "gzip", status: 400, code: "invalid_request"},
		{name: "torn gzip", body: gzipped(chat("a"))[:20], header: "Content-Encoding", value: "gzip", status: 400, code: "invalid_request"},
		{name: "unknown mode", body: chat("a"), header: "Autobatcher-Mode", value: "fast", status: 400, code: "invalid_header"},
		{name: "a deadline that is no duration", body: chat("a"), header: "Autobatcher-Deadline", value: "soon", status: 400, code: "invalid_header"},
		{name: "no deadline", body: chat("a"), header: "Autobatcher-Deadline", value: "0s", status: 400, code: "invalid_header"},
		{name: "a negative deadline", body: chat("a"), header: "Autobatcher-Deadline", value: "-1s", status: 400, code: "invalid_header"},
		{name: "an unknown header", body: chat("a"), header: "Autobatcher-Windows", value: "1h", status: 400, code: "invalid_header"},
		{name: "an unknown window", body: chat("a"), header: "Autobatcher-Completion-Window", value: "1h", status: 400, code: "invalid_completion_window"},
	}
	for _, test := range tests {
		p := provider.OpenAI()
		if test.status == 413 {
			p.MaxLineBytes = 100
		}
		r := newRouter(t, p)
		body := &source{Reader: strings.NewReader(test.body)}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://host.example/v1/chat/completions", body)
		if err != nil {
			t.Fatal(err)
		}
		if req.ContentLength = test.length; test.length == 0 {
			req.ContentLength = int64(len(test.body))
		}
		if test.header != "" {
			req.Header.Set(test.header, test.value)
		}
		res, err := r.tr.RoundTrip(req)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		text, _ := io.ReadAll(res.Body)
		if res.StatusCode != test.status || !bytes.Contains(text, []byte(`"code":"`+test.code+`"`)) ||
			test.param != "" && !bytes.Contains(text, []byte(`"param":"`+test.param+`"`)) {
			t.Errorf("%s: status %d: %s; want %d, code %s, param %q", test.name, res.StatusCode, text, test.status, test.code, test.param)
		}
		if res.Header.Get("X-Should-Retry") != "false" || res.Request != req || res.ContentLength != int64(len(text)) {
			t.Errorf("%s: header %v, request %p, length %d", test.name, res.Header, res.Request, res.ContentLength)
		}
		if !body.closed.Load() || r.line != nil || r.passed != nil || r.tr.Stats().Queued != 0 {
			t.Errorf("%s: body closed %v, line %s, passed %v; want the body closed and nothing sent", test.name, body.closed.Load(), r.line, r.passed)
		}
	}
}

// The largest accepted body is accepted, whatever length was announced.
func TestABodyOfTheLargestSize(t *testing.T) {
	p := provider.Generic()
	p.MaxLineBytes = 100
	for _, length := range []int64{100, -1, 5} {
		r := newRouter(t, p)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://host.example/v1/chat/completions",
			io.NopCloser(strings.NewReader(chat(strings.Repeat("x", 100-len(chat("")))))))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = length
		if res, err := r.tr.RoundTrip(req); err != nil || r.line == nil {
			t.Errorf("announced as %d: %v, %v; want the call batched", length, res, err)
		}
	}
}

func TestEncodedBodies(t *testing.T) {
	for encoding, text := range map[string]string{
		"gzip": gzipped(chat("a")), "GZIP": gzipped(chat("a")), "deflate": deflated(chat("a")), "identity": chat("a"),
	} {
		r := newRouter(t, provider.Profile{})
		r.send(t, "/chat/completions", text, http.Header{"Content-Encoding": {encoding}})
		if got := r.body(t); got != chat("a") {
			t.Errorf("%s: the line holds %s", encoding, got)
		}
	}
	r := newRouter(t, provider.Profile{})
	text := gzipped(`{"model":"m","service_tier":"priority"}`)
	r.send(t, "/responses", text, http.Header{"Content-Encoding": {"gzip"}})
	if r.passed == nil {
		t.Fatal("a call that asks for a tier was not passed on")
	}
	if got, _ := io.ReadAll(r.passed.Body); string(got) != text || r.passed.ContentLength != int64(len(text)) {
		t.Errorf("a body that passes through was changed: %d bytes, length %d", len(got), r.passed.ContentLength)
	}
	again, err := r.passed.GetBody()
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(again); string(got) != text {
		t.Error("the body cannot be sent again")
	}
}

// The request headers of this library are read in any spelling, and never leave the
// process.
func TestDirectives(t *testing.T) {
	for name, header := range map[string]http.Header{
		"canonical":     {"Autobatcher-Mode": {"realtime"}, "Autobatcher-Deadline": {"5m"}, "Autobatcher-Completion-Window": {"1h"}, "X-Mine": {"1"}},
		"in lower case": {"autobatcher-mode": {"realtime"}, "autobatcher-deadline": {"5m"}, "autobatcher-completion-window": {"1h"}, "X-Mine": {"1"}},
	} {
		r := newRouter(t, provider.Profile{})
		r.send(t, "/chat/completions", chat("a"), header)
		if r.passed == nil {
			t.Errorf("%s: the call was not passed on", name)
			continue
		}
		if diff := cmp.Diff(http.Header{"X-Mine": {"1"}}, r.passed.Header); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// RoundTrip keeps the contract of http.RoundTripper: on every path the body is closed
// and the request is unchanged.
func TestTheRequestBelongsToTheCaller(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"batched":       func(*http.Request) {},
		"realtime":      func(r *http.Request) { r.Header.Set("Autobatcher-Mode", "realtime") },
		"bad header":    func(r *http.Request) { r.Header.Set("Autobatcher-Mode", "x") },
		"bad window":    func(r *http.Request) { r.Header.Set("Autobatcher-Completion-Window", "7d") },
		"bad encoding":  func(r *http.Request) { r.Header.Set("Content-Encoding", "br") },
		"a broken body": func(r *http.Request) { r.Body.(*source).Reader = brokenReader{} },
		"a provider without batches": func(r *http.Request) {
			r.URL.Host = "api.x.ai"
		},
		"closed": nil,
	} {
		p := provider.OpenAI()
		if name == "a provider without batches" {
			p = provider.Profile{}
		}
		r := newRouter(t, p)
		body := &source{Reader: strings.NewReader(chat("a"))}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://host.example/v1/chat/completions", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Autobatcher-Deadline", "1h")
		if change == nil {
			r.tr.Close()
		} else {
			change(req)
		}
		before := req.Clone(t.Context())
		res, err := r.tr.RoundTrip(req)
		if res == passedAnswer {
			r.passed.Body.Close() // as a Base does
		}
		if !body.closed.Load() {
			t.Errorf("%s: the body was not closed", name)
		}
		if diff := cmp.Diff(before.Header, req.Header); diff != "" || req.Body != io.ReadCloser(body) ||
			req.ContentLength != before.ContentLength || req.URL.String() != before.URL.String() {
			t.Errorf("%s: the request was changed: %s", name, diff)
		}
		if wantErr := name == "a broken body" || name == "closed"; (err != nil) != wantErr {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// A field of an object, name and value token for token.
type rawField struct{ Name, Value string }

// rawFields reads an object without understanding its values.
func rawFields(t testing.TB, text string) (all []rawField) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		t.Fatalf("no object: %s", text)
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
		all = append(all, rawField{name.(string), compact(t, string(value))})
	}
	return all
}

// escapeSeparators escapes the characters at which some providers divide a file
// into lines, beside the line break.
var escapeSeparators = strings.NewReplacer("\u2028", `\u2028`, "\u2029", `\u2029`, "\u0085", `\u0085`)

// FuzzLine checks that every accepted body becomes a line of the same fields in the
// same order, but for stream and stream_options, and that an accepted body is valid.
func FuzzLine(f *testing.F) {
	for _, seed := range []string{
		`{"model":"m","stream":true}`, `{"model":"m","a":1e400,"a":-0.10}`, "{ \"model\" :\r\n\"m\" , \"stream\" : false , \"x\":[ ] }",
		`{"stream":{"stream":1},"model":"\u0041","stream_options":[],"stream":""}`, `{"model":"m","str\u0065am":true}`,
		`{"":1,"model":"m","a.b":{"stream":2},"*":3,"#":4,"@this":5,"stream|x":6,"\\stream":7}`, "[]", "", `{"model":"m"} x`,
		`{"model":"m","input":[1]}`, `{"stream":true,"model":"m"}`, `{"model":"m","stream":true,}`, "{\"model\":\"m\",\"a\":\"\u2028\"}",
	} {
		f.Add([]byte(seed))
	}
	r := newRouter(f, provider.Generic())
	f.Fuzz(func(t *testing.T, sent []byte) {
		res := r.send(t, "/embeddings", string(sent), nil)
		if r.line == nil {
			if res.StatusCode < 400 {
				t.Fatalf("%q was neither sent nor refused: %d", sent, res.StatusCode)
			}
			return
		}
		if !json.Valid(sent) || !json.Valid(r.line) || bytes.ContainsAny(bytes.TrimRight(r.line, "\n"), "\r\n") {
			t.Fatalf("%q became %q", sent, r.line)
		}
		var want []rawField
		for _, field := range rawFields(t, escapeSeparators.Replace(string(sent))) {
			if field.Name != "stream" && field.Name != "stream_options" {
				want = append(want, field)
			}
		}
		if diff := cmp.Diff(want, rawFields(t, r.body(t))); diff != "" {
			t.Fatalf("%q became %q: %s", sent, r.line, diff)
		}
	})
}

// Files and batches live below the base URL of the call.
func TestTheBaseURLOfTheCall(t *testing.T) {
	for _, base := range []string{"", "/v1", "/a/b%20c", "/api/v3"} {
		var paths []string
		tr, err := autobatcher.New(autobatcher.Options{BatchSize: 1, Base: baseFunc(func(req *http.Request) (*http.Response, error) {
			paths = append(paths, fmt.Sprint(req.URL.Scheme, "://", req.URL.Host, req.URL.EscapedPath()))
			io.Copy(io.Discard, req.Body)
			req.Body.Close()
			return &http.Response{StatusCode: 403, Header: http.Header{}, Body: http.NoBody, Request: req}, nil
		})})
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://gateway.example:8443"+base+"/chat/completions", strings.NewReader(chat("a")))
		if err != nil {
			t.Fatal(err)
		}
		if res, err := tr.RoundTrip(req); err != nil || res.StatusCode != 403 {
			t.Errorf("%v, %v", res, err)
		}
		if diff := cmp.Diff([]string{"https://gateway.example:8443" + base + "/files"}, paths); diff != "" {
			t.Error(diff)
		}
		tr.Close()
	}
}
