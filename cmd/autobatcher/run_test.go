package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/provider"

	"github.com/autobatcher/autobatcher"
)

func TestChildEnv(t *testing.T) {
	tests := []struct {
		name string
		env  []string
		want []string
	}{
		{
			"the OpenAI variables are replaced",
			[]string{"A=1", "OPENAI_API_KEY=secret", "OPENAI_BASE_URL=x", "OPENAI_API_BASE=y", "OPENAI_ORG_ID=o"},
			[]string{"A=1", "OPENAI_ORG_ID=o", "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1"},
		},
		{
			"exceptions from the HTTP proxy are kept",
			[]string{"NO_PROXY=a,b", "no_proxy=*"},
			[]string{"NO_PROXY=a,b", "no_proxy=*", "NO_PROXY=a,b,127.0.0.1"},
		},
		{
			"an existing exception is not repeated",
			[]string{"NO_PROXY=127.0.0.1,b", "no_proxy=127.0.0.1"},
			[]string{"NO_PROXY=127.0.0.1,b", "no_proxy=127.0.0.1"},
		},
	}
	for _, tt := range tests {
		want := slices.Concat(tt.want, []string{"OPENAI_BASE_URL=u/v1", "OPENAI_API_BASE=u/v1", "OPENAI_API_KEY=k", "LANGCHAIN_OPENAI_STREAM_CHUNK_TIMEOUT_S=0"})
		if diff := cmp.Diff(want, childEnv(tt.env, "u", "k", provider.OpenAI().AuthHeader)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// Clients of Azure find the proxy, and a timeout that the user has chosen stays.
func TestChildEnvOfAzure(t *testing.T) {
	azure := provider.AzureLegacy()
	got := childEnv([]string{"AZURE_OPENAI_ENDPOINT=x", "LANGCHAIN_OPENAI_STREAM_CHUNK_TIMEOUT_S=5", "NO_PROXY=*", "no_proxy=*"}, "u", "k", azure.AuthHeader)
	want := []string{
		"LANGCHAIN_OPENAI_STREAM_CHUNK_TIMEOUT_S=5", "NO_PROXY=*", "no_proxy=*", "OPENAI_BASE_URL=u/v1", "OPENAI_API_BASE=u/v1", "OPENAI_API_KEY=k",
		"AZURE_OPENAI_ENDPOINT=u", "AZURE_OPENAI_API_KEY=k", "AZURE_API_BASE=u", "AZURE_API_KEY=k",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSummary(t *testing.T) {
	s := status{Waiting: 1, Answered: 1234, Failed: 2, Batches: 1, PromptTokens: 5678, CompletionTokens: 9, Elapsed: 61234 * time.Millisecond}
	want := "autobatcher: 1,237 calls (1,234 answered, 3 failed) in 1 batch; 5,678 prompt and 9 completion tokens; 1m1.2s"
	if got := s.summary(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	s.Cost = autobatcher.Cost{USD: 0.5, Savings: 1, Priced: 9, Unpriced: 1, PricesDate: "2026-11-26"}
	want += "\nautobatcher: the answers cost about $0.5000, and saved about $1.0000 (estimates with prices of 2026-11-26; without 1 answer whose price is not known)"
	if got := s.summary(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	want = "autobatcher: 1 waiting, 0 in flight, 1,234 answered, 2 failed; 1 batch; about $0.5000, saved $1.0000; 1m1s"
	if got := s.line(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	s.Cost, s.Sandbox = autobatcher.Cost{USD: 0.5, Savings: -1, Priced: 9, PricesDate: "2026-11-26"}, true
	s.Prices = "own.json"
	if got := s.costs(); !strings.Contains(got, "(estimates with prices of own.json and of 2026-11-26)") {
		t.Error(got)
	}
	s.Prices = ""
	if got := s.line(); !strings.Contains(got, "; about $0.5000, saved -$1.0000 (made up); ") {
		t.Error(got)
	}
	if got := s.costs(); got != "\nautobatcher: at the provider, the answers would cost about $0.5000, and save about -$1.0000 (estimates with prices of 2026-11-26)" {
		t.Error(got)
	}
	s.Cost = autobatcher.Cost{Unpriced: 1}
	if got := s.costs(); !strings.Contains(got, "the cost is not known") {
		t.Error(got)
	}
	s.Cost.OtherTier = 1
	if got := s.costs(); !strings.Contains(got, "\nautobatcher: the provider billed 1 call at the flex tier at another tier, ") {
		t.Error(got)
	}
	s.Cost.OtherTier, s.Refused = 0, 3
	if got := s.summary(); !strings.HasSuffix(got, "\nautobatcher: the budget refused 3 calls with 402, whose message says why") {
		t.Error(got)
	}
	s.Refused, s.Resumed = 0, 2
	if got := s.sent(); got != "1 batch and 2 batches of an earlier run" {
		t.Error(got)
	}
	s.Resumed, s.Passed = 0, 2
	if got := s.summary(); !strings.Contains(got, " in 1 batch and 2 calls in real time; ") ||
		!strings.HasSuffix(got, "\nautobatcher: the cost of 2 answers in real time is not estimated: real time is the full price, and saves nothing") {
		t.Error(got)
	}
	s.Passed, s.Cost = 0, autobatcher.Cost{}
	s.Done, s.Running, s.Left = 7, []string{"a", "b", "c"}, 90*time.Second
	want = "autobatcher: 1 waiting, 0 in flight (7 finished at the provider), 1,234 answered, 2 failed; 1 batch (a, b and 1 more); 1m1s, about 1m30s left"
	if got := s.line(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// The summary has the cost by lane if the answers are of more than one lane.
func TestCostByLane(t *testing.T) {
	part := func(lane autobatcher.Mode, usd, savings float64) autobatcher.CostPart {
		return autobatcher.CostPart{Lane: lane, Cost: autobatcher.Cost{USD: usd, Savings: savings, Priced: 1}}
	}
	s := status{Answered: 5, Cost: autobatcher.Cost{USD: 1, Priced: 5, PricesDate: "2026-11-26"}}
	s.Costs = []autobatcher.CostPart{part(autobatcher.ModeBatch, 0.25, 0.25), part(autobatcher.ModeBatch, 0.5, 0.5)}
	if got := s.summary(); strings.Contains(got, "lane") {
		t.Error(got)
	}
	s.Costs = append(s.Costs, part(autobatcher.ModeRealtime, 2, 0), autobatcher.CostPart{Lane: autobatcher.ModeFlex, Cost: autobatcher.Cost{Unpriced: 1}}, part("", 0.125, 0.125))
	want := ")\nautobatcher: of this cost, by lane: in batches $0.7500 (savings $0.7500), at the flex tier not known, " +
		"in real time after another lane $2.0000 (savings $0), in lanes that are not known $0.1250 (savings $0.1250)"
	if got := s.summary(); !strings.HasSuffix(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Small amounts are not shown as $0.0000.
func TestDollars(t *testing.T) {
	for usd, want := range map[float64]string{
		0: "$0", 12.5: "$12.5000", 0.001: "$0.0010", 0.00099: "$0.00099", 0.00012: "$0.00012", 0.0000049: "$0.0000049", 1e-9: "$0.0000000010", -0.00012: "-$0.00012",
	} {
		if got := dollars(usd); got != want {
			t.Errorf("%v is %s, want %s", usd, got, want)
		}
	}
}

// Progress has a line for each change, at most once in two seconds, and a line every
// five minutes without a change.
func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		snapshot := func() status {
			elapsed := time.Since(began)
			s := status{Elapsed: elapsed}
			if elapsed >= time.Second {
				s.Waiting = int(min(elapsed, 4*time.Second) / (500 * time.Millisecond))
			}
			return s
		}
		var out bytes.Buffer
		p := showProgress(&out, snapshot)
		time.Sleep(11 * time.Minute)
		p.stop()
		p.stop() // a second stop has no effect
		want := "autobatcher: 2 waiting, 0 in flight, 0 answered; 0 batches; 1s\n" +
			"autobatcher: 6 waiting, 0 in flight, 0 answered; 0 batches; 3s\n" +
			"autobatcher: 8 waiting, 0 in flight, 0 answered; 0 batches; 5s\n" +
			"autobatcher: 8 waiting, 0 in flight, 0 answered; 0 batches; 5m5s\n" +
			"autobatcher: 8 waiting, 0 in flight, 0 answered; 0 batches; 10m5s\n"
		if got := out.String(); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}

// The bar restores the terminal.
func TestBarInStatusLine(t *testing.T) {
	var out lockedBuffer
	l := &statusLine{out: &out, size: func() (int, int, error) { return 100, 24, nil }}
	p := &progress{quit: make(chan struct{})}
	p.work.Go(func() { p.bar(l, func() status { return status{InFlight: 3, Answered: 4, Batches: 2} }) })
	for deadline := time.Now().Add(testTimeout); !strings.Contains(out.String(), "3 in flight, 4 answered; 2 batches"); {
		if time.Now().After(deadline) {
			t.Fatalf("no bar is shown: %q", out.String())
		}
		time.Sleep(time.Millisecond)
	}
	p.stop()
	got := out.String()
	if !strings.HasPrefix(got, "\n\x1b7\x1b[1;23r\x1b8\x1b[1A\x1b7\x1b[?7l\x1b[24;1H\x1b[2K") {
		t.Errorf("the last line is not separated first: %q", got)
	}
	if !strings.HasSuffix(got, "\x1b7\x1b[r\x1b[24;1H\x1b[2K\x1b8") {
		t.Errorf("the whole terminal does not scroll again at the end: %q", got)
	}
	if n := strings.Count(got, "\n"); n != 1 {
		t.Errorf("the terminal scrolled %d times, want once: %q", n, got)
	}
}

func TestStatusLine(t *testing.T) {
	var out bytes.Buffer
	height := 24
	l := &statusLine{out: &out, size: func() (int, int, error) { return 80, height, nil }}
	show := func(text string) string {
		out.Reset()
		_, _ = l.WriteString(text)
		if err := l.Flush(1); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := show("one\n"); !strings.Contains(got, "one\x1b[?7h\x1b8") {
		t.Errorf("the first text is not shown: %q", got)
	}
	if got := show("one\n"); got != "" {
		t.Errorf("an unchanged text is written again: %q", got)
	}
	if got := show("two\n"); strings.Contains(got, "r\x1b8") || !strings.Contains(got, "two") {
		t.Errorf("not only the second text is written: %q", got)
	}
	height = 30
	if got := show("two\n"); !strings.Contains(got, "\x1b[1;29r") {
		t.Errorf("in a larger terminal the last line is not separated again: %q", got)
	}
	height = 2
	if got := show("three\n"); got != "" {
		t.Errorf("the last line of a terminal with two lines is separated: %q", got)
	}
}

// Each event is a complete line with sorted keys, also with concurrent events.
func TestEventLines(t *testing.T) {
	r, w := io.Pipe()
	handle := eventLines(w, slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			handle(autobatcher.Event{Name: autobatcher.BatchCancelledUpstream, BatchID: "b", Endpoint: "/v1/embeddings", Time: time.Unix(1, 5e8)})
		})
	}
	go func() { wg.Wait(); w.Close() }()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"batch_id":"b","endpoint":"/v1/embeddings","event":"batch_cancelled_upstream","source":"autobatcher","ts":1.5}`
	lines := strings.Split(strings.TrimSuffix(string(all), "\n"), "\n")
	if len(lines) != 20 {
		t.Errorf("%d lines, want 20", len(lines))
	}
	for _, line := range lines {
		if line != want || !json.Valid([]byte(line)) {
			t.Errorf("got  %s\nwant %s", line, want)
		}
	}
}

// When the reader of stdout closes the pipe, serve still answers calls.
func TestServeWithClosedStdout(t *testing.T) {
	cmd := exec.Command("autobatcher", "serve", "--sandbox", "--port", "0", "--batch-window", "0", "--poll-interval", "0.02")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()         //nolint:errcheck // the process is killed
	defer cmd.Process.Kill() //nolint:errcheck // the process runs
	stdout.Close()
	var base []string
	for deadline := time.Now().Add(testTimeout); base == nil; time.Sleep(time.Millisecond) {
		if base = baseURL.FindStringSubmatch(log.String()); time.Now().After(deadline) {
			t.Fatalf("serve does not listen: %s", log.String())
		}
	}
	for range 3 { // without the handling of SIGPIPE the second event would end serve
		res, err := http.Post(base[1]+"/embeddings", "application/json", strings.NewReader(`{"model":"m","input":"hi"}`))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("a call is answered with %s", res.Status)
		}
	}
	if !strings.Contains(log.String(), "output could not be written") {
		t.Errorf("the log does not report lost events: %s", log.String())
	}
}
