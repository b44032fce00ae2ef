package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher/journal"
)

// batchesSettings are the flags of the batches command.
type batchesSettings struct {
	settings  // of which it has some
	asJSON    bool
	allOpen   bool
	evenAwait bool
}

func batchesCommand(p process) *cli.Command {
	s := &batchesSettings{settings: *newSettings()}
	return &cli.Command{
		Name:  "batches",
		Usage: "list the batches that the journal knows, or cancel some",
		Description: `A line of a batch is delivered, held by a caller who waits for it somewhere,
or open: whoever makes the same call again gets it instead of paying for
another.`,
		Flags: described([]cli.Flag{
			s.journalFlag(p),
			&cli.BoolFlag{
				Name: "json", Destination: &s.asJSON, Category: aboutJournal,
				Usage: "write each batch as one line of JSON",
			},
		}),
		Commands:        []*cli.Command{cancelCommand(p, s)},
		HideHelpCommand: true,
		Action:          noArguments(func(ctx context.Context) error { return s.list(ctx, p) }),
		OnUsageError:    badUsage,
	}
}

// list writes the journal's batches to stdout.
func (s *batchesSettings) list(ctx context.Context, p process) error {
	store, err := s.existingJournal(ctx, p)
	if err != nil {
		return err
	}
	defer store.Close() //nolint:errcheck // nothing was written
	all, err := store.Batches(ctx, journal.Filter{})
	if err != nil {
		return err
	}
	if s.asJSON {
		return writeJSON(p.stdout, all)
	}
	return writeTable(p.stdout, all, time.Now())
}

// existingJournal opens the journal, and makes none where there is none.
func (s *batchesSettings) existingJournal(ctx context.Context, p process) (journal.Store, error) {
	if s.journal == noJournal {
		return nil, usagef("--journal is off: there is nothing to see without one")
	}
	if err := checkPlace(s.journal); err != nil {
		return nil, err
	}
	if !isPostgres(s.journal) {
		path, err := p.journalPath(s.journal)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no journal at %s: nothing was batched with one, or it is elsewhere (--journal)", path)
		}
	}
	return p.openStore(ctx, s.journal)
}

// writeTable writes the batches for people.
func writeTable(w io.Writer, all []journal.Batch, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "BATCH\tSTATE\tAGE\tPROVIDER\tENDPOINT\tLINES\tDELIVERED\tHELD\tOPEN")
	for _, b := range all {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\n", nameOf(b), stateOf(b), age(now.Sub(b.Began)),
			b.Provider, b.Endpoint, b.Lines, b.Delivered, b.Held, b.Open)
	}
	return table.Flush()
}

// nameOf is the provider's name for a batch, or a dash before there is one.
func nameOf(b journal.Batch) string {
	if b.BatchID == "" {
		return "-"
	}
	return b.BatchID
}

// stateOf is how far a batch got: once it has ended, the provider's word for how.
func stateOf(b journal.Batch) string {
	if b.State == journal.Ended && b.Status != "" {
		return b.Status
	}
	return string(b.State)
}

// age is a length of time in its largest unit.
func age(d time.Duration) string {
	switch d = max(d, 0); { // the journal has a clock of its own
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// A batchRecord is a batch in JSON. What is not known yet is left out.
type batchRecord struct {
	BatchID     string     `json:"batch_id,omitempty"`
	InputFileID string     `json:"input_file_id,omitempty"`
	State       string     `json:"state"`
	Status      string     `json:"status,omitempty"`
	Provider    string     `json:"provider"`
	Upstream    string     `json:"upstream"`
	Endpoint    string     `json:"endpoint"`
	Window      string     `json:"completion_window"`
	Models      []string   `json:"models"`
	Began       time.Time  `json:"began"`
	Created     *time.Time `json:"created,omitempty"`
	Ended       *time.Time `json:"ended,omitempty"`
	Lines       int        `json:"lines"`
	Delivered   int        `json:"delivered"`
	Held        int        `json:"held"`
	Open        int        `json:"open"`
}

// writeJSON writes each batch as one line.
func writeJSON(w io.Writer, all []journal.Batch) error {
	encoder := json.NewEncoder(w)
	for _, b := range all {
		record := batchRecord{
			b.BatchID, b.InputFileID, string(b.State), b.Status, b.Provider, b.Upstream, b.Endpoint, b.Window, b.Models,
			b.Began, known(b.Created), known(b.Ended), b.Lines, b.Delivered, b.Held, b.Open,
		}
		if err := encoder.Encode(record); err != nil {
			return err
		}
	}
	return nil
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
