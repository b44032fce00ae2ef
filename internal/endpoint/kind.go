package endpoint

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
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
	Inputs       bool       // a batch may hold a number of inputs, such as texts to embed, and a call may have several
	NoText       bool       // the answers have no text that costs output tokens
	NoModel      bool       // a body need not name a model
	Background   bool       // "background": true asks for an id at once, and the answer comes later
	Formats      bool       // the body chooses the format of the answer, and only JSON fits on a line
	DefaultModel string     // the model whose price applies where a body names none; "": not known
}

// kinds are the endpoints that differ from the zero Kind.
var kinds = map[string]Kind{
	"/chat/completions": {Stream: sse.Chat},
	"/completions":      {Stream: sse.Completion},
	"/responses":        {Stream: sse.Response, Background: true},
	"/embeddings":       {Embeddings: true, Inputs: true, NoText: true},
	"/rerank":           {Inputs: true, NoText: true},
	"/moderations":      {NoModel: true, NoText: true},

	"/audio/transcriptions": {Formats: true},
	"/audio/translations":   {Formats: true},
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
		e.PassesThrough(log, "multipart", "no batch can hold a multipart body")
		return false, nil
	case e.Profile.Refusal != "":
		return false, refusal("batch_unsupported", errors.New(e.Profile.Refusal+" (Or send this call with the header Autobatcher-Mode: realtime.)"))
	}
	return true, nil
}

// reasons are why calls pass through: forms, and the members that Realtime returns.
var reasons = []string{"multipart", "background", "service_tier", "stream", "response_format"}

// PassesThrough logs that a call passes through for a reason, which is a member of the
// body or a form. The first message of a reason about a URL has the level info, since
// such calls do not have the price of a batch; the others have the level debug.
func (e *Endpoint) PassesThrough(log *slog.Logger, reason, why string) {
	level, bit := slog.LevelDebug, uint32(1)<<slices.Index(reasons, reason)
	if atomic.OrUint32(&e.logged, bit)&bit == 0 {
		level = slog.LevelInfo
	}
	log.Log(context.Background(), level, "call passes through", "reason", why, "endpoint", e.Suffix)
}

// Realtime returns the member of a body for which the call passes through, and the
// value of the member: the provider answers at once or at a price that the caller
// chose, or the caller wants a stream or a format that a batch cannot give. "": the call
// can be batched.
func (k *Kind) Realtime(asked *requestbody.Call) (member, value string) {
	switch {
	case asked.Tier != "":
		return "service_tier", asked.Tier
	case asked.Stream && k.Stream == sse.None && !k.Embeddings:
		return "stream", "true"
	case k.Formats && asked.Format != "" && !strings.HasSuffix(asked.Format, "json"): // text, srt, vtt
		return "response_format", asked.Format
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
