package batchapi_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/credential"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/provider"
)

// A sent is a request as a provider saw it.
type sent struct {
	method, url string
	header      http.Header
	length      int64
	body        string
}

// A wire is a provider that keeps what it is sent, and answers as told.
type wire struct {
	answer func(r sent, n int) (*http.Response, error) // n counts from 0

	mu   sync.Mutex
	seen []sent
}

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	s := sent{method: req.Method, url: req.URL.String(), header: req.Header.Clone(), length: req.ContentLength}
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		req.Body.Close()
		if err != nil {
			return nil, err
		}
		s.body = string(body)
	}
	w.mu.Lock()
	w.seen = append(w.seen, s)
	n := len(w.seen) - 1
	w.mu.Unlock()
	res, err := w.answer(s, n)
	if res != nil {
		res.Request = req
	}
	return res, err
}

func (w *wire) requests() []sent {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen
}

// answer makes a response; header holds names and values in turns.
func answer(status int, body string, header ...string) *http.Response {
	h := http.Header{"Content-Type": {"application/json"}}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{
		StatusCode: status, Header: h, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}
}

// always answers every request alike.
func always(status int, body string, header ...string) *wire {
	return &wire{answer: func(sent, int) (*http.Response, error) { return answer(status, body, header...), nil }}
}

// keyed sends requests through via with a credential.
func keyed(name, value string, via http.RoundTripper) http.RoundTripper {
	set := credential.NewSet(nil)
	set.Add(http.Header{name: {value}})
	return set.Transport(via)
}

// client is a Client for p at base with the key "sk-test".
func client(t testing.TB, base string, p provider.Profile, via http.RoundTripper) *batchapi.Client {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return batchapi.New(u, keyed("Authorization", "Bearer sk-test", via), p, discard)
}

func openai(t testing.TB, via http.RoundTripper) *batchapi.Client {
	t.Helper()
	return client(t, "https://api.openai.com/v1", provider.OpenAI(), via)
}

// file is an input file of n lines.
func file(n int) line.File {
	lines := make([]line.Line, n)
	for i := range lines {
		lines[i] = line.Line{ID: "id", URL: "/v1/chat/completions", Body: []byte(`{"model":"m"}`)}
	}
	return line.File{Lines: n, At: func(i int) *line.Line { return &lines[i] }}
}

func text(f line.File) string {
	b, err := io.ReadAll(f.NewReader())
	if err != nil {
		panic(err) // it is in memory
	}
	return string(b)
}

// part is one part of a form, in the order in which they came.
type part struct{ name, filename, value string }

func parts(t testing.TB, s sent) (all []part) {
	t.Helper()
	kind, params, err := mime.ParseMediaType(s.header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" {
		t.Fatalf("Content-Type = %q, %v", s.header.Get("Content-Type"), err)
	}
	r := multipart.NewReader(strings.NewReader(s.body), params["boundary"])
	for {
		p, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		value, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, part{p.FormName(), p.FileName(), string(value)})
	}
}

// failure is err as an Error, which it has to be.
func failure(t testing.TB, err error) *backend.Error {
	t.Helper()
	var failed *backend.Error
	if !errors.As(err, &failed) {
		t.Fatalf("error %v (%T), want a *backend.Error", err, err)
	}
	return failed
}

func object(t testing.TB, s sent) map[string]any {
	t.Helper()
	var o map[string]any
	if err := json.Unmarshal([]byte(s.body), &o); err != nil {
		t.Fatalf("%v in %s", err, s.body)
	}
	return o
}

var discard = slog.New(slog.DiscardHandler)

// A slowBody gives a byte at each step, or blocks for ever.
type slowBody struct {
	io.Reader
	step func() error
}

func (b *slowBody) Read(p []byte) (int, error) {
	if err := b.step(); err != nil {
		return 0, err
	}
	return b.Reader.Read(p[:min(len(p), 1)])
}

func (b *slowBody) Close() error { return nil }

func newSlowBody(content string, step func() error) io.ReadCloser {
	return &slowBody{bytes.NewReader([]byte(content)), step}
}
