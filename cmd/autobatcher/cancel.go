package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/journal"
)

func cancelCommand(p process, s *batchesSettings) *cli.Command {
	return &cli.Command{
		Name:      "cancel",
		Usage:     "cancel batches at the provider, and note it in the journal",
		ArgsUsage: "ID…",
		Description: `What a batch has done until then is paid for, and delivered to whoever comes
back for it. Only batches of the key's own account can be cancelled. A batch
that callers of a running process wait for is left alone unless forced.`,
		Flags: described(s.upstreamFlags(p)[:3], []cli.Flag{
			&cli.BoolFlag{
				Name: "all-open", Destination: &s.allOpen, Category: aboutJournal,
				Usage: "cancel every batch that runs and that nobody waits for",
			},
			&cli.BoolFlag{
				Name: "force", Destination: &s.evenAwait, Category: aboutJournal,
				Usage: "even if callers wait for it; they then get an error, or ride again (--resubmits of their serve)",
			},
		}),
		HideHelpCommand: true,
		Action:          action(func(ctx context.Context, ids []string) error { return s.cancel(ctx, p, ids) }),
		OnUsageError:    badUsage,
	}
}

// cancel cancels the batches of these ids, or all that nobody waits for.
func (s *batchesSettings) cancel(ctx context.Context, p process, ids []string) error {
	if (len(ids) == 0) == !s.allOpen {
		return usagef("cancel needs the ids of batches, or --all-open: autobatcher batches lists them")
	}
	up, err := s.upstream()
	if err != nil {
		return err
	}
	if s.apiKey == "" {
		return &failure{exitFailure, errors.New("no API key: give --api-key, or set OPENAI_API_KEY")}
	}
	store, err := s.existingJournal(ctx, p)
	if err != nil {
		return err
	}
	defer store.Close() //nolint:errcheck // what was written was confirmed
	c := &canceller{store: store, owner: rand.Text(), api: up.client(s.apiKey), upstream: up.account(), force: s.evenAwait}
	all, err := store.Batches(ctx, journal.Filter{})
	if err != nil {
		return err
	}
	chosen, err := c.choose(all, ids)
	return errors.Join(err, c.cancelAll(ctx, chosen, func(b journal.Batch) { fmt.Fprintln(p.stdout, "cancelling", b.BatchID) }))
}

// client speaks with the provider in the name of whoever pays.
func (up upstream) client(key string) *batchapi.Client {
	base := *up.url
	query := base.Query()
	for name := range query {
		if !slices.Contains(up.profile.KeepQuery, name) {
			query.Del(name)
		}
	}
	base.RawQuery = query.Encode()
	base.Path = up.profile.BatchPath(strings.TrimSuffix(base.Path, "/"))
	header := http.Header{}
	value := key
	if up.profile.AuthHeader == "Authorization" {
		value = "Bearer " + key
	}
	header.Set(up.profile.AuthHeader, value)
	return batchapi.New(&base, header, http.DefaultTransport, up.profile)
}

// account is the base URL as the journal knows it.
func (up upstream) account() string {
	u := url.URL{Scheme: up.url.Scheme, Host: up.url.Host}
	return u.String() + strings.TrimSuffix(up.url.EscapedPath(), "/")
}

// A canceller cancels batches of one account.
type canceller struct {
	store    journal.Store
	owner    string // a name of its own in the journal
	api      *batchapi.Client
	upstream string
	force    bool
}

// choose finds the batches of these ids; without ids, all that nobody waits
// for. The error says which cannot be cancelled, and why.
func (c *canceller) choose(all []journal.Batch, ids []string) (chosen []journal.Batch, err error) {
	if len(ids) == 0 {
		return slices.DeleteFunc(all, func(b journal.Batch) bool { return c.check(b) != nil || b.Open == 0 }), nil
	}
	var errs []error
	for _, id := range ids {
		i := slices.IndexFunc(all, func(b journal.Batch) bool { return b.BatchID == id && id != "" })
		if i < 0 {
			errs = append(errs, fmt.Errorf("%q is no batch that the journal knows", id))
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

// check says why a batch cannot be cancelled.
func (c *canceller) check(b journal.Batch) error {
	switch {
	case b.State == journal.Ended:
		return fmt.Errorf("%s has ended already", b.BatchID)
	case b.BatchID == "":
		return errors.New("a batch that was not created yet cannot be cancelled")
	case b.Upstream != c.upstream:
		return fmt.Errorf("%s runs at %s; give --base-url, and the key that pays there", b.BatchID, b.Upstream)
	case b.Held > 0 && !c.force:
		return fmt.Errorf("%s: callers of a running process wait for %d of its lines; --force cancels it all the same", b.BatchID, b.Held)
	}
	return nil
}

// cancelLease outlasts the noting of one batch.
const cancelLease = time.Minute

// cancelAll cancels batches at the provider, and says so of each.
func (c *canceller) cancelAll(ctx context.Context, batches []journal.Batch, say func(journal.Batch)) error {
	var errs []error
	for _, b := range batches {
		if err := c.api.Cancel(ctx, b.BatchID); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", b.BatchID, err))
			continue
		}
		say(b)
		if err := c.note(ctx, b.Ref); err != nil {
			errs = append(errs, fmt.Errorf("%s is cancelled, but that could not be noted: %w", b.BatchID, err))
		}
	}
	return errors.Join(errs...)
}

// note makes sure that nobody takes over a line of a batch that is cancelled.
// Where a process watches the batch, that process sees to it.
func (c *canceller) note(ctx context.Context, ref string) error {
	if _, err := c.store.Heartbeat(ctx, c.owner, cancelLease); err != nil {
		return err
	}
	defer c.store.Heartbeat(context.WithoutCancel(ctx), c.owner, 0) //nolint:errcheck // the lease ends by itself
	mine, err := c.store.Claim(ctx, c.owner, ref)
	if err != nil || !mine {
		return err
	}
	_, err = c.store.Abandon(ctx, c.owner, ref)
	return err
}
