package batchapi_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/provider"
)

// An upload streams the file, and does not hold the whole file in memory.
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
	if id, err := openai(t, via).UploadOnce(t.Context(), backend.Params{Name: "x"}, big); id != "f" || err != nil {
		t.Errorf("%q, %v", id, err)
	}
}

// net/http may read a body after the request has failed; the lines are no
// longer ours then.
func TestNobodyReadsAfterUploadReturned(t *testing.T) {
	var late io.Reader
	via := roundTripper(func(req *http.Request) (*http.Response, error) {
		late = req.Body
		return answer(413, `{}`), nil
	})
	_, err := openai(t, via).UploadOnce(t.Context(), backend.Params{Name: "x"}, file(1))
	if e := failure(t, err); e.Status != 413 {
		t.Error(e)
	}
	if _, err := late.Read(make([]byte, 10)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after the end: %v", err)
	}
}

func TestUploadAnswers(t *testing.T) {
	for name, body := range map[string]string{"no id": `{}`, "a page": `<html>`, "nothing": ``, "a list": `[]`} {
		_, err := openai(t, always(200, body)).UploadOnce(t.Context(), backend.Params{Name: "x"}, file(1))
		if e := failure(t, err); !e.Transient() {
			t.Errorf("%s: %v is not transient; uploading again costs nothing", name, e)
		}
	}
}

// Azure processes an input file before a batch may use the file.
func TestPrepareWaitsForTheFile(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first string   // the status in the response to the upload
		later []string // the statuses afterwards; the last stays
		gets  int      // 0: none
		fails bool
		most  time.Duration
	}{
		{"OpenAI", "processed", nil, 0, false, 0},
		{"Doubleword", "uploaded", nil, 0, false, 0},
		{"no status", "", nil, 0, false, 0},
		{"Azure", "pending", []string{"pending", "running", "processed"}, 3, false, 10 * time.Second},
		{"Azure in capitals", "Pending", []string{"Processed"}, 1, false, 2 * time.Second},
		{"an error on the way", "pending", []string{"", "processed"}, 2, false, 10 * time.Second},
		{"the file is refused", "pending", []string{"error"}, 1, true, 2 * time.Second},
		{"never processed", "pending", []string{"pending"}, -1, false, 11 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gets := 0
				w := &wire{answer: func(s sent, _ int) (*http.Response, error) {
					if s.method == http.MethodPost {
						return answer(200, fmt.Sprintf(`{"id":"f","status":%q}`, tt.first)), nil
					}
					status := tt.later[min(gets, len(tt.later)-1)]
					gets++
					if status == "" {
						return answer(503, "{}"), nil
					}
					return answer(200, fmt.Sprintf(`{"id":"f","status":%q,"status_details":"Line 2: no"}`, status)), nil
				}}
				began := time.Now()
				h, err := openai(t, w).Prepare(t.Context(), file(3), backend.Params{Name: "x"})
				if h.FileID != "f" || (err != nil) != tt.fails || time.Since(began) > tt.most {
					t.Errorf("%+v, %v after %v", h, err, time.Since(began))
				}
				if tt.gets >= 0 && gets != tt.gets {
					t.Errorf("the file was looked at %d times, want %d", gets, tt.gets)
				}
				if tt.fails {
					if e := failure(t, err); !e.RefusesUpload() || e.Line() != 2 {
						t.Errorf("%v: refused %v, line %d", e, e.RefusesUpload(), e.Line())
					}
				}
			})
		})
	}
}

// An upload is repeated, for half an hour, unless the provider refuses the file.
func TestPrepareRetries(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers []func() (*http.Response, error)
		sent    int // 0: any number
		fails   bool
		least   time.Duration
	}{
		{"a broken connection", []func() (*http.Response, error){reset, says(200, `{"id":"f"}`)}, 2, false, 0},
		{"no id", []func() (*http.Response, error){says(200, `{}`), says(200, `{"id":"f"}`)}, 2, false, 0},
		{"a long Retry-After", []func() (*http.Response, error){says(503, `{}`, "Retry-After", "1200"), says(200, `{"id":"f"}`)}, 2, false, 20 * time.Minute},
		{"a Retry-After beyond the budget", []func() (*http.Response, error){says(503, `{}`, "Retry-After", "7200")}, 1, true, 0},
		{"refused", []func() (*http.Response, error){says(400, `{}`)}, 1, true, 0},
		{"not authorized", []func() (*http.Response, error){says(401, `{}`)}, 1, true, 0},
		{"never", []func() (*http.Response, error){says(500, `{}`)}, 0, true, 29 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &wire{answer: func(_ sent, n int) (*http.Response, error) { return tt.answers[min(n, len(tt.answers)-1)]() }}
				began := time.Now()
				h, err := openai(t, w).Prepare(t.Context(), file(1), backend.Params{Name: "x"})
				if (h.FileID == "f") == tt.fails || (err != nil) != tt.fails {
					t.Errorf("%+v, %v", h, err)
				}
				if n := len(w.requests()); tt.sent > 0 && n != tt.sent {
					t.Errorf("%d uploads, want %d", n, tt.sent)
				}
				if d := time.Since(began); d < tt.least || d > 31*time.Minute {
					t.Errorf("took %v", d)
				}
			})
		})
	}
}

// A redirected upload or create ends at once. The error names the address, but
// none of its secrets.
func TestRedirects(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := always(status, "<html>moved</html>", "Location", "https://user:pass@elsewhere.example/v1/files?token=s3cret#part")
				c := client(t, "http://api.example/v1", provider.Generic(), w)
				began := time.Now()
				_, upload := c.Prepare(t.Context(), file(1), backend.Params{Name: "x"})
				_, _, create := c.Create(t.Context(), line.File{}, backend.Handle{FileID: "f"}, backend.Params{})
				if n := len(w.requests()); n != 2 || time.Since(began) != 0 {
					t.Errorf("%d requests in %v, want two at once", n, time.Since(began))
				}
				for _, err := range []error{upload, create} {
					e := failure(t, err)
					if !e.Redirected() || e.Code() != "redirected" || e.RefusesUpload() || !strings.Contains(e.Error(), "https://elsewhere.example/v1/files;") {
						t.Errorf("%v, code %q", e, e.Code())
					}
					if strings.Contains(e.Error(), "pass") || strings.Contains(e.Error(), "s3cret") {
						t.Errorf("%v", e)
					}
				}
			})
		})
	}
}

// A redirect on the same server is not followed either: net/http would send a
// redirected create again, or turn the create into a GET.
func TestRedirectsOfTheSameServer(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		w := &wire{answer: func(_ sent, n int) (*http.Response, error) {
			if n > 0 {
				return answer(200, made), nil
			}
			return answer(status, "", "Location", "/v2/batches"), nil
		}}
		_, _, err := openai(t, w).Create(t.Context(), line.File{}, backend.Handle{FileID: "f"}, backend.Params{})
		if e := failure(t, err); !e.Redirected() || len(w.requests()) != 1 || !strings.Contains(e.Error(), "https://api.openai.com/v2/batches;") {
			t.Errorf("%d: %v after %d requests", status, e, len(w.requests()))
		}
	}
}

// A redirect of a look is followed on the same server only: another server must
// not see the credential.
func TestRedirectedLook(t *testing.T) {
	for to, want := range map[string]int{
		"/v1/batches/c":                       2,
		"https://api.example/v1/batches/c":    1,
		"https://elsewhere.example/batches/c": 1,
	} {
		w := &wire{answer: func(s sent, n int) (*http.Response, error) {
			if n == 0 {
				return answer(307, "", "Location", to), nil
			}
			return answer(200, `{"id":"c"}`), nil
		}}
		_, err := client(t, "http://api.example/v1", provider.Generic(), w).Retrieve(t.Context(), "b")
		if n := len(w.requests()); n != want || (err == nil) != (want == 2) {
			t.Errorf("%s: %d requests, %v", to, n, err)
		}
	}
}
