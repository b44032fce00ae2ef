package batchapi_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/provider"
)

func mustURL(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// A script answers creates, lists and deletes in turns; when it has run out, the
// last answer stands. Without an answer to a delete, deleting works.
type script struct {
	creates, lists, deletes []func() (*http.Response, error)
	deleted                 []string
}

func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		req.Body.Close()
	}
	turns := &s.lists
	switch req.Method {
	case http.MethodPost:
		turns = &s.creates
	case http.MethodDelete:
		s.deleted = append(s.deleted, req.URL.Path)
		if s.deletes == nil {
			return answer(200, "{}"), nil
		}
		turns = &s.deletes
	}
	next := (*turns)[0]
	if len(*turns) > 1 {
		*turns = (*turns)[1:]
	}
	return next()
}

func says(status int, body string, header ...string) func() (*http.Response, error) {
	return func() (*http.Response, error) { return answer(status, body, header...), nil }
}

func reset() (*http.Response, error) { return nil, errors.New("connection reset") }

// fail is an answer that must not be asked for.
func fail(t *testing.T, what string) func() (*http.Response, error) {
	return func() (*http.Response, error) {
		t.Error(what)
		return answer(400, "{}"), nil
	}
}

const made = `{"id":"b","status":"validating"}`

func listed(items ...string) func() (*http.Response, error) {
	return says(200, `{"object":"list","data":[`+strings.Join(items, ",")+`],"has_more":false}`)
}

func batchOf(file string) string {
	return fmt.Sprintf(`{"id":"b-%s","input_file_id":%q,"status":"validating","created_at":%d}`, file, file, time.Now().Unix())
}

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
			func(*testing.T) turns { return turns{listed(batchOf("other"))} }, "", batchapi.ErrSpent, 0,
		},
		{
			"lost, and made before the file was deleted",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{listed(), listed(), listed(batchOf("f"))} }, "b-f", nil, 0,
		},
		{
			"lost, and the list breaks after the file was deleted",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{listed(), listed(), says(404, "{}")} }, "", batchapi.ErrUnsure, 0,
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
			func(*testing.T) turns { return turns{says(404, "{}")} }, "", batchapi.ErrUnsure, 0,
		},
		{
			"lost, and the list is a page",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{says(200, "<html>")} }, "", batchapi.ErrUnsure, 0,
		},
		{
			"lost, and the list is no list",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{says(200, `{"message":"not here"}`)} }, "", batchapi.ErrUnsure, 0,
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
			}, "", batchapi.ErrUnsure, 0,
		},
		{
			"a list that never comes",
			func(t *testing.T) turns { return turns{reset, fail(t, "created twice")} },
			func(*testing.T) turns { return turns{says(500, "{}")} }, "", batchapi.ErrUnsure, 0,
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
				b, err := c.CreateOnce(t.Context(), batchapi.CreateParams{InputFileID: "f"}, discard)
				if b.ID != tt.id || (err == nil) != (tt.id != "") || tt.is != nil && !errors.Is(err, tt.is) {
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

// The file is deleted when the list does not show its batch, and not before; if it
// cannot be deleted, it cannot be known that there will be no batch.
func TestSettle(t *testing.T) {
	type answers = []func() (*http.Response, error)
	for _, tt := range []struct {
		name    string
		lists   answers
		deletes answers
		deleted int // requests
		is      error
	}{
		{"found", answers{listed(batchOf("f"))}, nil, 0, nil},
		{"no list", answers{says(404, "{}")}, nil, 0, batchapi.ErrUnsure},
		{"found late", answers{listed(), listed(), listed(), listed(batchOf("f"))}, nil, 1, nil},
		{"not there", answers{listed()}, nil, 1, batchapi.ErrSpent},
		{"deleted at the second try", answers{listed()}, answers{reset, says(200, "{}")}, 2, batchapi.ErrSpent},
		{"not to be seen at first", answers{listed()}, answers{says(404, "{}"), says(200, "{}")}, 2, batchapi.ErrSpent},
		{"must not be deleted", answers{listed()}, answers{says(403, "{}")}, 1, batchapi.ErrUnsure},
		{"found though it must not be", answers{listed(), listed(), listed(batchOf("f"))}, answers{says(403, "{}")}, 1, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{lists: tt.lists, deletes: tt.deletes}
				b, err := openai(t, s).Settle(t.Context(), "f", time.Now(), discard)
				if !errors.Is(err, tt.is) || (b.ID == "b-f") != (tt.is == nil) {
					t.Errorf("%+v, %v", b, err)
				}
				if len(s.deleted) != tt.deleted || tt.deleted > 0 && s.deleted[0] != "/v1/files/f" {
					t.Errorf("deleted %q", s.deleted)
				}
			})
		})
	}
}

func TestDeletePatiently(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers []func() (*http.Response, error)
		fails   bool
	}{
		{"deleted", []func() (*http.Response, error){says(200, "{}")}, false},
		{"gone already", []func() (*http.Response, error){says(404, "{}")}, false},
		{"busy for a while", []func() (*http.Response, error){says(503, "{}"), reset, says(200, "{}")}, false},
		{"forbidden", []func() (*http.Response, error){says(403, "{}")}, true},
		{"broken", []func() (*http.Response, error){says(500, "{}")}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				w := &wire{answer: func(sent, int) (*http.Response, error) {
					n++
					return tt.answers[min(n, len(tt.answers))-1]()
				}}
				began := time.Now()
				if err := openai(t, w).DeletePatiently(t.Context(), "f"); (err != nil) != tt.fails {
					t.Error(err)
				}
				if took := time.Since(began); took > time.Minute {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// Whatever a provider's list is like, a lost create is found in it.
func TestAdoptAtEveryProvider(t *testing.T) {
	for _, tt := range []struct {
		profile provider.Profile
		manners batchtest.Manners
		more    int // batches made by others meanwhile
	}{
		{provider.OpenAI(), batchtest.OpenAI(), 250},
		{provider.Doubleword(), batchtest.Doubleword(), 150},
		{provider.LLMD(), batchtest.LLMD(), 250},
		{provider.Together(), batchtest.Together(), 50},
		{provider.Azure(), batchtest.Azure(), 150},
	} {
		t.Run(tt.profile.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := batchtest.New(batchtest.Options{Manners: tt.manners})
				c := client(t, srv.URL, tt.profile, srv.Transport())
				id, err := c.Upload(t.Context(), batchapi.Upload{Name: "x"}, file(1))
				if err != nil {
					t.Fatal(err)
				}
				params := func(id string) batchapi.CreateParams {
					return batchapi.CreateParams{InputFileID: id, Endpoint: tt.profile.Endpoint("/chat/completions"), CompletionWindow: "24h"}
				}
				other, err := c.Upload(t.Context(), batchapi.Upload{Name: "y"}, file(1))
				if err != nil {
					t.Fatal(err)
				}
				since := time.Now()
				mine, err := c.Create(t.Context(), params(id))
				if err != nil {
					t.Fatal(err)
				}
				for range tt.more {
					if _, err := c.Create(t.Context(), params(other)); err != nil {
						t.Fatal(err)
					}
				}
				if found, ok, err := c.Find(t.Context(), id, since); found.ID != mine.ID || !ok || err != nil {
					t.Errorf("found %+v, %v, %v behind %d others; want %s", found, ok, err, tt.more, mine.ID)
				}
				if _, ok, err := c.Find(t.Context(), "no-such-file", since); ok || err != nil {
					t.Errorf("found what is not there: %v, %v", ok, err)
				}
			})
		})
	}
}

// A list whose pages are smaller than was asked for is read on from where it
// ended.
func TestSmallPagesByOffset(t *testing.T) {
	w := &wire{answer: func(s sent, _ int) (*http.Response, error) {
		after, _ := url.Parse(s.url)
		start := 0
		fmt.Sscan(after.Query().Get("after"), &start)
		var items []string
		for i := start; i < min(start+20, 90); i++ {
			items = append(items, fmt.Sprintf(`{"id":"b%d","input_file_id":"f%d"}`, i, i))
		}
		return answer(200, fmt.Sprintf(`{"data":[%s],"has_more":%v}`, strings.Join(items, ","), start+20 < 90)), nil
	}}
	c := client(t, "https://gateway.example/v1", provider.LLMD(), w)
	if b, ok, err := c.Find(t.Context(), "f55", time.Time{}); b.ID != "b55" || !ok || err != nil {
		t.Errorf("found %+v, %v, %v; want b55", b, ok, err)
	}
}

func TestFindStopsInTime(t *testing.T) {
	now := time.Now()
	page := 0
	w := &wire{answer: func(sent, int) (*http.Response, error) {
		page++
		var items []string
		for i := range 100 {
			items = append(items, fmt.Sprintf(`{"id":"b%d-%d","input_file_id":"x","created_at":%d}`, page, i, now.Add(-time.Duration(page)*time.Hour).Unix()))
		}
		return answer(200, `{"data":[`+strings.Join(items, ",")+`],"has_more":true}`), nil
	}}
	if _, ok, err := openai(t, w).Find(t.Context(), "f", now.Add(-150*time.Minute)); ok || err != nil || page != 3 {
		t.Errorf("%v, %v after %d pages; want three", ok, err, page)
	}
}

func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := func(status int) error { return &batchapi.Error{Status: status, RetryAfter: -1} }
		for _, tt := range []struct {
			name  string
			err   error
			again bool
			least time.Duration
			most  time.Duration
		}{
			{"no error", nil, false, 0, 0},
			{"another's error", errors.New("x"), false, 0, 0},
			{"refused", failed(400), false, 0, 0},
			{"server", failed(500), true, 750 * time.Millisecond, time.Second},
			{"too fast, not told", failed(429), true, time.Minute, 66 * time.Second},
			{"too fast, at once", &batchapi.Error{Status: 429}, true, time.Second, 1100 * time.Millisecond},
			{"too fast, told", &batchapi.Error{Status: 429, RetryAfter: 2 * time.Minute}, true, 2 * time.Minute, 132 * time.Second},
			{"busy, told", &batchapi.Error{Status: 503, RetryAfter: time.Minute}, true, time.Minute, time.Minute},
			{"beyond patience", &batchapi.Error{Status: 503, RetryAfter: 2 * time.Hour}, false, 2 * time.Hour, 2 * time.Hour},
			{"not seen yet", failed(404), true, 750 * time.Millisecond, time.Second},
		} {
			r := batchapi.Retries{Patience: time.Hour, Unseen: time.Minute}
			if wait, again := r.Next(tt.err); again != tt.again || wait < tt.least || wait > tt.most {
				t.Errorf("%s: %v, %v; want %v to %v, %v", tt.name, wait, again, tt.least, tt.most, tt.again)
			}
		}
		r := batchapi.Retries{Patience: time.Hour, Unseen: time.Minute}
		r.Next(failed(500))
		time.Sleep(time.Minute)
		if _, again := r.Next(failed(404)); again {
			t.Error("a 404 is tried again after a minute")
		}
		var waits []time.Duration
		r = batchapi.Retries{Patience: time.Hour}
		for range 8 {
			wait, _ := r.Next(failed(500))
			waits = append(waits, wait.Round(time.Hour)) // they grow to half a minute, no further
			if wait > 30*time.Second {
				t.Errorf("waits %v", wait)
			}
		}
		if diff := cmp.Diff(make([]time.Duration, 8), waits); diff != "" {
			t.Error(diff)
		}
	})
}
