package batchapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/retry"
)

// cleanupTimeout is how long the deletion of a file is repeated that is only in
// the way.
const cleanupTimeout = time.Minute

var (
	cleanupPolicy = retry.Policy{
		Classify: backend.Classify,
		Budget:   map[retry.Class]time.Duration{retry.Transient: cleanupTimeout, retry.RateLimited: cleanupTimeout},
	}

	// resolvePolicy is for the deletion of an input file that decides whether a
	// batch can still come into being. The file may not be visible at first.
	resolvePolicy = retry.Policy{
		Classify: backend.Classify,
		Budget: map[retry.Class]time.Duration{
			retry.Transient:   submitTimeout,
			retry.RateLimited: submitTimeout,
			retry.NotFound:    unseenTimeout,
		},
	}
)

// Cancel looks at the batch before it sends the cancellation: Doubleword turns a
// completed batch into a cancelled batch.
func (c *Client) Cancel(ctx context.Context, h backend.Handle) error {
	s, err := c.retrieve(ctx, h)
	switch {
	case err != nil:
		return err
	case s.Phase == backend.Ended:
		return backend.ErrEnded
	case s.Phase == backend.Cancelling:
		return nil
	}
	_, err = c.object(ctx, http.MethodPost, batchPath(h.BatchID)+"/cancel", nil)
	return err
}

// Cleanup deletes the input file and the result files. Results at a URL belong
// to the provider.
func (c *Client) Cleanup(ctx context.Context, h backend.Handle, sources []string) error {
	files := sources
	if !h.InputDeleted {
		files = append([]string{h.FileID}, sources...)
	}
	var failed []error
	for _, id := range files {
		if id == "" || strings.Contains(id, "/") {
			continue
		}
		if err := c.deleteFile(ctx, id, cleanupPolicy); err != nil {
			failed = append(failed, fmt.Errorf("file %s: %w", id, err))
		}
	}
	return errors.Join(failed...)
}

// deleteFile deletes a file, with retries. A file that does not exist is
// deleted.
func (c *Client) deleteFile(ctx context.Context, id string, p retry.Policy) error {
	attempts := p.Start()
	for {
		_, err := c.object(ctx, http.MethodDelete, filePath(id), nil)
		if err == nil {
			return nil
		}
		wait, again := attempts.Next(err)
		if !again && isNotFound(err) {
			return nil
		}
		if !again {
			return err
		}
		if err := retry.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func isNotFound(err error) bool {
	class, _ := backend.Classify(err)
	return class == retry.NotFound
}
