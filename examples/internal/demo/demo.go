// Package demo finds a provider for the example programs: the real one that the
// environment names, or an embedded server that costs nothing.
package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// A Provider is where an example sends its calls, and how patiently.
type Provider struct {
	BaseURL        string // with /v1
	Key            string
	Model          string
	EmbeddingModel string
	Options        autobatcher.Options
}

// The models asked for where the environment names none.
const (
	DefaultModel          = "gpt-4.1-mini"
	DefaultEmbeddingModel = "text-embedding-3-small"
)

// Main runs an example until it is done or Ctrl-C is pressed, and exits with a
// status other than zero if it failed.
func Main(run func(ctx context.Context, api Provider, stdout io.Writer) error) {
	if err := runWith(run); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runWith(run func(context.Context, Provider, io.Writer) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	api, closeServer, err := FromEnv(os.Getenv, batchtest.Options{Turnaround: time.Second})
	if err != nil {
		return err
	}
	defer closeServer()
	err = run(ctx, api, os.Stdout)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// FromEnv returns the provider that OPENAI_API_KEY, OPENAI_BASE_URL,
// OPENAI_MODEL and OPENAI_EMBEDDING_MODEL name. Without a key it starts an
// embedded server as the options say; call closeServer in any case.
func FromEnv(getenv func(string) string, embedded batchtest.Options) (api Provider, closeServer func(), err error) {
	api = Provider{
		BaseURL:        getenv("OPENAI_BASE_URL"),
		Key:            getenv("OPENAI_API_KEY"),
		Model:          cmp.Or(getenv("OPENAI_MODEL"), DefaultModel),
		EmbeddingModel: cmp.Or(getenv("OPENAI_EMBEDDING_MODEL"), DefaultEmbeddingModel),
		Options:        autobatcher.Options{CancelOnClose: true}, // who presses Ctrl-C does not want to pay
	}
	switch {
	case api.Key != "":
		api.BaseURL = cmp.Or(api.BaseURL, "https://api.openai.com/v1")
		return api, func() {}, nil
	case api.BaseURL != "":
		return Provider{}, func() {}, errors.New("OPENAI_BASE_URL is set but OPENAI_API_KEY is not; set it to anything if the server asks for none, or unset both to use the embedded server")
	}
	server := batchtest.NewServer(embedded)
	api.BaseURL, api.Key = server.URL, "no key is needed here"
	api.Options.BatchWindow = time.Second // the default of ten is for work, not for watching
	api.Options.PollInterval = 250 * time.Millisecond
	return api, server.Close, nil
}
