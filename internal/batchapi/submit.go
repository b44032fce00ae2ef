package batchapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
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

// lookDelays are how long after a lost answer the list is searched: a list may
// lag behind what was created.
var lookDelays = []time.Duration{3 * time.Second, 10 * time.Second}

// What may become of a create that was not answered, beside the batch.
var (
	// ErrUnsure is wrapped by the error of a create that may have made a batch
	// which could not be found. Creating another would risk paying twice.
	ErrUnsure = errors.New("it is not known whether the batch was created")

	// ErrSpent is wrapped by the error of a create that surely made no batch, and
	// never will, since its input file is deleted.
	ErrSpent = errors.New("the batch was not created, and its input file was deleted")
)

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
// created it all the same, it looks for the batch. If there is none, the error
// wraps ErrSpent.
func (c *Client) CreateOnce(ctx context.Context, p CreateParams, log *slog.Logger) (Batch, error) {
	r := Retries{Patience: submitPatience, Unseen: unseenPatience}
	for {
		began := time.Now()
		made, err := c.Create(ctx, p)
		if ambiguous(err) {
			log.Warn("create was not answered, looking for its batch", "error", err)
			found, doubt := c.Settle(ctx, p.InputFileID, began, log)
			if doubt != nil {
				return Batch{}, fmt.Errorf("%w: %w", doubt, err)
			}
			return found, nil
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

// Settle finds out what became of a create that was not answered, by its input
// file, which no other batch has. If the list shows no such batch, the create may
// yet be on its way: a gateway that gave up tells nothing of what is behind it.
// So Settle deletes the file, without which there will be no batch, and looks
// once more. The error is ErrSpent or ErrUnsure: a file that cannot be deleted
// leaves room for doubt.
func (c *Client) Settle(ctx context.Context, fileID string, began time.Time, log *slog.Logger) (Batch, error) {
	if fileID == "" {
		return Batch{}, ErrUnsure // any batch might be the one
	}
	found, sure := c.look(ctx, fileID, began)
	if found.ID == "" && sure {
		err := c.delete(ctx, fileID, Retries{Patience: submitPatience, Unseen: unseenPatience})
		if err != nil {
			log.Warn("the input file could not be deleted, so that a create may be on its way yet", "file", fileID, "error", err)
		}
		found, sure = c.look(ctx, fileID, began)
		found.FileDeleted, sure = err == nil, sure && err == nil
	}
	switch {
	case found.ID != "":
		log.Warn("adopted a batch whose create was not answered", "batch", found.ID)
		return found, nil
	case sure:
		return Batch{}, ErrSpent
	}
	return Batch{}, ErrUnsure
}

// look looks for the batch of an input file. It is sure that there is none only
// if the list could be read each time.
func (c *Client) look(ctx context.Context, fileID string, began time.Time) (found Batch, sure bool) {
	for _, delay := range lookDelays {
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

// deletePatience is how long deleting a file is tried that is only in the way.
const deletePatience = time.Minute

// DeletePatiently deletes a file, and again while that may help. A file that is
// not there is deleted.
func (c *Client) DeletePatiently(ctx context.Context, fileID string) error {
	return c.delete(ctx, fileID, Retries{Patience: deletePatience})
}

func (c *Client) delete(ctx context.Context, fileID string, r Retries) error {
	for {
		err := c.Delete(ctx, fileID)
		wait, again := r.Next(err)
		switch gone := (*Error)(nil); {
		case again && Sleep(ctx, wait) == nil:
			continue
		case errors.As(err, &gone) && gone.Status == http.StatusNotFound && ctx.Err() == nil:
			return nil
		}
		return err
	}
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
