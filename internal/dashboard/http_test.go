package dashboard

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
)

func get(d http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	return w
}

func newDashboard(t *testing.T, o Options) *Dashboard {
	t.Helper()
	d := New(o)
	t.Cleanup(d.Close)
	return d
}

func TestServeHTTP(t *testing.T) {
	d := newDashboard(t, Options{})
	closed := New(Options{})
	closed.Close()
	tests := []struct {
		name, method, target string
		handler              http.Handler
		status               int
		contentType          string
	}{
		{"page", "GET", "/", d, 200, "text/html; charset=utf-8"},
		{"page with a query", "GET", "/?key=k&x=1", d, 200, "text/html; charset=utf-8"},
		{"page, head only", "HEAD", "/", d, 200, "text/html; charset=utf-8"},
		{"script", "GET", "/autobatcher/app.js", d, 200, "text/javascript; charset=utf-8"},
		{"script with a query", "GET", "/autobatcher/app.js?key=k", d, 200, "text/javascript; charset=utf-8"},
		{"chart", "GET", "/autobatcher/chart.js", d, 200, "text/javascript; charset=utf-8"},
		{"uPlot", "GET", "/autobatcher/uplot.js", d, 200, "text/javascript; charset=utf-8"},
		{"uPlot's style", "GET", "/autobatcher/uplot.css", d, 200, "text/css; charset=utf-8"},
		{"uPlot's licence", "GET", "/autobatcher/uplot.LICENSE.txt", d, 200, "text/plain; charset=utf-8"},
		{"style", "GET", "/autobatcher/style.css", d, 200, "text/css; charset=utf-8"},
		{"icon", "GET", "/autobatcher/icon.svg", d, 200, "image/svg+xml"},
		{"state", "GET", "/autobatcher/state", d, 200, "application/json"},
		{"state after Close", "GET", "/autobatcher/state", closed, 200, "application/json"},
		{"events, head only", "HEAD", "/autobatcher/events", d, 200, "text/event-stream"},
		{"events after Close", "GET", "/autobatcher/events", closed, 503, "text/plain; charset=utf-8"},
		{"unsupported method", "POST", "/", d, 405, "text/plain; charset=utf-8"},
		{"the template itself", "GET", "/autobatcher/index.html", d, 404, "text/plain; charset=utf-8"},
		{"the prefix", "GET", "/autobatcher/", d, 404, "text/plain; charset=utf-8"},
		{"path traversal", "GET", "/autobatcher/../http.go", d, 404, "text/plain; charset=utf-8"},
		{"unknown path", "GET", "/v1/models", d, 404, "text/plain; charset=utf-8"},
		{"unknown path, POST", "POST", "/v1/models", d, 404, "text/plain; charset=utf-8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := get(tt.handler, tt.method, tt.target)
			if w.Code != tt.status {
				t.Errorf("status %d, want %d", w.Code, tt.status)
			}
			want := map[string]string{
				"Content-Type": tt.contentType,
				"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
					"base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
				"X-Content-Type-Options": "nosniff",
				"Referrer-Policy":        "same-origin",
			}
			for name, value := range want {
				if diff := cmp.Diff(value, w.Header().Get(name)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
		})
	}
}

func TestAssetsAreCacheable(t *testing.T) {
	d := newDashboard(t, Options{})
	first := get(d, "GET", "/autobatcher/uplot.js")
	etag := first.Header().Get("ETag")
	if etag == "" || first.Header().Get("Cache-Control") != "no-cache" {
		t.Fatalf("headers are %v", first.Header())
	}
	if again := get(d, "GET", "/autobatcher/uplot.js", "If-None-Match", etag); again.Code != http.StatusNotModified {
		t.Errorf("status %d, want 304", again.Code)
	}
	if page := get(d, "GET", "/"); page.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("the page is cacheable: %v", page.Header())
	}
}

// TestAssetsFollowThePolicy checks that the assets name no other hosts, and contain no
// inline code or style, which the Content-Security-Policy forbids.
func TestAssetsFollowThePolicy(t *testing.T) {
	allowed := strings.NewReplacer(
		"https://github.com/leeoniya/uPlot", "", // in a comment of uPlot
		`xmlns="http://www.w3.org/2000/svg"`, "",
	)
	inline := regexp.MustCompile(`(?i)\sstyle=|\son[a-z]+="|<style|javascript:|@import|url\(["']?[a-z]+:|<script(?:[^>]*)>[^<]`)
	unsafe := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function`)
	walk := func(name string, _ fs.DirEntry, err error) error {
		if err != nil || name == "assets" {
			return err
		}
		body, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		text := allowed.Replace(string(body))
		if i := strings.Index(text, "://"); i >= 0 {
			t.Errorf("%s names another host: %.60q", name, text[max(0, i-10):])
		}
		if strings.HasSuffix(name, ".html") {
			if found := inline.FindString(text); found != "" {
				t.Errorf("%s has %q", name, found)
			}
		}
		if found := unsafe.FindString(text); found != "" {
			t.Errorf("%s uses %q", name, found)
		}
		return nil
	}
	if err := fs.WalkDir(files, "assets", walk); err != nil {
		t.Fatal(err)
	}
}

func TestPageAddsKeyToReferences(t *testing.T) {
	d := newDashboard(t, Options{})
	references := regexp.MustCompile(`(?:src|href)="(autobatcher/[^"]*)"`)
	tests := []struct{ name, query, suffix string }{
		{"none", "", ""},
		{"one", "?key=k1", "?key=k1"},
		{"empty", "?key=", ""},
		{"odd", "?key=a%26b%22%3E%3Cscript%3E", "?key=a%26b%22%3e%3cscript%3e"},
		{"other parameters", "?x=y", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found := references.FindAllStringSubmatch(get(d, "GET", "/"+tt.query).Body.String(), -1)
			if len(found) != 5 {
				t.Fatalf("%d references, want 5: %q", len(found), found)
			}
			for _, f := range found {
				if !strings.HasSuffix(f[1], tt.suffix) || tt.suffix == "" && strings.Contains(f[1], "?") {
					t.Errorf("%s does not end in %q", f[1], tt.suffix)
				}
			}
		})
	}
}

func TestState(t *testing.T) {
	synctest.Test(t, testState)
}

func testState(t *testing.T) {
	opened := time.UnixMilli(1_700_000_000_000)
	d := New(Options{Stats: func() autobatcher.Stats {
		return autobatcher.Stats{
			Queued: 2, Running: 3, Answered: 4, Failed: 5, Left: 6,
			Queues: []autobatcher.QueueStats{
				{Payer: "0badcafe", Upstream: "https://api.example.com/v1", Endpoint: "/v1/embeddings", Models: []string{"m"}, Callers: []string{"key 1", "key 2"}, Calls: 2, Bytes: 10, Opened: opened},
				{Payer: "no callers"},
			},
		}
	}})
	defer d.Close()
	d.OnEvent(autobatcher.Event{
		Name: autobatcher.BatchProgress, Time: opened.Add(time.Minute), Elapsed: time.Minute, BatchID: "batch_1",
		Endpoint: "/v1/embeddings", Models: []string{"m"}, Callers: []string{"key 2"}, Status: "in_progress", CompletionWindow: "24h",
		RequestCount: 9, Counts: autobatcher.Counts{Completed: 1, Failed: 2, Total: 9},
		Metadata: map[string]string{"team": "search"},
	})
	d.OnEvent(autobatcher.Event{Name: autobatcher.ClientClosing})
	time.Sleep(refreshInterval) // until the next snapshot may be taken
	body := get(d, "GET", "/autobatcher/state").Body.Bytes()

	var got struct {
		State snapshot
		Chart chart
	}
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	got.State.Now = 0
	want := snapshot{
		Closing: true, Queued: 2, Running: 3, OK: 4, NoAnswer: 5, Left: 6, Answered: 4,
		ByLane: []total{}, Models: []total{}, Keys: []total{}, Times: []times{},
		Lanes: []laneRow{{Name: "in batches", Waiting: 5, OK: 4, Failed: 5}, {Name: "at the flex tier"}, {Name: "in real time, as chosen"}, {Name: "in real time, after another lane"}},
		Queues: []queue{{
			Account: "0badcafe", Upstream: "https://api.example.com/v1", Endpoint: "/v1/embeddings",
			Models: []string{"m"}, Callers: []string{"key 1", "key 2"}, Calls: 2, Bytes: 10, Opened: opened.UnixMilli(),
		}},
		Batches: []batch{{
			Seq: 1, Rev: 1, ID: "batch_1", Endpoint: "/v1/embeddings", Models: []string{"m"}, Callers: []string{"key 2"}, Metadata: []string{"team=search"}, Window: "24h", Status: "in_progress",
			Completed: 1, Failed: 2, Total: 9, Created: opened.UnixMilli(),
			Estimate: opened.Add(3 * time.Minute).UnixMilli(), Basis: "from the progress so far",
			Event: "batch_progress", EventTime: opened.Add(time.Minute).UnixMilli(),
		}},
	}
	if diff := cmp.Diff(want, got.State); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{5}, got.Chart.Waiting); diff != "" {
		t.Errorf("chart (-want +got):\n%s", diff)
	}
}

// The page of a sandbox says in title, header and text that the answers are made up.
func TestPageOfSandbox(t *testing.T) {
	for _, sandbox := range []bool{false, true} {
		d := New(Options{Sandbox: sandbox})
		defer d.Close()
		w := httptest.NewRecorder()
		d.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		for _, text := range []string{"<title>autobatcher (sandbox)</title>", "autobatcher (sandbox)\n    </h1>", "the answers are made up", "OK (made up)", "Error answers (made up)", "Saved (made up)", "Cost (made up)"} {
			if strings.Contains(w.Body.String(), text) != sandbox {
				t.Errorf("sandbox %v: the page and %q", sandbox, text)
			}
		}
	}
}
