package main

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
)

// TestPageCancelsABatch cancels a batch of the sandbox, and a call at the flex tier that runs
// in the background, on the page. The page then says why the call has no answer.
func TestPageCancelsABatch(t *testing.T) {
	t.Run("batch", func(t *testing.T) { cancelOnThePage(t, "batch", "/v1/embeddings") })
	t.Run("flex", func(t *testing.T) { cancelOnThePage(t, "flex", "/v1/responses") })
}

// cancelOnThePage cancels a call that is sent in a mode.
func cancelOnThePage(t *testing.T, mode, path string) {
	t.Helper()
	s := newSettings()
	s.mode, s.flexDelay = mode, seconds(time.Hour)
	s.baseURL = "https://api.openai.com/v1"
	s.sandbox, s.turnaround, s.batchSize, s.batchWindow, s.journal = true, seconds(time.Hour), 1, 0, "off"
	s.resubmits, s.pollInterval, s.metadata = 0, seconds(100*time.Millisecond), []string{"team=search"}
	b, err := s.newBackend(t.Context(), process{}, slog.New(slog.DiscardHandler), func(autobatcher.Event) {})
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	ask := func(method, target, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		r.Host, r.RemoteAddr = "localhost", "127.0.0.1:1"
		if r.URL.Path == "/autobatcher/cancel" {
			r.Header.Set("Autobatcher-Page", "cancel")
		}
		w := httptest.NewRecorder()
		b.proxy.ServeHTTP(w, r)
		return w
	}
	type state struct {
		NoAnswer int
		Reasons  []struct{ Code string }
		Lanes    []struct {
			Waiting int
			Failed  int
		}
		Batches []struct {
			ID, Status, Window string
			Metadata           []string
		}
	}
	wait := func(what string, ready func(state) bool) state {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			var answer struct{ State state }
			body := ask("GET", "/autobatcher/state", "").Body.Bytes()
			if err := json.Unmarshal(body, &answer); err != nil {
				t.Fatal(err)
			}
			if ready(answer.State) {
				return answer.State
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s", what, body)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	answered := make(chan *httptest.ResponseRecorder, 1)
	go func() { answered <- ask("POST", path, `{"model":"m","input":"a"}`) }()
	running := wait("no batch runs", func(s state) bool { return len(s.Batches) == 1 && s.Batches[0].ID != "" })
	counted := map[string]int{"batch": 0, "flex": 1}[mode]
	if (running.Batches[0].Window == "flex") != (mode == "flex") || running.Lanes[counted].Waiting != 1 {
		t.Errorf("%+v, want a call that waits in the lane %s", running, mode)
	}
	if got := running.Batches[0].Metadata; len(got) != 1 || got[0] != "team=search" {
		t.Errorf("metadata %q", got)
	}
	page := ask("GET", "/", "").Body.String()
	for _, text := range []string{"<dt>Provider</dt> <dd>openai</dd>", "<dt>Version</dt> <dd>", "<dt>Journal</dt> <dd>off</dd>", "made up", "data-cancel"} {
		if !strings.Contains(page, text) {
			t.Errorf("the page lacks %q", text)
		}
	}
	if w := ask("POST", "/autobatcher/cancel?id="+url.QueryEscape(running.Batches[0].ID), ""); w.Code != http.StatusNoContent {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := <-answered; w.Code != http.StatusFailedDependency || !strings.Contains(w.Body.String(), autobatcher.CodeBatchCancelled) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	wait("the reason is missing", func(s state) bool {
		gone := len(s.Batches) == 0 // a call at the flex tier is listed while it runs
		if mode == "batch" {
			gone = s.Batches[0].Status == "cancelled"
		}
		return gone && s.NoAnswer == 1 && s.Lanes[counted].Failed == 1 && len(s.Reasons) == 1 && s.Reasons[0].Code == autobatcher.CodeBatchCancelled
	})
}
