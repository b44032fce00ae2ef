package autobatcher

import (
	"time"

	"github.com/autobatcher/autobatcher/internal/accounts"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/collector"
	"github.com/autobatcher/autobatcher/internal/endpoint"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/registry"
	"github.com/autobatcher/autobatcher/journal"
)

// The registry's types, for the requests of this package.
type (
	call    = registry.Call[request]
	waiter  = registry.Waiter[request]
	answer  = registry.Answer[request]
	lineSet = registry.Lines[request]
	queue   = collector.Queue[key, *call]
)

// A request is what a call asks for, beside its line.
type request struct {
	key        key
	at         *endpoint.Endpoint
	caller     *caller.Caller // separates callers of the same account
	model      string
	raw        []byte        // the body as it came; nil unless the call may be escalated
	deadline   time.Duration // 0: none
	mode       lane.Mode
	window     string        // completion window of a batch, where key.window is that of the flex tier
	inputs     int32         // embedding inputs; 0 for other calls
	stream     bool          // the answer is a stream of events
	background bool          // the caller wants an id at once, and asks for the answer later
	usage      bool          // the last event of the stream has the usage
	legacy     *journal.Hash // the fingerprint from before the account had a name; nil: no line of that time is left
	slot       collector.Slot[key, *registry.Call[request]]
}

// A key says which calls may share a batch: calls with equal keys.
type key struct {
	account    *accounts.Account
	window     string // completion window, or provider.FlexWindow
	group      string // endpoint, and model or all parameters, where a batch may have only one
	background bool   // the callers ask for the answers later, at any process
}
