package proxy_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

func TestSmoke(t *testing.T) {
	srv := batchtest.New(batchtest.Options{})
	tr, err := autobatcher.New(autobatcher.Options{Base: srv.Transport(), BatchSize: 1, PollInterval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	u, _ := url.Parse(srv.URL)
	p, err := proxy.New(proxy.Options{Upstream: u, APIKey: "k", Transport: tr, Stats: tr.Stats})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(nil)
	ts.Config = proxy.NewServer(p)
	ts.Start()
	defer ts.Close()
	for _, path := range []string{"/v1/models", "/health", "/metrics", "/", "/v1/nope"} {
		res, err := http.Get(ts.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		t.Log(path, res.Status, res.Header, string(b))
	}
	for _, body := range []string{`{"model":"m","messages":[{"role":"user","content":"Hello there. Bye"}]}`, `{"model":"m","stream":true,"messages":[{"role":"user","content":"Hello there. Bye"}]}`, `{`} {
		res, err := http.Post(ts.URL+"/v1/chat/completions", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		t.Log(res.Status, res.Header, string(b))
	}
	t.Logf("%+v", p.Usage())
}
