package batchapi

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/openai/openai-go/v3/option"
	"github.com/tidwall/gjson"
)

// A Lookout looks at the batches of one credential. With many of them it reads
// the provider's list instead of asking for each one. It is safe for
// concurrent use.
type Lookout struct {
	watched atomic.Int64
	turn    chan struct{} // holds the token of whoever reads the list
	seen    map[string]Batch
	at      time.Time
}

// NewLookout returns a Lookout that watches nothing yet.
func NewLookout() *Lookout {
	l := &Lookout{turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

// manyBatches is from how many batches on one listing is cheaper.
const manyBatches = 10

// Watch counts a batch in, until the function it returns is called.
func (l *Lookout) Watch() (done func()) {
	l.watched.Add(1)
	return func() { l.watched.Add(-1) }
}

// Look returns how a batch is doing, as of maxAge ago at most. What the list
// does not show is asked for by itself.
func (l *Lookout) Look(ctx context.Context, c *Client, id string, maxAge time.Duration) (Batch, error) {
	if l.watched.Load() >= manyBatches {
		b, err := l.fromList(ctx, c, id, maxAge)
		if err != nil || b.ID != "" {
			return b, err
		}
	}
	return c.Retrieve(ctx, id)
}

// fromList finds the batch in a list that is fresh enough, reading it if need
// be. A batch that is not there has no ID.
func (l *Lookout) fromList(ctx context.Context, c *Client, id string, maxAge time.Duration) (Batch, error) {
	select {
	case <-l.turn:
		defer func() { l.turn <- struct{}{} }()
	case <-ctx.Done():
		return Batch{}, context.Cause(ctx)
	}
	if l.seen == nil || time.Since(l.at) >= maxAge {
		pages := int(l.watched.Load())/pageSize + 2
		seen := make(map[string]Batch)
		err := c.list(ctx, pages, func(b gjson.Result) bool {
			if parsed, err := parseBatch(b); err == nil {
				seen[parsed.ID] = parsed
			}
			return true
		})
		if err != nil {
			return Batch{}, err
		}
		l.seen, l.at = seen, time.Now()
	}
	return l.seen[id], nil
}

// pageSize is the most that OpenAI lists at a time.
const pageSize = 100

// list shows the provider's batches, newest first, to visit until that returns
// false or so many pages were read.
func (c *Client) list(ctx context.Context, pages int, visit func(gjson.Result) bool) error {
	after, last := "", ""
	for n := range pages {
		opts := []option.RequestOption{option.WithQuery("limit", "100")}
		if after != "" {
			opts = append(opts, option.WithQuery("after", after))
		}
		answer, err := c.object(ctx, http.MethodGet, "batches", nil, opts...)
		if err != nil {
			return err
		}
		items := answer.Get("data").Array()
		if answer.IsArray() { // Together
			items = answer.Array()
		}
		for _, item := range items {
			if !visit(item) {
				return nil
			}
		}
		// Doubleword answers an "after" it does not know with the first page.
		if len(items) == 0 || !answer.Get("has_more").Bool() || items[len(items)-1].Get("id").String() == last {
			return nil
		}
		last = items[len(items)-1].Get("id").String()
		after = c.nextPage(last, (n+1)*pageSize)
	}
	return nil
}
