package batchapi_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/provider"
)

// A big file goes out as it is read: nobody holds it whole.
func TestUploadStreams(t *testing.T) {
	const lines = 2000
	body := []byte(`{"model":"m","text":"` + strings.Repeat("x", 1000) + `"}`)
	var handed atomic.Int64
	big := line.File{Lines: lines, At: func(i int) *line.Line {
		handed.Store(int64(i))
		return &line.Line{ID: "id", URL: "/v1/chat/completions", Body: body}
	}}
	via := roundTripper(func(req *http.Request) (*http.Response, error) {
		if want := big.Size(); req.ContentLength < want || req.ContentLength > want+2000 {
			t.Errorf("Content-Length %d of a file of %d bytes", req.ContentLength, want)
		}
		handed.Store(0)
		if _, err := io.CopyN(io.Discard, req.Body, 10_000); err != nil {
			t.Error(err)
		}
		if n := handed.Load(); n > 100 {
			t.Errorf("%d lines were read for the first 10,000 bytes", n)
		}
		n, err := io.Copy(io.Discard, req.Body)
		if err != nil || n+10_000 != req.ContentLength {
			t.Errorf("%d bytes, %v; %d were announced", n+10_000, err, req.ContentLength)
		}
		again, err := req.GetBody()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, again); err != nil || n != req.ContentLength {
			t.Errorf("opened again: %d bytes, %v", n, err)
		}
		return answer(200, `{"id":"f"}`), nil
	})
	if id, err := openai(t, via).Upload(t.Context(), batchapi.Upload{Name: "x"}, big); id != "f" || err != nil {
		t.Errorf("%q, %v", id, err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// net/http may read a body after the request has failed; the lines are no
// longer ours then.
func TestNobodyReadsAfterUploadReturned(t *testing.T) {
	var late io.Reader
	via := roundTripper(func(req *http.Request) (*http.Response, error) {
		late = req.Body
		return answer(413, `{}`), nil
	})
	_, err := openai(t, via).Upload(t.Context(), batchapi.Upload{Name: "x"}, file(1))
	if e := failure(t, err); e.Status != 413 {
		t.Error(e)
	}
	if _, err := late.Read(make([]byte, 10)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after the end: %v", err)
	}
}

func TestUploadAnswers(t *testing.T) {
	for name, body := range map[string]string{"no id": `{}`, "a page": `<html>`, "nothing": ``, "a list": `[]`} {
		_, err := openai(t, always(200, body)).Upload(t.Context(), batchapi.Upload{Name: "x"}, file(1))
		if e := failure(t, err); !e.Transient() {
			t.Errorf("%s: %v is not transient; uploading again costs nothing", name, e)
		}
	}
}

// What moves may take hours; what stands still for five minutes has failed.
func TestStalls(t *testing.T) {
	stalls := func(t *testing.T, after time.Duration, do func(c *batchapi.Client) error, answer func(req *http.Request) (*http.Response, error)) {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			err := do(openai(t, roundTripper(answer)))
			if e := failure(t, err); !e.Transient() || time.Since(began) != after {
				t.Errorf("%v after %v, want a transient error after %v", e, time.Since(began), after)
			}
		})
	}
	silent := func(req *http.Request) (*http.Response, error) {
		if req.Body != nil {
			io.Copy(io.Discard, req.Body)
			req.Body.Close()
		}
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	t.Run("upload", func(t *testing.T) {
		stalls(t, 5*time.Minute, upload, silent)
	})
	t.Run("upload that nobody reads", func(t *testing.T) {
		stalls(t, 5*time.Minute, upload, func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		})
	})
	t.Run("create", func(t *testing.T) {
		stalls(t, time.Minute, func(c *batchapi.Client) error {
			_, err := c.Create(context.Background(), batchapi.CreateParams{InputFileID: "f"})
			return err
		}, silent)
	})
	t.Run("an object whose end does not come", func(t *testing.T) {
		stalls(t, time.Minute, func(c *batchapi.Client) error {
			_, err := c.Retrieve(context.Background(), "b")
			return err
		}, func(req *http.Request) (*http.Response, error) {
			res := answer(200, "")
			res.Body, res.ContentLength = newSlowBody("{", func() error { <-req.Context().Done(); return req.Context().Err() }), -1
			return res, nil
		})
	})
	t.Run("download", func(t *testing.T) {
		stalls(t, 15*time.Minute, func(c *batchapi.Client) error {
			content, err := c.Content(context.Background(), "f", 0)
			if err != nil {
				return err
			}
			defer content.Body.Close()
			if _, err = io.ReadAll(content.Body); err == nil {
				return nil
			}
			return &batchapi.Error{Err: err}
		}, func(req *http.Request) (*http.Response, error) {
			res, steps := answer(200, ""), 0
			// Two bytes, four and eight minutes apart in all, then silence.
			res.Body, res.ContentLength = newSlowBody(strings.Repeat("x", 1000), func() error {
				if steps++; steps > 3 {
					<-req.Context().Done()
					return req.Context().Err()
				}
				return wait(req.Context(), 4*time.Minute-time.Duration(steps/3)*2*time.Minute)
			}), -1
			return res, nil
		})
	})
	t.Run("slow but moving", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			via := roundTripper(func(req *http.Request) (*http.Response, error) {
				res := answer(200, "")
				res.Body, res.ContentLength = newSlowBody(strings.Repeat("x", 60), func() error { return wait(req.Context(), 4*time.Minute) }), -1
				return res, nil
			})
			content, err := openai(t, via).Content(t.Context(), "f", 0)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(content.Body)
			content.Body.Close()
			if len(text) != 60 || err != nil {
				t.Errorf("%d bytes, %v; want sixty, over four hours", len(text), err)
			}
		})
	})
}

func upload(c *batchapi.Client) error {
	_, err := c.Upload(context.Background(), batchapi.Upload{Name: "x"}, file(3))
	return err
}

func wait(ctx context.Context, d time.Duration) error { return batchapi.Sleep(ctx, d) }

func TestContent(t *testing.T) {
	for _, tt := range []struct {
		name       string
		skip       int
		header     []string
		query      string
		partial    bool
		incomplete bool
		last       int
	}{
		{"whole", 0, nil, "", false, false, -1},
		{"resumed", 7, nil, "?offset=7&skip=7", false, false, -1},
		{"partial", 0, []string{"X-Incomplete", "true", "X-Last-Line", "3"}, "", true, true, 3},
		{"the last part", 3, []string{"X-Incomplete", "False", "X-Last-Line", "9"}, "?offset=3&skip=3", true, false, 9},
		{"nonsense", 0, []string{"X-Last-Line", "-4"}, "", false, false, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := always(200, "{}\n", tt.header...)
			content, err := openai(t, w).Content(t.Context(), "f", tt.skip)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(content.Body)
			content.Body.Close()
			if string(text) != "{}\n" || err != nil || content.Partial != tt.partial || content.Incomplete != tt.incomplete || content.LastLine != tt.last {
				t.Errorf("%q, %v, %+v", text, err, content)
			}
			if got := w.requests()[0].url; got != "https://api.openai.com/v1/files/f/content"+tt.query {
				t.Errorf("url = %s", got)
			}
		})
	}
}

const signed = "https://cdn.example/results/1?signature=s3cret"

func TestResultURLs(t *testing.T) {
	t.Run("without credentials", func(t *testing.T) {
		w := always(200, "{}\n")
		content, err := client(t, "https://api.siliconflow.cn/v1", provider.SiliconFlow(), w).Content(t.Context(), signed, 5)
		if err != nil {
			t.Fatal(err)
		}
		content.Body.Close()
		s := w.requests()[0]
		if s.method != "GET" || s.url != signed || s.header.Get("Authorization") != "" || strings.Contains(s.url, "sk-test") {
			t.Errorf("%s %s %v", s.method, s.url, s.header)
		}
	})
	t.Run("nowhere else", func(t *testing.T) {
		w := always(404, "{}")
		openai(t, w).Content(t.Context(), signed, 0)
		if s := w.requests()[0]; !strings.HasPrefix(s.url, "https://api.openai.com/v1/files/https:%2F%2Fcdn") {
			t.Errorf("fetched %s", s.url)
		}
	})
	t.Run("not in the clear", func(t *testing.T) {
		w := always(404, "{}")
		client(t, "https://api.siliconflow.cn/v1", provider.SiliconFlow(), w).Content(t.Context(), "http://169.254.169.254/latest", 0)
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
			_, err := client(t, "https://api.siliconflow.cn/v1", provider.SiliconFlow(), w).Content(t.Context(), signed, 0)
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
			c := batchapi.New(base, http.Header{name: {"secret"}}, w, provider.Together())
			content, err := c.Content(t.Context(), "f", 0)
			for _, s := range w.requests()[1:] {
				if valuesOf(s.header, name) != nil {
					t.Errorf("%s went along to %s", name, s.url)
				}
			}
			if err != nil {
				t.Fatalf("a redirected download fails: %v", err)
			}
			content.Body.Close()
		})
	}
}
