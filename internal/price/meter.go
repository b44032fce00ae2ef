package price

import (
	"cmp"
	"hash/maphash"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/autobatcher/autobatcher/internal/budget"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/usage"
	"github.com/autobatcher/autobatcher/provider"
)

// A Total is the estimated cost of answers.
type Total struct {
	USD     float64 // in the tier that is billed
	Savings float64 // the price in real time less USD

	InputTokens  int64 // includes CachedTokens
	CachedTokens int64
	OutputTokens int64

	Priced   int64 // answers whose price is known
	Unpriced int64 // answers whose price is not known: USD and Savings are without these answers

	OtherTier int64 // of Priced and Unpriced: answers to calls at the flex tier that name another tier

	PricesDate string // of the built-in prices, as 2006-01-02; "" if no answer has a known price
}

// Add adds the cost of other answers.
func (t *Total) Add(o *Total) {
	t.USD += o.USD
	t.Savings += o.Savings
	t.InputTokens += o.InputTokens
	t.CachedTokens += o.CachedTokens
	t.OutputTokens += o.OutputTokens
	t.Priced += o.Priced
	t.Unpriced += o.Unpriced
	t.OtherTier += o.OtherTier
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

// A Part is the cost of the answers of one model in one lane for one caller.
type Part struct {
	Payer  string // name of the account
	Caller string // name of the caller; "" without a name
	Model  string // as the table names the model; of answers without a price, as the calls name the model

	// Lane is lane.Batch, lane.Flex, or lane.Realtime of calls that were escalated; ""
	// in the Part without names.
	Lane lane.Mode

	Total
}

// A partKey identifies a Part.
type partKey struct {
	payer, caller, model string
	lane                 lane.Mode
}

// maxParts bounds the Parts: the names of models come from callers. Answers
// beyond the bound are in the Part without names.
const maxParts = 1000

// A Meter adds up the cost of all answers, and spends the budget.
type Meter struct {
	table  *Table
	budget *budget.Budget
	others otherTiers

	mu        sync.Mutex
	total     Total
	parts     map[partKey]*Total
	unclaimed recent // lines without callers that are in the total
}

// maxRecent bounds what a recent holds.
const maxRecent = 100_000

// A recent is a set of hashes, which forgets the oldest when it has more than maxRecent.
type recent struct{ now, before map[uint64]struct{} }

func (r *recent) add(hash uint64) {
	if len(r.now) >= maxRecent/2 || r.now == nil {
		r.now, r.before = make(map[uint64]struct{}), r.now
	}
	r.now[hash] = struct{}{}
}

// remove removes a hash, and reports whether the set had the hash.
func (r *recent) remove(hash uint64) bool {
	_, now := r.now[hash]
	_, before := r.before[hash]
	delete(r.now, hash)
	delete(r.before, hash)
	return now || before
}

// NewMeter returns a Meter with the prices of a map in LiteLLM's format, before
// the built-in prices. An empty map means the built-in prices. b may be nil. log gets a
// warning for each model whose calls at the flex tier are billed at another tier; nil:
// nothing is logged.
func NewMeter(litellm []byte, b *budget.Budget, log *slog.Logger) (*Meter, error) {
	table := BuiltIn()
	if len(litellm) > 0 {
		var err error
		if table, err = table.With(litellm); err != nil {
			return nil, err
		}
	}
	return &Meter{table: table, budget: b, others: otherTiers{log: cmp.Or(log, slog.New(slog.DiscardHandler))}, parts: make(map[partKey]*Total)}, nil
}

// Budget returns the budget that the Meter spends, or nil.
func (m *Meter) Budget() *budget.Budget { return m.budget }

// Total returns the cost of all answers so far.
func (m *Meter) Total() Total {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}

// Parts returns the cost of all answers so far by account, caller, model and lane,
// sorted.
func (m *Meter) Parts() []Part {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Part, 0, len(m.parts))
	for k, t := range m.parts {
		all = append(all, Part{k.payer, k.caller, k.model, k.lane, *t})
	}
	slices.SortFunc(all, func(a, b Part) int {
		return cmp.Or(cmp.Compare(a.Payer, b.Payer), cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.Model, b.Model), cmp.Compare(a.Lane, b.Lane))
	})
	return all
}

// A Bill is the cost of one batch. The zero Bill is empty. A Bill is not safe for
// concurrent use.
type Bill struct {
	Total

	booked  map[uint64]bool // hashes of the ids of lines, since results may be read again; true: in the total of the Meter
	earlier float64         // the cost that the journal has, in US dollars
}

// Earlier notes the cost of the batch that the journal has from another process, or from
// an earlier reading of the results: a decimal number, "" if not known.
func (b *Bill) Earlier(cost string) { b.earlier, _ = strconv.ParseFloat(cost, 64) }

// Amounts returns the cost and the savings as decimal numbers. Both are "" if no price is
// known, and if the journal has the cost of more results.
func (b *Bill) Amounts() (cost, savings string) {
	if b.Priced == 0 || b.USD < b.earlier {
		return "", ""
	}
	return Decimal(b.USD), Decimal(b.Savings)
}

// seed is for Bill.booked: a hash of 64 bits needs less memory than an id.
var seed = maphash.MakeSeed()

// Book adds the successful answer of a line, which a caller gets, to the bill and to the
// total, unless the line was added already. Book returns the cost in US dollars as a
// decimal number, or "" if the price is not known.
func (m *Meter) Book(b *Bill, id string, c Call, body []byte) string {
	return m.book(b, id, c, body, func(hash uint64) bool { return !m.unclaimed.remove(hash) })
}

// BookUnclaimed is Book for a line without a caller: the line is paid for all the same.
// Without total, the line is added to the bill only. If a caller gets the answer later,
// from another reading of the results, the line is not added to the total again.
func (m *Meter) BookUnclaimed(b *Bill, id string, c Call, body []byte, total bool) string {
	return m.book(b, id, c, body, func(hash uint64) bool {
		if total {
			m.unclaimed.add(hash)
		}
		return total
	})
}

// book adds an answer. count is asked once whether the line is added to the total, with
// m.mu held.
func (m *Meter) book(b *Bill, id string, c Call, body []byte, count func(hash uint64) bool) string {
	price, model, known := m.answered(c, body)
	u, tier, named, name, in := usage.Of(body), Batch, true, "", lane.Batch
	if c.Flex {
		in = lane.Flex
		name = usage.Tier(body)
		tier, named = c.tier(name)
	}
	t := Total{Unpriced: 1}
	t.count(u)
	if known && named {
		t = m.totalOf(price, u, tier, c.Profile)
	}
	if name != "" && tier != Flex {
		t.OtherTier = 1
	}
	spent := t.USD
	if known && t.Priced == 0 { // at a tier without a known price: at most the price in real time
		spent, _, _ = price.cost(u, Realtime, c.Profile)
	}
	hash := maphash.String(seed, id)
	counted, billed := b.booked[hash]
	if !billed {
		b.Add(&t)
	}
	if !counted {
		m.mu.Lock()
		counted = count(hash)
		m.mu.Unlock()
		if counted {
			m.add(partKey{c.Payer, c.Caller, cmp.Or(model, c.Model), in}, &t, spent)
			m.others.note(c, model, &t, name)
		}
	}
	if b.booked == nil {
		b.booked = make(map[uint64]bool)
	}
	b.booked[hash] = counted
	if t.Priced == 0 {
		return ""
	}
	return Decimal(t.USD)
}

// bookRealtime adds a successful answer to an escalated call to the total, and reports
// whether its price is known. s has scanned the body and the names.
func (m *Meter) bookRealtime(c Call, s *usage.Scanner) bool {
	price, model, known := m.table.find(c.Profile.Name, s.Names.Model)
	if !known {
		price, model, known = m.table.find(c.Profile.Name, c.Model)
	}
	t := Total{Unpriced: 1}
	if tier, named := tierOf(s.Names.Tier); known && named {
		t = m.totalOf(price, s.Tokens, tier, c.Profile)
	} else {
		t.count(s.Tokens)
	}
	m.add(partKey{c.Payer, c.Caller, cmp.Or(model, c.Model), lane.Realtime}, &t, t.USD)
	return t.Priced > 0
}

// tier returns the tier that the provider names in "service_tier" of the answer to a
// call at the flex tier.
func (c *Call) tier(name string) (Tier, bool) {
	if name != "" && name == c.Profile.FlexTier {
		return Flex, true
	}
	return tierOf(name)
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
	t := Total{Unpriced: 1}
	if usd, realtime, known := price.cost(u, tier, profile); known && (u != (usage.Tokens{}) || price.free()) {
		t = Total{USD: usd, Savings: realtime - usd, Priced: 1, PricesDate: m.table.Date}
	}
	t.count(u)
	return t
}

// free reports whether a model costs nothing, such as OpenAI's moderations, whose answers
// name no tokens.
func (p *Price) free() bool { return p[Realtime].Input == 0 && p[Realtime].Output == 0 }

func (t *Total) count(u usage.Tokens) {
	t.InputTokens, t.CachedTokens, t.OutputTokens = u.Input, u.Cached, u.Output
}

// add adds the cost of one answer, and takes spent from the budget.
func (m *Meter) add(k partKey, t *Total, spent float64) {
	m.budget.Spend(spent)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total.Add(t)
	part := m.parts[k]
	if part == nil && len(m.parts) >= maxParts {
		k = partKey{}
		part = m.parts[k]
	}
	if part == nil {
		part = new(Total)
		m.parts[k] = part
	}
	part.Add(t)
}

// answered returns the price of the model that answered, or else of the model
// that the call named: at Azure, the call names a deployment. The name of a call that is
// not known is "".
func (m *Meter) answered(c Call, body []byte) (p Price, model string, known bool) {
	if _, listed := providers[c.Profile.Name]; listed || c.Model == "" { // else without a scan of the body
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
