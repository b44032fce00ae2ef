// Quickstart asks for a summary, an embedding and a title of each paragraph of
// a text, all at once, and pays batch price for them.
//
//	go run ./examples/quickstart [flags] [FILE]
//
// It needs no key and no server: it starts an embedded Batch API server, which
// only echoes, and reads this repository's README unless a file is named. With
// OPENAI_API_KEY set, and OPENAI_BASE_URL, OPENAI_MODEL and
// OPENAI_EMBEDDING_MODEL where wanted, the same program asks a real provider and
// waits for as long as its batches take. Ctrl-C cancels them.
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
	case errors.Is(err, flag.ErrHelp): // was asked for, and given
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
		len(kinds)*len(chosen), len(chosen), len(all), text.name, asked(getenv))
	return askAbout(ctx, api, chosen, stdout, stderr)
}

// A config is what the command line says.
type config struct {
	file       string
	paragraphs int
	window     time.Duration // 0: ten seconds, or one with the embedded server
	like       string
	turnaround time.Duration
}

func parse(args []string, stderr io.Writer) (config, error) {
	var c config
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // what is wrong is told once, by main
	flags.IntVar(&c.paragraphs, "n", 12, "ask about the first `N` paragraphs")
	flags.DurationVar(&c.window, "window", 0, "collect calls for so long (default 10s; 1s with the embedded server)")
	flags.StringVar(&c.like, "like", "openai", "the `provider` that the embedded server is like: openai (a batch for each endpoint\nand model) or doubleword (one for all, and answers while it runs)")
	flags.DurationVar(&c.turnaround, "turnaround", 3*time.Second, "how long a batch takes on the embedded server")
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
		return config{}, fmt.Errorf("one file, please, not %d", flags.NArg())
	case c.paragraphs < 1:
		return config{}, fmt.Errorf("-n is %d; it must be at least 1", c.paragraphs)
	case c.window < 0 || c.turnaround < 0:
		return config{}, errors.New("-window and -turnaround must not be negative")
	case c.like != "openai" && c.like != "doubleword":
		return config{}, fmt.Errorf("-like is %q; it must be openai or doubleword", c.like)
	}
	return c, nil
}

// provider is the real one that the environment names, or an embedded server.
func (c config) provider(getenv func(string) string) (api demo.Provider, closeServer func(), err error) {
	embedded := batchtest.Options{Turnaround: c.turnaround}
	if c.like == "doubleword" {
		embedded.Manners = batchtest.Doubleword()
	}
	if api, closeServer, err = demo.FromEnv(getenv, embedded); err != nil {
		return demo.Provider{}, nil, err
	}
	if isEmbedded(getenv) && c.like == "doubleword" {
		profile := provider.Doubleword() // a host of the loopback interface does not tell
		api.Options.Provider = &profile
	}
	if c.window > 0 {
		api.Options.BatchWindow = c.window
	}
	return api, closeServer, nil
}

// asked says for people who is asked.
func asked(getenv func(string) string) string {
	if isEmbedded(getenv) {
		return "an embedded server, which echoes"
	}
	if base := getenv("OPENAI_BASE_URL"); base != "" {
		return base
	}
	return "OpenAI"
}

func isEmbedded(getenv func(string) string) bool { return getenv("OPENAI_API_KEY") == "" }
