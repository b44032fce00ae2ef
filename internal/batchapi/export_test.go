package batchapi

import (
	"context"
	"io"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/line"
)

// Single requests, without the retries and searches around them.

func (c *Client) UploadOnce(ctx context.Context, p backend.Params, f line.File) (string, error) {
	made, err := c.upload(ctx, p, f)
	return made.id, err
}

func (c *Client) CreateOnce(ctx context.Context, fileID string, p backend.Params) (backend.Status, error) {
	return c.create(ctx, backend.Handle{FileID: fileID}, p)
}

func (c *Client) Retrieve(ctx context.Context, id string) (backend.Status, error) {
	return c.retrieve(ctx, backend.Handle{BatchID: id})
}

func (c *Client) ReadList(ctx context.Context, fileID string, since time.Time) (backend.Status, backend.Existence, error) {
	s := &search{client: c, fileID: fileID, since: since, strangers: make(map[string]bool)}
	existence, err := s.readOnce(ctx)
	return s.found, existence, err
}

func (c *Client) DeleteOnce(ctx context.Context, fileID string) error {
	return c.deleteFile(ctx, fileID, cleanupPolicy)
}

// Body is the body of a Stream.
func Body(s *backend.Stream) io.ReadCloser { return s.Lines.(*lines).body }

// TimeMargin is how far back of a create the list is searched.
const TimeMargin = timeMargin
