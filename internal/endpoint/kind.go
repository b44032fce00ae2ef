package endpoint

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"

	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/requestbody"
	"github.com/autobatcher/autobatcher/internal/sse"
	"github.com/autobatcher/autobatcher/provider"
)

// A Kind is what is known of the calls to an endpoint.
type Kind struct {
	Stream       sse.Format // of a finished answer; None: a call that wants a stream is not batched
	Embeddings   bool       // the calls ask for embeddings, and a "stream" in the body is ignored
	NoText       bool       // the answers have no text that costs output tokens
	NoModel      bool       // a body need not name a model
	DefaultModel string     // the model whose price applies where a body names none; "": not known
}

// kinds are the endpoints that differ from the zero Kind.
var kinds = map[string]Kind{
	"/chat/completions": {Stream: sse.Chat},
	"/completions":      {Stream: sse.Completion},
	"/responses":        {Stream: sse.Response},
	"/embeddings":       {Embeddings: true, NoText: true},
	"/moderations":      {NoModel: true, NoText: true},
}

// KindOf returns what is known of the calls to the endpoint suffix of a provider.
func KindOf(p *provider.Profile, suffix string) Kind {
	k := kinds[suffix]
	if k.NoModel && p.Name == "openai" {
		k.DefaultModel = "omni-moderation-latest" // according to the API reference
	}
	return k
}

// Routes returns the endpoints of model calls, longer before shorter: the endpoints that
// the provider batches, and chat completions, embeddings and responses, which are model
// calls at every provider.
func Routes(p *provider.Profile) []string {
	routes := append(provider.Generic().Suffixes(), p.Suffixes()...)
	slices.SortFunc(routes, func(a, b string) int { return cmp.Or(len(b)-len(a), cmp.Compare(a, b)) })
	return slices.Compact(routes)
}

// Batches reports whether a POST is a call to be batched, as far as URL and headers
// decide. If not, the request passes through. The error is a *reply.RequestError: the
// request can be neither. The body is not read.
func (e *Endpoint) Batches(req *http.Request, log *slog.Logger) (bool, error) {
	if e.Suffix == "" {
		return false, nil
	}
	form := requestbody.IsForm(req.Header)
	switch {
	case form && caller.Of(req.Context()).BatchOnly:
		return false, closed("multipart", "a multipart body cannot stand on a line of a batch, and the call", "; send JSON, if the endpoint takes JSON")
	case form:
		e.tell(log)
		return false, nil
	case e.Profile.Refusal != "":
		return false, refusal("batch_unsupported", errors.New(e.Profile.Refusal+" (Or send this call with the header Autobatcher-Mode: realtime.)"))
	}
	return true, nil
}

// tell logs that forms pass through. The first message about a URL has the level info,
// since such calls cost the full price; the others have the level debug.
func (e *Endpoint) tell(log *slog.Logger) {
	level := slog.LevelDebug
	if atomic.SwapUint32(&e.formsLogged, 1) == 0 {
		level = slog.LevelInfo
	}
	log.Log(context.Background(), level, "call passes through, at the price of real time: no batch can hold a multipart body", "endpoint", e.Suffix)
}

// Realtime returns the member of a body for which the call passes through, and the
// value of the member: the provider answers at once or at a price that the caller
// chose, or wants to stream what a batch cannot. "": the call can be batched.
func (k *Kind) Realtime(asked *requestbody.Call) (member, value string) {
	switch {
	case asked.Background:
		return "background", "true"
	case asked.Tier != "":
		return "service_tier", asked.Tier
	case asked.Stream && k.Stream == sse.None && !k.Embeddings:
		return "stream", "true"
	}
	return "", ""
}

// Closed is the error of a call that may only be batched, and has a member for which it
// would pass through.
func Closed(member, value string) error {
	return closed(member, member+": "+value, "; leave the member out")
}

func closed(code, what, advice string) error {
	return refusal(code+"_closed", errors.New(what+" would not be answered at the price of a batch, which the operator of this server does not allow"+advice))
}
