package autobatcher_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// The embedded server stands in for a provider. It echoes, and so that the
// example ends at once the batch is sent with its first call and looked at every
// millisecond; against a real provider the zero Options are right.
func Example() {
	server := batchtest.NewServer(batchtest.Options{})
	defer server.Close()

	transport, err := autobatcher.New(autobatcher.Options{BatchSize: 1, PollInterval: time.Millisecond})
	if err != nil {
		log.Fatal(err)
	}
	defer transport.Close()
	client := openai.NewClient(option.WithHTTPClient(transport.Client()),
		option.WithBaseURL(server.URL), option.WithAPIKey("key"))

	completion, err := client.Chat.Completions.New(context.Background(), question("Why is the sky blue?"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(completion.Choices[0].Message.Content)
	// Output: You said: Why is the sky blue?
}

// Calls that are made concurrently ride in one batch. It is sent when it is
// full, here with the third call, or when its window ends.
func ExampleTransport() {
	server := batchtest.NewServer(batchtest.Options{})
	defer server.Close()
	transport, err := autobatcher.New(autobatcher.Options{BatchSize: 3, PollInterval: time.Millisecond})
	if err != nil {
		log.Fatal(err)
	}
	defer transport.Close()
	client := newClient(transport, server)

	questions := []string{"Why is the sky blue?", "Why is the sea salty?", "Why is grass green?"}
	answers := make([]string, len(questions))
	var wg sync.WaitGroup
	for i, text := range questions {
		wg.Go(func() { answers[i] = ask(client, text) })
	}
	wg.Wait()

	for _, answer := range answers {
		fmt.Println(answer)
	}
	for _, batch := range server.Batches() {
		fmt.Println("a batch of", batch.Total)
	}
	// Output:
	// You said: Why is the sky blue?
	// You said: Why is the sea salty?
	// You said: Why is grass green?
	// a batch of 3
}

// NoMoreCalls says that no more calls are coming: what waits is sent now. A program calls
// it when it has started its last call; the goroutine of that call need not have begun.
func ExampleTransport_NoMoreCalls() {
	server := batchtest.NewServer(batchtest.Options{})
	defer server.Close()
	transport, err := autobatcher.New(autobatcher.Options{BatchWindow: time.Hour, PollInterval: time.Millisecond})
	if err != nil {
		log.Fatal(err)
	}
	defer transport.Close()
	client := newClient(transport, server)

	answers := make([]string, 2)
	var wg sync.WaitGroup
	for i, text := range []string{"Why is the sky blue?", "Why is the sea salty?"} {
		wg.Go(func() { answers[i] = ask(client, text) })
	}
	transport.NoMoreCalls()
	wg.Wait()
	for _, answer := range answers {
		fmt.Println(answer)
	}
	// Output:
	// You said: Why is the sky blue?
	// You said: Why is the sea salty?
}

// Shutdown sends what is queued and waits until every call has its answer.
func ExampleTransport_Shutdown() {
	server := batchtest.NewServer(batchtest.Options{})
	defer server.Close()
	submitted := make(chan struct{})
	transport, err := autobatcher.New(autobatcher.Options{
		BatchSize:    1,
		PollInterval: time.Millisecond,
		OnEvent: func(e autobatcher.Event) {
			if e.Name == autobatcher.BatchSubmitted {
				close(submitted)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	client := newClient(transport, server)

	answers := make(chan string, 1)
	go func() { answers <- ask(client, "Why is the sky blue?") }()
	<-submitted // Shutdown takes no new calls
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := transport.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-answers)

	_, err = client.Chat.Completions.New(context.Background(), question("And now?"), option.WithMaxRetries(0))
	fmt.Println(errors.Is(err, autobatcher.ErrClosed))
	// Output:
	// You said: Why is the sky blue?
	// true
}

// OnEvent tells what happens to each batch.
func ExampleOptions_onEvent() {
	server := batchtest.NewServer(batchtest.Options{})
	defer server.Close()
	transport, err := autobatcher.New(autobatcher.Options{
		BatchSize:    1,
		PollInterval: time.Millisecond,
		OnEvent:      func(e autobatcher.Event) { fmt.Println(e.Name) },
	})
	if err != nil {
		log.Fatal(err)
	}
	ask(newClient(transport, server), "Why is the sky blue?")
	if err := transport.Shutdown(context.Background()); err != nil {
		log.Fatal(err)
	}
	// Output:
	// batch_submitted
	// batch_progress
	// batch_completed
	// client_closing
}

// A call that cannot wait is sent at once, at full price, by a header.
func ExampleTransport_RoundTrip_realtime() {
	server := batchtest.NewServer(batchtest.Options{})
	defer server.Close()
	transport, err := autobatcher.New(autobatcher.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer transport.Close()
	client := newClient(transport, server)

	fmt.Println(ask(client, "Quick, what is the time?", option.WithHeader("Autobatcher-Mode", "realtime")))
	fmt.Println("batches:", len(server.Batches()))
	// Output:
	// You said: Quick, what is the time?
	// batches: 0
}

func newClient(transport *autobatcher.Transport, server *batchtest.Server) openai.Client {
	return openai.NewClient(option.WithHTTPClient(transport.Client()),
		option.WithBaseURL(server.URL), option.WithAPIKey("key"))
}

func question(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:    "gpt-4.1-mini",
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)},
	}
}

func ask(client openai.Client, text string, opts ...option.RequestOption) string {
	completion, err := client.Chat.Completions.New(context.Background(), question(text), opts...)
	if err != nil {
		log.Fatal(err)
	}
	return completion.Choices[0].Message.Content
}

// A web server of the program receives OpenAI's webhooks, verifies the signature, and has
// the batch polled at once.
func ExampleTransport_Wake() {
	transport, err := autobatcher.New(autobatcher.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer transport.Close()
	client := openai.NewClient(option.WithHTTPClient(transport.Client()), option.WithWebhookSecret(os.Getenv("OPENAI_WEBHOOK_SECRET")))

	http.HandleFunc("POST /webhook", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		event, err := client.Webhooks.Unwrap(body, r.Header)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		transport.Wake(event.Data.ID) // other ids are harmless
	})
}
