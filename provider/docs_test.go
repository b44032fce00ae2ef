package provider_test

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/provider"
)

var update = flag.Bool("update", false, "write the tables of docs/providers.md again")

const docsPath = "../docs/providers.md"

// TestDocs keeps docs/providers.md correct: the tables of rules are made from the
// profiles, and the handwritten tables name every profile.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile(docsPath)
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	want := replaceTable(t, got, "rules", rulesTable(t))
	want = replaceTable(t, want, "flex", flexTable(t))
	want = replaceTable(t, want, "lanes", lanesTable(t))
	want = replaceTable(t, want, "refused", refusedTable(t))
	if *update {
		if err := os.WriteFile(docsPath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("%s is out of date; run go test ./provider -update (-want +got):\n%s", docsPath, diff)
	}
	_, sources, found := strings.Cut(got, "## What was verified")
	if !found {
		t.Fatalf("%s has no section on what was verified", docsPath)
	}
	for _, name := range provider.Names() {
		if !strings.Contains(sources, "\n| `"+name+"` |") {
			t.Errorf("%s does not say what was verified about %s", docsPath, name)
		}
	}
}

// replaceTable puts table between the two comments in text that carry the name.
func replaceTable(t *testing.T, text, name, table string) string {
	t.Helper()
	begin, end := "<!-- "+name+": begin -->\n", "<!-- "+name+": end -->"
	before, rest, ok1 := strings.Cut(text, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table %q", docsPath, name)
	}
	return before + begin + table + end + after
}

func rulesTable(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| Name | Hosts | Batched calls | One file holds | Windows (default) | Lines | File | Results |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|\n")
	for _, p := range all(t) {
		switch {
		case p.Refusal != "" || p.SinglePrice != "":
		case len(p.Suffixes()) == 0:
			fmt.Fprintf(&b, "| `%s` | %s | none: all calls pass through, at full price | | | | | |\n", p.Name, hosts(p))
		default:
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s | %s |\n",
				p.Name, hosts(p), calls(p), sharing(p), windows(p), count(p.MaxLines), size(p.MaxBytes), results(p))
		}
	}
	return b.String()
}

// flexTable has the providers that sell single calls at the price of batches.
func flexTable(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| Name | Hosts | Calls | `service_tier` | Answered within | Held open | Refused with |\n|---|---|---|---|---|---|---|\n")
	for _, p := range all(t) {
		switch {
		case p.Refusal != "":
		case p.SinglePrice != "":
			fmt.Fprintf(&b, "| `%s` | %s | all, passed through | | %s | yes | |\n", p.Name, hosts(p), days(p.FlexTimeout))
		case len(p.FlexEndpoints) > 0:
			held := "yes"
			if p.FlexBackground {
				held = "chat; responses run in the background"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | `%s` | %s | %s | %s |\n", p.Name, hosts(p), names(p.Flex), p.FlexTier, length(p.FlexTimeout), held, statuses(p.FlexRefusals))
		}
	}
	return b.String()
}

// A laneFact is what the profile does not say of a lane of a provider.
type laneFact struct {
	price   string // as a share of the price in real time; "": by the profile's BatchDiscount
	typical string // time; "": not published
	source  string // of the price and the time, and when the source was read
}

const half = "50 %"

// laneFacts are by the name of the profile and the lane.
var laneFacts = map[string]laneFact{
	"azure batch":                 {source: "guide, 2026"},
	"azure-legacy batch":          {source: "guide, 2026"},
	"cerebras batch":              {price: "not published", source: "API reference, 2026; an older guide said 50 %"},
	"dashscope batch":             {source: "guide, November 2026"},
	"deepinfra batch":             {source: "announcement of June 2026"},
	"doubleword batch":            {price: "by model and window, below that of flex", typical: "hours; the window is 1h unless changed", source: "provider's documents for agents, November 2026"},
	"doubleword flex":             {price: "by model, 20 % to 50 %", typical: "minutes", source: "provider's documents for agents, November 2026; server source for the hour"},
	"generic batch":               {price: "not known", source: "none"},
	"groq batch":                  {source: "guide, November 2026"},
	"litellm batch":               {price: "the provider's", typical: "the provider's", source: "none"},
	"llm-d batch":                 {price: "your own", typical: "your own", source: "none"},
	"moonshot batch":              {source: "list of prices, November 2026"},
	"nebius batch":                {source: "guide, 2026"},
	"novita batch":                {price: "not published", source: "guide, 2026"},
	"openai batch":                {source: "guide, November 2026"},
	"openai flex":                 {price: "as in a batch, and less for cached input", typical: "not published; the guide raises the SDK's timeout to 15 minutes", source: "guide, November 2026"},
	"parasail batch":              {price: half + " (not verified)", source: "a third party's survey of prices, 2026"},
	"perplexity batch":            {price: "no discount is documented", source: "guide, November 2026"},
	"siliconflow batch":           {source: "guide, 2026"},
	"together batch":              {price: half + " for some models, else full", typical: "minutes below 1,000 lines", source: "guide and list of prices, November 2026"},
	"voyage batch":                {source: "a copy of the guide, 2026"},
	"zhipu batch":                 {source: "guide, 2026"},
	"ark-batch-chat single":       {price: half + " or less", source: "guide, 2026"},
	"dashscope-batch-chat single": {price: half + ", \"for a limited time\"", typical: "from a minute on", source: "guide, 2026"},
}

// lanesTable has the price and the time of each lane of each provider.
func lanesTable(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| Name | Lane | Price | Typical time | At most | Source of price and time |\n|---|---|---|---|---|---|\n")
	left := maps.Clone(laneFacts)
	row := func(name, lane, price, most string) {
		fact, found := left[name+" "+lane]
		if !found {
			t.Fatalf("laneFacts lacks the lane %s of %s", lane, name)
		}
		delete(left, name+" "+lane)
		if (fact.price == "") == (price == "") {
			t.Errorf("the price of the lane %s of %s is %q in the profile, and %q in laneFacts; want one of them", lane, name, price, fact.price)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", name, lane, cmp.Or(price, fact.price), cmp.Or(fact.typical, "not published"), most, fact.source)
	}
	for _, p := range all(t) {
		switch {
		case p.Refusal != "", len(p.Suffixes()) == 0 && p.SinglePrice == "":
			continue
		case p.SinglePrice != "":
			row(p.Name, "single", "", days(p.FlexTimeout))
			continue
		}
		row(p.Name, "batch", batchPrice(p), longestWindow(p))
		if len(p.FlexEndpoints) > 0 {
			row(p.Name, "flex", "", length(p.FlexTimeout))
		}
	}
	for name := range left {
		t.Errorf("laneFacts has %s, which no profile has", name)
	}
	return b.String()
}

// batchPrice is the price of batches as a share of the price in real time, or "" if the
// profile has no discount.
func batchPrice(p provider.Profile) string {
	if p.BatchDiscount == 0 {
		return ""
	}
	return strconv.Itoa(int(math.Round(100*(1-p.BatchDiscount)))) + " %"
}

func longestWindow(p provider.Profile) string {
	switch {
	case p.OmitWindow:
		return "not chosen by the caller"
	case p.Windows != nil:
		return strings.Join(p.Windows, ", ")
	case p.MaxWindow > 0:
		return "the window, up to " + days(p.MaxWindow)
	}
	return "the window"
}

func length(d time.Duration) string {
	if d < time.Hour {
		return strconv.Itoa(int(d/time.Minute)) + " min"
	}
	return days(d)
}

func refusedTable(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| Name | Hosts | The message of autobatcher |\n|---|---|---|\n")
	for _, p := range all(t) {
		if p.Refusal != "" {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", p.Name, hosts(p), p.Refusal)
		}
	}
	return b.String()
}

func hosts(p provider.Profile) string {
	switch {
	case p.Name == "generic":
		return "every other"
	case len(p.Hosts) == 0:
		return "by name only"
	}
	h := "`" + strings.Join(p.Hosts, "` `") + "`"
	if p.BasePathCut != "" {
		h += ", path with `" + p.BasePathCut + "`"
	}
	return h
}

func calls(p provider.Profile) string { return names(p.Batches) }

// names lists the calls that a provider accepts.
func names(accepts func(suffix string) bool) string {
	var names []string
	for _, e := range []struct{ suffix, name string }{
		{"/chat/completions", "chat"},
		{"/completions", "completions"},
		{"/embeddings", "embeddings"},
		{"/images/generations", "images"},
		{"/images/edits", "edits"},
		{"/moderations", "moderations"},
		{"/rerank", "rerank"},
		{"/responses", "responses"},
		{"/audio/transcriptions", "transcriptions"},
		{"/audio/translations", "translations"},
	} {
		if accepts(e.suffix) {
			names = append(names, e.name)
		}
	}
	return strings.Join(names, ", ")
}

func sharing(p provider.Profile) string {
	switch {
	case p.OneModel && p.OneEndpoint:
		return "one model, one endpoint"
	case p.OneEndpoint:
		return "any models, one endpoint"
	}
	return "any models, any endpoints"
}

func windows(p provider.Profile) string {
	switch {
	case p.OmitWindow:
		return "none"
	case p.Windows != nil:
		return strings.Join(p.Windows, ", ")
	case p.MaxWindow > 0:
		return fmt.Sprintf("%s to %s (%s)", days(p.MinWindow), days(p.MaxWindow), p.DefaultWindow)
	}
	return "any (" + p.DefaultWindow + ")"
}

func statuses(all []int) string {
	texts := make([]string, len(all))
	for i, status := range all {
		texts[i] = strconv.Itoa(status)
	}
	return strings.Join(texts, ", ")
}

func days(d time.Duration) string {
	if d%(24*time.Hour) == 0 && d > 24*time.Hour {
		return strconv.Itoa(int(d/(24*time.Hour))) + "d"
	}
	return strconv.Itoa(int(d/time.Hour)) + "h"
}

func count(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func size(n int64) string {
	switch {
	case n%(1<<20) == 0:
		return strconv.FormatInt(n>>20, 10) + " MiB"
	case n%1e9 == 0:
		return strconv.FormatInt(n/1e9, 10) + " GB"
	}
	return strconv.FormatInt(n/1e6, 10) + " MB"
}

func results(p provider.Profile) string {
	switch {
	case p.PartialResults:
		return "as they arrive"
	case p.ResultURLs:
		return "at the end, by URL"
	}
	return "at the end"
}
