package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher"
	notifier "github.com/autobatcher/autobatcher/internal/notify"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/internal/redact"
	"github.com/autobatcher/autobatcher/internal/webhook"
)

// notifyTimeout is how long a shutdown waits until the last events are posted.
const notifyTimeout = 3 * time.Second

// webhookSettings are the values of the flags for the provider's webhooks, which are
// flags of serve only, and for notifications.
type webhookSettings struct {
	webhookSecrets    []string
	webhookSecretFile string
	notifyURL         string
	notifySecret      string
	notifySecretFile  string // takes precedence over notifySecret
}

func (s *webhookSettings) webhookFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{
			Name: "webhook-secret", Destination: &s.webhookSecrets, Category: aboutWebhooks,
			Sources: p.listSource("AUTOBATCHER_WEBHOOK_SECRET"),
			Usage: "receive the provider's webhooks at POST " + proxy.WebhookPath + " if `SECRET` (whsec_…) has signed the webhook, and poll the batch of the webhook at once; repeatable. " +
				"Other users of this machine can see arguments, so prefer the variable or --webhook-secret-file",
		},
		&cli.StringFlag{
			Name: "webhook-secret-file", Destination: &s.webhookSecretFile, Category: aboutWebhooks,
			Sources: p.source("AUTOBATCHER_WEBHOOK_SECRET_FILE"),
			Usage:   "read further secrets of webhooks from `FILE`, one a line, at start",
		},
	}
}

func (s *webhookSettings) notifyFlags(p process) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "notify", Destination: &s.notifyURL, Category: aboutWebhooks,
			Sources: p.source("AUTOBATCHER_NOTIFY"),
			Usage:   "post the events of batches to `URL`, one JSON object in each request, signed as Standard Webhooks says; requires a secret",
		},
		&cli.StringFlag{
			Name: "notify-secret", Destination: &s.notifySecret, Category: aboutWebhooks,
			Sources: p.source("AUTOBATCHER_NOTIFY_SECRET"),
			Usage:   "sign the events for --notify with `SECRET`: whsec_ and at least 16 bytes in base64; other users of this machine can see arguments, so prefer the variable or --notify-secret-file",
		},
		&cli.StringFlag{
			Name: "notify-secret-file", Destination: &s.notifySecretFile, Category: aboutWebhooks,
			Sources: p.source("AUTOBATCHER_NOTIFY_SECRET_FILE"),
			Usage:   "read the secret for --notify from `FILE` at start; takes precedence over --notify-secret",
		},
	}
}

// openWebhooks makes the verifier of the provider's webhooks, and what posts events.
func (b *backend) openWebhooks(s *webhookSettings) (err error) {
	if b.verifier, err = s.newVerifier(b.log, b.secrets); err != nil {
		return err
	}
	b.notifier, err = s.newNotifier(b.log, b.secrets)
	return err
}

// newVerifier returns the verifier of the provider's webhooks, or nil if there is no
// secret.
func (s *webhookSettings) newVerifier(log *slog.Logger, secrets *redact.Secrets) (*webhook.Verifier, error) {
	all := slices.Clone(s.webhookSecrets)
	flag := "--webhook-secret"
	if s.webhookSecretFile != "" {
		lines, err := readSecrets("--webhook-secret-file", s.webhookSecretFile, log)
		if err != nil {
			return nil, err
		}
		all, flag = append(all, lines...), "--webhook-secret, --webhook-secret-file"
	}
	if len(all) == 0 {
		return nil, nil
	}
	v, err := webhook.NewVerifier(all)
	if err != nil {
		return nil, usagef("%s: %w", flag, err)
	}
	for _, secret := range all {
		secrets.Add(secret)
	}
	return v, nil
}

// newNotifier returns what posts events, or nil without --notify.
func (s *webhookSettings) newNotifier(log *slog.Logger, secrets *redact.Secrets) (*notifier.Notifier, error) {
	if s.notifyURL == "" {
		return nil, nil
	}
	secret := s.notifySecret
	if s.notifySecretFile != "" {
		lines, err := readSecrets("--notify-secret-file", s.notifySecretFile, log)
		switch {
		case err != nil:
			return nil, err
		case len(lines) != 1:
			return nil, usagef("--notify-secret-file: %s has %d secrets; it must have one", s.notifySecretFile, len(lines))
		}
		secret = lines[0]
	}
	if secret == "" {
		return nil, usagef(`--notify requires a secret, by which the receiver knows the sender: set AUTOBATCHER_NOTIFY_SECRET, or give --notify-secret-file; for example "whsec_$(openssl rand -base64 32)"`)
	}
	n, err := notifier.New(notifier.Options{URL: s.notifyURL, Secret: secret, Logger: log})
	if err != nil {
		return nil, usagef("--notify: %w", err)
	}
	secrets.Add(secret)
	return n, nil
}

// readSecrets reads the secrets in a file. The error never contains the file's contents.
func readSecrets(flag, path string, log *slog.Logger) ([]string, error) {
	content, version, err := readKeyFile(path)
	lines := strings.Fields(content)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", flag, err)
	case len(lines) == 0:
		return nil, usagef("%s: %s is empty", flag, path)
	case len(content) > maxKeyFile:
		return nil, usagef("%s: %s is larger than %d bytes", flag, path, maxKeyFile)
	}
	if openTo(version, 0o007) {
		log.Warn("other users of this machine can read or write the file of a secret; chmod 600 the file", "file", path, "mode", version.Mode().String())
	}
	return lines, nil
}

// notify posts an event to the URL of --notify.
func (b *backend) notify(e autobatcher.Event) {
	if b.notifier == nil {
		return
	}
	event, err := json.Marshal(e)
	if err != nil {
		b.log.Error("an event could not be posted", "event", e.Name, "error", err)
		return
	}
	b.notifier.Send(event)
}

// closeNotifier waits until the last events are posted, for at most notifyTimeout.
func (b *backend) closeNotifier() {
	if b.notifier == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), notifyTimeout)
	defer cancel()
	b.notifier.Close(ctx)
}
