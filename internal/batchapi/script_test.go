package batchapi_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
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

func listed(items ...string) func() (*http.Response, error) {
	return says(200, `{"object":"list","data":[`+strings.Join(items, ",")+`],"has_more":false}`)
}

func batchOf(file string) string {
	return fmt.Sprintf(`{"id":"b-%s","input_file_id":%q,"status":"validating","created_at":%d}`, file, file, time.Now().Unix())
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
