// Package price estimates what answers cost, from the token counts in the answers
// and from a table of public prices.
//
// The built-in table comes from LiteLLM's public price map (LICENSE-litellm.txt);
// the program in the directory generate makes the table. All functions and
// methods may be called concurrently, except those of a Bill.
package price

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/autobatcher/autobatcher/internal/usage"
	"github.com/autobatcher/autobatcher/provider"
)

//go:generate go run ./generate -o prices.tsv

// prices is the built-in table. The first line is the date; each further line has
// provider, model and the prices of a Price, separated by tabs.
//
//go:embed prices.tsv
var prices string

// None is a price that is not known.
const None = -1

// Rates are prices in US dollars per token. None: no price is known.
type Rates struct {
	Input, Cached, Output float64 // Cached is input that the provider's cache had
}

// A Tier is a class of service that has prices of its own.
type Tier int

// The tiers.
const (
	Realtime Tier = iota
	Batch
	Flex
	Priority
	tiers
)

// suffixes are the ends of the names of a tier's prices in LiteLLM's map.
var suffixes = [tiers]string{"", "_batches", "_flex", "_priority"}

// A Price is what a model costs in each tier.
type Price [tiers]Rates

// A Key names a model of a provider, as LiteLLM names the provider. Provider ""
// means every provider that has no entry of its own.
type Key struct{ Provider, Model string }

// A Table holds prices by model. A Table must not be modified.
type Table struct {
	Date    string // of the built-in prices, as 2006-01-02
	entries map[Key]Price
}

// providers maps the names of profiles to LiteLLM's names.
var providers = map[string]string{
	"openai": "openai", "azure": "azure", "azure-legacy": "azure", "groq": "groq", "together": "together_ai",
	"nebius": "nebius", "deepinfra": "deepinfra", "moonshot": "moonshot", "zhipu": "zai", "dashscope": "dashscope",
}

// HasProfile reports whether a profile exists for a provider, as LiteLLM names
// the provider.
func HasProfile(provider string) bool {
	for _, name := range providers {
		if name == provider {
			return true
		}
	}
	return false
}

// BuiltIn returns the built-in table.
var BuiltIn = sync.OnceValue(func() *Table {
	lines := strings.Split(strings.TrimSuffix(prices, "\n"), "\n")
	t := &Table{Date: lines[0], entries: make(map[Key]Price, len(lines))}
	for _, l := range lines[1:] {
		f := strings.Split(l, "\t")
		var p Price
		for i, field := range p.fields() {
			*field = None
			if 2+i < len(f) && f[2+i] != "" {
				*field, _ = strconv.ParseFloat(f[2+i], 64) // a test checks the table
			}
		}
		t.entries[Key{f[0], f[1]}] = p
	}
	return t
})

// fields returns the prices in the order of the built-in table.
func (p *Price) fields() []*float64 {
	var all []*float64
	for i := range p {
		all = append(all, &p[i].Input, &p[i].Cached, &p[i].Output)
	}
	return all
}

// Row returns the line of the built-in table for p, without a line break. Unknown
// prices at the end are left out.
func (p *Price) Row(k Key) string {
	row := k.Provider + "\t" + k.Model
	for _, f := range p.fields() {
		row += "\t"
		if *f != None {
			row += strconv.FormatFloat(*f, 'g', -1, 64)
		}
	}
	return strings.TrimRight(row, "\t")
}

// With returns the table with the prices of a map in LiteLLM's format. The prices
// of the map take precedence. An entry without a provider is valid for every provider
// for which the map has no other entry of the model. An entry of a provider without a
// profile is valid where nothing else is known: of several, the first provider's.
func (t *Table) With(litellm []byte) (*Table, error) {
	more, err := Parse(litellm)
	if err != nil {
		return nil, err
	}
	own := &Table{Date: t.Date, entries: maps.Clone(t.entries)}
	backwards := func(a, b Key) int { return strings.Compare(b.Provider, a.Provider) } // the last entry counts
	for _, k := range slices.SortedFunc(maps.Keys(more), backwards) {
		p := more[k]
		if k.Provider == "" {
			own.forget(k.Model, more)
		}
		if !HasProfile(k.Provider) {
			k = Key{"", k.Model}
		}
		own.entries[k] = p
	}
	return own, nil
}

// forget removes the entries of a model, except those of keep.
func (t *Table) forget(model string, keep map[Key]Price) {
	for _, provider := range providers {
		k := Key{provider, model}
		if _, kept := keep[k]; !kept {
			delete(t.entries, k)
		}
	}
}

// Parse reads a map in LiteLLM's format. Models that are not priced by the token
// are left out, such as models that make images: their tokens have several prices.
func Parse(litellm []byte) (map[Key]Price, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(litellm, &raw); err != nil {
		return nil, fmt.Errorf("the price map is no JSON object: %w", err)
	}
	parsed := make(map[Key]Price)
	for name, value := range raw {
		if name == "sample_spec" {
			continue // documents the format
		}
		var about struct {
			Provider string `json:"litellm_provider"`
			Mode     string `json:"mode"`
		}
		var values map[string]json.RawMessage
		if err := json.Unmarshal(value, &about); err != nil {
			return nil, fmt.Errorf("the price of %q: %w", name, err)
		}
		if err := json.Unmarshal(value, &values); err != nil {
			return nil, fmt.Errorf("the price of %q: %w", name, err)
		}
		switch about.Mode {
		case "", "chat", "responses", "embedding", "completion", "moderation":
		default:
			continue
		}
		p, err := parsePrice(values)
		if err != nil {
			return nil, fmt.Errorf("the price of %q: %w", name, err)
		}
		if p[Realtime].Input == None || p[Realtime].Output == None && about.Mode != "embedding" {
			continue
		}
		if about.Provider == "text-completion-openai" {
			about.Provider = "openai" // the map separates OpenAI's endpoints
		}
		parsed[Key{about.Provider, strings.TrimPrefix(name, about.Provider+"/")}] = p
	}
	return parsed, nil
}

// parsePrice reads the prices of one model.
func parsePrice(values map[string]json.RawMessage) (p Price, err error) {
	for tier := range p {
		for name, to := range map[string]*float64{
			"input_cost_per_token":        &p[tier].Input,
			"cache_read_input_token_cost": &p[tier].Cached,
			"output_cost_per_token":       &p[tier].Output,
		} {
			*to = None
			from, ok := values[name+suffixes[tier]]
			if !ok || string(from) == "null" {
				continue
			}
			if err := json.Unmarshal(from, to); err != nil {
				return p, err
			}
			if *to < 0 {
				return p, fmt.Errorf("%s is negative", name+suffixes[tier])
			}
		}
	}
	return p, nil
}

// find returns the price of a model at the provider with the profile's name, and
// the name of the model in the table.
func (t *Table) find(profile, model string) (p Price, name string, known bool) {
	if model == "" {
		return p, "", false
	}
	if provider, ok := providers[profile]; ok {
		if p, ok := t.entries[Key{provider, model}]; ok {
			return p, model, true
		}
		if parts := strings.SplitN(model, ":", 3); len(parts) == 3 && parts[0] == "ft" { // "ft:model:organization::id"
			base := parts[0] + ":" + parts[1]
			if p, ok := t.entries[Key{provider, base}]; ok {
				return p, base, true
			}
		}
	}
	p, known = t.entries[Key{"", model}]
	return p, model, known
}

// cost returns the cost of u in US dollars in a tier and in real time. known is
// false if the tier has no price. Where the table has no price for batches, the
// discount of the profile applies.
func (p *Price) cost(u usage.Tokens, tier Tier, profile *provider.Profile) (usd, realtime float64, known bool) {
	full := p[Realtime].or(Rates{})
	switch {
	case tier == Realtime:
		usd = full.of(u)
	case tier == Batch:
		share := 1 - profile.BatchDiscount
		usd = p[Batch].or(Rates{Input: full.Input * share, Output: full.Output * share}).of(u)
	case p[tier].Input == None:
		return 0, 0, false
	default:
		usd = p[tier].or(Rates{}).of(u)
	}
	return usd, full.of(u), true
}

// or returns the rates with other prices for input and output whose price is not
// known. Cached input without a price costs as much as input.
func (r Rates) or(other Rates) Rates {
	r.Input, r.Output = or(r.Input, other.Input), or(r.Output, other.Output) // embeddings have no output
	r.Cached = or(r.Cached, r.Input)
	return r
}

// of returns the cost of u in US dollars. Cached tokens are counted once.
func (r Rates) of(u usage.Tokens) float64 {
	return float64(u.Input-u.Cached)*r.Input + float64(u.Cached)*r.Cached + float64(u.Output)*r.Output
}

func or(price, other float64) float64 {
	if price == None {
		return other
	}
	return price
}
