// Service is a web service that is deployed while its batches run. Before it ends, the
// service sends what is queued and leaves the batches running; the next process finds
// the batches in the journal, and pays for nothing twice.
//
//	go run ./examples/service
//
// runs offline, with an embedded Batch API server that echoes each prompt. The program
// starts the service, gives the service three tasks, stops the service as a deployment
// does, starts the service again, and prints the answers. With -real and OPENAI_API_KEY (and, optionally, OPENAI_BASE_URL and
// OPENAI_MODEL), the batches run at a real provider.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/examples/internal/demo"
)

func main() { demo.Main(run) }

// run plays two deployments of the service.
func run(ctx context.Context, api demo.Provider, stdout io.Writer) error {
	dir, err := os.MkdirTemp("", "service-") // a real service keeps its folder
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	var ids []string
	err = deploy(ctx, dir, api, func(url string) error {
		for _, text := range []string{"the first text", "the second text", "the third text"} {
			id, err := post(ctx, url, text)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "the first process has ended with %d tasks under way\n", len(ids))
	return deploy(ctx, dir, api, func(url string) error {
		for _, id := range ids {
			answer, err := wait(ctx, url, id)
			if err != nil {
				return err
			}
			fmt.Fprintf(stdout, "the second process answers task %s: %s\n", id, answer)
		}
		return nil
	})
}

// deploy runs the service for as long as use takes. A real main serves until SIGTERM
// arrives.
func deploy(ctx context.Context, dir string, api demo.Provider, use func(url string) error) error {
	s, err := start(ctx, dir, api)
	if err != nil {
		return err
	}
	server := httptest.NewServer(s)
	err = use(server.URL)
	server.Close() // no request comes from here on
	if stopErr := s.stop(ctx); err == nil {
		err = stopErr
	}
	return err
}

// post gives the service a task, and returns the task's id.
func post(ctx context.Context, url, text string) (id string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/tasks", strings.NewReader(text))
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		return "", fmt.Errorf("the service answered %s", res.Status)
	}
	return strings.TrimPrefix(res.Header.Get("Location"), "/tasks/"), nil
}

// wait asks for the answer of a task until the task has its answer.
func wait(ctx context.Context, url, id string) (answer string, err error) {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/tasks/"+id, http.NoBody)
		if err != nil {
			return "", err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		switch {
		case err != nil:
			return "", err
		case res.StatusCode == http.StatusOK:
			return string(text), nil
		case res.StatusCode != http.StatusAccepted:
			return "", fmt.Errorf("the service answered %s", res.Status)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}
