// Package demo selects the provider for the example programs: an embedded server,
// which costs nothing, or with the flag -real the provider that the environment names.
package demo

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// A Provider is the destination of the calls of an example.
type Provider struct {
	BaseURL        string // with /v1
	Key            string
	Model          string
	EmbeddingModel string
	Options        autobatcher.Options
}

// The default models.
const (
	DefaultModel          = "gpt-4.1-mini"
	DefaultEmbeddingModel = "text-embedding-3-small"
)

// Main runs an example until the example returns. Ctrl-C ends the context of the
// example. Main exits with a status other than zero if the example failed.
func Main(run func(ctx context.Context, api Provider, stdout io.Writer) error) {
	if err := runWith(run); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runWith(run func(context.Context, Provider, io.Writer) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	realProvider := flag.Bool("real", false, RealUsage)
	flag.Parse()
	api, closeServer, err := Choose(*realProvider, os.Getenv, batchtest.Options{Turnaround: time.Second})
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

// RealUsage is the help of the flag -real.
const RealUsage = "call the provider of OPENAI_API_KEY and OPENAI_BASE_URL, which costs money, instead of the embedded server"

// Choose returns the provider that OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_MODEL and
// OPENAI_EMBEDDING_MODEL name if realProvider is true. Otherwise Choose starts an
// embedded server with the given options, and reads nothing from the environment. The
// caller must call closeServer in either case.
func Choose(realProvider bool, getenv func(string) string, embedded batchtest.Options) (api Provider, closeServer func(), err error) {
	api = Provider{
		Model:          DefaultModel,
		EmbeddingModel: DefaultEmbeddingModel,
		Options:        autobatcher.Options{CancelOnClose: true}, // an interrupted example must not cost money
	}
	if realProvider {
		api.BaseURL = cmp.Or(getenv("OPENAI_BASE_URL"), "https://api.openai.com/v1")
		api.Key = getenv("OPENAI_API_KEY")
		api.Model = cmp.Or(getenv("OPENAI_MODEL"), api.Model)
		api.EmbeddingModel = cmp.Or(getenv("OPENAI_EMBEDDING_MODEL"), api.EmbeddingModel)
		if api.Key == "" {
			err = errors.New("-real needs OPENAI_API_KEY; set the variable to any value if the server needs no key")
		}
		return api, func() {}, err
	}
	server := batchtest.NewServer(embedded)
	api.BaseURL, api.Key = server.URL, "no key is needed here"
	api.Options.BatchWindow = time.Second // shorter than the default of 10 s, for a quick demonstration
	api.Options.PollInterval = 250 * time.Millisecond
	return api, server.Close, nil
}
