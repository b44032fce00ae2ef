package batchapi

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/openai/openai-go/v3/option"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/backend"
)

// pageSize is the greatest number of batches that OpenAI lists at a time.
const pageSize = 100

// A page is one response of the list of batches.
type page struct {
	items []gjson.Result
	more  bool      // the server says, or may mean, that more pages follow
	date  time.Time // by the provider's clock; zero: not known
}

// readPage reads the page behind the batch or the number of batches that after
// names. An empty after means the first page.
func (c *Client) readPage(ctx context.Context, after string) (page, error) {
	opts := []option.RequestOption{option.WithQuery("limit", strconv.Itoa(pageSize))}
	if after != "" {
		opts = append(opts, option.WithQuery("after", after))
	}
	answer, err := c.object(ctx, http.MethodGet, "batches", nil, opts...)
	if err != nil {
		return page{}, err
	}
	list := answer.Get("data")
	if answer.IsArray() { // Together
		list = answer.Result
	}
	if !list.IsArray() {
		return page{}, senseless("GET /batches", http.StatusOK, []byte(answer.Raw), errNoList)
	}
	p := page{items: list.Array(), date: answer.date}
	p.more = answer.Get("has_more").Bool()
	if !answer.Get("has_more").Exists() { // the page may be full, or by chance as long
		p.more = len(p.items) == pageSize
	}
	return p, nil
}

// list reads the list of batches page by page until visit returns false, the
// list ends, or limit pages were read. It reports whether the list was read to
// its end. A server that ignores "after" repeats a page: the list has no
// known end then.
func (c *Client) list(ctx context.Context, limit int, visit func(page) bool) (whole bool, err error) {
	after, listed := "", make(map[string]bool)
	for n := 0; n < limit; n++ {
		p, err := c.readPage(ctx, after)
		if err != nil {
			return false, err
		}
		before := len(listed)
		for _, item := range p.items {
			listed[item.Get("id").String()] = true
		}
		switch {
		case !visit(p):
			return false, nil
		case !p.more:
			return true, nil
		case len(listed) == before:
			return false, nil
		}
		after = c.nextPage(p.items[len(p.items)-1].Get("id").String(), after, len(p.items))
	}
	return false, nil
}

// nextPage is the "after" of the next page of a list.
func (c *Client) nextPage(lastID, after string, items int) string {
	if !c.profile.ListByOffset {
		return lastID
	}
	offset, _ := strconv.Atoi(after) // "": 0
	return strconv.Itoa(offset + items)
}

// manyBatches is the number of batches from which on the list is cheaper than a
// request for each.
const manyBatches = 10

// Status returns the states of batches. For ten batches or more Status reads the
// list, but no further than their number makes likely.
func (c *Client) Status(ctx context.Context, hs []backend.Handle) ([]backend.Status, error) {
	if len(hs) >= manyBatches {
		return c.listed(ctx, hs)
	}
	states := make([]backend.Status, len(hs))
	for i, h := range hs {
		s, err := c.retrieve(ctx, h)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			s = backend.Status{Handle: h, Err: err}
		}
		states[i] = s
	}
	return states, nil
}

// retrieve returns the state of one batch.
func (c *Client) retrieve(ctx context.Context, h backend.Handle) (backend.Status, error) {
	answer, err := c.object(ctx, http.MethodGet, batchPath(h.BatchID), nil)
	if err != nil {
		return backend.Status{}, err
	}
	s, err := parseBatch(answer.Result, h.FileID)
	s.Handle.InputDeleted = h.InputDeleted
	return s, err
}

// listed returns the states of batches as the list shows them.
func (c *Client) listed(ctx context.Context, hs []backend.Handle) ([]backend.Status, error) {
	shown := make(map[string]gjson.Result)
	_, err := c.list(ctx, len(hs)/pageSize+2, func(p page) bool {
		for _, item := range p.items {
			shown[item.Get("id").String()] = item
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	states := make([]backend.Status, len(hs))
	for i, h := range hs {
		states[i] = listedStatus(shown, h)
	}
	return states, nil
}

func listedStatus(shown map[string]gjson.Result, h backend.Handle) backend.Status {
	item, ok := shown[h.BatchID]
	if !ok {
		return backend.Status{Handle: h, Err: backend.ErrNotListed}
	}
	s, err := parseBatch(item, h.FileID)
	if err != nil {
		return backend.Status{Handle: h, Err: err}
	}
	s.Handle.InputDeleted = h.InputDeleted
	return s
}
