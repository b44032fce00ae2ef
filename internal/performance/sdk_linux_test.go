package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/measure"
)

// sdkEnv makes a process of the test binary make the calls of BenchmarkSDK. The value
// is the URL of the API for a Transport, the URL after "realtime:" for calls in real
// time, or "hold" for a RoundTripper that only holds the calls.
const sdkEnv = "AUTOBATCHER_BENCH_SDK"

const (
	sdkCalls = 20_000
	sdkBody  = 1 << 10

	// realtimeConns limits the connections of the calls in real time: without a limit,
	// each of 20,000 calls opens a connection.
	realtimeConns = 100
)

func TestMain(m *testing.M) {
	if way := os.Getenv(sdkEnv); way != "" {
		if err := callSDK(way); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// An sdkUsage is what the calls of one process used.
type sdkUsage struct {
	CPU    time.Duration
	Memory int64 // bytes: the peak of the process, less what was resident before the calls
}

// BenchmarkSDK makes 20,000 concurrent calls with openai-go, of 1 KB in and out, each way
// in a process of its own: through the Transport; through a RoundTripper that only reads
// the body and answers when all calls wait, which is the cost of the SDK; and in real
// time on 100 connections. The API is in this process, and is not measured.
func BenchmarkSDK(b *testing.B) {
	for b.Loop() {
		upstream := batchtest.NewServer(batchtest.Options{Answer: answer})
		floor := runSDK(b, "hold")
		realtime := runSDK(b, "realtime:"+upstream.URL)
		ours := runSDK(b, upstream.URL)
		upstream.Close()
		b.ReportMetric(float64(floor.CPU.Nanoseconds())/1e3/sdkCalls, "floor-cpu-µs/call")
		b.ReportMetric(float64(realtime.CPU.Nanoseconds())/1e3/sdkCalls, "realtime-cpu-µs/call")
		b.ReportMetric(float64(ours.CPU.Nanoseconds())/1e3/sdkCalls, "cpu-µs/call")
		b.ReportMetric(float64(floor.Memory)/1024/sdkCalls, "floor-KB/call")
		b.ReportMetric(float64(ours.Memory)/1024/sdkCalls, "KB/call")
		b.ReportMetric(0, "ns/op")
	}
}

// runSDK makes the calls in a process of its own.
func runSDK(b *testing.B, way string) (u sdkUsage) {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), sdkEnv+"="+way)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &u)
	}
	if err != nil {
		b.Fatalf("%s: %v: %s", way, err, out)
	}
	return u
}

// callSDK makes the calls, and writes the usage to stdout.
func callSDK(way string) error {
	opts := []option.RequestOption{option.WithAPIKey("key"), option.WithBaseURL(way)}
	url, realtime := strings.CutPrefix(way, "realtime:")
	switch {
	case way == "hold":
		opts = append(opts, option.WithBaseURL("http://held.invalid"), option.WithHTTPClient(&http.Client{Transport: &holder{all: make(chan struct{})}}))
	case realtime:
		base := http.DefaultTransport.(*http.Transport).Clone()
		base.MaxConnsPerHost, base.MaxIdleConnsPerHost = realtimeConns, realtimeConns
		opts = append(opts, option.WithBaseURL(url), option.WithHTTPClient(&http.Client{Transport: base}))
	default:
		tr, err := autobatcher.New(autobatcher.Options{BatchSize: sdkCalls, BatchWindow: time.Minute, QuietAfter: -1, PollInterval: time.Second})
		if err != nil {
			return err
		}
		defer tr.Close()
		opts = append(opts, option.WithHTTPClient(tr.Client()))
	}
	u, err := useSDK(openai.NewClient(opts...))
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(u)
}

// useSDK makes all calls at once, and measures from the first call to the last answer.
func useSDK(client openai.Client) (sdkUsage, error) {
	runtime.GC()
	before, err := measure.Process(os.Getpid())
	if err != nil {
		return sdkUsage{}, err
	}
	var wrong atomic.Pointer[error]
	var wg sync.WaitGroup
	for i := range sdkCalls {
		wg.Go(func() {
			res, err := client.Chat.Completions.New(context.Background(), openai.ChatCompletionNewParams{
				Model: "m", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(fmt.Sprintf("call %08d %s", i, strings.Repeat("x", sdkBody-100)))},
			})
			if err == nil && (len(res.Choices) != 1 || len(res.Choices[0].Message.Content) != 1000) {
				err = fmt.Errorf("call %d got %s", i, res.RawJSON())
			}
			if err != nil {
				wrong.Store(&err)
			}
		})
	}
	wg.Wait()
	if err := wrong.Load(); err != nil {
		return sdkUsage{}, *err
	}
	after, err := measure.Process(os.Getpid())
	return sdkUsage{after.CPU - before.CPU, after.Peak - before.RSS}, err
}

// A holder is a RoundTripper that reads the bodies, and answers when all calls wait.
type holder struct {
	waiting atomic.Int64
	all     chan struct{}
}

// RoundTrip implements http.RoundTripper.
func (h *holder) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if h.waiting.Add(1) == sdkCalls {
		close(h.all)
	}
	<-h.all
	runtime.KeepAlive(body) // held as long as the call
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r, ContentLength: int64(len(oneAnswer)),
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(bytes.Clone(oneAnswer))),
	}, nil
}
