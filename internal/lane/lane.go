// Package lane chooses how a call is sent: in a batch, or at once at the provider's
// flex tier. The package also has the counts of the calls of a lane.
package lane

import (
	"context"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/turnaround"
	"github.com/autobatcher/autobatcher/provider"
)

// A Mode is how a caller wants a call to be answered.
type Mode string

// The modes.
const (
	Batch    Mode = "batch"    // in a batch
	Flex     Mode = "flex"     // at once, at the flex tier; in a batch where the provider has no flex tier for the call
	Auto     Mode = "auto"     // in a batch if the batch meets the deadline and holds further calls, or else at the flex tier
	Realtime Mode = "realtime" // at once, at full price
)

// Modes are all modes.
var Modes = []Mode{Batch, Flex, Auto, Realtime}

// assumedTurnaround is how long a batch takes, where no batch of the kind has ended
// yet: nine of ten batches of public providers end within an hour.
const assumedTurnaround = time.Hour

// A Choice is what decides about the lane of a call that the provider answers at its
// flex tier, too.
type Choice struct {
	Mode     Mode
	Kind     turnaround.Kind // of the batches that could answer the call
	Deadline time.Duration   // until the caller needs the answer; 0: none
	Wait     time.Duration   // until a batch is sent, at most
}

// Flex reports whether the call is sent at the flex tier. book has the turnaround times
// that are known.
func (c *Choice) Flex(book *turnaround.Book) bool {
	return c.Mode == Flex || c.Mode == Auto && c.Deadline > 0 && c.Deadline-c.turnaround(book) < c.Wait
}

// Name is how messages name a batch by its completion window and its id at the provider,
// or "" before the provider has named the batch. A call at the flex tier is named as such.
func Name(window, id string) string {
	switch {
	case window == provider.FlexWindow:
		return strings.TrimSpace("the flex call " + id)
	case id == "":
		return "the batch"
	}
	return "batch " + id
}

// UntilFlex is how long a call can wait for its batch until it must be sent at the flex
// tier, to be answered within left: nine of ten calls of the kind are answered in time
// then, or all calls where no time of the kind is known, by the timeout of the provider. 0
// if there is no time for the flex tier.
func UntilFlex(book *turnaround.Book, kind turnaround.Kind, timeout, left time.Duration) time.Duration {
	if t := book.Of(kind); t.Count > 0 {
		timeout = t.P90
	}
	return max(left-timeout, 0)
}

// TimeLeft is how long the caller of a call with a deadline (0: none) and that context
// can wait for the answer; 0 if neither has a deadline.
func TimeLeft(ctx context.Context, deadline time.Duration) time.Duration {
	if at, ok := ctx.Deadline(); ok && (deadline == 0 || time.Until(at) < deadline) {
		return max(time.Until(at), 1)
	}
	return deadline
}

// turnaround is how long nine of ten batches take.
func (c *Choice) turnaround(book *turnaround.Book) time.Duration {
	if t := book.Of(c.Kind); t.Count > 0 {
		return t.P90
	}
	return min(provider.WindowLength(c.Kind.Window), assumedTurnaround)
}
