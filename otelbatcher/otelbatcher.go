// Package otelbatcher reports the calls and the batches of a Transport to
// OpenTelemetry: traces and metrics by the semantic conventions for generative AI
// (gen_ai.…). Package autobatcher does not import OpenTelemetry.
//
//	telemetry, err := otelbatcher.New(otelbatcher.Options{})
//	if err != nil {
//		log.Fatal(err)
//	}
//	defer telemetry.Close() // after the Transport
//	transport, err := autobatcher.New(autobatcher.Options{OnEvent: telemetry.OnEvent})
//	if err != nil {
//		log.Fatal(err)
//	}
//	defer transport.Close()
//	client := openai.NewClient(option.WithHTTPClient(&http.Client{Transport: telemetry.Wrap(transport)}))
//
// # Spans
//
// A call has a client span, such as "chat gpt-4.1-mini", from the request until the
// caller has read or closed the answer. A batch has a span "autobatcher.batch", from
// the creation of the batch until its end at the provider. The span of a batch links
// to the spans of the calls in the batch, 128 at most; both have the attribute
// autobatcher.batch.id. Only recorded (sampled) spans are linked.
//
// With a journal, the journal stores the trace contexts with the batch: when a process
// resumes the batch of an earlier process, the span of the resumed batch links to the
// calls of the earlier process, begins when the batch was created, and has the
// attribute autobatcher.batch.resumed.
//
// Spans and metrics contain no prompts, no answers and no credentials.
//
// # Metrics
//
// gen_ai.client.operation.duration has the seconds from the request to the end of the
// answer, with buckets for batches of up to a day. gen_ai.client.token.usage has the
// input and the output tokens that the answers report. An answer larger than 8 MiB is
// not examined, and a streamed answer reports tokens only if the request asks for the
// usage (stream_options.include_usage).
package otelbatcher

import (
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/semconv/v1.41.0/genaiconv"
	"go.opentelemetry.io/otel/trace"
)

// scope is the name of the instrumentation.
const scope = "github.com/autobatcher/autobatcher/otelbatcher"

// Options configure a Telemetry. The zero Options work.
type Options struct {
	// TracerProvider makes the spans. Default: otel.GetTracerProvider().
	TracerProvider trace.TracerProvider

	// MeterProvider makes the metrics. Default: otel.GetMeterProvider().
	MeterProvider metric.MeterProvider
}

// A Telemetry reports calls and batches to OpenTelemetry. All methods may be called
// concurrently. Several Transports may share a Telemetry.
type Telemetry struct {
	tracer   trace.Tracer
	duration genaiconv.ClientOperationDuration
	tokens   genaiconv.ClientTokenUsage

	mu      sync.Mutex
	batches map[string]trace.Span // that have not ended, by id
}

// The conventions prescribe the boundaries up to 81.92 seconds, and those of the
// tokens. The other boundaries are for calls that wait for a batch, in seconds.
var (
	durationBounds = []float64{
		0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
		180, 300, 600, 1_200, 1_800, 3_600, 7_200, 14_400, 28_800, 43_200, 86_400,
	}
	tokenBounds = []float64{
		1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216, 67_108_864,
	}
)

// New returns a Telemetry. The error is an error of the MeterProvider.
func New(o Options) (*Telemetry, error) {
	if o.TracerProvider == nil {
		o.TracerProvider = otel.GetTracerProvider()
	}
	if o.MeterProvider == nil {
		o.MeterProvider = otel.GetMeterProvider()
	}
	t := &Telemetry{
		tracer:  o.TracerProvider.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
		batches: make(map[string]trace.Span),
	}
	meter := o.MeterProvider.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))
	var err error
	if t.duration, err = genaiconv.NewClientOperationDuration(meter, metric.WithExplicitBucketBoundaries(durationBounds...)); err != nil {
		return nil, err
	}
	t.tokens, err = genaiconv.NewClientTokenUsage(meter, metric.WithExplicitBucketBoundaries(tokenBounds...))
	return t, err
}
