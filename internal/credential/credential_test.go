package credential_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/credential"
)

// A provider accepts some keys, and records the keys and bodies that it sees.
type provider struct {
	mu       sync.Mutex
	accepted []string
	refusal  int // the status for any other key; 0: 401
	keys     []string
	bodies   []string
	open     int // response bodies that were not closed
}

func (p *provider) RoundTrip(req *http.Request) (*http.Response, error) {
	body := ""
	if req.Body != nil {
		text, _ := io.ReadAll(req.Body)
		req.Body.Close()
		body = string(text)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := req.Header.Get("Authorization") + req.Header.Get("Api-Key")
	p.keys, p.bodies = append(p.keys, key), append(p.bodies, body)
	p.open++
	res := &http.Response{StatusCode: 200, Header: http.Header{}, Request: req, Body: &tracked{strings.NewReader("answer to " + key), p}}
	if !slices.Contains(p.accepted, key) {
		if res.StatusCode = p.refusal; p.refusal == 0 {
			res.StatusCode = http.StatusUnauthorized
		}
	}
	return res, nil
}

type tracked struct {
	io.Reader
	p *provider
}

func (b *tracked) Close() error {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.p.open--
	return nil
}

// seen returns the keys that the provider saw since the last call.
func (p *provider) seen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	keys := strings.Join(p.keys, " ")
	p.keys = nil
	return keys
}

func key(k string) http.Header { return http.Header{"Authorization": {k}} }

// send sends a request, and returns the status and the body of the response.
func send(t *testing.T, via http.RoundTripper) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.example/v1/files", strings.NewReader("lines"))
	if err != nil {
		t.Fatal(err)
	}
	return do(t, via, req)
}

func do(t *testing.T, via http.RoundTripper, req *http.Request) (int, string) {
	t.Helper()
	res, err := via.RoundTrip(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func TestTransport(t *testing.T) {
	for _, tt := range []struct {
		name     string
		add      []string
		accepted []string
		refusal  int
		first    string // the keys that the provider sees of the first request
		second   string // of the second
		status   int
	}{
		{"the only key", []string{"a"}, []string{"a"}, 0, "a", "a", 200},
		{"the newest first", []string{"a", "b", "c"}, []string{"a", "b", "c"}, 0, "c", "c", 200},
		{"an older key if the newer are refused", []string{"a", "b", "c"}, []string{"a"}, 0, "c b a", "a", 200},
		{"none is accepted", []string{"a", "b"}, nil, 0, "b a", "b a", 401},
		{"a repeated key becomes the newest", []string{"a", "b", "a"}, nil, 0, "a b", "a b", 401},
		{"eight keys are kept", []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}, nil, 0, "j i h g f e d c", "j i h g f e d c", 401},
		{"a 403 is final", []string{"a", "b"}, []string{"a"}, 403, "b", "b", 403},
		{"a 500 is final, and accepts nothing", []string{"a", "b"}, nil, 500, "b", "b", 500},
		{"no key at all", nil, []string{""}, 0, "", "", 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &provider{accepted: tt.accepted, refusal: tt.refusal}
			set := credential.NewSet(nil)
			for _, k := range tt.add {
				set.Add(key(k))
			}
			via := set.Transport(p)
			for _, want := range []string{tt.first, tt.second} {
				status, body := send(t, via)
				keys := p.seen()
				if status != tt.status || keys != want {
					t.Errorf("status %d after %q, want %d after %q", status, keys, tt.status, want)
				}
				if last := keys[strings.LastIndex(keys, " ")+1:]; body != "answer to "+last {
					t.Errorf("body %q", body)
				}
			}
			if p.open != 0 {
				t.Errorf("%d bodies are open", p.open)
			}
			for _, body := range p.bodies {
				if body != "lines" {
					t.Errorf("sent %q", body)
				}
			}
		})
	}
}

// A batch outlives its first caller's token: the token of a later caller replaces
// the first, and is used as long as the provider accepts the token.
func TestExpiry(t *testing.T) {
	p := &provider{accepted: []string{"a"}}
	set := credential.NewSet(nil)
	set.Add(key("a"))
	via := set.Transport(p)
	send(t, via)
	set.Add(key("b"))
	set.Add(http.Header{})
	set.Add(http.Header{"api-key": {"c"}})
	send(t, via) // c is new, and refused
	send(t, via) // a is still accepted
	p.accepted = []string{"b"}
	send(t, via)
	send(t, via)
	if got := p.seen(); got != "a c a a a c b b" {
		t.Errorf("the provider saw %q", got)
	}
	for i := range 20 {
		set.Add(key(fmt.Sprint("x", i)))
	}
	if status, _ := send(t, via); status != 200 || p.seen() != "x19 b" {
		t.Errorf("status %d: the accepted key was dropped", status)
	}
	if set.Len() != 8 {
		t.Errorf("%d keys are kept", set.Len())
	}
}

// A rotated key is used at once, although the provider still accepts the old key.
func TestRotation(t *testing.T) {
	for _, tt := range []struct {
		name    string
		status  int    // of the new key's first request
		after   string // the key of later requests
		refusal int
	}{
		{"accepted", 200, "new", 0},
		{"refused", 200, "old", 401}, // the old key answers the request
		{"not permitted", 403, "old", 403},
		{"not judged", 503, "new", 503},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &provider{accepted: []string{"old", "new"}, refusal: tt.refusal}
			set := credential.NewSet(nil)
			via := set.Transport(p)
			set.Add(key("old"))
			send(t, via)
			if tt.refusal != 0 {
				p.accepted = []string{"old"}
			}
			set.Add(key("new"))
			if status, _ := send(t, via); status != tt.status {
				t.Errorf("status %d, want %d", status, tt.status)
			}
			p.seen()
			send(t, via)
			if got := p.seen(); got != tt.after {
				t.Errorf("the next request has %q, want %q", got, tt.after)
			}
		})
	}
}

// A request with the old key that ends after the new key was accepted does not
// bring the old key back.
func TestRotationDuringRequest(t *testing.T) {
	release, begun := make(chan struct{}), make(chan struct{})
	p := &provider{accepted: []string{"old", "new"}}
	slow := roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.Header.Get("Slow") != "" {
			close(begun)
			<-release
		}
		return p.RoundTrip(req)
	})
	set := credential.NewSet(nil)
	via := set.Transport(slow)
	set.Add(key("old"))
	send(t, via)
	var ended sync.WaitGroup
	ended.Go(func() {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api.example/v1/batches", nil)
		req.Header.Set("Slow", "1")
		do(t, via, req)
	})
	<-begun
	set.Add(key("new"))
	send(t, via)
	close(release)
	ended.Wait()
	send(t, via)
	if got := p.seen(); got != "old new old new" {
		t.Errorf("the provider saw %q", got)
	}
}

// A request that cannot be sent again has the accepted key, and not a new key.
func TestRotationAndBodyThatCannotBeReplayed(t *testing.T) {
	p := &provider{accepted: []string{"old"}}
	set := credential.NewSet(nil)
	set.Add(key("old"))
	send(t, set.Transport(p))
	set.Add(key("new"))
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.example/v1/files", io.MultiReader(strings.NewReader("lines")))
	if status, _ := do(t, set.Transport(p), req); status != 200 || p.seen() != "old old" {
		t.Errorf("status %d", status)
	}
}

// The request of the caller stays as it is, and a credential replaces the whole
// headers that it consists of.
func TestHeaders(t *testing.T) {
	var got http.Header
	base := roundTripper(func(req *http.Request) (*http.Response, error) {
		got = req.Header
		return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
	})
	set := credential.NewSet(nil)
	set.Add(http.Header{"authorization": {"k"}, "X-Goog-Api-Key": {"1", "2"}})
	via := set.Transport(credential.With(http.Header{"openai-project": {"p"}}, base))
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api.example/v1/batches", nil)
	req.Header = http.Header{"Authorization": {"old", "older"}, "Accept": {"x"}}
	if _, err := via.RoundTrip(req); err != nil {
		t.Fatal(err)
	}
	want := http.Header{"Authorization": {"k"}, "X-Goog-Api-Key": {"1", "2"}, "Openai-Project": {"p"}, "Accept": {"x"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("sent %v, want %v", got, want)
	}
	if fmt.Sprint(req.Header) != "map[Accept:[x] Authorization:[old older]]" {
		t.Errorf("the request has %v now", req.Header)
	}
	elsewhere := req.Clone(credential.Omit(t.Context()))
	elsewhere.Header = http.Header{}
	if _, err := via.RoundTrip(elsewhere); err != nil || len(got) != 0 {
		t.Errorf("another server saw %v, %v", got, err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestBodyThatCannotBeReplayed(t *testing.T) {
	p := &provider{accepted: []string{"a"}}
	set := credential.NewSet(nil)
	set.Add(key("a"))
	set.Add(key("b"))
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.example/v1/files", io.MultiReader(strings.NewReader("lines")))
	if status, body := do(t, set.Transport(p), req); status != 401 || body != "answer to b" || p.seen() != "b" {
		t.Errorf("status %d, %q", status, body)
	}
}

func TestFetch(t *testing.T) {
	for _, tt := range []struct {
		name   string
		add    []string
		fetch  credential.Fetch
		keys   string
		status int
		err    string
	}{
		{"after a refusal", []string{"a"}, func(context.Context) (http.Header, error) { return key("new"), nil }, "a new", 200, ""},
		{"without a credential", nil, func(context.Context) (http.Header, error) { return key("new"), nil }, "new", 200, ""},
		{"the refused credential again", []string{"a"}, func(context.Context) (http.Header, error) { return key("a"), nil }, "a", 401, ""},
		{"a useless credential", []string{"a"}, func(context.Context) (http.Header, error) { return key("b"), nil }, "a b", 401, ""},
		{"an error", []string{"a"}, func(context.Context) (http.Header, error) { return nil, errors.New("vault is sealed") }, "a", 401, ""},
		{"an error without a credential", nil, func(context.Context) (http.Header, error) { return nil, errors.New("vault is sealed") }, "", 0, "vault is sealed"},
		{"no header", nil, func(context.Context) (http.Header, error) { return nil, nil }, "", 0, "no header"},
		{"a panic", nil, func(context.Context) (http.Header, error) { panic("sk-secret") }, "", 0, "panicked"},
		{"an exit", nil, func(context.Context) (http.Header, error) { runtime.Goexit(); return nil, nil }, "", 0, "did not return"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &provider{accepted: []string{"new"}}
			set := credential.NewSet(tt.fetch)
			for _, k := range tt.add {
				set.Add(key(k))
			}
			status, body := send(t, set.Transport(p))
			if keys := p.seen(); status != tt.status || keys != tt.keys {
				t.Errorf("status %d after %q", status, keys)
			}
			if !strings.Contains(body, tt.err) || strings.Contains(body, "secret") {
				t.Errorf("body or error %q", body)
			}
			if p.open != 0 {
				t.Errorf("%d bodies are open", p.open)
			}
		})
	}
}

// Many requests that are refused at the same time obtain one credential.
func TestFetchOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fetched := 0
		p := &provider{accepted: []string{"new"}}
		set := credential.NewSet(func(ctx context.Context) (http.Header, error) {
			fetched++
			time.Sleep(time.Second)
			return key("new"), ctx.Err()
		})
		set.Add(key("old"))
		via := set.Transport(p)
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() { // the request that starts the Fetch does not wait for it
			req, _ := http.NewRequestWithContext(impatient, http.MethodGet, "https://api.example/v1/batches", nil)
			if status, _ := do(t, via, req); status != 401 {
				t.Errorf("status %d, want the last refusal", status)
			}
		})
		synctest.Wait()
		for range 20 {
			all.Go(func() {
				if status, _ := send(t, via); status != 200 {
					t.Errorf("status %d", status)
				}
			})
		}
		all.Wait()
		if fetched != 1 {
			t.Errorf("fetched %d times", fetched)
		}
	})
}

func TestFetchIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := credential.NewSet(func(ctx context.Context) (http.Header, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		began := time.Now()
		if status, text := send(t, set.Transport(&provider{})); status != 0 || time.Since(began) != time.Minute {
			t.Errorf("status %d, %q after %v", status, text, time.Since(began))
		}
	})
}
