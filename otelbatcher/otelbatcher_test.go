package otelbatcher_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/otelbatcher"
	"github.com/autobatcher/autobatcher/provider"
)

// A bench is a Transport with OpenTelemetry, as a process has them.
type bench struct {
	*testing.T
	url       string
	client    *http.Client
	spans     *tracetest.InMemoryExporter
	reader    *metric.ManualReader
	telemetry *otelbatcher.Telemetry
	transport *autobatcher.Transport
	tracer    trace.Tracer
}

func newBench(t *testing.T, server *batchtest.Server, o autobatcher.Options, more ...sdktrace.TracerProviderOption) *bench {
	t.Helper()
	b := &bench{T: t, url: strings.TrimSuffix(server.URL, "/v1"), spans: tracetest.NewInMemoryExporter(), reader: metric.NewManualReader()}
	tracers := sdktrace.NewTracerProvider(append([]sdktrace.TracerProviderOption{sdktrace.WithSyncer(b.spans)}, more...)...)
	b.tracer = tracers.Tracer("test")
	var err error
	b.telemetry, err = otelbatcher.New(otelbatcher.Options{
		TracerProvider: tracers, MeterProvider: metric.NewMeterProvider(metric.WithReader(b.reader)),
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Base, o.OnEvent = server.Transport(), b.telemetry.OnEvent
	if b.transport, err = autobatcher.New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.transport.Close() })
	b.client = &http.Client{Transport: b.telemetry.Wrap(b.transport)}
	return b
}

// post makes a call and reads its answer.
func (b *bench) post(ctx context.Context, path, body string) (status int) {
	b.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url+path, strings.NewReader(body))
	if err != nil {
		b.Error(err)
		return 0
	}
	req.Header.Set("Authorization", "Bearer sk-secret")
	res, err := b.client.Do(req)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		b.Error(err)
	}
	return res.StatusCode
}

// ended returns the spans that ended, whose names begin with a prefix.
func (b *bench) ended(prefix string) (spans tracetest.SpanStubs) {
	synctest.Wait() // for the event handler
	for _, s := range b.spans.GetSpans() {
		if strings.HasPrefix(s.Name, prefix) {
			spans = append(spans, s)
		}
	}
	return spans
}

func (b *bench) one(prefix string) tracetest.SpanStub {
	b.Helper()
	spans := b.ended(prefix)
	if len(spans) != 1 {
		b.Fatalf("%d spans %q, want 1: %v", len(spans), prefix, b.spans.GetSpans())
	}
	return spans[0]
}

// has checks attributes, each "key=value".
func has(t *testing.T, attributes []attribute.KeyValue, want ...string) {
	t.Helper()
	var all []string
	for _, a := range attributes {
		all = append(all, string(a.Key)+"="+a.Value.String())
	}
	for _, w := range want {
		if !slices.Contains(all, w) {
			t.Errorf("attributes lack %s: %q", w, all)
		}
	}
}

func chat(prompt string) string {
	return fmt.Sprintf(`{"model":"m","temperature":0.5,"max_completion_tokens":9,"messages":[{"role":"user","content":%q}]}`, prompt)
}

func TestCallsAndTheirBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, batchtest.New(batchtest.Options{Turnaround: time.Hour}), autobatcher.Options{})
		ctx, parent := b.tracer.Start(t.Context(), "program")
		var calls sync.WaitGroup
		for i := range 3 {
			calls.Go(func() { b.post(ctx, "/v1/chat/completions", chat(fmt.Sprint("prompt", i))) })
		}
		calls.Wait()
		parent.End()

		batch := b.one("autobatcher.batch")
		has(t, batch.Attributes, "autobatcher.batch.size=3", "autobatcher.batch.status=completed", "autobatcher.batch.completed=3")
		if d := batch.EndTime.Sub(batch.StartTime); d < time.Hour || d > time.Hour+time.Minute {
			t.Errorf("the span of the batch has %v, want an hour", d)
		}
		var linked []trace.SpanID
		for _, l := range batch.Links {
			linked = append(linked, l.SpanContext.SpanID())
		}
		spans := b.ended("chat m")
		if len(spans) != 3 || len(linked) != 3 {
			t.Fatalf("%d calls, %d links, want 3", len(spans), len(linked))
		}
		id := ""
		for _, a := range batch.Attributes {
			if a.Key == "autobatcher.batch.id" {
				id = a.Value.AsString()
			}
		}
		for _, s := range spans {
			if s.SpanKind != trace.SpanKindClient || s.Parent.SpanID() != parent.SpanContext().SpanID() || !slices.Contains(linked, s.SpanContext.SpanID()) {
				t.Errorf("span of a call: kind %v, parent %v, links %v", s.SpanKind, s.Parent.SpanID(), linked)
			}
			has(t, s.Attributes, "gen_ai.operation.name=chat", "gen_ai.provider.name=openai", "gen_ai.request.model=m", "gen_ai.response.model=m",
				"gen_ai.request.temperature=0.5", "gen_ai.request.max_tokens=9", "gen_ai.response.finish_reasons=[\"stop\"]", "autobatcher.batch.id="+id)
		}
		for _, s := range b.spans.GetSpans() {
			if text := fmt.Sprint(s); strings.Contains(text, "sk-secret") || strings.Contains(text, "prompt0") {
				t.Errorf("a span has a key or a prompt: %s", text)
			}
		}
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, batchtest.New(batchtest.Options{Turnaround: time.Hour}), autobatcher.Options{})
		b.post(t.Context(), "/v1/chat/completions", chat("hello"))
		b.post(t.Context(), "/v1/embeddings", `{"model":"e","input":"hello"}`)
		b.post(t.Context(), "/v1/responses", `{"model":"r","input":"hello"}`)
		var all metricdata.ResourceMetrics
		if err := b.reader.Collect(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		found := make(map[string]bool)
		for _, m := range all.ScopeMetrics[0].Metrics {
			switch data := m.Data.(type) {
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					found[m.Name+" "+p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Count == 1 && p.Sum > 3600 && p.Sum < 3700
				}
			case metricdata.Histogram[int64]:
				for _, p := range data.DataPoints {
					found[m.Name+" "+p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Count == 1 && p.Sum > 0
				}
			}
		}
		common := ",gen_ai.response.model=%[2]s,%[3]sserver.address=" + strings.TrimPrefix(b.url, "http://")
		for _, call := range [][]string{{"chat", "m"}, {"embeddings", "e"}, {"chat", "r"}} {
			for _, want := range []struct{ metric, kind string }{
				{"gen_ai.client.operation.duration", ""}, {"gen_ai.client.token.usage", "gen_ai.token.type=input,"},
			} {
				name := fmt.Sprintf(want.metric+" gen_ai.operation.name=%[1]s,gen_ai.provider.name=openai,gen_ai.request.model=%[2]s"+common+",server.port=80", call[0], call[1], want.kind)
				if !found[name] {
					t.Errorf("no or a wrong metric %s\n%v", name, found)
				}
			}
		}
	})
}

func TestFailures(t *testing.T) {
	for _, test := range []struct {
		name   string
		server batchtest.Options
		call   func(b *bench)
		want   string
	}{
		{"a line fails", batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome {
			return batchtest.Outcome{Status: 400, Body: []byte(`{"error":{"message":"no"}}`)}
		}}, func(b *bench) { b.post(b.Context(), "/v1/chat/completions", chat("a")) }, "400"},
		{"the deadline passes", batchtest.Options{Turnaround: time.Hour}, func(b *bench) {
			req, _ := http.NewRequestWithContext(b.Context(), http.MethodPost, b.url+"/v1/chat/completions", strings.NewReader(chat("a")))
			req.Header.Set("Authorization", "Bearer sk-secret")
			req.Header.Set("Autobatcher-Deadline", "30s")
			if res, err := b.client.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		}, "batch_deadline_exceeded"},
		{"the caller leaves", batchtest.Options{Turnaround: time.Hour}, func(b *bench) {
			ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
			defer cancel()
			b.post(ctx, "/v1/chat/completions", chat("a"))
		}, "timeout"},
		{"the Transport closes", batchtest.Options{Turnaround: time.Hour}, func(b *bench) {
			time.AfterFunc(time.Minute, func() { _ = b.transport.Close() })
			b.post(b.Context(), "/v1/chat/completions", chat("a"))
		}, "transport_closed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, batchtest.New(test.server), autobatcher.Options{})
				test.call(b)
				span := b.one("chat m")
				has(t, span.Attributes, "error.type="+test.want)
				if span.Status.Code != codes.Error {
					t.Errorf("status %v, want an error", span.Status)
				}
			})
		})
	}
}

func TestStreamReportsUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, batchtest.New(batchtest.Options{}), autobatcher.Options{})
		b.post(t.Context(), "/v1/chat/completions", `{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hello"}]}`)
		b.post(t.Context(), "/v1/responses", `{"model":"r","stream":true,"input":"hello"}`)
		for _, name := range []string{"chat m", "chat r"} {
			span := b.one(name)
			has(t, span.Attributes, "gen_ai.request.stream=true")
			if !slices.ContainsFunc(span.Attributes, func(a attribute.KeyValue) bool {
				return a.Key == "gen_ai.usage.input_tokens" && a.Value.AsInt64() > 0
			}) {
				t.Errorf("%s: no input tokens: %v", name, span.Attributes)
			}
		}
	})
}

// A process is killed while its batch runs. The next process resumes the batch, and the
// span of the batch links to the calls of the first process.
func TestLinksSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{Turnaround: time.Hour})
		store := journal.NewMemory()
		first := newBench(t, server, autobatcher.Options{Journal: store})
		for i := range 2 {
			go first.post(t.Context(), "/v1/chat/completions", chat(fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		_ = first.transport.Close()
		var calls []trace.SpanID
		for _, s := range first.ended("chat m") {
			calls = append(calls, s.SpanContext.SpanID())
		}
		if open := first.ended("autobatcher.batch"); len(calls) != 2 || len(open) != 0 {
			t.Fatalf("%d calls and %d batches ended in the first process, want 2 and none", len(calls), len(open))
		}
		first.telemetry.Close()
		has(t, first.one("autobatcher.batch").Attributes, "autobatcher.batch.running=true")

		second := newBench(t, server, autobatcher.Options{Journal: store})
		if err := second.transport.Recover(server.URL, http.Header{"Authorization": {"Bearer sk-secret"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		batch := second.one("autobatcher.batch")
		has(t, batch.Attributes, "autobatcher.batch.resumed=true", "autobatcher.batch.size=2", "autobatcher.batch.status=completed")
		var linked []trace.SpanID
		for _, l := range batch.Links {
			linked = append(linked, l.SpanContext.SpanID())
		}
		slices.SortFunc(calls, func(a, b trace.SpanID) int { return bytes.Compare(a[:], b[:]) })
		slices.SortFunc(linked, func(a, b trace.SpanID) int { return bytes.Compare(a[:], b[:]) })
		if !slices.Equal(calls, linked) {
			t.Errorf("links to %v, want %v", linked, calls)
		}
		if d := batch.EndTime.Sub(batch.StartTime); d < time.Hour {
			t.Errorf("the span has %v, want the hour since the batch was created", d)
		}
	})
}

// A span that is not recorded is not linked, and links are limited.
func TestLinksAreLimited(t *testing.T) {
	for name, test := range map[string]struct {
		sampler sdktrace.Sampler
		want    int
	}{
		"recorded":     {sdktrace.AlwaysSample(), 128},
		"not recorded": {onlyBatches{}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limits := sdktrace.NewSpanLimits()
				limits.LinkCountLimit = -1 // none
				b := newBench(t, batchtest.New(batchtest.Options{}), autobatcher.Options{}, sdktrace.WithSampler(test.sampler), sdktrace.WithRawSpanLimits(limits))
				var calls sync.WaitGroup
				for i := range 150 {
					calls.Go(func() { b.post(t.Context(), "/v1/chat/completions", chat(fmt.Sprint(i))) })
				}
				calls.Wait()
				if got := len(b.one("autobatcher.batch").Links); got != test.want {
					t.Errorf("%d links, want %d", got, test.want)
				}
			})
		})
	}
}

// onlyBatches records the spans of batches.
type onlyBatches struct{ sdktrace.Sampler }

func (onlyBatches) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	if p.Name == "autobatcher.batch" {
		return sdktrace.SamplingResult{Decision: sdktrace.RecordAndSample}
	}
	return sdktrace.SamplingResult{Decision: sdktrace.Drop}
}

func TestCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		openAI := provider.OpenAI()
		b := newBench(t, batchtest.New(batchtest.Options{}), autobatcher.Options{Provider: &openAI})
		b.post(t.Context(), "/v1/chat/completions", strings.ReplaceAll(chat("hello"), `"m"`, `"gpt-4.1-mini"`))
		call, batch := value(b.one("chat"), "autobatcher.cost_usd"), value(b.one("autobatcher.batch"), "autobatcher.batch.cost_usd")
		if call <= 0 || math.Abs(call-batch) > 1e-12 {
			t.Errorf("the call cost %v, the batch %v; want the same, more than nothing", call, batch)
		}
		if savings := value(b.one("autobatcher.batch"), "autobatcher.batch.savings_usd"); savings <= 0 {
			t.Errorf("savings %v, want more than nothing", savings)
		}
	})
}

// value returns a number among the attributes of a span, or -1.
func value(span tracetest.SpanStub, key attribute.Key) float64 {
	for _, a := range span.Attributes {
		if a.Key == key {
			return a.Value.AsFloat64()
		}
	}
	return -1
}

// Requests that are not model calls have no span, and a call in real time has one.
func TestOtherRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, batchtest.New(batchtest.Options{}), autobatcher.Options{})
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, b.url+"/v1/models", nil)
		if res, err := b.client.Do(req); err == nil {
			res.Body.Close()
		}
		if spans := b.ended(""); len(spans) != 0 {
			t.Errorf("spans %v, want none", spans)
		}
		req, _ = http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/v1/chat/completions", io.MultiReader(strings.NewReader(chat("a"))))
		req.Header.Set("Authorization", "Bearer sk-secret")
		req.Header.Set("Autobatcher-Mode", "realtime")
		res, err := b.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close() // the answer is not read
		has(t, b.one("chat").Attributes, "gen_ai.operation.name=chat")
	})
}
