package batchapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/autobatcher/autobatcher/internal/line"
)

const (
	// submitPatience is how long uploading or creating is tried. The callers
	// wait for hours anyway; a rate limit of the provider's passes in minutes.
	submitPatience = 30 * time.Minute

	// unseenPatience is how long a file that was just uploaded may be unknown.
	unseenPatience = time.Minute

	// clockSkew is how far the provider's clock may be off ours.
	clockSkew = 5 * time.Minute
)

// adoptDelays are how long after a lost answer the list is searched: a list may
// lag behind what was created.
var adoptDelays = []time.Duration{3 * time.Second, 10 * time.Second}

// ErrUnsure is wrapped by the error of a create that may have made a batch which
// could not be found. Creating another would risk paying twice.
var ErrUnsure = errors.New("it is not known whether the batch was created")

// UploadPatiently uploads an input file, and again while that may help.
// Repeating it costs a stray file at the most.
func (c *Client) UploadPatiently(ctx context.Context, u Upload, file line.File, log *slog.Logger) (id string, err error) {
	r := Retries{Patience: submitPatience}
	for {
		id, err = c.Upload(ctx, u, file)
		wait, again := r.Next(err)
		if !again {
			return id, err
		}
		log.Warn("upload failed, trying again", "error", err, "in", wait)
		if err := Sleep(ctx, wait); err != nil {
			return "", err
		}
	}
}

// CreateOnce creates a batch, and never two: after a failure that may have
// created it all the same, it looks for the batch before it tries again.
func (c *Client) CreateOnce(ctx context.Context, p CreateParams, log *slog.Logger) (Batch, error) {
	r := Retries{Patience: submitPatience, Unseen: unseenPatience}
	for {
		began := time.Now()
		made, err := c.Create(ctx, p)
		if ambiguous(err) {
			log.Warn("create was not answered, looking for its batch", "error", err)
			found, sure := c.adopt(ctx, p.InputFileID, began)
			if found.ID != "" {
				log.Warn("adopted a batch whose create was not answered", "batch", found.ID)
				return found, nil
			}
			if !sure {
				return Batch{}, fmt.Errorf("%w: %w", ErrUnsure, err)
			}
		}
		wait, again := r.Next(err)
		if !again {
			return made, err
		}
		log.Warn("create failed, trying again", "error", err, "in", wait)
		if err := Sleep(ctx, wait); err != nil {
			return Batch{}, err
		}
	}
}

func ambiguous(err error) bool {
	var failed *Error
	return errors.As(err, &failed) && failed.Ambiguous()
}

// Adopt looks for the batch of an input file that a process was about to create
// when it died. No batch and no error means that there surely is none.
func (c *Client) Adopt(ctx context.Context, fileID string, began time.Time) (Batch, error) {
	found, sure := c.adopt(ctx, fileID, began)
	if !sure {
		return Batch{}, ErrUnsure
	}
	return found, nil
}

// adopt looks for a batch whose create was not answered, by its input file. It
// is sure that there is none only if the list could be read each time.
func (c *Client) adopt(ctx context.Context, fileID string, began time.Time) (found Batch, sure bool) {
	for _, delay := range adoptDelays {
		r := Retries{Patience: submitPatience}
		for again := true; again; {
			if Sleep(ctx, delay) != nil {
				return Batch{}, false
			}
			b, ok, err := c.Find(ctx, fileID, began.Add(-clockSkew))
			if ok {
				return b, true
			}
			if delay, again = r.Next(err); err != nil && !again {
				return Batch{}, false
			}
		}
	}
	return Batch{}, true
}

// Sleep waits, or returns why ctx ended first.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
