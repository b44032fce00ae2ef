package dashboard_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/dashboard"
)

// The Transport needs the Dashboard for OnEvent, and the Dashboard needs the
// Transport for Stats. Make the Transport first: a Transport has no events before
// the first call.
func ExampleNew() {
	var page *dashboard.Dashboard
	transport, err := autobatcher.New(autobatcher.Options{
		OnEvent: func(e autobatcher.Event) { page.OnEvent(e) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	page = dashboard.New(dashboard.Options{Stats: transport.Stats})
	defer page.Close()
	defer transport.Close()

	w := httptest.NewRecorder()
	page.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	fmt.Println(w.Code, w.Header().Get("Content-Type"))
	// Output: 200 text/html; charset=utf-8
}

// shownState is the part of the state that TestDashboardFollowsATransport compares.
type shownState struct {
	State struct {
		Queued, Running, Answered int
		Queues                    []struct {
			Endpoint string
			Models   []string
			Calls    int
		}
		Batches []struct {
			Endpoint, Status, Event  string
			Models                   []string
			Finished                 bool
			Completed, Failed, Total int
		}
	}
}

// TestDashboardFollowsATransport checks the state for the calls of an
// autobatcher.Transport: first in a queue, then in a batch, then answered.
func TestDashboardFollowsATransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{Turnaround: time.Minute})
		defer server.Close()
		var page *dashboard.Dashboard
		transport, err := autobatcher.New(autobatcher.Options{
			Base: server.Client().Transport, OnEvent: func(e autobatcher.Event) { page.OnEvent(e) },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer transport.Close()
		page = dashboard.New(dashboard.Options{Stats: transport.Stats})
		defer page.Close()

		var calls sync.WaitGroup
		for range 3 {
			calls.Go(func() { call(t, transport, server.URL) })
		}
		time.Sleep(time.Second)
		expectSnapshot(t, page, `{"State": {"Queued": 3, "Queues": [{"Endpoint": "/v1/chat/completions", "Models": ["m"], "Calls": 3}], "Batches": []}}`)
		time.Sleep(20 * time.Second)
		s := snapshot(t, page)
		if len(s.State.Batches) != 1 || s.State.Batches[0].Finished || s.State.Running != 3 {
			t.Errorf("while the batch runs: %+v", s.State)
		}
		calls.Wait()
		time.Sleep(2 * time.Second)
		expectSnapshot(t, page, `{"State": {"Answered": 3, "Queues": [], "Batches": [{
			"Endpoint": "/v1/chat/completions", "Status": "completed", "Event": "batch_completed", "Models": ["m"],
			"Finished": true, "Completed": 3, "Total": 3}]}}`)
	})
}

func call(t *testing.T, transport *autobatcher.Transport, base string) {
	r, err := http.NewRequestWithContext(t.Context(), "POST", base+"/chat/completions", strings.NewReader(`{"model": "m", "messages": [{"role": "user", "content": "a secret prompt"}]}`))
	if err != nil {
		t.Error(err)
		return
	}
	r.Header.Set("Authorization", "Bearer secret-key")
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%v, %s: %s", err, resp.Status, body)
	}
}

func snapshot(t *testing.T, page *dashboard.Dashboard) (s shownState) {
	t.Helper()
	w := httptest.NewRecorder()
	page.ServeHTTP(w, httptest.NewRequest("GET", "/autobatcher/state", nil))
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(w.Body.String(), "secret") {
		t.Errorf("a prompt or a key is shown: %s", w.Body)
	}
	return s
}

func expectSnapshot(t *testing.T, page *dashboard.Dashboard, want string) {
	t.Helper()
	var s shownState
	if err := json.Unmarshal([]byte(want), &s); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, snapshot(t, page)); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
}
