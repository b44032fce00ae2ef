//go:build unix

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/batchtest"
)

// submitOne runs a request without a journal, and returns what submit has printed and
// the results, in the output or beside it.
func submitOne(t *testing.T, baseURL, key string, flags ...string) (printed, results string) {
	t.Helper()
	dir := t.TempDir()
	input, out := filepath.Join(dir, "in.jsonl"), filepath.Join(dir, "out.jsonl")
	if err := os.WriteFile(input, []byte(`{"custom_id":"a","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"submit", "--base-url", baseURL, "--resubmits", "-1", "--poll-interval", "0.1", "--batch-window", "0", "--log-level", "debug", "-o", out}, flags...)
	cmd := exec.Command("autobatcher", append(args, input)...)
	cmd.Env = []string{"GORACE=" + raceOptions, "OPENAI_API_KEY=" + key, "AUTOBATCHER_JOURNAL=off"}
	text, _ := cmd.CombinedOutput() // the output is checked
	for _, path := range []string{out, out + ".part"} {
		if text, err := os.ReadFile(path); err == nil {
			results += string(text)
		}
	}
	return string(text), results
}

// TestSubmitShowsNoKey checks that neither the output of submit nor its files show a key
// that the provider repeats.
func TestSubmitShowsNoKey(t *testing.T) {
	const secret = "Zx81kQ37pLm3vBd9wTy2"
	for _, tt := range []struct {
		name    string
		answer  batchtest.Outcome
		refuses string // the path at which the provider repeats the key
		want    string
	}{
		{"the upload is refused", batchtest.Outcome{}, "/files", "bad key *****"},
		{"the batch is refused", batchtest.Outcome{}, "/batches", "bad key *****"},
		{"the batch fails", batchtest.Outcome{Refused: &batchtest.BatchError{Code: "c", Message: "bad key sk-" + secret}}, "", "bad key *****"},
		{"an error of the line", batchtest.Outcome{Status: 400, Body: []byte(`{"error":{"message":"bad key sk-` + secret + `"}}`)}, "", "bad key *****"},
		{"a line without an answer", batchtest.Outcome{Code: "c", Message: "bad key sk-" + secret}, "", "bad key *****"},
		{"an answer", batchtest.Outcome{Body: []byte(`{"text":"your key sk-` + secret + `"}`)}, "", `"your key *****`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := batchtest.NewServer(batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return tt.answer }})
			defer srv.Close()
			front, base := frontOf(t, srv.URL, func(w http.ResponseWriter, r *http.Request) bool {
				if tt.refuses == "" || r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, tt.refuses) {
					return false
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprintf(w, `{"error":{"message":"bad key %s"}}`, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
				return true
			})
			defer front.Close()
			printed, results := submitOne(t, base, "sk-"+secret)
			if all := printed + results; strings.Contains(all, secret[:8]) || !strings.Contains(all, tt.want) {
				t.Errorf("printed %s\nresults %s", printed, results)
			}
		})
	}
}

// An answer in real time that comes in pieces is stored whole.
func TestSubmitEscalated(t *testing.T) {
	srv := batchtest.NewServer(batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome {
		return batchtest.Outcome{Code: "request_timeout", Message: "slow"}
	}})
	defer srv.Close()
	answer := strings.Repeat("x", 50_000)
	front, base := frontOf(t, srv.URL, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/chat/completions") {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"text":"`+answer)
		w.(http.Flusher).Flush()
		time.Sleep(50 * time.Millisecond)
		_, _ = io.WriteString(w, `","usage":{"prompt_tokens":1,"completion_tokens":2}}`)
		return true
	})
	defer front.Close()
	printed, results := submitOne(t, base, "a-key", "--escalate", "failed")
	if gjson.Get(results, "response.body.text").String() != answer || !strings.Contains(printed, "(0 failed)") {
		t.Errorf("printed %s\nresults %.200s", printed, results)
	}
}

// frontOf starts a server in front of another one, and returns its base URL.
func frontOf(t *testing.T, base string, handle func(http.ResponseWriter, *http.Request) bool) (front *httptest.Server, frontBase string) {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	next := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: u.Scheme, Host: u.Host})
	front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !handle(w, r) {
			next.ServeHTTP(w, r)
		}
	}))
	return front, front.URL + u.Path
}
