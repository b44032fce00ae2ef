package results

import (
	"context"
	"errors"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/retry"
)

// timeouts bound the time that ReadEnded spends on each fault of the provider. Results that
// the provider promised may become visible late. Results whose download breaks
// are paid for and kept for weeks: callers that waited a day for their batch had
// better wait another day than pay again.
var timeouts = map[Verdict]time.Duration{
	Complete:  2 * time.Minute,
	Missing:   10 * time.Minute,
	Refused:   10 * time.Minute,
	Truncated: 24 * time.Hour,
}

// lateLooks is the number of looks at a cancelled batch whose provider may add
// results of requests that were under way when the batch was cancelled, if the
// provider says that the results are complete.
const lateLooks = 3

// An Ended is a batch that has ended at the provider.
type Ended struct {
	Status      backend.Status // refreshed by ReadEnded, but for its Phase and its Word
	LateResults bool           // results may be added after the batch was cancelled
	Waiting     func() int     // returns the number of lines that wait for a result
	Deliver     Deliver
}

// ReadEnded reads the results of a batch that has ended, as often as that may
// help: until no line waits for a result, the provider itself says that no more
// results exist, or too much time was spent on a fault. Verdict and Err say
// how the last look went. The error is the cause of ctx.
func (r *Reader) ReadEnded(ctx context.Context, e *Ended) error {
	spent := make(map[Verdict]time.Duration)
	for attempt := 1; ; attempt++ {
		began := time.Now()
		err := r.ReadAll(ctx, attempt > 1, e.Waiting, e.Deliver)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil && e.Waiting() > 0 && r.empty(e) {
			err, r.err = errEmpty, errEmpty
		}
		met, wait := r.Verdict(), retry.Backoff(attempt)
		spent[met] += wait
		if err != nil {
			spent[met] += time.Since(began)
		}
		if e.Waiting() == 0 || err == nil && r.sawEverything(e, attempt) || spent[met] > timeouts[met] {
			return nil
		}
		r.log.Debug("results are missing; looking again", "batch", e.Status.Handle.BatchID, "error", err, "in", wait)
		if err := retry.Sleep(ctx, wait); err != nil {
			return err
		}
		r.refresh(ctx, e)
	}
}

// Timeout is how long ReadEnded waits for the end of the fault that Verdict names.
func (r *Reader) Timeout() time.Duration { return timeouts[r.Verdict()] }

// sawEverything reports whether the provider itself says that no more results
// exist than those that were read.
func (r *Reader) sawEverything(e *Ended, looks int) bool {
	s := &e.Status
	switch {
	case r.More(), r.stale():
		return false
	case e.LateResults && s.Word == "cancelled":
		return looks >= lateLooks && r.saidComplete()
	}
	promised := s.Counts.Completed + s.Counts.Failed
	if len(s.Sources) == 0 {
		// No line ran where validation failed or the end came first.
		return s.Word != "completed" && (s.Word == "failed" || promised == 0)
	}
	return r.SawAll(promised)
}

var errEmpty = errors.New("a file holds no results, although the provider counts completed lines")

// empty reports that the provider counts completed lines, and that the output file, or
// each source, holds nothing. Such a file is a broken download: a proxy or the provider's
// storage answered with nothing.
func (r *Reader) empty(e *Ended) bool {
	all := len(r.sources) > 0
	for _, s := range r.sources {
		if s.empty() && s.id == e.Status.OutputFileID {
			return e.Status.Counts.Completed > 0
		}
		all = all && s.empty()
	}
	return all && e.Status.Counts.Completed > 0
}

// saidComplete reports whether the server says of each source that the source is
// complete.
func (r *Reader) saidComplete() bool {
	for _, s := range r.sources {
		if !s.read || !s.partial || s.more {
			return false
		}
	}
	return len(r.sources) > 0
}

// refresh asks once more about the batch: sources may be named late.
func (r *Reader) refresh(ctx context.Context, e *Ended) {
	found, err := r.server.Status(ctx, []backend.Handle{e.Status.Handle})
	if err != nil || len(found) != 1 || found[0].Err != nil {
		return
	}
	before := e.Status
	e.Status = found[0]
	e.Status.Handle, e.Status.Phase, e.Status.Word = before.Handle, before.Phase, before.Word
	r.SetSources(e.Status.Handle, e.Status.Sources)
}
