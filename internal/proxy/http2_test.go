package proxy_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/internal/proxy"
)

// serveH2C is serve for a client that uses HTTP/2 without TLS on one connection.
func serveH2C(t *testing.T, h http.Handler) *http.Client {
	t.Helper()
	client := serve(t, h)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	client.Transport.(*http.Transport).Protocols = &protocols
	return client
}

func TestHeartbeatsOverHTTP2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		p := newProxy(t, proxy.Options{Transport: respondAfter(330*time.Second, 200, "application/json", `{}`), Heartbeat: time.Minute})
		res := post(t, serveH2C(t, p), "/v1/embeddings", chatCall)
		got, err := readTimed(t, start, res)
		if diff := cmp.Diff([]string{"4m0s \n", "5m0s \n", "5m30s {}"}, got); diff != "" || err != nil || res.ProtoMajor != 2 {
			t.Error(diff, err, res.Proto)
		}
	})
}

// TestFailureAfterCommitOverHTTP2 checks that a failure resets the stream of the
// call, and does not affect other calls on the connection.
func TestFailureAfterCommitOverHTTP2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/embeddings") {
				return respondAfter(10*time.Minute, 200, "application/json", `{"other":1}`)(r)
			}
			return respondAfter(5*time.Minute, 400, "application/json", `{"error":{"message":"no"}}`)(r)
		})})
		client := serveH2C(t, p)
		other := make(chan string)
		go func() { other <- strings.TrimSpace(readAll(t, post(t, client, "/v1/embeddings", chatCall))) }()
		res := post(t, client, "/v1/chat/completions", streamCall)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err == nil || !strings.Contains(string(b), `data: {"error":{"message":"no"`) {
			t.Errorf("%q %v", b, err)
		}
		if got := <-other; got != `{"other":1}` {
			t.Errorf("the other call got %q", got)
		}
	})
}

func TestClientDisconnectsOverHTTP2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		canceled := make(chan struct{})
		p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			res, err := respondAfter(24*time.Hour, 200, "application/json", "")(r)
			close(canceled)
			return res, err
		})})
		client := serveH2C(t, p)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://proxy/v1/responses", strings.NewReader(chatCall))
		if _, err := client.Do(r); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		<-canceled
	})
}

// TestManyCallsOverHTTP2 holds more calls on a connection than net/http allows by
// default.
func TestManyCallsOverHTTP2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(t, proxy.Options{Transport: respondAfter(time.Hour, 200, "application/json", strings.Repeat("x", 10_000))})
		client := serveH2C(t, p)
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				if got := readAll(t, post(t, client, "/v1/responses", chatCall)); len(strings.TrimSpace(got)) != 10_000 {
					t.Errorf("%d bytes", len(got))
				}
			})
		}
		time.Sleep(time.Minute)
		if got := p.Usage().Waiting; got != 500 {
			t.Errorf("%d calls are held", got)
		}
		wg.Wait()
	})
}
