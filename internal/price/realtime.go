package price

import (
	"cmp"
	"fmt"
	"strconv"
	"sync"

	"github.com/autobatcher/autobatcher/internal/budget"
	"github.com/autobatcher/autobatcher/internal/usage"
	"github.com/autobatcher/autobatcher/provider"
)

const (
	// AssumedOutput is the number of tokens that is reserved for an answer to a call
	// that names no limit.
	AssumedOutput = 1000

	// mostOutput bounds the limits that calls name, against overflow.
	mostOutput = 1e9
)

// MostOutput returns how many tokens the answer to a call may have: output tokens (0: the
// call names no limit) for each of the answers. With noText, the answers have no text and
// so no output, as those of embeddings.
func MostOutput(output, answers int64, noText bool) int64 {
	if noText {
		return 0
	}
	return min(cmp.Or(max(output, 0), AssumedOutput), mostOutput) * min(answers, mostOutput)
}

// Plan plans the reservation of a call: input tokens, and for each of the answers
// output tokens (0: the call names no limit). noText is as in MostOutput. known is
// false if the model has no price.
func (m *Meter) Plan(c Call, input, output, answers int64, noText bool) (r *budget.Reservation, known bool) {
	usd, realtime, known := m.Estimate(c, usage.Tokens{Input: input, Output: MostOutput(output, answers, noText)})
	if !known {
		return nil, false
	}
	return m.budget.Plan(usd, realtime), true
}

// Estimate returns what tokens of a call's model cost in a batch and in real time, in US
// dollars; known is false if the price is not known.
func (m *Meter) Estimate(c Call, tokens usage.Tokens) (batch, realtime float64, known bool) {
	price, _, known := m.table.find(c.Profile.Name, c.Model)
	if !known {
		return 0, 0, false
	}
	return price.cost(tokens, Batch, c.Profile)
}

// Unknown says that the price of a model is not known, and what to do.
func Unknown(p *provider.Profile, model string) string {
	about := ""
	if providers[p.Name] == "azure" {
		about = ": at Azure, calls name a deployment, which has the price of its model"
	}
	return fmt.Sprintf(`the price of the model %s is not known%s. Add {%[1]s: {"input_cost_per_token": …, "output_cost_per_token": …}}, with the prices in real time in US dollars, `+
		"to the operator's price map (the file of --prices, Options.Prices)", strconv.Quote(model), about)
}

// A RealtimeCall is a call that is answered in real time. Its cost is reserved
// until End. Scan and End may be called concurrently, as the Read and Close of a body.
type RealtimeCall struct {
	m           *Meter
	call        Call
	reservation *budget.Reservation

	mu      sync.Mutex
	scanner usage.Scanner
	ended   bool
}

// Begin begins a call that may cost usd in real time, unless the amount does not fit into
// the budget: then the error is a *budget.Exhausted.
func (m *Meter) Begin(c Call, usd float64) (*RealtimeCall, error) {
	r := &RealtimeCall{m: m, call: c, reservation: m.budget.Plan(usd, usd), scanner: usage.Scanner{Names: &usage.Names{}}}
	return r, r.reservation.Take()
}

// Scan reads the next piece of the answer. After End, Scan does nothing.
func (r *RealtimeCall) Scan(b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.scanner.Scan(b)
	}
}

// End books the cost of the answer, if the answer is paid for. Only the first call
// has an effect, and none on nil.
func (r *RealtimeCall) End(paid bool) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.ended = true
	if paid && !r.m.bookRealtime(r.call, &r.scanner) {
		r.reservation.Spend() // the answer names no tokens
	}
	r.reservation.Release()
}
