package otelbatcher

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/autobatcher/autobatcher"
)

// Attributes of the span of a batch.
const (
	sizeKey      = attribute.Key("autobatcher.batch.size") // lines
	endpointKey  = attribute.Key("autobatcher.batch.endpoint")
	modelsKey    = attribute.Key("autobatcher.batch.models")
	windowKey    = attribute.Key("autobatcher.batch.completion_window")
	statusKey    = attribute.Key("autobatcher.batch.status") // as the provider says
	completedKey = attribute.Key("autobatcher.batch.completed")
	failedKey    = attribute.Key("autobatcher.batch.failed")
	// Estimates, in US dollars, of the answers whose price is known.
	batchCostKey    = attribute.Key("autobatcher.batch.cost_usd")
	batchSavingsKey = attribute.Key("autobatcher.batch.savings_usd")

	resumedKey = attribute.Key("autobatcher.batch.resumed") // the batch of an earlier process
	runningKey = attribute.Key("autobatcher.batch.running") // the batch ran on when Close ended the span
)

// OnEvent reports an event: use OnEvent as [autobatcher.Options].OnEvent, or call
// OnEvent from your own handler.
func (t *Telemetry) OnEvent(e autobatcher.Event) {
	switch e.Name {
	case autobatcher.BatchSubmitted:
		t.batch(e, e.Time)
	case autobatcher.BatchResumed:
		t.batch(e, e.Time.Add(-e.Elapsed)).SetAttributes(resumedKey.Bool(true))
	case autobatcher.BatchSubmissionFailed: // no batch exists
		span := t.start(e, e.Time)
		fail(span, "submission_failed")
		span.End(trace.WithTimestamp(e.Time))
	case autobatcher.BatchCompleted, autobatcher.BatchTerminal:
		t.endBatch(e)
	case autobatcher.BatchProgress, autobatcher.BatchCancelRequested, autobatcher.BatchCancelledUpstream,
		autobatcher.BatchCancelFailed, autobatcher.CallEscalated:
		t.mu.Lock()
		span := t.batches[e.BatchID]
		t.mu.Unlock()
		if span != nil {
			span.AddEvent(string(e.Name), trace.WithTimestamp(e.Time), trace.WithAttributes(details(e)...))
		}
	case autobatcher.BatchCost: // the end of the batch had the cost already
	case autobatcher.ClientClosing: // the batches may run on; see Close
	}
}

// details returns the attributes of an event of a batch.
func details(e autobatcher.Event) (attributes []attribute.KeyValue) {
	switch e.Name {
	case autobatcher.BatchProgress:
		attributes = append(attributes, statusKey.String(e.Status), completedKey.Int(e.Counts.Completed), failedKey.Int(e.Counts.Failed))
	case autobatcher.CallEscalated:
		attributes = append(attributes, customIDKey.String(e.CustomID))
	}
	return attributes
}

// batch returns the span of a batch that has not ended, and starts the span if there is
// none.
func (t *Telemetry) batch(e autobatcher.Event, began time.Time) trace.Span {
	t.mu.Lock()
	defer t.mu.Unlock()
	span := t.batches[e.BatchID]
	if span == nil {
		span = t.start(e, began)
		t.batches[e.BatchID] = span
	}
	return span
}

// start starts the span of a batch.
func (t *Telemetry) start(e autobatcher.Event, began time.Time) trace.Span {
	attributes := []attribute.KeyValue{
		endpointKey.String(e.Endpoint), sizeKey.Int(e.RequestCount), modelsKey.StringSlice(e.Models), windowKey.String(e.CompletionWindow),
	}
	if e.BatchID != "" {
		attributes = append(attributes, batchIDKey.String(e.BatchID))
	}
	_, span := t.tracer.Start(context.Background(), "autobatcher.batch", trace.WithNewRoot(),
		trace.WithTimestamp(began), trace.WithLinks(links(e.Traces)...), trace.WithAttributes(attributes...))
	return span
}

// links returns links to the spans of the calls of a batch.
func links(traces []string) []trace.Link {
	all := make([]trace.Link, 0, len(traces))
	for _, text := range traces {
		ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": text})
		if to := trace.SpanContextFromContext(ctx); to.IsValid() {
			all = append(all, trace.Link{SpanContext: to})
		}
	}
	return all
}

// endBatch ends the span of a batch that has ended at the provider.
func (t *Telemetry) endBatch(e autobatcher.Event) {
	span := t.batch(e, e.Time.Add(-e.Elapsed))
	t.mu.Lock()
	delete(t.batches, e.BatchID)
	t.mu.Unlock()
	span.SetAttributes(statusKey.String(e.Status), completedKey.Int(e.Counts.Completed), failedKey.Int(e.Counts.Failed))
	if e.Cost.Priced > 0 {
		span.SetAttributes(batchCostKey.Float64(e.Cost.USD), batchSavingsKey.Float64(e.Cost.Savings))
	}
	switch {
	case e.Error != "":
		fail(span, "batch_lost")
	case e.Name == autobatcher.BatchTerminal:
		fail(span, e.Status)
	}
	span.End(trace.WithTimestamp(e.Time))
}

// fail marks a span as failed. The text of the error is in the log: it is the
// provider's, and may contain what a span must not.
func fail(span trace.Span, kind string) {
	span.SetStatus(codes.Error, kind)
	span.SetAttributes(semconv.ErrorTypeKey.String(kind))
}

// Close ends the spans of the batches that still run, so that OpenTelemetry exports the
// spans. Call Close after the Close of the Transport, and before the Shutdown of the
// TracerProvider.
func (t *Telemetry) Close() {
	t.mu.Lock()
	open := t.batches
	t.batches = make(map[string]trace.Span)
	t.mu.Unlock()
	for _, span := range open {
		span.SetAttributes(runningKey.Bool(true))
		span.End()
	}
}
