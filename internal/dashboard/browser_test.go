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

// newBrowser opens a tab in a new Chromium. Every error on the console of the page
// fails the test, also a violation of the Content-Security-Policy. If Chromium is
// not installed, the test is skipped, or fails if AUTOBATCHER_BROWSER is "required".
func newBrowser(t *testing.T, options ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	program := findBrowser(t)
	options = append(options,
		chromedp.ExecPath(program), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.UserDataDir(filepath.Join(t.TempDir(), "profile")),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
	)
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil { // starts Chromium; a timeout of ctx would stop Chromium later
		t.Fatal(err)
	}
	watched := watchConsole(t, ctx)
	t.Cleanup(func() {
		cancel()
		<-watched
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
			// Tests stop the server while the page is open.
			expected := m.Source == "network" && (strings.Contains(m.URL, "/autobatcher/events") || strings.Contains(m.URL, "/autobatcher/cancel") ||
				strings.Contains(m.Text, "ERR_CONNECTION_REFUSED") || strings.Contains(m.Text, "ERR_CONNECTION_RESET"))
			if (m.Type == chromedp.ConsoleError || m.Type == chromedp.ConsoleException || m.Source == "security") && !expected {
				t.Errorf("console: %s %s %s %s:%d", m.Type, m.Source, m.Text, m.URL, m.Line)
			}
		}
	}()
	return ended
}

// A testDashboard is a Dashboard with statistics that the test sets.
type testDashboard struct {
	mu    sync.Mutex
	stats autobatcher.Stats
	*Dashboard
}

func newTestDashboard(t *testing.T) *testDashboard {
	t.Helper()
	w := &testDashboard{}
	w.Dashboard = New(Options{Provider: "openai", Version: "v1.2.3", Journal: "SQLite", Stats: func() autobatcher.Stats {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.stats
	}})
	t.Cleanup(w.Close)
	return w
}

func (w *testDashboard) setStats(s autobatcher.Stats) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats = s
}

// event sends an event of a batch of 200 calls that was created age ago.
func (w *testDashboard) event(name autobatcher.EventName, id, status string, completed, failed int, age time.Duration) {
	w.pastEvent(0, name, id, status, completed, failed, age)
}

// pastEvent is event for an event in the past.
func (w *testDashboard) pastEvent(ago time.Duration, name autobatcher.EventName, id, status string, completed, failed int, age time.Duration) {
	w.OnEvent(autobatcher.Event{
		Name: name, Time: time.Now().Add(-ago), BatchID: id, Endpoint: "/v1/chat/completions", Models: []string{"gpt-5-mini"},
		RequestCount: 200, CompletionWindow: "24h", Status: status, Elapsed: age,
		Counts: autobatcher.Counts{Completed: completed, Failed: failed, Total: 200},
	})
}

// expect waits until the JavaScript expression is true.
func expect(t *testing.T, ctx context.Context, expression string) {
	t.Helper()
	_, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(10*time.Second)))
	if err != nil {
		page, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText`))
		t.Fatalf("%s: %v; the page shows\n%s", expression, err, page)
	}
}

func open(t *testing.T, ctx context.Context, url string) {
	t.Helper()
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		t.Fatal(err)
	}
}

func TestPageShowsABatch(t *testing.T) {
	w := newTestDashboard(t)
	server := httptest.NewServer(w)
	defer server.Close()
	defer w.Close() // before server.Close, which waits for the stream
	ctx := newBrowser(t)

	open(t, ctx, server.URL)
	expect(t, ctx, `!document.getElementById("empty").hidden && document.getElementById("content").hidden`)
	expect(t, ctx, `document.getElementById("try").textContent.includes("OPENAI_BASE_URL=`+server.URL+`/v1\n")`)

	w.setStats(autobatcher.Stats{Queued: 3, Queues: []autobatcher.QueueStats{{
		Payer: "0badcafe", Upstream: "https://api.example.com/v1", Endpoint: "/v1/chat/completions",
		Models: []string{"a", "b"}, Callers: []string{"key 1", "key 2"}, Calls: 3, Bytes: 2048, Opened: time.Now(),
	}}})
	expect(t, ctx, `document.querySelector("#queues tbody tr")?.innerText.includes("0badcafe · key 1 · key 2")`)
	expect(t, ctx, `document.getElementById("queued").textContent === "3"`)

	w.setStats(autobatcher.Stats{Running: 200})
	w.event(autobatcher.BatchSubmitted, "batch_1", "validating", 0, 0, 0)
	expect(t, ctx, `document.querySelector("#batches tbody code")?.textContent === "batch_1"`)
	expect(t, ctx, `document.getElementById("queues").hidden`)
	expect(t, ctx, `document.querySelector("#batches .bar").ariaValueNow === "0"`)

	w.event(autobatcher.BatchProgress, "batch_1", "in_progress", 90, 10, time.Second)
	expect(t, ctx, `[...document.querySelectorAll("#batches .bar span")].map(s => s.style.width).join() === "45%,max(3px, 5%)"`)
	expect(t, ctx, `document.querySelector("#batches tbody tr").innerText.includes("100 of 200 done") && document.querySelector("#batches tbody tr").innerText.includes("10 (10 %)")`)
	expect(t, ctx, `document.querySelector("#batches .status").textContent === "in progress"`)

	expect(t, ctx, `document.querySelector("#batches .end").innerText === "in less than a minute\nestimate, from the progress so far"`)

	w.setStats(autobatcher.Stats{Answered: 200, Errors: 10, Failed: 3, Left: 2, Cost: autobatcher.Cost{USD: 1.5, Savings: 1.25, Priced: 190, Unpriced: 1, PricesDate: "2026-11-01"}})
	for range 10 {
		w.OnFailure(Failure{BatchID: "batch_1", Status: 400, Code: "invalid_prompt", FromLine: true})
	}
	for range 3 {
		w.OnFailure(Failure{Status: 402, Code: "price_unknown", Refused: true})
	}
	w.OnFailure(Failure{Status: 503, Code: "batch_not_submitted"})
	w.event(autobatcher.BatchCompleted, "batch_1", "completed", 190, 10, time.Minute)
	expect(t, ctx, `document.querySelector("#batches .status").textContent === "completed"`)
	expect(t, ctx, `document.querySelector("#batches .bar").ariaValueNow === "200"`)
	expect(t, ctx, `document.querySelector("#batches tbody tr").innerText.includes("took 1 min 00 s")`)
	expect(t, ctx, `["ok", "errors", "noAnswer", "left"].map(id => document.getElementById(id).textContent).join() === "190,10,3,2"`)
	expect(t, ctx, `document.getElementById("saved").textContent === "$1.25"`)
	expect(t, ctx, `document.getElementById("saved-note").textContent === "estimate: the answers cost about $1.50, with prices of 2026-11-01, without 1 answer of unknown price"`)
	expect(t, ctx, `document.querySelector("#reasons tbody").innerText.replace(/\s+/g, " ") === "10 400 invalid_prompt error answer 3 402 price_unknown refused at once 1 503 batch_not_submitted no answer"`)
	expect(t, ctx, `document.querySelector("#chart canvas")?.width > 100`)
	expect(t, ctx, `document.getElementById("chart").getAttribute("aria-label").includes("200 were answered")`)
}

func TestChartReadoutAndTable(t *testing.T) {
	w := newTestDashboard(t)
	w.fillAnHour()
	server := httptest.NewServer(w)
	defer server.Close()
	defer w.Close()
	ctx := newBrowser(t)
	open(t, ctx, server.URL)
	expect(t, ctx, `document.querySelector("#chart canvas")?.width > 100`)

	if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`document.getElementById("chart").scrollIntoView({block: "center"}), true`)); err != nil {
		t.Fatal(err)
	}
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

func TestPageReconnects(t *testing.T) {
	first, second := newTestDashboard(t), newTestDashboard(t)
	second.event(autobatcher.BatchProgress, "batch_after", "in_progress", 1, 0, time.Second)
	var current atomic.Pointer[testDashboard]
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
	expect(t, ctx, `document.querySelector("#batches tbody code").textContent === "batch_after"`)
}

// TestPageSendsItsKeyWithEveryRequest checks that the key in the URL of the page is
// enough, if every request needs a key.
func TestPageSendsItsKeyWithEveryRequest(t *testing.T) {
	const key = "s3 cret&+"
	w := newTestDashboard(t)
	w.event(autobatcher.BatchProgress, "batch_1", "in_progress", 1, 0, time.Second)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("key") != key {
			t.Errorf("%s has no key", r.URL)
			http.Error(rw, "no", http.StatusUnauthorized)
			return
		}
		w.ServeHTTP(rw, r)
	}))
	defer server.Close()
	defer w.Close()
	ctx := newBrowser(t)
	open(t, ctx, server.URL+"/?key="+url.QueryEscape(key))
	expect(t, ctx, `document.querySelector("#batches tbody code")?.textContent === "batch_1"`)
	expect(t, ctx, `document.querySelector("#chart canvas")?.width > 100`)
	expect(t, ctx, `!document.body.innerText.includes("s3 cret") && !document.getElementById("try").textContent.includes("cret")`)
}

// TestPageShowsMarkupAsText checks names that contain markup. Names come from callers
// and providers.
func TestPageShowsMarkupAsText(t *testing.T) {
	const markup = `<img src=x onerror="document.title='hacked'"><b>bold</b>`
	w := newTestDashboard(t)
	server := httptest.NewServer(w)
	defer server.Close()
	defer w.Close()
	w.setStats(autobatcher.Stats{Queued: 1, Queues: []autobatcher.QueueStats{{Payer: markup, Upstream: markup, Endpoint: markup, Models: []string{markup}, Calls: 1, Opened: time.Now()}}})
	for _, name := range []autobatcher.EventName{autobatcher.BatchProgress, autobatcher.BatchTerminal} {
		w.OnEvent(autobatcher.Event{
			Name: name, BatchID: markup + string(name), Endpoint: markup, Models: []string{markup},
			Status: markup, CompletionWindow: markup, Error: markup,
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
	w := newTestDashboard(t)
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

// TestPageFitsEveryScreen checks that no screen needs horizontal scrolling. With
// AUTOBATCHER_SCREENSHOTS set to a directory, the test saves screenshots there;
// page.png is docs/page.png.
func TestPageFitsEveryScreen(t *testing.T) {
	empty, busy := newTestDashboard(t), newTestDashboard(t)
	busy.fillAnHour()
	ctx := newBrowser(t)
	for _, screen := range []struct {
		name, scheme string
		width        int64
		scale        float64
	}{
		{"desktop", "light", 1280, 1},
		{"desktop", "dark", 1280, 1},
		{"phone", "light", 360, 2},
		{"phone", "dark", 360, 2},
	} {
		for state, w := range map[string]*testDashboard{"empty": empty, "busy": busy} {
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
				saveScreenshot(t, ctx, name)
				if name == "busy-desktop-light" {
					savePicture(t, ctx)
				}
			})
		}
	}
}

// savePicture saves the upper part of the page, for the README.
func savePicture(t *testing.T, ctx context.Context) {
	t.Helper()
	folder := os.Getenv("AUTOBATCHER_SCREENSHOTS")
	if folder == "" {
		return
	}
	bottom, err := chromedp.Run(ctx, chromedp.Evaluate[float64](`document.getElementById("reasons-card").getBoundingClientRect().bottom + scrollY + 16`))
	if err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1280, int64(bottom))); err != nil {
		t.Fatal(err)
	}
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "page.png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

func saveScreenshot(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	folder := os.Getenv("AUTOBATCHER_SCREENSHOTS")
	if folder == "" {
		return
	}
	time.Sleep(time.Second) // until the animations of the progress bars have ended
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// fillAnHour adds an hour of samples, and events of several batches.
func (w *testDashboard) fillAnHour() {
	now := time.Now()
	w.feed.mu.Lock()
	w.feed.history = history{step: 10 * time.Second}
	var answered int64
	for i := range historySamples {
		waves := 420 + 260*math.Sin(float64(i)/26) + 90*math.Sin(float64(i)/7)
		if i%19 == 0 {
			answered += int64(waves / 2)
		}
		answered += int64(waves / 30)
		w.feed.sampleLocked(now.Add(time.Duration(i-historySamples)*10*time.Second), autobatcher.Stats{Running: int(waves), Answered: answered})
	}
	w.feed.mu.Unlock()
	w.setStats(autobatcher.Stats{
		Queued: 57, Running: 684, Answered: answered + 12, Errors: 24, Failed: 2, Left: 3,
		Cost: autobatcher.Cost{USD: 3.18, Savings: 3.16, Priced: answered, PricesDate: "2026-11-01"},
		Costs: []autobatcher.CostPart{
			{Payer: "3f2a91c0", Caller: "key 1", Model: "gpt-5-mini", Lane: autobatcher.ModeBatch, Cost: autobatcher.Cost{USD: 2.96, Savings: 2.96, InputTokens: 9_412_006, CachedTokens: 512_000, OutputTokens: 1_804_211, Priced: answered - 940}},
			{Payer: "3f2a91c0", Caller: "key 2", Model: "gpt-5-nano", Lane: autobatcher.ModeFlex, Cost: autobatcher.Cost{USD: 0.22, Savings: 0.2, InputTokens: 2_115_400, OutputTokens: 401_200, Priced: 940}},
		},
		Times: []autobatcher.TurnaroundStats{
			{Provider: "openai", Model: "gpt-5-mini", Window: "24h", Count: 12, Median: 9*time.Minute + 12*time.Second, P90: 21 * time.Minute},
			{Provider: "openai", Model: "gpt-5-nano", Window: "flex", Count: 50, Median: 41 * time.Second, P90: 3*time.Minute + 5*time.Second},
		},
		Queues: []autobatcher.QueueStats{
			{Payer: "3f2a91c0", Upstream: "https://api.openai.com/v1", Endpoint: "/v1/chat/completions", Models: []string{"gpt-5-mini", "gpt-5-nano"}, Calls: 45, Bytes: 187_400, Opened: now.Add(-7 * time.Second)},
			{Payer: "b81e4d27", Upstream: "https://api.doubleword.ai/v1", Endpoint: "/v1/embeddings", Models: []string{"Qwen/Qwen3-Embedding-8B"}, Calls: 12, Bytes: 23_100, Opened: now.Add(-2 * time.Second)},
		},
	})
	const m, s = time.Minute, time.Second
	w.pastEvent(31*m, autobatcher.BatchTerminal, "batch_6720f8c6d2e35a18", "expired", 140, 0, 24*time.Hour)
	w.OnEvent(autobatcher.Event{
		Name: autobatcher.BatchSubmissionFailed, Time: now.Add(-22 * m), Endpoint: "/v1/embeddings", Models: []string{"text-embedding-3-small"},
		RequestCount: 2, CompletionWindow: "24h", Error: "401 invalid_api_key: Incorrect API key provided: sk-proj-1234567890abcdef.",
	})
	w.pastEvent(14*m, autobatcher.BatchCompleted, "batch_6720f8a2b3c84190", "completed", 200, 0, 11*m+20*s)
	w.OnEvent(autobatcher.Event{Name: autobatcher.BatchCost, BatchID: "batch_6720f8a2b3c84190", Cost: autobatcher.Cost{USD: 0.0712, Savings: 0.0712, Priced: 200, PricesDate: "2026-11-01"}})
	w.pastEvent(6*m, autobatcher.BatchCompleted, "batch_6720f8b4c1d24907", "completed", 176, 24, 8*m+41*s)
	w.OnEvent(autobatcher.Event{Name: autobatcher.BatchCost, BatchID: "batch_6720f8b4c1d24907", Cost: autobatcher.Cost{USD: 0.0634, Savings: 0.0634, Priced: 176, PricesDate: "2026-11-01"}})
	for range 24 {
		w.OnFailure(Failure{BatchID: "batch_6720f8b4c1d24907", Status: 400, Code: "context_length_exceeded", FromLine: true})
	}
	for range 2 {
		w.OnFailure(Failure{Status: 401, Code: "invalid_api_key"})
	}
	w.pastEvent(9*s, autobatcher.BatchProgress, "batch_6720f8d8e3f46b29", "in_progress", 163, 2, 6*m+12*s)
	w.pastEvent(26*s, autobatcher.BatchCancelRequested, "batch_6720f8eaf4057c3a", "in_progress", 31, 0, 4*m+3*s)
	w.pastEvent(4*s, autobatcher.BatchProgress, "batch_6720f8fc05168d4b", "in_progress", 74, 0, 3*m+7*s)
	w.pastEvent(1*s, autobatcher.BatchSubmitted, "batch_6720f90e16279e5c", "validating", 0, 0, 0)
}
