package dashboard

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/price"
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

// A total is the cost of the OK answers of a lane, of a model or of a key.
type total struct {
	Name string `json:"name"`
	cost
}

// maxTotals bounds the totals of each kind. The last total has what is beyond.
const maxTotals = 50

// totals returns the costs by name, the largest first.
func totals(parts []autobatcher.CostPart, name func(autobatcher.CostPart) string) []total {
	sums := make(map[string]*price.Total)
	for _, p := range parts {
		key, part := clip(name(p)), price.Total(p.Cost)
		if sums[key] == nil {
			sums[key] = new(price.Total)
		}
		sums[key].Add(&part)
	}
	names := slices.SortedFunc(maps.Keys(sums), func(x, y string) int {
		return cmp.Or(cmp.Compare(sums[y].USD, sums[x].USD), cmp.Compare(sums[y].Unpriced, sums[x].Unpriced), cmp.Compare(x, y))
	})
	rest := new(price.Total)
	if len(names) > maxTotals {
		for _, n := range names[maxTotals-1:] {
			rest.Add(sums[n])
		}
		names = names[:maxTotals-1]
	}
	all := make([]total, 0, len(names)+1)
	for _, n := range names {
		all = append(all, total{n, *toCost(autobatcher.Cost(*sums[n]))})
	}
	if *rest != (price.Total{}) {
		all = append(all, total{"all others", *toCost(autobatcher.Cost(*rest))})
	}
	return all
}

// laneTotals returns the costs by lane, the largest first, and none if all are of one
// lane: these are the cost of all answers.
func laneTotals(parts []autobatcher.CostPart) []total {
	all := totals(parts, laneOf)
	if len(all) < 2 {
		return []total{}
	}
	return all
}

func laneOf(p autobatcher.CostPart) string {
	switch p.Lane {
	case autobatcher.ModeBatch:
		return inBatches
	case autobatcher.ModeFlex:
		return atFlex
	case autobatcher.ModeRealtime:
		return escalated
	}
	return "unknown"
}

func modelOf(p autobatcher.CostPart) string { return cmp.Or(p.Model, "unknown") }

// keyOf names the account, and the client key if the proxy has client keys.
func keyOf(p autobatcher.CostPart) string {
	return cmp.Or(strings.Trim(p.Payer+" · "+p.Caller, " ·"), "unknown")
}
