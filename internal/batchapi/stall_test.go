package batchapi_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/retry"
)

// A moving transfer may take hours. A transfer that stands still for five minutes
// has failed.
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
	t.Run("upload that the server does not read", func(t *testing.T) {
		stalls(t, 5*time.Minute, upload, func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		})
	})
	t.Run("create", func(t *testing.T) {
		stalls(t, time.Minute, func(c *batchapi.Client) error {
			_, err := c.CreateOnce(context.Background(), "f", backend.Params{})
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
			s, err := c.Results(context.Background(), backend.Handle{}, "f", backend.Position{})
			if err != nil {
				return err
			}
			defer s.Close()
			_, err = s.Next()
			return err
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
			s, err := openai(t, via).Results(t.Context(), backend.Handle{}, "f", backend.Position{})
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(batchapi.Body(s))
			s.Close()
			if len(text) != 60 || err != nil {
				t.Errorf("%d bytes, %v; want sixty, over four hours", len(text), err)
			}
		})
	})
}

func upload(c *batchapi.Client) error {
	_, err := c.UploadOnce(context.Background(), backend.Params{Name: "x"}, file(3))
	return err
}

func wait(ctx context.Context, d time.Duration) error { return retry.Sleep(ctx, d) }

// The watch of a download ends with the download, not five minutes later.
func TestStallWatchEnds(t *testing.T) {
	for name, end := range map[string]func(s *backend.Stream) error{
		"at the end": func(s *backend.Stream) error {
			for {
				if _, err := s.Next(); err != nil {
					return err
				}
			}
		},
		"on close":           func(s *backend.Stream) error { return s.Close() },
		"on close, half way": func(s *backend.Stream) error { s.Next(); return s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			var request context.Context
			via := roundTripper(func(req *http.Request) (*http.Response, error) {
				request = req.Context()
				return answer(200, strings.Repeat(`{"custom_id":"a"}`+"\n", 3)), nil
			})
			s, err := open(t, openai(t, via), "f")
			if err != nil {
				t.Fatal(err)
			}
			if request.Err() != nil {
				t.Fatal("the download is over before it was read")
			}
			if err := end(s); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			if request.Err() == nil {
				t.Error("the watch goes on")
			}
		})
	}
}
