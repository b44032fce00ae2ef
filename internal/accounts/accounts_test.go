package accounts_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/accounts"
	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// newSet returns a Set, and a pointer to the number of accounts that were added.
func newSet(change func(*accounts.Options)) (*accounts.Set, *int) {
	added := new(int)
	o := accounts.Options{
		Logger:  slog.New(slog.DiscardHandler),
		Secret:  journal.Hash{1},
		Context: context.Background(),
		Retries: func(*accounts.Account) journalsession.Retries { return nil },
		Added:   func() { *added++ },
	}
	if change != nil {
		change(&o)
	}
	return accounts.New(o), added
}

// get returns the account of a call with an Authorization header, and with
// further headers in pairs.
func get(t testing.TB, s *accounts.Set, url, key string, headers ...string) *accounts.Account {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/embeddings", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", key)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return s.Of(req, url, &provider.Profile{})
}

func TestOfSeparatesCredentialsAndURLs(t *testing.T) {
	s, added := newSet(nil)
	first := get(t, s, "https://a.example/v1", "1")
	if again := get(t, s, "https://a.example/v1", "1", "Accept", "x"); again != first {
		t.Error("equal calls have two accounts")
	}
	if s.ByHash(first.Hash) != first || s.ByHash(journal.Hash{}) != nil {
		t.Error("ByHash does not find the account, or finds an account that does not exist")
	}
	seen := map[journal.Hash]bool{first.Hash: true}
	for _, a := range []*accounts.Account{
		get(t, s, "https://a.example/v1", "2"),
		get(t, s, "https://b.example/v1", "1"),
		get(t, s, "https://a.example/v2", "1"),
		get(t, s, "https://a.example/v1", "1", "OpenAI-Project", "p"),
	} {
		if seen[a.Hash] {
			t.Errorf("account %s is shared", a.Name)
		}
		seen[a.Hash] = true
	}
	if *added != 5 {
		t.Errorf("Added was called %d times, want 5", *added)
	}
	if other, _ := newSet(func(o *accounts.Options) { o.Secret = journal.Hash{2} }); get(t, other, "https://a.example/v1", "1").Hash == first.Hash {
		t.Error("the hash does not depend on the secret")
	}
}

func TestNamesReplaceCredentials(t *testing.T) {
	name := "n"
	s, _ := newSet(func(o *accounts.Options) { o.Account = func(*http.Request) string { return name } })
	first := get(t, s, "https://a.example/v1", "1")
	if get(t, s, "https://a.example/v1", "2") != first {
		t.Error("two credentials of one name have two accounts")
	}
	if get(t, s, "https://a.example/v1", "2", "OpenAI-Project", "p") == first {
		t.Error("two projects of one name share an account")
	}
	if name = "m"; get(t, s, "https://a.example/v1", "1") == first {
		t.Error("two names share an account")
	}
	if name = ""; get(t, s, "https://a.example/v1", "1") == get(t, s, "https://a.example/v1", "2") {
		t.Error("two credentials without a name share an account")
	}
}

// A name cannot pretend to be another name with headers of its own.
func TestNamesWithLineBreaks(t *testing.T) {
	name := ""
	s, _ := newSet(func(o *accounts.Options) { o.Account = func(*http.Request) string { return name } })
	seen := make(map[*accounts.Account]string)
	for _, tt := range []struct {
		name    string
		headers []string
	}{
		{"n", nil},
		{"n", []string{"OpenAI-Project", "p"}},
		{"n\nOpenAI-Project: p", nil},
		{"n\nOpenai-Project: p", nil},
		{"n\nOpenai-Project: p\n", nil},
		{"n\n", nil},
		{`"n\n"`, nil},
	} {
		name = tt.name
		a := get(t, s, "https://a.example/v1", "1", tt.headers...)
		if other, shared := seen[a]; shared {
			t.Errorf("%q shares the account of %q", name, other)
		}
		seen[a] = name
	}
}

func TestFingerprint(t *testing.T) {
	s, _ := newSet(nil)
	a, b := get(t, s, "https://a.example/v1", "1"), get(t, s, "https://a.example/v1", "2")
	seen := map[string]bool{}
	for i, sum := range [][]byte{
		s.AppendFingerprint(nil, a, "", "/embeddings", []byte("{}")),
		s.AppendFingerprint(nil, b, "", "/embeddings", []byte("{}")),
		s.AppendFingerprint(nil, a, "", "/responses", []byte("{}")),
		s.AppendFingerprint(nil, a, "", "/embeddings", []byte("{} ")),
		s.AppendFingerprint(nil, a, "one", "/embeddings", []byte("{}")),
		s.AppendFingerprint(nil, a, "two", "/embeddings", []byte("{}")),
	} {
		if seen[string(sum)] || len(sum) != 32 {
			t.Errorf("fingerprint %d is %x: not 32 bytes, or not unique", i, sum)
		}
		seen[string(sum)] = true
	}
	if !seen[string(s.AppendFingerprint(nil, a, "", "/embeddings", []byte("{}")))] {
		t.Error("equal calls have two fingerprints")
	}
	if got := s.AppendFingerprint([]byte("x"), a, "", "", nil); !bytes.HasPrefix(got, []byte("x")) {
		t.Errorf("%x does not begin with the bytes before", got)
	}
}

// An account is kept while it has a batch, and for an hour after the last call.
func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newSet(nil)
		busy, idle := get(t, s, "https://a.example/v1", "busy"), get(t, s, "https://a.example/v1", "idle")
		known := func(a *accounts.Account) bool {
			synctest.Wait()
			return s.ByHash(a.Hash) == a
		}
		busy.BatchBegins()
		time.Sleep(time.Hour - time.Nanosecond)
		if !known(busy) || !known(idle) {
			t.Error("an account was forgotten within an hour")
		}
		time.Sleep(5 * time.Minute)
		if !known(busy) || known(idle) {
			t.Errorf("an hour later: busy known %v, want true; idle known %v, want false", known(busy), known(idle))
		}
		busy.BatchEnds()
		time.Sleep(5 * time.Minute)
		if known(busy) {
			t.Error("an account without a batch was kept")
		}
	})
}

func TestManyAccountsAreForgotten(t *testing.T) {
	s, _ := newSet(nil)
	busy, idle := get(t, s, "https://a.example/v1", "busy"), get(t, s, "https://a.example/v1", "idle")
	busy.BatchBegins()
	for i := range 1000 {
		get(t, s, "https://a.example/v1", fmt.Sprint(i))
	}
	if s.ByHash(busy.Hash) != busy || s.ByHash(idle.Hash) != nil {
		t.Errorf("busy known %v, want true; idle known %v, want false", s.ByHash(busy.Hash) != nil, s.ByHash(idle.Hash) != nil)
	}
}

// A base answers 401 to every credential but one.
type base struct {
	accepted string
	urls     []string
}

func (b *base) RoundTrip(req *http.Request) (*http.Response, error) {
	b.urls = append(b.urls, req.URL.String())
	res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Request: req}
	body := `{"id":"batch_1","status":"in_progress"}`
	if req.Header.Get("Authorization") != b.accepted {
		res.StatusCode, body = http.StatusUnauthorized, `{}`
	}
	res.Body = io.NopCloser(bytes.NewReader([]byte(body)))
	return res, nil
}

// A backend uses the base URL of the account, and a credential of
// Options.Credential once the credential of the call is refused.
func TestLanes(t *testing.T) {
	b, asked := &base{accepted: "fresh"}, []string(nil)
	s, _ := newSet(func(o *accounts.Options) {
		o.Base = b
		o.Account = func(*http.Request) string { return "n" }
		o.Credential = func(_ context.Context, name string) (http.Header, error) {
			asked = append(asked, name)
			return http.Header{"Authorization": {"fresh"}}, nil
		}
	})
	a := get(t, s, "https://a.example/v1", "stale")
	all, err := a.Lane("").Backend().Status(t.Context(), []backend.Handle{{BatchID: "batch_1"}})
	if err != nil || len(all) != 1 || all[0].Word != "in_progress" {
		t.Errorf("status %+v, %v; want in_progress", all, err)
	}
	if len(asked) != 1 || asked[0] != "n" {
		t.Errorf("Credential was asked for %q, want the account n once", asked)
	}
	for _, u := range b.urls {
		if u != "https://a.example/v1/batches/batch_1" {
			t.Errorf("request to %s", u)
		}
	}
	if a.Upstream() != "https://a.example/v1" {
		t.Errorf("upstream %s", a.Upstream())
	}
}

// A path that is escaped stays escaped, in the requests of both lanes.
func TestEscapedPaths(t *testing.T) {
	b := &base{accepted: "1"}
	s, _ := newSet(func(o *accounts.Options) { o.Base = b })
	a := get(t, s, "https://a.example/x%2Fy/v1", "1")
	for _, lane := range []string{"24h", provider.FlexWindow} {
		if _, err := a.Lane(lane).Backend().Status(t.Context(), []backend.Handle{{BatchID: "a b"}}); err != nil {
			t.Error(err)
		}
	}
	want := []string{"https://a.example/x%2Fy/v1/batches/a%20b", "https://a.example/x%2Fy/v1/responses/a%20b"}
	if !slices.Equal(b.urls, want) {
		t.Errorf("requests to %q, want %q", b.urls, want)
	}
}
