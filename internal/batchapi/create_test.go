package batchapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/line"
)

func TestCreateOnce(t *testing.T) {
	type turns = []func() (*http.Response, error)
	forbidden := func(t *testing.T) turns { return turns{fail(t, "a list was asked for")} }
	for _, tt := range []struct {
		name    string
		creates func(t *testing.T) turns
		lists   func(t *testing.T) turns
		id      string
		is      error // the error, where it is one of ours
		status  int   // of the error
	}{
		{
			"answered", func(t *testing.T) turns { return turns{says(200, made), fail(t, "created twice")} }, forbidden, "b", nil, 0,
		},
		{
			"lost, and found in the list",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{listed(batchOf("other"), batchOf("f"))} }, "b-f", nil, 0,
		},
		{
			"lost, and found at the second look",
			func(t *testing.T) turns { return turns{says(502, "<html>"), fail(t, "created twice")} },
			func(*testing.T) turns { return turns{listed(), listed(batchOf("f"))} }, "b-f", nil, 0,
		},
		{
			"lost before it was made",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice, of one file")} },
			func(*testing.T) turns { return turns{listed(batchOf("other"))} }, "", backend.ErrInputDeleted, 0,
		},
		{
			"lost, and made before the file was deleted",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{listed(), listed(), listed(batchOf("f"))} }, "b-f", nil, 0,
		},
		{
			"lost, and the list breaks after the file was deleted",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{listed(), listed(), says(404, "{}")} }, "", backend.ErrUnsure, 0,
		},
		{
			"an answer without sense",
			func(t *testing.T) turns { return turns{says(200, "<html>"), fail(t, "created twice")} },
			func(*testing.T) turns { return turns{listed(batchOf("f"))} }, "b-f", nil, 0,
		},
		{
			"lost, and the list is broken for a while",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{reset, says(503, "{}"), says(429, "{}"), listed(batchOf("f"))} }, "b-f", nil, 0,
		},
		{
			"lost, and there is no list",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{says(404, "{}")} }, "", backend.ErrUnsure, 0,
		},
		{
			"lost, and the list is a page",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{says(200, "<html>")} }, "", backend.ErrUnsure, 0,
		},
		{
			"lost, and the list is no list",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{says(200, `{"message":"not here"}`)} }, "", backend.ErrUnsure, 0,
		},
		{
			"lost, and the list has no end",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns {
				page := 0
				return turns{func() (*http.Response, error) {
					page++
					return answer(200, fmt.Sprintf(`{"object":"list","data":[{"id":"b%d","input_file_id":"x"}],"has_more":true}`, page)), nil
				}}
			}, "", backend.ErrUnsure, 0,
		},
		{
			"a list that never comes",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{says(500, "{}")} }, "", backend.ErrUnsure, 0,
		},
		{
			"refused", func(t *testing.T) turns { return turns{says(400, "{}"), fail(t, "created twice")} }, forbidden, "", nil, 400,
		},
		{
			"the file is not seen yet", func(t *testing.T) turns { return turns{says(404, "{}"), says(404, "{}"), says(200, made)} }, forbidden, "b", nil, 0,
		},
		{
			"the file is never seen", func(t *testing.T) turns { return turns{says(404, "{}")} }, forbidden, "", nil, 404,
		},
		{
			"too fast", func(t *testing.T) turns { return turns{says(429, "{}", "Retry-After", "60"), says(200, made)} }, forbidden, "b", nil, 0,
		},
		{
			"no quota", func(t *testing.T) turns {
				return turns{says(429, `{"error":{"code":"insufficient_quota","message":"m"}}`), fail(t, "created twice")}
			}, forbidden, "", nil, 429,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := openai(t, &script{creates: tt.creates(t), lists: tt.lists(t)})
				began := time.Now()
				h, b, err := c.Create(t.Context(), line.File{}, backend.Handle{FileID: "f"}, backend.Params{})
				if b.Handle.BatchID != tt.id || h.BatchID != tt.id || h.FileID != "f" || (err == nil) != (tt.id != "") || tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("%+v, %v", b, err)
				}
				if tt.status != 0 && failure(t, err).Status != tt.status {
					t.Errorf("%v, want a %d", err, tt.status)
				}
				if d := time.Since(began); d > 2*time.Hour {
					t.Errorf("took %v", d)
				}
			})
		})
	}
}

const made = `{"id":"b","status":"validating"}`

// fail is an answer that must not be asked for.
func fail(t *testing.T, what string) func() (*http.Response, error) {
	return func() (*http.Response, error) {
		t.Error(what)
		return answer(400, "{}"), nil
	}
}

// A create that is refused because the provider still processes the file is
// repeated.
func TestCreateWaitsForTheFile(t *testing.T) {
	azure := `{"error":{"code":"invalidPayload","message":"Only files with status 'Processed' are accepted. File 'file-1' has status 'pending'."}}`
	for _, tt := range []struct {
		name   string
		answer string
		again  bool
	}{
		{"Azure", azure, true},
		{"not ready", `{"error":{"message":"The file file-1 is not ready yet"}}`, true},
		{"being processed", `{"error":{"message":"File file-1 is still being processed"}}`, true},
		{"another reason", `{"error":{"message":"The file file-1 has an invalid line"}}`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{creates: []func() (*http.Response, error){says(400, tt.answer), says(400, tt.answer), says(200, made)}}
				h, _, err := openai(t, s).Create(t.Context(), line.File{}, backend.Handle{FileID: "f"}, backend.Params{})
				if (h.BatchID == "b") != tt.again || (err == nil) != tt.again {
					t.Errorf("%+v, %v", h, err)
				}
			})
		})
		t.Run(tt.name+", for ever", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				s := &script{creates: []func() (*http.Response, error){says(400, tt.answer)}}
				_, _, err := openai(t, s).Create(t.Context(), line.File{}, backend.Handle{FileID: "f"}, backend.Params{})
				if e := failure(t, err); e.Status != 400 || time.Since(began) > 10*time.Minute {
					t.Errorf("%v after %v", e, time.Since(began))
				}
				if len(s.deleted) > 0 {
					t.Errorf("deleted %q", s.deleted)
				}
			})
		})
	}
}

// A create that is interrupted may have made a batch.
func TestInterruptedCreate(t *testing.T) {
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	w := &wire{answer: func(sent, int) (*http.Response, error) {
		cancel(enough)
		return nil, ctx.Err()
	}}
	_, _, err := openai(t, w).Create(ctx, line.File{}, backend.Handle{FileID: "f"}, backend.Params{})
	if !errors.Is(err, backend.ErrUnsure) || !errors.Is(err, enough) || len(w.requests()) != 1 {
		t.Errorf("%v after %d requests", err, len(w.requests()))
	}
}
