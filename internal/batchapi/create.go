package batchapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/retry"
)

// unseenTimeout is how long the provider may not know a new file.
const unseenTimeout = time.Minute

var createPolicy = retry.Policy{
	Classify: backend.Classify,
	Budget: map[retry.Class]time.Duration{
		retry.RateLimited: submitTimeout,
		retry.NotFound:    unseenTimeout,
		retry.NotReady:    processTimeout,
	},
}

// Create creates the batch of an input file. If the provider may have carried out
// a create without an answer, Create looks for the batch instead of sending a
// second create.
func (c *Client) Create(ctx context.Context, _ line.File, h backend.Handle, p backend.Params) (backend.Handle, backend.Status, error) {
	attempts := createPolicy.Start()
	for {
		began := time.Now()
		s, err := c.create(ctx, h, p)
		switch {
		case err == nil:
			return s.Handle, s, nil
		case ctx.Err() != nil:
			return h, backend.Status{}, fmt.Errorf("%w: %w", backend.ErrUnsure, err)
		case ambiguous(err):
			return c.resolveCreate(ctx, h, began, err)
		}
		wait, again := attempts.Next(err)
		if !again {
			return h, backend.Status{}, err
		}
		c.log.Warn("create failed, trying again", "error", err, "in", wait)
		if err := p.Wait(ctx, wait); err != nil {
			return h, backend.Status{}, err
		}
	}
}

func ambiguous(err error) bool {
	var failed *backend.Error
	return errors.As(err, &failed) && failed.Ambiguous()
}

// resolveCreate looks for the batch of a create that failed with cause.
func (c *Client) resolveCreate(ctx context.Context, h backend.Handle, began time.Time, cause error) (backend.Handle, backend.Status, error) {
	c.log.Warn("create was not answered, looking for its batch", "error", cause)
	s, existence, doubt := c.find(ctx, h, began)
	switch existence {
	case backend.Found:
		return s.Handle, s, nil
	case backend.Absent:
		return h, backend.Status{}, fmt.Errorf("%w: %w", backend.ErrInputDeleted, cause)
	}
	return h, backend.Status{}, fmt.Errorf("%w: %w; %w", backend.ErrUnsure, cause, doubt)
}

// create sends one create.
func (c *Client) create(ctx context.Context, h backend.Handle, p backend.Params) (backend.Status, error) {
	answer, err := c.object(ctx, http.MethodPost, "batches", c.createBody(h, p))
	if err != nil {
		return backend.Status{}, err
	}
	made := answer.Result
	if wrapper := c.profile.CreateWrapper; wrapper != "" && made.Get(wrapper).IsObject() {
		made = made.Get(wrapper)
	}
	s, err := parseBatch(made, h.FileID)
	if err == nil {
		s.Handle.FileID = h.FileID
	}
	return s, err
}

func (c *Client) createBody(h backend.Handle, p backend.Params) map[string]any {
	body := map[string]any{"input_file_id": h.FileID, "endpoint": p.Endpoint}
	if p.Window != "" && !c.profile.OmitWindow {
		body["completion_window"] = p.Window
	}
	if p.Shared != nil {
		body["request_params"] = p.Shared
	}
	if len(p.Metadata) > 0 {
		body["metadata"] = p.Metadata
	}
	if p.OutputExpiry > 0 && c.profile.OutputExpiry {
		body["output_expires_after"] = map[string]any{"anchor": "created_at", "seconds": c.expiry(p.OutputExpiry)}
	}
	return body
}
