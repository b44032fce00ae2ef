package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/redact"
)

func TestParseKey(t *testing.T) {
	tests := []struct {
		content, want, err string
	}{
		{"sk-1", "sk-1", ""},
		{" sk-1\r\n\n", "sk-1", ""},
		{"", "", "the file is empty"},
		{" \n", "", "the file is empty"},
		{"sk-1\nsk-2\n", "", "one key and nothing else"},
		{"OPENAI_API_KEY = sk-1", "", "one key and nothing else"},
		{"sk-\x00", "", "one key and nothing else"},
		{"sk-ü", "", "one key and nothing else"},
		{strings.Repeat("x", maxKeyFile+1), "", "larger than 65536 bytes"},
	}
	for _, tt := range tests {
		got, err := parseKey(tt.content)
		if got != tt.want || (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("parseKey(%.20q) = %q, %v; want %q, %q", tt.content, got, err, tt.want, tt.err)
		}
	}
}

// newKeyFile writes a key file in a directory of the test's own and opens the
// file.
func newKeyFile(t *testing.T, key string) (f *keyFile, log *bytes.Buffer) {
	t.Helper()
	log = new(bytes.Buffer)
	path := filepath.Join(t.TempDir(), "key")
	writeKey(t, path, key)
	f, err := openKeyFile(path, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return f, log
}

// writeKey replaces a file by renaming a new file.
func writeKey(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func removeKey(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// overwriteKey writes into the file that exists.
func overwriteKey(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Within a second of each change the newest valid key is current, and each
// problem is logged once, without a key.
func TestKeyFileChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, log := newKeyFile(t, "secret-1\n")
		steps := []struct {
			change   func()
			want     string
			warnings int // in the log so far
		}{
			{func() {}, "secret-1", 0},
			{func() { writeKey(t, f.path, "secret-2") }, "secret-2", 0},
			{func() { writeKey(t, f.path, "secret-3") }, "secret-3", 0}, // same length
			{func() { overwriteKey(t, f.path, "secret-33") }, "secret-33", 0},
			{func() { writeKey(t, f.path, "") }, "secret-33", 1},
			{func() {}, "secret-33", 1},
			{func() { removeKey(t, f.path) }, "secret-33", 2},
			{func() {}, "secret-33", 2},
			{func() { writeKey(t, f.path, "secret 4") }, "secret-33", 3},
			{func() { writeKey(t, f.path, "secret-33") }, "secret-33", 3},
			{func() { writeKey(t, f.path, "secret 4") }, "secret-33", 4}, // a new problem
			{func() { writeKey(t, f.path, "secret-5") }, "secret-5", 4},
		}
		for i, s := range steps {
			s.change()
			time.Sleep(keyFileInterval)
			if got := f.current(); got != s.want {
				t.Errorf("step %d: the key is %q, want %q", i, got, s.want)
			}
			if got := strings.Count(log.String(), "the API key file is not valid"); got != s.warnings {
				t.Errorf("step %d: %d warnings, want %d", i, got, s.warnings)
			}
		}
		if got := strings.Count(log.String(), "the API key has changed"); got != 4 {
			t.Errorf("%d changes were logged, want 4", got)
		}
		if strings.Contains(log.String(), "secret") {
			t.Errorf("the log holds a key:\n%s", log)
		}
	})
}

// Many calls cost one look at the file a second; a refused key costs a read at
// once.
func TestKeyFileInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newKeyFile(t, "one")
		writeKey(t, f.path, "two")
		time.Sleep(keyFileInterval - 1)
		if got := f.current(); got != "one" {
			t.Errorf("before the interval has passed the key is %q, want one", got)
		}
		if got := f.reread(); got != "two" {
			t.Errorf("read again, the key is %q, want two", got)
		}
	})
}

func TestOpenKeyFileFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if _, err := openKeyFile(path, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a missing file can be opened")
	}
	overwriteKey(t, path, "two secrets")
	_, err := openKeyFile(path, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "secrets") {
		t.Errorf("the error is %v; want the path and not the contents", err)
	}
}

// The account of a key file does not depend on the key, and the Transport gets
// the newest key from the file.
func TestKeyFileConfigure(t *testing.T) {
	f, _ := newKeyFile(t, "one")
	other, _ := newKeyFile(t, "one")
	var o, elsewhere autobatcher.Options
	f.configure(&o, "Authorization", redact.New())
	other.configure(&elsewhere, "Authorization", redact.New())
	before := o.Account(&http.Request{Header: credentialHeader("Authorization", "one")})
	writeKey(t, f.path, "two")
	after := o.Account(&http.Request{Header: credentialHeader("Authorization", "two")})
	if before != after || before == "" || strings.Contains(before, "one") {
		t.Errorf("the account was %q and is %q; want one name without the key", before, after)
	}
	if elsewhere.Account(&http.Request{}) == before {
		t.Error("two files have the same account")
	}
	header, err := o.Credential(t.Context(), after)
	if err != nil || header.Get("Authorization") != "Bearer two" {
		t.Errorf("the credential is %v, %v; want the new key", header, err)
	}
}

// sent records the headers of requests.
type sent []http.Header

func (s *sent) RoundTrip(req *http.Request) (*http.Response, error) {
	*s = append(*s, req.Header)
	return nil, http.ErrAbortHandler
}

func TestKeyFileTransport(t *testing.T) {
	for _, authHeader := range []string{"Authorization", "api-key"} {
		t.Run(authHeader, func(t *testing.T) {
			f, _ := newKeyFile(t, "one")
			var requests sent
			transport := &keyFileTransport{next: &requests, file: f, authHeader: authHeader, first: "one"}
			req := &http.Request{Header: credentialHeader(authHeader, "one")}
			_, _ = transport.RoundTrip(req)
			writeKey(t, f.path, "two")
			f.reread()
			_, _ = transport.RoundTrip(req)
			want := []string{credentialValue(authHeader, "one"), credentialValue(authHeader, "two")}
			got := []string{requests[0].Get(authHeader), requests[1].Get(authHeader)}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("the requests went out with %q, want %q", got, want)
			}
			if req.Header.Get(authHeader) != want[0] {
				t.Error("the caller's request was changed")
			}
		})
	}
}
