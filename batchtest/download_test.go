package batchtest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/batchtest"
)

// fetch downloads a file with further headers, given as name and value in turn.
func (a *api) fetch(path string, header ...string) (answer, error) {
	a.t.Helper()
	req := a.request("GET", path, nil)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return a.attempt(req)
}

// TestRanges asks for parts of a result file and of an upload.
func TestRanges(t *testing.T) {
	behavior := batchtest.OpenAI()
	behavior.Ranges = true
	onBothTransports(t, batchtest.Options{Behavior: behavior}, func(t *testing.T, a *api) {
		b := a.retrieve(a.create(chatLines(300))["id"])
		for _, id := range []any{b["input_file_id"], b["output_file_id"]} {
			a.fetchRanges("/files/" + id.(string) + "/content")
		}
	})
}

func (a *api) fetchRanges(path string) {
	a.t.Helper()
	whole := a.get(path)
	size, etag := len(whole.body), whole.header.Get("ETag")
	if whole.status != 200 || etag == "" || whole.header.Get("Accept-Ranges") != "bytes" {
		a.t.Fatalf("whole file: %d, ETag %q, Accept-Ranges %q", whole.status, etag, whole.header.Get("Accept-Ranges"))
	}
	for _, tt := range []struct {
		header []string
		status int
		body   string
		part   string // Content-Range
	}{
		{[]string{"Range", "bytes=1000-"}, 206, whole.body[1000:], fmt.Sprintf("bytes 1000-%d/%d", size-1, size)},
		{[]string{"Range", "bytes=5-9"}, 206, whole.body[5:10], fmt.Sprintf("bytes 5-9/%d", size)},
		{[]string{"Range", "bytes=10-", "If-Range", etag}, 206, whole.body[10:], fmt.Sprintf("bytes 10-%d/%d", size-1, size)},
		{[]string{"Range", "bytes=10-", "If-Range", `"other"`}, 200, whole.body, ""},
		{[]string{"Range", fmt.Sprintf("bytes=%d-", size)}, 416, "", fmt.Sprintf("bytes */%d", size)},
	} {
		got, err := a.fetch(path, tt.header...)
		if err != nil || got.status != tt.status || got.header.Get("Content-Range") != tt.part {
			a.t.Errorf("%v: %d, Content-Range %q, %v; want %d, %q", tt.header, got.status, got.header.Get("Content-Range"), err, tt.status, tt.part)
		}
		if tt.body != "" && got.body != tt.body {
			a.t.Errorf("%v: %d bytes, want %d", tt.header, len(got.body), len(tt.body))
		}
	}
}

func TestRangeIsIgnoredByDefault(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.Doubleword()})
	path := "/files/" + a.retrieve(a.create(chatLines(3))["id"])["output_file_id"].(string) + "/content"
	whole := a.get(path)
	got, err := a.fetch(path, "Range", "bytes=100-")
	if err != nil || got.status != 200 || got.body != whole.body || got.header.Get("ETag") != "" {
		t.Errorf("%d, %d bytes, %v; want 200 and the whole file", got.status, len(got.body), err)
	}
}

// TestDownloadsThatAreAlwaysCut reads a file through a network that cuts every
// answer. With Range the client gets to the end; without, never.
func TestDownloadsThatAreAlwaysCut(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		behavior := batchtest.OpenAI()
		behavior.Ranges = ranges
		onBothTransports(t, batchtest.Options{Behavior: behavior}, func(t *testing.T, a *api) {
			path := "/files/" + a.retrieve(a.create(chatLines(50))["id"])["output_file_id"].(string) + "/content"
			whole := a.get(path).body
			stop := a.server.Keep(batchtest.OpContent, batchtest.Tear(4000))
			defer stop()
			var read strings.Builder
			for range len(whole)/4000 + 1 {
				got, err := a.fetch(path, "Range", fmt.Sprintf("bytes=%d-", read.Len()))
				if err == nil {
					t.Fatalf("an answer of %d bytes was not cut", len(got.body))
				}
				if got.status == 206 {
					read.WriteString(got.body)
				} else if want := whole[:4000]; got.body != want {
					t.Fatalf("a cut answer has %d bytes, want %d", len(got.body), len(want))
				}
			}
			if complete := read.String() == whole; complete != ranges {
				t.Errorf("with ranges %v, the client read %d of %d bytes", ranges, read.Len(), len(whole))
			}
		})
	}
}

// TestTruncateInLine ends a download inside a line, without an error.
func TestTruncateInLine(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(t *testing.T, a *api) {
		path := "/files/" + a.retrieve(a.create(chatLines(400))["id"])["output_file_id"].(string) + "/content"
		whole := a.get(path).body
		lines := strings.SplitAfter(whole, "\n")
		for _, n := range []int{0, 1, 250} {
			want := strings.Join(lines[:n], "") + lines[n][:20]
			a.server.Control(batchtest.OpContent, batchtest.TruncateInLine(n))
			got, err := a.fetch(path)
			if err != nil || got.body != want {
				t.Errorf("TruncateInLine(%d): %d bytes, %v; want %d bytes and no error", n, len(got.body), err, len(want))
			}
		}
		a.server.Control(batchtest.OpContent, batchtest.TruncateInLine(400))
		if got, err := a.fetch(path); err != nil || got.body != whole {
			t.Errorf("a file of no more lines: %d bytes, %v; want all %d", len(got.body), err, len(whole))
		}
	})
}

// TestATruncatedAnswerEndsWithTheConnection checks that the length of a truncated
// answer is unknown, so that the client cannot notice the end.
func TestATruncatedAnswerEndsWithTheConnection(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(t *testing.T, a *api) {
		path := "/files/" + a.retrieve(a.create(chatLines(2))["id"])["input_file_id"].(string) + "/content"
		a.server.Control(batchtest.OpContent, batchtest.Truncate(10))
		req := a.request("GET", path, nil)
		req.Header.Set("Authorization", "Bearer "+a.key)
		res, err := a.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil || len(body) != 10 || res.ContentLength != -1 || !res.Close || res.Header.Get("Transfer-Encoding") != "" {
			t.Errorf("%d bytes, %v, ContentLength %d, Close %v, header %v", len(body), err, res.ContentLength, res.Close, res.Header)
		}
	})
}

func TestHTMLInPlaceOfAFile(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	path := "/files/" + a.upload(chatLines(1)) + "/content"
	a.server.Control(batchtest.OpContent, batchtest.HTML(200))
	got := a.get(path)
	if got.status != 200 || got.header.Get("Content-Type") != "text/html" || !strings.HasPrefix(got.body, "<html>") {
		t.Errorf("got %+v, want a page with status 200", got)
	}
}

func TestPrepend(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(t *testing.T, a *api) {
		b := a.retrieve(a.create(chatLines(2))["id"])
		for _, id := range []any{b["input_file_id"], b["output_file_id"]} {
			path := "/files/" + id.(string) + "/content"
			want := "\ufeff" + a.get(path).body
			a.server.Control(batchtest.OpContent, batchtest.Prepend("\ufeff"))
			if got, err := a.fetch(path); err != nil || got.body != want {
				t.Errorf("%d bytes, %v; want %d", len(got.body), err, len(want))
			}
		}
	})
}

// TestLinesThatAreNotStrictJSON writes bodies that some providers were seen to
// write, and that encoding/json cannot read.
func TestLinesThatAreNotStrictJSON(t *testing.T) {
	for name, body := range map[string]string{
		"a raw tab":      "{\"text\":\"a\tb\"}",
		"a wrong escape": `{"text":"costs \$5"}`,
		"an infinity":    `{"logprob":-Infinity}`,
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome {
				return batchtest.Outcome{Body: []byte(body), BodyVerbatim: true}
			}})
			b := a.retrieve(a.create(chatLine("x", "hi"))["id"])
			got := a.get("/files/" + b["output_file_id"].(string) + "/content").body
			want := fmt.Sprintf(`{"id":"batch_req_%[1]s-0","custom_id":"x","response":{"status_code":200,"request_id":"req_%[1]s-0","body":%[2]s},"error":null}`+"\n", b["id"], body)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("line (-want +got):\n%s", diff)
			}
			if json.Valid([]byte(got)) {
				t.Error("the line is strict JSON")
			}
			if n := a.server.PaidPrompts()["hi"]; n != 1 {
				t.Errorf("the line was paid for %d times, want once", n)
			}
		})
	}
}

func TestDuplicateLines(t *testing.T) {
	a := newAPI(t, batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		if l.CustomID == "line-0" {
			return batchtest.Outcome{Duplicates: 2}
		}
		return batchtest.Outcome{Duplicates: -1}
	}})
	b := a.retrieve(a.create(chatLines(2))["id"])
	var got []string
	for _, l := range a.results(b["output_file_id"]) {
		got = append(got, l["custom_id"].(string))
	}
	if diff := cmp.Diff([]string{"line-0", "line-0", "line-0", "line-1"}, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	if counts(b) != "2/2/0" {
		t.Errorf("counts = %s, want 2/2/0: the copies do not count", counts(b))
	}
	path := "/files/" + b["output_file_id"].(string)
	if size := a.get(path).json(t)["bytes"]; size != float64(len(a.get(path+"/content").body)) {
		t.Errorf("size of the file = %v", size)
	}
	if n := a.server.PaidPrompts()["Hello 0."]; n != 1 {
		t.Errorf("a line with copies was paid for %d times, want once", n)
	}
}
