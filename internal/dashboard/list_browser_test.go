package dashboard

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/autobatcher/autobatcher"
)

// fillThousand adds 997 finished and 3 running batches. Each hundredth batch has
// errors, each 50th has another model.
func (w *testDashboard) fillThousand() {
	for i := range 1000 {
		e := autobatcher.Event{
			Name: autobatcher.BatchSubmitted, Time: time.Now().Add(time.Duration(i-2000) * time.Second), BatchID: fmt.Sprintf("batch_%04d", i),
			Endpoint: "/v1/chat/completions", Models: []string{"gpt-5-mini"}, RequestCount: 200, CompletionWindow: "24h", Status: "validating",
			InputFileID: fmt.Sprintf("file-in-%04d", i), Callers: []string{"key 2"}, Metadata: map[string]string{"team": fmt.Sprint("team-", i%3)},
		}
		if i%50 == 7 {
			e.Models = []string{"text-embedding-3-large"}
		}
		w.OnEvent(e)
		e.Time, e.Elapsed = e.Time.Add(10*time.Minute), 10*time.Minute
		e.Name, e.Status, e.Counts = autobatcher.BatchProgress, "in_progress", autobatcher.Counts{Completed: 40, Total: 200}
		if i >= 997 {
			w.OnEvent(e)
			continue
		}
		e.Name, e.Status, e.OutputFileID = autobatcher.BatchCompleted, "completed", fmt.Sprintf("file-out-%04d", i)
		e.Counts.Completed = 200
		if i%100 == 99 {
			e.Counts = autobatcher.Counts{Completed: 200 - i/100, Failed: i / 100, Total: 200}
		}
		w.OnEvent(e)
		e.Name, e.Cost = autobatcher.BatchCost, autobatcher.Cost{USD: float64(i), Savings: 2, InputTokens: 12345, CachedTokens: 345, OutputTokens: 678, Priced: 200, PricesDate: "2026-11-01"}
		w.OnEvent(e)
	}
	w.setStats(autobatcher.Stats{Answered: 199_400, Costs: []autobatcher.CostPart{
		{Payer: "0badcafe", Caller: "key 2", Model: "gpt-5-mini", Lane: autobatcher.ModeBatch, Cost: autobatcher.Cost{USD: 12.5, Savings: 12.5, InputTokens: 1000, OutputTokens: 10, Priced: 190_000}},
		{Payer: "0badcafe", Caller: "key 1", Model: "gpt-5-mini", Lane: autobatcher.ModeFlex, Cost: autobatcher.Cost{USD: 1, Savings: 1, InputTokens: 1000, OutputTokens: 10, Priced: 9_400}},
		{Payer: "0badcafe", Caller: "key 1", Model: "unheard-of", Lane: autobatcher.ModeBatch, Cost: autobatcher.Cost{Unpriced: 3, InputTokens: 60, OutputTokens: 6}},
	}, Times: []autobatcher.TurnaroundStats{{Provider: "openai", Model: "gpt-5-mini", Window: "flex", Count: 7, Median: 90 * time.Second, P90: time.Hour}}})
}

// first is the JavaScript expression of the id in the first row.
const first = `document.querySelector("#batches tbody code")?.textContent`

func do(t *testing.T, ctx context.Context, script string) {
	t.Helper()
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](script+"; true")); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
}

// press types keys, and a tab for "\t".
func press(t *testing.T, ctx context.Context, keys string) {
	t.Helper()
	if err := chromedp.Do(ctx, chromedp.KeyEvent(keys)); err != nil {
		t.Fatal(err)
	}
}

// choose selects an option of a select element.
func choose(t *testing.T, ctx context.Context, id, value string) {
	t.Helper()
	do(t, ctx, fmt.Sprintf(`{ const s = document.getElementById(%q); s.value = %q; s.dispatchEvent(new Event("change")) }`, id, value))
}

func TestThousandBatches(t *testing.T) {
	w := newTestDashboard(t)
	w.fillThousand()
	server := httptest.NewServer(w)
	defer server.Close()
	defer w.Close()
	ctx := newBrowser(t)
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1280, 800)); err != nil {
		t.Fatal(err)
	}
	open(t, ctx, server.URL)

	// Pages, with the keyboard.
	expect(t, ctx, `document.querySelectorAll("#batches tbody tr").length === 25`)
	expect(t, ctx, `document.getElementById("position").textContent === "1–25 of 1,000"`)
	expect(t, ctx, `document.getElementById("batches-note").textContent === "3 running, 997 finished"`)
	expect(t, ctx, `document.documentElement.scrollHeight < 4000`)
	expect(t, ctx, first+` === "batch_0999"`)
	do(t, ctx, `document.getElementById("next").focus()`)
	press(t, ctx, "\r")
	expect(t, ctx, first+` === "batch_0974" && document.activeElement.id === "next"`)
	w.event(autobatcher.BatchProgress, "batch_0998", "in_progress", 50, 0, time.Minute)
	expect(t, ctx, `document.getElementById("position").textContent === "26–50 of 1,000" && document.activeElement.id === "next"`)

	// Search, filters and orders.
	do(t, ctx, `document.getElementById("search").focus()`)
	press(t, ctx, "team-1 embed")
	expect(t, ctx, `document.getElementById("position").textContent === "1–7 of 7"`)
	expect(t, ctx, `[...document.querySelectorAll("#batches tbody tr")].every(r => r.innerText.includes("text-embedding-3-large"))`)
	do(t, ctx, `{ const s = document.getElementById("search"); s.value = "no such batch"; s.dispatchEvent(new Event("input")) }`)
	expect(t, ctx, `!document.getElementById("no-matches").hidden && document.getElementById("batches").hidden`)
	do(t, ctx, `{ const s = document.getElementById("search"); s.value = ""; s.dispatchEvent(new Event("input")) }`)
	choose(t, ctx, "filter", "errors")
	expect(t, ctx, `document.getElementById("position").textContent === "1–8 of 8"`)
	choose(t, ctx, "sort", "errors-")
	expect(t, ctx, first+` === "batch_0899" && document.querySelector("#batches tbody tr").innerText.includes("8 (4 %)")`)
	expect(t, ctx, `document.querySelector("#batches th[aria-sort=descending]").innerText.startsWith("Errors")`)
	choose(t, ctx, "filter", "all")
	do(t, ctx, `document.querySelector("[data-sort='cost-']").focus()`)
	press(t, ctx, "\r")
	expect(t, ctx, first+` === "batch_0996" && document.getElementById("sort").value === "cost-"`)
	choose(t, ctx, "filter", "running")
	expect(t, ctx, `document.querySelectorAll("#batches tbody tr").length === 3`)
	expect(t, ctx, `document.querySelector("#batches .end").innerText.includes("estimate, from the progress so far")`)

	// Totals.
	expect(t, ctx, `[...document.querySelectorAll("#totals tbody tr")].map(r => r.innerText.replace(/\s+/g, " ")).join("|") ===
		"in batches lane 190,003 1,060 16 $12.50 $12.50|at the flex tier lane 9,400 1,000 10 $1.00 $1.00|"+
		"gpt-5-mini model 199,400 2,000 20 $13.50 $13.50|unheard-of model 3 60 6 not known not known|"+
		"0badcafe · key 2 account and key 190,000 1,000 10 $12.50 $12.50|0badcafe · key 1 account and key 9,403 1,060 16 $1.00 $1.00"`)
	expect(t, ctx, `document.querySelector("#metadata-totals tbody tr").innerText.replace(/\s+/g, " ").startsWith("team=team-0 334 66,800")`)

	expect(t, ctx, `document.querySelector("#times tbody tr").innerText.replace(/\s+/g, " ") === "gpt-5-mini openai flex 7 1 min 30 s 1 h 00 min"`)

	// A long id stays in one line.
	w.event(autobatcher.BatchSubmitted, "batch_"+strings.Repeat("0123456789abcdef", 8), "validating", 0, 0, 0)
	choose(t, ctx, "sort", "created-")
	expect(t, ctx, first+`.length > 100 && document.querySelector("#batches tbody a").offsetHeight < 30`)

	// A phone shows fewer rows, and does not scroll to the side.
	choose(t, ctx, "filter", "all")
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(360, 800)); err != nil {
		t.Fatal(err)
	}
	expect(t, ctx, `document.querySelectorAll("#batches tbody tr").length === 10 && document.querySelector("#batches tbody a").offsetHeight < 30`)
	expect(t, ctx, `document.documentElement.scrollHeight < 5400 && document.documentElement.scrollWidth <= innerWidth`)
}

func TestPageOfABatch(t *testing.T) {
	w := newTestDashboard(t)
	w.fillThousand()
	w.OnFailure(Failure{BatchID: "batch_0899", Status: 400, Code: "invalid_prompt", FromLine: true})
	w.OnFailure(Failure{BatchID: "batch_0899", Status: 424, Code: "batch_line_failed"})
	server := httptest.NewServer(w)
	defer server.Close()
	defer w.Close()
	ctx := newBrowser(t)
	open(t, ctx, server.URL)
	expect(t, ctx, first+` === "batch_0999"`)
	do(t, ctx, `const s = document.getElementById("search"); s.value = "0899"; s.dispatchEvent(new Event("input")); document.querySelector("#batches tbody a").focus()`)
	press(t, ctx, "\r")
	expect(t, ctx, `document.getElementById("content").hidden && document.activeElement.id === "batch-title" && document.activeElement.textContent === "batch_0899"`)
	expect(t, ctx, `document.title === "batch_0899 · autobatcher"`)
	for label, want := range map[string]string{
		"Batch": "batch_0899", "Lines": "200 of 200 done, 8 errors", "Models": "gpt-5-mini", "Client keys": "key 2", "Completion window": "24h",
		"Cost":  "about $899.00 (estimate, prices of 2026-11-01)",
		"Saved": "about $2.00 (estimate, prices of 2026-11-01)", "Tokens": "12,345 in (345 cached), 678 out",
		"Input file": "file-in-0899", "Output file": "file-out-0899", "Metadata": "team=team-2",
	} {
		expect(t, ctx, fmt.Sprintf(`[...document.querySelectorAll("#batch-facts > div")].find(d => d.firstChild.textContent === %q)?.lastChild.innerText.replace(/\s*Copy$/, "") === %q`, label, want))
	}
	expect(t, ctx, `document.querySelector("#batch-reasons tbody").innerText.replace(/\s+/g, " ") === "1 400 invalid_prompt error answer 1 424 batch_line_failed no answer"`)
	expect(t, ctx, `document.getElementById("batch-reasons-note").textContent.includes("counts 8 failed lines. 1 call got the provider's error.")`)
	expect(t, ctx, `[...document.querySelectorAll("#batch-timeline li span")].map(s => s.innerText).join("|") ===
		"Submitted · validating · 0 of 200 done|Completed, and the answers were delivered · completed · 200 of 200 done"`)
	expect(t, ctx, `document.querySelectorAll("#batch-facts button").length === 3 && document.querySelector("#batch-facts button").ariaLabel === "Copy batch"`)
	expect(t, ctx, `document.getElementById("cancel").hidden`)
	for _, width := range []int64{360, 1180} {
		if err := chromedp.Do(ctx, chromedp.EmulateViewport(width, 800)); err != nil {
			t.Fatal(err)
		}
		expect(t, ctx, fmt.Sprintf(`innerWidth === %d && document.documentElement.scrollWidth <= innerWidth`, width))
		saveScreenshot(t, ctx, fmt.Sprint("batch-", width))
	}
	do(t, ctx, `history.back()`)
	expect(t, ctx, `!document.getElementById("content").hidden && document.activeElement.textContent === "batch_0899"`)
	do(t, ctx, `location.hash = "#/batches/unknown"`)
	expect(t, ctx, `document.getElementById("batch-title").textContent === "This batch is not listed" && document.getElementById("batch-facts").hidden`)

	// The page of a running batch follows the batch.
	do(t, ctx, `location.hash = "#/batches/batch_0999"`)
	expect(t, ctx, `document.getElementById("batch-facts").innerText.includes("40 of 200 done")`)
	w.event(autobatcher.BatchProgress, "batch_0999", "in_progress", 150, 1, 20*time.Minute)
	expect(t, ctx, `document.getElementById("batch-facts").innerText.includes("151 of 200 done, 1 error")`)
	expect(t, ctx, `document.querySelectorAll("#batch-timeline li").length === 2`)
	expect(t, ctx, `document.getElementById("batch-timeline").innerText.includes("151 of 200")`)
}

// TestCancelFromThePage checks that a batch is cancelled only after a confirmation.
func TestCancelFromThePage(t *testing.T) {
	d := New(Options{Cancel: true})
	w := &testDashboard{Dashboard: d}
	w.event(autobatcher.BatchProgress, "batch_1", "in_progress", 1, 0, time.Second)
	var posts atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/autobatcher/cancel":
			w.ServeHTTP(rw, r)
		case r.Method != http.MethodPost || r.URL.Query().Get("id") != "batch_1" || r.Header.Get("Autobatcher-Page") == "":
			t.Errorf("%s %s", r.Method, r.URL)
		case posts.Add(1) == 1:
			rw.WriteHeader(http.StatusForbidden)
			fmt.Fprint(rw, `{"error":{"message":"not yours"}}`)
		default:
			rw.WriteHeader(http.StatusNoContent)
		}
	}))
	defer server.Close()
	defer d.Close()
	ctx := newBrowser(t)
	open(t, ctx, server.URL+"/#/batches/batch_1")
	expect(t, ctx, `!document.getElementById("cancel").hidden`)
	do(t, ctx, `document.getElementById("cancel").focus()`)
	press(t, ctx, "\r")
	expect(t, ctx, `document.getElementById("confirm").open && document.activeElement.id === "confirm-no"`)
	press(t, ctx, "\r")
	expect(t, ctx, `!document.getElementById("confirm").open && document.activeElement.id === "cancel"`)
	if posts.Load() > 0 {
		t.Error("cancelled without a confirmation")
	}
	for _, want := range []string{"Not cancelled: not yours", "The provider has accepted the cancellation"} {
		do(t, ctx, `document.getElementById("cancel").click(); document.getElementById("confirm-yes").click()`)
		expect(t, ctx, fmt.Sprintf(`document.getElementById("batch-result").textContent.startsWith(%q)`, want))
	}
}

func TestPageWithoutJavaScript(t *testing.T) {
	w := newTestDashboard(t)
	w.fillThousand()
	server := httptest.NewServer(w)
	defer server.Close()
	defer w.Close()
	time.Sleep(refreshInterval) // until the next snapshot may be taken
	ctx := newBrowser(t, chromedp.Flag("blink-settings", "scriptEnabled=false"))
	for query, want := range map[string][]string{
		"?key=a%26b": {"Batches 1 and following, of 1000", "batch_0999", "batch_0975", "Next page"},
		"?page=40":   {"Batches 976 and following, of 1000", "batch_0000", "Previous page"},
		"?page=999":  {"Batches 976 and following, of 1000"},
	} {
		open(t, ctx, server.URL+"/"+query)
		text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText + document.querySelectorAll("#plain tbody tr").length + (document.querySelector("noscript a")?.search ?? "")`))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range append(want, "Error answers", "25?") {
			if !strings.Contains(text, part) {
				t.Errorf("%s: %q is not on the page: %s", query, part, text)
			}
		}
		if strings.HasPrefix(query, "?key") && !strings.Contains(text, "?key=a%26b&page=2") {
			t.Errorf("the link to the next page has no key: %s", text)
		}
	}
}

// TestSandboxInBrowser checks that the parts of the page that JavaScript shows name
// the answers of a sandbox as made up.
func TestSandboxInBrowser(t *testing.T) {
	known := autobatcher.Cost{USD: 1, Savings: 1, Priced: 1, PricesDate: "2026-11-01"}
	d := New(Options{Sandbox: true, Stats: func() autobatcher.Stats { return autobatcher.Stats{Answered: 1, Cost: known} }})
	w := &testDashboard{Dashboard: d}
	w.event(autobatcher.BatchCompleted, "batch_1", "completed", 1, 0, time.Minute)
	d.OnEvent(autobatcher.Event{Name: autobatcher.BatchCost, BatchID: "batch_1", Cost: known})
	server := httptest.NewServer(d)
	defer server.Close()
	defer d.Close()
	ctx := newBrowser(t)
	open(t, ctx, server.URL)
	expect(t, ctx, `document.getElementById("saved-note").textContent.startsWith("estimate of made-up answers")`)
	expect(t, ctx, `document.title === "autobatcher (sandbox)" && document.querySelector(".notice").innerText.includes("made up")`)
	do(t, ctx, `location.hash = "#/batches/batch_1"`)
	expect(t, ctx, `document.getElementById("batch-facts").innerText.includes("about $1.00 (estimate, prices of 2026-11-01, made up)")`)
	expect(t, ctx, `document.title === "batch_1 · autobatcher (sandbox)" && document.querySelector(".notice").checkVisibility()`)
}
