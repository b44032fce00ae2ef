package dashboard

import (
	"context"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"

	"github.com/autobatcher/autobatcher"
)

// newBrowser opens a tab in a new Chromium, and fails the test for every error
// the page writes to its console; a violation of its Content-Security-Policy
// is one. Where no Chromium is installed the test is skipped, unless
// AUTOBATCHER_BROWSER is "required".
func newBrowser(t *testing.T) context.Context {
	t.Helper()
	program := findBrowser(t)
	ctx, cancel := chromedp.NewExecAllocator(t.Context(),
		chromedp.ExecPath(program), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.UserDataDir(filepath.Join(t.TempDir(), "profile")),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
	)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil { // starts it, and must have no timeout
		t.Fatal(err)
	}
	listened := watchConsole(t, ctx)
	t.Cleanup(func() {
		cancel()
		<-listened
	})
	ctx, cancel = context.WithTimeout(ctx, time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func findBrowser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if program, err := exec.LookPath(name); err == nil {
			return program
		}
	}
	if os.Getenv("AUTOBATCHER_BROWSER") == "required" {
		t.Fatal("no Chromium found, and AUTOBATCHER_BROWSER is required")
	}
	t.Skip("no Chromium found")
	return ""
}

func watchConsole(t *testing.T, ctx context.Context) <-chan struct{} {
	t.Helper()
	messages := chromedp.Console(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for m, err := range messages {
			if err != nil {
				return
			}
			// A server that has gone, at the end of a test or in the middle of one.
			expected := m.Source == "network" && (strings.Contains(m.URL, "/autobatcher/events") || strings.Contains(m.Text, "ERR_CONNECTION_REFUSED"))
			if (m.Type == chromedp.ConsoleError || m.Type == chromedp.ConsoleException || m.Source == "security") && !expected {
				t.Errorf("console: %s %s %s %s:%d", m.Type, m.Source, m.Text, m.URL, m.Line)
			}
		}
	}()
	return ended
}

// A world is what a Dashboard is told of.
type world struct {
	mu    sync.Mutex
	stats autobatcher.Stats
	began time.Time
	*Dashboard
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{began: time.Now()}
	w.Dashboard = New(Options{Stats: func() autobatcher.Stats {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.stats
	}})
	t.Cleanup(w.Close)
	return w
}

func (w *world) set(s autobatcher.Stats) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats = s
}

// tell tells of a batch of 200 calls that was created age ago.
func (w *world) tell(name autobatcher.EventName, id, status string, completed, failed int, age time.Duration) {
	w.tellOld(0, name, id, status, completed, failed, age)
}

// tellOld tells of what happened ago.
func (w *world) tellOld(ago time.Duration, name autobatcher.EventName, id, status string, completed, failed int, age time.Duration) {
	w.OnEvent(autobatcher.Event{
		Name: name, Time: time.Now().Add(-ago), BatchID: id, Endpoint: "/v1/chat/completions", Models: []string{"gpt-5-mini"},
		RequestCount: 200, CompletionWindow: "24h", Status: status, Elapsed: age,
		Counts: autobatcher.Counts{Completed: completed, Failed: failed, Total: 200},
	})
}

// expect waits until a JavaScript expression is true.
func expect(t *testing.T, ctx context.Context, expression string) {
	t.Helper()
	_, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(10*time.Second)))
	if err != nil {
		page, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText`))
		t.Fatalf("%s: %v; the page reads\n%s", expression, err, page)
	}
}

func open(t *testing.T, ctx context.Context, url string) {
	t.Helper()
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		t.Fatal(err)
	}
}

func TestPageShowsTheLifeOfABatch(t *testing.T) {
	w := newWorld(t)
	server := httptest.NewServer(w)
	defer server.Close()
	defer w.Close() // or the server waits for the stream
	ctx := newBrowser(t)

	open(t, ctx, server.URL)
	expect(t, ctx, `!document.getElementById("empty").hidden && document.getElementById("content").hidden`)
	expect(t, ctx, `document.getElementById("try").textContent.includes("OPENAI_BASE_URL=`+server.URL+`/v1\n")`)

	w.set(autobatcher.Stats{Queued: 3, Queues: []autobatcher.QueueStats{{
		Payer: "0badcafe", Upstream: "https://api.example.com/v1", Endpoint: "/v1/chat/completions",
		Models: []string{"a", "b"}, Calls: 3, Bytes: 2048, Opened: time.Now(),
	}}})
	expect(t, ctx, `document.querySelector("#queues tbody tr")?.innerText.includes("0badcafe")`)
	expect(t, ctx, `document.getElementById("queued").textContent === "3"`)

	w.set(autobatcher.Stats{Running: 200})
	w.tell(autobatcher.BatchSubmitted, "batch_1", "validating", 0, 0, 0)
	expect(t, ctx, `document.querySelector("#active tr code")?.textContent === "batch_1"`)
	expect(t, ctx, `document.getElementById("queues").hidden`)
	expect(t, ctx, `document.querySelector("#active progress").position === 0`)

	w.tell(autobatcher.BatchProgress, "batch_1", "in_progress", 90, 10, time.Second)
	expect(t, ctx, `document.querySelector("#active progress").position === 0.5`)
	expect(t, ctx, `document.querySelector("#active tr").innerText.includes("100 of 200 · 10 failed")`)
	expect(t, ctx, `document.querySelector("#active .status").textContent === "in progress"`)

	w.set(autobatcher.Stats{Answered: 190, Failed: 10})
	w.tell(autobatcher.BatchCompleted, "batch_1", "completed", 190, 10, time.Minute)
	expect(t, ctx, `document.querySelectorAll("#active tr").length === 0`)
	expect(t, ctx, `document.querySelector("#finished .status").textContent === "completed"`)
	expect(t, ctx, `document.querySelector("#finished progress").position === 1`)
	expect(t, ctx, `document.querySelector("#finished tr").innerText.includes("took 1 min 00 s")`)
	expect(t, ctx, `document.querySelector("#chart canvas")?.width > 100`)
	expect(t, ctx, `document.getElementById("chart").getAttribute("aria-label").includes("190 were answered")`)
}

func TestChartCanBeRead(t *testing.T) {
	w := newWorld(t)
	w.fillAnHour()
	server := httptest.NewServer(w)
	defer server.Close()
	defer w.Close()
	ctx := newBrowser(t)
	open(t, ctx, server.URL)
	expect(t, ctx, `document.querySelector("#chart canvas")?.width > 100`)

	centre, err := chromedp.Run(ctx, chromedp.Evaluate[map[string]float64](
		`(({x, y, width, height}) => ({x: x + width / 2, y: y + height / 2}))(document.querySelector("#chart .u-over").getBoundingClientRect())`))
	if err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Do(ctx, chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, centre["x"], centre["y"])); err != nil {
		t.Fatal(err)
	}
	expect(t, ctx, `/^\d\d:\d\d · \d+ waiting · \d+ answered$/.test(document.getElementById("readout").textContent)`)

	if err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS("summary"))); err != nil {
		t.Fatal(err)
	}
	expect(t, ctx, `document.querySelectorAll("#chart-rows tr").length === 12`)
}

func TestPageComesBackAfterTheConnectionWasLost(t *testing.T) {
	first, second := newWorld(t), newWorld(t)
	second.tell(autobatcher.BatchProgress, "batch_after", "in_progress", 1, 0, time.Second)
	var current atomic.Pointer[world]
	current.Store(first)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { current.Load().ServeHTTP(w, r) }))
	defer server.Close()
	defer second.Close()
	ctx := newBrowser(t)
	open(t, ctx, server.URL)
	expect(t, ctx, `document.getElementById("connection").textContent === "Live"`)
	first.Close()
	expect(t, ctx, `document.getElementById("connection").textContent.includes("reconnecting")`)
	expect(t, ctx, `document.body.classList.contains("stale")`)
	current.Store(second)
	expect(t, ctx, `document.getElementById("connection").textContent === "Live"`)
	expect(t, ctx, `!document.body.classList.contains("stale")`)
	expect(t, ctx, `document.querySelector("#active code").textContent === "batch_after"`)
}

// Where every request needs a key, the one in the page's URL is enough.
func TestPageSendsItsKeyWithEveryRequest(t *testing.T) {
	const key = "s3 cret&+"
	w := newWorld(t)
	w.tell(autobatcher.BatchProgress, "batch_1", "in_progress", 1, 0, time.Second)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("key") != key {
			t.Errorf("%s came without the key", r.URL)
			http.Error(rw, "no", http.StatusUnauthorized)
			return
		}
		w.ServeHTTP(rw, r)
	}))
	defer server.Close()
	defer w.Close()
	ctx := newBrowser(t)
	open(t, ctx, server.URL+"/?key="+url.QueryEscape(key))
	expect(t, ctx, `document.querySelector("#active code")?.textContent === "batch_1"`)
	expect(t, ctx, `document.querySelector("#chart canvas")?.width > 100`)
	expect(t, ctx, `!document.body.innerText.includes("s3 cret") && !document.getElementById("try").textContent.includes("cret")`)
}

// Names come from callers and providers, and can be anything.
func TestPageShowsMarkupAsText(t *testing.T) {
	const evil = `<img src=x onerror="document.title='hacked'"><b>bold</b>`
	w := newWorld(t)
	server := httptest.NewServer(w)
	defer server.Close()
	defer w.Close()
	w.set(autobatcher.Stats{Queued: 1, Queues: []autobatcher.QueueStats{{Payer: evil, Upstream: evil, Endpoint: evil, Models: []string{evil}, Calls: 1, Opened: time.Now()}}})
	for _, name := range []autobatcher.EventName{autobatcher.BatchProgress, autobatcher.BatchTerminal} {
		w.OnEvent(autobatcher.Event{
			Name: name, BatchID: evil + string(name), Endpoint: evil, Models: []string{evil},
			Status: evil, CompletionWindow: evil, Error: evil,
		})
	}
	ctx := newBrowser(t)
	open(t, ctx, server.URL+"/?key="+`%22%3E%3Cb%3E`)
	expect(t, ctx, `document.querySelectorAll("#batches tbody tr").length === 2`)
	expect(t, ctx, `document.querySelector("#queues tbody th").innerText.includes("<img src=x")`)
	expect(t, ctx, `document.querySelectorAll("img, b").length === 0`)
	expect(t, ctx, `document.title.includes("autobatcher")`)
}

func TestPageFollowsTheColourScheme(t *testing.T) {
	w := newWorld(t)
	server := httptest.NewServer(w)
	defer server.Close()
	defer w.Close()
	ctx := newBrowser(t)
	open(t, ctx, server.URL)
	for scheme, compare := range map[string]string{"light": ">", "dark": "<"} {
		setScheme(t, ctx, scheme)
		expect(t, ctx, `+getComputedStyle(document.body).backgroundColor.match(/\d+/)[0] `+compare+` 128`)
		expect(t, ctx, `128 `+compare+` +getComputedStyle(document.body).color.match(/\d+/)[0]`)
	}
}

func setScheme(t *testing.T, ctx context.Context, scheme string) {
	t.Helper()
	_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A phone must not have to scroll sideways. With AUTOBATCHER_SCREENSHOTS set to
// a folder, what is seen is kept there; docs/page.png is made so.
func TestPageFitsEveryScreen(t *testing.T) {
	empty, busy := newWorld(t), newWorld(t)
	busy.fillAnHour()
	ctx := newBrowser(t)
	for _, screen := range []struct {
		name, scheme string
		width        int64
		scale        float64
	}{
		{"desktop", "light", 1180, 1},
		{"desktop", "dark", 1180, 1},
		{"phone", "light", 360, 2},
		{"phone", "dark", 360, 2},
	} {
		for state, w := range map[string]*world{"empty": empty, "busy": busy} {
			name := strings.Join([]string{state, screen.name, screen.scheme}, "-")
			t.Run(name, func(t *testing.T) {
				server := httptest.NewServer(w)
				defer server.Close()
				defer server.CloseClientConnections()
				setScheme(t, ctx, screen.scheme)
				if err := chromedp.Do(ctx, chromedp.EmulateViewport(screen.width, 900, chromedp.EmulateScale(screen.scale))); err != nil {
					t.Fatal(err)
				}
				open(t, ctx, server.URL)
				expect(t, ctx, `document.getElementById("connection").textContent === "Live"`)
				if state == "busy" {
					expect(t, ctx, `document.querySelectorAll("#chart canvas").length === 1`)
				}
				expect(t, ctx, `document.documentElement.scrollWidth <= innerWidth`)
				keepScreenshot(t, ctx, name)
			})
		}
	}
}

func keepScreenshot(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	folder := os.Getenv("AUTOBATCHER_SCREENSHOTS")
	if folder == "" {
		return
	}
	time.Sleep(time.Second) // until bars have stopped moving
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// fillAnHour tells of an hour of work.
func (w *world) fillAnHour() {
	now := time.Now()
	w.feed.mu.Lock()
	w.feed.history = history{step: 10 * time.Second}
	var answered int64
	for i := range points {
		waves := 420 + 260*math.Sin(float64(i)/26) + 90*math.Sin(float64(i)/7)
		if i%19 == 0 {
			answered += int64(waves / 2)
		}
		answered += int64(waves / 30)
		w.feed.sample(now.Add(time.Duration(i-points)*10*time.Second), autobatcher.Stats{Running: int(waves), Answered: answered})
	}
	w.feed.mu.Unlock()
	w.set(autobatcher.Stats{
		Queued: 57, Running: 684, Answered: answered + 12, Failed: 7, Left: 3,
		Queues: []autobatcher.QueueStats{
			{Payer: "3f2a91c0", Upstream: "https://api.openai.com/v1", Endpoint: "/v1/chat/completions", Models: []string{"gpt-5-mini", "gpt-5-nano"}, Calls: 45, Bytes: 187_400, Opened: now.Add(-7 * time.Second)},
			{Payer: "b81e4d27", Upstream: "https://api.doubleword.ai/v1", Endpoint: "/v1/embeddings", Models: []string{"Qwen/Qwen3-Embedding-8B"}, Calls: 12, Bytes: 23_100, Opened: now.Add(-2 * time.Second)},
		},
	})
	const m, s = time.Minute, time.Second
	w.tellOld(31*m, autobatcher.BatchTerminal, "batch_6720f8c6d2e35a18", "expired", 140, 0, 24*time.Hour)
	w.OnEvent(autobatcher.Event{
		Name: autobatcher.BatchSubmissionFailed, Time: now.Add(-22 * m), Endpoint: "/v1/embeddings", Models: []string{"text-embedding-3-small"},
		RequestCount: 2, CompletionWindow: "24h", Error: "401 invalid_api_key: Incorrect API key provided: sk-proj-1234567890abcdef.",
	})
	w.tellOld(14*m, autobatcher.BatchCompleted, "batch_6720f8a2b3c84190", "completed", 200, 0, 11*m+20*s)
	w.tellOld(6*m, autobatcher.BatchCompleted, "batch_6720f8b4c1d24907", "completed", 195, 5, 8*m+41*s)
	w.tellOld(9*s, autobatcher.BatchProgress, "batch_6720f8d8e3f46b29", "in_progress", 163, 2, 6*m+12*s)
	w.tellOld(26*s, autobatcher.BatchCancelRequested, "batch_6720f8eaf4057c3a", "in_progress", 31, 0, 4*m+3*s)
	w.tellOld(4*s, autobatcher.BatchProgress, "batch_6720f8fc05168d4b", "in_progress", 74, 0, 3*m+7*s)
	w.tellOld(1*s, autobatcher.BatchSubmitted, "batch_6720f90e16279e5c", "validating", 0, 0, 0)
}
