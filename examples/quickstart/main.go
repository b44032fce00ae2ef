// Quickstart asks for a summary, an embedding and a title of each paragraph of a
// text, concurrently and at batch price.
//
//	go run ./examples/quickstart [flags] [FILE]
//
// Quickstart needs no key and no server: the program starts an embedded Batch API
// server, which echoes each prompt. The default FILE is the README of this
// repository. With -real, and OPENAI_API_KEY set (and, optionally, OPENAI_BASE_URL,
// OPENAI_MODEL and OPENAI_EMBEDDING_MODEL), the same program calls a real provider,
// which costs money, and waits until the provider's batches have ended. Ctrl-C
// cancels the batches.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
	"github.com/autobatcher/autobatcher/provider"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp): // parse has printed the help
	case err != nil:
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	conf, err := parse(args, stderr)
	if err != nil {
		return err
	}
	text, err := readText(conf.file)
	if err != nil {
		return err
	}
	all := paragraphs(text, isMarkdown(text.name))
	if len(all) == 0 {
		return fmt.Errorf("%s has no paragraphs of text", text.name)
	}
	chosen := all[:min(conf.paragraphs, len(all))]

	api, closeServer, err := conf.provider(getenv)
	if err != nil {
		return err
	}
	defer closeServer()
	fmt.Fprintf(stderr, "%d calls about %d of the %d paragraphs in %s go to %s.\n",
		len(kinds)*len(chosen), len(chosen), len(all), text.name, conf.destination(api))
	return askAbout(ctx, api, chosen, stdout, stderr)
}

// A config holds the values of the command line.
type config struct {
	file       string
	paragraphs int
	window     time.Duration // 0: 10 s, or 1 s with the embedded server
	like       string
	turnaround time.Duration
	real       bool // call a real provider
}

func parse(args []string, stderr io.Writer) (config, error) {
	var c config
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // main prints the error
	flags.IntVar(&c.paragraphs, "n", 12, "ask about the first `N` paragraphs")
	flags.DurationVar(&c.window, "window", 0, "collect calls for this `duration` (default 10s; 1s with the embedded server)")
	flags.StringVar(&c.like, "like", "openai", "the `provider` whose behavior the embedded server has: openai (a batch for each\nendpoint and model) or doubleword (one batch for all calls, and answers while the\nbatch runs)")
	flags.DurationVar(&c.turnaround, "turnaround", 3*time.Second, "the `duration` of a batch on the embedded server")
	flags.BoolVar(&c.real, "real", false, demo.RealUsage)
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(stderr)
		fmt.Fprintln(stderr, "usage: quickstart [flags] [FILE]")
		flags.PrintDefaults()
	}
	if err != nil {
		return config{}, err
	}
	c.file = flags.Arg(0)
	switch {
	case flags.NArg() > 1:
		return config{}, fmt.Errorf("%d files; quickstart takes one file", flags.NArg())
	case c.paragraphs < 1:
		return config{}, fmt.Errorf("-n is %d; it must be at least 1", c.paragraphs)
	case c.window < 0 || c.turnaround < 0:
		return config{}, errors.New("-window and -turnaround must not be negative")
	case c.like != "openai" && c.like != "doubleword":
		return config{}, fmt.Errorf("-like is %q; it must be openai or doubleword", c.like)
	}
	return c, nil
}

// provider returns an embedded server, or with -real the provider of the environment.
func (c config) provider(getenv func(string) string) (api demo.Provider, closeServer func(), err error) {
	embedded := batchtest.Options{Turnaround: c.turnaround}
	if c.like == "doubleword" {
		embedded.Behavior = batchtest.Doubleword()
	}
	if api, closeServer, err = demo.Choose(c.real, getenv, embedded); err != nil {
		return demo.Provider{}, nil, err
	}
	if !c.real && c.like == "doubleword" {
		profile := provider.Doubleword() // the host 127.0.0.1 does not identify the provider
		api.Options.Provider = &profile
	}
	if c.window > 0 {
		api.Options.BatchWindow = c.window
	}
	return api, closeServer, nil
}

// destination describes where the calls go.
func (c config) destination(api demo.Provider) string {
	if c.real {
		return api.BaseURL
	}
	return "an embedded server, which echoes"
}
