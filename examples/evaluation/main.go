// Evaluation asks a model a thousand questions, grades the answers, and shows progress
// and cost.
//
//	go run ./examples/evaluation
//
// runs offline, with an embedded Batch API server that echoes each prompt. The costs are
// estimates by OpenAI's prices, and not real: the embedded server costs nothing. With -real
// and OPENAI_API_KEY (and, optionally, OPENAI_BASE_URL and OPENAI_MODEL), the program
// calls a real provider.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
	"github.com/autobatcher/autobatcher/provider"
)

// questions is the number of questions. Each is asked in a goroutine of its own: a limit
// on the calls that are made at once would be a limit on the size of a batch.
const questions = 1000

func main() { demo.Main(run) }

func run(ctx context.Context, api demo.Provider, stdout io.Writer) error {
	options := api.Options
	options.BatchSize = questions // one batch: it is sent when all calls are there
	if options.BatchWindow > 0 {  // the embedded server behaves like OpenAI
		openAI := provider.OpenAI()
		options.Provider = &openAI
	}
	var running atomic.Pointer[autobatcher.Counts]
	options.OnEvent = func(e autobatcher.Event) {
		if e.Name == autobatcher.BatchProgress {
			running.Store(&e.Counts)
		}
	}
	transport, err := autobatcher.New(options)
	if err != nil {
		return err
	}
	defer transport.Close()
	client := openai.NewClient(option.WithHTTPClient(transport.Client()), option.WithBaseURL(api.BaseURL), option.WithAPIKey(api.Key))

	stop := report(stdout, transport, &running)
	var right, wrong atomic.Int64
	errs := make([]error, questions)
	var calls sync.WaitGroup
	for i := range questions {
		calls.Go(func() {
			answer, err := ask(ctx, client, api.Model, fmt.Sprintf("What is %d + %d?", i, i))
			switch {
			case err != nil:
				errs[i] = err
			case strings.Contains(answer, fmt.Sprint(i)): // a real evaluation knows the right answer
				right.Add(1)
			default:
				wrong.Add(1)
			}
		})
	}
	calls.Wait()
	stop()
	cost := transport.Stats().Cost
	fmt.Fprintf(stdout, "%d right, %d wrong, %d failed\n", right.Load(), wrong.Load(), questions-right.Load()-wrong.Load())
	fmt.Fprintf(stdout, "about $%.4f, and $%.4f less than in real time (an estimate, by prices of %s)\n", cost.USD, cost.Savings, cost.PricesDate)
	return errors.Join(errs...)
}

// ask is ordinary code.
func ask(ctx context.Context, client openai.Client, model, question string) (string, error) {
	completion, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
		Model:    model,
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)},
	})
	if err != nil {
		return "", err
	}
	if len(completion.Choices) == 0 {
		return "", errors.New("the answer has no choices")
	}
	return completion.Choices[0].Message.Content, nil
}

// report prints the progress once a second until stop is called.
func report(w io.Writer, transport *autobatcher.Transport, running *atomic.Pointer[autobatcher.Counts]) (stop func()) {
	ticker := time.NewTicker(time.Second)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ticker.C:
				s := transport.Stats()
				line := fmt.Sprintf("%d queued, %d running, %d answered", s.Queued, s.Running, s.Answered)
				if c := running.Load(); c != nil {
					line += fmt.Sprintf("; the provider has finished %d of %d", c.Completed+c.Failed, c.Total)
				}
				fmt.Fprintln(w, line)
			case <-done:
				return
			}
		}
	}()
	return func() {
		ticker.Stop()
		close(done)
		<-ended
	}
}
