package price

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/autobatcher/autobatcher/internal/budget"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/provider"
)

func TestBook(t *testing.T) {
	const own = `{"ours": {"input_cost_per_token": 1, "output_cost_per_token": 10, "cache_read_input_token_cost": 0.5, "mode": "chat"},
		"sample_spec": {"input_cost_per_token": "text"}, "picture": {"mode": "image_generation", "input_cost_per_token": 1}}`
	for name, test := range map[string]struct {
		profile             provider.Profile
		model, body, header string
		savings             float64
		unpriced            int64
	}{
		"batch prices of the map":     {provider.OpenAI(), "gpt-4o-mini", `{"usage":{"prompt_tokens":1000000,"completion_tokens":1000000}}`, "0.375", 0.375, 0},
		"cached tokens once":          {provider.OpenAI(), "ours", `{"usage":{"prompt_tokens":10,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":4}}}`, "10", 8, 0},
		"responses":                   {provider.OpenAI(), "ours", `{"usage":{"input_tokens":2,"output_tokens":1}}`, "6", 6, 0},
		"embeddings":                  {provider.OpenAI(), "ours", `{"usage":{"prompt_tokens":2,"total_tokens":2}}`, "1", 1, 0},
		"the model that answered":     {provider.Azure(), "deployment", `{"model":"gpt-4o-mini","usage":{"prompt_tokens":1000000}}`, "", 0, 0},
		"a provider without discount": {provider.Generic(), "ours", `{"usage":{"prompt_tokens":2}}`, "2", 0, 0},
		"an unknown model":            {provider.OpenAI(), "unheard-of", `{"usage":{"prompt_tokens":2}}`, "", 0, 1},
		"another provider's model":    {provider.Generic(), "gpt-4o-mini", `{"usage":{"prompt_tokens":2}}`, "", 0, 1},
		"no usage":                    {provider.OpenAI(), "ours", `{"choices":[]}`, "", 0, 1},
		"a moderation is free":        {provider.OpenAI(), "omni-moderation-latest", `{"model":"omni-moderation-2024-09-26","results":[]}`, "0", 0, 0},
		"the model of a moderation":   {provider.OpenAI(), "", `{"model":"omni-moderation-2024-09-26","results":[]}`, "0", 0, 0},
		"a text completion":           {provider.OpenAI(), "gpt-3.5-turbo-instruct", `{"usage":{"prompt_tokens":2000000,"completion_tokens":1000000}}`, "2.5", 2.5, 0},
		"an image":                    {provider.OpenAI(), "gpt-image-1", `{"usage":{"input_tokens":2,"output_tokens":272,"total_tokens":274}}`, "", 0, 1},
		"a model that is no chat":     {provider.OpenAI(), "picture", `{"usage":{"prompt_tokens":2}}`, "", 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := NewMeter([]byte(own), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			var b Bill
			c := Call{Profile: &test.profile, Model: test.model}
			got := m.Book(&b, "1", c, []byte(test.body))
			if name == "the model that answered" {
				if b.Priced != 1 || got == "" {
					t.Errorf("cost %q, bill %+v", got, b.Total)
				}
				return
			}
			if got != test.header || math.Abs(b.Savings-test.savings) > 1e-9 || b.Unpriced != test.unpriced {
				t.Errorf("cost %q, bill %+v", got, b.Total)
			}
			if again := m.Book(&b, "1", c, []byte(test.body)); again != got || m.Total() != b.Total || b.Priced+b.Unpriced != 1 {
				t.Errorf("a second reading was booked: %q, %+v, %+v", again, b.Total, m.Total())
			}
		})
	}
}

// An answer at the flex tier has the price of the tier that the answer names. At a tier
// without a known price the cost is not known, and the budget spends the price in real time.
func TestBookFlex(t *testing.T) {
	const own = `{"ours": {"input_cost_per_token": 8, "output_cost_per_token": 80, "input_cost_per_token_batches": 5, "output_cost_per_token_batches": 50,
		"input_cost_per_token_flex": 3, "output_cost_per_token_flex": 30, "input_cost_per_token_priority": 20, "output_cost_per_token_priority": 200},
		"no flex": {"input_cost_per_token": 8, "output_cost_per_token": 80}}`
	for name, test := range map[string]struct {
		model, tier  string
		header       string
		spent, saved float64
		other        int64
	}{
		"flex":                          {"ours", `"flex"`, "36", 36, 60, 0},
		"the profile's spelling":        {"ours", `"spare"`, "36", 36, 60, 0},
		"the default tier":              {"ours", `"default"`, "96", 96, 0, 1},
		"no tier":                       {"ours", `null`, "96", 96, 0, 0},
		"a dearer tier":                 {"ours", `"priority"`, "240", 240, -144, 1},
		"a tier that is not known":      {"ours", `"scale"`, "", 96, 0, 1},
		"a model without a price there": {"no flex", `"flex"`, "", 96, 0, 0},
		"the caller's metadata":         {"ours", `"flex","metadata":{"service_tier":"default"}`, "36", 36, 60, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := NewMeter([]byte(own), budget.New(1000, false), nil)
			if err != nil {
				t.Fatal(err)
			}
			var b Bill
			p := provider.OpenAI()
			p.FlexTier = "spare"
			body := fmt.Sprintf(`{"service_tier":%s,"usage":{"prompt_tokens":2,"completion_tokens":1}}`, test.tier)
			got := m.Book(&b, "1", Call{Profile: &p, Model: test.model, Flex: true}, []byte(body))
			if spent := m.Budget().State().SpentUSD; got != test.header || spent != test.spent || b.Savings != test.saved || (b.Unpriced == 1) != (got == "") || b.OtherTier != test.other || m.Total().OtherTier != test.other {
				t.Errorf("cost %q, spent %v, bill %+v", got, spent, b.Total)
			}
		})
	}
}

// Answers at another tier than flex are logged once for each model of a provider, and
// counted once for each line.
func TestOtherTiersAreLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	m, err := NewMeter(nil, nil, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	openai, doubleword := provider.OpenAI(), provider.Doubleword()
	var b Bill
	for i, c := range []Call{
		{Profile: &openai, Model: "a", Flex: true},
		{Profile: &openai, Model: "a", Flex: true, Caller: "key 2"},
		{Profile: &openai, Model: "b", Flex: true},
		{Profile: &doubleword, Model: "a", Flex: true},
		{Profile: &openai, Model: "c"},
	} {
		for range 2 { // results may be read again
			m.Book(&b, fmt.Sprint(i), c, []byte(`{"service_tier":"`+strings.Repeat("x", 100)+`"}`))
		}
	}
	if m.Total().OtherTier != 4 || b.OtherTier != 4 {
		t.Errorf("%d answers in the total, %d in the bill; want 4", m.Total().OtherTier, b.OtherTier)
	}
	for text, want := range map[string]int{"level=WARN": 3, "provider=openai model=a": 1, "provider=openai model=b": 1, "provider=doubleword model=a": 1, strings.Repeat("x", 41): 0, "send calls to the model in batches": 3} {
		if got := strings.Count(log.String(), text); got != want {
			t.Errorf("the log has %q %d times, want %d:\n%s", text, got, want, log.String())
		}
	}
	log.Reset()
	for i := range 2 * maxLogged {
		m.Book(&b, fmt.Sprint("line ", i), Call{Profile: &openai, Model: fmt.Sprint("model ", i), Flex: true}, []byte(`{"service_tier":"default"}`))
	}
	if got := strings.Count(log.String(), "level=WARN"); got != maxLogged-3 || m.Total().OtherTier != 4+2*maxLogged {
		t.Errorf("%d warnings about %d answers, want %d in all", got, m.Total().OtherTier, maxLogged)
	}
}

// The tokens of answers count, also where no price is known.
func TestTokensWithoutAPrice(t *testing.T) {
	m, err := NewMeter(nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, want := provider.Generic(), Total{InputTokens: 5, CachedTokens: 2, OutputTokens: 1, Unpriced: 1}
	body := []byte(`{"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6,"prompt_tokens_details":{"cached_tokens":2}}}`)
	var b Bill
	m.Book(&b, "1", Call{Profile: &p, Model: "unheard-of"}, body)
	if b.Total != want || m.Total() != want {
		t.Errorf("bill %+v, total %+v; want %+v", b.Total, m.Total(), want)
	}
	call, err := m.Begin(Call{Profile: &p, Model: "unheard-of"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	call.Scan(body)
	call.End(true)
	if got := m.Total(); got.InputTokens != 10 || got.OutputTokens != 2 || got.Unpriced != 2 {
		t.Errorf("after an answer in real time: %+v", got)
	}
}

// A line is in the bill of a batch once, and in the total once, also if the results are
// read again, for another batch that resumes the first.
func TestBillAndTotal(t *testing.T) {
	type reading struct {
		again    bool // for a batch that resumes the first
		caller   bool // waits for the line
		resumed  bool // another process has sent the batch
		billed   int64
		inTotals int64
	}
	for name, readings := range map[string][]reading{
		"without a caller, then for a retry":             {{false, false, false, 1, 1}, {false, true, false, 1, 1}},
		"without a caller, then for a retry much later":  {{false, false, false, 1, 1}, {true, false, true, 1, 1}, {false, true, true, 1, 1}},
		"of another process, then for a retry":           {{false, false, true, 1, 0}, {false, true, true, 1, 1}, {false, false, true, 1, 1}},
		"for a caller, then for callers of other lines":  {{false, true, false, 1, 1}, {false, false, false, 1, 1}},
		"without a caller, twice, and for another batch": {{false, false, false, 1, 1}, {false, false, false, 1, 1}, {true, false, true, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := NewMeter([]byte(`{"ours": {"input_cost_per_token": 2, "output_cost_per_token": 4}}`), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			p := provider.OpenAI()
			var b Bill
			for i, r := range readings {
				if r.again {
					b = Bill{}
				}
				// Without a caller the call is not known, and the answer names the model.
				if body := []byte(`{"model":"ours","usage":{"prompt_tokens":1}}`); r.caller {
					m.Book(&b, "1", Call{Profile: &p, Model: "ours"}, body)
				} else {
					m.BookUnclaimed(&b, "1", Call{Profile: &p}, body, !r.resumed)
				}
				if b.Priced != r.billed || m.Total().Priced != r.inTotals {
					t.Errorf("after %d readings: bill %+v, total %+v", i+1, b.Total, m.Total())
				}
			}
		})
	}
}

func TestRecent(t *testing.T) {
	var r recent
	for i := range uint64(10 * maxRecent) {
		r.add(i)
		if size := len(r.now) + len(r.before); size > maxRecent {
			t.Fatalf("%d hashes are held", size)
		}
	}
	for hash, want := range map[uint64]bool{0: false, 10*maxRecent - 1: true, 10*maxRecent - maxRecent/2: true} {
		if got := r.remove(hash); got != want {
			t.Errorf("hash %d: %t", hash, got)
		}
		if r.remove(hash) {
			t.Errorf("hash %d was not removed", hash)
		}
	}
}

// An answer in real time is priced in the tier that the answer names.
func TestBookRealtime(t *testing.T) {
	const own = `{"ours": {"input_cost_per_token": 2, "output_cost_per_token": 4, "input_cost_per_token_flex": 1, "output_cost_per_token_flex": 2,
		"input_cost_per_token_batches": 0.5}, "plain": {"input_cost_per_token": 2, "output_cost_per_token": 4}}`
	openai := provider.OpenAI()
	for name, test := range map[string]struct {
		model, body  string
		usd, savings float64
		known        bool
	}{
		"no tier":                     {"ours", `{"model":"ours","usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}`, 10, 0, true},
		"default":                     {"ours", `{"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4},"service_tier":"default"}`, 10, 0, true},
		"flex":                        {"ours", `{"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4},"service_tier":"flex"}`, 5, 5, true},
		"flex without a price":        {"plain", `{"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4},"service_tier":"flex"}`, 0, 0, false},
		"priority without a price":    {"ours", `{"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4},"service_tier":"priority"}`, 0, 0, false},
		"a tier that is not known":    {"ours", `{"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4},"service_tier":"scale"}`, 0, 0, false},
		"a stream, which names flex":  {"ours", "data: {\"model\":\"ours\",\"service_tier\":\"flex\",\"usage\":null}\n\ndata: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\"total_tokens\":4}}\n\n", 5, 5, true},
		"a stream without usage":      {"ours", "data: {\"model\":\"ours\"}\n\n", 0, 0, false},
		"the model that answered":     {"alias", `{"model":"ours","usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}`, 10, 0, true},
		"a model that nobody charges": {"unheard-of", `{"usage":{"prompt_tokens":3,"total_tokens":3}}`, 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := budget.New(100, false)
			m, err := NewMeter([]byte(own), b, nil)
			if err != nil {
				t.Fatal(err)
			}
			call, err := m.Begin(Call{Profile: &openai, Model: test.model}, 99)
			if err != nil {
				t.Fatal(err)
			}
			if got := b.State(); got.ReservedUSD != 99 {
				t.Errorf("%+v", got)
			}
			call.Scan([]byte(test.body))
			call.End(true)
			call.End(true)
			spent := test.usd
			if !test.known {
				spent = 99 // what was reserved
			}
			total, got := m.Total(), b.State()
			if (total.Priced == 1) != test.known || total.USD != test.usd || total.Savings != test.savings || total.Priced+total.Unpriced != 1 || got.SpentUSD != spent || got.ReservedUSD != 0 {
				t.Errorf("%+v, %+v", total, got)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	m, err := NewMeter([]byte(`{"ours": {"input_cost_per_token": 2, "output_cost_per_token": 4}}`), budget.New(1e19, false), nil)
	if err != nil {
		t.Fatal(err)
	}
	p := provider.OpenAI()
	for name, test := range map[string]struct {
		model                  string
		input, output, answers int64
		embedding              bool
		realtime               float64
		known                  bool
	}{
		"a limit":          {"ours", 3, 5, 1, false, 26, true},
		"two answers":      {"ours", 3, 5, 2, false, 46, true},
		"no limit":         {"ours", 3, 0, 1, false, 4006, true},
		"a negative limit": {"ours", 3, -5, 1, false, 4006, true},
		"an embedding":     {"ours", 3, 5, 1, true, 6, true},
		"a large limit":    {"ours", 0, math.MaxInt64, math.MaxInt64, false, 4e18, true},
		"an unknown model": {"other", 3, 5, 1, false, 0, false},
		"a moderation":     {"omni-moderation-latest", 3, 0, 1, true, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			r, known := m.Plan(Call{Profile: &p, Model: test.model}, test.input, test.output, test.answers, test.embedding)
			if known != test.known || r.Realtime() != test.realtime {
				t.Errorf("%v, %t", r.Realtime(), known)
			}
			before := m.Budget().State().ReservedUSD
			if err := r.Take(); err != nil {
				t.Fatal(err)
			}
			if got := m.Budget().State().ReservedUSD - before; got != test.realtime/2 {
				t.Errorf("%v are reserved for a batch", got)
			}
			r.Release()
		})
	}
}

// The parts add up to the total, and callers that name many models cost bounded
// memory.
func TestParts(t *testing.T) {
	m, err := NewMeter([]byte(`{"ours": {"input_cost_per_token": 2, "output_cost_per_token": 4}}`), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := provider.OpenAI()
	var bill Bill
	book := func(id string, c Call) {
		c.Profile = &p
		m.Book(&bill, id, c, []byte(`{"usage":{"prompt_tokens":1}}`))
	}
	book("1", Call{Model: "ours", Payer: "a", Caller: "key 1"})
	book("2", Call{Model: "ours", Payer: "a", Caller: "key 1"})
	book("3", Call{Model: "ours", Payer: "a", Caller: "key 2"})
	if parts := m.Parts(); len(parts) != 2 || parts[0].Priced != 2 || parts[1].Caller != "key 2" || parts[0].USD != 2*parts[1].USD {
		t.Errorf("%+v", parts)
	}
	book("4", Call{Model: "ours", Payer: "a", Caller: "key 1", Flex: true})
	escalated, err := m.Begin(Call{Profile: &p, Model: "ours", Payer: "a", Caller: "key 1", Flex: true}, 0) // a call that left the flex tier
	if err != nil {
		t.Fatal(err)
	}
	escalated.Scan([]byte(`{"usage":{"prompt_tokens":1,"completion_tokens":0,"total_tokens":1}}`))
	escalated.End(true)
	want := []Part{
		{Payer: "a", Caller: "key 1", Model: "ours", Lane: lane.Batch, Total: Total{USD: 2, Savings: 2, InputTokens: 2, Priced: 2}},
		{Payer: "a", Caller: "key 1", Model: "ours", Lane: lane.Flex, Total: Total{USD: 2, InputTokens: 1, Priced: 1}}, // billed in real time
		{Payer: "a", Caller: "key 1", Model: "ours", Lane: lane.Realtime, Total: Total{USD: 2, InputTokens: 1, Priced: 1}},
		{Payer: "a", Caller: "key 2", Model: "ours", Lane: lane.Batch, Total: Total{USD: 1, Savings: 1, InputTokens: 1, Priced: 1}},
	}
	if diff := cmp.Diff(want, m.Parts(), cmpopts.IgnoreFields(Total{}, "PricesDate")); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
	for i := range 3 * maxParts {
		book(fmt.Sprint("id", i), Call{Model: fmt.Sprint("model", i)})
	}
	var sum Total
	parts := m.Parts()
	for _, part := range parts {
		sum.Add(&part.Total)
	}
	if parts[0].Priced+parts[0].Unpriced != int64(3*maxParts-(maxParts-4)) || parts[0].Payer+parts[0].Caller+parts[0].Model != "" || parts[0].Lane != "" {
		t.Errorf("the part beyond the bound: %+v", parts[0])
	}
	if sum != m.Total() || len(parts) > maxParts+1 || sum.Unpriced != 3*maxParts {
		t.Errorf("%d parts: %+v, total %+v", len(parts), sum, m.Total())
	}
}

// Whoever follows the message has a known price.
func TestUnknown(t *testing.T) {
	for name, test := range map[string]struct {
		profile provider.Profile
		azure   bool
	}{"openai": {provider.OpenAI(), false}, "azure": {provider.Azure(), true}} {
		t.Run(name, func(t *testing.T) {
			text := Unknown(&test.profile, `my "best" model`)
			if strings.Contains(text, "deployment") != test.azure {
				t.Error(text)
			}
			from, to := strings.Index(text, "{"), strings.LastIndex(text, "}")
			if from < 0 || to < from {
				t.Fatal(text)
			}
			m, err := NewMeter([]byte(strings.ReplaceAll(text[from:to+1], "…", "0.5")), budget.New(1, false), nil)
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			if _, known := m.Plan(Call{Profile: &test.profile, Model: `my "best" model`}, 1, 1, 1, false); !known {
				t.Error("the price is still not known")
			}
		})
	}
}

func TestBuiltInTable(t *testing.T) {
	table := BuiltIn()
	if len(table.entries) < 500 || len(prices) > 300<<10 {
		t.Errorf("%d models, %d bytes", len(table.entries), len(prices))
	}
	rows := strings.Split(strings.TrimSuffix(prices, "\n"), "\n")
	for _, row := range rows[1:] {
		f := strings.Split(row, "\t")
		k := Key{f[0], f[1]}
		if p := table.entries[k]; p.Row(k) != row || p[Realtime].Input < 0 {
			t.Errorf("row %q was read as %q", row, p.Row(k))
		}
	}
}

// The prices of a map take precedence over the built-in prices.
func TestWith(t *testing.T) {
	prices := func(input string) string {
		return `"input_cost_per_token": ` + input + `, "output_cost_per_token": 1}`
	}
	for range 10 { // the order of a Go map differs
		table, err := BuiltIn().With([]byte(`{"gpt-4o-mini": {` + prices("2") + `, "azure/gpt-4o-mini": {"litellm_provider": "azure", ` + prices("3") + `,
			"o3": {"litellm_provider": "openai", ` + prices("4") + `, "x/gpt-4.1": {"litellm_provider": "x", ` + prices("5") + `,
			"x/m": {"litellm_provider": "x", ` + prices("6") + `, "y/m": {"litellm_provider": "y", ` + prices("7") + `, "z/n": {"litellm_provider": "z", ` + prices("8") + `, "n": {` + prices("9") + `}`))
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			profile, model string
			input          float64
		}{
			{"openai", "gpt-4o-mini", 2}, // without a provider: of every provider
			{"azure", "gpt-4o-mini", 3},  // except those of the map
			{"generic", "gpt-4o-mini", 2},
			{"openai", "o3", 4},
			{"openai", "gpt-4.1", 2e-6}, // another provider's entry does not count
			{"generic", "gpt-4.1", 5},
			{"generic", "m", 6}, // of two providers the first
			{"generic", "n", 9}, // without a provider before a provider
		} {
			if p, _, _ := table.find(test.profile, test.model); p[Realtime].Input != test.input {
				t.Errorf("%s %s: %v, want %v", test.profile, test.model, p[Realtime].Input, test.input)
			}
		}
	}
}

func TestBadMaps(t *testing.T) {
	for _, text := range []string{`[]`, `{"m": {"input_cost_per_token": "1"}}`, `{"m": {"input_cost_per_token": -1, "output_cost_per_token": 1}}`} {
		if _, err := NewMeter([]byte(text), nil, nil); err == nil {
			t.Errorf("%s was accepted", text)
		}
	}
}

// BenchmarkBook measures what the booking of an answer of 1 KB costs.
func BenchmarkBook(b *testing.B) {
	body := []byte(`{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o-mini","choices":[{"index":0,"message":{"role":"assistant","content":"` +
		strings.Repeat("x", 800) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`)
	for name, profile := range map[string]provider.Profile{"known": provider.OpenAI(), "unknown": provider.Generic()} {
		b.Run(name, func(b *testing.B) {
			m, err := NewMeter(nil, nil, nil)
			if err != nil {
				b.Fatal(err)
			}
			var bill Bill
			b.ReportAllocs()
			for i := range b.N {
				m.Book(&bill, fmt.Sprintf("%36d", i), Call{Profile: &profile, Model: "gpt-4o-mini", Payer: "1234", Caller: "key 1"}, body)
			}
		})
	}
}
