package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher/journal"
)

// batchesSettings are the flags of the batches command.
type batchesSettings struct {
	settings // only the journal flag, and for cancel the upstream flags
	asJSON   bool
	allOpen  bool
	force    bool
}

func batchesCommand(p process) *cli.Command {
	s := &batchesSettings{settings: *newSettings()}
	list := &cli.Command{
		Name:            "list",
		Usage:           "list the batches in the journal, as autobatcher batches does",
		HideHelpCommand: true,
		Action:          noArguments(func(ctx context.Context) error { return s.list(ctx, p) }),
		OnUsageError:    badUsage,
	}
	return &cli.Command{
		Name:  "batches",
		Usage: "list the batches in the journal, or cancel batches",
		Description: `A line of a batch is delivered, held (a caller of a running process waits for
the line), or open: a retry of the same call receives the line's result
instead of paying for a new line. COST and SAVED are estimates in US dollars; a
dash means that no price is known, or that the batch has not ended.`,
		Flags: manualLayout([]cli.Flag{
			s.journalFlag(p),
			&cli.BoolFlag{
				Name: "json", Destination: &s.asJSON, Category: aboutJournal,
				Usage: "write each batch as one line of JSON",
			},
		}),
		Commands:        []*cli.Command{list, cancelCommand(p, s)},
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
	defer store.Close() //nolint:errcheck // the command has written nothing
	all, err := store.Batches(ctx, journal.Filter{})
	if err != nil {
		return err
	}
	if s.asJSON {
		return writeJSON(p.stdout, all)
	}
	return writeTable(p.stdout, all, time.Now())
}

// existingJournal opens the journal. A journal that does not exist is an error.
func (s *batchesSettings) existingJournal(ctx context.Context, p process) (journal.Store, error) {
	if s.journal == noJournal {
		return nil, usagef("--journal is off; this command needs a journal")
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
			return nil, fmt.Errorf("no journal at %s: no batch was made with this journal, or the journal is in another place (--journal)", path)
		}
	}
	return p.openStore(ctx, s.journal)
}

// writeTable writes the batches as a table.
func writeTable(w io.Writer, all []journal.Batch, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "BATCH\tSTATE\tAGE\tPROVIDER\tENDPOINT\tWINDOW\tLINES\tDELIVERED\tHELD\tOPEN\tCOST\tSAVED")
	for _, b := range all {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", printableLine(nameOf(b)), printableLine(stateOf(b)), age(now.Sub(b.Began)),
			printableLine(b.Provider), printableLine(b.Endpoint), printableLine(b.Window), b.Lines, b.Delivered, b.Held, b.Open, amount(b.Cost), amount(b.Savings))
	}
	return table.Flush()
}

// amount formats an estimate of the journal, or returns a dash if the estimate is
// not known.
func amount(decimal string) string {
	usd, err := strconv.ParseFloat(decimal, 64)
	if err != nil {
		return "-"
	}
	return dollars(usd)
}

// nameOf returns the provider's id of a batch, or a dash before the batch has an
// id.
func nameOf(b journal.Batch) string {
	if b.BatchID == "" {
		return "-"
	}
	return b.BatchID
}

// stateOf returns the state of a batch. For a batch that has ended, stateOf returns
// the provider's final status.
func stateOf(b journal.Batch) string {
	if b.State == journal.Ended && b.Status != "" {
		return b.Status
	}
	return string(b.State)
}

// age formats a duration in the largest suitable unit.
func age(d time.Duration) string {
	switch d = max(d, 0); { // the journal's clock may be ahead
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// A batchRecord is a batch in JSON. Values that are not known yet are omitted.
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

	// Estimates, as decimal numbers.
	Cost    json.Number `json:"cost_usd,omitempty"`
	Savings json.Number `json:"savings_usd,omitempty"`
}

// writeJSON writes each batch as a line of JSON.
func writeJSON(w io.Writer, all []journal.Batch) error {
	encoder := json.NewEncoder(terminalWriter{w})
	for _, b := range all {
		record := batchRecord{
			b.BatchID, b.InputFileID, string(b.State), b.Status, b.Provider, b.Upstream, b.Endpoint, b.Window, b.Models,
			b.Began, known(b.Created), known(b.Ended), b.Lines, b.Delivered, b.Held, b.Open,
			json.Number(b.Cost), json.Number(b.Savings),
		}
		if err := encoder.Encode(record); err != nil {
			return err
		}
	}
	return nil
}

// known returns nil for the zero time.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
