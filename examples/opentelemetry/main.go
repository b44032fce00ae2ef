// Opentelemetry reports calls and batches to OpenTelemetry.
//
//	go run ./examples/opentelemetry
//
// runs offline, with an embedded Batch API server that echoes each prompt, and prints
// the spans: one for the program, one for each call, and one for the batch, with links
// to the calls. A real program gives its TracerProvider an exporter for OTLP instead. With
// -real and OPENAI_API_KEY (and, optionally, OPENAI_BASE_URL and OPENAI_MODEL), the
// program calls a real provider.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
	"github.com/autobatcher/autobatcher/otelbatcher"
)

var questions = []string{
	"Why is the sky blue?",
	"Why is the sea salty?",
	"Why is grass green?",
}

func main() {
	demo.Main(func(ctx context.Context, api demo.Provider, stdout io.Writer) error {
		return run(ctx, api, &printer{out: stdout})
	})
}

func run(ctx context.Context, api demo.Provider, exporter sdktrace.SpanExporter) (err error) {
	tracers := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
	defer func() { err = errors.Join(err, tracers.Shutdown(context.WithoutCancel(ctx))) }() // exports the last spans
	telemetry, err := otelbatcher.New(otelbatcher.Options{TracerProvider: tracers})
	if err != nil {
		return err
	}
	defer telemetry.Close() // after the Transport

	options := api.Options
	options.OnEvent = telemetry.OnEvent // the spans of batches
	transport, err := autobatcher.New(options)
	if err != nil {
		return err
	}
	defer transport.Close()
	client := openai.NewClient(
		option.WithHTTPClient(&http.Client{Transport: telemetry.Wrap(transport)}), // the spans of calls
		option.WithBaseURL(api.BaseURL),
		option.WithAPIKey(api.Key),
	)

	ctx, span := tracers.Tracer("example").Start(ctx, "questions")
	defer span.End()
	errs := make([]error, len(questions))
	var calls sync.WaitGroup
	for i, question := range questions {
		calls.Go(func() { errs[i] = ask(ctx, client, api.Model, question) })
	}
	calls.Wait()
	return errors.Join(errs...)
}

func ask(ctx context.Context, client openai.Client, model, question string) error {
	_, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
		Model:    model,
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)},
	})
	return err
}

// A printer is an exporter that prints spans.
type printer struct{ out io.Writer }

// ExportSpans implements sdktrace.SpanExporter.
func (p *printer) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	for _, s := range spans {
		fmt.Fprintf(p.out, "%-20s span %s in trace %s, %v\n", s.Name(), s.SpanContext().SpanID(), s.SpanContext().TraceID(), s.EndTime().Sub(s.StartTime()).Round(time.Millisecond))
		for _, a := range s.Attributes() {
			fmt.Fprintf(p.out, "    %s: %s\n", a.Key, a.Value.String())
		}
		for _, link := range s.Links() {
			fmt.Fprintf(p.out, "    link to span %s in trace %s\n", link.SpanContext.SpanID(), link.SpanContext.TraceID())
		}
	}
	return nil
}

// Shutdown implements sdktrace.SpanExporter.
func (p *printer) Shutdown(context.Context) error { return nil }
