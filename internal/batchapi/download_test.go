package batchapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/credential"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/results"
	"github.com/autobatcher/autobatcher/provider"
)

func TestResults(t *testing.T) {
	for _, tt := range []struct {
		name       string
		skip       int
		header     []string
		query      string
		from       int
		partial    bool
		incomplete bool
		next       int // the line of the position at the end
	}{
		{"whole", 0, nil, "", 0, false, false, 1},
		{"resumed by a server that cannot", 7, nil, "?offset=7&skip=7", 0, false, false, 1},
		{"partial", 0, []string{"X-Incomplete", "true", "X-Last-Line", "3"}, "", 0, true, true, 3},
		{"the last part", 3, []string{"X-Incomplete", "False", "X-Last-Line", "9"}, "?offset=3&skip=3", 3, true, false, 9},
		{"a last line before the position", 3, []string{"X-Incomplete", "False", "X-Last-Line", "1"}, "?offset=3&skip=3", 3, true, false, 4},
		{"nonsense", 0, []string{"X-Last-Line", "-4"}, "", 0, false, false, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := always(200, `{"custom_id":"a"}`+"\n", tt.header...)
			s, err := openai(t, w).Results(t.Context(), backend.Handle{}, "f", backend.Position{Line: tt.skip, Partial: true})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if r, err := s.Next(); r.ID != "a" || err != nil {
				t.Errorf("first %+v, %v", r, err)
			}
			if r, err := s.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("second %+v, %v", r, err)
			}
			if s.From.Line != tt.from || s.Partial != tt.partial || s.Incomplete != tt.incomplete || s.Position().Line != tt.next {
				t.Errorf("%+v, ending at %+v", s, s.Position())
			}
			if got := w.requests()[0].url; got != "https://api.openai.com/v1/files/f/content"+tt.query {
				t.Errorf("url = %s", got)
			}
		})
	}
}

// open opens a result file from the beginning.
func open(t testing.TB, c *batchapi.Client, source string) (*backend.Stream, error) {
	t.Helper()
	return c.Results(t.Context(), backend.Handle{}, source, backend.Position{})
}

const signed = "https://cdn.example/results/1?signature=s3cret"

func TestResultURLs(t *testing.T) {
	t.Run("without credentials", func(t *testing.T) {
		w := always(200, "{}\n")
		content, err := open(t, client(t, "https://api.siliconflow.cn/v1", provider.SiliconFlow(), w), signed)
		if err != nil {
			t.Fatal(err)
		}
		content.Close()
		s := w.requests()[0]
		if s.method != "GET" || s.url != signed || s.header.Get("Authorization") != "" || strings.Contains(s.url, "sk-test") {
			t.Errorf("%s %s %v", s.method, s.url, s.header)
		}
	})
	t.Run("nowhere else", func(t *testing.T) {
		w := always(404, "{}")
		open(t, openai(t, w), signed)
		if s := w.requests()[0]; !strings.HasPrefix(s.url, "https://api.openai.com/v1/files/https:%2F%2Fcdn") {
			t.Errorf("fetched %s", s.url)
		}
	})
	t.Run("not in the clear", func(t *testing.T) {
		w := always(404, "{}")
		open(t, client(t, "https://api.siliconflow.cn/v1", provider.SiliconFlow(), w), "http://169.254.169.254/latest")
		if s := w.requests()[0]; strings.HasPrefix(s.url, "http://169") {
			t.Errorf("fetched %s", s.url)
		}
	})
	for name, w := range map[string]*wire{
		"refused": always(403, "<Error>AccessDenied</Error>"),
		"broken":  {answer: func(sent, int) (*http.Response, error) { return nil, errors.New("connection reset") }},
		"stalled": {answer: func(sent, int) (*http.Response, error) { return nil, context.DeadlineExceeded }},
	} {
		t.Run("an error does not say the address: "+name, func(t *testing.T) {
			_, err := open(t, client(t, "https://api.siliconflow.cn/v1", provider.SiliconFlow(), w), signed)
			if e := failure(t, err); strings.Contains(e.Error(), "s3cret") || e.Status == 0 && !e.Transient() {
				t.Errorf("%v, transient %v", e, e.Transient())
			}
		})
	}
}

// A file that is handed out by redirect to another host is fetched there, and
// the credential stays behind.
func TestRedirectedDownload(t *testing.T) {
	for _, name := range []string{"Authorization", "Api-Key", "X-Tenant-Token", "Openai-Organization"} {
		t.Run(name, func(t *testing.T) {
			w := &wire{answer: func(s sent, n int) (*http.Response, error) {
				if n == 0 {
					return answer(302, "", "Location", signed), nil
				}
				return answer(200, "{}\n"), nil
			}}
			base := mustURL(t, "https://api.together.xyz/v1")
			via := credential.With(http.Header{"X-Tenant": {"secret"}}, keyed(name, "secret", w))
			content, err := open(t, batchapi.New(base, via, provider.Together(), nil), "f")
			for _, s := range w.requests()[1:] {
				if valuesOf(s.header, name) != nil || valuesOf(s.header, "X-Tenant") != nil {
					t.Errorf("%v went along to %s", s.header, s.url)
				}
			}
			if err != nil {
				t.Fatalf("a redirected download fails: %v", err)
			}
			content.Close()
		})
	}
}

// drain reads a Stream to its end, and returns the ids of its results.
func drain(s *backend.Stream) (ids []string, err error) {
	defer s.Close()
	for {
		r, err := s.Next()
		switch {
		case err == nil:
			ids = append(ids, r.ID)
		case !errors.Is(err, line.ErrMalformed):
			return ids, err
		}
	}
}

// A file that ends within a line, or that is a page, was not read.
func TestBrokenDownloads(t *testing.T) {
	const a, b = `{"custom_id":"a","response":{"status_code":200,"body":{}}}`, `{"custom_id":"b","response":{"status_code":200,"body":{}}}`
	for _, tt := range []struct {
		name, body string
		ids        []string
		whole      bool
		line       int // of the position afterwards
		byte       int
	}{
		{"whole", a + "\n" + b + "\n", []string{"a", "b"}, true, 2, len(a) + len(b) + 2},
		{"whole without a last line break", a + "\n" + b, []string{"a", "b"}, true, 2, len(a) + len(b) + 1},
		{"empty", "", nil, true, 0, 0},
		{"blank", "\n\n", nil, true, 2, 2},
		{"ends within a line", a + "\n" + b[:20], []string{"a"}, false, 1, len(a) + 1},
		{"ends within a string", a + "\n" + b[:len(b)-30], []string{"a"}, false, 1, len(a) + 1},
		{"lacks the last bracket", a + "\n" + b[:len(b)-1], []string{"a"}, false, 1, len(a) + 1},
		{"ends within the first line", a[:10], nil, false, 0, 0},
		{"not strict JSON, without a last line break", a + "\n" + `{"custom_id":"b","response":{"status_code":200,"body":{"x":NaN}}}`, []string{"a", "b"}, true, 2, len(a) + 66},
		{"a page", "<html>\n<body>sorry</body>\n</html>\n", nil, false, 0, 0},
		{"a page without a last line break", "<html>\n<body>sorry</body>\n</html>", nil, false, 0, 0},
		{"an error in place of the file", `{"error":{"message":"try later"}}` + "\n", nil, false, 0, 0},
		{"a line that is not a result", a + "\nnonsense\n" + b + "\n", []string{"a", "b"}, true, 3, len(a) + len(b) + 11},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := open(t, openai(t, always(200, tt.body)), "f")
			if err != nil {
				t.Fatal(err)
			}
			ids, err := drain(s)
			if diff := cmp.Diff(tt.ids, ids); diff != "" {
				t.Errorf("ids (-want +got)\n%s", diff)
			}
			if tt.whole != errors.Is(err, io.EOF) {
				t.Errorf("ended with %v", err)
			}
			if !tt.whole && !failure(t, err).Transient() {
				t.Errorf("%v is not transient", err)
			}
			if at := s.Position(); at.Line != tt.line || at.Byte != int64(tt.byte) {
				t.Errorf("at %+v, want line %d and byte %d", at, tt.line, tt.byte)
			}
		})
	}
}

// A download that broke off goes on where it ended, if the server takes ranges.
func TestRanges(t *testing.T) {
	const a, b = `{"custom_id":"a"}` + "\n", `{"custom_id":"b"}` + "\n"
	rest := func(status int, body string, header ...string) func(sent) *http.Response {
		return func(sent) *http.Response { return answer(status, body, header...) }
	}
	at := fmt.Sprintf("bytes %d-%d/%d", len(a), len(a+b)-1, len(a+b))
	for _, tt := range []struct {
		name   string
		header []string // of the first response
		second func(sent) *http.Response
		ranged bool // the second request asks for a range
		ifTag  string
		sent   int
		ids    []string // of the second Stream
	}{
		{"ranges", []string{"Accept-Ranges", "bytes"}, rest(206, b, "Content-Range", at), true, "", 2, []string{"b"}},
		{"ranges of a version", []string{"Accept-Ranges", "bytes", "ETag", `"v1"`}, rest(206, b, "Content-Range", at, "ETag", `"v1"`), true, `"v1"`, 2, []string{"b"}},
		{"a weak version", []string{"Accept-Ranges", "bytes", "ETag", `W/"v1"`}, rest(206, b, "Content-Range", at), true, "", 2, []string{"b"}},
		{"not announced", nil, rest(200, a+b), true, "", 2, []string{"a", "b"}},
		{"refused by name", []string{"Accept-Ranges", "none"}, rest(200, a+b), false, "", 2, []string{"a", "b"}},
		{"encoded", []string{"Accept-Ranges", "bytes", "Content-Encoding", "br"}, rest(200, a+b), false, "", 2, []string{"a", "b"}},
		{"the whole file instead", []string{"Accept-Ranges", "bytes"}, rest(200, a+b), true, "", 2, []string{"a", "b"}},
		{"another range", []string{"Accept-Ranges", "bytes"}, another(206, a+b, "Content-Range", "bytes 5-9/10"), true, "", 3, []string{"a", "b"}},
		{"no Content-Range", []string{"Accept-Ranges", "bytes"}, another(206, a+b), true, "", 3, []string{"a", "b"}},
		{"another version", []string{"Accept-Ranges", "bytes", "ETag", `"v1"`}, another(206, a+b, "Content-Range", at, "ETag", `"v2"`), true, `"v1"`, 3, []string{"a", "b"}},
		{"not satisfiable", []string{"Accept-Ranges", "bytes"}, another(416, a+b), true, "", 3, []string{"a", "b"}},
		{"not understood", []string{"Accept-Ranges", "bytes"}, another(400, a+b), true, "", 3, []string{"a", "b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &wire{}
			w.answer = func(s sent, n int) (*http.Response, error) {
				if n == 0 {
					return answer(200, a+b[:7], tt.header...), nil
				}
				return tt.second(s), nil
			}
			c := openai(t, w)
			first, err := open(t, c, "f")
			if err != nil {
				t.Fatal(err)
			}
			if ids, err := drain(first); len(ids) != 1 || !failure(t, err).Transient() {
				t.Fatalf("%v, %v", ids, err)
			}
			second, err := c.Results(t.Context(), backend.Handle{}, "f", first.Position())
			if err != nil {
				t.Fatal(err)
			}
			ids, err := drain(second)
			if diff := cmp.Diff(tt.ids, ids); diff != "" || !errors.Is(err, io.EOF) {
				t.Errorf("%v (-want +got)\n%s", err, diff)
			}
			if pos := second.Position(); pos.Line != 2 || pos.Byte != int64(len(a+b)) {
				t.Errorf("at %+v", pos)
			}
			if n := len(w.requests()); n != tt.sent {
				t.Errorf("%d requests, want %d", n, tt.sent)
			}
			h := w.requests()[1].header
			if want := fmt.Sprintf("bytes=%d-", len(a)); (h.Get("Range") == want) != tt.ranged || h.Get("If-Range") != tt.ifTag {
				t.Errorf("Range %q, If-Range %q", h.Get("Range"), h.Get("If-Range"))
			}
		})
	}
}

// another answers a request for a range in the given way, and any other request
// with the body.
func another(status int, body string, header ...string) func(sent) *http.Response {
	return func(s sent) *http.Response {
		if s.header.Get("Range") != "" {
			return answer(status, "rest\n", header...)
		}
		return answer(200, body)
	}
}

// A file behind a signed URL is resumed, too.
func TestRangesOfURLs(t *testing.T) {
	w := &wire{answer: func(s sent, n int) (*http.Response, error) {
		switch {
		case s.url != signed:
			return answer(302, "", "Location", signed), nil
		case s.header.Get("Range") == "bytes=18-":
			return answer(206, `{"custom_id":"b"}`+"\n", "Content-Range", "bytes 18-35/36"), nil
		}
		return answer(200, `{"custom_id":"a"}`+"\n{", "Accept-Ranges", "bytes"), nil
	}}
	c := openai(t, w)
	first, err := open(t, c, "f")
	if err != nil {
		t.Fatal(err)
	}
	drain(first)
	second, err := c.Results(t.Context(), backend.Handle{}, "f", first.Position())
	if err != nil {
		t.Fatal(err)
	}
	if ids, err := drain(second); !slices.Equal(ids, []string{"b"}) || !errors.Is(err, io.EOF) {
		t.Errorf("%v, %v", ids, err)
	}
}

// A connection that always breaks off does not keep a file from being read to its
// end, and a page in place of the file is not read as a file.
func TestReaderOfBrokenDownloads(t *testing.T) {
	var whole strings.Builder
	for i := range 50 {
		fmt.Fprintf(&whole, `{"custom_id":"c%d","response":{"status_code":200,"body":{}}}`+"\n", i)
	}
	const reach = 300 // bytes that a connection carries
	w := &wire{answer: func(s sent, n int) (*http.Response, error) {
		if n == 0 {
			return answer(200, "<html>\n", "Content-Type", "text/html"), nil
		}
		from := 0
		fmt.Sscanf(s.header.Get("Range"), "bytes=%d-", &from)
		text := whole.String()[from:]
		status, header := 200, []string{"Accept-Ranges", "bytes", "ETag", `"1"`}
		if from > 0 {
			status, header = 206, append(header, "Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, whole.Len()-1, whole.Len()))
		}
		res := answer(status, text, header...)
		if len(text) > reach {
			res.Body = io.NopCloser(io.MultiReader(strings.NewReader(text[:reach]), iotest.ErrReader(io.ErrUnexpectedEOF)))
		}
		return res, nil
	}}
	c := openai(t, w)
	r := results.NewReader(c, func() bool { return false }, nil)
	r.SetSources(backend.Handle{}, []string{"f"})
	delivered := 0
	deliver := func(result *line.Result) bool {
		delivered++
		return result.Answered()
	}
	for r.ReadAll(t.Context(), true, func() int { return 1 }, deliver) != nil && len(w.requests()) < 30 {
		if r.Verdict() != results.Truncated || r.SawAll(50) {
			t.Fatalf("verdict %v after %d lines", r.Verdict(), delivered)
		}
	}
	if delivered != 50 || !r.SawAll(50) || r.Malformed() != 0 {
		t.Errorf("%d lines delivered after %d requests, %d malformed", delivered, len(w.requests()), r.Malformed())
	}
}

// A server that skips lines sends the line again in which the last download broke
// off. The beginning of the line that was read before must not precede the line.
func TestAServerThatSkipsLinesSendsTheWholeLineAgain(t *testing.T) {
	first, second := `{"custom_id":"a","response":{"status_code":200,"body":{}}}`, `{"custom_id":"b","response":{"status_code":200,"body":{}}}`
	w := &wire{answer: func(s sent, n int) (*http.Response, error) {
		header := []string{"X-Incomplete", "true"}
		switch n {
		case 0:
			return answer(200, first+"\n", header...), nil
		case 1:
			return answer(200, second[:20], header...), nil // and again within the line
		}
		return answer(200, second+"\n", header...), nil
	}}
	c := openai(t, w)
	r := results.NewReader(c, func() bool { return false }, nil)
	r.SetSources(backend.Handle{}, []string{"f"})
	var ids []string
	for range 3 {
		_ = r.ReadNew(t.Context(), func(result *line.Result) bool {
			if result.Malformed {
				t.Errorf("line %q is malformed", result.Body)
			}
			ids = append(ids, result.ID)
			return true
		})
	}
	if !slices.Equal(ids, []string{"a", "b"}) || !strings.Contains(w.requests()[2].url, "skip=1") {
		t.Errorf("results %v, last request %s", ids, w.requests()[2].url)
	}
}
