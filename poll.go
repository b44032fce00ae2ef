package autobatcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/batchapi"
)

const (
	// gonePatience is how long a batch may be unknown, or our credential
	// refused, before it is given up: a fresh batch may not be visible yet, and
	// Doubleword says 404 for any trouble with its storage.
	gonePatience = 10 * time.Minute

	// overduePatience is how long a batch may run past its completion window.
	// OpenAI expires it there; Doubleword goes on working.
	overduePatience = 24 * time.Hour

	// cancelPatienceUpstream bounds "cancelling": OpenAI says up to ten
	// minutes, and a Doubleword batch can stay so for ever.
	cancelPatienceUpstream = 20 * time.Minute

	// cancelRetries is how long cancelling is tried.
	cancelRetries = 10 * time.Minute

	// maxPollWait bounds the wait after a failed look at a batch.
	maxPollWait = time.Minute
)

// errOverdue is why a batch that never ends is given up.
var errOverdue = errors.New("it ran a day past its completion window")

// watch looks at the batch until it has ended, reads what results there are
// already, and cancels the batch when nobody waits for it any more. The error
// is why the batch was given up.
func (b *batch) watch() error {
	var trouble troubles
	defer b.lookout().Watch()()
	wait := b.pollInterval()
	limit := b.created.Add(windowLength(b.key.window) + overduePatience)
	for {
		if err := b.pause(wait); err != nil {
			return err
		}
		state, err := b.lookout().Look(b.t.ctx, b.api, b.id, b.pollInterval())
		if wait, err = trouble.next(err, b.pollInterval()); err != nil {
			return err
		}
		if state.ID != "" {
			b.observe(state)
			if b.ended() {
				return nil
			}
			b.harvestPartial()
		}
		if time.Now().After(limit) {
			return errOverdue
		}
	}
}

// A long batch is looked at less often: every 60th of its age, but at least
// once in maxPollWait.
const pollShare = 60

// pollInterval is how long to wait between two looks.
func (b *batch) pollInterval() time.Duration {
	slower := min(time.Since(b.created)/pollShare, maxPollWait)
	return max(b.t.opts.PollInterval, b.profile.MinPoll, slower)
}

// lookout is shared by the batches of one account, so that many of them are
// looked at with one listing.
func (b *batch) lookout() *batchapi.Lookout {
	return b.t.lookouts.Of(b.account(), batchapi.NewLookout)
}

// pause waits until the next look at the batch is due, and cancels the batch
// meanwhile if it was abandoned.
func (b *batch) pause(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return nil
		case <-b.abandoned:
			if b.isLonely() {
				b.t.log.Info("nobody waits for the batch, cancelling it", "batch", b.id)
				b.cancelUpstream(b.t.ctx)
			}
		case <-b.t.ctx.Done():
			return context.Cause(b.t.ctx)
		}
	}
}

// observe notes what the provider says of the batch, and tells what changed.
func (b *batch) observe(state batchapi.Batch) {
	before := b.state
	b.state = state
	b.output.named(state.OutputFileID)
	b.errors.named(state.ErrorFileID)
	if state.Status == "cancelling" && b.cancelling.IsZero() {
		b.cancelling = time.Now()
		b.doom()
	}
	if !b.seen || before.Status != state.Status || before.Counts != state.Counts {
		b.seen = true
		b.emit(BatchProgress)
	}
}

// ended reports whether nothing more is to be expected of the batch.
func (b *batch) ended() bool {
	return b.state.Terminal() ||
		b.state.Status == "cancelling" && time.Since(b.cancelling) > cancelPatienceUpstream
}

// troubles are the failed looks at a batch since the last that succeeded.
type troubles struct {
	since time.Time
	tries int
}

// next is the wait until the next look, given how this one went. It returns
// the error where looking again is pointless: the batch is gone, or the
// credential is.
func (t *troubles) next(err error, interval time.Duration) (time.Duration, error) {
	var failed *batchapi.Error
	if err == nil {
		*t = troubles{}
		return interval, nil
	}
	if !errors.As(err, &failed) {
		return 0, err
	}
	if t.tries == 0 {
		t.since = time.Now()
	}
	t.tries++
	switch {
	case failed.RateLimited():
		return max(batchapi.RateLimitWait(failed), interval), nil
	case failed.Transient():
		return max(batchapi.Backoff(t.tries), failed.RetryAfter, min(interval, maxPollWait)), nil
	case time.Since(t.since) >= gonePatience:
		return 0, err
	}
	return max(interval, batchapi.Backoff(t.tries)), nil
}

// windowLength reads a completion window such as "24h" or "7d"; one that says
// no length counts as a day.
func windowLength(window string) time.Duration {
	if d, err := time.ParseDuration(window); err == nil && d > 0 {
		return d
	}
	if days, err := strconv.Atoi(strings.TrimSuffix(window, "d")); err == nil && days > 0 && days < 366 {
		return time.Duration(days) * 24 * time.Hour
	}
	return 24 * time.Hour
}

// lost ends a batch that could not be watched to its end.
func (b *batch) lost(err error) {
	if b.t.ctx.Err() != nil {
		return // Close tells the callers
	}
	b.t.log.Error("batch given up", "batch", b.id, "error", err)
	code := "batch_lost"
	if errors.Is(err, errOverdue) {
		code = "batch_overdue"
	}
	b.giveUpRest(failure(http.StatusFailedDependency, code, "batch "+b.id+" was given up: "+err.Error()))
}

// cancelUpstream asks the provider to cancel the batch, again where that may
// help, and tells how it went. From then on nobody takes over its lines.
func (b *batch) cancelUpstream(ctx context.Context) {
	if b.doom() {
		return // it was asked before
	}
	b.emit(BatchCancelRequested)
	r := batchapi.Retries{Patience: cancelRetries}
	for {
		err := b.api.Cancel(ctx, b.id)
		if err == nil {
			b.emit(BatchCancelledUpstream)
			return
		}
		wait, again := r.Next(err)
		if !again || batchapi.Sleep(ctx, wait) != nil {
			b.t.log.Warn("batch could not be cancelled", "batch", b.id, "error", err)
			b.emitError(BatchCancelFailed, err)
			return
		}
	}
}

// doom marks the batch as one that will be cancelled, and reports whether it
// was marked before.
func (b *batch) doom() (before bool) {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	before = b.doomed
	b.doomed = true
	return before
}

// EventName says what happened.
type EventName string

// The events, in the order of a batch's life.
const (
	BatchSubmitted         EventName = "batch_submitted"
	BatchSubmissionFailed  EventName = "batch_submission_failed"
	BatchProgress          EventName = "batch_progress"  // status or counts changed
	BatchCompleted         EventName = "batch_completed" // and its results were delivered
	BatchTerminal          EventName = "batch_terminal"  // failed, expired or cancelled; what there was is delivered
	BatchCancelRequested   EventName = "batch_cancel_requested"
	BatchCancelledUpstream EventName = "batch_cancelled_upstream"
	BatchCancelFailed      EventName = "batch_cancel_failed"
	ClientClosing          EventName = "client_closing"
	CallEscalated          EventName = "call_escalated" // sent in real time; Error says why
)

// An Event tells what happened to a batch. It marshals to the JSON object that
// log collectors of autobatcher's other implementations know: only the fields
// that belong to its Name, keys sorted.
type Event struct {
	Name EventName
	Time time.Time

	BatchID, Endpoint                      string
	InputFileID, OutputFileID, ErrorFileID string // "" is null in JSON
	RequestCount                           int
	Models                                 []string // sorted, each once
	CompletionWindow                       string
	Metadata                               map[string]string // shared by all events: not to be changed
	Counts                                 Counts
	Status                                 string
	Elapsed                                time.Duration // since the batch was created
	Error                                  string
	CustomID                               string // of CallEscalated

	// Of ClientClosing.
	PendingRequests int      // calls not sent yet
	ActiveBatchIDs  []string // in the order the batches were opened
	CancelOnClose   bool
}

// Counts are a batch's request counts, as the provider last said them.
type Counts struct {
	Completed, Failed, Total int
}

// fields are the JSON keys of each event beyond source, event and ts.
var fields = map[EventName][]string{
	BatchSubmitted:         slices.Concat(identity, []string{"models", "completion_window", "metadata"}),
	BatchSubmissionFailed:  {"endpoint", "request_count", "models", "completion_window", "metadata", "error"},
	BatchProgress:          slices.Concat(progress, []string{"status"}),
	BatchCompleted:         progress,
	BatchTerminal:          slices.Concat(progress, []string{"status"}),
	BatchCancelRequested:   slices.Concat(identity, []string{"models", "completion_window", "metadata"}),
	BatchCancelledUpstream: {"batch_id", "endpoint"},
	BatchCancelFailed:      {"batch_id", "endpoint", "error"},
	CallEscalated:          {"batch_id", "endpoint", "custom_id", "models", "error"},
	ClientClosing:          {"pending_request_count", "active_batch_ids", "cancel_active_batches_on_close"},
}

var (
	identity = []string{"batch_id", "endpoint", "input_file_id", "output_file_id", "error_file_id", "request_count"}
	progress = slices.Concat(identity, []string{"counts", "models", "completion_window", "metadata", "elapsed_seconds"})
)

// MarshalJSON returns the event as one JSON object, keys sorted.
func (e Event) MarshalJSON() ([]byte, error) {
	all := map[string]any{
		"batch_id": e.BatchID, "endpoint": e.Endpoint,
		"input_file_id": orNull(e.InputFileID), "output_file_id": orNull(e.OutputFileID), "error_file_id": orNull(e.ErrorFileID),
		"request_count": e.RequestCount, "models": orEmpty(e.Models),
		"completion_window": e.CompletionWindow, "metadata": e.Metadata,
		"counts": batchapi.Counts(e.Counts), "status": e.Status,
		"elapsed_seconds": math.Round(e.Elapsed.Seconds()*1000) / 1000,
		"error":           e.Error,
		"custom_id":       e.CustomID,

		"pending_request_count": e.PendingRequests, "active_batch_ids": orEmpty(e.ActiveBatchIDs),
		"cancel_active_batches_on_close": e.CancelOnClose,
	}
	object := map[string]any{
		"source": "autobatcher", "event": e.Name,
		"ts": float64(e.Time.UnixMicro()) / 1e6,
	}
	for _, name := range fields[e.Name] {
		object[name] = all[name]
	}
	return json.Marshal(object)
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// emit tells what happened to the batch.
func (b *batch) emit(name EventName) { b.emitError(name, nil) }

func (b *batch) emitError(name EventName, err error) {
	e := Event{
		Name: name, BatchID: b.id, Endpoint: b.path,
		InputFileID: b.state.InputFileID, OutputFileID: b.state.OutputFileID, ErrorFileID: b.state.ErrorFileID,
		RequestCount: b.size, Models: b.models, CompletionWindow: b.key.window, Metadata: b.t.opts.Metadata,
		Counts: Counts(b.state.Counts), Status: b.state.Status,
	}
	if !b.created.IsZero() {
		e.Elapsed = time.Since(b.created)
	}
	if err != nil {
		e.Error = err.Error()
	}
	b.t.emit(e)
}

// emit calls the handler, which must not be able to hurt anybody.
func (t *Transport) emit(e Event) {
	if t.opts.OnEvent == nil {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			t.log.Error("OnEvent panicked", "event", e.Name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	e.Time = time.Now()
	t.opts.OnEvent(e)
}
