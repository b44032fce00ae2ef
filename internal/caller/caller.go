// Package caller says which of several callers of the same account made a
// request. A server that calls the Transport for its own clients puts a Caller
// into the context of each request, and an Observer if the server follows the call.
package caller

import "context"

// A Caller is one of several callers of an account. Calls of different callers may
// share a batch. The zero Caller is the only caller of its account.
type Caller struct {
	// ID separates callers: calls with different IDs have different fingerprints,
	// and so never get each other's lines or answers. ID may be a secret.
	ID string

	// Name is the caller's name in statistics. Name must not be a secret. "": the
	// statistics do not name the caller.
	Name string

	// Budget names the hourly budget of escalations (Options.EscalateLimit) that
	// the caller uses. "": the budget of all requests without a name.
	Budget string

	// BatchOnly: a call to an endpoint with batches is refused if it would pass through:
	// if its body asks for a service tier or for a stream that cannot be made, or is a form
	// (multipart).
	BatchOnly bool

	// Realtime is asked before a call that waits for its batch is sent in real time, and
	// reports whether the server has room for the call. Without room the call stays in
	// its batch. Realtime may be called after the end of the call. Nil: there is room.
	Realtime func() bool

	// Trace is the trace context of the call, as a value of the header traceparent.
	// "": the call belongs to no trace.
	Trace string
}

// An Observer follows one call. The Transport keeps no reference to the Observer when
// RoundTrip has returned. Its methods must not block.
type Observer interface {
	// Waiting is called when the call waits for its batch.
	Waiting(Call)

	// Hold is called when the Transport keeps the body of the call. The Transport calls
	// release once, when it keeps no byte of the body any more: during RoundTrip, or
	// later if the call is a line of an upload. release must not block. Nil is allowed.
	Hold() (release func())
}

// A Call is a call that waits for its batch.
type Call struct {
	Model  string
	Stream bool // the answer is to be a stream of events

	// Name returns the names that the call has at the provider: "" for a batch
	// that was not created yet. Both change when the call is resubmitted.
	Name func() (batchID, customID string)
}

type (
	callerKey   struct{}
	observerKey struct{}
)

// A callContext is a context with a caller and an Observer, in one allocation: a server
// has a context for each call that waits.
type callContext struct {
	context.Context //nolint:containedctx // it is a context

	caller   *Caller
	observer Observer
}

// Value implements context.Context.
func (c *callContext) Value(key any) any {
	switch key.(type) {
	case callerKey:
		return c.caller
	case observerKey:
		return c.observer
	}
	return c.Context.Value(key)
}

// Follow returns a context for the one call of c that o follows. c must not be changed any
// more.
func Follow(ctx context.Context, c *Caller, o Observer) context.Context {
	return &callContext{ctx, c, o}
}

// With returns a context for the requests of c, which must not be changed any more.
func With(ctx context.Context, c *Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// Of returns the caller in ctx, or the zero Caller. The Caller must not be changed.
func Of(ctx context.Context) *Caller {
	if c, ok := ctx.Value(callerKey{}).(*Caller); ok {
		return c
	}
	return &only
}

var only Caller

// Observe returns a context for the one call that o follows.
func Observe(ctx context.Context, o Observer) context.Context {
	return context.WithValue(ctx, observerKey{}, o)
}

// Hold calls Hold of the Observer in ctx; nil without an Observer.
func Hold(ctx context.Context) (release func()) {
	if o := ObserverOf(ctx); o != nil {
		return o.Hold()
	}
	return nil
}

// ObserverOf returns the Observer in ctx, or nil.
func ObserverOf(ctx context.Context) Observer {
	o, _ := ctx.Value(observerKey{}).(Observer)
	return o
}
