package realtime

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/ratelimit"
)

// A Budget limits the calls that are sent in real time: their number in an hour, and
// their cost. Callers with names of their own have numbers of their own, so that no
// caller can use up the number of another. A Budget is safe for concurrent use.
type Budget struct {
	number *ratelimit.Hourlies
	meter  *price.Meter
	log    *slog.Logger
}

// NewBudget returns a Budget of limit calls in an hour, or without a limit if limit is
// negative, and of what the meter's budget allows.
func NewBudget(limit int, m *price.Meter, log *slog.Logger) *Budget {
	return &Budget{number: ratelimit.NewHourlies(limit), meter: m, log: log}
}

// Take takes a call that may cost usd, in US dollars, from the Budget. The call that is
// sent must end spending. If the Budget does not allow the call, ok is false, and the log
// says why.
func (b *Budget) Take(by *caller.Caller, asked price.Call, usd float64, reason string) (spending *price.RealtimeCall, ok bool) {
	spending, err := b.meter.Begin(asked, usd)
	if err == nil {
		if wait, ok := b.number.Take(by.Budget); !ok {
			err = fmt.Errorf("the hour's budget is used up; again in %v", wait)
		} else if by.Realtime != nil && !by.Realtime() {
			err = errors.New("too many requests are sent in real time already")
		}
	}
	if err != nil {
		spending.End(false)
		b.log.Warn("call not escalated: "+err.Error(), "caller", by.Name, "reason", reason)
		return nil, false
	}
	return spending, true
}
