package otelbatcher

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tidwall/gjson"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/semconv/v1.41.0/genaiconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/internal/requestbody"
	"github.com/autobatcher/autobatcher/provider"
)

// Attributes that no convention defines.
const (
	batchIDKey  = attribute.Key("autobatcher.batch.id")
	customIDKey = attribute.Key("autobatcher.custom_id") // of the line in the batch
	costKey     = attribute.Key("autobatcher.cost_usd")  // an estimate, in US dollars
)

// Wrap returns a RoundTripper that calls transport, an [autobatcher.Transport] or a
// RoundTripper that calls one, and makes a span for each POST to an endpoint that the
// provider batches. Other requests are not reported. A caller must read the body of
// the response to its end, or close the body; the span ends then.
//
// The model is read from a copy of the request body, made by GetBody, which
// http.NewRequest sets for bodies in memory. The span of a request without GetBody, or
// with a Content-Encoding, lacks what the request asks for.
func (t *Telemetry) Wrap(transport http.RoundTripper) http.RoundTripper {
	return &roundTripper{t, transport}
}

type roundTripper struct {
	telemetry *Telemetry
	next      http.RoundTripper
}

// CloseIdleConnections calls the method of the wrapped RoundTripper, if there is one.
func (r *roundTripper) CloseIdleConnections() {
	if next, ok := r.next.(interface{ CloseIdleConnections() }); ok {
		next.CloseIdleConnections()
	}
}

// RoundTrip implements http.RoundTripper.
func (r *roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodPost || req.URL == nil {
		return r.next.RoundTrip(req)
	}
	profile := provider.ForURL(req.URL)
	path := req.URL.EscapedPath()
	suffix := profile.Suffix(path)
	if suffix == "" {
		return r.next.RoundTrip(req)
	}
	deployment, _ := profile.Deployment(path)
	c := r.telemetry.begin(req, operationOf(suffix), providerOf(profile.Name), deployment)
	own := *caller.Of(c.ctx)
	own.Trace = traceparent(c.ctx)
	res, err := r.next.RoundTrip(req.WithContext(caller.With(c.ctx, &own)))
	if err != nil {
		c.fail(err)
		return nil, err
	}
	c.answered(res)
	return res, nil
}

// traceparent returns the trace context in ctx, or "" if the span is not recorded, so
// that a link to the span would lead nowhere.
func traceparent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return ""
	}
	header := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, header)
	return header["traceparent"]
}

// A call is a call whose answer was not read to its end yet.
type call struct {
	telemetry *Telemetry
	ctx       context.Context // with the span, for the metrics' exemplars
	span      trace.Span
	began     time.Time
	operation genaiconv.OperationNameAttr
	provider  genaiconv.ProviderNameAttr
	common    []attribute.KeyValue // of the metrics
	status    int
}

// begin starts the span of a call.
func (t *Telemetry) begin(req *http.Request, operation genaiconv.OperationNameAttr, provider genaiconv.ProviderNameAttr, deployment string) *call {
	c := &call{telemetry: t, began: time.Now(), operation: operation, provider: provider, common: server(req.URL)}
	name := string(operation)
	attributes := append(requested(req),
		semconv.GenAIOperationNameKey.String(string(operation)), semconv.GenAIProviderNameKey.String(string(provider)))
	model := deployment
	for _, a := range attributes {
		if a.Key == semconv.GenAIRequestModelKey {
			model = a.Value.AsString()
		}
	}
	if model != "" {
		name += " " + model
		c.common = append(c.common, semconv.GenAIRequestModel(model))
	}
	c.ctx, c.span = t.tracer.Start(req.Context(), name,
		trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(c.began), trace.WithAttributes(attributes...), trace.WithAttributes(c.common...))
	return c
}

// server returns the attributes for the provider's host.
func server(u *url.URL) []attribute.KeyValue {
	attributes := []attribute.KeyValue{semconv.ServerAddress(u.Hostname())}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	if n, err := strconv.Atoi(port); err == nil {
		attributes = append(attributes, semconv.ServerPort(n))
	}
	return attributes
}

// maxModel is the length of the longest model name that is reported, as in the
// Transport, which refuses longer names.
const maxModel = 256

// requested returns what the body of a call asks for. The prompt is not reported.
func requested(req *http.Request) (attributes []attribute.KeyValue) {
	if req.GetBody == nil || req.Header.Get("Content-Encoding") != "" || requestbody.IsForm(req.Header) {
		return nil
	}
	body, err := req.GetBody()
	if err != nil {
		return nil
	}
	defer body.Close() //nolint:errcheck // a copy in memory
	text, err := io.ReadAll(body)
	if err != nil {
		return nil
	}
	gjson.ParseBytes(text).ForEach(func(key, value gjson.Result) bool {
		name := key.Str
		switch {
		case name == "model" && value.Type == gjson.String && len(value.Str) <= maxModel:
			attributes = append(attributes, semconv.GenAIRequestModel(value.Str))
		case name == "stream" && value.Type == gjson.True:
			attributes = append(attributes, semconv.GenAIRequestStream(true))
		case value.Type != gjson.Number:
		case wholeNumbers[name] != "":
			attributes = append(attributes, wholeNumbers[name].Int64(value.Int()))
		case fractions[name] != "":
			attributes = append(attributes, fractions[name].Float64(value.Num))
		}
		return true
	})
	return attributes
}

// The numbers of a request that are reported.
var (
	wholeNumbers = map[string]attribute.Key{
		"max_tokens": semconv.GenAIRequestMaxTokensKey, "max_completion_tokens": semconv.GenAIRequestMaxTokensKey, "max_output_tokens": semconv.GenAIRequestMaxTokensKey,
		"seed": semconv.GenAIRequestSeedKey, "n": semconv.GenAIRequestChoiceCountKey, "dimensions": semconv.GenAIEmbeddingsDimensionCountKey,
	}
	fractions = map[string]attribute.Key{
		"temperature": semconv.GenAIRequestTemperatureKey, "top_p": semconv.GenAIRequestTopPKey,
		"frequency_penalty": semconv.GenAIRequestFrequencyPenaltyKey, "presence_penalty": semconv.GenAIRequestPresencePenaltyKey,
	}
)

// operationOf returns the operation of an endpoint, as the conventions name it.
func operationOf(suffix string) genaiconv.OperationNameAttr {
	switch suffix {
	case "/embeddings":
		return genaiconv.OperationNameEmbeddings
	case "/completions":
		return genaiconv.OperationNameTextCompletion
	case "/moderations": // the conventions have no name for this operation and those below
		return "moderation"
	case "/images/generations", "/images/edits":
		return "image_generation"
	case "/audio/transcriptions", "/audio/translations":
		return "transcription"
	}
	return genaiconv.OperationNameChat
}

// providerOf returns the conventions' name of a provider, or the name of the profile
// if the conventions have none. A server that only resembles OpenAI counts as OpenAI.
func providerOf(profile string) genaiconv.ProviderNameAttr {
	switch profile {
	case "generic":
		return genaiconv.ProviderNameOpenAI
	case "azure", "azure-legacy":
		return genaiconv.ProviderNameAzureAIOpenAI
	case "mistral":
		return genaiconv.ProviderNameMistralAI
	case "xai":
		return genaiconv.ProviderNameXAI
	}
	return genaiconv.ProviderNameAttr(profile)
}

// fail ends the span of a call that got no response.
func (c *call) fail(err error) {
	var timeout net.Error
	kind := "error"
	switch {
	case errors.Is(err, autobatcher.ErrClosed):
		kind = "transport_closed"
	case errors.Is(err, context.Canceled):
		kind = "canceled"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		kind = "timeout"
	}
	c.end(answer{failed: kind}) // the text of the error may contain what a span must not
}

// end ends the span and records the metrics.
func (c *call) end(a answer) {
	t, now := c.telemetry, time.Now()
	c.span.SetAttributes(a.attributes...)
	common := c.common[:len(c.common):len(c.common)]
	if a.model != "" {
		c.span.SetAttributes(semconv.GenAIResponseModel(a.model))
		common = append(common, semconv.GenAIResponseModel(a.model))
	}
	for kind, n := range map[genaiconv.TokenTypeAttr]int64{genaiconv.TokenTypeInput: a.input, genaiconv.TokenTypeOutput: a.output} {
		if n > 0 {
			t.tokens.Record(c.ctx, n, c.operation, c.provider, kind, common...)
		}
	}
	if a.failed != "" {
		c.span.SetStatus(codes.Error, a.failed)
		c.span.SetAttributes(semconv.ErrorTypeKey.String(a.failed))
		common = append(common, semconv.ErrorTypeKey.String(a.failed))
	}
	t.duration.Record(c.ctx, now.Sub(c.began).Seconds(), c.operation, c.provider, common...)
	c.span.End(trace.WithTimestamp(now))
}
