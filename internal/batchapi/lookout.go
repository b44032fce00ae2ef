package batchapi

import (
	"context"
	"errors"
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
	listed  atomic.Bool   // the list was read once
	turn    chan struct{} // holds the token of whoever reads the list
	seen    map[string]Batch
	at      time.Time // when the list was read
	failed  time.Time // or could not be
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
	if l.watched.Load() >= manyBatches || l.listed.Load() {
		if b, ok := l.fromList(ctx, c, id, maxAge); ok {
			return b, nil
		}
	}
	return c.Retrieve(ctx, id)
}

// listPatience is how long a list that could not be read is left alone.
const listPatience = 10 * time.Minute

// fromList finds the batch in a list that is fresh enough, reading it if need
// be. It gives up where the list does not show the batch, or is no help.
func (l *Lookout) fromList(ctx context.Context, c *Client, id string, maxAge time.Duration) (Batch, bool) {
	ctx, cancel := context.WithTimeout(ctx, max(maxAge, 10*time.Second))
	defer cancel()
	select {
	case <-l.turn:
		defer func() { l.turn <- struct{}{} }()
	case <-ctx.Done():
		return Batch{}, false
	}
	if time.Since(l.failed) < listPatience {
		return Batch{}, false
	}
	if l.seen == nil || time.Since(l.at) >= maxAge {
		if l.watched.Load() < manyBatches {
			return Batch{}, false
		}
		pages := int(l.watched.Load())/pageSize + 2
		seen := make(map[string]Batch)
		_, err := c.list(ctx, pages, func(b gjson.Result) bool {
			if parsed, err := parseBatch(b); err == nil {
				seen[parsed.ID] = parsed
			}
			return true
		})
		if err != nil {
			l.failed = time.Now()
			return Batch{}, false
		}
		l.seen, l.at = seen, time.Now()
		l.listed.Store(true)
	}
	b, ok := l.seen[id]
	return b, ok
}

// pageSize is the most that OpenAI lists at a time.
const pageSize = 100

// list shows the provider's batches, newest first, to visit until that returns
// false or so many pages were read. It reports whether there was nothing more
// to be seen.
func (c *Client) list(ctx context.Context, pages int, visit func(gjson.Result) bool) (whole bool, err error) {
	after, last, seen := "", "", 0
	for range pages {
		opts := []option.RequestOption{option.WithQuery("limit", "100")}
		if after != "" {
			opts = append(opts, option.WithQuery("after", after))
		}
		answer, err := c.object(ctx, http.MethodGet, "batches", nil, opts...)
		if err != nil {
			return false, err
		}
		list := answer.Get("data")
		if answer.IsArray() { // Together
			list = answer
		}
		if !list.IsArray() {
			return false, &Error{Op: "GET /batches", Status: http.StatusOK, Body: clip([]byte(answer.Raw)), Err: errNoList}
		}
		items := list.Array()
		for _, item := range items {
			if !visit(item) {
				return true, nil
			}
		}
		seen += len(items)
		// Doubleword answers an "after" it does not know with the first page.
		if len(items) == 0 || !answer.Get("has_more").Bool() || items[len(items)-1].Get("id").String() == last {
			return true, nil
		}
		last = items[len(items)-1].Get("id").String()
		after = c.nextPage(last, seen)
	}
	return false, nil
}

var (
	errNoList   = errors.New("the answer is no list")
	errLongList = errors.New("the list of batches goes on and on")
)
