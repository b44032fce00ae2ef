package main

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

// exported runs the program and returns its spans, by name.
func exported(t *testing.T, server *batchtest.Server) (spans map[string][]tracetest.SpanStub, err error) {
	exporter := &keeper{InMemoryExporter: tracetest.NewInMemoryExporter()}
	err = run(t.Context(), demo.Provider{
		BaseURL: server.URL, Key: "key", Model: "some-model",
		Options: autobatcher.Options{Base: server.Transport()},
	}, exporter)
	spans = make(map[string][]tracetest.SpanStub)
	for _, s := range exporter.all {
		spans[s.Name] = append(spans[s.Name], s)
	}
	return spans, err
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{})
		spans, err := exported(t, server)
		if err != nil {
			t.Fatal(err)
		}
		calls, batches, program := spans["chat some-model"], spans["autobatcher.batch"], spans["questions"]
		if len(calls) != len(questions) || len(batches) != 1 || len(program) != 1 {
			t.Fatalf("%d calls, %d batches, %d programs: %v", len(calls), len(batches), len(program), spans)
		}
		var linked []trace.SpanID
		for _, l := range batches[0].Links {
			linked = append(linked, l.SpanContext.SpanID())
		}
		id := attribute.String("autobatcher.batch.id", server.Batches()[0].ID)
		for _, s := range append(calls, batches[0]) {
			if !slices.Contains(s.Attributes, id) {
				t.Errorf("%s: attributes %v, want %v", s.Name, s.Attributes, id)
			}
		}
		for _, s := range calls {
			if s.Parent.SpanID() != program[0].SpanContext.SpanID() {
				t.Errorf("the parent of a call is %v, want the span of the program", s.Parent)
			}
			if !slices.Contains(linked, s.SpanContext.SpanID()) {
				t.Errorf("the batch links to %v, and not to the call %v", linked, s.SpanContext.SpanID())
			}
		}
	})
}

func TestRunReportsErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spans, err := exported(t, batchtest.New(batchtest.Options{FailRate: 1}))
		if err == nil {
			t.Error("no error")
		}
		calls := spans["chat some-model"]
		if len(calls) == 0 {
			t.Error("no call has a span")
		}
		for _, s := range calls {
			if want := attribute.String("error.type", "500"); s.Status.Code != codes.Error || !slices.Contains(s.Attributes, want) {
				t.Errorf("status %v, attributes %v, want an error and %v", s.Status, s.Attributes, want)
			}
		}
	})
}

// A keeper is an InMemoryExporter whose spans survive the Shutdown of the program's
// TracerProvider.
type keeper struct {
	*tracetest.InMemoryExporter
	all tracetest.SpanStubs
}

// Shutdown implements sdktrace.SpanExporter.
func (k *keeper) Shutdown(ctx context.Context) error {
	k.all = k.GetSpans()
	return k.InMemoryExporter.Shutdown(ctx)
}
