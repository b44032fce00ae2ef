package dashboard

import (
	"cmp"
	"slices"
	"strings"

	"github.com/autobatcher/autobatcher"
)

// A cost is an estimate, in US dollars.
type cost struct {
	USD      float64 `json:"usd"`
	Savings  float64 `json:"savings"`
	Input    int64   `json:"input"`    // tokens of all answers, with cached tokens
	Cached   int64   `json:"cached"`   // tokens
	Output   int64   `json:"output"`   // tokens
	Priced   int64   `json:"priced"`   // number of answers whose price is known
	Unpriced int64   `json:"unpriced"` // number of answers that the estimate is without
	Date     string  `json:"date"`     // of the prices
}

// newCost returns nil if no price is known.
func newCost(c autobatcher.Cost) *cost {
	if c.Priced == 0 {
		return nil
	}
	return toCost(c)
}

func toCost(c autobatcher.Cost) *cost {
	return &cost{c.USD, c.Savings, c.InputTokens, c.CachedTokens, c.OutputTokens, c.Priced, c.Unpriced, c.PricesDate}
}

func (c *cost) add(o autobatcher.Cost) {
	c.USD += o.USD
	c.Savings += o.Savings
	c.Input += o.InputTokens
	c.Cached += o.CachedTokens
	c.Output += o.OutputTokens
	c.Priced += o.Priced
	c.Unpriced += o.Unpriced
	c.Date = cmp.Or(c.Date, o.PricesDate)
}

// A total is the cost of the OK answers of a model or of a key.
type total struct {
	Name string `json:"name"`
	cost
}

// maxTotals bounds the totals of each kind. The last total has what is beyond.
const maxTotals = 50

// totals returns the costs by name, the largest first.
func totals(parts []autobatcher.CostPart, name func(autobatcher.CostPart) string) []total {
	sums := make(map[string]*cost)
	for _, p := range parts {
		key := clip(name(p))
		if sums[key] == nil {
			sums[key] = &cost{}
		}
		sums[key].add(p.Cost)
	}
	all := make([]total, 0, len(sums))
	for key, c := range sums {
		all = append(all, total{key, *c})
	}
	slices.SortFunc(all, func(x, y total) int {
		return cmp.Or(cmp.Compare(y.USD, x.USD), cmp.Compare(y.Unpriced, x.Unpriced), cmp.Compare(x.Name, y.Name))
	})
	if len(all) <= maxTotals {
		return all
	}
	rest := total{Name: "all others"}
	for _, t := range all[maxTotals-1:] {
		rest.add(autobatcher.Cost{
			USD: t.USD, Savings: t.Savings, InputTokens: t.Input, CachedTokens: t.Cached, OutputTokens: t.Output,
			Priced: t.Priced, Unpriced: t.Unpriced, PricesDate: t.Date,
		})
	}
	return append(all[:maxTotals-1:maxTotals-1], rest)
}

func modelOf(p autobatcher.CostPart) string { return cmp.Or(p.Model, "unknown") }

// keyOf names the account, and the client key if the proxy has client keys.
func keyOf(p autobatcher.CostPart) string {
	return cmp.Or(strings.Trim(p.Payer+" · "+p.Caller, " ·"), "unknown")
}
