package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

func TestRestrict(t *testing.T) {
	for _, test := range []struct {
		name string
		s    accessSettings
		want proxy.Options
	}{
		{"default", accessSettings{}, proxy.Options{}},
		{"client keys", accessSettings{clientKeys: []string{"k"}}, proxy.Options{ClientKeys: []string{"k"}, RefuseClientHeaders: true}},
		{"on", accessSettings{clientKeys: []string{"k"}, clientHeaders: "on"}, proxy.Options{ClientKeys: []string{"k"}}},
		{"off", accessSettings{clientHeaders: "off"}, proxy.Options{RefuseClientHeaders: true}},
		{"page keys", accessSettings{pageKeys: []string{"p"}}, proxy.Options{PageKeys: []string{"p"}}},
		{"account routes", accessSettings{allowAccountRoutes: true}, proxy.Options{AllowAccountRoutes: true}},
	} {
		var o proxy.Options
		test.s.allowHosts = []string{"name"}
		test.s.restrict(&o, "192.0.2.1")
		test.want.AllowHosts = []string{"name", "192.0.2.1"}
		if diff := cmp.Diff(test.want, o); diff != "" {
			t.Errorf("%s:\n%s", test.name, diff)
		}
	}
	// The program of autobatcher run may use everything.
	var s accessSettings
	var o proxy.Options
	s.trustProgram("k")
	if s.restrict(&o, "127.0.0.1"); o.RefuseClientHeaders || !o.AllowAccountRoutes || len(o.ClientKeys) != 1 {
		t.Errorf("run: %+v", o)
	}
}

// TestNothingShowsTheKey checks that answers, events, the log and the page do not
// show a credential that the provider repeats in its errors: the operator's key, a
// key that replaced it in the file, and the key of a caller.
func TestNothingShowsTheKey(t *testing.T) {
	const secret = "Zx81kQ37pLm3vBd9wTy2"
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		message, _ := json.Marshal("this key is unknown: " + r.Header.Get("Authorization"))
		fmt.Fprintf(w, `{"error":{"message":%s,"type":"t"}}`, message)
	}))
	defer upstream.Close()
	path := filepath.Join(t.TempDir(), "key")
	writeKey(t, path, "sk-first-"+secret)
	for name, change := range map[string]func(*settings){
		"--api-key":      func(s *settings) { s.apiKey = "sk-first-" + secret },
		"--api-key-file": func(s *settings) { s.apiKeyFile = path },
		"--forward-key":  func(s *settings) { s.forwardKey = true },
	} {
		t.Run(name, func(t *testing.T) {
			var log lockedBuffer
			var events bytes.Buffer
			var mu sync.Mutex
			s := newSettings()
			s.baseURL, s.batchSize, s.batchWindow, s.journal = upstream.URL+"/v1", 1, 0, "off"
			change(s)
			b, err := s.newBackend(t.Context(), process{}, slog.New(slog.NewJSONHandler(&log, nil)), func(e autobatcher.Event) {
				mu.Lock()
				defer mu.Unlock()
				fmt.Fprintln(&events, e.Name, e.Error)
			})
			if err != nil {
				t.Fatal(err)
			}
			defer b.close()
			ask := func(method, path, key string) string {
				r := httptest.NewRequest(method, path, strings.NewReader(`{"model":"m","input":"a"}`))
				r.Host = "localhost"
				r.RemoteAddr = "127.0.0.1:1"
				r.Header.Set("Authorization", "Bearer sk-caller-"+key)
				w := httptest.NewRecorder()
				b.proxy.ServeHTTP(w, r)
				return fmt.Sprint(w.Header(), w.Body)
			}
			check := func(secret string) {
				t.Helper()
				answers := map[string]string{"held call": ask("POST", "/v1/embeddings", secret), "passed call": ask("POST", "/v1/moderations", secret)}
				deadline := time.Now().Add(20 * time.Second)
				for {
					mu.Lock()
					answers["events"] = events.String()
					mu.Unlock()
					if strings.Contains(answers["events"], "batch_submission_failed") || time.Now().After(deadline) {
						break
					}
					time.Sleep(10 * time.Millisecond)
				}
				answers["log"], answers["page"] = log.String(), ask("GET", "/autobatcher/state", secret)
				for where, text := range answers {
					forwarded := s.forwardKey && strings.HasSuffix(where, "call") // the caller's own key, in the caller's own answer
					if strings.Contains(text, secret) && !forwarded {
						t.Errorf("%s: %s", where, text)
					}
				}
				if text := answers["events"] + answers["log"]; !strings.Contains(text, "this key is unknown") {
					t.Errorf("the provider's error is missing: %s", text)
				}
			}
			check(secret)
			if s.apiKeyFile != "" {
				const next = "Qa72nR46sKj8hGf5dSe1"
				writeKey(t, path, "sk-next-"+next)
				deadline := time.Now().Add(20 * time.Second)
				for b.keyFile.current() != "sk-next-"+next && time.Now().Before(deadline) {
					time.Sleep(50 * time.Millisecond)
				}
				check(next)
			}
		})
	}
}
