package autobatcher

import (
	"cmp"
	"net/http"

	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/requestbody"
)

// Cost is the estimated cost of successful answers of batches, of calls at the flex
// tier, and of calls that were escalated, from the token counts in the answers and from
// a table of public prices. Each line is counted once, also if its caller has left and
// does not return. Calls that pass through in real time are not counted.
type Cost struct {
	USD     float64 // US dollars, in the tier that is billed: batch, real time or flex
	Savings float64 // US dollars: the price in real time less USD

	InputTokens  int64 // of all answers, with a price or without; includes CachedTokens
	CachedTokens int64
	OutputTokens int64

	Priced   int64 // answers whose price is known
	Unpriced int64 // answers whose price is not known: USD and Savings are without these answers

	OtherTier int64 // of Priced and Unpriced: answers to calls at the flex tier that name another tier; the cost is that of the tier

	PricesDate string // of the built-in prices, as 2006-01-02; "" if no answer has a known price
}

// CostPart is the cost of the answers of one model in one lane for one caller.
type CostPart struct {
	Payer  string // tells accounts apart, as in QueueStats
	Caller string // name of the caller; "" unless a server has named its clients
	Model  string // as in the table of prices; of answers without a known price, as the calls name the model
	Lane   Mode   // ModeBatch, ModeFlex, or ModeRealtime of calls that were escalated; "" in the part without names
	Cost   Cost
}

// BudgetStats is the state of Options.Budget. All fields are zero without a budget.
type BudgetStats struct {
	LimitUSD    float64
	SpentUSD    float64 // since midnight UTC, if the budget is for a day
	ReservedUSD float64 // for calls without an answer
	Refused     int64   // calls, since New
}

// priced is what decides about the price of a call.
func priced(r *request) price.Call {
	return price.Call{Profile: r.at.Profile, Model: cmp.Or(r.model, r.at.DefaultModel), Payer: r.key.account.Name, Caller: r.caller.Name, Flex: r.key.flex()}
}

// plan plans the reservation of a call in the budget, which is not nil. A call whose
// price is not known is refused: a budget could not limit its cost.
func (r *router) plan(c *call, asked *requestbody.Call) error {
	q, known := &c.Request, false
	if c.Reservation, known = r.meter.Plan(price.Call{Profile: q.at.Profile, Model: cmp.Or(q.model, q.at.DefaultModel)}, int64(len(asked.Body))/bytesPerToken+1, asked.MaxOutput, asked.Answers, q.at.NoText); known {
		return nil
	}
	r.meter.Budget().Refused()
	return &reply.RequestError{Status: http.StatusPaymentRequired, Code: CodePriceUnknown, Param: "model", Message: "a budget is set, and " + price.Unknown(q.at.Profile, q.model) +
		"; or, if callers may choose the price, send this call with the header Autobatcher-Mode: realtime, which the budget does not limit"}
}

// exhausted is the answer for a call that does not fit into the budget. c may be nil.
func (r *router) exhausted(err error, c *call) *reply.RequestError {
	if c == nil || c.Earlier == nil { // else the call stays in its batch
		r.meter.Budget().Refused()
	}
	return &reply.RequestError{Status: http.StatusPaymentRequired, Code: CodeBudgetExhausted, Message: err.Error() +
		" (estimates); retry when calls have been answered or the budget begins anew, name a smaller max_tokens, or raise the budget"}
}
