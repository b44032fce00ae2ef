package realtime_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/autobatcher/autobatcher/internal/realtime"
)

type base func(*http.Request) (*http.Response, error)

func (f base) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func answers(status int, body io.Reader) base {
	return func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Body: io.NopCloser(body)}, nil
	}
}

var errBroken = errors.New("broken")

func TestOutcome(t *testing.T) {
	tests := []struct {
		name string
		base base
		use  func(res *http.Response, leave func()) // of the response, before it is closed
		want realtime.Outcome
	}{
		{"read to the end", answers(200, strings.NewReader("x")), func(res *http.Response, _ func()) { io.ReadAll(res.Body) }, realtime.Outcome{Paid: true, Served: true}},
		{"closed before the end", answers(200, strings.NewReader("xy")), func(*http.Response, func()) {}, realtime.Outcome{Paid: true, Served: true}},
		{"a failure", answers(500, strings.NewReader("x")), func(res *http.Response, _ func()) { io.ReadAll(res.Body) }, realtime.Outcome{}},
		{"the answer breaks off", answers(200, iotest.ErrReader(errBroken)), func(res *http.Response, _ func()) { io.ReadAll(res.Body) }, realtime.Outcome{Paid: true}},
		{"the caller leaves", answers(200, strings.NewReader("x")), func(_ *http.Response, leave func()) { leave() }, realtime.Outcome{Paid: true, Left: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://h.test", http.NoBody)
			var ends []realtime.Outcome
			scanned := 0
			c := realtime.Call{
				Request: req, Announce: func() {}, Scan: func(b []byte) { scanned += len(b) },
				End: func(o realtime.Outcome) { ends = append(ends, o) },
			}
			res, err := c.Send(tt.base)
			if err != nil || res.Header.Get("Autobatcher-Mode") != "realtime" || res.Request != req || len(ends) > 0 {
				t.Fatalf("%+v, %v, ended %v", res, err, ends)
			}
			tt.use(res, leave)
			res.Body.Close()
			res.Body.Close()
			if len(ends) != 1 || ends[0] != tt.want {
				t.Errorf("ended %+v, want %+v once", ends, tt.want)
			}
		})
	}
}

func TestNoResponse(t *testing.T) {
	hangs := base(func(req *http.Request) (*http.Response, error) {
		<-req.Context().Done()
		return nil, req.Context().Err()
	})
	for _, tt := range []struct {
		name     string
		base     base
		announce func()
		deadline time.Time
		want     error // nil: a panic
	}{
		{"an error", base(func(*http.Request) (*http.Response, error) { return nil, errBroken }), func() {}, time.Time{}, errBroken},
		{"the deadline", hangs, func() {}, time.Now(), realtime.ErrDeadline},
		{"a panic of the announcement", answers(200, http.NoBody), func() { panic("x") }, time.Time{}, nil},
		{"a panic of the base", base(func(*http.Request) (*http.Response, error) { panic("x") }), func() {}, time.Time{}, nil},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://h.test", http.NoBody)
		ends := 0
		c := realtime.Call{Request: req, Deadline: tt.deadline, Announce: tt.announce, End: func(o realtime.Outcome) {
			if ends++; o != (realtime.Outcome{}) {
				t.Errorf("%s: ended %+v", tt.name, o)
			}
		}}
		err := func() (err error) {
			defer func() { recover() }()
			_, err = c.Send(tt.base)
			return err
		}()
		if !errors.Is(err, tt.want) || ends != 1 {
			t.Errorf("%s: %v, ended %d times; want %v, once", tt.name, err, ends, tt.want)
		}
	}
}
