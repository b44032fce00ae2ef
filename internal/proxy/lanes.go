package proxy

import (
	"net/http"
	"sync/atomic"

	"github.com/autobatcher/autobatcher/internal/callheader"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/reply"
)

// Realtime returns the counts of the calls in real time since New. The Transport counts the
// calls in batches and at the flex tier.
func (p *Proxy) Realtime() lane.RealtimeCalls {
	return lane.RealtimeCalls{Chosen: p.metrics.chosen.calls(), Escalated: p.metrics.escalated.calls()}
}

// A laneCount counts the calls of a lane. The zero laneCount is ready for use. All
// methods may be called concurrently, end also on nil.
type laneCount struct{ waiting, ok, failed atomic.Int64 }

func (l *laneCount) calls() lane.Calls {
	return lane.Calls{Waiting: int(l.waiting.Load()), OK: l.ok.Load(), Failed: l.failed.Load()}
}

// end counts a call that has ended.
func (l *laneCount) end(ok bool) {
	switch {
	case l == nil:
	case ok:
		l.ok.Add(1)
	default:
		l.failed.Add(1)
	}
}

// laneOf returns the lane of a held call that has ended with a response; nil: a batch, or
// the flex tier. Without a response, and with one that the Transport has made, the call
// was perhaps sent in real time and got no answer there.
func (c *heldCall) laneOf(res *http.Response) *laneCount {
	sent := c.p.passLane(c.passage.state.Load())
	if res == nil {
		return sent
	}
	body, own := res.Body.(*reply.Body)
	switch _, marked := res.Body.(undeliveredMarker); {
	case own && body.Receiver != nil && body.Receiver.FromLine():
		return nil
	case marked:
		return sent
	case res.Header.Get(callheader.Mode) == "":
		return &c.p.metrics.chosen
	}
	return &c.p.metrics.escalated
}

// passLane returns the lane of a held call that is sent in real time; nil: it is not sent.
func (p *Proxy) passLane(state passState) *laneCount {
	switch state {
	case passChosen:
		return &p.metrics.chosen
	case passEscalated:
		return &p.metrics.escalated
	}
	return nil
}
