package dashboard

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/lane"
)

// A flexPage shows a batch and two calls at the flex tier, and counts the cancellations of
// call resp_1.
type flexPage struct {
	*testDashboard
	cancels atomic.Int64
	url     string
}

func newFlexPage(t *testing.T) *flexPage {
	t.Helper()
	stats := autobatcher.Stats{
		Running: 205, Answered: 30, Errors: 1, Flex: autobatcher.FlexStats{Waiting: 5, Answered: 20, Errors: 1}, Cost: autobatcher.Cost{OtherTier: 1200},
	}
	d := New(Options{
		Cancel: true, Stats: func() autobatcher.Stats { return stats },
		Realtime: func() lane.RealtimeCalls {
			return lane.RealtimeCalls{Escalated: lane.Calls{Waiting: 1, OK: 2, Failed: 3}}
		},
	})
	w := &flexPage{testDashboard: &testDashboard{Dashboard: d}}
	for _, id := range []string{"resp_1", "resp_2"} {
		w.flex(autobatcher.BatchSubmitted, id)
	}
	w.event(autobatcher.BatchProgress, "batch_1", "in_progress", 1, 0, time.Second)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch q := r.URL.Query(); {
		case r.URL.Path != "/autobatcher/cancel":
			w.ServeHTTP(rw, r)
		case r.Method != http.MethodPost || q.Get("id") != "resp_1" || q.Get("key") != "k&" || r.Header.Get("Sec-Fetch-Site") != "same-origin" || r.Header.Get("Origin") != "http://"+r.Host:
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		default:
			w.cancels.Add(1)
			if r.Header.Get("Autobatcher-Page") == "" { // a form
				http.Redirect(rw, r, "../?key=k%26", http.StatusSeeOther)
				return
			}
			rw.WriteHeader(http.StatusNoContent)
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(d.Close) // before server.Close
	w.url = server.URL
	return w
}

func (w *flexPage) flex(name autobatcher.EventName, id string) {
	w.OnEvent(autobatcher.Event{Name: name, Time: time.Now(), BatchID: id, Endpoint: "/v1/responses", Models: []string{"gpt-5-mini"}, RequestCount: 1, CompletionWindow: "flex", Status: "in_progress", Elapsed: time.Second})
}

// TestLanesOnThePage checks the calls by lane, and that a call at the flex tier that runs in
// the background is listed behind the batches, and is cancelled after a confirmation, on a
// desk and on a phone.
func TestLanesOnThePage(t *testing.T) {
	ctx := newBrowser(t)
	for _, width := range []int64{1280, 360} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			w := newFlexPage(t)
			if err := chromedp.Do(ctx, chromedp.EmulateViewport(width, 800)); err != nil {
				t.Fatal(err)
			}
			open(t, ctx, w.url+"/?key=k%26")
			expect(t, ctx, `[...document.querySelectorAll("#lanes tbody tr")].map(r => r.innerText.replace(/\s+/g, " ").trim()).join("; ") ===
				"in batches 200 10 0; at the flex tier 5 19 1; in real time, as chosen 0 0 0; in real time, after another lane 1 2 3"`)
			expect(t, ctx, `document.getElementById("lanes-flex").checkVisibility() && document.getElementById("lanes-flex").innerText.includes("/chat/completions, cannot be cancelled")`)
			expect(t, ctx, `document.getElementById("other-tier").innerText.includes("whose price may be higher: 1,200.")`)
			expect(t, ctx, `document.getElementById("batches-note").textContent === "1 running, 0 finished; and 2 calls at the flex tier"`)
			expect(t, ctx, `[...document.querySelectorAll("#batches tbody code")].map(c => c.textContent).join() === "batch_1,resp_2,resp_1"`)
			expect(t, ctx, `document.title === "1 running · autobatcher"`)
			expect(t, ctx, `document.documentElement.scrollWidth <= innerWidth`)
			saveScreenshot(t, ctx, fmt.Sprint("lanes-", width))
			do(t, ctx, `(f => { f.value = "flex"; f.dispatchEvent(new Event("change")) })(document.getElementById("filter"))`)
			expect(t, ctx, `[...document.querySelectorAll("#batches tbody code")].map(c => c.textContent).join() === "resp_2,resp_1"`)

			do(t, ctx, `location.hash = "#/batches/resp_1"`)
			expect(t, ctx, `document.getElementById("cancel").checkVisibility() && document.getElementById("cancel").textContent === "Cancel call…"`)
			do(t, ctx, `document.getElementById("cancel").click()`)
			expect(t, ctx, `document.getElementById("confirm").open && document.getElementById("confirm").innerText.startsWith("Cancel this call?") && !document.getElementById("confirm-batch").checkVisibility()`)
			expect(t, ctx, `document.documentElement.scrollWidth <= innerWidth`)
			if w.cancels.Load() > 0 {
				t.Error("cancelled without a confirmation")
			}
			do(t, ctx, `document.getElementById("confirm-yes").click()`)
			expect(t, ctx, `document.getElementById("batch-result").textContent.startsWith("The provider has accepted the cancellation")`)
			if got := w.cancels.Load(); got != 1 {
				t.Errorf("%d cancellations, want 1", got)
			}
			w.flex(autobatcher.BatchTerminal, "resp_1")
			expect(t, ctx, `document.getElementById("batch-title").textContent === "This batch is not listed"`)
			do(t, ctx, `location.hash = "#/batches/batch_1"`)
			expect(t, ctx, `document.getElementById("cancel").textContent === "Cancel batch…"`)
		})
	}
}

// TestNoLanesForBatchesAlone checks that the card of the lanes is hidden while all calls are
// in batches, which the tiles count.
func TestNoLanesForBatchesAlone(t *testing.T) {
	w := newTestDashboard(t)
	w.setStats(autobatcher.Stats{Running: 200})
	w.event(autobatcher.BatchProgress, "batch_1", "in_progress", 1, 0, time.Second)
	server := httptest.NewServer(w)
	defer server.Close()
	defer w.Close()
	ctx := newBrowser(t)
	open(t, ctx, server.URL)
	expect(t, ctx, `document.getElementById("running").textContent === "200" && document.getElementById("lanes-card").hidden`)
	w.setStats(autobatcher.Stats{Running: 200, Flex: autobatcher.FlexStats{Waiting: 1}})
	expect(t, ctx, `document.getElementById("lanes-card").checkVisibility()`)
}

// TestCancelWithoutJavaScript checks that a form cancels a call at the flex tier, after a
// second click, where the page has no JavaScript.
func TestCancelWithoutJavaScript(t *testing.T) {
	w := newFlexPage(t)
	time.Sleep(refreshInterval) // until the next snapshot may be taken
	ctx := newBrowser(t, chromedp.Flag("blink-settings", "scriptEnabled=false"))
	for _, width := range []int64{1280, 360} {
		before := w.cancels.Load()
		if err := chromedp.Do(ctx, chromedp.EmulateViewport(width, 800)); err != nil {
			t.Fatal(err)
		}
		open(t, ctx, w.url+"/?key=k%26")
		expect(t, ctx, `document.querySelectorAll("#plain tbody tr").length === 1 && document.querySelectorAll("#plain-flex tbody tr").length === 2`)
		expect(t, ctx, `document.getElementById("plain-flex").innerText.includes("the newest 2 of 2") && document.getElementById("plain-lanes").innerText.includes("at the flex tier")`)
		const row = "#plain-flex tbody tr:last-child "
		expect(t, ctx, `document.documentElement.scrollWidth <= innerWidth && !document.querySelector("`+row+`form button").checkVisibility()`)
		saveScreenshot(t, ctx, fmt.Sprint("plain-", width))
		for _, part := range []string{"summary", "form button"} {
			if err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS(row+part))); err != nil {
				t.Fatal(err)
			}
		}
		for deadline := time.Now().Add(10 * time.Second); w.cancels.Load() == before && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		if got := w.cancels.Load() - before; got != 1 {
			t.Errorf("%d px wide: %d cancellations, want 1", width, got)
		}
	}
}
