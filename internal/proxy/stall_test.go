package proxy_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/proxy"
)

// TestStalledPassThrough checks that a request body and a response body that stop
// arriving end the request.
func TestStalledPassThrough(t *testing.T) {
	t.Run("request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			conn := dial(t, newProxy(t, proxy.Options{}))
			io.WriteString(conn, "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data\r\nContent-Length: 20\r\n\r\nhalf")
			res := readResponse(t, conn)
			if code, _ := apiError(t, res); res.StatusCode != http.StatusRequestTimeout || code != "request_body_timeout" {
				t.Errorf("%s %s", res.Status, code)
			}
			if got := time.Since(start); got != 15*time.Minute {
				t.Errorf("after %v", got)
			}
		})
	})
	t.Run("response", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			p := newProxy(t, proxy.Options{PassThroughTimeout: time.Minute, Transport: transport(func(r *http.Request) (*http.Response, error) {
				body, w := io.Pipe()
				go func() {
					for range 3 {
						time.Sleep(50 * time.Second)
						io.WriteString(w, "x")
					}
					<-r.Context().Done()
					w.CloseWithError(context.Cause(r.Context()))
				}()
				res := responseTo(r, 200, "application/json", "")
				res.Body, res.ContentLength = body, -1
				return res, wait(r)
			})})
			res, err := serve(t, p).Get("http://proxy/v1/files/f/content")
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if got, err := io.ReadAll(res.Body); string(got) != "xxx" || err == nil {
				t.Errorf("%q %v, want a broken connection", got, err)
			}
			if got := time.Since(start); got != 210*time.Second {
				t.Errorf("after %v", got)
			}
		})
	})
}

// TestUpstreamStopsReading checks that a request ends when the upstream stops reading
// the body, and that neither a slow upload, nor a slow answer, nor an answer before the
// end of the body ends the request.
func TestUpstreamStopsReading(t *testing.T) {
	const size = 1 << 20
	read := func(r *http.Request, n int64) error {
		_, err := io.CopyN(io.Discard, r.Body, n)
		return err
	}
	for name, test := range map[string]struct {
		upstream transport
		want     int
		after    time.Duration
	}{
		"stops in the body": {func(r *http.Request) (*http.Response, error) {
			if err := read(r, 100); err != nil {
				return nil, err
			}
			<-r.Context().Done()
			return nil, context.Cause(r.Context())
		}, 504, time.Minute},
		"reads slowly": {func(r *http.Request) (*http.Response, error) {
			for range 4 {
				if err := read(r, size/4); err != nil {
					return nil, err
				}
				time.Sleep(50 * time.Second)
			}
			return responseTo(r, 200, "application/json", `{}`), nil
		}, 200, 200 * time.Second},
		"answers slowly": {func(r *http.Request) (*http.Response, error) {
			err := read(r, size)
			time.Sleep(time.Hour)
			return responseTo(r, 200, "application/json", `{}`), err
		}, 200, time.Hour},
		"answers before the end": {func(r *http.Request) (*http.Response, error) {
			body, w := io.Pipe()
			go func() {
				for range 4 {
					time.Sleep(50 * time.Second)
					io.WriteString(w, " ")
				}
				w.CloseWithError(context.Cause(r.Context()))
			}()
			res := responseTo(r, 200, "application/json", "")
			res.Body, res.ContentLength = body, -1
			return res, read(r, 100)
		}, 200, 200 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				client := serve(t, newProxy(t, proxy.Options{PassThroughTimeout: time.Minute, Transport: test.upstream}))
				res, err := client.Post("http://proxy/v1/files", "multipart/form-data", io.LimitReader(zeroReader{}, size))
				if err != nil {
					t.Fatal(err)
				}
				if res.StatusCode != test.want {
					t.Errorf("%s, want %d", res.Status, test.want)
				} else if test.want == 200 {
					readAll(t, res)
				} else if code, _ := apiError(t, res); code != "upstream_stalled" {
					t.Error(code)
				}
				if got := time.Since(start); got != test.after {
					t.Errorf("after %v, want %v", got, test.after)
				}
				time.Sleep(time.Second) // net/http closes the connection late, after a body that was not read
			})
		})
	}
}

// TestStalledRealtimeAnswer checks that the answer of a held call that was escalated
// ends when it stops arriving, before and after heartbeats.
func TestStalledRealtimeAnswer(t *testing.T) {
	for name, delay := range map[string]time.Duration{"in time": 0, "late": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				upstream := proxy.LimitRealtime(transport(func(r *http.Request) (*http.Response, error) {
					body, w := io.Pipe()
					go func() {
						io.WriteString(w, "{")
						<-r.Context().Done()
						w.CloseWithError(context.Cause(r.Context()))
					}()
					res := responseTo(r, 200, "application/json", "")
					res.Body, res.ContentLength = body, -1
					return res, nil
				}), 0)
				p := newProxy(t, proxy.Options{PassThroughTimeout: time.Minute, Transport: transport(func(r *http.Request) (*http.Response, error) {
					if err := wait(r); err != nil {
						return nil, err
					}
					time.Sleep(delay)
					return upstream.RoundTrip(r)
				})})
				res := post(t, serve(t, p), "/v1/embeddings", `{}`)
				defer res.Body.Close()
				if got, err := io.ReadAll(res.Body); strings.TrimSpace(string(got)) != "{" || err == nil {
					t.Errorf("%q %v, want a broken connection", got, err)
				}
				if got := time.Since(start); got != delay+time.Minute {
					t.Errorf("after %v", got)
				}
			})
		})
	}
}
