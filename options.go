package autobatcher

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// Options configure a Transport. The zero Options work. New refuses values out
// of bounds; a negative value is out of bounds unless the field gives it a
// meaning.
type Options struct {
	// Base sends the requests: files, batches, and the calls that pass
	// through. Default: http.DefaultTransport.
	Base http.RoundTripper

	// BatchSize is the number of calls that triggers a batch before its window
	// ends. The provider's limit for a file caps the number. Default: 1000.
	BatchSize int

	// BatchWindow is how long a batch collects calls, counted from its first
	// call. Default: 10 s.
	BatchWindow time.Duration

	// QuietAfter is how long no new call may come before a batch is sent although its
	// window has not ended. A queue that opens within a window of the opening of a queue
	// that was sent early waits its whole window, so that a steady stream of calls
	// does not become many small batches. Default: 1 s. Negative: a batch always waits
	// its whole window.
	QuietAfter time.Duration

	// Mode says how calls are answered that have no header Autobatcher-Mode. Default:
	// ModeBatch.
	Mode Mode

	// FlexFallback says what becomes of calls that the provider has no room for at its
	// flex tier. Default: FallbackBatch.
	FlexFallback FlexFallback

	// BatchBytes is the size of an input file, in bytes, that triggers a batch;
	// a call that would make a file larger opens the next file. The provider's
	// limit caps the size. Default: the provider's limit.
	BatchBytes int64

	// PollInterval is the time between two polls of a running batch, unless the provider
	// asks for a longer one. A batch that runs for long is polled less often: every 60th of
	// its age, but at least once a minute; see [Transport.Wake] for webhooks. A batch that
	// was sent early (see QuietAfter and NoMoreCalls) is polled sooner while fewer than ten
	// batches of the account run: first after a tenth of PollInterval, then after half of
	// its age. Default: 5 s.
	PollInterval time.Duration

	// CompletionWindow is the deadline and price tier that the provider is asked
	// for. Any string is passed on. Default: "1h" at Doubleword, "24h" elsewhere.
	CompletionWindow string

	// Metadata is attached to every batch and to its events. OpenAI allows 16
	// pairs, with keys of 64 and values of 512 characters.
	Metadata map[string]string

	// CancelOnClose makes Close cancel the batches that run at the provider, but no batch of
	// calls in the background that a journal has. Default: they continue, and are paid for.
	CancelOnClose bool

	// AbandonAfter is how long a running batch may have no caller before the
	// Transport cancels the batch at the provider. A retry that waits to be sent
	// counts as a caller. Default: 2 min. Negative: batches are never cancelled. With
	// a journal, a shorter time counts as 30 s: another replica may need that long
	// to find the line of a retry.
	AbandonAfter time.Duration

	// KeepFor is how long to keep an answer whose caller disconnected; an identical request
	// receives the answer. KeepFor is also how long an id gets the answer of a call in the
	// background; see docs/lanes.md. Failures are kept for 2 min at the most. At most 64 MiB
	// are kept in memory; the answers that expire first are dropped first. Default: 24 h.
	// Negative: no answer is kept, and calls in the background pass through.
	KeepFor time.Duration

	// Resubmits is the number of times a call is resubmitted in a new batch: its batch
	// expired or was cancelled, its result is missing, or its result is a failure of
	// the provider that may pass (408, 429 or 5xx). Default: 1. Negative: never, the
	// call fails.
	Resubmits int

	// Escalate says when a call is sent in real time, once and at full price,
	// instead of failing or being late. Default: EscalateNever.
	Escalate Escalation

	// EscalateMargin is how long before its deadline (that of its context, or of
	// the header Autobatcher-Deadline) EscalateDeadline sends a call in real time.
	// Default: 1 min.
	EscalateMargin time.Duration

	// EscalateLimit is the number of calls that may be escalated in any hour;
	// further calls fail or are late. Default: 100. Negative: no limit.
	EscalateLimit int

	// Files says when the files of a batch are deleted at the provider. Default:
	// FilesKeep.
	Files FilePolicy

	// Journal stores which lines were paid for, beyond the life of this process:
	// the same call finds its line again after a crash, and at another replica
	// that shares the journal. The caller closes the journal, after the
	// Transport. Default: none.
	Journal journal.Store

	// JournalRequired makes calls fail (503, code journal_failed) while the
	// journal fails. Default: the calls go on, and the failure is logged.
	JournalRequired bool

	// Account names the account that pays for a request, where credentials of
	// the same account change: access tokens that expire, keys that are rotated.
	// The name replaces the credential as what separates calls, in batches, in
	// fingerprints and in the journal; headers that select an organization, a
	// project or a tenant still separate calls. "" means that the credential is
	// the account.
	//
	// Two requests with the same name can read each other's answers. Derive the
	// name only from something that was verified: the proxy's own client key, a
	// token whose signature was checked; never from a header that a client may
	// choose. Account must be fast and safe for concurrent use. Default: the
	// credential of each request is its account.
	Account func(*http.Request) string

	// Credential returns the headers of a valid credential for an account, as
	// named by Account ("" without a name). The Transport calls Credential when
	// the provider has refused (401) all credentials that calls of the account
	// brought, for polls and downloads that outlive the calls' tokens. Credential
	// must be safe for concurrent use. Default: none.
	Credential func(ctx context.Context, account string) (http.Header, error)

	// OnEvent is called for each event of a batch, one event at a time, in a
	// goroutine of its own and in the order in which the events happened. A slow
	// handler delays later events and nothing else; while 10,000 events wait, further
	// events are dropped. Shutdown and Close wait up to
	// two seconds for the handler. OnEvent may call the Transport; a Close inside
	// OnEvent does not wait for OnEvent itself longer than that. A panic in
	// OnEvent is logged.
	OnEvent func(Event)

	// Logger receives what an operator needs to know. No message holds a
	// credential, a prompt or an answer. Default: nothing is logged.
	Logger *slog.Logger

	// Prices is a map of prices in the JSON format of LiteLLM's
	// model_prices_and_context_window.json. Its prices take precedence over the
	// built-in prices. Default: the built-in prices.
	Prices []byte

	// Budget limits what batched and escalated calls may cost, by the estimates that
	// Stats shows. Default: no limit.
	Budget Budget

	// Provider says what the provider accepts. The Transport uses a copy.
	// Default: the host of each call decides; an unknown host is treated as
	// carefully as OpenAI.
	Provider *provider.Profile
}

// A Budget limits what calls may cost. What a call may cost, from the size of its
// body (four bytes are a token) and the limit that its body names (max_tokens,
// max_completion_tokens or max_output_tokens, for each of n answers; 1,000 tokens
// without a limit), is reserved when the call enters; what the answer cost is spent
// when the answer comes. A call that does not fit gets 402, code budget_exhausted;
// with a journal, this is decided when the batch of the call is sent, since the
// journal may know a line of the call that is paid for. A call whose model has no
// known price gets 402, code price_unknown. Calls that pass through are not limited.
type Budget struct {
	// USD is the most that calls may cost, in US dollars. Zero: no limit. A negative
	// number is out of bounds.
	USD float64

	// Daily says that USD is for each day, from midnight to midnight UTC. Default:
	// USD is for the life of the Transport.
	Daily bool
}

// Escalation says when a call is sent in real time.
type Escalation string

// The escalations.
const (
	EscalateNever    Escalation = "never"    // a failure of the batch is the answer
	EscalateFailed   Escalation = "failed"   // a call that its batch could not answer
	EscalateDeadline Escalation = "deadline" // the same, and a call whose deadline comes before its batch ends; in mode auto at the flex tier first, while there is time
)

// FilePolicy says when the files of a batch are deleted at the provider.
type FilePolicy string

// The file policies.
const (
	FilesKeep   FilePolicy = "keep"   // by the provider's own rule: at OpenAI results live for 30 days
	FilesExpire FilePolicy = "expire" // by the provider, after three days, or two days after a longer completion window, where the provider can
	FilesDelete FilePolicy = "delete" // by the Transport, once the batch has ended and every line was delivered
)

const (
	defaultResubmits      = 1
	defaultEscalateMargin = time.Minute
	defaultEscalateLimit  = 100
	defaultBatchSize      = 1000
	defaultBatchWindow    = 10 * time.Second
	defaultPollInterval   = 5 * time.Second
	defaultQuietAfter     = time.Second
	defaultAbandonAfter   = 2 * time.Minute
	defaultKeepFor        = 24 * time.Hour

	// minAbandonAfter is two rounds of looking for lines of other replicas.
	minAbandonAfter = 2 * journalsession.Lease
)

func (o Options) withDefaults() Options {
	o.Base = cmp.Or(o.Base, http.DefaultTransport)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	o.BatchSize = cmp.Or(o.BatchSize, defaultBatchSize)
	o.BatchWindow = cmp.Or(o.BatchWindow, defaultBatchWindow)
	o.QuietAfter = cmp.Or(o.QuietAfter, defaultQuietAfter)
	o.Mode = cmp.Or(o.Mode, ModeBatch)
	o.FlexFallback = cmp.Or(o.FlexFallback, FallbackBatch)
	o.PollInterval = cmp.Or(o.PollInterval, defaultPollInterval)
	o.AbandonAfter = cmp.Or(o.AbandonAfter, defaultAbandonAfter)
	if o.Journal != nil && o.AbandonAfter > 0 {
		o.AbandonAfter = max(o.AbandonAfter, minAbandonAfter)
	}
	o.KeepFor = cmp.Or(o.KeepFor, defaultKeepFor)
	o.Resubmits = cmp.Or(o.Resubmits, defaultResubmits)
	o.Escalate = cmp.Or(o.Escalate, EscalateNever)
	o.EscalateMargin = cmp.Or(o.EscalateMargin, defaultEscalateMargin)
	o.EscalateLimit = cmp.Or(o.EscalateLimit, defaultEscalateLimit)
	o.Files = cmp.Or(o.Files, FilesKeep)
	o.Metadata = maps.Clone(o.Metadata)
	if o.Provider != nil {
		own := o.Provider.Clone()
		o.Provider = &own
	}
	return o
}

func (o *Options) validate() error {
	for _, f := range []struct {
		bad  bool
		name string
		is   any
		must string
	}{
		{o.BatchSize < 1, "BatchSize", o.BatchSize, fmt.Sprintf("be at least 1, or 0 for %d", defaultBatchSize)},
		{o.BatchWindow < 0, "BatchWindow", o.BatchWindow, fmt.Sprintf("not be negative; 0 means %v", defaultBatchWindow)},
		{!slices.Contains(lane.Modes, lane.Mode(o.Mode)), "Mode", o.Mode, "be batch, flex, auto or realtime"},
		{!slices.Contains([]FlexFallback{FallbackBatch, FallbackRealtime, FallbackFail}, o.FlexFallback), "FlexFallback", o.FlexFallback, "be batch, realtime or fail"},
		{o.BatchBytes < 0, "BatchBytes", o.BatchBytes, "not be negative; 0 means the provider's limit"},
		{o.PollInterval < 0, "PollInterval", o.PollInterval, fmt.Sprintf("not be negative; 0 means %v", defaultPollInterval)},
		{o.EscalateMargin < 0, "EscalateMargin", o.EscalateMargin, fmt.Sprintf("not be negative; 0 means %v", defaultEscalateMargin)},
		{!slices.Contains([]Escalation{EscalateNever, EscalateFailed, EscalateDeadline}, o.Escalate), "Escalate", o.Escalate, "be never, failed or deadline"},
		{!slices.Contains([]FilePolicy{FilesKeep, FilesExpire, FilesDelete}, o.Files), "Files", o.Files, "be keep, expire or delete"},
		{!(o.Budget.USD >= 0) || math.IsInf(o.Budget.USD, 1), "Budget.USD", o.Budget.USD, "be a number of US dollars that is not negative; 0 means no limit"}, // also NaN
	} {
		if f.bad {
			return fmt.Errorf("autobatcher: Options.%s is %v; it must %s", f.name, f.is, f.must)
		}
	}
	if o.Provider == nil {
		return nil
	}
	return o.validateProvider()
}

func (o *Options) validateProvider() error {
	if o.Provider.Refusal != "" {
		return fmt.Errorf("autobatcher: Options.Provider is %q: %s", o.Provider.Name, o.Provider.Refusal)
	}
	if err := o.Provider.Validate(); err != nil {
		return fmt.Errorf("autobatcher: Options.Provider: %w", err)
	}
	if err := o.Provider.CheckMetadata(o.Metadata); err != nil {
		return fmt.Errorf("autobatcher: Options.Metadata: %w", err)
	}
	if o.CompletionWindow != "" {
		if err := o.Provider.CheckWindow(o.CompletionWindow); err != nil {
			return fmt.Errorf("autobatcher: Options.CompletionWindow: %w", err)
		}
	}
	return nil
}
