// Command compare-python makes calls and prints what one call costs: CPU microseconds
// (user and system) and KB of memory at the peak.
//
//	compare-python library BASE-URL CALLS BATCH-SIZE   through the Transport, with openai-go; the cost of this process
//	compare-python direct  BASE-URL CALLS BATCH-SIZE   the same without a Transport: what openai-go costs
//	compare-python serve   BASE-URL CALLS PID          to a proxy; the cost of the process PID
//
// Only Linux has the files that the command reads.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/autobatcher/autobatcher"
)

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: compare-python library|direct|serve BASE-URL CALLS BATCH-SIZE|PID")
	}
	base, calls, last := os.Args[2], number(os.Args[3]), number(os.Args[4])
	call, pid := post(base), last
	if os.Args[1] != "serve" {
		pid = os.Getpid()
		client := http.DefaultClient
		if os.Args[1] == "library" {
			transport, err := autobatcher.New(autobatcher.Options{BatchSize: last, BatchWindow: time.Second, PollInterval: time.Second})
			if err != nil {
				log.Fatal(err)
			}
			defer transport.Close()
			client = transport.Client()
		} else {
			client = &http.Client{Transport: &held{calls: int64(calls), all: make(chan struct{})}}
		}
		call = create(openai.NewClient(option.WithHTTPClient(client), option.WithBaseURL(base), option.WithAPIKey("sk-compare")))
	}
	call(calls) // what the first call loads
	before := usage(pid)
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() { call(i) })
	}
	wg.Wait()
	after := usage(pid)
	fmt.Println((after.cpu-before.cpu).Microseconds()/int64(calls),
		strconv.FormatFloat(float64(after.peak-before.resident)/float64(calls), 'f', 1, 64))
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		log.Fatal(err)
	}
	return n
}

// create makes a call with openai-go.
func create(client openai.Client) func(i int) {
	return func(i int) {
		answer, err := client.Chat.Completions.New(context.Background(), openai.ChatCompletionNewParams{
			Model: "gpt-4.1-mini", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(fmt.Sprint("number ", i))},
		})
		if err != nil || !strings.Contains(answer.Choices[0].Message.Content, fmt.Sprint("number ", i)) {
			log.Fatalf("call %d: %v, %v", i, answer, err)
		}
	}
}

// post makes a call with net/http, over a connection of its own. The calls begin a
// millisecond after each other, and are made again where the server has no room for the
// connection: aiohttp's queue has room for 128.
func post(base string) func(i int) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: -1}}
	return func(i int) {
		body := fmt.Sprintf(`{"model":"gpt-4.1-mini","messages":[{"role":"user","content":"number %d"}]}`, i)
		var res *http.Response
		err := io.EOF
		time.Sleep(time.Duration(i) * time.Millisecond)
		for try := 0; err != nil && try < 10; try++ {
			res, err = client.Post(base+"/chat/completions", "application/json", strings.NewReader(body))
			if err != nil {
				time.Sleep(time.Second)
			}
		}
		if err != nil {
			log.Fatal(err)
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != 200 || !bytes.Contains(answer, fmt.Append(nil, "number ", i)) {
			log.Fatalf("call %d: %d %.300s, %v", i, res.StatusCode, answer, err)
		}
	}
}

// A held transport answers by itself: the first call at once, and the others when all of
// them wait. In all other ways openai-go has the same to do.
type held struct {
	waiting atomic.Int64
	calls   int64
	all     chan struct{} // closed when all calls wait
}

func (h *held) RoundTrip(req *http.Request) (*http.Response, error) {
	asked, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	switch h.waiting.Add(1) {
	case 1:
	case h.calls + 1:
		close(h.all)
	default:
		<-h.all
	}
	text := fmt.Sprintf(`{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4.1-mini","choices":[{"index":0,"message":{"role":"assistant","content":%q},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`, asked)
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(text)), Request: req}, nil
}

// A used is what a process has used.
type used struct {
	cpu            time.Duration
	resident, peak int // KB
}

// usage reads what a process has used.
func usage(pid int) (u used) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		log.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from the third field on
	const tick = 10 * time.Millisecond
	u.cpu = time.Duration(number(fields[11])+number(fields[12])) * tick
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		log.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "VmHWM: %d kB", &u.peak)
		fmt.Sscanf(line, "VmRSS: %d kB", &u.resident)
	}
	return u
}
