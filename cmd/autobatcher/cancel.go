package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	api "github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/credential"
	"github.com/autobatcher/autobatcher/internal/flexapi"
	"github.com/autobatcher/autobatcher/internal/redact"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

func cancelCommand(p process, s *batchesSettings) *cli.Command {
	return &cli.Command{
		Name:      "cancel",
		Usage:     "cancel batches at the provider, and mark the batches in the journal",
		ArgsUsage: "ID…",
		Description: `The provider charges for the lines that finished before the cancellation. A
retry of a finished call receives the result. Only batches of the key's own
account can be cancelled. A batch with waiting callers in a running process is
cancelled only with --force.`,
		Flags: manualLayout(s.upstreamFlags(p)[:4], []cli.Flag{
			&cli.BoolFlag{
				Name: "all-open", Destination: &s.allOpen, Category: aboutJournal,
				Usage: "cancel every running batch that has open lines and no waiting callers",
			},
			&cli.BoolFlag{
				Name: "force", Destination: &s.force, Category: aboutJournal,
				Usage: "cancel a batch even if callers wait; the calls are then resubmitted (--resubmits of the serve process), or get an error",
			},
		}),
		HideHelpCommand: true,
		Action:          action(func(ctx context.Context, ids []string) error { return s.cancel(ctx, p, ids) }),
		OnUsageError:    badUsage,
	}
}

// cancel cancels the batches with these ids, or with --all-open all batches without
// waiting callers.
func (s *batchesSettings) cancel(ctx context.Context, p process, ids []string) error {
	if (len(ids) == 0) == !s.allOpen {
		return usagef("cancel needs the ids of batches, or --all-open; autobatcher batches lists the ids")
	}
	up, err := s.upstream()
	if err != nil {
		return err
	}
	if _, err := s.loadKey(slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	store, err := s.existingJournal(ctx, p)
	if err != nil {
		return err
	}
	defer store.Close() //nolint:errcheck // every write was confirmed
	c := &canceller{store: store, owner: rand.Text(), api: up.client(s.apiKey, http.DefaultTransport), flex: up.flexClient(s.apiKey, http.DefaultTransport), upstream: up.account(), force: s.force}
	all, err := store.Batches(ctx, journal.Filter{})
	if err != nil {
		return err
	}
	if s.allOpen {
		fmt.Fprint(p.stderr, c.left(all))
	}
	chosen, err := c.choose(all, ids)
	failed := c.cancelAll(ctx, chosen, func(b journal.Batch) { fmt.Fprintln(p.stdout, "cancelling", printableLine(b.BatchID)) })
	if failed != nil { // some providers repeat the key in an error
		secrets := redact.New()
		secrets.Add(s.apiKey)
		failed = errors.New(secrets.Text(failed.Error()))
	}
	return errors.Join(err, failed)
}

// client returns a client of the provider's Batch API with this key.
func (up upstream) client(key string, next http.RoundTripper) *batchapi.Client {
	base := api.WithPath(up.url, up.profile.BatchPath(up.url.EscapedPath()))
	query := base.Query()
	for name := range query {
		if !slices.Contains(up.profile.KeepQuery, name) {
			query.Del(name)
		}
	}
	base.RawQuery = query.Encode()
	header := credentialHeader(up.profile.AuthHeader, key)
	return batchapi.New(base, credential.With(header, next), up.profile, nil)
}

// flexClient returns a client for calls at the provider's flex tier with this key.
func (up upstream) flexClient(key string, next http.RoundTripper) *flexapi.Client {
	header := credentialHeader(up.profile.AuthHeader, key)
	return flexapi.New(up.url, credential.With(header, next), &up.profile, new(flexapi.Models), slog.New(slog.DiscardHandler))
}

// account returns the base URL as recorded in the journal.
func (up upstream) account() string {
	u := url.URL{Scheme: up.url.Scheme, Host: up.url.Host}
	return u.String() + strings.TrimSuffix(up.url.EscapedPath(), "/")
}

// A canceller cancels batches of one account.
type canceller struct {
	store    journal.Store
	owner    string      // the canceller's owner id in the journal
	api      api.Backend // for batches
	flex     api.Backend // for calls at the flex tier, which the journal stores as batches
	upstream string
	force    bool
}

// choose returns the batches with these ids; without ids, all running batches that
// have open lines and no waiting callers. The error names each batch that cannot be
// cancelled, and the reason.
func (c *canceller) choose(all []journal.Batch, ids []string) (chosen []journal.Batch, err error) {
	if len(ids) == 0 {
		return slices.DeleteFunc(all, func(b journal.Batch) bool { return c.check(b) != nil || b.Open == 0 }), nil
	}
	var errs []error
	for _, id := range ids {
		i := slices.IndexFunc(all, func(b journal.Batch) bool { return b.BatchID == id && id != "" })
		if i < 0 {
			errs = append(errs, fmt.Errorf("the journal has no batch %q", id))
			continue
		}
		if err := c.check(all[i]); err != nil {
			errs = append(errs, err)
			continue
		}
		chosen = append(chosen, all[i])
	}
	return chosen, errors.Join(errs...)
}

// left describes the running batches that --all-open does not cancel.
func (c *canceller) left(all []journal.Batch) string {
	elsewhere, held, open := map[string]int64{}, int64(0), 0
	for _, b := range all {
		switch {
		case b.State == journal.Ended || b.BatchID == "":
		case b.Upstream != c.upstream:
			elsewhere[b.Upstream]++
		case b.Held > 0 && !c.force:
			held++
		case b.Open > 0:
			open++
		}
	}
	var text strings.Builder
	if open == 0 {
		fmt.Fprintf(&text, "autobatcher: no batch to cancel at %s\n", printableLine(c.upstream))
	}
	if held > 0 {
		fmt.Fprintf(&text, "autobatcher: %s not cancelled, since callers of a running process wait; --force cancels nevertheless\n", count(held, "batch is", "batches are"))
	}
	for _, upstream := range slices.Sorted(maps.Keys(elsewhere)) {
		fmt.Fprintf(&text, "autobatcher: %s at %s: not cancelled; to cancel, give --base-url %[2]s and the key of that account\n",
			count(elsewhere[upstream], "batch runs", "batches run"), printableLine(upstream))
	}
	return text.String()
}

// check returns an error if a batch cannot be cancelled.
func (c *canceller) check(b journal.Batch) error {
	switch {
	case b.State == journal.Ended:
		return fmt.Errorf("%s has ended already", b.BatchID)
	case b.BatchID == "":
		return errors.New("a batch that is not created yet cannot be cancelled")
	case b.Upstream != c.upstream:
		return fmt.Errorf("%s runs at %s; give the --base-url and the key of that API", b.BatchID, b.Upstream)
	case b.Held > 0 && !c.force:
		return fmt.Errorf("%s: callers of a running process wait for %s; --force cancels the batch nevertheless", b.BatchID, count(int64(b.Held), "line", "lines"))
	}
	return nil
}

// cancelLease is longer than a batch takes to be marked in the journal.
const cancelLease = time.Minute

// cancelAll cancels batches at the provider, and calls report for each cancelled
// batch.
func (c *canceller) cancelAll(ctx context.Context, batches []journal.Batch, report func(journal.Batch)) error {
	var errs []error
	for _, b := range batches {
		client := c.api
		if b.Window == provider.FlexWindow {
			client = c.flex
		}
		if err := client.Cancel(ctx, api.Handle{FileID: b.InputFileID, BatchID: b.BatchID}); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", b.BatchID, err))
			continue
		}
		report(b)
		if err := c.mark(ctx, b.Ref); err != nil {
			errs = append(errs, fmt.Errorf("%s is cancelled, but the cancellation could not be recorded in the journal: %w", b.BatchID, err))
		}
	}
	return errors.Join(errs...)
}

// mark marks a batch as cancelled in the journal, so that no caller takes over a
// line of the batch. A batch with an owner is left to the owner, which polls the
// batch and sees the cancellation.
func (c *canceller) mark(ctx context.Context, ref string) error {
	if _, err := c.store.Heartbeat(ctx, c.owner, cancelLease); err != nil {
		return err
	}
	defer c.store.Heartbeat(context.WithoutCancel(ctx), c.owner, 0) //nolint:errcheck // otherwise the lease expires
	mine, err := c.store.Claim(ctx, c.owner, ref)
	if err != nil || !mine {
		return err
	}
	_, err = c.store.Abandon(ctx, c.owner, ref)
	return err
}
