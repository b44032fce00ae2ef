package submit_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/tidwall/gjson"

	kept "github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/submit"
)

// An answer in real time comes in pieces and without a length. It is one result.
func TestAnswersInPieces(t *testing.T) {
	defer submit.SetMaxAnswer(100)()
	for _, tt := range []struct{ name, body, want string }{
		{"JSON", `{"n":1,"usage":{"prompt_tokens":7}}`, `{"n":1,"usage":{"prompt_tokens":7}}`},
		{"nothing", "", `""`},
		{"text", "no JSON", `"no JSON"`},
		{"as large as is stored", `"` + strings.Repeat("x", 98) + `"`, `"` + strings.Repeat("x", 98) + `"`},
		{"too large", `"` + strings.Repeat("x", 99) + `"`, ""},
	} {
		for _, length := range []int64{-1, int64(len(tt.body))} {
			p := newPlace(t, request("a"))
			part, a := p.open(), p.newAnswers()
			a.do = func(string) (*http.Response, error) {
				return &http.Response{
					StatusCode: 200, Status: "200 OK", Header: http.Header{}, ContentLength: length,
					Body: io.NopCloser(iotest.OneByteReader(strings.NewReader(tt.body))),
				}, nil
			}
			job := p.job(part, a)
			if err := job.Run(t.Context(), strings.NewReader(p.text)); err != nil {
				t.Fatal(err)
			}
			if prompt, _ := job.Tokens(); prompt != gjson.Get(tt.body, "usage.prompt_tokens").Int() {
				t.Errorf("%s: %d tokens", tt.name, prompt)
			}
			out := filepath.Join(t.TempDir(), "out")
			if err := part.Finish(out); err != nil {
				t.Fatal(err)
			}
			text, _ := os.ReadFile(out)
			result := gjson.ParseBytes(text)
			if got := result.Get("response.body").Raw; got != tt.want || strings.Count(string(text), "\n") != 1 {
				t.Errorf("%s: results %s", tt.name, text)
			}
			if code := result.Get("error.code").String(); (tt.want == "") != (code == "answer_too_large") {
				t.Errorf("%s: error %q", tt.name, code)
			}
		}
	}
}

// A receiver calls a function for each thing that it is told.
type receiver struct{ delivered, undelivered func() }

func (r receiver) FromLine() bool { return true }
func (r receiver) Delivered()     { r.delivered() }
func (r receiver) Undelivered()   { r.undelivered() }

// An answer counts as delivered when it is stored, and not before. An answer that
// cannot be stored is not delivered.
func TestStoredBeforeDelivered(t *testing.T) {
	for _, body := range []string{`{"n":1}`, ""} {
		for _, full := range []bool{false, true} {
			p := newPlace(t, request("a"))
			part, a := p.open(), p.newAnswers()
			var reports []string
			job := p.job(part, a)
			job.Do = func(context.Context, submit.Request, func()) (*http.Response, error) {
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", http.NoBody)
				res := (&kept.Answer{Status: 200, Body: []byte(body)}).Response(req)
				b := res.Body.(*kept.Body)
				b.Receiver = receiver{
					delivered: func() {
						reports = append(reports, "delivered")
						if !part.Has(1) {
							t.Error("delivered before it was stored")
						}
					},
					undelivered: func() { reports = append(reports, "undelivered") },
				}
				if full {
					if err := part.Close(); err != nil { // the result cannot be written
						t.Error(err)
					}
				}
				return res, nil
			}
			err := job.Run(t.Context(), strings.NewReader(p.text))
			want := []string{"delivered"}
			if full {
				want = []string{"undelivered"}
			}
			if !slices.Equal(reports, want) || errors.Is(err, os.ErrClosed) != full {
				t.Errorf("body %q, cannot be stored: %v: %v, %v", body, full, reports, err)
			}
		}
	}
}
