package price

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/autobatcher/autobatcher/internal/budget"
	"github.com/autobatcher/autobatcher/internal/usage"
	"github.com/autobatcher/autobatcher/provider"
)

// A Total is the estimated cost of answers.
type Total struct {
	USD     float64 // in the tier that is billed
	Savings float64 // the price in real time less USD

	InputTokens  int64 // of answers with a price; includes CachedTokens
	CachedTokens int64
	OutputTokens int64

	Priced   int64 // answers whose price is known
	Unpriced int64 // answers whose price is not known: USD and Savings are without these answers

	PricesDate string // of the built-in prices, as 2006-01-02; "" if no answer has a known price
}

func (t *Total) add(o *Total) {
	t.USD += o.USD
	t.Savings += o.Savings
	t.InputTokens += o.InputTokens
	t.CachedTokens += o.CachedTokens
	t.OutputTokens += o.OutputTokens
	t.Priced += o.Priced
	t.Unpriced += o.Unpriced
	t.PricesDate = cmp.Or(o.PricesDate, t.PricesDate)
}

// A Call is what decides about the price of a call and who pays.
type Call struct {
	Profile *provider.Profile
	Model   string // that the call names
	Payer   string // name of the account
	Caller  string // name of the caller; "" without a name
	Flex    bool   // the call was sent at the flex tier: the answer names the tier that is billed
}

// A Part is the cost of the answers of one model for one caller.
type Part struct {
	Payer  string // name of the account
	Caller string // name of the caller; "" without a name
	Model  string // as the table names the model; of answers without a price, as the calls name the model

	Total
}

// A partKey identifies a Part.
type partKey struct{ payer, caller, model string }

// maxParts bounds the Parts: the names of models come from callers. Answers
// beyond the bound are in the Part without names.
const maxParts = 1000

// A Meter adds up the cost of all answers, and spends the budget.
type Meter struct {
	table  *Table
	budget *budget.Budget

	mu    sync.Mutex
	total Total
	parts map[partKey]*Total
}

// NewMeter returns a Meter with the prices of a map in LiteLLM's format, before
// the built-in prices. An empty map means the built-in prices. b may be nil.
func NewMeter(litellm []byte, b *budget.Budget) (*Meter, error) {
	table := BuiltIn()
	if len(litellm) > 0 {
		var err error
		if table, err = table.With(litellm); err != nil {
			return nil, err
		}
	}
	return &Meter{table: table, budget: b, parts: make(map[partKey]*Total)}, nil
}

// Budget returns the budget that the Meter spends, or nil.
func (m *Meter) Budget() *budget.Budget { return m.budget }

// Total returns the cost of all answers so far.
func (m *Meter) Total() Total {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}

// Parts returns the cost of all answers so far by account, caller and model,
// sorted.
func (m *Meter) Parts() []Part {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Part, 0, len(m.parts))
	for k, t := range m.parts {
		all = append(all, Part{k.payer, k.caller, k.model, *t})
	}
	slices.SortFunc(all, func(a, b Part) int {
		return cmp.Or(cmp.Compare(a.Payer, b.Payer), cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.Model, b.Model))
	})
	return all
}

// A Bill is the cost of one batch. The zero Bill is empty. A Bill is not safe for
// concurrent use.
type Bill struct {
	Total

	booked map[uint64]struct{} // hashes of the ids of lines: results may be read again
}

// Amounts returns the cost and the savings as decimal numbers, "" if no price is
// known.
func (b *Bill) Amounts() (cost, savings string) {
	if b.Priced == 0 {
		return "", ""
	}
	return Decimal(b.USD), Decimal(b.Savings)
}

// seed is for Bill.booked: a hash of 64 bits needs less memory than an id.
var seed = maphash.MakeSeed()

// once reports whether a line was not booked yet.
func (b *Bill) once(id string) bool {
	hash := maphash.String(seed, id)
	if _, again := b.booked[hash]; again {
		return false
	}
	if b.booked == nil {
		b.booked = make(map[uint64]struct{})
	}
	b.booked[hash] = struct{}{}
	return true
}

// Book adds the successful answer of a line to the bill and to the total, unless
// the line was booked already. Book returns the cost in US dollars as a decimal
// number, or "" if the price is not known.
func (m *Meter) Book(b *Bill, id string, c Call, body []byte) string {
	price, model, known := m.answered(c, body)
	var u usage.Tokens
	if known { // the scan of the body costs time
		u = usage.Of(body)
	}
	tier, named := Batch, true
	if c.Flex {
		tier, named = tierOf(usage.Tier(body))
	}
	t := Total{Unpriced: 1}
	if named {
		t = m.totalOf(price, u, tier, c.Profile)
	}
	if b.once(id) {
		b.add(&t)
		m.add(c, cmp.Or(model, c.Model), &t)
	}
	if t.Priced == 0 {
		return ""
	}
	return Decimal(t.USD)
}

// bookRealtime adds a successful answer in real time to the total, and reports
// whether its price is known. s has scanned the body and the names.
func (m *Meter) bookRealtime(c Call, s *usage.Scanner) bool {
	price, model, known := m.table.find(c.Profile.Name, s.Names.Model)
	if !known {
		price, model, known = m.table.find(c.Profile.Name, c.Model)
	}
	t := Total{Unpriced: 1}
	if tier, named := tierOf(s.Names.Tier); known && named {
		t = m.totalOf(price, s.Tokens, tier, c.Profile)
	}
	m.add(c, cmp.Or(model, c.Model), &t)
	return t.Priced > 0
}

// tierOf returns the tier that a provider names in "service_tier".
func tierOf(name string) (Tier, bool) {
	switch name {
	case "", "auto", "default", "standard", "on_demand":
		return Realtime, true
	case "flex":
		return Flex, true
	case "priority":
		return Priority, true
	}
	return 0, false
}

// totalOf returns the cost of one answer.
func (m *Meter) totalOf(price Price, u usage.Tokens, tier Tier, profile *provider.Profile) Total {
	usd, realtime, known := price.cost(u, tier, profile)
	if u == (usage.Tokens{}) || !known {
		return Total{Unpriced: 1}
	}
	return Total{
		USD: usd, Savings: realtime - usd, Priced: 1, PricesDate: m.table.Date,
		InputTokens: u.Input, CachedTokens: u.Cached, OutputTokens: u.Output,
	}
}

// add adds the cost of one answer, and spends the budget.
func (m *Meter) add(c Call, model string, t *Total) {
	m.budget.Spend(t.USD)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total.add(t)
	k := partKey{c.Payer, c.Caller, model}
	part := m.parts[k]
	if part == nil && len(m.parts) >= maxParts {
		k = partKey{}
		part = m.parts[k]
	}
	if part == nil {
		part = new(Total)
		m.parts[k] = part
	}
	part.add(t)
}

// answered returns the price of the model that answered, or else of the model
// that the call named: at Azure, the call names a deployment.
func (m *Meter) answered(c Call, body []byte) (p Price, model string, known bool) {
	if _, listed := providers[c.Profile.Name]; listed { // else without a scan of the body
		if p, model, known = m.table.find(c.Profile.Name, usage.Model(body)); known {
			return p, model, true
		}
	}
	return m.table.find(c.Profile.Name, c.Model)
}

// Decimal formats US dollars without an exponent, to ten places.
func Decimal(usd float64) string {
	return strings.TrimSuffix(strings.TrimRight(strconv.FormatFloat(usd, 'f', 10, 64), "0"), ".")
}
