package autobatcher

import (
	"encoding/json"
	"math"
	"slices"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/price"
)

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
	BatchResumed           EventName = "batch_resumed"  // found in the journal, and watched again
	BatchCost              EventName = "batch_cost"     // after the end of a batch, if a price is known
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
	Callers                                []string // as in QueueStats; not in the JSON
	Traces                                 []string // of the calls; see package otelbatcher; not in the JSON
	CompletionWindow                       string
	Metadata                               map[string]string // shared by all events: not to be changed
	Counts                                 Counts
	Status                                 string
	Elapsed                                time.Duration // since the batch was created
	Error                                  string
	CustomID                               string // of CallEscalated
	Cost                                   Cost   // of the answers so far

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
	BatchResumed:           slices.Concat(identity, []string{"models", "completion_window", "metadata"}),
	CallEscalated:          {"batch_id", "endpoint", "custom_id", "models", "error"},
	BatchCost: {
		"batch_id", "endpoint", "request_count", "models", "cost_usd", "savings_usd", "input_tokens", "cached_tokens",
		"output_tokens", "priced_count", "unpriced_count", "prices_date",
	},
	ClientClosing: {"pending_request_count", "active_batch_ids", "cancel_active_batches_on_close"},
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
		"request_count": e.RequestCount, "models": append([]string{}, e.Models...),
		"completion_window": e.CompletionWindow, "metadata": e.Metadata,
		"counts": backend.Counts(e.Counts), "status": e.Status,
		"elapsed_seconds": math.Round(e.Elapsed.Seconds()*1000) / 1000,
		"error":           e.Error,
		"custom_id":       e.CustomID,

		"cost_usd": json.Number(price.Decimal(e.Cost.USD)), "savings_usd": json.Number(price.Decimal(e.Cost.Savings)),
		"input_tokens": e.Cost.InputTokens, "cached_tokens": e.Cost.CachedTokens, "output_tokens": e.Cost.OutputTokens,
		"priced_count": e.Cost.Priced, "unpriced_count": e.Cost.Unpriced, "prices_date": e.Cost.PricesDate,

		"pending_request_count": e.PendingRequests, "active_batch_ids": append([]string{}, e.ActiveBatchIDs...),
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
