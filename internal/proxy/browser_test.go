package proxy_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/dashboard"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

// newBrowser opens a tab in a new Chromium, for which the names evil.example and
// gateway.internal are this machine. If Chromium is not installed, the test is
// skipped, or fails if AUTOBATCHER_BROWSER is "required".
func newBrowser(t *testing.T) context.Context {
	t.Helper()
	var program string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		if os.Getenv("AUTOBATCHER_BROWSER") == "required" {
			t.Fatal("no Chromium found, and AUTOBATCHER_BROWSER is required")
		}
		t.Skip("no Chromium found")
	}
	ctx, cancel := chromedp.NewExecAllocator(t.Context(),
		chromedp.ExecPath(program), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.UserDataDir(filepath.Join(t.TempDir(), "profile")),
		chromedp.Flag("host-resolver-rules", "MAP evil.example 127.0.0.1, MAP gateway.internal 127.0.0.1"),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		// The browser's own protection of local servers must not hide a defect of the proxy's.
		chromedp.Flag("disable-features", "LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests,PrivateNetworkAccessSendPreflights"),
	)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// A guarded is a proxy with a page on a socket, whose upstream counts requests.
type guarded struct {
	url  string
	port string
	hits *atomic.Int64
}

func newGuarded(t *testing.T, o proxy.Options) guarded {
	t.Helper()
	hits := new(atomic.Int64)
	o.Transport = transport(func(r *http.Request) (*http.Response, error) {
		hits.Add(1)
		res, err := respondAfter(0, 200, "application/json", `{"answer":"secret"}`)(r)
		if err == nil {
			res.Header.Set("Access-Control-Allow-Origin", "*") // as providers send it
		}
		return res, err
	})
	board := dashboard.New(dashboard.Options{Stats: func() autobatcher.Stats { return autobatcher.Stats{} }})
	t.Cleanup(board.Close)
	o.Page = board
	if o.AllowHosts == nil {
		o.AllowHosts = []string{}
	}
	server := httptest.NewServer(newProxy(t, o))
	t.Cleanup(server.Close)
	t.Cleanup(board.Close) // before server.Close, which waits for the page's stream
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return guarded{server.URL, u.Port(), hits}
}

// newAttacker serves an empty page.
func newAttacker(t *testing.T) *url.URL {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<!DOCTYPE html><title>a page</title>")
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// run opens a page and runs the body of an async function there, which returns text.
func run(t *testing.T, ctx context.Context, page, script string) string {
	t.Helper()
	if err := chromedp.Do(ctx, chromedp.Navigate(page)); err != nil {
		t.Fatal(err)
	}
	const store = `window.outcome = undefined; (async () => { %s })().then(x => window.outcome = String(x), e => window.outcome = "error " + e); true`
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](fmt.Sprintf(store, script))); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](`window.outcome !== undefined`, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(30*time.Second))); err != nil {
		t.Fatalf("the script has not ended: %v", err)
	}
	outcome, err := chromedp.Run(ctx, chromedp.Evaluate[string](`window.outcome`))
	if err != nil {
		t.Fatal(err)
	}
	return outcome
}

// attacks are what a page can do to a server at BASE.
var attacks = map[string]string{
	"JSON":      `return (await fetch("BASE/v1/chat/completions", {method: "POST", headers: {"Content-Type": "application/json"}, body: "{}"})).text()`,
	"text":      `return (await fetch("BASE/v1/chat/completions", {method: "POST", body: "{}"})).text()`,
	"blind":     `await fetch("BASE/v1/chat/completions", {method: "POST", mode: "no-cors", body: "{}"}); return "sent"`,
	"GET":       `return (await fetch("BASE/v1/models")).text()`,
	"blind GET": `await fetch("BASE/v1/files/f/content", {mode: "no-cors", credentials: "include"}); return "sent"`,
	"image":     `return await new Promise(done => { const i = new Image(); i.onload = i.onerror = () => done("sent"); i.src = "BASE/v1/models" })`,
	"script":    `return await new Promise(done => { const s = document.createElement("script"); s.onload = s.onerror = () => done("sent"); s.src = "BASE/v1/models"; document.head.append(s) })`,
	"form": `return await new Promise(done => { const f = document.createElement("iframe"); f.name = "f"; document.body.append(f);
		const form = document.createElement("form"); form.method = "post"; form.target = "f"; form.enctype = "text/plain"; form.action = "BASE/v1/embeddings"; document.body.append(form);
		f.onload = () => done("sent"); form.submit(); setTimeout(() => done("sent"), 3000) })`,
	"beacon":    `navigator.sendBeacon("BASE/v1/responses", "{}"); await new Promise(r => setTimeout(r, 500)); return "sent"`,
	"WebSocket": `return await new Promise(done => { const s = new WebSocket("BASE/v1/realtime?model=m".replace("http", "ws")); s.onopen = () => done("open"); s.onerror = () => done("refused") })`,
	"events":    `return await new Promise(done => { const s = new EventSource("BASE/autobatcher/events"); s.onopen = () => done("open"); s.onerror = () => done("refused") })`,
	"state":     `return (await fetch("BASE/autobatcher/state")).text()`,
	"metrics":   `return (await fetch("BASE/metrics")).text()`,
}

// TestBrowserForeignPage checks that a page of another origin in a real browser
// reaches the upstream in no way, and reads nothing.
func TestBrowserForeignPage(t *testing.T) {
	ctx := newBrowser(t)
	attacker := newAttacker(t)
	for mode, o := range map[string]proxy.Options{"no keys": {}, "forwarded keys": {ForwardKey: true}} {
		for name, script := range attacks {
			g := newGuarded(t, o)
			for _, page := range []string{attacker.String(), "http://evil.example:" + attacker.Port() + "/"} {
				outcome := run(t, ctx, page, strings.ReplaceAll(script, "BASE", g.url))
				if g.hits.Load() > 0 || strings.Contains(outcome, "secret") || strings.Contains(outcome, "autobatcher_") || outcome == "open" {
					t.Errorf("%s, %s from %s: %d requests reached the upstream; the page got %.200s", mode, name, page, g.hits.Load(), outcome)
				}
			}
		}
	}
}

// TestBrowserRebinding checks a page whose own name leads to the proxy, as after DNS
// rebinding: for the browser, page and proxy have the same origin.
func TestBrowserRebinding(t *testing.T) {
	ctx := newBrowser(t)
	for name, script := range attacks {
		g := newGuarded(t, proxy.Options{})
		base := "http://evil.example:" + g.port
		// The answer to the page itself is an error of the proxy, and has the same
		// origin as a page that the attacker served before the rebinding.
		outcome := run(t, ctx, base+"/", strings.ReplaceAll(script, "BASE", base))
		if g.hits.Load() > 0 || strings.Contains(outcome, "secret") || strings.Contains(outcome, "autobatcher_") || outcome == "open" {
			t.Errorf("%s: %d requests reached the upstream; the page got %.200s", name, g.hits.Load(), outcome)
		}
	}
}

// TestBrowserOwnPage checks that the proxy's own page works, at a loopback name, at
// an allowed name, and with a key.
func TestBrowserOwnPage(t *testing.T) {
	ctx := newBrowser(t)
	for name, test := range map[string]struct {
		o    proxy.Options
		host string
		path string
	}{
		"address":      {proxy.Options{}, "127.0.0.1", "/"},
		"localhost":    {proxy.Options{}, "localhost", "/"},
		"allowed name": {proxy.Options{AllowHosts: []string{"gateway.internal"}}, "gateway.internal", "/"},
		"client key":   {proxy.Options{ClientKeys: []string{"k"}}, "gateway.internal", "/?key=k"},
		"page key":     {proxy.Options{ForwardKey: true, PageKeys: []string{"k"}}, "gateway.internal", "/?key=k"},
	} {
		g := newGuarded(t, test.o)
		page := "http://" + test.host + ":" + g.port + test.path
		got := run(t, ctx, page, `for (let i = 0; i < 100; i++) {
			if (document.getElementById("connection")?.textContent === "Live") return "Live";
			await new Promise(r => setTimeout(r, 100));
		} return document.body.innerText`)
		if got != "Live" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestBrowserClientKey checks that a page of another origin can send calls, and read
// answers and errors, with a client key.
func TestBrowserClientKey(t *testing.T) {
	ctx := newBrowser(t)
	attacker := newAttacker(t)
	g := newGuarded(t, proxy.Options{ClientKeys: []string{"k"}})
	call := `const r = await fetch("` + g.url + `PATH", {method: "POST", headers: {"Authorization": "Bearer KEY", "Content-Type": "application/json", "X-Stainless-Lang": "js"}, body: "{}"}); return r.status + await r.text()`
	for _, test := range []struct{ path, key, want string }{
		{"/v1/chat/completions", "k", `200{"answer":"secret"}`},
		{"/v1/moderations", "k", `200{"answer":"secret"}`},
		{"/v1/chat/completions", "wrong", `401{"error":`},
		{"/v1/chat/completions/", "k", `404{"error":`},
	} {
		got := run(t, ctx, attacker.String(), strings.NewReplacer("PATH", test.path, "KEY", test.key).Replace(call))
		if !strings.HasPrefix(got, test.want) {
			t.Errorf("%s with %s: %s", test.path, test.key, got)
		}
	}
}
